import math
import re
import subprocess
import sys
from collections import Counter

import bm25s.stopwords
import numpy as np
import pytest
import Stemmer
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_zero.models.bm25 import Bm25
from helpers import DOCUMENTS, QUERIES

words = st.sampled_from(["wing", "wings", "lift", "the", "drag", "x", "zebra"])
texts = st.lists(st.lists(words, max_size=6), min_size=1, max_size=9)


def terms(text):
    words = re.findall(r"\b\w\w+\b", text.lower())
    return Stemmer.Stemmer("english").stemWords([w for w in words if w not in bm25s.stopwords.STOPWORDS_EN])


def plain_bm25(query, documents, k1=1.2, b=0.75):
    bags = [Counter(terms(text)) for text in documents]
    mean_length = sum(bag.total() for bag in bags) / len(bags)
    scores = []
    for bag in bags:
        score = 0.0
        for term in terms(query):
            having = sum(term in other for other in bags)
            if term in bag:
                idf = math.log(1 + (len(bags) - having + 0.5) / (having + 0.5))
                score += idf * bag[term] / (bag[term] + k1 * (1 - b + b * bag.total() / mean_length))
        scores.append(score)
    return np.array(scores)


def test_scores_follow_the_formula():
    documents = list(DOCUMENTS.values())
    bm25 = Bm25(documents)
    for query in QUERIES.values():
        expected = plain_bm25(query, documents)
        assert expected.max() > 0
        np.testing.assert_allclose(bm25.score_pairs([query], np.arange(20)[None])[0], expected, rtol=1e-5, atol=1e-6)


@settings(deadline=None)
@given(texts, texts, st.integers(1, 12))
def test_the_best_documents_come_first_and_equal_scores_by_index(documents, queries, k):
    documents, queries = ([" ".join(words) for words in some] for some in (documents, queries))
    bm25 = Bm25(documents)
    indices, scores = bm25.top(queries, k)
    assert indices.shape == scores.shape == (len(queries), min(k, len(documents)))
    every = np.tile(np.arange(len(documents)), (len(queries), 1))
    full = bm25.score_pairs(queries, every)
    for query, row, row_scores, row_full in zip(queries, indices, scores, full, strict=True):
        np.testing.assert_allclose(row_full, plain_bm25(query, documents), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(row_scores, np.sort(row_full)[::-1][:k], rtol=1e-5, atol=1e-6)
        keys = [(-score, index) for score, index in zip(row_scores, row, strict=True)]
        assert keys == sorted(keys)


def test_equal_scores_follow_the_given_order_also_at_the_cut():
    bm25 = Bm25(["wing"] * 5)
    assert bm25.top(["wing"], 3)[0].tolist() == [[0, 1, 2]]
    assert bm25.top(["wing"], 3, np.array([4, 3, 0, 2, 1]))[0].tolist() == [[2, 4, 3]]


def test_candidates_are_scored_alike_in_one_call_and_one_by_one():
    bm25 = Bm25(DOCUMENTS.values())
    queries = list(QUERIES.values())
    candidates = np.random.default_rng(0).integers(0, 20, (len(queries), 7))
    scores = bm25.score_pairs(queries, candidates)
    assert scores.dtype == np.float32
    for query, row, row_scores in zip(queries, candidates, scores, strict=True):
        assert bm25.score_pairs([query], row[None])[0].tolist() == row_scores.tolist()


@pytest.mark.parametrize("query", ["", "the of and", "zyzzyva", "?!"])
def test_a_query_without_a_known_term_scores_0(query):
    indices, scores = Bm25(DOCUMENTS.values()).top([query, "wing"], 4)
    assert indices[0].tolist() == [0, 1, 2, 3]
    assert scores[0].tolist() == [0, 0, 0, 0]
    assert scores[1, 0] > 0


def test_a_corpus_without_terms_scores_0():
    indices, scores = Bm25(["", "the"]).top(["wing"], 5)
    assert indices.tolist() == [[0, 1]]
    assert scores.tolist() == [[0, 0]]


def test_no_queries_give_no_rows():
    bm25 = Bm25(["wing"])
    assert bm25.top([], 3)[0].shape == (0, 1)
    assert bm25.score_pairs([], np.zeros((0, 4), int)).shape == (0, 4)


def test_a_corpus_without_documents_and_ill_shaped_candidates_are_refused():
    with pytest.raises(ValueError, match="at least one document"):
        Bm25([])
    with pytest.raises(ValueError, match=r"shape \(1, 1\) for 2 queries"):
        Bm25(["wing"]).score_pairs(["a", "b"], np.zeros((1, 1), int))


def test_every_process_computes_the_same_bits_and_prints_nothing():
    program = (
        f"from colbert_zero.models.bm25 import Bm25; texts = {list(DOCUMENTS.values())};"
        "print(Bm25(texts).top([' '.join(texts)], 20)[1].tobytes().hex())"
    )
    first, second = (
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
        )
        for seed in ("1", "2")
    )
    assert first.stdout == second.stdout != b""
    assert first.stderr == b""

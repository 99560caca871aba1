"""Recall@1 on pairs against plain loops, what a sample holds, and what is said of models that differ."""

import numpy as np
import pytest
import torch

from colbert_zero.evaluation.choosing import (
    apart_from_best,
    bm25_hits,
    embed_sample,
    hits_in,
    hits_of,
    sample_pairs,
)
from colbert_zero.evaluation.significance import wilson_interval
from colbert_zero.maxsim.packed import Packed
from colbert_zero.models.bm25 import Bm25
from helpers import DOCUMENTS, WINGS, triples
from oracles import maxsim


def plain_hits(scores):
    """One query after the other."""
    found = []
    for own, row in enumerate(scores):
        others = [score for place, score in enumerate(row) if place != own]
        found.append(1.0 if row[own] > max(others) else 0.5 if row[own] == max(others) else 0.0)
    return found


def pairs_of(texts):
    return [("s", " ".join(text.split()[::-1][:4]), text) for text in texts]


def token_vectors(packed):
    return packed.values.split(packed.lengths.tolist())


@pytest.mark.parametrize("seed", range(5))
def test_hits_are_those_of_plain_loops_also_where_scores_tie(seed):
    scores = np.random.default_rng(seed).integers(0, 3, (40, 40))
    assert hits_in(scores, np.arange(40)).tolist() == plain_hits(scores.tolist())
    rows = np.array([7, 3, 20])
    assert hits_in(scores[rows], rows).tolist() == [plain_hits(scores.tolist())[row] for row in rows]


def test_a_tie_counts_half_whatever_the_number_of_those_that_tie():
    assert hits_in(np.array([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0]]), np.arange(2)).tolist() == [0.5, 0.5]


def test_multi_vector_and_dense_recall_is_that_of_brute_force(tiny_multi_vector, tiny_dense):
    sample = sample_pairs(pairs_of(DOCUMENTS.values()), 100, seed=1)
    for model in (tiny_multi_vector, tiny_dense):
        embedded = embed_sample(model, sample)
        queries, documents = token_vectors(embedded.queries), token_vectors(embedded.documents)
        scores = [[float(maxsim(q, d)) for d in documents] for q in queries]
        hits = hits_of(embedded, "m").tolist()
        assert hits == plain_hits(scores)
        assert 0 < np.mean(hits) <= 1


def test_recall_by_blocks_is_that_at_once(tiny_dense, monkeypatch):
    sample = sample_pairs([("s", text[::-1], text) for text in triples(WINGS, 90)], 90, seed=1)
    found = hits_of(embed_sample(tiny_dense, sample), "m")
    monkeypatch.setattr("colbert_zero.evaluation.choosing._BLOCK_QUERIES", 7)
    monkeypatch.setattr("colbert_zero.evaluation.choosing._BLOCK_TEXTS", 1000)
    assert hits_of(embed_sample(tiny_dense, sample), "m").tolist() == found.tolist()


def test_bm25_recall_is_that_of_its_own_scores():
    alike = [("s", "oxygen of wings", "oxygen wings panels"), ("s", "wings of oxygen", "panels oxygen wings")]
    sample = sample_pairs([*pairs_of(DOCUMENTS.values()), *alike], 200, seed=1)
    every = np.broadcast_to(np.arange(len(sample.documents)), (len(sample.queries), len(sample.documents)))
    scores = Bm25(sample.documents).score_pairs(sample.queries, every)
    hits = bm25_hits(sample).tolist()
    assert hits == plain_hits(scores.tolist())
    assert hits.count(0.5) == 2


def test_no_text_of_a_sample_has_two_answers_in_it():
    rng = np.random.default_rng(0)
    pairs = [("s", f"q{q}", f"d{d}") for q, d in rng.integers(0, 60, (200, 2))]
    sample = sample_pairs(pairs, 100, seed=1)
    known = {(query, document) for _, query, document in pairs}
    for place, query in enumerate(sample.queries):
        answers = [document for document in sample.documents if (query, document) in known]
        assert answers == [sample.documents[place]]
    assert len({*sample.queries}) == len({*sample.documents}) == len(sample.queries)
    assert sample.left_out + len(sample.queries) == len(known)


def test_a_sample_does_not_depend_on_the_order_of_pairs_and_counts_equal_ones_once():
    pairs = [("a", f"q{n}", f"d{n}") for n in range(50)] + [("b", f"r{n}", f"e{n}") for n in range(50)]
    sample = sample_pairs(pairs, 30, seed=3)
    assert sample_pairs([*reversed(pairs), *pairs], 30, seed=3)[:2] == sample[:2]
    assert sum(sample.drawn_from.values()) == len(sample.queries) == 30
    assert sample.left_out == 0
    assert sample_pairs(pairs, 30, seed=4).queries != sample.queries


def test_scores_that_are_not_finite_are_told(tiny_dense):
    sample = sample_pairs(pairs_of(DOCUMENTS.values()), 100, seed=1)
    embedded = embed_sample(tiny_dense, sample)
    broken = embedded._replace(queries=Packed(embedded.queries.values * torch.nan, embedded.queries.lengths))
    with pytest.raises(Exception, match="mine: gives scores that are not finite"):
        hits_of(broken, "mine")


def test_models_are_best_as_good_worse_or_not_told_apart():
    rng = np.random.default_rng(0)
    best = (rng.random(400) < 0.8).astype(float)
    near = best.copy()
    near[np.flatnonzero(best)[0]] = 0.0
    found = apart_from_best({"bad": np.zeros(400), "near": near, "best": best})
    assert {name: about["verdict"] for name, about in found.items()} == {
        "best": "best",
        "near": "as good",
        "bad": "worse",
    }
    assert list(found) == ["best", "near", "bad"]
    assert found["near"]["difference"] == pytest.approx(-1 / 400)
    low, high = found["near"]["interval_of_difference"]
    assert low < found["near"]["difference"] <= high
    few = {"a": np.array([1.0] * 40 + [0.0] * 10), "b": np.array([1.0] * 38 + [0.0] * 9 + [1.0] * 3)}
    assert {about["verdict"] for about in apart_from_best(few).values()} == {"best", "not told apart"}


def test_the_interval_of_a_share_holds_it_and_is_no_point_where_all_hit():
    for share, count in ((0.0, 10), (1.0, 50), (0.37, 400)):
        low, high = wilson_interval(share, count)
        assert 0 <= low <= share <= high <= 1
        assert high - low > 0.01
    # The bounds are those shares whose own normal interval ends at the share that was found.
    for bound in wilson_interval(0.37, 400):
        assert abs(0.37 - bound) == pytest.approx(1.959964 * (bound * (1 - bound) / 400) ** 0.5)

"""Teacher scores and fused runs against plain versions."""

from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colbert_zero.data.prepared import arrow_file, open_source
from colbert_zero.data.rows import PAIRS
from colbert_zero.evaluation.ensembles import fuse
from colbert_zero.files import write_json
from colbert_zero.models.bm25 import Bm25
from colbert_zero.models.encoding import encode
from colbert_zero.recipe.data import Mined, Scored
from colbert_zero.teaching.mined import mine_source
from colbert_zero.teaching.scorers import ByBm25, ByEncoder
from colbert_zero.teaching.teacher import score
from helpers import DOCUMENTS
from oracles import maxsim


@pytest.fixture
def hard(tmp_path):
    """Twenty pairs with three hard negatives each."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    with arrow_file(folder / "0.arrow", PAIRS) as write:
        for name, text in DOCUMENTS.items():
            write({"query": f"{name} and {text.split()[-1]}", "document": text, "negatives": []})
    write_json(folder / "source.json", {"id": "pairs", "kind": "jsonl", "parts": {"only": len(DOCUMENTS)}})
    spec = Mined(kind="mined", of="pairs", negatives=3)
    pairs = open_source("pairs", folder)
    return mine_source("hard", spec, pairs, 1, "id", tmp_path / "data", {}, {}, lambda *_: nullcontext(lambda *_: None))


def texts_of(model, text, task):
    packed = encode(model, [text], task)
    return packed.values


def scaled(values):
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]


@pytest.mark.parametrize(("model_weight", "bm25_weight"), [(1.0, 0.0), (0.0, 1.0), (0.7, 2.0)])
def test_teacher_scores_are_the_weighted_sum_of_parts_scaled_over_each_querys_candidates(
    hard, tiny_multi_vector, tmp_path, model_weight, bm25_weight
):
    spec = Scored(kind="scored", of="hard", teacher="t")
    scorers = {ByEncoder(tiny_multi_vector): model_weight, ByBm25(DOCUMENTS.values()): bm25_weight}
    members = [(weight, scorer) for scorer, weight in scorers.items() if weight]
    made = open_source("s", score("s", spec, lambda _: members, "float32", hard, "id", tmp_path / "scored", None))
    rows = made.parts["s/only"].read(range(20))
    pairs = hard.parts["hard/only"].read(range(20))
    assert rows["query"] == pairs["query"]
    corpus = list(hard.documents["text"])
    bm25 = Bm25(corpus)
    for query, candidates, found, document, negatives in zip(
        rows["query"], rows["documents"], rows["scores"], pairs["document"], pairs["negatives"], strict=True
    ):
        assert candidates == [document, *negatives]
        expected = np.zeros(4)
        if model_weight:
            q = texts_of(tiny_multi_vector, query, "query")
            by_model = [maxsim(q, texts_of(tiny_multi_vector, text, "document")) for text in candidates]
            expected += model_weight * np.array(scaled(by_model))
        if bm25_weight:
            places, values = bm25.top([query], len(corpus))
            by_text = {corpus[place]: float(value) for place, value in zip(places[0], values[0], strict=True)}
            expected += bm25_weight * np.array(scaled([by_text[text] for text in candidates]))
        assert found == pytest.approx(expected, abs=1e-3)
    assert made.record["n_ways"] == 4


def plainly_fused(runs, depth):
    fused = {}
    for query in {query for _, run in runs for query in run}:
        sums = {}
        for weight, run in runs:
            ranked = run.get(query, [])
            found = [score for _, score in ranked]
            alike = found and min(found) == max(found) > 0  # found is more than not found
            normal = [1.0] * len(found) if alike else scaled(found) if found else []
            values = dict(zip([d for d, _ in ranked], normal, strict=True))
            for document, value in values.items():
                sums[document] = sums.get(document, 0.0) + weight * value
        fused[query] = sorted(sums.items(), key=lambda item: (-item[1], item[0]))[:depth]
    return fused


ranked = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 5)), max_size=6, unique_by=lambda item: item[0])


@given(st.lists(st.tuples(st.sampled_from([0.5, 1.0]), st.dictionaries(st.sampled_from("xy"), ranked)), max_size=3),
       st.integers(1, 4))  # fmt: skip
def test_fused_runs_are_the_plain_weighted_sum_with_ties_by_id(runs, depth):
    runs = [
        (weight, {q: sorted(((d, float(s)) for d, s in found), key=lambda item: (-item[1], item[0]))
                  for q, found in run.items()})
        for weight, run in runs
    ]  # fmt: skip
    assert fuse(runs, depth) == plainly_fused(runs, depth)


def test_the_only_hit_of_a_run_counts_as_its_best():
    found = fuse([(1.0, {"q": [("a", 3.0), ("b", 2.0), ("c", 1.0)]}), (1.0, {"q": [("c", 7.0)]})], 10)
    assert found == {"q": [("a", 1.0), ("c", 1.0), ("b", 0.5)]}
    # What scores 0 was not found.
    assert fuse([(1.0, {"q": [("a", 0.0), ("b", 0.0)]})], 10) == {"q": [("a", 0.0), ("b", 0.0)]}


def test_a_document_that_one_run_did_not_find_has_nothing_from_it():
    found = fuse([(1.0, {"q": [("a", 3.0), ("b", 1.0)]}), (1.0, {"q": [("c", 9.0), ("a", 5.0)]})], 10)
    assert found == {"q": [("a", 1.0), ("c", 1.0), ("b", 0.0)]}

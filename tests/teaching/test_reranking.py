"""Reranking against the plain version, with scores that are known."""

import numpy as np
import pytest

from colbert_zero.data.collection import Collection
from colbert_zero.errors import Stopped
from colbert_zero.evaluation.ranking import rank_bm25
from colbert_zero.evaluation.runs import measure
from colbert_zero.models.alignment import Alignment
from colbert_zero.models.encoders import save_model
from colbert_zero.teaching.reranking import rerank
from colbert_zero.teaching.scorers import ByCrossEncoder
from helpers import DOCUMENTS, QRELS, QUERIES


class ByLength:
    """A document's score is the number of its letters; keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def scores(self, queries, candidates, documents):
        self.asked += queries
        assert candidates.shape[0] == len(queries)
        return np.array([[len(documents[n]) for n in row] for row in candidates], np.float32)


def plainly_reranked(first, most):
    """Each query's best again, longest first, ties by id."""
    return {
        query: sorted(((d, float(len(DOCUMENTS[d]))) for d, _ in ranked[:most]), key=lambda pair: (-pair[1], pair[0]))
        for query, ranked in first.items()
    }


@pytest.mark.parametrize("most", [1, 3, 100])
def test_the_best_of_a_run_are_ranked_anew_and_its_rest_is_left_out(collection, most):
    first = rank_bm25(collection)
    assert len({len(ranked) for ranked in first.values()}) > 1  # queries have unequally many candidates
    scorer = ByLength()
    found = rerank(scorer, collection, first, most)
    assert found == plainly_reranked(first, most)
    assert list(found) == list(first)
    assert sorted(scorer.asked) == sorted(QUERIES.values())  # each once


def test_equal_scores_go_by_document_id_and_a_query_without_candidates_stays_without():
    texts = {"b": "wing x", "a": "wing y", "c": "wing z"}
    collection = Collection.from_memory("tiny", texts, {"q": "wing", "none": "zzz"}, {"q": {"a": 1}, "none": {"b": 1}})
    first = rank_bm25(collection)
    assert first["none"] == []
    assert rerank(ByLength(), collection, first, 50) == {"q": [("a", 6.0), ("b", 6.0), ("c", 6.0)], "none": []}


def test_nothing_found_is_nothing_ranked(collection):
    scorer = ByLength()
    assert rerank(scorer, collection, {query: [] for query in QUERIES}, 10) == {query: [] for query in QUERIES}
    assert scorer.asked == []


def test_queries_shared_out_among_processes_are_reranked_as_by_one(collection, monkeypatch):
    first = rank_bm25(collection)
    whole, parts = rerank(ByLength(), collection, first, 5), []
    monkeypatch.setattr("colbert_zero.teaching.reranking.world_size", lambda: 3)
    monkeypatch.setattr("colbert_zero.teaching.reranking.gather_objects", lambda own: parts.append(own) or parts)
    asked = []
    for process in (0, 1, 2):
        monkeypatch.setattr("colbert_zero.teaching.reranking.process_rank", lambda process=process: process)
        scorer = ByLength()
        try:
            shared = rerank(scorer, collection, first, 5)
        except KeyError:  # the others' shares come only with the last
            assert process < 2
        asked += scorer.asked
    assert shared == whole
    assert sorted(asked) == sorted(QUERIES.values())


def test_progress_ends_with_all_queries(collection):
    told = []
    rerank(ByLength(), collection, rank_bm25(collection), 5, lambda done, total: told.append((done, total)))
    assert told[-1] == (len(QUERIES), len(QUERIES))
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_cross_encoder_puts_pairs_in_the_order_of_its_logits(tiny_cross_encoder, collection, tmp_path):
    save_model(tiny_cross_encoder, tmp_path / "cross", Alignment("", "", "", "", 20, 20))
    first = rank_bm25(collection, 4)
    found = rerank(ByCrossEncoder(str(tmp_path / "cross")), collection, first, 4)
    for query, ranked in found.items():
        documents = [document for document, _ in first[query]]
        pairs = [(QUERIES[query], DOCUMENTS[document]) for document in documents]
        own = dict(zip(documents, tiny_cross_encoder.predict(pairs, activation_fn=lambda x: x).tolist(), strict=True))
        assert [document for document, _ in ranked] == sorted(own, key=lambda d: (-own[d], d))
        assert [score for _, score in ranked] == pytest.approx([own[d] for d, _ in ranked], abs=1e-5)
    # What is judged is measured of all queries.
    assert set(measure(found, QRELS)[1]) == set(QUERIES)


def test_a_swallowed_sigterm_ends_reranking(collection, monkeypatch):
    def stop():
        raise Stopped("stopped by SIGTERM")

    monkeypatch.setattr("colbert_zero.teaching.reranking.stop_if_asked", stop)
    with pytest.raises(Stopped, match="SIGTERM"):
        rerank(ByLength(), collection, rank_bm25(collection), 5)

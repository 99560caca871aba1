"""A first stage finds its candidates in what each segment keeps, and exact search ranks them."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from colbert_zero.data.collection import Collection
from colbert_zero.data.documents import documents_of
from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.ensembles import fuse
from colbert_zero.evaluation.ranking import embed, rank_bm25
from colbert_zero.models.bm25 import Bm25
from colbert_zero.serving.index.building import Settings, add
from colbert_zero.serving.index.changing import compact, delete
from colbert_zero.serving.index.checking import first_sentences, recalls
from colbert_zero.serving.index.first_stage import bm25_ranking, bm25_scores, candidates, first_stage_of, mean_scores
from colbert_zero.serving.index.opened import Index
from helpers import DOCUMENTS, QUERIES

SIX = Settings(segment_documents=6)


def quiet(*_):
    pass


@pytest.fixture
def made(tiny_multi_vector, tiny_dense, tmp_path):
    """Make an index of documents; returns its folder."""

    def make(documents=DOCUMENTS, settings=SIX, model="multi-vector"):
        encoder = tiny_dense if model == "dense" else tiny_multi_vector
        encoder.save_pretrained(str(tmp_path / model), create_model_card=False)
        Index.build(tmp_path / model, str(corpus(tmp_path, documents)), tmp_path / "i", settings, quiet).close()
        return tmp_path / "i"

    return make


def corpus(folder, documents, name="corpus.jsonl"):
    rows = [{"_id": key, "text": text, "kind": key[0]} for key, text in documents.items()]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def live_texts(index):
    return [row.text for segment in index.segments for row in segment.texts.rows() if segment.live[row.number]]


def of_all(index, scores):
    return np.concatenate([found[segment.live] for segment, found in zip(index.segments, scores, strict=True)])


@pytest.mark.parametrize("size", [1, 6, 100])
def test_bm25_over_segments_is_bm25_over_the_corpus(made, tmp_path, size):
    """Also once documents were added, deleted and made compact."""
    path = made(settings=Settings(segment_documents=size))
    add(
        path,
        documents_of([str(corpus(tmp_path, {"new": "Wings, wings and a lifting wing."}, "m.jsonl"))], "x"),
        tell=quiet,
    )
    delete(path, ["lift", "sort"], quiet)
    compact(path, tell=quiet)
    with Index.open(path, tell=quiet) as index:
        texts = live_texts(index)
        assert len(texts) == len(DOCUMENTS) - 1
        queries = [*QUERIES.values(), "wing wing lift", "unheard-of", "the of", texts[3]]
        wanted = Bm25(texts).score_pairs(queries, np.tile(np.arange(len(texts)), (len(queries), 1)))
        for query, scores in zip(queries, wanted, strict=True):
            np.testing.assert_allclose(of_all(index, bm25_scores(index.segments, query)), scores, atol=1e-6)


@pytest.mark.parametrize("storage", ["float16", "float32", "int8"])
@pytest.mark.parametrize("passages", [None, 8])
def test_a_documents_mean_is_that_of_all_its_vectors(made, tiny_multi_vector, storage, passages):
    index = Index.open(made(DOCUMENTS | {"long": " ".join(DOCUMENTS.values())}, Settings(storage, None, passages, 6)))
    vectors = embed(tiny_multi_vector, ["lift of a wing"], "query").values
    query = vectors.double().mean(0) / vectors.double().mean(0).norm()
    for segment in index.segments:
        scores = mean_scores(segment, vectors)
        for number in range(segment.entry.documents):
            first, last = segment.starts[segment.first_passages[[number, number + 1]]]
            mean = segment.tokens(int(first), int(last)).double().mean(0)
            assert scores[number] == pytest.approx(float(query @ mean / mean.norm()), abs=1e-3)


@pytest.mark.parametrize("first", ["pooled:1", "pooled:5", "pooled:20", "bm25:1", "bm25:5", "bm25:20"])
@pytest.mark.parametrize("where", [None, {"kind": "l"}])
def test_candidates_are_ranked_as_exact_search_ranks_them(made, first, where):
    with Index.open(made(), tell=quiet) as index:
        delete(index.path, ["lift"], quiet)
        index = index.reopened()
        for query in QUERIES.values():
            exact, answer = index.search(query, 20, where), index.search(query, 20, where, first=first)
            kept = {hit.id for hit in answer}
            assert [(hit.id, hit.score) for hit in answer] == [
                (hit.id, pytest.approx(hit.score, abs=1e-5)) for hit in exact if hit.id in kept
            ]
            assert "lift" not in kept
            assert len(kept) <= int(first.split(":")[1])
            assert len(kept) == min(int(first.split(":")[1]), len(exact)) or first.startswith("bm25")
            assert answer.notes == [f"only candidates of {first} were scored; a better document may be missing"]
        run = index.run(QUERIES, 20, where, first)
        assert {q: [d for d, _ in found] for q, found in run.items()} == {
            q: [hit.id for hit in index.search(text, 20, where, first=first)] for q, text in QUERIES.items()
        }


def test_a_dense_index_has_bm25_and_no_means(made):
    with Index.open(made(model="dense"), tell=quiet) as index:
        assert index.search("lift of a wing", 3, first="bm25:5")[0].id == "lift"
        with pytest.raises(ColbertZeroError, match=r"--first pooled:5: a dense index .* or take bm25:5"):
            index.search("lift of a wing", first="pooled:5")


@pytest.mark.parametrize("word", ["pooled", "pooled:", "pooled:0", "pooled:-1", "bm25:many", "bm25:1.5", "bm26:5", ""])
def test_a_first_stage_that_is_none_is_told(made, word):
    with pytest.raises(ColbertZeroError, match=r"--first .*: write pooled:1000 or bm25:1000"):
        first_stage_of(word, Index.open(made(), tell=quiet).manifest)


@pytest.mark.parametrize(
    "postings", [b"123", b"\xff" * 12, bytes(12), np.int32([6, 1, 5]).tobytes(), np.int32([1, 1, 5, 1, 1, 5]).tobytes()]
)
def test_terms_that_do_not_fit_are_damage_not_a_crash(made, postings):
    path = made()
    with closing(sqlite3.connect(path / "segments" / "000001" / "texts")) as connection:
        connection.execute("UPDATE terms SET postings = ?", (postings,))
        connection.commit()
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["segments"][0]["texts_bytes"] = (path / "segments" / "000001" / "texts").stat().st_size
    (path / "manifest.json").write_text(json.dumps(manifest))
    with Index.open(path, tell=quiet) as index:
        answer = index.search("lift of a wing", 20, first="bm25:20")
        assert "its terms do not fit together" in answer.notes[0]
        assert not {hit.id for hit in answer} & set(list(DOCUMENTS)[:6])


def test_recall_is_the_share_of_the_exact_best_that_candidates_hold(made):
    with Index.open(made(), tell=quiet) as index:
        queries = list(QUERIES.values())
        found = {recall.first: recall for recall in recalls(index, queries, ["pooled:20", "pooled:4", "bm25:4"], 5)}
        assert (found["pooled:20"].mean, found["pooled:20"].whole) == (1, 1)
        for first, recall in list(found.items())[1:]:
            shares = []
            for query in queries:
                vectors = embed(index.encoder, [query], "query").values
                masks = candidates(index.segments, first_stage_of(first, index.manifest), query, vectors)
                kept = {r.id for s in index.segments for r in s.texts.rows() if masks[s.name][r.number]}
                shares.append(len(kept & {hit.id for hit in index.search(query, 5)}) / 5)
            assert recall.mean == pytest.approx(np.mean(shares))
            assert recall.whole == np.mean([share == 1 for share in shares])


def test_first_sentences_stand_for_queries(made):
    texts = {"a": "Is it one sentence only? No, there is more.", "b": "No end " * 100, "c": "Short. " * 10, "d": "x"}
    index = Index.open(made(texts), tell=quiet)
    assert first_sentences(index) == [
        "Is it one sentence only?",
        ("No end " * 100)[:200],
        "Short. Short. Short. Short.",
        "x",
    ]


def test_check_tells_what_a_first_stage_misses(made, command, tmp_path):
    path = made()
    (tmp_path / "q.tsv").write_text("".join(f"{key}\t{text}\n" for key, text in QUERIES.items()))
    code, out, _ = command("index", "check", path, "--first", "pooled:20", "--first", "bm25:2", "-k", 2)
    assert (code, "pooled:20 has 100.0% of the 2 best of exact search" in out) == (0, True)
    assert "20 first sentences of documents, which are easier than queries" in out
    code, out, _ = command("index", "check", path, "--first", "bm25:3", "--queries", tmp_path / "q.tsv")
    assert (code, "bm25:3 has " in out, f"{len(QUERIES)} queries; a query takes" in out) == (0, True, True)
    code, out, _ = command("search", path, "lift of a wing", "--first", "pooled:3")
    assert (code, len(out.splitlines()) > 3, "only candidates of pooled:3 were scored" in out) == (0, True, True)
    code, out, _ = command(
        "search", path, "--queries", tmp_path / "q.tsv", "--run", tmp_path / "r", "--first", "pooled:3"
    )
    assert (code, "only candidates of pooled:3 were scored" in out) == (0, True)
    assert len(Path(tmp_path / "r").read_text().splitlines()) == 3 * len(QUERIES)
    for words in (("search", path, "a", "--first", "x"), ("index", "check", path, "--first", "x")):
        code, _, error = command(*words)
        assert (code, "--first x: write pooled:1000" in error) == (2, True)
    code, _, error = command("index", "check", path, "--queries", tmp_path / "q.tsv")
    assert (code, "--queries: is for --first" in error) == (2, True)


# ---- The model and BM25 together


@pytest.mark.parametrize("size", [1, 6, 100])
def test_bm25_ranking_over_segments_is_that_of_the_corpus_ties_by_id(made, size):
    documents = DOCUMENTS | {"twin-b": "A library of wings.", "twin-a": "A library of wings."}
    with Index.open(made(documents, Settings(segment_documents=size))) as index:
        collection = Collection.from_memory("c", documents, QUERIES, {q: {"lift": 1} for q in QUERIES})
        for depth in (2, 1000):
            expected = rank_bm25(collection, depth)
            for query, text in QUERIES.items():
                found = [(place.id, score) for score, place in bm25_ranking(index.segments, text, depth)]
                assert [name for name, _ in found] == [name for name, _ in expected[query]]
                assert dict(found) == pytest.approx(dict(expected[query]), rel=1e-5)


@pytest.mark.parametrize("weight", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("first", [None, "bm25:4"])
def test_a_search_with_bm25_is_the_fused_run_of_both(made, weight, first):
    with Index.open(made()) as index:
        by_model = index.run(QUERIES, 1000, first=first)
        by_bm25 = {
            query: [(place.id, score) for score, place in bm25_ranking(index.segments, text, 1000)]
            for query, text in QUERIES.items()
        }
        expected = fuse([(1.0, by_model), (weight, by_bm25)], 7)
        assert index.run(QUERIES, 7, first=first, with_bm25=weight) == expected
        for query, text in QUERIES.items():
            answer = index.search(text, 7, first=first, with_bm25=weight)
            # Encoded alone, a query has other roundings than beside longer ones.
            alone = fuse([(1.0, index.run({query: text}, 1000, first=first)), (weight, {query: by_bm25[query]})], 7)
            assert [(hit.id, hit.score) for hit in answer] == alone[query]
            assert answer[0].text == DOCUMENTS[answer[0].id]
            assert f"scores are 1 × the model's + {weight:g} × BM25's" in answer.notes[-1]


def test_deleted_documents_and_those_of_other_metadata_are_found_by_neither(made):
    path = made()
    delete(path, ["library"])
    with Index.open(path) as index:
        found = index.search("how do libraries list books", 20, with_bm25=1.0)
        assert "library" not in [hit.id for hit in found]
        some = index.search("how do libraries list books", 20, {"kind": "l"}, with_bm25=1.0)
        assert {hit.metadata["kind"] for hit in some} == {"l"}
        assert len(some) == sum(name[0] == "l" and name != "library" for name in DOCUMENTS)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"with_bm25": 0}, "--with-bm25 0: write a weight above 0, as in --with-bm25 1"),
        ({"with_bm25": -1}, "--with-bm25 -1: write a weight above 0, as in --with-bm25 1"),
        ({"with_bm25": float("nan")}, "--with-bm25 nan: write a weight above 0, as in --with-bm25 1"),
        (
            {"with_bm25": 1, "explain": True},
            "--explain: shows the parts of the model's score, and with BM25 a document has another; leave out "
            "--explain or --with-bm25",
        ),
    ],
)
def test_what_cannot_be_searched_with_bm25_is_refused(made, options, told):
    with Index.open(made()) as index, pytest.raises(ColbertZeroError) as caught:
        index.search("lift", **options)
    assert str(caught.value) == told


def test_the_command_searches_with_bm25_and_qdrant_does_not(made, command):
    path = made()
    code, out, err = command("search", path, "lift of a wing", "--with-bm25", "1", "--json")
    assert code == 0, err
    with Index.open(path) as index:
        expected = index.search("lift of a wing", with_bm25=1.0)
    assert [hit["id"] for hit in json.loads(out)["hits"]] == [hit.id for hit in expected]
    code, _, err = command("search", path, "lift", "--with-bm25", "0")
    assert (code, "write a weight above 0" in err) == (2, True)
    code, _, err = command("search", "notes", "lift", "--with-bm25", "1", "--backend", "qdrant", "--path", path.parent)
    assert (code, "--with-bm25: is for an index of files" in err) == (2, True)

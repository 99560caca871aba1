"""An index on Qdrant answers as the exact one does: in the client's local mode, and on a server where there is one."""

import json
import os
import pickle
import random
import signal
import sqlite3
import time
import uuid
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from colbert_zero.data.documents import documents_of
from colbert_zero.errors import ColbertZeroError
from colbert_zero.serving.http.api import make_app
from colbert_zero.serving.http.service import Limits, Service
from colbert_zero.serving.index import building
from colbert_zero.serving.index.opened import Index
from colbert_zero.serving.index.texts import values_as_text
from colbert_zero.serving.opening import open_index
from colbert_zero.serving.qdrant import changing as qdrant_changing
from colbert_zero.serving.qdrant.changing import QdrantSettings, add, build, check, delete
from colbert_zero.serving.qdrant.collection import Collection, address_of, point_id
from helpers import DOCUMENTS, QUERIES, Commands, alive, wait_for


@pytest.fixture(params=["local", "server"])
def address(request, tmp_path):
    """A collection that is not there yet."""
    if request.param == "local":
        yield address_of(f"qdrant+file:{tmp_path}/kept/tiny")
        return
    if not (url := os.environ.get("QDRANT_URL")):
        pytest.skip("no QDRANT_URL: nothing is tested against a Qdrant server")
    found = address_of(f"qdrant+{url}/colbert-zero-test-{uuid.uuid4().hex}")
    yield found
    Collection(found).client.delete_collection(found.collection)


@pytest.fixture
def model(tiny_multi_vector, tmp_path):
    tiny_multi_vector.save_pretrained(str(tmp_path / "m"), create_model_card=False)
    return str(tmp_path / "m")


def corpus(folder, documents, name="corpus.jsonl"):
    if isinstance(documents, dict):
        documents = [{"_id": key, "text": text} for key, text in documents.items()]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in documents))
    return documents_of([str(folder / name)], "--corpus")


def quiet(*_):
    pass


def opened(address, **options):
    return open_index(address, tell=quiet, **options)


def ranked(index, k=20, **options):
    return {
        query: [(d, pytest.approx(s, abs=1e-4)) for d, s in ranking]
        for query, ranking in index.run(QUERIES, k, **options).items()
    }


LONG = {"long": " ".join(DOCUMENTS.values()), "longer": " ".join(list(DOCUMENTS.values())[::-1] * 2)}


@pytest.mark.parametrize(("storage", "passages"), [("float16", 4), ("float32", None)])
def test_exact_search_gives_the_ranking_of_the_exact_index(address, model, tmp_path, storage, passages):
    documents = corpus(tmp_path, DOCUMENTS | LONG)
    build(model, documents, address, QdrantSettings(storage, passages=passages), quiet)
    building.build(model, documents, tmp_path / "i", building.Settings(storage, passages=passages), quiet)
    wanted = Index.open(tmp_path / "i", tell=quiet)
    with opened(address, exact=True) as found:
        assert len(found) == len(wanted) == 22
        assert found.run(QUERIES, 22) == ranked(wanted, 22)
        one, other = found.search(QUERIES["q1"], 22, explain=True), wanted.search(QUERIES["q1"], 22, explain=True)
        assert [(hit.id, hit.text, hit.metadata, hit.explanation.passage) for hit in one] == [
            (hit.id, hit.text, hit.metadata, hit.explanation.passage) for hit in other
        ]
        for hit in one:
            assert sum(part.score for part in hit.explanation.parts) == pytest.approx(hit.score, abs=1e-3)


def test_candidates_are_told_and_rescored_by_the_same_maxsim(address, model, tmp_path):
    build(model, corpus(tmp_path, DOCUMENTS), address, QdrantSettings(), quiet)
    with opened(address, exact=True) as index:
        exact = {query: dict(ranking) for query, ranking in index.run(QUERIES, 20).items()}
        assert index.notes == []
    with opened(address, candidates=5) as index:
        for query, ranking in index.run(QUERIES, 5).items():
            assert len(ranking) == 5
            assert dict(ranking) == pytest.approx({name: exact[query][name] for name, _ in ranking}, abs=1e-4)
        assert index.search("wing", 3).notes == [
            "only 5 candidates, the nearest by mean vectors, were scored; a better document may be missing; --exact "
            "scores all"
        ]
        with pytest.raises(ColbertZeroError, match=r"--candidates 5: fewer than the 6 documents that are asked for"):
            index.search("wing", 6)
    with opened(address) as index:
        assert index.notes == []
        assert {query: dict(ranking) for query, ranking in index.run(QUERIES, 20).items()} == exact


ROWS = [
    {"_id": str(n), "text": f"wing number {n}", "even": n % 2 == 0, "part": n // 4, "third": n / 3, "big": 1e20 * n,
     "tags": [n % 2, "a=b"], "the key=": 'a "b"' * (n == 5), "none": None, "nested": {"é": [True, None]}}
    for n in range(8)
]  # fmt: skip


def test_metadata_choose_the_same_documents_as_in_the_exact_index(address, model, tmp_path):
    documents = corpus(tmp_path, ROWS)
    build(model, documents, address, QdrantSettings(), quiet)
    building.build(model, documents, tmp_path / "i", tell=quiet)
    with opened(address) as found, Index.open(tmp_path / "i", tell=quiet) as wanted:
        for values in [{key: value} for row in (ROWS[3], ROWS[5]) for key, value in all_values(row)] + [
            {"even": "false", "part": "1"}, {"even": "1"}, {"part": "9"}, {"big": "1e20"}, {"third": "1"},
            {"even": True}, {"part": 1}, {"part": 1.0}, {"big": 3e20}, {"third": 4 / 3},
        ]:  # fmt: skip
            there = {hit.id for hit in wanted.search("wing", where=values)}
            assert {hit.id for hit in found.search("wing", where=values)} == there
        assert {hit.id for hit in found.search("wing", where={"part": 1.0})} == {"4", "5", "6", "7"}
        with pytest.raises(ColbertZeroError, match=r"no document has metadata of that name, did you mean even\?"):
            found.search("wing", where={"evem": "true"})
        values = found.metadata_values()
        assert values["even"] == ["false", "true"]
        assert values["the key="] == ['a "b"']
        assert found.metadata_values(2)["third"] is None


def test_a_name_with_an_equals_sign_is_not_taken_for_another(address, model, tmp_path):
    rows = [{"_id": "1", "text": "wing", "a": "b=c"}, {"_id": "2", "text": "wing", "a=b": "c"}]
    build(model, corpus(tmp_path, rows), address, QdrantSettings(), quiet)
    with opened(address) as index:
        assert [hit.id for hit in index.search("wing", where={"a": "b=c"})] == ["1"]
        assert [hit.id for hit in index.search("wing", where={"a=b": "c"})] == ["2"]
        assert index.metadata_values() == {"a": ["b=c"], "a=b": ["c"]}


@pytest.mark.parametrize(("version", "message"), [(1, "made by an earlier version"), (3, "of format 3, which this")])
def test_a_record_of_another_format_is_told(address, model, tmp_path, version, message):
    build(model, corpus(tmp_path, {"a": "A wing."}), address, QdrantSettings(), quiet)
    collection = Collection(address, quiet)
    record = collection.record().model_dump(mode="json") | {"format": version}
    collection.client.update_collection(address.collection, metadata={"colbert_zero": record})
    collection.close()
    with pytest.raises(ColbertZeroError, match=message):
        opened(address)


def all_values(row):
    return values_as_text(
        json.dumps({key: value for key, value in row.items() if key not in ("_id", "text") and value})
    )


def test_documents_are_added_replaced_and_deleted(address, model, tmp_path):
    build(model, corpus(tmp_path, DOCUMENTS), address, QdrantSettings(), quiet)
    more = corpus(tmp_path, {"lift": DOCUMENTS["lift"], "drag": "Something else.", "new": "A wing."}, "more.jsonl")
    with pytest.raises(
        ColbertZeroError, match=r"line 2: the id 'drag' is taken .*--replace puts this one in its place"
    ):
        add(address, more, tell=quiet)
    added = add(address, more, True, tell=quiet)
    assert (added.documents, added.there, added.replaced) == (2, 1, 1)
    with pytest.raises(ColbertZeroError, match=r"has no document 'nobody' \(1 of 2 ids are not there\); nothing was"):
        delete(address, ["heat", "nobody"], quiet)
    assert delete(address, ["heat", "lift", "heat"], quiet) == 2
    with opened(address) as index:
        assert len(index) == 19
        wanted = {**DOCUMENTS, "drag": "Something else.", "new": "A wing."}
        del wanted["heat"], wanted["lift"]
        assert {hit.id: hit.text for hit in index.search("wing", 30)} == wanted
    state = check(address, quiet)
    assert (state.documents, state.points, state.broken) == (19, 19, {})


def content(address):
    """All of a collection that a reader can see, but not how many steps led there."""
    collection = Collection(address, quiet)
    try:
        points, _ = collection.client.scroll(address.collection, limit=10_000, with_payload=True, with_vectors=True)
        record = collection.record().model_dump(exclude={"generation"})
        return {point.id: (point.payload, point.vector) for point in points}, record
    finally:
        collection.close()


def once(load):
    """A function that loads the model at its first call."""
    found = []

    def loaded(*arguments):
        found[:] = found or [load(*arguments)]
        return found[0]

    return loaded


class Cut(Exception):
    """The connection, or the process."""


def cut_at(patch, moment):
    """Let the so-many-th change and all after it fail."""
    send, done = Collection.send, []

    def failing(self, request):
        done.append(request)
        if len(done) > moment:
            raise Cut
        send(self, request)

    patch.setattr(Collection, "send", failing)


@pytest.mark.parametrize("passages", [pytest.param(None, marks=pytest.mark.slow), 4])
def test_an_upload_that_was_cut_anywhere_goes_on_and_ends_the_same(address, model, tmp_path, passages, monkeypatch):
    for name in ("load_identified", "load_known"):
        monkeypatch.setattr(qdrant_changing, name, once(getattr(qdrant_changing, name)))
    monkeypatch.setattr(building, "BLOCK_DOCUMENTS", 3)
    monkeypatch.setattr(qdrant_changing, "_BATCH_POINTS", 3)
    texts = dict(list(DOCUMENTS.items())[:4]) | {"long": LONG["long"]}
    longer = {"lift": LONG["long"], "long": "Short.", "new": "A wing."}
    settings = QdrantSettings(passages=passages)
    whole = address._replace(collection=f"{address.collection}-whole")
    try:
        build(model, corpus(tmp_path, texts), whole, settings, quiet)
        add(whole, corpus(tmp_path, longer, "more.jsonl"), True, tell=quiet)
        wanted = content(whole)
    finally:
        if address.remote:
            Collection(whole).client.delete_collection(whole.collection)

    def again(call):
        for moment in range(1, 200):
            with pytest.MonkeyPatch.context() as patch:
                cut_at(patch, moment)
                try:
                    call()
                    return moment
                except Cut:
                    with opened(address) as index:
                        assert len(index.search("wing", 30)) <= 8
        return None

    assert again(lambda: build(model, corpus(tmp_path, texts), address, settings, quiet)) > 2
    assert again(lambda: add(address, corpus(tmp_path, longer, "more.jsonl"), True, tell=quiet)) > 2
    assert content(address) == wanted
    assert not check(address, quiet).broken
    delete_all = list({**texts, **longer})
    assert again(lambda: delete(address, delete_all, quiet)) > 2
    assert check(address, quiet).points == 0


@pytest.mark.parametrize("then", ["another deletion", "the same documents", "the corpus"])
def test_a_deletion_that_was_stopped_is_finished_before_another_change(address, model, tmp_path, then):
    documents = corpus(tmp_path, DOCUMENTS | LONG)
    build(model, documents, address, QdrantSettings(passages=4), quiet)
    with pytest.MonkeyPatch.context() as patch:
        cut_at(patch, 2)
        with pytest.raises(Cut):
            delete(address, ["long", "longer"], quiet)
    assert set(check(address, quiet).broken) == {"long", "longer"}
    told = []
    if then == "another deletion":
        with pytest.raises(ColbertZeroError, match=r"has no document 'nobody' \(1 of 2 ids"):
            delete(address, ["heat", "nobody"], told.append)
        assert delete(address, ["heat", "long"], told.append) == 3
    elif then == "the same documents":
        add(address, corpus(tmp_path, LONG, "more.jsonl"), tell=told.append)
    else:
        build(model, documents, address, QdrantSettings(passages=4), told.append)
    assert f"{address}: a deletion of 2 documents was stopped; it is finished now" in told
    state = check(address, quiet)
    assert (state.documents, state.broken, state.record.deleting) == (
        19 if then == "another deletion" else 22,
        {},
        None,
    )


@pytest.mark.parametrize("passages", [None, 4])
def test_a_document_that_is_being_replaced_is_left_out_and_told(address, model, tmp_path, passages):
    build(model, corpus(tmp_path, DOCUMENTS | LONG), address, QdrantSettings(passages=passages), quiet)
    first = point_id("long", 0)
    collection = Collection(address, quiet)
    collection.client.set_payload(address.collection, {"digest": "0" * 32}, [first])
    collection.close()
    with opened(address, exact=True) as index:
        answer = index.search(DOCUMENTS["heart"], 30)
        told = "1 documents are being replaced or deleted at this moment, and left out"
        # One point has one digest: only a document of several can be caught halfway.
        assert (told in answer.notes) == (passages is not None)
        assert ("long" in {hit.id for hit in answer}) == (passages is None)
        assert [hit.rank for hit in answer] == list(range(1, len(answer) + 1))
    assert list(check(address, quiet).broken) == ["long"]


UNUSUAL = ["1", "0", "-1", "1.0", "a/b", "../a", "1:a", " a", "a ", "Ä", "A\u0308", "日本", "'; --", '"', "x" * 1024,
           "a\nb", "00000000-0000-0000-0000-000000000000", "null", "*", "a=b"]  # fmt: skip


def test_ids_stay_what_they_are_however_unusual(address, model, tmp_path):
    rows = [{"_id": int(name) if name == "1" else name, "text": f"wing {n}"} for n, name in enumerate(UNUSUAL)]
    build(model, corpus(tmp_path, rows), address, QdrantSettings(), quiet)
    with opened(address) as index:
        assert {hit.id: hit.text for hit in index.search("wing", 50)} == {
            name: f"wing {n}" for n, name in enumerate(UNUSUAL)
        }
        assert index.explain("wing", "a/b").id == "a/b"
        with pytest.raises(ColbertZeroError, match="has no document 'a'"):
            index.explain("wing", "a")
    assert delete(address, UNUSUAL, quiet) == len(UNUSUAL)


def test_equal_scores_are_sorted_by_id(address, model, tmp_path):
    build(
        model,
        corpus(tmp_path, dict.fromkeys(["m", "b", "z", "a"], "the lift of a wing")),
        address,
        QdrantSettings(),
        quiet,
    )
    with opened(address) as index:
        assert [hit.id for hit in index.search("wing", 4)] == ["a", "b", "m", "z"]


def test_a_dense_model_is_an_index_too(address, tiny_dense, tmp_path):
    tiny_dense.save_pretrained(str(tmp_path / "dense"), create_model_card=False)
    documents = corpus(tmp_path, DOCUMENTS)
    build(str(tmp_path / "dense"), documents, address, QdrantSettings("float32"), quiet)
    building.build(str(tmp_path / "dense"), documents, tmp_path / "i", building.Settings("float32"), quiet)
    with opened(address) as found:
        assert found.run(QUERIES, 20) == ranked(Index.open(tmp_path / "i", tell=quiet))


@pytest.mark.parametrize("quantization", ["scalar", "binary"])
def test_quantisation_is_asked_of_the_token_vectors_alone_and_their_graph_is_off(
    address, model, tmp_path, quantization
):
    build(model, corpus(tmp_path, DOCUMENTS), address, QdrantSettings(quantization=quantization), quiet)
    collection = Collection(address, quiet)
    vectors = collection.client.get_collection(address.collection).config.params.vectors
    collection.close()
    assert set(vectors) == {"tokens", "pooled"}
    assert quantization in vectors["tokens"].quantization_config.model_dump()
    assert vectors["pooled"].quantization_config is None
    assert vectors["tokens"].hnsw_config.m == 0
    assert str(vectors["tokens"].multivector_config.comparator.value) == "max_sim"
    with opened(address) as index:
        assert len(index.search("wing", 20)) == 20


# ---- Refused


def test_another_model_other_settings_and_another_corpus_are_refused(address, model, tiny_dense, tmp_path):
    documents = corpus(tmp_path, DOCUMENTS)
    build(model, documents, address, QdrantSettings(), quiet)
    tiny_dense.save_pretrained(str(tmp_path / "other"), create_model_card=False)
    for place, settings, some, message in (
        (tmp_path / "other", QdrantSettings(), documents, r"holds vectors of 16 numbers, the model gives 32"),
        (model, QdrantSettings("float32"), documents, r"an index whose storage is float16, not float32; name another"),
        (model, QdrantSettings(quantization="binary"), documents, r"whose quantization is none, not binary"),
        (model, QdrantSettings("int8"), documents, r"--store int8: Qdrant keeps float16 or float32; --quantization"),
        (model, QdrantSettings(), corpus(tmp_path, {"a": "b"}, "c.jsonl"), r"an index of another corpus .*index add"),
    ):
        with pytest.raises(ColbertZeroError, match=message):
            build(str(place), some, address, settings, quiet)
    index = opened(address, model=str(tmp_path / "other"))
    with index, pytest.raises(ColbertZeroError, match="is not the model that this index was made with"):
        index.search("wing")


def test_a_collection_of_another_program_and_one_that_is_not_there_are_told(address, model, tmp_path):
    from qdrant_client import models

    if not address.remote:
        with pytest.raises(
            ColbertZeroError, match=r"there is no such folder of Qdrant's local mode; is --path right\?"
        ):
            opened(address)
    collection = Collection(address, quiet, make=True)
    with pytest.raises(ColbertZeroError, match=r"there is no collection .*; make one \(`colbert-zero index MODEL"):
        collection.record()
    collection.client.create_collection(
        address.collection, vectors_config=models.VectorParams(size=4, distance=models.Distance.DOT)
    )
    collection.close()
    documents = corpus(tmp_path, DOCUMENTS)
    for call in (lambda: opened(address), lambda: build(model, documents, address, QdrantSettings(), quiet),
                 lambda: delete(address, ["a"], quiet), lambda: check(address, quiet)):  # fmt: skip
        with pytest.raises(ColbertZeroError, match="was not made by colbert-zero; name another"):
            call()


def test_a_document_with_more_vectors_than_qdrant_takes_is_told_with_its_mend(address, model, tmp_path, monkeypatch):
    monkeypatch.setattr(qdrant_changing, "MOST_NUMBERS", 16 * 8)
    with pytest.raises(
        ColbertZeroError, match=r"'lift' has \d+ vectors of 16 numbers; Qdrant takes fewer than 128 numbers"
    ):
        build(model, corpus(tmp_path, DOCUMENTS), address, QdrantSettings(), quiet)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("qdrant+ftp://a/b", "write qdrant\\+http://HOST:6333/COLLECTION"),
        ("qdrant+http://a", "write qdrant"),
        ("notes", "write qdrant"),
        ("qdrant+http://me:secret@a:6333/b", "without a name, key or query in it"),
        ("qdrant+http://a:6333?api_key=secret/b", "without a name, key or query in it"),
        ("qdrant+http://a:6333/a:b", "is no name of a collection"),
        ("qdrant+http://a:6333/..", "is no name of a collection"),
        ("qdrant+file:a/", "is no name of a collection"),
    ],
)
def test_an_address_that_is_none_is_told_and_a_key_in_it_not_repeated(text, message):
    with pytest.raises(ColbertZeroError, match=message) as caught:
        address_of(text)
    assert "secret" not in str(caught.value)


def test_a_folder_from_elsewhere_runs_nothing(address, model, tmp_path):
    if address.remote:
        pytest.skip("of the local mode")
    build(model, corpus(tmp_path, {"a": "A wing."}), address, QdrantSettings(), quiet)
    [file] = (tmp_path / "kept").rglob("storage.sqlite")

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE points SET point = ?", (pickle.dumps(Evil()),))
    for call in (lambda: opened(address), lambda: check(address, quiet), lambda: delete(address, ["a"], quiet)):
        with pytest.raises(ColbertZeroError, match=r"storage.sqlite: is not what qdrant-client writes .*mkdir"):
            call()
    assert not (tmp_path / "ran").exists()


def tampered(kept, way, evil):
    """Put a pickle that runs something where a reading may not see it."""
    [file] = kept.rglob("storage.sqlite")
    meta = json.loads((kept / "meta.json").read_text())
    with closing(sqlite3.connect(file)) as connection, connection:
        if way == "a view":
            connection.execute("ALTER TABLE points RENAME TO good")
            connection.execute("CREATE TABLE evil (point BLOB)")
            connection.execute("INSERT INTO evil VALUES (?)", (evil,))
            connection.execute(
                "CREATE VIEW points AS SELECT 1 AS rowid, id, "
                "CASE WHEN random() > 0 THEN point ELSE (SELECT point FROM evil) END AS point FROM good"
            )
        elif way == "a trigger":
            connection.execute(
                f"CREATE TRIGGER t AFTER INSERT ON points BEGIN UPDATE points SET point = x'{evil.hex()}'; END"
            )
        elif way == "a computed column":
            connection.execute("ALTER TABLE points RENAME TO good")
            connection.execute(f"CREATE TABLE points (id TEXT PRIMARY KEY, point BLOB AS (x'{evil.hex()}'))")
        elif way == "another table":
            connection.execute("CREATE TABLE more (id TEXT)")
    if way == "a collection elsewhere":
        os.replace(kept / "collection" / "tiny", kept.parent / "tiny")
        meta["collections"] = {"../../tiny": meta["collections"]["tiny"]}
        (kept / "meta.json").write_text(json.dumps(meta))
    elif way == "a linked folder":
        os.replace(kept / "collection" / "tiny", kept.parent / "tiny")
        (kept / "collection" / "tiny").symlink_to(kept.parent / "tiny")
    elif way == "a linked file":
        (kept / "meta.json.tmp").symlink_to(kept.parent / "corpus.jsonl")
    elif way == "no JSON":
        (kept / "meta.json").write_text("{")


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("a view", r"storage.sqlite: is not what qdrant-client writes \(it has another schema"),
        ("a trigger", "another schema"),
        ("a computed column", "another schema"),
        ("another table", "another schema"),
        ("a collection elsewhere", r"meta.json: .*'../../tiny' is no name of a collection"),
        ("a linked folder", r"collection/tiny: .*\(a link\)"),
        ("a linked file", r"meta.json.tmp: .*\(a link\)"),
        ("no JSON", r"meta.json: is not what qdrant-client writes"),
    ],
)
def test_a_folder_whose_two_readings_could_differ_is_not_read(model, tmp_path, way, message):
    address = address_of(f"qdrant+file:{tmp_path}/kept/tiny")
    build(model, corpus(tmp_path, {"a": "A wing."}), address, QdrantSettings(), quiet)

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    tampered(tmp_path / "kept", way, pickle.dumps(Evil()))
    for _ in range(4):
        with pytest.raises(ColbertZeroError, match=message):
            opened(address)
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the client's own
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_local_mode_is_for_one_process(address, model, tmp_path):
    if address.remote:
        pytest.skip("of the local mode")
    build(model, corpus(tmp_path, {"a": "A wing."}), address, QdrantSettings(), quiet)
    with opened(address), pytest.raises(ColbertZeroError, match="another process has this folder open"):
        opened(address)


def test_it_is_served_as_an_index_of_files_is(address, model, tmp_path):
    rows = [{"_id": key, "text": text, "even": n % 2 == 0} for n, (key, text) in enumerate(DOCUMENTS.items())]
    build(model, corpus(tmp_path, rows), address, QdrantSettings(), quiet)
    with opened(address) as index:
        wanted = [(hit.id, pytest.approx(hit.score, abs=1e-4)) for hit in index.search("wing", 4)]
    with TestClient(make_app(Service(address, Limits(), tell=quiet)), base_url="http://127.0.0.1:8000") as client:
        found = client.post("/search", json={"query": "wing", "k": 4, "explain": True}).json()
        assert [(hit["id"], hit["score"]) for hit in found["hits"]] == wanted
        assert found["hits"][0]["explanation"]["words"]
        assert client.post("/explain", json={"query": "wing", "id": "lift"}).json()["id"] == "lift"
        assert client.post("/explain", json={"query": "wing", "id": "nobody"}).status_code == 404
        for place, way in {"first": "bm25:9", "with_bm25": 1}.items():
            refused = client.post("/search", json={"query": "wing", place: way})
            assert (refused.status_code, refused.json()["error"]["place"]) == (422, place)
            assert "on Qdrant" in refused.json()["error"]["message"]
        told = client.get("/index").json()
        assert (told["documents"], told["storage"], told["writable"]) == (20, "float16", False)
        wait_for(lambda: client.get("/index").json()["metadata"] == {"even": ["false", "true"]}, 20)
        assert client.get("/ready").status_code == 200


# ---- Killed

SMALL = """
from colbert_zero.serving.qdrant import changing as qdrant_changing
building.BLOCK_DOCUMENTS, qdrant_changing._BATCH_POINTS = 20, 7
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_upload_killed_at_random_moments_goes_on_and_ends_the_same(address, model, tmp_path):
    texts = {f"d{n}-{m}": f"{text} {n}" for n in range(30) for m, text in enumerate(DOCUMENTS.values())}
    corpus(tmp_path, texts | LONG)
    whole = address._replace(collection=f"{address.collection}-whole")
    arguments = ["index", "m", "--corpus", "corpus.jsonl", "--passages", "4", "--out"]
    random.seed(5)
    counts = []
    with Commands(tmp_path, SMALL) as commands:
        commands.succeed(*arguments, whole)
        wanted = content(whole)
        if address.remote:
            Collection(whole).client.delete_collection(whole.collection)
        for _ in range(8):
            before, number = size(address), commands.start(*arguments, address)
            deadline = time.monotonic() + 120
            # Past its beginning, at a random moment of its work.
            while alive(number) and size(address) == before and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(random.uniform(0, 0.2))
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
            commands.ended()
            counts.append(len(content(address)[0]))
            assert counts == sorted(counts), "what was there stays"
        assert 0 < counts[0] < len(wanted[0]), "killed at work"
        commands.succeed(*arguments, address)
    assert_same(content(address), wanted)
    assert not check(address, quiet).broken


def assert_same(found, wanted):
    """All but the last digit of float16: a run that goes on encodes documents together with others than before."""
    (points, record), (others, other_record) = found, wanted
    assert record == other_record
    assert {key: payload for key, (payload, _) in points.items()} == {key: p for key, (p, _) in others.items()}
    for key, (_, vectors) in points.items():
        for name, numbers in vectors.items():
            np.testing.assert_allclose(numbers, others[key][1][name], rtol=0, atol=1e-3)


def size(address):
    """Something to see of an upload while another process has the folder."""
    if address.remote:
        collection = Collection(address, quiet)
        with closing(collection):
            return collection.client.count(address.collection).count if collection.exists() else 0
    file = Path(address.location) / "collection" / address.collection / "storage.sqlite"
    if not file.exists():
        return 0
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection, suppress(sqlite3.Error):
        return connection.execute("SELECT count(*) FROM points").fetchone()[0]
    return 0

"""A served index that is written to, replaced, damaged or deleted."""

import json
import resource
import shutil
import sqlite3
import threading
from contextlib import contextmanager

import pytest
from fastapi.testclient import TestClient

from colbert_zero.data.documents import documents_of, value_as_text
from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import writing
from colbert_zero.serving.http import service as service_module
from colbert_zero.serving.http.api import make_app
from colbert_zero.serving.http.service import Limits, Service
from colbert_zero.serving.index.building import add
from colbert_zero.serving.index.changing import compact
from colbert_zero.serving.index.changing import delete as delete_documents
from colbert_zero.serving.index.opened import Index
from helpers import DOCUMENTS, wait_for

KEY = {"authorization": "Bearer the-key", "content-type": "application/json"}


def quiet(*_):
    pass


@contextmanager
def serving(folder, writable=False, tell=quiet):
    service = Service(folder, Limits(), writable, tell=tell)
    app = make_app(service, "the-key" if writable else None)
    with TestClient(app, base_url="http://127.0.0.1", headers=KEY) as client:
        yield client, service


@pytest.fixture
def folder(write_index, tmp_path):
    return write_index(tmp_path, DOCUMENTS, segment_documents=7)


def ids(client, query="wing", k=100):
    found = client.get("/search", params={"q": query, "k": k})
    assert found.status_code == 200
    return [hit["id"] for hit in found.json()["hits"]]


# ---- Writing


def test_what_is_added_is_found_by_the_next_search_and_what_is_deleted_is_not(folder):
    with serving(folder, writable=True) as (client, _):
        rows = [{"id": "new/one", "text": "A glider has a long wing.", "title": "Gliders", "year": 1958}]
        nothing = {"replaced": 0, "cut": 0, "unfindable": 0, "left_out": {}}
        assert client.post("/documents", json=rows).json() == {"added": 1, "there": 0, **nothing}
        assert client.post("/documents", json=rows).json() == {"added": 0, "there": 1, **nothing}
        [hit] = client.post("/search", json={"query": "glider", "where": {"year": 1958}}).json()["hits"]
        assert (hit["id"], hit["metadata"]) == ("new/one", {"title": "Gliders", "year": 1958})
        assert hit["text"] == "Gliders A glider has a long wing."
        other = [{"id": "new/one", "text": "Another text."}]
        taken = client.post("/documents", json=other)
        assert (taken.status_code, taken.json()["error"]["code"]) == (409, "refused")
        assert client.post("/documents?replace=true", json=other).json()["replaced"] == 1
        assert len(ids(client)) == len(DOCUMENTS) + 1
        assert client.delete("/documents/new/one").json() == {"deleted": 1}
        assert client.delete("/documents/new/one").status_code == 404
        assert "new/one" not in ids(client)
        assert client.get("/index").json()["writable"] is True
    with Index.open(folder, tell=quiet) as index:
        assert len(index) == len(DOCUMENTS)


@pytest.mark.parametrize(
    ("rows", "status", "message"),
    [([], 422, "at least 1"), ([{"text": "x"}], 422, "0.id: Field required"), ([{"id": "", "text": "x"}], 422, "0.id"),
     ([{"id": "a", "text": 3}], 422, "0.text"), ([{"id": "a", "text": "x\u0000"}], 422, "[0]: "),
     ([{"id": "a", "text": "x"}, {"id": "a", "text": "y"}], 409, "the id 'a' is there twice")],
)  # fmt: skip
def test_a_wrong_document_is_told_and_nothing_is_added(folder, rows, status, message):
    with serving(folder, writable=True) as (client, _):
        found = client.post("/documents", json=rows)
        assert message in found.json()["error"]["message"]
        assert found.status_code in (status, 409)
        assert len(ids(client)) == len(DOCUMENTS)


def test_nothing_is_written_without_the_key(folder):
    with serving(folder, writable=True) as (client, _):
        client.headers.pop("authorization")
        assert client.post("/documents", json=[{"id": "a", "text": "x"}]).status_code == 401
        assert client.delete("/documents/lift").status_code == 401


def test_another_writer_is_told_and_waited_for_by_nobody(folder):
    with serving(folder, writable=True) as (client, _), writing(folder, quiet):
        found = client.post("/documents", json=[{"id": "a", "text": "x"}])
        assert found.status_code == 409
        assert "is writing there" in found.json()["error"]["message"]
        assert len(ids(client)) == len(DOCUMENTS)


def test_a_disk_that_takes_no_more_is_told_and_the_index_is_as_before(folder):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with serving(folder, writable=True) as (client, _):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
            found = client.post("/documents", json=[{"id": "a", "text": "a long wing"}])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert (found.status_code, found.json()["error"]["code"]) == (507, "disk")
        assert len(ids(client)) == len(DOCUMENTS)
        assert client.post("/documents", json=[{"id": "a", "text": "a long wing"}]).json()["added"] == 1
    with Index.open(folder, tell=quiet) as index:
        assert index.notes == []
        assert len(index) == len(DOCUMENTS) + 1


def test_many_small_additions_become_few_segments(folder, monkeypatch):
    monkeypatch.setattr(service_module, "_COMPACTED", 6)
    with serving(folder, writable=True) as (client, service):
        for number in range(8):
            assert client.post("/documents", json=[{"id": f"n{number}", "text": "wing"}]).json()["added"] == 1
            assert len(service.current.state.index.manifest.segments) < 7
        assert len(ids(client)) == len(DOCUMENTS) + 8


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left"), ColbertZeroError("damaged"), sqlite3.OperationalError("x")]
)
def test_a_write_that_is_done_is_answered_so_whatever_becomes_of_its_segments(folder, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(service_module, "_COMPACTED", 1)
    monkeypatch.setattr(service_module, "compact", fail)
    said = []
    with serving(folder, writable=True, tell=said.append) as (client, _):
        for name in ("one", "two"):
            assert client.post("/documents", json=[{"id": name, "text": "wing"}]).json()["added"] == 1
        assert {"one", "two"} <= set(ids(client))
    assert sum("its many segments stay as they are" in line for line in said) == 2


@pytest.mark.parametrize(("name", "full"), [("SQLITE_FULL", True), ("SQLITE_CANTOPEN", False), ("SQLITE_IOERR", False)])
def test_only_a_full_disk_is_called_full(folder, monkeypatch, name, full):
    error = sqlite3.OperationalError("what sqlite says")
    error.sqlite_errorcode, error.sqlite_errorname = getattr(sqlite3, name), name

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(service_module, "delete", fail)
    with serving(folder, writable=True) as (client, _):
        found = client.delete("/documents/lift")
    assert found.status_code == 507
    assert ("the disk is full" in found.text, "what sqlite says" in found.text) == (full, not full)


@pytest.mark.parametrize("metadata", [{"k": "\ud800"}, {"\ud800": 1}, {"k": [{"in": "\ud800"}]}])
def test_metadata_that_are_no_text_are_refused_and_searches_go_on(folder, metadata):
    with serving(folder, writable=True) as (client, _):
        found = client.post("/documents", content=json.dumps([{"id": "a", "text": "wing", **metadata}]))
        assert found.status_code in (409, 422)
        assert found.json()["error"]["code"] in ("refused", "invalid")
        assert len(ids(client)) == len(DOCUMENTS)


def test_metadata_that_are_too_deep_or_too_many_are_left_out_and_told(folder):
    deep = "[" * 900 + "]" * 900
    with serving(folder, writable=True) as (client, _):
        body = f'[{{"id": "a", "_id": "x", "text": "wing", "deep": {deep}, "year": 1958}}]'
        assert client.post("/documents", content=body).json()["left_out"] == {
            "metadata nested deeper than 20, of deep": 1
        }
        many = {f"key{number}": "é" * 600 for number in range(300)}
        assert sum(client.post("/documents", json=[{"id": "b", "text": "wing", **many}]).json()["left_out"].values())
        hits = {hit["id"]: hit for hit in client.get("/search?q=wing&k=100").json()["hits"]}
        assert hits["a"]["metadata"] == {"_id": "x", "year": 1958}
        assert len(hits["b"]["metadata"]) < 100


NUMBERS = [1958.0, 1958, -0.5, 1e20, 1e22, 1e-7, 0.1 + 0.2, 2**53 + 1, 2**63 + 5, True]


def test_metadata_numbers_are_found_however_they_are_written(folder):
    rows = [{"id": f"n{n}", "text": "wing", "value": value} for n, value in enumerate(NUMBERS)]
    rows += [{"id": "version", "text": "wing", "value": "1958.0"}, {"id": "zeros", "text": "wing", "value": "01958"}]
    with serving(folder, writable=True) as (client, service):
        assert client.post("/documents", json=rows).json()["added"] == len(rows)

        def found(value):
            asked = {"query": "wing", "k": 100, "where": {"value": value}}
            return {hit["id"] for hit in client.post("/search", json=asked).json()["hits"]}

        assert found(1958) == found("1958") == found("1.958e3") == {"n0", "n1"}
        assert found("1958.0") == {"n0", "n1", "version"}
        assert found("01958") == {"zeros"}
        assert found("true") == found(True) == {"n9"}
        for number, value in enumerate(NUMBERS[2:9], 2):
            for form in {value, str(value), repr(value), value_as_text(value), json.dumps(value)}:
                assert found(form) == {f"n{number}"}, (value, form)
        wait_for(lambda: service.current.state.counted)
        told = client.get("/index").json()["metadata"]["value"]
        assert set(told) == {*map(value_as_text, NUMBERS), "1958.0", "01958"}
        for text in told:
            assert found(text)


# ---- Changed on disk by others


def test_searches_go_on_without_a_lost_one_while_the_index_is_changed_and_replaced(folder, write_index, tmp_path):
    other = write_index(tmp_path, {"only": "Another wing."}, name="other")
    rows = tmp_path / "more.jsonl"
    rows.write_text(json.dumps({"_id": "more", "text": "A wing more."}) + "\n")
    with serving(folder) as (client, service):
        seen, statuses, stop = set(), set(), threading.Event()

        def ask():
            while not stop.is_set():
                found = client.get("/search?q=wing&k=100")
                statuses.add(found.status_code)
                seen.add(len(found.json()["hits"]))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()

        def reached(documents):
            wait_for(lambda: len(service.current.state.index) == documents)
            wait_for(lambda: documents in seen)

        reached(len(DOCUMENTS))
        add(folder, documents_of([str(rows)], "corpus"), tell=quiet)
        reached(len(DOCUMENTS) + 1)
        delete_documents(folder, ["lift", "drag"], quiet)
        compact(folder, tell=quiet)
        reached(len(DOCUMENTS) - 1)
        folder.rename(tmp_path / "old")
        other.rename(folder)
        shutil.rmtree(tmp_path / "old")
        reached(1)
        stop.set()
        for thread in threads:
            thread.join()
        assert statuses == {200}
        assert seen <= {len(DOCUMENTS), len(DOCUMENTS) + 1, len(DOCUMENTS) - 1, 1}
        assert client.get("/ready").json()["documents"] == 1


def test_an_index_with_another_model_takes_its_place(folder, write_index, tmp_path, tiny_dense):
    (tmp_path / "elsewhere").mkdir()
    other = write_index(tmp_path / "elsewhere", {"only": "Another wing."}, tiny_dense)
    with serving(folder) as (client, _):
        assert client.get("/index").json()["representation"] == "multi-vector"
        folder.rename(tmp_path / "old")
        other.rename(folder)
        wait_for(lambda: client.get("/index").json()["representation"] == "dense")
        assert ids(client) == ["only"]
        assert client.post("/embed", json={"texts": ["x"], "kind": "query"}).json()["dim"] == 32
        explained = client.post("/search", json={"query": "wing", "explain": True})
        assert (explained.status_code, explained.json()["error"]["code"]) == (422, "dense")
        assert client.post("/explain", json={"query": "wing", "id": "only"}).status_code == 422


def test_a_deleted_index_is_told_and_answers_come_from_what_is_open_until_it_is_back(folder, tmp_path):
    with serving(folder) as (client, _):
        wanted = ids(client)
        shutil.copytree(folder, tmp_path / "copy")
        shutil.rmtree(folder)
        wait_for(lambda: client.get("/ready").status_code == 503)
        assert "is no index" in client.get("/ready").json()["error"]["message"]
        assert client.get("/health").status_code == 200
        found = client.get("/search?q=wing&k=100&explain=false").json()
        assert [hit["id"] for hit in found["hits"]] == wanted
        assert "is no index" in found["notes"][0]
        (tmp_path / "copy").rename(folder)
        wait_for(lambda: client.get("/ready").status_code == 200)
        assert client.get("/search?q=wing").json()["notes"] == []


def test_a_manifest_that_is_damaged_later_is_told_and_answers_come_from_what_is_open(folder):
    with serving(folder) as (client, _):
        text = (folder / "manifest.json").read_text()
        (folder / "manifest.json").write_text(text[:-20])
        wait_for(lambda: client.get("/ready").status_code == 503)
        found = client.get("/search?q=wing&k=100").json()
        assert len(found["hits"]) == len(DOCUMENTS)
        assert "manifest.json: cannot be read" in found["notes"][0]
        (folder / "manifest.json").write_text(text)
        wait_for(lambda: client.get("/ready").status_code == 200)


def test_a_damaged_segment_is_named_in_every_answer_and_the_rest_serves(folder):
    (folder / "segments" / "000002" / "tokens").write_bytes(b"")
    with serving(folder) as (client, _):
        for found in (client.get("/search?q=wing&k=100").json(), client.get("/index").json()):
            assert "segment 000002 is damaged" in found["notes"][0]
        assert len(ids(client)) == len(DOCUMENTS) - 7

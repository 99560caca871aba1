"""What the HTTP API answers, and what it refuses."""

import json
import re
import threading

import pytest
from fastapi.testclient import TestClient

from colbert_zero.serving.http.api import make_app
from colbert_zero.serving.http.service import Limits, Service
from colbert_zero.serving.index.opened import Index
from helpers import DOCUMENTS, QUERIES, wait_for

HOST = {"base_url": "http://127.0.0.1:8000"}
LIFT = QUERIES["q1"]


def quiet(*_):
    pass


@pytest.fixture(scope="module")
def client(served_folder):
    with TestClient(make_app(Service(served_folder, Limits(), tell=quiet)), **HOST) as client:
        yield client


@pytest.fixture(scope="module")
def direct(served_folder):
    with Index.open(served_folder, tell=quiet) as index:
        yield index


def same(found, wanted):
    """Compare an answer with one of the index's own: a batch may round the last bits of a score otherwise."""
    assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in wanted]
    assert [hit["score"] for hit in found["hits"]] == pytest.approx([hit.score for hit in wanted], abs=1e-4)
    assert [(h["rank"], h["text"], h["metadata"]) for h in found["hits"]] == [
        (h.rank, h.text, h.metadata) for h in wanted
    ]


# ---- Answers


@pytest.mark.parametrize("explain", [False, True])
@pytest.mark.parametrize("query", QUERIES.values())
def test_an_answer_is_that_of_the_index(client, direct, query, explain):
    found = client.post("/search", json={"query": query, "k": 4, "explain": explain}).json()
    wanted = direct.search(query, 4, explain=explain)
    same(found, wanted)
    assert found["query"] == query
    assert found["notes"] == []
    assert found["seconds"] > 0
    again = client.get("/search", params={"q": query, "k": 4, "explain": explain}).json()
    assert again["hits"] == found["hits"]
    for hit, own in zip(found["hits"], json.loads(json.dumps(wanted.record()))["hits"], strict=True):
        if explain:
            parts, words = hit["explanation"]["parts"], hit["explanation"]["words"]
            assert hit["explanation"].keys() == own["explanation"].keys() == {"parts", "passage", "words"}
            assert sum(part["score"] for part in parts) == pytest.approx(hit["score"], abs=1e-4)
            assert words
            assert all(0 <= word["token"] < len(parts) for word in words)
        else:
            assert hit["explanation"] is None


@pytest.mark.parametrize(
    "ways",
    [{"first": "pooled:3"}, {"first": "bm25:3"}, {"with_bm25": 1}, {"first": "bm25:4", "with_bm25": 0.5}],
    ids=str,
)
def test_a_first_stage_and_bm25_have_part_in_an_answer_as_in_the_indexs_own(client, direct, ways):
    found = client.post("/search", json={"query": LIFT, "k": 5, **ways}).json()
    wanted = direct.search(LIFT, 5, **ways)
    same(found, wanted)
    assert found["notes"] == wanted.notes != []
    assert client.get("/search", params={"q": LIFT, "k": 5, **ways}).json()["hits"] == found["hits"]
    plain = client.post("/search", json={"query": LIFT, "k": 5}).json()
    assert plain["hits"] != found["hits"]


def test_a_document_is_explained_by_its_id(client, direct):
    [hit] = direct.search(LIFT, 1, explain=True)
    found = client.post("/explain", json={"query": LIFT, "id": hit.id}).json()
    assert (found["id"], found["text"]) == (hit.id, hit.text)
    assert [part["word"] for part in found["explanation"]["parts"]] == [part.word for part in hit.explanation.parts]


@pytest.mark.parametrize("kind", ["query", "document"])
def test_queries_and_documents_are_embedded_each_in_their_own_way(client, tiny_multi_vector, kind):
    texts = ["the lift of a wing.", "drag"]
    found = client.post("/embed", json={"texts": texts, "kind": kind}).json()
    encode = getattr(tiny_multi_vector, f"encode_{kind}")
    assert (found["kind"], found["dim"], found["notes"]) == (kind, 16, [])
    for own, wanted in zip(found["embeddings"], encode(texts), strict=True):
        assert own == [pytest.approx(row.tolist(), abs=1e-5) for row in wanted]


def test_a_query_that_is_cut_off_is_told(client):
    found = client.post("/search", json={"query": "wing " * 200}).json()
    assert re.fullmatch(r"the query is longer than the \d+ tokens that the model reads: .*", found["notes"][0])


@pytest.mark.parametrize("kind", ["query", "document"])
def test_a_text_that_is_cut_off_is_told(client, kind):
    found = client.post("/embed", json={"texts": ["wing " * 200, "short"], "kind": kind}).json()
    assert found["notes"][0].startswith("1 of the texts are longer than the ")


def test_the_index_is_described(client, direct):
    wait_for(lambda: client.get("/index").json()["metadata"] != {"length": None})
    found = client.get("/index").json()
    lengths = [str(len(text) // 100) for text in DOCUMENTS.values()]
    assert found.pop("metadata") == {
        "length": sorted(set(lengths), key=lambda n: (-lengths.count(n), lengths.index(n)))
    }
    assert found == {
        "documents": len(DOCUMENTS), "model": "model", "representation": "multi-vector",
        "dim": 16, "storage": "float16", "generation": direct.manifest.generation, "notes": [], "writable": False,
    }  # fmt: skip


@pytest.mark.parametrize("where", [{"length": "1"}, {"length": 1}])
def test_metadata_choose_what_may_be_found(client, where):
    found = client.post("/search", json={"query": LIFT, "k": 100, "where": where}).json()["hits"]
    assert {hit["id"] for hit in found} == {key for key, text in DOCUMENTS.items() if len(text) // 100 == 1}
    again = client.get("/search", params={"q": LIFT, "k": 100, "where": "length=1"}).json()["hits"]
    assert again == found


def test_texts_of_an_answer_are_bounded_together_and_the_longest_are_cut(served_folder, direct):
    query, wanted = {"query": LIFT, "k": 100}, {hit.id: hit.text for hit in direct.search(LIFT, 100).hits}
    whole = sum(map(len, wanted.values()))
    for most in (whole, whole - 1, whole // 3, 10, 0):
        with TestClient(make_app(Service(served_folder, Limits(answer_characters=most), tell=quiet)), **HOST) as client:
            found = client.post("/search", json=query).json()
        assert [hit["id"] for hit in found["hits"]] == list(wanted)
        assert sum(len(hit["text"]) for hit in found["hits"]) <= most
        assert all(wanted[hit["id"]].startswith(hit["text"]) for hit in found["hits"])
        cut = [hit for hit in found["hits"] if hit["text"] != wanted[hit["id"]]]
        told = (
            [f"{len(cut)} of the texts are cut to {max(len(hit['text']) for hit in cut):,} characters"] if cut else []
        )
        assert [note.split(", as")[0] for note in found["notes"]] == told
        assert bool(cut) == (most < whole)


def test_what_is_counted_is_true_before_anybody_asks_for_it(served_folder):
    service = Service(served_folder, Limits(), tell=quiet)
    held = Held(service)
    with TestClient(make_app(service), **HOST) as client:
        told = service.metrics.text().decode()
        assert f"colbert_zero_documents {len(DOCUMENTS)}.0" in told
        assert re.search(r"colbert_zero_index_generation [1-9]", told)
        asked = Asked(client)
        asked.ask("wing")
        held.begun()
        asked.ask("heat", 2)
        asked.ask("blood", 3)
        wait_for(lambda: "colbert_zero_waiting_requests 2.0" in service.metrics.text().decode())
        held.go()
        asked.join()
        wait_for(lambda: "colbert_zero_waiting_requests 0.0" in service.metrics.text().decode())


def test_health_readiness_and_metrics(client):
    assert client.get("/health").json() == {"healthy": True}
    ready = client.get("/ready").json()
    assert (ready["documents"], ready["queries_encoded_by"]) == (len(DOCUMENTS), "PyTorch")
    client.get("/nowhere/at/all")
    told = client.get("/metrics").text
    assert 'colbert_zero_requests_total{method="GET",path="/health",status="200"}' in told
    assert 'path="other",status="404"' in told
    assert "nowhere" not in told
    assert f"colbert_zero_documents {len(DOCUMENTS)}.0" in told


# ---- Mistakes

MISTAKES = [
    ("/search", {"query": ""}, 422, "query", "is blank"),
    ("/search", {"query": " \n"}, 422, "query", "is blank"),
    ("/search", {}, 422, "query", "required"),
    ("/search", {"query": 3}, 422, "query", "string"),
    ("/search", {"query": "x" * 10_001}, 422, "query", "10000 characters"),
    ("/search", {"query": "x", "k": 0}, 422, "k", "greater than or equal to 1"),
    ("/search", {"query": "x", "k": 1001}, 422, "k", "less than or equal to 1000"),
    ("/search", {"query": "x", "k": "many"}, 422, "k", "integer"),
    ("/search", {"query": "x", "limit": 3}, 422, "limit", "not permitted"),
    ("/search", {"query": "x", "k": 51, "explain": True}, 422, "k", "at most 50"),
    ("/search", {"query": "x", "where": {"lenght": 1}}, 422, "where.lenght", "did you mean length?"),
    ("/search", {"query": "x", "where": {"length": [1]}}, 422, "where.length", "string"),
    ("/search", {"query": "x", "first": "pooled"}, 422, "first", "write pooled:1000 or bm25:1000"),
    ("/search", {"query": "x", "first": ""}, 422, "first", "at least 1 character"),
    ("/search", {"query": "x", "with_bm25": True}, 422, "with_bm25", "number"),
    ("/search", {"query": "x", "first": "bm25:0"}, 422, "first", "write pooled:1000 or bm25:1000"),
    ("/search", {"query": "x", "first": "bm25:" + "9" * 99}, 422, "first", "40 characters"),
    ("/search", {"query": "x", "with_bm25": 0}, 422, "with_bm25", "greater than 0"),
    ("/search", {"query": "x", "with_bm25": "many"}, 422, "with_bm25", "number"),
    ("/search", {"query": "x", "with_bm25": 1, "explain": True}, 422, "explain", "leave out explain or with_bm25"),
    ("/search", [1], 422, "body", "object"),
    ("/search", b"{", 400, "body", "not JSON"),
    ("/explain", {"query": "x", "id": "nowhere"}, 404, "id", "has no document 'nowhere'"),
    ("/embed", {"texts": ["x"], "kind": "passage"}, 422, "kind", "'query' or 'document'"),
    ("/embed", {"texts": [], "kind": "query"}, 422, "texts", "at least 1"),
    ("/embed", {"texts": ["x"] * 65, "kind": "query"}, 422, "texts", "at most 64"),
]


@pytest.mark.parametrize(("path", "body", "status", "place", "message"), MISTAKES)
def test_a_mistake_is_one_message_with_its_place(client, path, body, status, place, message):
    content = body if isinstance(body, bytes) else json.dumps(body)
    found = client.post(path, content=content, headers={"content-type": "application/json"})
    assert found.status_code == status
    [error] = found.json().values()
    assert error.keys() == {"code", "message", "place"}
    assert error["place"].startswith(place)
    assert message in error["message"]


@pytest.mark.parametrize("name", ["with-bm25", "wher"])
def test_a_parameter_of_no_meaning_is_not_passed_over(client, name):
    found = client.get("/search", params={"q": "wing", name: 1})
    assert found.status_code == 422
    assert found.json()["error"] == {
        "code": "unknown_parameter", "place": name,
        "message": f"no parameter has that name, did you mean {'with_bm25' if '-' in name else 'where'}?",
    }  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"query": "a\xff"}', b'{"query": "\\ud800"}', b"[" * 100_000, b'{"query": ' + b"9" * 5000 + b"}",
     b'{"query": "x", "k": NaN}', b'{"query": "x", "where": {"length": Infinity}}', b'{"query": "\\u0000"}',
     b'{"query": "x", "where": {"length": "\\u0000"}}', b'{"query": "x", "where": {"length": "\\udfff"}}'],
)  # fmt: skip
def test_a_body_that_is_no_request_is_refused_and_nothing_fails(client, body):
    found = client.post("/search", content=body, headers={"content-type": "application/json"})
    assert found.status_code in (200, 400, 422)
    assert ("error" in found.json()) == (found.status_code != 200)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("PUT", "/search", 405), ("POST", "/documents", 404), ("DELETE", "/documents/a", 404),
     ("GET", "/page/../api.py", 404), ("GET", "/page/%2e%2e/api.py", 404), ("GET", "/page/..%2fapi.py", 404),
     ("GET", "/docs", 404)],
)  # fmt: skip
def test_what_is_not_there_is_told_in_the_same_shape(client, method, path, status):
    found = client.request(method, path, json=[])
    assert (found.status_code, found.json().keys()) == (status, {"error"})


def test_every_answer_has_strict_headers(client):
    for path in ("/health", "/nowhere", "/search", "/", "/openapi.json", "/page/none.js"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in headers["content-security-policy"]
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")


@pytest.mark.parametrize("size", [1_000_001, 10_000_000, 100_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused(client, size, chunked):
    block = b"x" * 1_000_000
    body = (block for _ in range(-(-size // len(block)) + 1))
    found = client.post("/search", content=body if chunked else b"x" * size)
    assert found.status_code == 413
    assert "larger than 1,000,000 bytes" in found.json()["error"]["message"]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8000", "evil.example:80", ""])
def test_a_name_that_only_points_here_is_refused(client, host):
    assert client.get("/search?q=wing", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:80", "[::1]:8000", "[::1]", "127.0.0.2:80"])
def test_this_machines_own_names_are_answered(client, host):
    assert client.get("/search?q=wing", headers={"host": host}).status_code == 200


# ---- The key


@pytest.fixture(scope="module")
def locked(served_folder):
    with TestClient(make_app(Service(served_folder, Limits(), tell=quiet), key="the-key"), **HOST) as client:
        yield client


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer ", "Bearer the-ke", "Bearer the-key2", "Basic the-key"])
@pytest.mark.parametrize("path", ["/search?q=wing", "/index", "/metrics", "/nowhere"])
def test_without_the_key_nothing_of_the_index_is_told(locked, path, given):
    found = locked.get(path, headers={} if given is None else {"authorization": given})
    assert (found.status_code, found.json()["error"]["code"]) == (401, "no_key")
    assert found.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("given", ["Bearer the-key", "bearer the-key"])
def test_with_the_key_it_answers_under_any_name(locked, given):
    headers = {"authorization": given, "host": "search.example"}
    assert locked.get("/search?q=wing", headers=headers).status_code == 200


def test_whether_it_lives_is_told_without_the_key(locked):
    for path in ("/health", "/ready", "/openapi.json"):
        assert locked.get(path).status_code == 200


# ---- Many at once


class Held:
    """A service whose thread stands still, until `go`, in the first batch that it begins."""

    def __init__(self, service):
        self.batches, self._compute = [], service._compute
        self._begun, self._go = threading.Event(), threading.Event()
        service._reader._compute = self._wait

    def _wait(self, what, asked):
        self._begun.set()
        assert self._go.wait(60)
        self.batches.append(asked)
        if "poison" in asked:
            raise RuntimeError("a fault")
        return self._compute(what, asked)

    def begun(self):
        assert self._begun.wait(60)

    def go(self):
        self._go.set()


class Asked:
    """Searches in threads of their own; `answers` has what came, by number."""

    def __init__(self, client):
        self.answers, self._client, self._threads = {}, client, []

    def ask(self, query, k=10):
        number = len(self._threads)

        def run():
            self.answers[number] = self._client.post("/search", json={"query": query, "k": k})

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def join(self):
        for thread in self._threads:
            thread.join()
        return [self.answers[number] for number in range(len(self._threads))]


def test_requests_that_wait_together_are_computed_together_and_each_gets_its_own(served_folder, direct):
    service = Service(served_folder, Limits(), tell=quiet)
    held, queries = Held(service), list(QUERIES.values()) * 4
    with TestClient(make_app(service), **HOST) as client:
        asked = Asked(client)
        asked.ask("alone", 3)
        held.begun()
        for number, query in enumerate(queries):
            asked.ask(query, 3 + number % 2)
        wait_for(lambda: service.waiting == len(queries))
        held.go()
        _, *found = asked.join()
    for number, query in enumerate(queries):
        same(found[number].json(), direct.search(query, 3 + number % 2))
    assert [len(batch) for batch in held.batches] == [1, len(queries) / 2, len(queries) / 2]


def test_a_full_queue_answers_503_with_a_time_to_try_again_and_goes_on(served_folder):
    service = Service(served_folder, Limits(waiting=2), tell=quiet)
    held = Held(service)
    with TestClient(make_app(service), **HOST) as client:
        asked = Asked(client)
        asked.ask("wing")
        held.begun()
        for _ in range(7):
            asked.ask("wing")
        wait_for(lambda: len(asked.answers) == 5)
        held.go()
        found = asked.join()
        assert sorted(answer.status_code for answer in found) == [200] * 3 + [503] * 5
        refused = next(answer for answer in found if answer.status_code == 503)
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        assert client.get("/search?q=wing").status_code == 200


def test_what_takes_too_long_is_told_and_not_computed(served_folder):
    service = Service(served_folder, Limits(seconds=1.5), tell=quiet)
    held = Held(service)
    with TestClient(make_app(service), **HOST) as client:
        asked = Asked(client)
        asked.ask("wing")
        held.begun()
        asked.ask("heat", 2)
        for answer in asked.join():
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "too_long")
        held.go()
        wait_for(lambda: client.get("/search?q=blood").status_code == 200)
    assert ["heat"] not in held.batches


def test_one_request_that_fails_is_told_and_fails_no_other(served_folder, caplog):
    service = Service(served_folder, Limits(), tell=quiet)
    held = Held(service)
    with TestClient(make_app(service), raise_server_exceptions=False, **HOST) as client:
        asked = Asked(client)
        asked.ask("wing")
        held.begun()
        for query in ("heat", "poison", "blood"):
            asked.ask(query)
        wait_for(lambda: service.waiting == 3)
        held.go()
        found = asked.join()
        assert [answer.status_code for answer in found] == [200, 200, 500, 200]
        assert client.get("/search?q=wing").status_code == 200
        assert found[2].json()["error"]["code"] == "fault"
        for header in ("content-security-policy", "x-content-type-options", "cache-control"):
            assert found[2].headers[header] == found[0].headers[header]
        assert "RuntimeError: a fault" in caplog.text
        told = client.get("/metrics").text
        assert 'requests_total{method="POST",path="/search",status="500"} 1.0' in told
        assert 'status="499"' not in told

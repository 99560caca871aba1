"""What goes wrong with a Qdrant server is one message with its mend, and the key is in none of them."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from colbert_zero.errors import ColbertZeroError
from colbert_zero.serving.qdrant import collection as qdrant_collection
from colbert_zero.serving.qdrant.collection import Collection, address_of
from helpers import free_port


@pytest.fixture
def server():
    """Answers what a test tells it to: {path: [(code, body), …]}; the last one again and again."""
    answers, asked = {"/": [(200, {"title": "qdrant", "version": "1.20.0"})]}, []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("api-key")))
            some = answers.get(self.path.split("?")[0], [(404, {"status": {"error": "Not found"}, "time": 0})])
            code, body = some.pop(0) if len(some) > 1 else some[0]
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", "application/json")
            if code == 429:
                self.send_header("Retry-After", "1")
            self.end_headers()
            self.wfile.write(content)

        do_PATCH = do_PUT = do_POST = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        served.answers, served.asked = answers, asked
        served.address = address_of(f"qdrant+http://127.0.0.1:{served.server_port}/notes")
        yield served
        served.shutdown()


def error(message):
    return {"status": {"error": message}, "time": 0.0}


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("QDRANT_API_KEY", "a-secret")
    monkeypatch.setattr("time.sleep", lambda _: None)


EXISTS = "/collections/notes/exists"


@pytest.mark.parametrize(
    ("code", "body", "message"),
    [
        (401, b"Must provide an API key", r"the server does not accept the key in QDRANT_API_KEY \(401\)"),
        (403, error("Forbidden"), r"the server does not accept the key in QDRANT_API_KEY \(403\)"),
        (404, error("no such page"), r"not found on the server \(no such page\); is the address right\?"),
        (413, error("Payload too large"), r"too large for the server; raise its max_request_size_mb"),
        (400, error("Wrong input: bad"), r"the server answered 400: Wrong input: bad; what was uploaded stays"),
        (500, error("Service internal error: disk full"), r"answered 500: Service internal error: disk full; what was"),
        (429, error("slow down"), r"asked too much at once"),
        (200, b"<html>", r"something answers there, but not as Qdrant does"),
    ],
)
def test_what_a_server_answers_is_told_in_a_line(server, code, body, message):
    server.answers[EXISTS] = [(code, body)]
    collection = Collection(server.address)
    with pytest.raises(ColbertZeroError, match=message) as caught:
        collection.exists()
    assert "\n" not in str(caught.value)
    assert "a-secret" not in str(caught.value)
    assert server.asked[-1] == (EXISTS, "a-secret")
    collection.close()


def test_a_server_without_a_key_set_asks_for_one(server, monkeypatch):
    monkeypatch.delenv("QDRANT_API_KEY")
    server.answers["/"] = [(401, b"Must provide an API key")]
    with pytest.raises(ColbertZeroError, match=r"the server wants a key; put it in QDRANT_API_KEY \(401\)"):
        Collection(server.address)


@pytest.mark.parametrize("body", [b"hello", {"name": "something else"}])
def test_another_server_than_qdrants_is_told(server, body):
    server.answers["/"] = [(200, body)]
    with pytest.raises(ColbertZeroError, match=r"as Qdrant.* address and port right\?"):
        Collection(server.address)


def test_a_server_that_is_not_there_is_told():
    with pytest.raises(
        ColbertZeroError, match=r"no answer as Qdrant's .*; is the server running, and the address and port"
    ):
        Collection(address_of(f"qdrant+http://127.0.0.1:{free_port()}/notes"))


def test_a_server_that_is_too_old_is_told(server):
    server.answers["/"] = [(200, {"title": "qdrant", "version": "1.15.4"})]
    with pytest.raises(ColbertZeroError, match=r"Qdrant 1.15.4 keeps no metadata of collections, .*update it to 1.16"):
        Collection(server.address)


@pytest.mark.parametrize("failures", [1, 3, qdrant_collection._TRIES])
def test_a_change_is_sent_again_after_a_failure_that_passes(server, failures):
    done = {"result": True, "status": "ok", "time": 0.0}
    server.answers["/collections/notes"] = [(503, error("busy"))] * failures + [(200, done)]
    collection = Collection(server.address)

    def change(client):
        client.update_collection("notes", metadata={"a": 1})

    if failures < qdrant_collection._TRIES:
        collection.send(change)
    else:
        with pytest.raises(ColbertZeroError, match="answered 503: busy; what was uploaded stays, and the same command"):
            collection.send(change)
    assert [path for path, _ in server.asked].count("/collections/notes") == min(failures + 1, qdrant_collection._TRIES)
    collection.close()


def test_a_change_that_is_refused_is_not_sent_again(server):
    server.answers["/collections/notes"] = [(400, error("Wrong input"))]
    collection = Collection(server.address)
    with pytest.raises(ColbertZeroError, match="answered 400"):
        collection.send(lambda client: client.update_collection("notes", metadata={"a": 1}))
    assert len(server.asked) == 2
    collection.close()


@pytest.mark.parametrize(("host", "told"), [("http://10.1.2.3:6333", True), ("http://localhost:6333", False)])
def test_a_key_that_would_go_unencrypted_over_a_network_is_told(host, told, monkeypatch):
    said = []
    monkeypatch.setattr("qdrant_client.QdrantClient.info", lambda _: type("Info", (), {"version": "1.20.0"}))
    Collection(address_of(f"qdrant+{host}/notes"), said.append).close()
    assert [("unencrypted" in line, "a-secret" in line) for line in said] == [(True, False)] * told

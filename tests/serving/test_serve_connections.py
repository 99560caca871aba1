"""Clients that are slow, many, impolite or gone: each is told where it can be, and none holds up another."""

import json
import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from colbert_zero.serving.http import server as server_module
from colbert_zero.serving.http.api import make_app
from colbert_zero.serving.http.server import Settings, bind, bounded
from colbert_zero.serving.http.service import Limits, Service
from helpers import DOCUMENTS, wait_for


@contextmanager
def listening(folder, limits=Limits()):  # noqa: B008 - frozen
    """A real server on a free port, in a thread; gives its address and its service."""
    service = Service(folder, limits, tell=lambda _: None)
    with bind("127.0.0.1", 0) as bound:
        # A small answer fills it.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        server = bounded(make_app(service), Settings(folder, limits), lambda: None)
        thread = threading.Thread(target=server.run, args=[[bound]])
        thread.start()
        wait_for(lambda: server.started)
        try:
            yield bound.getsockname(), service, server
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def listened(served_folder):
    with listening(served_folder) as (address, service, server):
        yield address, service, server


GET = b"GET /search?q=wing&k=3 HTTP/1.1\r\nHost: localhost\r\n\r\n"


def post(body, length=None):
    head = "POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    return f"{head}{len(body) if length is None else length}\r\n\r\n".encode() + body


def received(connection):
    """All that comes until the other end closes."""
    connection.settimeout(60)
    parts = []
    with suppress(ConnectionResetError):  # also an end
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def status_of(address, request=GET):
    with socket.create_connection(address) as connection:
        connection.sendall(request)
        connection.settimeout(60)
        return int(connection.recv(100).split()[1])


def test_a_head_that_never_ends_is_let_go(listened, monkeypatch):
    monkeypatch.setattr(server_module, "HEAD_SECONDS", 0.3)
    address, _, server = listened
    silent = [socket.create_connection(address) for _ in range(20)]
    for connection in silent[10:]:
        connection.sendall(b"GET /search?q=wi")
    assert status_of(address) == 200
    for connection in silent:
        with connection:
            assert received(connection) == b""
    wait_for(lambda: not server.server_state.connections)


def test_a_second_head_that_never_ends_is_let_go_too(listened, monkeypatch):
    monkeypatch.setattr(server_module, "HEAD_SECONDS", 0.3)
    with socket.create_connection(listened[0]) as connection:
        connection.sendall(GET)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /sea")
        connection.settimeout(60)
        # The rest of the first answer at most.
        assert b"HTTP/1.1" not in received(connection)


def test_a_body_that_comes_too_slowly_is_told(served_folder):
    with listening(served_folder, Limits(seconds=1)) as (address, _, _):
        with socket.create_connection(address) as connection:
            connection.sendall(post(b'{"query": "wi', 100))
            answer = received(connection)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"did not arrive within 1 s" in answer
        assert status_of(address, GET.replace(b"search", b"health")) == 200


def test_a_body_of_10_mb_is_refused_and_its_sender_hears_why(listened):
    with socket.create_connection(listened[0]) as connection:
        connection.sendall(post(b"x" * 10_000_000))
        assert received(connection).startswith(b"HTTP/1.1 413")
    assert status_of(listened[0]) == 200


def test_a_length_beyond_all_bounds_is_refused_before_it_is_read(listened):
    with socket.create_connection(listened[0]) as connection:
        connection.sendall(post(b"", 10**12))
        assert received(connection).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "request_bytes",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
     b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
     b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
     b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: -3\r\n\r\n",
     b"POST /search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"],
)  # fmt: skip
def test_what_is_no_request_is_refused(listened, request_bytes):
    with socket.create_connection(listened[0]) as connection:
        try:
            connection.sendall(request_bytes)
            connection.shutdown(socket.SHUT_WR)
            answer = received(connection)
        except OSError:
            answer = b""
    assert answer == b"" or answer.split()[1] in (b"400", b"404", b"408", b"413", b"421")
    assert status_of(listened[0]) == 200


def test_a_client_that_goes_gives_its_place_in_the_queue_back_and_is_not_computed(served_folder):
    with listening(served_folder, Limits(waiting=3)) as (address, service, _):
        begun, held, computing, asked = threading.Event(), threading.Event(), service._compute, []

        def compute(what, queries):
            begun.set()
            held.wait(60)
            asked.extend(queries)
            return computing(what, queries)

        service._reader._compute = compute
        first = socket.create_connection(address)
        first.sendall(GET)
        assert begun.wait(60)
        for shut in (True, False) * 5:
            with socket.create_connection(address) as connection:
                connection.sendall(GET.replace(b"wing", b"gone"))
                # Half closed, it counts as gone as well: it does not say that it still reads.
                if shut:
                    connection.shutdown(socket.SHUT_WR)
            time.sleep(0.02)
        waits = socket.create_connection(address)
        waits.sendall(GET.replace(b"wing", b"heat"))
        # The first is being computed, this one alone still waits.
        wait_for(lambda: [job.asked for job in service._reader._jobs if not job.future.cancelled()] == ["heat"])
        held.set()
        for connection in (first, waits):
            connection.settimeout(60)
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
            connection.close()
        assert asked == ["wing", "heat"]


def test_a_client_that_does_not_read_its_answer_is_let_go(write_index, tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, "READ_SECONDS", 0.3)
    folder = write_index(tmp_path, {str(n): "w" * 100_000 for n in range(4)})
    with listening(folder) as (address, _, server):
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(address)
        slow.sendall(GET.replace(b"k=3", b"k=4"))
        wait_for(lambda: server.server_state.total_requests == 1)
        assert status_of(address, GET.replace(b"search", b"health")) == 200
        wait_for(lambda: not server.server_state.connections)
        slow.close()


def test_one_connection_too_many_is_told(listened, monkeypatch):
    address, _, server = listened
    wait_for(lambda: not server.server_state.connections)
    monkeypatch.setattr(server_module, "CONNECTIONS", 2)
    two = [socket.create_connection(address) for _ in range(2)]
    wait_for(lambda: len(server.server_state.connections) == 2)
    with socket.create_connection(address) as third:
        answer = received(third)
    head, body = answer.split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 1" in head
    assert json.loads(body)["error"]["code"] == "connections"
    for connection in two:
        connection.sendall(GET)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        connection.close()


def test_a_stop_answers_what_was_accepted(served_folder):
    with listening(served_folder) as (address, service, server):
        held, computing = threading.Event(), service._compute
        service._reader._compute = lambda *asked: (held.wait(60), computing(*asked))[1]
        clients = [socket.create_connection(address) for _ in range(6)]
        for client in clients:
            client.sendall(GET)
        wait_for(lambda: len(server.server_state.tasks) == 6)
        time.sleep(0.2)
        server.should_exit = True
        time.sleep(0.3)
        held.set()
        for client in clients:
            with client:
                answer = received(client)
                assert answer.startswith(b"HTTP/1.1 200")
                assert len(json.loads(answer.split(b"\r\n\r\n", 1)[1])["hits"]) == min(3, len(DOCUMENTS))

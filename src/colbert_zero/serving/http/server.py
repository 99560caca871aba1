"""The server's process: its socket, its connections, several processes, and how it ends.

uvicorn serves; added is what it leaves open: a bound on the time a request's head may take, on how long an answer waits
for a client that does not read it, and on the number of connections.
"""

import asyncio
import os
import socket
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.supervisors import Multiprocess

from colbert_zero.errors import ColbertZeroError, Stopped
from colbert_zero.models.graphs import Graph
from colbert_zero.serving.index.segments import raise_open_files
from colbert_zero.serving.qdrant.collection import Address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import FastAPI

    from colbert_zero.serving.http.service import Limits

HEAD_SECONDS = 10.0
"""In which a request's head must come."""

READ_SECONDS = 20.0
"""After which a client that has read nothing more of its answer is let go."""

CONNECTIONS = 1000
"""Of one process. One more is answered 503 and closed."""

_START_SECONDS = 120
"""That a process may take to import what it needs."""

_BUSY = (
    b'{"error": {"code": "connections", "message": "as many are connected as may", "place": null}}'
)  # fmt: skip
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_BUSY), _BUSY)
)


@dataclass(frozen=True)
class Settings:
    """What a server is started with.

    Attributes:
        index: Its folder, absolute.
        limits: Of requests.
        key: That requests must send.
        writable: Whether documents may be added and deleted.
        local: Whether it listens on this machine alone.
        model: Where the index's model is now; where it was, without.
        memory_bytes: As of `Index.open`, of each process.
        workers: Processes.
        graph: That encodes queries in PyTorch's place.
    """

    index: Path | Address
    limits: "Limits"
    key: str | None = None
    writable: bool = False
    local: bool = True
    model: str | None = None
    memory_bytes: int | None = None
    workers: int = 1
    graph: Graph | None = None


def app_of(settings: Settings, tell: Callable[[str], None] = print) -> "FastAPI":
    """The API, its index opened and its model loaded.

    Raises:
        ColbertZeroError: It is no index, or its model cannot be loaded.
    """
    from colbert_zero.serving.http.api import make_app
    from colbert_zero.serving.http.service import Service

    service = Service(
        settings.index, settings.limits, settings.writable, settings.model, settings.memory_bytes, tell, settings.graph
    )  # fmt: skip
    return make_app(service, settings.key, settings.local)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens once it is served.

    Raises:
        ColbertZeroError: There is no such address, or its port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except socket.gaierror as error:
        raise ColbertZeroError(f"--host {host}: no address of that name ({error.strerror})") from None
    except OSError as error:
        raise ColbertZeroError(
            f"--port {port}: cannot be listened on at {host} ({error.strerror}); name another, or 0 for any free one"
        ) from None
    bound.set_inheritable(True)
    return bound


def serve(
    settings: Settings,
    bound: socket.socket,
    tell: Callable[[str], None] = print,
    begun: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM or SIGINT; then finish what was accepted.

    Args:
        settings: What is served.
        bound: Where.
        tell: Told what happens to the index.
        begun: Called when requests are answered; of several processes, when they are being started.

    Raises:
        ColbertZeroError: It is no index, or its model cannot be loaded.
    """
    raise_open_files()
    if settings.workers == 1:
        server = bounded(app_of(settings, tell), settings, begun)
        # Raised again by uvicorn, once all is answered.
        with suppress(KeyboardInterrupt, Stopped):
            server.run([bound])
        return
    with _counting_together():
        config = uvicorn.Config(
            partial(app_of, settings), factory=True, workers=settings.workers,
            timeout_worker_healthcheck=_START_SECONDS, timeout_graceful_shutdown=_stop_seconds(settings), **OPTIONS,
        )  # fmt: skip
        bound.listen(config.backlog)
        begun()
        _Supervisor(config, [bound]).run()


def bounded(app: "FastAPI", settings: Settings, begun: Callable[[], None]) -> uvicorn.Server:
    """A server of this process; `begun` is called when it answers."""
    return _Server(uvicorn.Config(app, timeout_graceful_shutdown=_stop_seconds(settings), **OPTIONS), begun)


def _stop_seconds(settings: Settings) -> int:
    """After which a client that does not read its answer is waited for no longer."""
    return int(settings.limits.seconds + READ_SECONDS) + 1


class _Server(uvicorn.Server):
    """Says when it answers."""

    def __init__(self, config: uvicorn.Config, begun: Callable[[], None]):
        super().__init__(config)
        self._begun = begun

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin."""
        await super().startup(sockets)
        self._begun()


class _Supervisor(Multiprocess):
    """Forgets what a process that has ended was doing."""

    _known: frozenset[int | None] = frozenset()

    def keep_subprocess_alive(self) -> None:
        """Start another in the place of each that has ended."""
        from colbert_zero.serving.http.metrics import forget

        before = self._known | {process.pid for process in self.processes}
        super().keep_subprocess_alive()
        self._known = frozenset(process.pid for process in self.processes)
        for gone in before - self._known:
            if gone is not None:
                forget(gone)


@contextmanager
def _counting_together() -> "Iterator[None]":
    """A folder in which several processes count, for /metrics of any one."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="colbert-zero-metrics-"))
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        stack.callback(os.environ.pop, "PROMETHEUS_MULTIPROC_DIR")
        yield


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 for clients that may be slow, or many."""

    _head: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse one too many."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.write(_REFUSAL)
            transport.close()
        else:
            self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Take what comes."""
        super().data_received(data)
        self._wait_for_head()

    def on_response_complete(self) -> None:
        """Wait for the answer to be read."""
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._wait_for_reader(self.transport.get_write_buffer_size())

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        for timer in (self._head, self._reading):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        begun = self.cycle is None or bool(self.conn.trailing_data[0])
        if self.conn.their_state is h11.IDLE and begun:
            if self._head is None:
                self._head = self.loop.call_later(HEAD_SECONDS, self.transport.abort)
        elif self._head is not None:
            self._head.cancel()
            self._head = None

    def _wait_for_reader(self, left: int) -> None:
        def look() -> None:
            now = self.transport.get_write_buffer_size()
            if now >= left:
                self.transport.abort()
            elif now:
                self._wait_for_reader(now)

        if self._reading is not None:
            self._reading.cancel()
        self._reading = self.loop.call_later(READ_SECONDS, look)


OPTIONS: dict[str, Any] = {
    "http": BoundedProtocol, "ws": "none", "loop": "asyncio", "access_log": False, "log_level": "warning",
    "server_header": False, "proxy_headers": False, "timeout_keep_alive": 15,
}  # fmt: skip
"""Of uvicorn."""

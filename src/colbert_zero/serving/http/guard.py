"""Around the API: who may ask, how much may be sent and how slowly, what every answer carries, and what is counted."""

import asyncio
import hmac
import ipaddress
import json
import logging
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from colbert_zero.serving.http.metrics import Metrics
from colbert_zero.serving.http.service import Limits

_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
]

_OPEN = ("/", "/health", "/ready", "/openapi.json")
"""Answered without the key, and files of the page: nothing of the index is in them."""

_LOG = logging.getLogger("uvicorn.error")

_DRAINED = 32
"""A body too large is still read, up to so many times what is allowed, so that its sender hears why it is refused."""

CLIENT_GONE = 499
"""Status that is counted of a request whose client did not wait."""


def is_local(name: str) -> bool:
    """Whether a name or address is of this machine alone.

    Example:
        >>> [is_local(name) for name in ("localhost", "127.0.0.2", "::1", "0.0.0.0", "127.0.0.1.evil.example")]
        [True, True, True, False, False]
    """
    try:
        return name.lower() == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Problem(Exception):
    """A request that cannot be answered, and why.

    Args:
        status: Of HTTP.
        code: A word for programs.
        message: For people.
        place: What of the request is wrong, `where.year`.
        retry: Seconds after which to try again.
    """

    def __init__(self, status: int, code: str, message: str, place: str | None = None, retry: int | None = None):
        super().__init__(message)
        self.status, self.retry = status, retry
        self.content = {"error": {"code": code, "message": message, "place": place}}

    @property
    def headers(self) -> dict[str, str]:
        """What of it is said in headers."""
        headers = {} if self.retry is None else {"retry-after": str(self.retry)}
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


class Guard:
    """ASGI middleware.

    Args:
        app: What it stands before.
        limits: Of bodies and time.
        metrics: Told of each request.
        key: That must be sent as `Authorization: Bearer KEY`; None: anyone may ask.
        local: Answer only requests to this machine's own names: a page from elsewhere, opened in a browser here, could
            otherwise ask by a name of its own that it lets point to 127.0.0.1 (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics, key: str | None, local: bool):
        self._app, self._limits, self._metrics, self._local = app, limits, metrics, local
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began = time.monotonic()
        status = CLIENT_GONE

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                caching = () if any(name == b"cache-control" for name, _ in message["headers"]) else (
                    (b"cache-control", b"no-store"),
                )  # fmt: skip
                message = {**message, "headers": [*message["headers"], *_HEADERS, *caching]}
            await send(message)

        deadline = began + self._limits.seconds
        scope.setdefault("state", {})["deadline"] = deadline
        try:
            self._admit(scope)
            body = await self._body(scope, receive, deadline)
            if body is not None:
                await self._app(scope, _replayed(body, receive), send_on)
        except Problem as error:
            await _answer(error, send_on)
        except Exception as error:
            if status != CLIENT_GONE:
                # An answer has begun; the connection ends before it does.
                raise
            _LOG.exception("%s %s", _method(scope), getattr(scope.get("route"), "path", "other"))
            name = type(error).__name__
            await _answer(Problem(500, "fault", f"a fault of the server ({name}); its log has more"), send_on)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self._metrics.request(_method(scope), path, status, time.monotonic() - began)
        return None

    def _admit(self, scope: Scope) -> None:
        """Refuse who may not ask.

        Raises:
            Problem: Why.
        """
        headers = dict(scope["headers"])
        if self._local and self._key is None:
            name = headers.get(b"host", b"").decode("latin-1").rsplit(":", 1)
            host = name[0] if len(name) == 2 and name[1].isdecimal() else ":".join(name)
            if not is_local(host.strip("[]")):
                raise Problem(
                    421, "wrong_host",
                    "this server answers to localhost and 127.0.0.1 alone; to serve other names start it with --key",
                    "Host",
                )  # fmt: skip
        if self._key is None or scope["path"] in _OPEN or scope["path"].startswith("/page/"):
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if not (scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._key)):
            raise Problem(401, "no_key", "send the server's key: Authorization: Bearer KEY", "Authorization")

    async def _body(self, scope: Scope, receive: Receive, deadline: float) -> bytes | None:
        """The whole body; None where its sender has gone.

        Raises:
            Problem: It is too large, or too slow.
        """
        most = self._limits.body_bytes
        length = dict(scope["headers"]).get(b"content-length", b"0")
        body, size = bytearray(), int(length) if length.isdigit() and len(length) < 20 else 0
        too_large = Problem(413, "too_large", f"the body is larger than {most:,} bytes; send less at once", "body")
        if size > most * _DRAINED:
            raise too_large
        read, more = 0, True
        while more:
            try:
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
            except TimeoutError:
                raise Problem(
                    408, "too_slow", f"the body did not arrive within {self._limits.seconds:g} s", "body"
                ) from None
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            read, more = read + len(part), message.get("more_body", False)
            if read > most * _DRAINED:
                raise too_large
            if read <= most:
                body += part
        if read > most:
            raise too_large
        return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _answer(error: Problem, send: Send) -> None:
    content = json.dumps(error.content).encode()
    headers = {"content-type": "application/json", "content-length": str(len(content)), **error.headers}
    encoded: list[tuple[bytes, bytes]] = [(name.encode(), value.encode()) for name, value in headers.items()]
    if error.status in (408, 413):
        # The rest of the body may still be on its way.
        encoded.append((b"connection", b"close"))
    start: dict[str, Any] = {"type": "http.response.start", "status": error.status, "headers": encoded}
    await send(start)
    await send({"type": "http.response.body", "body": content})


def _method(scope: Scope) -> str:
    """The method, of those that are known: what is counted must not grow by what is sent."""
    method: str = scope["method"]
    return method if method in ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH") else "other"

"""The edge of the service: what every request passes before a route sees it, and every answer on its way out.

Bodies are read whole here, within a size and a time, and refused where they nest too deeply, so that no route ever waits for a slow
client or parses what is built to be costly. Names and origins are checked, since a browser may be led to this address by any page.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import h11
import numpy as np
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from raystream.service.config import Limits, is_loopback
from raystream.service.metrics import Metrics
from raystream.service.problems import Problem

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; font-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
"""Set unless the answer sets them itself."""
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
HEAD_SECONDS = 15.0
"""For which a connection may wait without having sent the whole head of a request."""
_STEPS = np.zeros(256, np.int8)
_STEPS[[*b"[{"]], _STEPS[[*b"]}"]] = 1, -1
"""How much deeper a byte outside of texts leads."""
_log = logging.getLogger("raystream.service")


class Edge:
    """ASGI middleware, the outermost.

    Args:
        app: what it stands before.
        limits: of bodies.
        host: that the server listens on.
        hosts: further names by which it may be asked.
        metrics: told of each answer.
    """

    def __init__(self, app: ASGIApp, limits: Limits, host: str, hosts: list[str], metrics: Metrics) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics
        self._loopback = is_loopback(host)
        self._names = {host, "localhost", "127.0.0.1", "[::1]", "::1", *hosts} if self._loopback or hosts else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # no route speaks anything else
        exchange = _Exchange(scope, send, self._metrics)
        try:
            headers = _headers(scope)
            self._check_names(scope["method"], headers)
            body = await self._body(headers, receive)
            self._check_body(scope["method"], headers, body)
            await self._app(scope, _replayed(body, receive), exchange.send)
        except Problem as problem:
            await exchange.refuse(problem)
        except Exception:
            _log.exception("a defect of raystream's at %s %s", scope["method"], scope["path"])
            if exchange.status is None:
                await exchange.refuse(Problem(500, "the service failed; its log says where"))
        finally:
            exchange.end()

    def _check_names(self, method: str, headers: Mapping[str, str]) -> None:
        """Refuse a name that isn't this server's, as by a page that has its own name point here, and changes from other pages."""
        host = headers.get("host", "")
        if self._names is not None and _without_port(host) not in self._names:
            raise Problem(421, "the request is for a host of another name; the server's configuration lists names under hosts")
        if method in SAFE:
            return
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise Problem(403, "the request comes from a page of another origin")
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise Problem(403, "the request comes from a page of another origin")

    async def _body(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        limit = self._limits.body
        if "content-length" in headers and "transfer-encoding" in headers:
            raise Problem(400, "the request gives both Content-Length and Transfer-Encoding; send one of them")
        length = headers.get("content-length", "")
        if length and not (length.isascii() and length.isdigit()):
            raise Problem(400, "Content-Length is no number")
        if length and int(length) > limit:
            raise _too_large(limit)
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Problem(400, "the request broke off")
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise _too_large(limit)
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise Problem(408, f"the body did not come within {self._limits.body_seconds} seconds") from None

    def _check_body(self, method: str, headers: Mapping[str, str], body: bytes) -> None:
        if not body:
            return
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Problem(415, "expected a body of Content-Type: application/json")
        if body.count(b"[") + body.count(b"{") <= self._limits.depth:
            return
        # without what is escaped, every second piece between quotes is a text
        outside = b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
        if _STEPS[np.frombuffer(outside, np.uint8)].cumsum(dtype=np.int32).max(initial=0) > self._limits.depth:
            raise Problem(422, f"the body nests lists and objects more than {self._limits.depth} deep")


class HttpProtocol(H11Protocol):
    """HTTP as uvicorn speaks it, with heads of requests that are as bounded in size and time as bodies are.

    Of so many connections as a server has, one that sends nothing, or a byte now and then, takes one away from all others.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to look after the connection."""
        super().connection_made(transport)
        self.loop.call_later(HEAD_SECONDS, self._look, self.cycle)

    def _look(self, before: object) -> None:
        """Close the connection if it has begun no request since the last look, and waits for one."""
        if self.transport.is_closing():
            return
        if self.cycle is before and self.conn.their_state is h11.IDLE:
            self.transport.close()
        else:
            self.loop.call_later(HEAD_SECONDS, self._look, self.cycle)


class _Exchange:
    """One request with its answer: what is sent back, and what is noted of it."""

    def __init__(self, scope: Scope, send: Send, metrics: Metrics) -> None:
        self._scope, self._send, self._metrics = scope, send, metrics
        self._began = time.perf_counter()
        self._id = uuid.uuid4().hex
        self.status: int | None = None
        scope.setdefault("state", {})["request_id"] = self._id

    async def send(self, message: Message) -> None:
        """Pass a message on; the first with the headers of every answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = [(name.lower(), value) for name, value in message.get("headers", [])]
            there = {name for name, _ in given}
            more = {**SECURITY_HEADERS, "x-request-id": self._id}
            given += [(name.encode(), value.encode()) for name, value in more.items() if name.encode() not in there]
            message = {**message, "headers": given}
        await self._send(message)

    async def refuse(self, problem: Problem) -> None:
        """Answer with a problem, where nothing was answered yet."""
        if self.status is None:
            await problem.response()(self._scope, _nothing, self.send)

    def end(self) -> None:
        """Note how it went."""
        seconds = time.perf_counter() - self._began
        route = self._scope.get("route")
        path = getattr(route, "path", "other")
        status = self.status or 0
        self._metrics.answered(self._scope["method"], path, status, seconds)
        caller = self._scope["state"].get("caller")
        _log.info(
            "%s %s %s",
            self._scope["method"],
            self._scope["path"],
            status,
            extra={
                "facts": {
                    "request": self._id,
                    "method": self._scope["method"],
                    "path": self._scope["path"],
                    "status": status,
                    "seconds": round(seconds, 6),
                    "who": caller.owner if caller is not None else None,
                }
            },
        )


class JsonLines(logging.Formatter):
    """A log record as a line of JSON, so that nothing that a caller sends can be taken for another line."""

    def format(self, record: logging.LogRecord) -> str:
        found: dict[str, Any] = {"at": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname.lower()}
        found |= getattr(record, "facts", None) or {"message": record.getMessage()}
        if record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)
        return json.dumps(found, default=str)


def log_to_stderr() -> None:
    """Have the service's log, uvicorn's and raystream's own go to stderr, a line of JSON each."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name in ("raystream", "uvicorn"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def _too_large(limit: int) -> Problem:
    return Problem(413, f"the body has more than {limit} bytes", headers={"connection": "close"})


def _headers(scope: Scope) -> dict[str, str]:
    """Return the headers by name; nothing is served where one that decides something stands there twice, to be read in two ways."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key = name.decode("latin-1").lower()
        if key in found and key in ("host", "content-length", "content-type", "authorization", "origin", "idempotency-key"):
            raise Problem(400, f"the request has two headers {key}; send one")
        found[key] = value.decode("latin-1")
    return found


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def _replayed(body: bytes, receive: Receive) -> Callable[[], Any]:
    """Make a `receive` that gives the body that was read, and then whatever comes, such as that the client is gone."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


async def _nothing() -> Message:
    return {"type": "http.disconnect"}

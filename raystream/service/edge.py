"""The edge of the service: what requests pass, how problems are told, what is counted.

The edge of the service: what every request passes before a route sees it, and every answer on its way out.

Bodies are read whole here, within a size and a time, and refused where they nest too deeply, so that no route ever waits for a slow
client or parses what is built to be costly. Names and origins are checked, since a browser may be led to this address by any page.

What the service answers when it can't do what is asked: problem details (RFC 9457), with the path of each field that is wrong.

Figures of a server for Prometheus, in its text format.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import h11
import numpy as np
from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from raystream.errors import RaystreamError, StoreUnreachable
from raystream.query import Query
from raystream.service.config import Limits, is_loopback

MEDIA_TYPE = "application/problem+json"
_KEY = re.compile(r"([a-z_]+(?:\.[A-Za-z0-9_-]+)*)(?= |:|,|;|$)")


@dataclass(frozen=True)
class FieldError:
    """What is wrong with a field: its path in the body, such as `select.budget`, empty for the whole of it, and a sentence."""

    path: str
    detail: str

    @property
    def as_json(self) -> dict[str, str]:
        """With the path as a JSON pointer, too."""
        pointer = "".join(f"/{part.replace('~', '~0').replace('/', '~1')}" for part in self.path.split(".") if part)
        return {"path": self.path, "pointer": pointer, "detail": self.detail}


class Problem(Exception):
    """A request that isn't served.

    Args:
        status: of the answer.
        detail: one sentence, which the caller may know.
        errors: by field.
        headers: of the answer.
    """

    def __init__(
        self, status: int, detail: str, errors: Sequence[FieldError] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors, self.headers = status, detail, tuple(errors), dict(headers or {})

    def response(self) -> JSONResponse:
        """Make the answer."""
        return JSONResponse(self.body(), self.status, self.headers, MEDIA_TYPE)

    def body(self) -> dict[str, Any]:
        """Return the body of the answer."""
        title = HTTPStatus(self.status).phrase
        found: dict[str, Any] = {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail}
        return found | ({"errors": [error.as_json for error in self.errors]} if self.errors else {})


def unknown(what: str) -> Problem:
    """Make the answer for what isn't there, or belongs to others: the two look the same."""
    return Problem(404, f"there is no {what}")


def store_problem(request: Request, error: RaystreamError) -> Problem:
    """Make the answer for what the store can't give: the log has its reason, the caller hears that it is so."""
    _log.error("%s %s: %s", request.method, request.url.path, error)
    if isinstance(error, StoreUnreachable):
        return Problem(503, "the store doesn't answer for now", headers={"retry-after": "10"})
    return Problem(500, "what is kept of this can't be read; the server's log says why")


def wrong_fields(errors: Sequence[FieldError]) -> Problem:
    """Make the answer for a body that says what can't be."""
    first = errors[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Problem(422, f"{first.detail}{more}", errors)


def of_sentence(sentence: str) -> FieldError:
    """Say what is wrong, from a sentence about a query, which begins with the key that it is about."""
    match = _KEY.match(sentence)
    path = match[1] if match and match[1].partition(".")[0] in Query.model_fields else ""
    return FieldError(path, sentence)


async def answer(request: Request, error: Exception) -> JSONResponse:
    """Return the answer for a problem, for FastAPI."""
    assert isinstance(error, Problem)
    return error.response()


@dataclass(frozen=True)
class Described:
    """How problems look in the description of the service."""

    schema: dict[str, Any] = field(
        default_factory=lambda: {
            "type": "object",
            "required": ["type", "title", "status", "detail"],
            "properties": {
                "type": {"type": "string"},
                "title": {"type": "string"},
                "status": {"type": "integer"},
                "detail": {"type": "string"},
                "errors": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["path", "pointer", "detail"],
                        "properties": {name: {"type": "string"} for name in ("path", "pointer", "detail")},
                    },
                },
            },
        }
    )

    def responses(self, *statuses: int) -> dict[int | str, dict[str, Any]]:
        """Return those of a route."""
        content = {MEDIA_TYPE: {"schema": self.schema}}
        return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper ends, in seconds, of the classes of times that answers take."""
_HELP = {
    "raystream_requests_total": ("counter", "Answers, by method, route and status."),
    "raystream_request_seconds": ("histogram", "Seconds that answers took, by route."),
    "raystream_runs": ("gauge", "Queries that were submitted and haven't ended, by state."),
    "raystream_runs_started_total": ("counter", "Processes that this server started for queries."),
    "raystream_decided_rows_total": ("counter", "Rows that streams decided on by request."),
    "raystream_decide_batches_total": ("counter", "Batches in which they were scored."),
    "raystream_open_event_streams": ("gauge", "Streams of events that are open."),
}

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""A client may send any word, of which each would be kept."""

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counts of one server since it began."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, Counter[Labels]] = defaultdict(Counter)
        self._times: dict[str, list[int]] = {}
        self._sums: Counter[str] = Counter()

    def add(self, name: str, value: float = 1, **labels: str) -> None:
        """Add to a count."""
        with self._lock:
            self._values[name][tuple(sorted(labels.items()))] += value  # type: ignore[assignment]

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Note an answer."""
        self.add("raystream_requests_total", method=method if method in _METHODS else "other", route=route, status=str(status))
        with self._lock:
            counts = self._times.setdefault(route, [0] * (len(BUCKETS) + 1))
            counts[next((i for i, end in enumerate(BUCKETS) if seconds <= end), len(BUCKETS))] += 1
            self._sums[route] += seconds  # type: ignore[assignment]

    def text(self, gauges: Mapping[str, Mapping[str, int]]) -> str:
        """Write all of them, with what is looked up at this moment.

        Args:
            gauges: values by state, by name.
        """
        lines: list[str] = []
        with self._lock:
            for name, (kind, what) in _HELP.items():
                lines += [f"# HELP {name} {what}", f"# TYPE {name} {kind}"]
                if name == "raystream_request_seconds":
                    lines += self._histogram(name)
                for state, value in gauges.get(name, {}).items():
                    lines.append(f"{name}{_labels((('state', state),))} {value:g}")
                lines += [f"{name}{_labels(labels)} {value:g}" for labels, value in self._values[name].items()]
        return "\n".join(lines) + "\n"

    def _histogram(self, name: str) -> list[str]:
        lines = []
        for route, counts in self._times.items():
            below = 0
            for end, count in zip((*(f"{end:g}" for end in BUCKETS), "+Inf"), counts, strict=True):
                below += count
                lines.append(f"{name}_bucket{_labels((('le', end), ('route', route)))} {below}")
            of = _labels((("route", route),))
            lines += [f"{name}_sum{of} {self._sums[route]:.6g}", f"{name}_count{of} {below}"]
        return lines


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    escaped = ((name, value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")) for name, value in labels)
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"


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


Direct = Callable[[Scope, bytes], Awaitable[Response] | None]
_SECURITY = [(name.encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]


class Edge:
    """ASGI middleware, the outermost.

    Args:
        app: what it stands before.
        limits: of bodies.
        host: that the server listens on.
        hosts: further names by which it may be asked.
        metrics: told of each answer.
        direct: answers a request by itself, given its body, where it is one of hundreds a second: all that a framework does for each
            route takes as long as such an answer does. None where it isn't.
    """

    def __init__(self, app: ASGIApp, limits: Limits, host: str, hosts: list[str], metrics: Metrics, direct: Direct) -> None:
        self._app, self._limits, self._metrics, self._direct = app, limits, metrics, direct
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
            if (answering := self._direct(scope, body)) is None:
                await self._app(scope, _replayed(body, receive), exchange.send)
            else:
                await (await answering)(scope, receive, exchange.send)
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
            given += [header for header in (*_SECURITY, (b"x-request-id", self._id.encode())) if header[0] not in there]
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

"""`/v1/queries` and `/v1/plan`: ask, look, fetch, stop."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.sse import format_sse_event
from starlette.types import Receive, Scope, Send

from raystream.errors import QueryError
from raystream.service.config import Config
from raystream.service.edge import Described, FieldError, Metrics, Problem, unknown, wrong_fields
from raystream.service.formats import csv_pieces, file_pieces, json_pieces, preferred
from raystream.service.policy import Policy, read_json
from raystream.service.process import ProcessTask, for_callers
from raystream.service.runs import ENDED, Runs, digest_of, is_name
from raystream.service.scheduler import RunScheduler, spawned
from raystream.service.tokens import Caller, Callers
from raystream.store.events import EventLog, run_state
from raystream.store.gc import collect
from raystream.store.manifest import Manifest
from raystream.store.queries import query_folder, read_manifest
from raystream.store.result import committed_file

PAGE = 50
MOST = 200
PARQUET = "application/vnd.apache.parquet"
_PLAN_SECONDS = 300
_PLANS = 2
_LOOK_SECONDS = 0.5
_PING_SECONDS = 15.0
_FOREVER = 1e15
_OPERATORS = frozenset({"who", "host", "process", "process_began"})
"""What events say of others who asked for the same, and of the server; admins are told it."""
_described = Described()
_QUERY = {
    "type": "object",
    "description": "A query as its YAML file has it, without cluster, store.uri, storage options and trust.",
    "required": ["pool", "model", "select"],
    "properties": {name: {"type": "object"} for name in ("pool", "model", "acquire", "select", "store")},
}
_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": _QUERY}}}}
_STATE = {
    "type": "object",
    "required": ["id", "state"],
    "properties": {
        "id": {"type": "string"},
        "state": {"enum": ["queued", "running", *ENDED]},
        "query": {"type": ["string", "null"]},
        "error": {"type": ["string", "null"]},
        "exit_code": {"type": ["integer", "null"]},
        "at": {"type": ["string", "null"]},
    },
}


def _answer(schema: dict[str, Any], description: str = "The answer") -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


@dataclass
class _RunOrQuery:
    """What a path's id names: a run, a query, or both.

    Attributes:
        id: as it was given.
        run: its newest run that the caller asked for, if any.
        identities: the queries that the caller asked for; None: they may see whichever has the name.
        query: its name in the store, once it has one.
    """

    id: str
    run: str | None
    query: str | None
    identities: frozenset[str | None] | None


class QueryCalls:
    """What the routes do, each in a thread of its own."""

    def __init__(self, runs: Runs, policy: Policy, config: Config, scheduler: RunScheduler) -> None:
        self._runs, self._policy, self._config, self._scheduler = runs, policy, config, scheduler
        self._lock = threading.Lock()
        self._planning: set[str] = set()
        self._store = runs.store

    def submit(self, caller: Caller, body: bytes, key: str | None) -> dict[str, Any]:
        """Queue a query."""
        checked = self._policy.checked(read_json(body))
        if key is None:
            run = self._runs.submit(caller.owner, checked)
        else:
            if not 0 < len(key) <= 255 or not key.isprintable():
                raise Problem(400, "Idempotency-Key is no text of 1 to 255 printable characters")
            with self._runs.once(caller.owner, key, hashlib.sha256(body).hexdigest()) as once:
                if once.run is None:
                    once.run = self._runs.submit(caller.owner, checked)
                run = once.run
        self._scheduler.wake()
        return self.state(caller, run)

    def plan(self, caller: Caller, body: bytes) -> dict[str, Any]:
        """Return what a query would read and write."""
        checked = self._policy.checked(read_json(body))
        with self._lock:
            if caller.owner in self._planning:
                raise Problem(429, "a plan of yours is being made, one at a time", headers={"retry-after": "5"})
            if len(self._planning) >= _PLANS:
                raise Problem(429, f"{_PLANS} plans are being made, as many as may at a time", headers={"retry-after": "5"})
            self._planning.add(caller.owner)
        try:
            child = spawned(ProcessTask("plan", self._config.model_dump(mode="json"), query=checked.document), answers=True)
            try:
                said, _ = child.communicate(timeout=_PLAN_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.communicate()
                raise Problem(503, f"the plan took more than {_PLAN_SECONDS} seconds", headers={"retry-after": "60"}) from None
        finally:
            with self._lock:
                self._planning.discard(caller.owner)
        try:
            found = json.loads(said)
        except ValueError:
            raise Problem(500, "the plan's process ended without a word") from None
        if "plan" in found:
            return dict(found["plan"])
        if child.returncode == 1:
            raise Problem(500, found["error"])
        raise wrong_fields([FieldError("", found["error"])])

    def find(self, caller: Caller, asked: str) -> _RunOrQuery:
        """Find what an id names, provided that the caller may see it."""
        if not is_name(asked):
            raise unknown(f"query {asked[:100]!r}")
        runs, admin = self._runs, caller.may("admin")
        if runs.asked(asked, caller.owner) or (admin and runs.order(asked) is not None):
            return _RunOrQuery(asked, asked, runs.query(asked), None if admin else frozenset([runs.identity(asked)]))
        mine = [run for run in runs.of_query(asked) if admin or runs.asked(run, caller.owner)]
        if mine or (admin and self._store.names(query_folder(asked))):
            return _RunOrQuery(asked, mine[-1] if mine else None, asked, None if admin else frozenset(map(runs.identity, mine)))
        raise unknown(f"query {asked!r}")

    def state(self, caller: Caller, asked: str | _RunOrQuery) -> dict[str, Any]:
        """Return how far it is."""
        found = asked if isinstance(asked, _RunOrQuery) else self.find(caller, asked)
        told: dict[str, Any] = {"id": found.id, "query": found.query, "error": None, "exit_code": None, "at": None}
        if found.run is None:
            return told | self._progress(str(found.query))
        order, ended = self._runs.order(found.run) or {}, self._runs.ended(found.run)
        told |= {"at": order.get("at"), "state": self._runs.state(found.run)}
        if caller.may("admin"):
            told["owner"] = order.get("owner")
        if ended is not None:
            told |= {"query": ended.query or found.query, "error": ended.error, "exit_code": ended.exit_code}
        if told["state"] == "running" and found.query is not None:
            told |= {"progress": self._for_callers(self._progress(found.query))}
        if not caller.may("admin") and ended is None and not self._runs.wants(found.run, caller.owner):
            told["state"] = "stopped"  # for whoever withdrew; for others it goes on
        return told

    def _progress(self, query: str) -> dict[str, Any]:
        try:
            found = run_state(self._store, query).summary()
        except QueryError:
            return {"state": "queued"}
        found["state"] = found["state"] if found["state"] in ("queued", "running", *ENDED) else "stopped"
        return {key: value for key, value in found.items() if key not in ("name", "who")}

    def listed(self, caller: Caller, cursor: str | None, limit: int) -> dict[str, Any]:
        """List the caller's queries, the newest first; of admins, all."""
        entries = self._entries(caller)
        if cursor is not None:
            entries = [entry for entry in entries if f"{entry[0]}~{entry[1]}" < cursor]
        page = entries[:limit]
        more = len(entries) > limit
        items = [self.state(caller, run) for _, run in page]
        return {"queries": items, "next": f"{page[-1][0]}~{page[-1][1]}" if more else None}

    def _entries(self, caller: Caller) -> list[tuple[str, str]]:
        runs = self._runs
        if not caller.may("admin"):
            return runs.of_owner(caller.owner)
        newest: dict[str, str] = {}
        for owner in runs.owners():
            for at, run in runs.of_owner(owner):
                newest[run] = max(at, newest.get(run, ""))
        known = set(self._store.names("service/queries"))
        for entry in self._store.walk("queries"):
            name, _, file = entry.name.removeprefix("queries/").partition("/")
            if file == "manifest.json" and name not in known:  # asked for by other means
                newest[name] = datetime.fromtimestamp(entry.modified, UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        return sorted(((at, run) for run, at in newest.items()), reverse=True)

    def delete(self, caller: Caller, asked: str) -> int:
        """Stop a run, or drop what is committed; the status of the answer."""
        found = self.find(caller, asked)
        ended = found.run is not None and self._runs.ended(found.run) is not None
        if found.run is not None and not ended:
            if self._runs.asked(found.run, caller.owner):
                self._runs.withdraw(found.run, caller.owner)
            else:
                self._runs.stop(found.run, caller.owner)
            self._scheduler.wake()
            return 202
        if not caller.may("admin"):
            raise Problem(403, "it has ended; dropping a query needs a token of scope admin")
        if found.query is not None:
            # nothing else is old enough to be removed with it
            collect(self._store, drop=[found.query], older_than=_FOREVER, delete=True)
            self._runs.log.append("dropped", query=found.query, who=caller.owner)
        return 204

    def committed(self, caller: Caller, asked: str) -> Manifest:
        """Read the record of a committed query, the one that the caller asked for: another may have its name by other means."""
        found = self.find(caller, asked)
        manifest = None if found.query is None else read_manifest(self._store, found.query)
        if manifest is None or (found.identities is not None and digest_of(manifest.identity) not in found.identities):
            state = self.state(caller, found)["state"]
            waits = state in ("queued", "running")
            raise Problem(409, f"the query is {state}, so there is no selection yet" if waits else f"the query has {state}")
        return manifest

    def selection(self, caller: Caller, asked: str, accept: str, etag: str | None) -> Response:
        """Return the chosen rows, in the format that is accepted."""
        kind = preferred(accept, ("application/json", PARQUET, "text/csv"))
        if kind is None:
            raise Problem(406, f"expected Accept: application/json, {PARQUET} or text/csv")
        manifest = self.committed(caller, asked)
        name = manifest.query
        tag = f'"{manifest.selection.xxh3}-{kind.rpartition("/")[2]}"'
        headers = {"etag": tag, "vary": "Accept", "cache-control": "private, no-cache"}
        if etag is not None and tag in (part.strip() for part in etag.split(",")):
            return Response(status_code=304, headers=headers)
        path = committed_file(self._store, manifest, manifest.selection)
        if kind == "application/json":
            return StreamingResponse(json_pieces(name, path), media_type=kind, headers=headers)
        headers["content-disposition"] = f'attachment; filename="{name}.{"csv" if kind == "text/csv" else "parquet"}"'
        if kind == "text/csv":
            return StreamingResponse(csv_pieces(path), media_type=kind, headers=headers)
        headers["content-length"] = str(manifest.selection.size)
        return StreamingResponse(file_pieces(path), media_type=kind, headers=headers)

    def report(self, caller: Caller, asked: str) -> Response:
        """Return the report page."""
        name = self.committed(caller, asked).query
        data = self._store.read_if_there(f"{query_folder(name)}/report.html")
        if data is None:
            raise unknown(f"report of query {asked!r} yet")
        # the page carries its own style; no script of it, and nothing that pool values could smuggle in, ever runs
        policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"
        return HTMLResponse(data, headers={"content-security-policy": policy})

    def news(self, found: _RunOrQuery, after: tuple[int, int]) -> tuple[list[tuple[tuple[int, int], dict[str, Any]]], bool]:
        """Return what came after these events of a run's and its query's logs, and whether nothing more will."""
        ended = found.run is None or self._runs.ended(found.run) is not None
        own, of_query = after
        told: list[tuple[tuple[int, int], dict[str, Any]]] = []
        if found.query is None and found.run is not None:
            found.query = self._runs.query(found.run)
        late: list[dict[str, Any]] = []
        for event in self._runs.events(found.run).read(own) if found.run is not None else []:
            if event["kind"] in ENDED:
                late.append(event)  # what it ended after comes first
                continue
            own = event["n"]
            told.append(((own, of_query), event))
        if found.query is not None:
            for event in EventLog(self._store, query_folder(found.query)).read(of_query):
                of_query = event["n"]
                told.append(((own, of_query), event))
        for event in late:
            own = event["n"]
            told.append(((own, of_query), event))
        if found.identities is None:
            return told, ended
        return [(place, self._for_callers(event)) for place, event in told], ended

    def _for_callers(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Return what a log says, without what only the server's operators may know."""
        told = {key: value for key, value in facts.items() if key not in _OPERATORS}
        return told | ({"error": for_callers(told["error"], self._config)} if isinstance(told.get("error"), str) else {})


def query_router(
    runs: Runs, policy: Policy, config: Config, callers: Callers, scheduler: RunScheduler, metrics: Metrics
) -> APIRouter:
    """Make the routes."""
    router = APIRouter(prefix="/v1", tags=["queries"])
    queries = QueryCalls(runs, policy, config, scheduler)
    problems = _described.responses

    @router.post(
        "/queries",
        status_code=202,
        openapi_extra=_BODY,
        responses={202: _answer(_STATE), **problems(400, 401, 403, 408, 409, 413, 415, 422, 429)},
    )
    async def submit(request: Request) -> JSONResponse:
        """Ask which rows to label next. The same question, while it hasn't ended, is one run."""
        caller = callers.of(request, "submit")
        body, key = await request.body(), request.headers.get("idempotency-key")
        state = await run_in_threadpool(queries.submit, caller, body, key)
        return JSONResponse(state, 202, {"location": f"/v1/queries/{state['id']}"})

    @router.post(
        "/plan",
        openapi_extra=_BODY,
        responses={200: _answer({"type": "object"}), **problems(400, 401, 403, 408, 413, 415, 422, 429, 500, 503)},
    )
    async def plan(request: Request) -> JSONResponse:
        """What a query would read and write, and about how long it takes."""
        caller = callers.of(request, "submit")
        return JSONResponse(await run_in_threadpool(queries.plan, caller, await request.body()))

    listed = {"type": "object", "properties": {"queries": {"type": "array", "items": _STATE}, "next": {"type": ["string", "null"]}}}

    @router.get("/queries", responses={200: _answer(listed), **problems(400, 401, 422, 429)}, openapi_extra={"parameters": _LISTING})
    def queries_of_caller(request: Request) -> JSONResponse:
        """The caller's queries, the newest first; `next` is the cursor of the next page."""
        caller = callers.of(request, "read")
        cursor = request.query_params.get("cursor")
        if cursor is not None and not (len(cursor) < 200 and cursor.isprintable()):
            raise wrong_fields([FieldError("cursor", "cursor is none that a page gave as next")])
        text = request.query_params.get("limit", str(PAGE))
        limit = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
        if not 1 <= limit <= MOST:
            raise wrong_fields([FieldError("limit", f"limit is no whole number from 1 to {MOST}")])
        return JSONResponse(queries.listed(caller, cursor, limit))

    @router.get("/queries/{id}", responses={200: _answer(_STATE), **problems(401, 404, 429)})
    def state(request: Request, id: str) -> JSONResponse:
        """How far a query is."""
        return JSONResponse(queries.state(callers.of(request, "read"), id))

    @router.delete(
        "/queries/{id}",
        status_code=202,
        responses={202: _answer(_STATE), 204: {"description": "It is dropped"}, **problems(401, 403, 404, 429)},
    )
    def delete(request: Request, id: str) -> Response:
        """Stop a query that hasn't ended; others who asked for the same keep it. One that has is dropped, by admins."""
        caller = callers.of(request, "submit")
        if queries.delete(caller, id) == 204:
            return Response(status_code=204)
        return JSONResponse(queries.state(caller, id), 202)

    _add_results(router, queries, callers, runs)
    _add_events(router, queries, callers, config, metrics)
    return router


def _add_results(router: APIRouter, queries: QueryCalls, callers: Callers, runs: Runs) -> None:
    """Add the routes of what a committed query left."""
    problems = _described.responses
    rows = {"type": "object", "required": ["query", "rows"], "properties": {"rows": {"type": "array", "items": {"type": "object"}}}}
    formats = _answer(rows) | {
        "content": {
            "application/json": {"schema": rows},
            PARQUET: {"schema": {"type": "string", "format": "binary"}},
            "text/csv": {"schema": {"type": "string"}},
        }
    }

    @router.get("/queries/{id}/selection", responses={200: formats, 304: {"description": "Unchanged"}, **problems(401, 404, 406, 409, 429)})
    def selection(request: Request, id: str) -> Response:
        """The chosen rows, the best first, as JSON, Parquet or CSV; `turn` and `probability` say how they were drawn."""
        caller = callers.of(request, "read")
        return queries.selection(caller, id, request.headers.get("accept", "*/*"), request.headers.get("if-none-match"))

    @router.get("/queries/{id}/manifest", responses={200: _answer({"type": "object"}), **problems(401, 404, 409, 429)})
    def manifest(request: Request, id: str) -> Response:
        """The record of a committed query: how it came about, what was counted, certificate, warnings."""
        name = queries.committed(callers.of(request, "read"), id).query
        return Response(runs.store.read(f"{query_folder(name)}/manifest.json"), media_type="application/json")

    page = {"description": "The page", "content": {"text/html": {"schema": {"type": "string"}}}}

    @router.get("/queries/{id}/report", response_class=HTMLResponse, responses={200: page, **problems(401, 404, 409, 429)})
    def report(request: Request, id: str) -> Response:
        """The report of a committed query."""
        return queries.report(callers.of(request, "read"), id)


def _add_events(router: APIRouter, queries: QueryCalls, callers: Callers, config: Config, metrics: Metrics) -> None:
    """Add the route of what happens to a query."""
    streams: Counter[str] = Counter()
    problems = _described.responses
    told = {"description": "Server-sent events", "content": {"text/event-stream": {"schema": {"type": "string"}}}}

    @router.get(
        "/queries/{id}/events",
        response_class=StreamingResponse,
        responses={200: told, 204: {"description": "Nothing more will come"}, **problems(400, 401, 404, 429)},
    )
    async def events(request: Request, id: str) -> Response:
        """What happens to a query, until it ends; `Last-Event-ID` goes on behind an event."""
        caller = callers.of(request, "read")
        after = _event_id(request.headers.get("last-event-id"))
        found = await run_in_threadpool(queries.find, caller, id)
        news, ended = await run_in_threadpool(queries.news, found, after)
        if ended and not news:
            return Response(status_code=204)  # a browser that came back stops asking
        if streams[caller.owner] >= config.limits.streams:
            raise Problem(429, f"{streams[caller.owner]} streams of events are open, as many as may", headers={"retry-after": "5"})

        def counted(by: int) -> None:
            streams[caller.owner] += by
            metrics.add("raystream_open_event_streams", by)

        counted(1)  # at once: many may be asked for before the first of them begins
        return _Events(_told(queries, found, after, lambda: callers.of(request, "read")), lambda: counted(-1))


_LISTING = [
    {"name": "cursor", "in": "query", "required": False, "schema": {"type": "string"}},
    {"name": "limit", "in": "query", "required": False, "schema": {"type": "integer", "minimum": 1, "maximum": MOST, "default": PAGE}},
]


class _Events(StreamingResponse):
    """A stream of events.

    Args:
        content: its parts.
        ended: called when nothing more is sent, whether or not anything was.
    """

    def __init__(self, content: AsyncIterator[bytes], ended: Callable[[], None]) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


async def _told(queries: QueryCalls, found: _RunOrQuery, after: tuple[int, int], still: Callable[[], object]) -> AsyncIterator[bytes]:
    """Yield the events as they come, and a comment now and then; end with the run, or when the token does."""
    waited = 0.0
    try:
        while True:
            news, ended = await run_in_threadpool(queries.news, found, after)
            for after, event in news:
                yield format_sse_event(data_str=json.dumps(event), event=str(event["kind"]), id=f"{after[0]}.{after[1]}")
            if ended:
                return
            await asyncio.sleep(_LOOK_SECONDS)
            waited += _LOOK_SECONDS
            if waited >= _PING_SECONDS:
                still()
                yield b": \n\n"
                waited = 0.0
    except Problem:
        return


def _event_id(text: str | None) -> tuple[int, int]:
    if text is None or text == "":
        return 0, 0
    own, dot, query = text.partition(".")
    if not (dot and all(part.isascii() and part.isdigit() and len(part) < 16 for part in (own, query))):
        raise Problem(400, "Last-Event-ID is none of this stream's")
    return int(own), int(query)

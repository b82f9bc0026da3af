"""Streams, loops and simulations over HTTP: decisions on rows as they come, and records to read.

`POST /v1/streams/{name}/decide`: decides on rows as they come, with the stream's model kept loaded, several requests at a time.

`/v1/loops`, `/v1/simulations`, `/v1/streams`: what the store holds of them, to be read by any token.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import logging
import math
import queue
import threading
import time
from collections.abc import Awaitable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.types import Scope

from raystream.errors import DataError, QueryError, RaystreamError
from raystream.service.config import Config
from raystream.service.edge import Described, Direct, FieldError, Metrics, Problem, store_problem, unknown, wrong_fields
from raystream.service.formats import rows_of
from raystream.service.policy import read_json
from raystream.service.runs import is_name
from raystream.service.stream_model import MOST_ROWS, Found, Waiting, WarmModel, checked
from raystream.service.tokens import Callers
from raystream.store.protocol import Store
from raystream.store.queries import read_parquet

BATCH_ROWS = 4096
"""Of the requests that are scored together, about."""
_WAITING = 2048
_WAITING_BYTES = 1 << 30
"""Of the tensors of requests that wait, beside one that is larger itself."""
_LOOK_SECONDS = 5.0
"""Between looks, while nobody asks, whether what was answered is to have its file of decisions."""
_QUICK_SECONDS, _FEW_ROWS = 0.005, 8
"""A decision on so few rows that takes no longer, the disk included, holds up other requests less than waking threads does."""
_LATELY, _AT_MOST = 1 / 8, 4
"""What the latest decision counts for in how long they take, and for how many times `_QUICK_SECONDS` it may count: one that the disk held
up, for however long, is no reason to wake threads for the next."""
_APART_SECONDS, _IN_A_ROW = 0.001, 32
"""Of requests that come closer upon each other than this, more are better decided on together."""
_LEFT_SECONDS = 60.0
"""For which no request is decided on in its own thread after one that couldn't be."""
_SETTLERS = 2
"""Threads that wait for the disk: while one does, what comes meanwhile need not wait for it first."""
_log = logging.getLogger("raystream.service")
_described = Described()
_in_order = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
_REQUEST = {
    "type": "object",
    "required": ["request_id", "rows"],
    "properties": {
        "request_id": {"type": "string", "minLength": 1, "maxLength": 128},
        "rows": {"type": "array", "minItems": 1, "maxItems": MOST_ROWS, "items": {"type": "object"}},
    },
    "additionalProperties": False,
}
_DECIDED = {
    "type": "object",
    "required": ["request_id", "decisions", "seen", "chosen"],
    "properties": {"decisions": {"type": "array", "items": {"type": "object"}}},
}


class Deciders:
    """The streams that a server decides on."""

    def __init__(self, config: Config, store: Store, metrics: Metrics) -> None:
        self._deciders = {name: Decider(name, config, store, metrics) for name in config.streams}

    def load(self, *, wait: bool = False, stays: bool = False) -> None:
        """Have every model loaded; until it is, requests are told to come back.

        Args:
            wait: for them.
            stays: the process is this server's: what it holds once a model is loaded is no more looked through for garbage, which takes a
                tenth of a second each time, for which all requests would wait.
        """
        for decider in self._deciders.values():
            loading = decider.load()
            if stays:
                loading.add_done_callback(_keep_all)
            if wait:
                loading.result()

    def close(self) -> None:
        """End their threads, once what waits is decided on."""
        for decider in self._deciders.values():
            decider.close()

    def router(self, callers: Callers) -> APIRouter:
        """Make the route, which describes what `direct` answers, and answers it where the server stands below a path of another's."""
        router = APIRouter(prefix="/v1", tags=["streams"])
        answers = {200: {"description": "The decisions, which are in the store", "content": {"application/json": {"schema": _DECIDED}}}}

        @router.post(
            "/streams/{name}/decide",
            openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": _REQUEST}}}},
            responses={**answers, **_described.responses(400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503)},  # type: ignore[dict-item]
        )
        async def decide(request: Request, name: str) -> JSONResponse:
            """Decide on rows, once for each request_id: the same one again gets the same answer."""
            return await self._answer(request, name, await request.body(), callers)

        return router

    def direct(self, callers: Callers) -> Direct:
        """Make what answers such requests without the framework's routes."""
        route = next(one for one in self.router(callers).routes if isinstance(one, APIRoute))
        before, _, after = route.path.partition("{name}")

        def answering(scope: Scope, body: bytes) -> Awaitable[JSONResponse] | None:
            path: str = scope["path"]
            if scope["method"] != "POST" or not (path.startswith(before) and path.endswith(after)) or scope.get("root_path"):
                return None
            name = path[len(before) : -len(after)]
            if not name or "/" in name:
                return None
            scope["route"] = route
            return self._answer_or_problem(Request(scope), name, body, callers)

        return answering

    async def _answer_or_problem(self, request: Request, name: str, body: bytes, callers: Callers) -> JSONResponse:
        try:
            return await self._answer(request, name, body, callers)
        except RaystreamError as error:
            raise store_problem(request, error) from error

    async def _answer(self, request: Request, name: str, body: bytes, callers: Callers) -> JSONResponse:
        callers.of(request, "submit")
        decider = self._deciders.get(name)
        if decider is None:
            raise unknown(f"stream {name[:100]!r} that this server decides on")
        given = read_json(body)
        if decider.decodes:  # for so long that other requests would wait
            waiting = await asyncio.get_running_loop().run_in_executor(decider.reader, decider.decide, given)
        else:
            waiting = decider.decide(given, at_once=True)
        return JSONResponse(waiting.result() if waiting.done() else await asyncio.wrap_future(waiting))


class Decider:
    """One stream: requests in, decisions out, in the order in which they came.

    One thread scores and decides, so that order is one; others wait for the disk, each for all that was decided until it began to. While
    nobody waits and that is quick, a request is decided on in the thread that it came in: to wake three others takes longer.

    Attributes:
        reader: the one thread that makes tensors of rows where that takes long.
    """

    def __init__(self, name: str, config: Config, store: Store, metrics: Metrics) -> None:
        self._name, self._config, self._store, self._metrics = name, config, store, metrics
        self._queue: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
        self._written: queue.SimpleQueue[_WrittenBatch | None] = queue.SimpleQueue()
        self._lock, self._deciding = threading.Lock(), threading.Lock()
        self._model: WarmModel | None = None
        self._threads: list[threading.Thread] = []
        self._loading: Future[WarmModel] | None = None
        self._held = self._waiting = 0
        # seconds that a decision on few rows and a wait for the disk take lately, wherever they are made; inf before the first
        self._took = self._synced_in = math.inf
        # for the thread that requests come in: when the last was through, how many came right after each other, and when one is tried again
        self._last, self._close, self._try_at = 0.0, 0, 0.0
        self.reader = ThreadPoolExecutor(1, thread_name_prefix="raystream-read")

    @property
    def decodes(self) -> bool:
        """Whether making tensors of rows may take long: of pictures, or by a function of the user's."""
        with self._lock:
            return self._model is not None and self._model.decodes

    def decide(self, body: object, *, at_once: bool = False) -> Future[dict[str, Any]]:
        """Return the decisions on a request's rows, once they are in the store; for one thread.

        Args:
            body: of the request.
            at_once: they may be made in this thread, if nobody waits and that is quick.

        Raises:
            Problem: the request is none; the model isn't loaded yet, or can't be.
        """
        request, rows = checked(body)
        model = self._loaded()
        ids, inputs = model.read(rows)
        answer: Future[dict[str, Any]] = Future()
        asked = hashlib.sha256(_in_order(rows).encode()).hexdigest()[:32]
        waiting = Waiting(request, asked, ids, inputs, answer)
        with self._lock:
            full = self._waiting >= _WAITING or (self._held and self._held + waiting.bytes > _WAITING_BYTES)
            if not full:
                self._held, self._waiting = self._held + waiting.bytes, self._waiting + 1
            alone = self._waiting == 1
        if full:
            raise Problem(429, "as many requests wait for their decisions as may", headers={"retry-after": "1"})
        if not (at_once and alone and self._decided_at_once(model, waiting)):
            self._queue.put(waiting)
        return answer

    def _decided_at_once(self, model: WarmModel, waiting: Waiting) -> bool:
        """Decide on a request in this thread; False if the others are to do it."""
        began = time.monotonic()
        self._close = self._close + 1 if began < self._last + _APART_SECONDS else 0
        self._last = began
        quick = self._took + self._synced_in <= _QUICK_SECONDS and len(waiting.ids) <= _FEW_ROWS and began >= self._try_at
        if not quick or self._close >= _IN_A_ROW or not self._deciding.acquire(blocking=False):
            return False
        try:
            if not model.at_hand(waiting):
                return False
            found = self._timed(model, [waiting])
        except Exception:
            self._try_at = time.monotonic() + _LEFT_SECONDS
            return False  # the others find out why
        finally:
            self._deciding.release()
        self._count(len(waiting.ids))
        if self._kept(found):
            self._answer([waiting], found)
        else:
            self._written.put(_WrittenBatch([waiting], found))
        self._last = time.monotonic()
        return True

    def _timed(self, model: WarmModel, batch: list[Waiting]) -> Found:
        """Decide on some requests, and note how long that took where they are of few rows."""
        began = time.monotonic()
        found = model.decide(batch)
        if sum(len(waiting.ids) for waiting in batch) <= _FEW_ROWS:
            self._took = _lately(self._took, time.monotonic() - began)
        return found

    def _kept(self, found: Found) -> bool:
        """Wait for the disk, and note for how long; False if what was decided may not count."""
        began = time.monotonic()
        kept = found.synced()
        self._synced_in = _lately(self._synced_in, time.monotonic() - began)
        return kept

    def _count(self, rows: int) -> None:
        self._metrics.add("raystream_decide_batches_total", stream=self._name)
        self._metrics.add("raystream_decided_rows_total", rows, stream=self._name)

    def close(self) -> None:
        """End the threads."""
        with self._lock:
            threads, model = self._threads, self._model
        self._queue.put(None)
        for thread in threads:
            thread.join(10)
        self.reader.shutdown(wait=False)
        if model is not None:
            model.close()

    def load(self) -> Future[WarmModel]:
        """Load the model in a thread of its own, unless that was begun."""
        with self._lock:
            if self._loading is None:
                self._loading = Future()
                threading.Thread(target=self._load, args=(self._loading,), name="raystream-load", daemon=True).start()
            return self._loading

    def _loaded(self) -> WarmModel:
        loading = self.load()
        if not loading.done():
            raise Problem(503, "the stream's model is being loaded", headers={"retry-after": "1"})
        error = loading.exception()
        if error is None:
            return loading.result()
        with self._lock:
            self._loading = None  # the next request tries again
        _log.error("stream %s can't be decided on: %s", self._name, error)
        raise Problem(503, f"stream {self._name} can't be decided on; the server's log says why", headers={"retry-after": "30"})

    def _load(self, loading: Future[WarmModel]) -> None:
        try:
            model = WarmModel(self._name, self._config, self._store)
        except BaseException as error:
            loading.set_exception(error)
            return
        with self._lock:
            self._model = model
            self._threads = [threading.Thread(target=self._go, args=(model,), name="raystream-decide", daemon=True)]
            self._threads += [
                threading.Thread(target=self._settle, args=(model,), name="raystream-settle", daemon=True) for _ in range(_SETTLERS)
            ]
            for thread in self._threads:
                thread.start()
        loading.set_result(model)

    def _go(self, model: WarmModel) -> None:
        ends = False
        while not ends:
            try:
                first = self._queue.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                self._fold(model, due=True)  # nobody waits, and what was answered is to be found among the decisions
                continue
            batch, rows = [] if first is None else [first], 0 if first is None else len(first.ids)
            ends = first is None
            while not ends and rows < BATCH_ROWS:
                try:
                    more = self._queue.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    ends = True
                else:
                    batch.append(more)
                    rows += len(more.ids)
            if batch:
                self._decide(model, batch)
                self._count(rows)
        for _ in range(_SETTLERS):
            self._written.put(None)
        self._fold(model)

    def _decide(self, model: WarmModel, batch: list[Waiting]) -> None:
        """Decide on some requests, and have the disk waited for."""
        try:
            with self._deciding:
                found = self._timed(model, batch)
        except Exception:
            self._one_by_one(model, batch)
            return
        if found.written.segment is None:
            self._answer(batch, found)
        else:
            self._written.put(_WrittenBatch(batch, found))

    def _settle(self, model: WarmModel) -> None:
        while self._settle_next(model):
            pass

    def _settle_next(self, model: WarmModel) -> bool:
        """Wait for the disk, then answer; whatever was decided before it is asked is on it afterwards. False at the end.

        Once it returns, this thread holds no file of the log any more.
        """
        ends = False
        some: list[_WrittenBatch] = []
        while not ends:
            try:
                one = self._written.get(block=not some)
            except queue.Empty:
                break
            if one is None:
                ends = True
            else:
                some.append(one)
        kept: dict[int, bool] = {}
        for one in some[::-1]:  # the last was written last
            segment = id(one.found.written.segment)
            if segment not in kept:
                kept[segment] = self._kept(one.found)
        for one in some:
            if kept[id(one.found.written.segment)]:
                self._answer(one.requests, one.found)
            else:
                self._one_by_one(model, one.requests)
        return not ends

    def _one_by_one(self, model: WarmModel, batch: list[Waiting]) -> None:
        """Decide on each request by itself where that failed for all of them, so that one can't spoil the others."""
        for waiting in batch:
            try:
                while True:
                    with self._deciding:
                        found = model.decide([waiting])
                    if found.written.sync():
                        break
            except Exception as error:
                if not isinstance(error, RaystreamError):
                    _log.exception("a defect of raystream's in the stream %s", self._name)
                self._tell([waiting], [_problem(error)])
            else:
                self._answer([waiting], found)

    def _answer(self, batch: list[Waiting], found: Found) -> None:
        answers: list[dict[str, Any] | Problem]
        try:
            answers = [_taken(one) if isinstance(one, QueryError) else one for one in found.answers()]
        except Exception as error:  # who waits must hear of it, and count as waiting no more
            _log.exception("a defect of raystream's in the stream %s", self._name)
            answers = [_problem(error)] * len(batch)
        self._tell(batch, answers)

    def _tell(self, batch: list[Waiting], answers: list[dict[str, Any] | Problem]) -> None:
        with self._lock:
            self._waiting -= len(batch)
            self._held -= sum(waiting.bytes for waiting in batch)
        for waiting, answer in zip(batch, answers, strict=True):
            if not waiting.answer.set_running_or_notify_cancel():
                continue  # nobody waits for it any more
            if isinstance(answer, Problem):
                waiting.answer.set_exception(answer)
            else:
                waiting.answer.set_result(answer)

    def _fold(self, model: WarmModel, *, due: bool = False) -> None:
        try:
            with self._deciding:
                model.fold(due=due)
        except RaystreamError as error:
            _log.warning("the decisions of stream %s stay in its log for now: %s", self._name, error)
        except Exception:
            _log.exception("a defect of raystream's in the stream %s", self._name)


@dataclass
class _WrittenBatch:
    """Requests that were decided on together, and may be answered once the disk has what was."""

    requests: list[Waiting]
    found: Found


def _lately(before: float, seconds: float) -> float:
    """Take in how long something took the last time."""
    seconds = min(seconds, _AT_MOST * _QUICK_SECONDS)
    return seconds if math.isinf(before) else before + (seconds - before) * _LATELY


def _keep_all(_: object) -> None:
    gc.collect()
    gc.freeze()


def _taken(error: QueryError) -> Problem:
    return wrong_fields([FieldError("request_id", str(error))])


def _problem(error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, DataError | QueryError) and not isinstance(error, OSError):
        return wrong_fields([FieldError("rows", str(error))])
    return Problem(503, "the decisions could not be kept; ask again with the same request_id", headers={"retry-after": "1"})


_OBJECT = {"type": "object"}


def record_router(store: Store, callers: Callers) -> APIRouter:
    """Make the routes."""
    router = APIRouter(prefix="/v1", tags=["records"])
    responses = _described.responses(401, 429)
    content: dict[int | str, dict[str, Any]] = {200: {"description": "The answer", "content": {"application/json": {"schema": _OBJECT}}}}

    def names(request: Request, folder: str) -> JSONResponse:
        callers.of(request, "read")
        return JSONResponse({folder: [{"name": name} for name in store.names(folder) if not name.startswith(".")]})

    @router.get("/loops", responses={**content, **responses})
    def loops(request: Request) -> JSONResponse:
        """The loops of the store."""
        return names(request, "loops")

    @router.get("/loops/{name}", responses={**content, **responses, **_described.responses(404)})
    def loop(request: Request, name: str) -> JSONResponse:
        """The rounds of a loop with their metrics."""
        callers.of(request, "read")
        if not is_name(name) or not store.names(f"loops/{name}"):
            raise unknown(f"loop {name[:100]!r}")
        data = store.read_if_there(f"loops/{name}/history.parquet")
        return JSONResponse({"name": name, "rounds": [] if data is None else rows_of(read_parquet(data))})

    @router.get("/simulations", responses={**content, **responses})
    def simulations(request: Request) -> JSONResponse:
        """The simulations of the store."""
        return names(request, "simulations")

    @router.get("/simulations/{name}", responses={**content, **responses, **_described.responses(404)})
    def simulation(request: Request, name: str) -> JSONResponse:
        """What a simulation found of each strategy."""
        callers.of(request, "read")
        data = store.read_if_there(f"simulations/{name}/summary.parquet") if is_name(name) else None
        if data is None:
            raise unknown(f"simulation {name[:100]!r}")
        return JSONResponse({"name": name, "strategies": rows_of(read_parquet(data))})

    @router.get("/streams", responses={**content, **responses})
    def streams(request: Request) -> JSONResponse:
        """The streams of the store."""
        return names(request, "streams")

    return router

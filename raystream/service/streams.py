"""`POST /v1/streams/{name}/decide`: decides on rows as they come, with the stream's model kept loaded, several requests at a time."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import logging
import queue
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from raystream.errors import DataError, QueryError, RaystreamError
from raystream.loop.streams.log import StreamLog
from raystream.loop.streams.requests import RequestedRows, StreamRequest
from raystream.pool.columns import Column, known_shape
from raystream.pool.reader import BadRowsError, tensors_of
from raystream.query.stream import Stream
from raystream.scoring.batch_reader import preparation
from raystream.scoring.plan import resolve
from raystream.scoring.worker import Worker
from raystream.service.callers import Callers
from raystream.service.config import Config
from raystream.service.metrics import Metrics
from raystream.service.policy import read_json
from raystream.service.problems import Described, FieldError, Problem, unknown, wrong_fields
from raystream.store.life import SignOfLife
from raystream.store.protocol import Store

MOST_ROWS = 1024
"""Of one request."""
BATCH_ROWS = 4096
"""Of the requests that are scored together, about."""
_WAITING = 2048
_WAITING_BYTES = 1 << 30
"""Of the tensors of requests that wait, beside one that is larger itself."""
_log = logging.getLogger("raystream.service")
_described = Described()
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

    def load(self, *, wait: bool = False) -> None:
        """Have every model loaded; until it is, requests are told to come back."""
        for decider in self._deciders.values():
            loading = decider.load()
            if wait:
                loading.result()

    def close(self) -> None:
        """End their threads, once what waits is decided on."""
        for decider in self._deciders.values():
            decider.close()

    def router(self, callers: Callers) -> APIRouter:
        """Make the route."""
        router = APIRouter(prefix="/v1", tags=["streams"])
        answers = {200: {"description": "The decisions, which are in the store", "content": {"application/json": {"schema": _DECIDED}}}}

        @router.post(
            "/streams/{name}/decide",
            openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": _REQUEST}}}},
            responses={**answers, **_described.responses(400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503)},  # type: ignore[dict-item]
        )
        async def decide(request: Request, name: str) -> JSONResponse:
            """Decide on rows, once for each request_id: the same one again gets the same answer."""
            callers.of(request, "submit")
            decider = self._deciders.get(name)
            if decider is None:
                raise unknown(f"stream {name[:100]!r} that this server decides on")
            body = read_json(await request.body())
            if decider.decodes:  # for so long that other requests would wait
                waiting = await asyncio.get_running_loop().run_in_executor(decider.reader, decider.decide, body)
            else:
                waiting = decider.decide(body)
            answer: dict[str, Any] = await asyncio.wrap_future(waiting)
            return JSONResponse(answer)

        return router


@dataclass
class _WaitingRequest:
    """A request with where its answer goes."""

    request: str
    asked: str
    ids: pa.Array
    inputs: tuple[np.ndarray, ...]
    answer: Future[dict[str, Any]]

    @property
    def bytes(self) -> int:
        """Of its tensors."""
        return sum(one.nbytes for one in self.inputs)


class Decider:
    """One stream: requests in, decisions out, in the order in which they came.

    Attributes:
        reader: the one thread that makes tensors of rows where that takes long.
    """

    def __init__(self, name: str, config: Config, store: Store, metrics: Metrics) -> None:
        self._name, self._config, self._store, self._metrics = name, config, store, metrics
        self._queue: queue.Queue[_WaitingRequest | None] = queue.Queue(_WAITING)
        self._lock = threading.Lock()
        self._model: _StreamModel | None = None
        self._thread: threading.Thread | None = None
        self._loading: Future[_StreamModel] | None = None
        self._held = 0
        self.reader = ThreadPoolExecutor(1, thread_name_prefix="raystream-read")

    @property
    def decodes(self) -> bool:
        """Whether making tensors of rows may take long: of pictures, or by a function of the user's."""
        with self._lock:
            return self._model is not None and self._model.decodes

    def decide(self, body: object) -> Future[dict[str, Any]]:
        """Return the decisions on a request's rows, once they are in the store.

        Raises:
            Problem: the request is none; the model isn't loaded yet, or can't be.
        """
        request, rows = _checked(body)
        model = self._loaded()
        ids, inputs = model.read(rows)
        answer: Future[dict[str, Any]] = Future()
        asked = hashlib.sha256(json.dumps(rows, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]
        waiting = _WaitingRequest(request, asked, ids, inputs, answer)
        with self._lock:
            full = self._queue.full() or (self._held and self._held + waiting.bytes > _WAITING_BYTES)
            if not full:
                self._held += waiting.bytes
                self._queue.put_nowait(waiting)
        if full:
            raise Problem(429, "as many requests wait for their decisions as may", headers={"retry-after": "1"})
        return answer

    def close(self) -> None:
        """End the thread."""
        with self._lock:
            thread, model = self._thread, self._model
        if thread is not None:
            self._queue.put(None)
            thread.join(10)
        self.reader.shutdown(wait=False)
        if model is not None:
            model.close()

    def load(self) -> Future[_StreamModel]:
        """Load the model in a thread of its own, unless that was begun."""
        with self._lock:
            if self._loading is None:
                self._loading = Future()
                threading.Thread(target=self._load, args=(self._loading,), name="raystream-load", daemon=True).start()
            return self._loading

    def _loaded(self) -> _StreamModel:
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

    def _load(self, loading: Future[_StreamModel]) -> None:
        try:
            model = _StreamModel(self._name, self._config, self._store)
        except BaseException as error:
            loading.set_exception(error)
            return
        with self._lock:
            self._model = model
            self._thread = threading.Thread(target=self._go, args=(model,), name="raystream-decide", daemon=True)
            self._thread.start()
        loading.set_result(model)

    def _go(self, model: _StreamModel) -> None:
        while (first := self._queue.get()) is not None:
            batch, rows, ends = [first], len(first.ids), False
            while rows < BATCH_ROWS:
                try:
                    more = self._queue.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    ends = True
                    break
                batch.append(more)
                rows += len(more.ids)
            try:
                self._answer(model, batch)
            finally:
                with self._lock:
                    self._held -= sum(waiting.bytes for waiting in batch)
            self._metrics.add("raystream_decide_batches_total", stream=self._name)
            self._metrics.add("raystream_decided_rows_total", rows, stream=self._name)
            if ends:
                return

    def _answer(self, model: _StreamModel, batch: list[_WaitingRequest]) -> None:
        """Decide on some requests; where that fails for all of them, on each by itself, so that one can't spoil the others."""
        try:
            answers = model.decide(batch)
        except Exception as error:
            if len(batch) > 1:
                for waiting in batch:
                    self._answer(model, [waiting])
                return
            if not isinstance(error, RaystreamError):
                _log.exception("a defect of raystream's in the stream %s", self._name)
            batch[0].answer.set_exception(_problem(error))
            return
        for waiting, answer in zip(batch, answers, strict=True):
            if isinstance(answer, QueryError):
                waiting.answer.set_exception(wrong_fields([FieldError("request_id", str(answer))]))
            else:
                waiting.answer.set_result(answer)


class _StreamModel:
    """A stream's model, loaded, with what was decided so far.

    Attributes:
        decodes: whether its rows hold pictures, or a function of the user's makes its tensors.

    Raises:
        RaystreamError: there is no such stream, or its model can't be used.
    """

    def __init__(self, name: str, config: Config, store: Store) -> None:
        log = StreamLog(store, name)
        stream = _stream(log, config)
        if stream.query.model.calibration_files:
            raise QueryError("model.temperature is to be fitted; begin the stream with the number that raystream calibrate gives")
        asked = resolve(stream.query)
        self._life = SignOfLife()
        self._life.begin(store, log.folder)
        self._worker = Worker(replace(asked.job, token=self._life.token))
        self._read = asked.pool.read
        self._id = self._read.id or "id"
        self.decodes = self._read.prepared is not None or any(column.is_encoded or column.is_raw for column in self._read.columns)
        self._prepare = preparation(self._read)
        self._score, self._embeds = stream.query.acquire.column, stream.query.needs_embedding
        names = [asked.fingerprint, *(output.name for output in asked.outputs)]
        model = hashlib.sha256("\n".join(names).encode()).hexdigest()
        self._stream, self._log, self._named = stream, log, model
        self._rows: RequestedRows | None = None

    def close(self) -> None:
        """Give no sign of life any more."""
        self._life.end()

    def read(self, rows: list[dict[str, Any]]) -> tuple[pa.Array, tuple[np.ndarray, ...]]:
        """Read the ids and the model's tensors of some rows.

        Raises:
            Problem: a row lacks a column, or holds what the model can't take.
        """
        errors = [
            FieldError(f"rows.{at}.{name}", f"rows.{at}.{name} is missing")
            for name in dict.fromkeys([self._id, *self._read.inputs])
            for at, row in enumerate(rows)
            if row.get(name) is None
        ]
        if errors:
            raise wrong_fields(errors[:20])
        ids = _array([row[self._id] for row in rows], self._read.id_type, self._id)
        if len(ids.unique()) < len(ids):
            raise wrong_fields([FieldError("rows", f"rows give one {self._id} twice")])
        columns = {column.name: _array([row[column.name] for row in rows], _type(column), column.name) for column in self._read.columns}
        try:
            return ids, tensors_of(pa.RecordBatch.from_pydict(columns), self._read, self._prepare)
        except BadRowsError as error:
            found = [FieldError(f"rows.{row}.{name}", f"rows.{row}.{name} {reason}") for row, name, reason in error.flaws[:20]]
            raise wrong_fields(found) from None
        except DataError as error:
            raise wrong_fields([FieldError("rows", str(error))]) from None

    def decide(self, batch: list[_WaitingRequest]) -> list[dict[str, Any] | QueryError]:
        """Return the answers, once all of their decisions are in the log."""
        inputs = tuple(np.concatenate(some) for some in zip(*(waiting.inputs for waiting in batch), strict=True))
        found = self._worker.score_rows(inputs)
        if self._rows is None:
            self._rows = RequestedRows(self._stream, self._log, self._named, found.classes)
        scores = found.columns[self._score].astype(np.float64)
        vectors = None if not self._embeds or found.embeddings is None else found.embeddings.astype(np.float64)
        requests, at = [], 0
        for waiting in batch:
            here = slice(at, at := at + len(waiting.ids))
            requests.append(
                StreamRequest(waiting.request, waiting.asked, waiting.ids, scores[here], None if vectors is None else vectors[here])
            )
        answers = self._rows.decide(requests)
        progress = self._rows.progress
        return [
            answer if isinstance(answer, QueryError) else _told(request.id, self._id, answer, progress.seen, progress.chosen)
            for request, answer in zip(requests, answers, strict=True)
        ]


def _told(request: str, id_name: str, table: pa.Table, seen: int, chosen: int) -> dict[str, Any]:
    ids, scores, thresholds, picks = (table.column(name).to_pylist() for name in (id_name, "score", "threshold", "chosen"))
    decisions = [
        {id_name: value.hex() if isinstance(value, bytes) else value, "chosen": pick, "score": score, "threshold": threshold}
        for value, pick, score, threshold in zip(ids, picks, scores, thresholds, strict=True)
    ]
    return {"request_id": request, "decisions": decisions, "seen": seen, "chosen": chosen}


def _stream(log: StreamLog, config: Config) -> Stream:
    """Read the stream as it was begun."""
    data = log.store.read_if_there(f"{log.folder}/stream.yaml")
    if data is None:
        raise QueryError(f"the store has no stream {log.name}; begin it by raystream stream")
    given = dict(yaml.safe_load(data))
    given["store"] = {"uri": config.store.uri, "storage": config.store.storage}
    return Stream(**given)


def _checked(body: object) -> tuple[str, list[dict[str, Any]]]:
    if not isinstance(body, dict):
        raise wrong_fields([FieldError("", 'expected {"request_id": …, "rows": […]}')])
    others = [str(key)[:100] for key in body if key not in ("request_id", "rows")]
    errors = [FieldError(key, f"{key} is none of request_id and rows") for key in others]
    request, rows = body.get("request_id"), body.get("rows")
    if not isinstance(request, str) or not 0 < len(request) <= 128 or not request.isprintable():
        errors.append(FieldError("request_id", "request_id is no text of 1 to 128 printable characters"))
    if not isinstance(rows, list) or not 0 < len(rows) <= MOST_ROWS:
        errors.append(FieldError("rows", f"rows is no list of 1 to {MOST_ROWS} rows"))
    else:
        wrong = [at for at, row in enumerate(rows) if not isinstance(row, dict)]
        errors += [FieldError(f"rows.{at}", f"rows.{at} is no object of columns") for at in wrong]
    if errors:
        raise wrong_fields(errors[:20])
    assert isinstance(request, str)
    assert isinstance(rows, list)
    return request, rows


def _type(column: Column) -> pa.DataType | None:
    """Return what a column's values in JSON become; None: whatever they are, for a function of the user's."""
    if column.is_raw:
        return None
    if column.is_text:
        return pa.string()
    if column.is_encoded:
        return pa.binary()
    kind = pa.from_numpy_dtype(np.dtype(column.dtype))
    for size in reversed(known_shape(column.shape)):
        kind = pa.list_(kind, size)
    return kind


def _array(values: list[Any], kind: pa.DataType | None, name: str) -> pa.Array:
    """Make values of one column, bytes from base64.

    Raises:
        Problem: one of them is of another kind; which.
    """

    def made(some: list[Any]) -> pa.Array:
        if kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            some = [base64.b64decode(value, validate=True) for value in some]
        return pa.array(some, kind)

    try:
        return made(values)
    except (pa.ArrowException, binascii.Error, TypeError, ValueError, OverflowError):
        for at, value in enumerate(values):
            try:
                made([value])
            except (pa.ArrowException, binascii.Error, TypeError, ValueError, OverflowError):
                told = f"rows.{at}.{name} can't become {'text of bytes' if kind is None else kind}"
                raise wrong_fields([FieldError(f"rows.{at}.{name}", told)]) from None
        raise wrong_fields([FieldError("rows", f"the values of {name} are of several kinds")]) from None


def _problem(error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, DataError | QueryError) and not isinstance(error, OSError):
        return wrong_fields([FieldError("rows", str(error))])
    return Problem(503, "the decisions could not be kept; ask again with the same request_id", headers={"retry-after": "1"})


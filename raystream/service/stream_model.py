"""A stream's model, loaded, with what was decided so far: rows of a request as tensors, and the decisions on them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from raystream.errors import DataError, QueryError, RaystreamError
from raystream.loop.streams.decided import Decided
from raystream.loop.streams.log import StreamLog
from raystream.loop.streams.requests import RequestedRows, StreamRequest, WrittenDecisions
from raystream.pool.columns import Column, known_shape
from raystream.pool.reader import BadRowsError, tensors_of, tensors_of_numbers
from raystream.query.simulate import Stream
from raystream.scoring.batch_reader import preparation
from raystream.scoring.plan import resolve
from raystream.scoring.worker import Worker
from raystream.service.config import Config
from raystream.service.edge import FieldError, wrong_fields
from raystream.store.life import SignOfLife
from raystream.store.protocol import Store

MOST_ROWS = 1024
"""Of one request."""
_log = logging.getLogger("raystream.service")


@dataclass
class Waiting:
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


@dataclass
class Found:
    """What was decided on a batch of requests; `id_name` is the column of the rows' ids."""

    id_name: str
    requests: list[str]
    written: WrittenDecisions

    def synced(self) -> bool:
        """Wait for the disk; False if what was decided may not count."""
        try:
            return self.written.sync()
        except Exception as error:
            _log.error("decisions could not be kept, and are made again: %s", error, exc_info=not isinstance(error, RaystreamError))
            return False

    def answers(self) -> list[dict[str, Any] | QueryError]:
        """Return the answer to each request."""
        seen, chosen = self.written.progress.seen, self.written.progress.chosen
        return [
            one if isinstance(one, QueryError) else _told(request, self.id_name, one, seen, chosen)
            for request, one in zip(self.requests, self.written.answers, strict=True)
        ]


class WarmModel:
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
        self._kinds = {column.name: _type(column) for column in self._read.columns}
        self._score, self._embeds = stream.query.acquire.column, stream.query.needs_embedding
        names = [asked.fingerprint, *(output.name for output in asked.outputs)]
        model = hashlib.sha256("\n".join(names).encode()).hexdigest()
        self._stream, self._log, self._named = stream, log, model
        self._rows: RequestedRows | None = None
        self._folder = ThreadPoolExecutor(1, thread_name_prefix="raystream-fold")

    def close(self) -> None:
        """Give no sign of life any more."""
        self._folder.shutdown(wait=False)
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
        if len(ids) > 1 and len(ids.unique()) < len(ids):
            raise wrong_fields([FieldError("rows", f"rows give one {self._id} twice")])
        if (numbers := tensors_of_numbers(rows, self._read)) is not None:
            return ids, numbers
        columns = {name: _array([row[name] for row in rows], kind, name) for name, kind in self._kinds.items()}
        try:
            return ids, tensors_of(pa.RecordBatch.from_pydict(columns), self._read, self._prepare)
        except BadRowsError as error:
            found = [FieldError(f"rows.{row}.{name}", f"rows.{row}.{name} {reason}") for row, name, reason in error.flaws[:20]]
            raise wrong_fields(found) from None
        except DataError as error:
            raise wrong_fields([FieldError("rows", str(error))]) from None

    def fold(self, *, due: bool) -> None:
        """Give what was decided its file of decisions; see `RequestedRows.fold`."""
        if self._rows is not None:
            self._rows.fold(due=due)

    def at_hand(self, waiting: Waiting) -> bool:
        """Tell whether a request can be decided on with no file but the log's open one."""
        return self._rows is not None and self._rows.at_hand(waiting.request)

    def decide(self, batch: list[Waiting]) -> Found:
        """Make the decisions, which are not to be told before they are on disk."""
        inputs = tuple(np.concatenate(some) for some in zip(*(waiting.inputs for waiting in batch), strict=True))
        found = self._worker.score_rows(inputs, self._score)
        if self._rows is None:
            self._rows = RequestedRows(self._stream, self._log, self._named, found.classes, aside=self._folder.submit)
        scores = found.scores.astype(np.float64)
        vectors = None if not self._embeds or found.embeddings is None else found.embeddings.astype(np.float64)
        requests, at = [], 0
        for waiting in batch:
            here = slice(at, at := at + len(waiting.ids))
            requests.append(
                StreamRequest(waiting.request, waiting.asked, waiting.ids, scores[here], None if vectors is None else vectors[here])
            )
        return Found(self._id, [request.id for request in requests], self._rows.write(requests))


def _told(request: str, id_name: str, rows: Decided, seen: int, chosen: int) -> dict[str, Any]:
    of_rows = zip(rows.ids.to_pylist(), rows.scores.tolist(), rows.thresholds.tolist(), rows.chosen.tolist(), strict=True)
    decisions = [
        {
            id_name: value.hex() if isinstance(value, bytes) else value,
            "chosen": pick,
            "score": score if math.isfinite(score) else None,
            "threshold": threshold if math.isfinite(threshold) else None,
        }
        for value, score, threshold, pick in of_rows
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


def checked(body: object) -> tuple[str, list[dict[str, Any]]]:
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
    """Find what a column's values in JSON become; None: whatever they are, for a function of the user's."""
    if column.is_raw:
        return None
    if column.is_text:
        return pa.string()
    if column.is_encoded:
        return pa.binary()
    kind = pa.from_numpy_dtype(np.dtype(column.dtype))
    kind = pa.float64() if pa.types.is_floating(kind) else kind  # as of files, whose integers need not be exact as float32
    for size in reversed(known_shape(column.shape)):
        kind = pa.list_(kind, size)
    return kind


def _array(values: list[Any], kind: pa.DataType | None, name: str) -> pa.Array:
    """Values of one column, bytes from base64.

    Raises:
        Problem: one of them is of another kind; which.
    """

    leaf = kind
    while leaf is not None and pa.types.is_fixed_size_list(leaf):
        leaf = leaf.value_type
    whole = leaf is not None and pa.types.is_integer(leaf)

    def made(some: list[Any]) -> pa.Array:
        if kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            some = [base64.b64decode(value, validate=True) for value in some]
        if whole and (given := np.asarray(some)).dtype.kind == "f" and (given % 1 != 0).any():
            raise ValueError("Arrow would cut off what stands behind the point")
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

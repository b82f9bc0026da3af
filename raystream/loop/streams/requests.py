"""Decides on rows that come by request, instead of by a pool's files: in the same log, within the same budget, each request once.

A request is decided on when its decisions are in the log, as a file of them is put if absent; that file names the requests whose rows it
holds. Whoever was too late with it, since a look or another server was first, reads on, and decides again: nothing was answered yet.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raystream.errors import QueryError
from raystream.loop.streams.decisions import StreamState
from raystream.loop.streams.log import Progress, StreamLog
from raystream.query.stream import Stream

_REQUESTS = "raystream.requests"
"""In the metadata of decisions: a JSON list of the requests' ids, what was asked, and how many rows each has."""
_MERGED = 4096


@dataclass(frozen=True)
class StreamRequest:
    """Rows to be decided on.

    Attributes:
        id: of the request; the same one again gets the same answer.
        asked: a digest of its rows.
        ids: (n,) of the stream's type.
        scores: (n,) float64.
        vectors: (n, d) float64, where the stream compares embeddings.
    """

    id: str
    asked: str
    ids: pa.Array
    scores: npt.NDArray[np.float64]
    vectors: npt.NDArray[np.float64] | None


class RequestedRows:
    """A stream's decisions by request; for one thread.

    Args:
        stream: as it was begun.
        log: its files in the store.
        model: what names the model that scores.
        classes: of it.
    """

    def __init__(self, stream: Stream, log: StreamLog, model: str, classes: int | None) -> None:
        self._stream, self._log, self._model, self._classes = stream, log, model, classes
        self._known = _Seen()
        self._read = 0
        self._progress = Progress()
        self._saved: Mapping[str, Any] = {}
        self._state: StreamState | None = None
        self._catch_up()

    @property
    def progress(self) -> Progress:
        """How far the stream has come."""
        return self._progress

    def decide(self, requests: Sequence[StreamRequest]) -> list[pa.Table | QueryError]:
        """Return the decisions on each request, once they are in the log.

        Returns:
            For each request a table of its rows with `score`, `threshold`, `chosen`, `seen`, `epoch`; or why it isn't decided on: its id
            was another request's, or the log takes no such ids.
        """
        while True:
            answers: dict[int, pa.Table | QueryError] = {}
            new: dict[str, int] = {}
            for place, request in enumerate(requests):
                answer = self._answered(request)
                if answer is not None:
                    answers[place] = answer
                elif request.id in new and requests[new[request.id]].asked != request.asked:
                    answers[place] = _taken(request)
                elif request.id not in new:
                    new[request.id] = place
            found = self._decide([requests[place] for place in new.values()]) if new else {}
            if found is None:
                self._catch_up()  # somebody else was first, and may have decided on these
                continue
            return [answers[place] if place in answers else found[request.id] for place, request in enumerate(requests)]

    def _decide(self, requests: Sequence[StreamRequest]) -> dict[str, pa.Table | QueryError] | None:
        """Return the decisions on new requests, by their ids; None if somebody else's are in the log instead."""
        state, progress = self._now()
        self._state = None  # it goes on with these rows, and is the log's again once they are in it
        tables = [self._table(request, state, progress.epoch) for request in requests]
        about = json.dumps([[request.id, request.asked, table.num_rows] for request, table in zip(requests, tables, strict=True)])
        rows = sum(table.num_rows for table in tables)
        progress = replace(
            progress,
            parts=progress.parts + 1,
            rows=progress.rows + rows,
            seen=state.sampler.seen,
            chosen=state.sampler.labelled,
        )
        saved = state.saved
        committed = self._log.commit_decisions(pa.concat_tables(tables), progress, saved, {_REQUESTS: about})
        if committed is None:
            return None
        self._progress, self._saved, self._read, self._state = committed, saved, committed.parts, state
        self._known.add([(request.id, committed.parts) for request in requests])
        return {request.id: table for request, table in zip(requests, tables, strict=True)}

    def _now(self) -> tuple[StreamState, Progress]:
        """Find what decisions go on from; another model than the last begins another epoch."""
        progress, anew = self._progress, self._progress.model != self._model
        if self._state is None or anew:
            self._state = StreamState.of(self._stream, self._classes, self._saved, anew)
        return self._state, replace(progress, epoch=progress.epoch + 1, model=self._model) if anew else progress

    def _table(self, request: StreamRequest, state: StreamState, epoch: int) -> pa.Table:
        before = state.sampler.seen
        found = state.decide(request.scores, request.vectors, None)
        count = len(request.ids)
        return pa.table(
            {
                self._stream.pool.id or "id": request.ids,
                "score": pa.array(request.scores, from_pandas=True),
                "threshold": pa.array([None if decision is None else decision.threshold for decision in found], pa.float64()),
                "chosen": pa.array([decision is not None and decision.chosen for decision in found], pa.bool_()),
                "seen": pa.array(before + np.cumsum([decision is not None for decision in found]), pa.int64()),
                "epoch": pa.array(np.full(count, epoch), pa.int32()),
            }
        )

    def _answered(self, request: StreamRequest) -> pa.Table | QueryError | None:
        """Return what was decided on a request of this id, if it was."""
        for part in self._known.parts(request.id):
            file = self._log.part(part)
            first = 0
            for known, asked, rows in _requests(file.schema_arrow):
                if known == request.id:
                    whole: pa.Table = file.read(use_threads=False)
                    return whole.slice(first, rows) if asked == request.asked else _taken(request)
                first += rows
        return None

    def _catch_up(self) -> None:
        """Read what was decided since."""
        self._progress, self._saved = self._log.progress()
        self._state = None
        for number in self._log.parts():
            if number > self._read:
                self._known.add([(known, number) for known, _, _ in _requests(self._log.part(number).schema_arrow)])
        self._read = self._progress.parts


class _Seen:
    """Which requests were decided on, and in which file of decisions: 12 bytes each, which may rarely name one too many."""

    def __init__(self) -> None:
        self._hashes, self._parts = np.empty(0, np.uint64), np.empty(0, np.uint32)
        self._late: dict[int, int] = {}

    def add(self, requests: Sequence[tuple[str, int]]) -> None:
        """Note ids with the numbers of their files."""
        self._late |= {_hash(known): part for known, part in requests}
        if len(self._late) >= _MERGED:
            hashes = np.concatenate([self._hashes, np.fromiter(self._late.keys(), np.uint64, len(self._late))])
            parts = np.concatenate([self._parts, np.fromiter(self._late.values(), np.uint32, len(self._late))])
            order = np.argsort(hashes, kind="stable")
            self._hashes, self._parts, self._late = hashes[order], parts[order], {}

    def parts(self, known: str) -> list[int]:
        """List the files that may hold the decisions on a request."""
        number = _hash(known)
        low, high = np.searchsorted(self._hashes, np.uint64(number), "left"), np.searchsorted(self._hashes, np.uint64(number), "right")
        return [*([self._late[number]] if number in self._late else []), *self._parts[low:high].tolist()]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _requests(schema: pa.Schema) -> list[tuple[str, str, int]]:
    return [(known, asked, rows) for known, asked, rows in json.loads((schema.metadata or {}).get(_REQUESTS.encode(), b"[]"))]


def _taken(request: StreamRequest) -> QueryError:
    return QueryError(f"request_id {request.id!r} was another request's; give each its own")

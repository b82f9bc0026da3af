"""Decides on rows that come by request, instead of by a pool's files: in the same log, within the same budget, each request once.

A request is decided on when its decisions are on disk: in the segment of the log that this process appends to, which becomes a file of
decisions every now and then, or, in buckets and where else nothing can be appended, in a file of decisions at once. Both name the requests
whose rows they hold. Whoever was too late, since a look or another server was first, reads on, and decides again: nothing was answered yet.

While a segment becomes a file of decisions, the next one is appended to already, so that nobody waits for that. What is after a file that
isn't there yet never becomes one itself: files of decisions have no gaps, or what is in one would be forgotten.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raystream.errors import QueryError
from raystream.loop.streams.decisions import StreamState
from raystream.loop.streams.log import Progress, StreamLog, about, fold, requests_of
from raystream.loop.streams.segment import Begun, Numbers, Record, Segment, may_append
from raystream.query.simulate import Stream

FOLD_SECONDS = 30.0
"""After which decisions of requests have their file of decisions, about."""
_FOLD_ROWS = 1 << 14
"""Of requests, that are held until they have it."""
_PIECES = 32
_MERGED = 4096
_CLAIM_PAUSE, _CLAIM_PAUSES = 0.02, 250
"""For which a look that has said that its decisions come next is waited for: it has only to write them."""

Commit = Callable[[], Progress | None]
Aside = Callable[[Commit], "Future[Progress | None]"]


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


@dataclass(frozen=True)
class WrittenDecisions:
    """Answers that may be given once `sync` says so.

    Attributes:
        answers: for each request a table of its rows with `score`, `threshold`, `chosen`, `seen`, `epoch`; or why it isn't decided on: its
            id was another request's, or the log takes no such ids.
        progress: of the stream after them.
        segment: whose records have to be on disk first; None if all are.
    """

    answers: list[pa.Table | QueryError]
    progress: Progress
    segment: Segment | None

    def sync(self) -> bool:
        """Wait for the disk, in any thread; False if the requests have to be decided on again, since somebody else took over.

        Raises:
            StoreError: the disk doesn't take it; they have to be, too.
        """
        return self.segment is None or self.segment.sync()


@dataclass
class _Open:
    """What was appended to the segment that is open.

    Attributes:
        segment: the file.
        since: when it was begun.
        requests: of all that was appended, in order.
        tables: their rows, in few pieces: thousands of small ones take a second to be written, while everybody waits.
        late: rows that are in none of these pieces yet.
        answers: what was asked, and the rows, by request.
        rows: so many.
    """

    segment: Segment
    since: float
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    tables: list[pa.Table] = field(default_factory=list)
    late: list[pa.Table] = field(default_factory=list)
    answers: dict[str, tuple[str, pa.Table]] = field(default_factory=dict)
    rows: int = 0

    def add(self, record: Record, tables: Sequence[pa.Table]) -> None:
        """Append a record."""
        self.segment.append(record)
        self.requests += record.requests
        self.late.append(record.rows)
        if len(self.late) >= _PIECES:
            self.tables.append(pa.concat_tables(self.late).combine_chunks())
            self.late = []
        self.answers |= {known: (asked, table) for (known, asked, _), table in zip(record.requests, tables, strict=True)}
        self.rows += record.rows.num_rows


class RequestedRows:
    """A stream's decisions by request; for one thread, but for `WrittenDecisions.sync`.

    Args:
        stream: as it was begun.
        log: its files in the store.
        model: what names the model that scores.
        classes: of it.
        now: seconds of a clock that is never set back.
        pause: waits so many seconds.
        aside: has a file of decisions written, somewhere; at once unless given.
    """

    def __init__(
        self,
        stream: Stream,
        log: StreamLog,
        model: str,
        classes: int | None,
        now: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] = time.sleep,
        aside: Aside | None = None,
    ) -> None:
        self._stream, self._log, self._model, self._classes, self._clock, self._pause = stream, log, model, classes, now, pause
        self._known = _Seen()
        self._read = 0
        # invariant: after what is open, too, but for `parts`; `_saved` is the state before that, `_state` the one after it
        self._progress = Progress()
        self._saved: Mapping[str, Any] = {}
        self._state: StreamState | None = None
        self._appends = may_append(log.store)
        self._open: _Open | None = None
        self._aside = aside or _at_once
        self._folding: tuple[_Open, Future[Progress | None]] | None = None  # it is what comes before `_open`
        self._behind = True  # what is known may not be all that was decided
        self._whole = 0  # the file of decisions that can't be one that was appended to
        self._catch_up()

    def decide(self, requests: Sequence[StreamRequest]) -> list[pa.Table | QueryError]:
        """Return what `WrittenDecisions.answers` says, once it is on disk."""
        while not (written := self.write(requests)).sync():
            pass
        return written.answers

    def write(self, requests: Sequence[StreamRequest]) -> WrittenDecisions:
        """Decide on requests; nothing is to be answered before `WrittenDecisions.sync` says so.

        Raises:
            RaystreamError: nothing was decided, or it isn't known; ask again.
        """
        self.fold(due=True)
        while True:
            if self._behind or (self._open is not None and self._open.segment.lost):
                self._catch_up()
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
            all_of_them = [answers[place] if place in answers else found[request.id] for place, request in enumerate(requests)]
            return WrittenDecisions(all_of_them, self._progress, None if self._open is None else self._open.segment)

    def fold(self, *, due: bool = False) -> None:
        """Give what was appended its file of decisions; with `due` only if that is large or old, and without waiting for it.

        Raises:
            StoreError: it can't be written; what was answered stays in the log.
        """
        self._note_folded(wait=not due)
        there = self._open
        if not self._behind and (there is None or (due and there.rows < _FOLD_ROWS and self._clock() < there.since + FOLD_SECONDS)):
            return
        if self._behind or there is None or there.segment.lost or self._state is None:
            self._catch_up()
        elif self._folding is None:
            if not there.segment.finish():
                self._catch_up()
                return
            progress, saved = replace(self._progress, parts=self._progress.parts + 1), self._state.saved
            self._progress, self._saved, self._open = progress, saved, None

            def commit() -> Progress | None:
                rows = pa.concat_tables([*there.tables, *there.late]).combine_chunks()
                return self._log.commit_decisions(rows, progress, saved, about(there.requests), logged=True)

            self._behind = True  # unless it comes to be written
            self._folding = there, self._aside(commit)
            self._behind = False
            self._note_folded(wait=not due)

    def _note_folded(self, *, wait: bool) -> None:
        """Note that the segment before the open one has its file of decisions, by us or, with the same rows, by somebody else."""
        if self._folding is None or not (wait or self._folding[1].done()):
            return
        (there, committed), self._folding = self._folding, None
        try:
            committed.result()
        except BaseException:
            self._behind = True  # what is open must not have its file first
            raise
        part = self._progress.parts
        self._known.add([(known, part) for known, _, _ in there.requests])
        self._read = part

    def _decide(self, requests: Sequence[StreamRequest]) -> dict[str, pa.Table | QueryError] | None:
        """Return the decisions on new requests, by their ids; None if somebody else's come first."""
        try:
            return self._written(requests)
        except BaseException:
            if self._open is not None:
                self._open.segment.lost = True  # it isn't known how far its state has gone on
            raise

    def _written(self, requests: Sequence[StreamRequest]) -> dict[str, pa.Table | QueryError] | None:
        state, progress = self._now()
        self._state = None  # it goes on with these rows, and is the log's again once they are in it
        scores = np.concatenate([request.scores for request in requests])
        given = [request.vectors for request in requests if request.vectors is not None]
        vectors = np.concatenate(given) if given else None
        ids = pa.concat_arrays([request.ids for request in requests])
        rows = self._log.as_before(self._table(ids, scores, vectors, state, progress.epoch))
        named = [(request.id, request.asked, len(request.ids)) for request in requests]
        record = Record(named, rows, scores, vectors)
        seen, chosen = state.sampler.seen, state.sampler.labelled
        progress = replace(progress, rows=progress.rows + rows.num_rows, seen=seen, chosen=chosen)
        ends = np.cumsum([count for _, _, count in named]).tolist()
        tables = [rows.slice(end - count, count) for end, (_, _, count) in zip(ends, named, strict=True)]
        if self._appends and self._whole != progress.parts + 1:
            if self._open is None:
                begun = Begun(progress.epoch, progress.model, self._classes, rows.schema)
                segment = self._log.begin_segment(progress.parts + 1, begun)
                if segment is None:
                    self._let_go_first(progress.parts + 1)
                    return None
                self._open = _Open(segment, self._clock())
            self._open.add(record, tables)
            self._progress = progress
        else:
            self._note_folded(wait=True)
            saved = state.saved
            committed = self._log.commit_decisions(rows, replace(progress, parts=progress.parts + 1), saved, about(named))
            if committed is None:
                return None
            self._come_to(committed, saved, named)
        self._state = state
        return {request.id: table for request, table in zip(requests, tables, strict=True)}

    def _let_go_first(self, part: int) -> None:
        """Wait for whoever said that this file of decisions comes whole; if it doesn't, since they are gone, ours does."""
        for _ in range(_CLAIM_PAUSES):
            if not self._log.is_claimed(part):
                break
            self._pause(_CLAIM_PAUSE)
        self._whole = part

    def _come_to(self, progress: Progress, saved: Mapping[str, Any], requests: Sequence[tuple[str, str, int]]) -> None:
        """Go on from a file of decisions that was just committed."""
        self._progress, self._saved, self._read, self._open = progress, saved, progress.parts, None
        self._known.add([(known, progress.parts) for known, _, _ in requests])

    def _now(self) -> tuple[StreamState, Progress]:
        """Find what decisions go on from; another model than the last begins another epoch."""
        progress, anew = self._progress, self._progress.model != self._model
        if self._state is None or anew:
            self._state = StreamState.of(self._stream, self._classes, self._saved, anew)
        return self._state, replace(progress, epoch=progress.epoch + 1, model=self._model) if anew else progress

    def _table(self, ids: pa.Array, scores: Numbers, vectors: Numbers | None, state: StreamState, epoch: int) -> pa.Table:
        before = state.sampler.seen
        found = state.decide(scores, vectors, None)
        counts = np.fromiter((decision is not None for decision in found), np.int64, len(found))
        columns = {
            self._stream.pool.id or "id": ids,
            "score": pa.array(scores, self._log.type_of("score"), from_pandas=True),
            "threshold": pa.array([None if decision is None else decision.threshold for decision in found], pa.float64()),
            "chosen": pa.array([decision is not None and decision.chosen for decision in found], pa.bool_()),
            "seen": pa.array(before + counts.cumsum()),
            "epoch": pa.array(np.full(len(found), epoch, np.int32)),
        }
        return pa.Table.from_arrays(list(columns.values()), list(columns))

    def _answered(self, request: StreamRequest) -> pa.Table | QueryError | None:
        """Return what was decided on a request of this id, if it was."""
        for there in (self._open, self._folding and self._folding[0]):
            if there is not None and request.id in there.answers:
                asked, table = there.answers[request.id]
                return table if asked == request.asked else _taken(request)
        for part in self._known.parts(request.id):
            file = self._log.part(part)
            first = 0
            for known, asked, rows in requests_of(file.schema_arrow):
                if known == request.id:
                    whole: pa.Table = file.read(use_threads=False)
                    return whole.slice(first, rows) if asked == request.asked else _taken(request)
                first += rows
        return None

    def _catch_up(self) -> None:
        """Read what was decided since; what was appended has its file then."""
        self._behind = True
        if self._folding is not None:
            self._folding[1].exception()  # there or not, nobody writes any more
        self._state = self._open = self._folding = None
        fold(self._log)
        self._progress, self._saved = self._log.progress()
        for number in self._log.parts():
            if number > self._read:
                self._known.add([(known, number) for known, _, _ in requests_of(self._log.part(number).schema_arrow)])
        self._read, self._behind = self._progress.parts, False


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


def _at_once(commit: Commit) -> Future[Progress | None]:
    done: Future[Progress | None] = Future()
    try:
        done.set_result(commit())
    except BaseException as error:
        done.set_exception(error)
    return done


def _taken(request: StreamRequest) -> QueryError:
    return QueryError(f"request_id {request.id!r} was another request's; give each its own")

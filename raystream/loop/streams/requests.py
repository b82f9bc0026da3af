"""Decides on rows that come by request, instead of by a pool's files: in the same log, within the same budget, each request once.

A request is decided on when its decisions are on disk: in the segment of the log that this process appends to, which becomes a file of
decisions every now and then, or, in buckets and where else nothing can be appended, in a file of decisions at once. Both name the requests
whose rows they hold. Whoever was too late, since a look or another server was first, reads on, and decides again: nothing was answered yet.

While a segment becomes a file of decisions, the next one is appended to already, so that nobody waits for that. What is after a file that
isn't there yet never becomes one itself: files of decisions have no gaps, or what is in one would be forgotten.
"""

from __future__ import annotations

import hashlib
import threading
import time
from array import array
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raystream.errors import QueryError
from raystream.loop.streams.decided import Decided
from raystream.loop.streams.decisions import StreamState
from raystream.loop.streams.log import Progress, StreamLog, about, fold, requests_of
from raystream.loop.streams.segment import Begun, Record, Segment, may_append, said_of
from raystream.query.simulate import Stream

FOLD_SECONDS = 30.0
"""After which decisions of requests have their file of decisions, about."""
_FOLD_ROWS = 1 << 14
"""Of requests, that are held until they have it."""
_PIECES = 32
_ASKED = 16
"""Bytes of what tells requests of one id apart."""
_LONGER = 4
_CLAIM_PAUSE, _CLAIM_PAUSES = 0.02, 250
"""For which a look that has said that its decisions come next is waited for: it has only to write them."""

Answer: TypeAlias = Decided | QueryError
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
        answers: for each request its rows with what was decided; or why it isn't decided on: its id was another request's.
        progress: of the stream after them.
        segment: whose records have to be on disk first; None if all are.
    """

    answers: list[Answer]
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

    All that its file of decisions needs of a request is made when that is appended, and of few objects: thousands of them that are gone
    through, or let go, at once take a tenth of a second, for which everybody waits. So most of what is known of them stands in bytes.

    Attributes:
        segment: the file.
        since: when it was begun.
        ids: of the rows, in few pieces.
        starts: the first row of each piece, and of what is in none yet.
        late: ids of these.
        scores, thresholds, seen, chosen: of the rows, as `Decided` has them.
        places: of the requests, in the order in which they came, by id.
        asked: what each asked, `_ASKED` bytes.
        first: the first row of each, int64, and of what comes next.
        said: of the requests, as records name them, joined by commas.
        hashes: of their ids, uint64.
    """

    segment: Segment
    since: float
    ids: list[pa.Array] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    late: list[pa.Array] = field(default_factory=list)
    scores: bytearray = field(default_factory=bytearray)
    thresholds: bytearray = field(default_factory=bytearray)
    seen: bytearray = field(default_factory=bytearray)
    chosen: bytearray = field(default_factory=bytearray)
    places: dict[str, int] = field(default_factory=dict)
    asked: bytearray = field(default_factory=bytearray)
    first: array[int] = field(default_factory=lambda: array("q", [0]))
    said: bytearray = field(default_factory=bytearray)
    hashes: array[int] = field(default_factory=lambda: array("Q"))

    @property
    def rows(self) -> int:
        """So many."""
        return len(self.chosen)

    def add(self, record: Record, requests: Sequence[tuple[str, str, int]]) -> None:
        """Append a record of these requests."""
        self.segment.append(record)
        start, decided = self.rows, record.decided
        self.late.append(decided.ids)
        if len(self.late) >= _PIECES:
            self.ids.append(pa.concat_arrays(self.late))
            self.starts.append(start + len(decided))
            self.late = []
        self.scores += decided.scores.tobytes()
        self.thresholds += decided.thresholds.tobytes()
        self.seen += decided.seen.tobytes()
        self.chosen += decided.chosen.tobytes()
        self.said += f"{',' if self.said else ''}{record.requests}".encode()
        for known, asked, count in requests:
            self.places[known] = len(self.places)
            self.asked += _digest(asked)
            self.first.append(start := start + count)
            self.hashes.append(_hash(known))

    def table(self) -> pa.Table:
        """Return all rows as their file of decisions has them."""
        schema = self.segment.begun.schema
        return self._rows(0, self.rows, pa.concat_arrays([*self.ids, *self.late])).in_columns(schema.names[0], schema)

    def answered(self, request: StreamRequest) -> Answer | None:
        """Return what was decided on a request of this id, if it was."""
        place = self.places.get(request.id)
        if place is None:
            return None
        if self.asked[place * _ASKED : (place + 1) * _ASKED] != _digest(request.asked):
            return _taken(request)
        first, ids = self.first[place], request.ids
        count = self.first[place + 1] - first
        if count:
            piece = bisect_right(self.starts, first) - 1
            held = self.ids[piece] if piece < len(self.ids) else pa.concat_arrays(self.late)
            ids = held.slice(first - self.starts[piece], count)
        return self._rows(first, count, ids).as_told(self.segment.begun.schema)

    def _rows(self, first: int, count: int, ids: pa.Array) -> Decided:
        def part(numbers: bytearray, kind: type[np.generic]) -> Any:
            size = np.dtype(kind).itemsize
            return np.frombuffer(bytes(numbers[first * size : (first + count) * size]), kind)

        scores, thresholds, chosen = part(self.scores, np.float64), part(self.thresholds, np.float64), part(self.chosen, np.bool_)
        return Decided(ids, scores, thresholds, chosen, part(self.seen, np.int64), self.segment.begun.epoch)


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

    def decide(self, requests: Sequence[StreamRequest]) -> list[Answer]:
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
            answers: dict[int, Answer] = {}
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
        if not self._behind and (there is None or (due and self._is_young(there))):
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
                return self._log.commit_decisions(there.table(), progress, saved, about([there.said.decode()]), logged=True)

            self._behind = True  # unless it comes to be written
            self._folding = there, self._aside(commit)
            self._behind = False
            self._note_folded(wait=not due)

    def at_hand(self, request: str) -> bool:
        """Tell whether a request of this id is decided on at once, without a look at a file or at all that was decided."""
        there = self._open
        if self._behind or self._state is None or there is None or there.segment.lost or not self._is_young(there):
            return False
        noted = self._folding is None or not self._folding[1].done()
        return noted and self._progress.model == self._model and not self._known.parts(request)

    def _is_young(self, there: _Open) -> bool:
        return there.rows < _FOLD_ROWS and self._clock() < there.since + FOLD_SECONDS

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
        self._known.add(there.hashes, part)
        self._read = part
        let_go = [there]
        del there
        # a file whose name is gone is removed when it is closed, which nobody who waits for a decision should wait for
        with suppress(RuntimeError):  # no thread is to be had: then here
            threading.Thread(target=let_go.clear, name="raystream-let-go", daemon=True).start()

    def _decide(self, requests: Sequence[StreamRequest]) -> dict[str, Answer] | None:
        """Return the decisions on new requests, by their ids; None if somebody else's come first."""
        try:
            return self._written(requests)
        except BaseException:
            if self._open is not None:
                self._open.segment.lost = True  # it isn't known how far its state has gone on
            raise

    def _written(self, requests: Sequence[StreamRequest]) -> dict[str, Answer] | None:
        state, progress = self._now()
        self._state = None  # it goes on with these rows, and is the log's again once they are in it
        scores = np.concatenate([request.scores for request in requests])
        given = [request.vectors for request in requests if request.vectors is not None]
        vectors = np.concatenate(given) if given else None
        ids = self._log.ids_as_before(pa.concat_arrays([request.ids for request in requests]))
        before = state.sampler.seen
        decided = Decided.by(state.decide(scores, vectors, None), ids, scores, before, progress.epoch)
        named = [(request.id, request.asked, len(request.ids)) for request in requests]
        record = Record(said_of(named), decided, vectors)
        seen, chosen = state.sampler.seen, state.sampler.labelled
        progress = replace(progress, rows=progress.rows + len(decided), seen=seen, chosen=chosen)
        if self._appends and self._whole != progress.parts + 1:
            if self._open is None:
                begun = Begun(progress.epoch, progress.model, self._classes, self._in_columns(decided).schema)
                segment = self._log.begin_segment(progress.parts + 1, begun)
                if segment is None:
                    self._let_go_first(progress.parts + 1)
                    return None
                self._open = _Open(segment, self._clock())
            self._open.add(record, named)
            self._progress = progress
        else:
            self._note_folded(wait=True)
            saved = state.saved
            table = self._in_columns(decided)
            committed = self._log.commit_decisions(table, replace(progress, parts=progress.parts + 1), saved, about([record.requests]))
            if committed is None:
                return None
            self._come_to(committed, saved, named)
        self._state = state
        told = decided.as_told(self._log.schema)
        answers: dict[str, Answer] = {}
        end = 0
        for known, _, count in named:
            answers[known] = told.slice(end, end := end + count)
        return answers

    def _in_columns(self, decided: Decided) -> pa.Table:
        return decided.in_columns(self._stream.pool.id or "id", self._log.schema)

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
        self._known.add([_hash(known) for known, _, _ in requests], progress.parts)

    def _now(self) -> tuple[StreamState, Progress]:
        """Find what decisions go on from; another model than the last begins another epoch."""
        progress, anew = self._progress, self._progress.model != self._model
        if self._state is None or anew:
            self._state = StreamState.of(self._stream, self._classes, self._saved, anew)
        return self._state, replace(progress, epoch=progress.epoch + 1, model=self._model) if anew else progress

    def _answered(self, request: StreamRequest) -> Answer | None:
        """Return what was decided on a request of this id, if it was."""
        for there in (self._open, self._folding and self._folding[0]):
            if there is not None and (answer := there.answered(request)) is not None:
                return answer
        for part in self._known.parts(request.id):
            file = self._log.part(part)
            first = 0
            for known, asked, rows in requests_of(file.schema_arrow):
                if known == request.id:
                    whole: pa.Table = file.read(use_threads=False)
                    return Decided.of(whole.slice(first, rows)) if asked == request.asked else _taken(request)
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
                self._known.add([_hash(known) for known, _, _ in requests_of(self._log.part(number).schema_arrow)], number)
        self._read, self._behind = self._progress.parts, False


class _Seen:
    """Which requests were decided on, and in which file of decisions: 12 bytes each, which may rarely name one too many."""

    def __init__(self) -> None:
        self._pieces: list[tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]] = []  # each by hash, and much longer than the next

    def add(self, hashes: Sequence[int], part: int) -> None:
        """Note requests, by the hashes of their ids, with the number of their file."""
        if not hashes:
            return
        late = np.sort(np.asarray(hashes, np.uint64))
        piece = late, np.full(len(late), part, np.uint32)
        while self._pieces and len(self._pieces[-1][0]) < _LONGER * len(piece[0]):
            before = self._pieces.pop()
            both = np.concatenate([before[0], piece[0]])
            order = np.argsort(both, kind="stable")
            piece = both[order], np.concatenate([before[1], piece[1]])[order]
        self._pieces.append(piece)

    def parts(self, known: str) -> list[int]:
        """List the files that may hold the decisions on a request."""
        number, found = np.uint64(_hash(known)), list[int]()
        for hashes, parts in self._pieces:
            at = int(hashes.searchsorted(number))
            while at < len(hashes) and hashes[at] == number:
                found.append(int(parts[at]))
                at += 1
        return found


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _digest(asked: str) -> bytes:
    return hashlib.sha256(asked.encode()).digest()[:_ASKED]


def _at_once(commit: Commit) -> Future[Progress | None]:
    done: Future[Progress | None] = Future()
    try:
        done.set_result(commit())
    except BaseException as error:
        done.set_exception(error)
    return done


def _taken(request: StreamRequest) -> QueryError:
    return QueryError(f"request_id {request.id!r} was another request's; give each its own")

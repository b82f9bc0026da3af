"""The looks of one call of a stream: what arrived is noted before anything is scored, then scored, then decided on, file by file.

Whoever is ended in between, and in whatever way, is gone on from where the last file of decisions ends: that file is whole or not there,
and names the state that all further decisions depend on.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raystream.errors import ModelError, PoolError
from raystream.figures import number_of
from raystream.loop.streams.arrivals import SETTLING_SECONDS, PoolListing, list_arrivals
from raystream.loop.streams.decisions import Drift, StreamState
from raystream.loop.streams.log import Arrival, Progress, StreamLog, fold
from raystream.pool import check_unique
from raystream.pool.ids import KnownIds, comparable, derived_ids
from raystream.pool.plan import NoReadableFileError, NoRowsError
from raystream.query.catalogue import SAMPLE_SCORES
from raystream.query.simulate import Stream
from raystream.scoring.executor import WorkerSource
from raystream.scoring.job import ScoringJob
from raystream.scoring.plan import ResolvedQuery, ScoringPlan, resolve
from raystream.scoring.progress import Reporter
from raystream.scoring.scored_pool import unit_vectors
from raystream.scoring.session import Session, model_notes, one_opinion, refuse_quarantined, score_warnings
from raystream.store.calibration import Calibration
from raystream.store.life import SignOfLife
from raystream.store.receipts import EMBEDDINGS, UnitOutputs
from raystream.store.unit_columns import check_same_model, quarantined_rows, read_columns

PART_ROWS = 1 << 16
"""Rows of a file of decisions, at most."""

Array = npt.NDArray[Any]

_log = logging.getLogger("raystream")


class Looks:
    """Use as a context manager.

    Args:
        stream: what is asked.
        log: its files in the store.
        reporter: told how far it is.
        processes: where workers run.
        calibration: of the temperature, where it was to be fitted.
        now: the time in seconds since the epoch.

    Attributes:
        progress: how far the stream has come.
        new_rows: decided on by this call.
        oldest: when the oldest file came that isn't decided on, in seconds since the epoch; None where there is none.
        warnings: sentences for the user.
    """

    def __init__(
        self,
        stream: Stream,
        log: StreamLog,
        reporter: Reporter,
        processes: WorkerSource,
        calibration: Calibration | None,
        now: Callable[[], float],
    ) -> None:
        self._stream, self._query, self._log = stream, stream.query, log
        self._reporter, self._processes, self._calibration, self._now = reporter, processes, calibration, now
        self._arrivals: list[Arrival] = []
        self._paths: dict[str, int] = {}
        self._saved: dict[str, Any] = {}
        self._state: StreamState | None = None
        self._session: tuple[ScoringJob, Session] | None = None
        self._drifts = 0
        self.progress = Progress()
        self.new_rows = 0
        self.oldest: float | None = None
        self.warnings: dict[str, None] = {}

    def __enter__(self) -> Looks:
        self._read_arrivals()
        self._read_progress()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end_session()

    @property
    def drift(self) -> Drift:
        """Of the scores of the model that scored last."""
        return Drift.of(self._saved["drift"]) if self._saved else Drift()

    def look(self, pause: Callable[[float], object]) -> None:
        """Decide on what an earlier look left, then on what is new; a stream that isn't followed waits once for files that are too young.

        Args:
            pause: waits so many seconds.
        """
        listing = list_arrivals(self._stream.pool)
        self._decide(listing)
        new, young = listing.new(self._paths, self._now())
        if young and not self._stream.stream.follow:
            pause(SETTLING_SECONDS)
            listing = list_arrivals(self._stream.pool)
            new, young = listing.new(self._paths, self._now())
        if new:
            number = self._arrivals[-1].look + 1 if self._arrivals else 1
            self._log.commit_arrivals(number, new)
            self._read_arrivals(number)
        self._name_changed(listing)
        self._decide(listing)
        self.oldest = min((arrival.time / 1e9 for arrival in young), default=None)

    def _decide(self, listing: PoolListing) -> None:
        """Decide on all that arrived."""
        while self.progress.file < len(self._arrivals):
            first = self.progress.file
            look = self._arrivals[first].look
            end = next((i for i in range(first, len(self._arrivals)) if self._arrivals[i].look != look), len(self._arrivals))
            rows, chosen = self.progress.rows, self.progress.chosen
            if not self._decide_on(listing, first, end):
                self._read_progress()  # somebody else was first, and goes on as we would
                continue
            rows, chosen = self.progress.rows - rows, self.progress.chosen - chosen
            self.new_rows += rows
            share = f"{self.progress.chosen / self.progress.seen:.4f} of all so far" if self.progress.seen else "none so far"
            what = f"{number_of(end - first, 'file')}, {number_of(rows, 'row')}, {chosen:,} chosen, {share}"
            self._reporter.stage(f"Look {look}: {what}{self._waited(first, end)}")
            self._tell_drift()

    def _tell_drift(self) -> None:
        """Say once of each kind that there is drift, where the command doesn't end and say it then."""
        told = self.drift.warnings
        if self._stream.stream.follow and len(told) > self._drifts:
            _log.warning("%s", "; ".join(told))
        self._drifts = len(told)

    def _waited(self, first: int, end: int) -> str:
        times = [arrival.time for arrival in self._arrivals[first:end] if arrival.version]
        return f"; the oldest had waited {max(0.0, self._now() - min(times) / 1e9):.1f} s" if times else ""

    def _decide_on(self, listing: PoolListing, first: int, end: int) -> bool:
        """Decide on the arrivals of one look from `first` on; tell whether it was us who did."""
        present = [arrival for arrival in self._arrivals[first:end] if self._can_be_read(listing, arrival)]
        try:
            asked = resolve(self._query, self._calibration, listed=listing.of(present)) if present else None
        except NoRowsError as error:
            asked = None
            self._warn(*[str(error)] * isinstance(error, NoReadableFileError))
        if asked is not None:
            units = sorted(asked.pool.units, key=lambda unit: (self._paths[unit.file.path], unit.first_row))
            plan = asked.plan(units)
            with SignOfLife() as life:
                life.begin(self._log.store, self._log.folder)
                life.needs(plan.keys)
                session = self._session_of(asked, self._arrivals[first].look, listing)
                scored = session.score(plan)
                self._warn(*asked.warnings)
                if not self._commit_parts(asked, plan, scored, end):
                    return False
            self._warn(*score_warnings(self._query, [unit for unit in scored if unit is not None], session))
        if self.progress.file < end and self.progress.parts:
            # no row of theirs was to be decided on: they are done, too
            return self._commit(_DecisionsPart.empty(self._log.schema), (end, -1))
        self.progress = replace(self.progress, file=end, row=-1)
        return True

    def _can_be_read(self, listing: PoolListing, arrival: Arrival) -> bool:
        """Tell whether a file that arrived is still there.

        Raises:
            PoolError: it is gone or another, and some of its rows are decided on.
        """
        there = arrival.path in listing.files
        if there and listing.is_same(arrival):
            return True
        what = "was changed" if there else "has vanished"
        if self._paths[arrival.path] == self.progress.file and self.progress.row >= 0:
            raise PoolError(
                f"{arrival.path} {what} after rows up to {self.progress.row} of it were decided on, so the rest of those that arrived "
                "can't be read; restore it, or give stream.name another name"
            )
        then = "it is read as it is now" if there else "its rows are left out"
        self._warn(f"{arrival.path} {what} after it arrived and before it was decided on; {then}")
        return there

    def _commit_parts(self, asked: ResolvedQuery, plan: ScoringPlan, scored: Sequence[UnitOutputs | None], end: int) -> bool:
        """Decide on the rows of a look, so many at a time; tell whether all of its decisions are ours."""
        units = [unit for unit in scored if unit is not None]
        refuse_quarantined(self._query, units)
        lone = next((unit for unit in units if unit.rows and unit.members is None), None)
        if lone is not None and self._query.acquire.score in SAMPLE_SCORES:
            raise one_opinion(self._query.acquire.score, lone.unit)
        check_same_model(units)
        self._warn(*model_notes(units))
        while not self._log.claim(self.progress.parts + 1):
            self._read_progress()  # a server has rows by request in the log: they come first, and then it waits for ours
        part = _DecisionsPart()
        for block in self._blocks(asked, plan, scored):
            at = 0
            while at < block.rows:
                size = min(block.rows - at, PART_ROWS - part.rows)
                state = self._state_of(asked, units)
                part.add(self._query.pool.id or "id", block.slice(at, size), state, self.progress.epoch)
                at += size
                if part.rows == PART_ROWS:
                    whole = block.final and at == block.rows
                    if not self._commit(part, (block.file + 1, -1) if whole else (block.file, int(block.places[at - 1]))):
                        return False
                    part = _DecisionsPart()
        return not part.rows or self._commit(part, (end, -1))

    def _commit(self, part: _DecisionsPart, through: tuple[int, int]) -> bool:
        """Commit the next decisions, after which all is decided up to this arrival and row; False if somebody else was first."""
        before, saved = self.progress, self._saved
        progress = replace(before, parts=before.parts + 1, file=through[0], row=through[1], rows=before.rows + part.rows)
        if self._state is not None:
            progress = replace(progress, seen=self._state.sampler.seen, chosen=self._state.sampler.labelled)
            saved = self._state.saved
        committed = self._log.commit_decisions(pa.concat_tables(part.tables), progress, saved)
        if committed is None:
            return False
        self.progress, self._saved = committed, saved
        return True

    def _blocks(self, asked: ResolvedQuery, plan: ScoringPlan, scored: Sequence[UnitOutputs | None]) -> Iterator[_ArrivedRows]:
        """Give the rows that are still to be decided on, in the order of their arrival, those of a unit at most at a time."""
        id_name, score = self._query.pool.id or "id", self._query.acquire.column
        decided, labelled = self._decided(asked), asked.labelled
        barred = [] if labelled is None else [KnownIds(some) for some in (labelled.ids, labelled.excluded) if len(some)]
        found = [(self._paths[unit.file.path], outputs) for unit, outputs in zip(plan.units, scored, strict=True)]
        for at, (file, outputs) in enumerate(found):
            final = at + 1 == len(found) or found[at + 1][0] != file
            if outputs is None or not outputs.rows + outputs.quarantined:
                continue
            table = next(read_columns(self._log.store, [outputs], [id_name, score, "row"]))
            scored_rows = table.column(0).combine_chunks(), table.column(1).to_numpy(), table.column(2).to_numpy(), self._vectors(outputs)
            ids, scores, places, vectors = self._with_quarantined(outputs, self._arrivals[file].path, *scored_rows)
            check_unique(ids, id_name, lambda row, of=outputs, at=places: f"{of.unit} row {at[row]}")  # type: ignore[misc]
            kept = np.ones(len(ids), dtype=bool) if file > self.progress.file else places > self.progress.row
            if decided is not None:
                kept &= decided.index(comparable(ids)) < 0
            known = None
            if barred:
                known = np.any([some.index(comparable(ids)) >= 0 for some in barred], axis=0)
            block = _ArrivedRows(file, final, ids, scores, places, vectors, known)
            yield block if kept.all() else block.take(np.flatnonzero(kept))

    def _with_quarantined(
        self, outputs: UnitOutputs, path: str, ids: pa.Array, scores: Array, places: Array, vectors: Array | None
    ) -> tuple[pa.Array, Array, Array, Array | None]:
        """Return a unit's rows with those that could not be scored, which have arrived, too: their score is no number."""
        table = next(quarantined_rows(self._log.store, [outputs]), None)
        if table is None:
            return ids, scores, places, vectors
        rows = table.column("row").to_numpy()
        others = derived_ids(path, rows) if self._query.pool.id is None else table.column(0).combine_chunks()
        whole = pa.concat_arrays([ids, others.cast(ids.type)])
        order = np.argsort(np.concatenate([places, rows]), kind="stable")
        if vectors is not None:
            vectors = np.concatenate([vectors, np.full((len(rows), vectors.shape[1]), np.nan, vectors.dtype)])[order]
        scores = np.concatenate([scores, np.full(len(rows), np.nan, scores.dtype)])[order]
        return whole.take(pa.array(order)), scores, np.concatenate([places, rows])[order], vectors

    def _vectors(self, outputs: UnitOutputs) -> Array | None:
        if not self._query.needs_embedding:
            return None
        found = unit_vectors(self._log.store, [outputs], EMBEDDINGS)
        if not found and outputs.rows:
            raise ModelError("the model gave no embedding; name the module in model.embedding")
        return found[0] if found else np.empty((0, 0), np.float32)

    def _decided(self, asked: ResolvedQuery) -> KnownIds | None:
        """Read the ids that were decided on, where files may hold such rows again; None where none does.

        Raises:
            PoolError: they may, and rows can't be told apart.
        """
        rewritten = [file.path for file in asked.pool.files if self._arrivals[self._paths[file.path]].rewritten]
        ids = self._log.ids() if rewritten else None
        if ids is None:
            return None
        if self._query.pool.id is None:
            raise PoolError(
                f"{rewritten[0]} came into its table when other files left it, so it may hold their rows again, and without pool.id rows "
                "can't be told from those that were decided on; name the column of ids in pool.id, and give stream.name another name"
            )
        return KnownIds(pc.unique(comparable(ids)).sort())

    def _state_of(self, asked: ResolvedQuery, units: Sequence[UnitOutputs]) -> StreamState:
        """Find what decisions go on from; another model begins another epoch."""
        names = [asked.fingerprint, *(output.name for output in asked.outputs)]
        model = hashlib.sha256("\n".join(names).encode()).hexdigest()
        if self._state is not None and model == self.progress.model:
            return self._state
        anew = model != self.progress.model
        classes = next((unit.classes for unit in units if unit.classes is not None), None)
        saved = self._saved if self._state is None else self._state.saved
        self._state = StreamState.of(self._stream, classes, saved, anew)
        if anew:
            self.progress = replace(self.progress, epoch=self.progress.epoch + 1, model=model)
            if self.progress.epoch > 1:
                self._warn(
                    f"the model or the score has changed: epoch {self.progress.epoch} begins after {number_of(self.progress.rows, 'row')}, "
                    "whose scores are not compared with those from here on"
                )
        return self._state

    def _session_of(self, asked: ResolvedQuery, look: int, listing: PoolListing) -> Session:
        """Start workers, or go on with those of the last look if they can score this one, too.

        Their events are kept by the first look that they score. A worker that is started later reads the first rows of that look, which
        must still be there.
        """
        known, session = self._session or (None, None)
        if known is None or not _alike(known, asked.job) or any(unit.file.path not in listing.files for unit in known.first):
            self._end_session()
            folder = self._log.events(look)
            session = Session(asked.job, self._log.store, folder, self._reporter, self._processes)
            self._session = asked.job, session
        assert session is not None
        return session

    def _end_session(self) -> None:
        if self._session is not None:
            self._session[1].end_workers()
        self._session = None

    def _name_changed(self, listing: PoolListing) -> None:
        """Warn of files whose rows were decided on, and which are others now."""
        for arrival in self._arrivals[: self.progress.file]:
            if arrival.path in listing.files and not listing.is_same(arrival):
                self._warn(
                    f"{arrival.path} was changed after its rows were decided on; the decisions stand, and its rows now are left alone: "
                    "write new rows to new files"
                )

    def _read_arrivals(self, look: int = 0) -> None:
        """Read what arrived, from one look on."""
        self._arrivals += self._log.arrivals(look)
        self._paths = {arrival.path: index for index, arrival in enumerate(self._arrivals)}

    def _read_progress(self) -> None:
        fold(self._log)
        self.progress, self._saved = self._log.progress()
        self._state = None

    def _warn(self, *sentences: str) -> None:
        for sentence in sentences:
            if sentence not in self.warnings:
                self.warnings[sentence] = None
                if self._stream.stream.follow:
                    _log.warning("%s", sentence)


def _alike(one: ScoringJob, other: ScoringJob) -> bool:
    """Tell whether workers of one job can do the other; Ray adds folders to those that are imported from."""
    return replace(one, first=other.first, import_paths=other.import_paths) == other


@dataclass(frozen=True)
class _ArrivedRows:
    """Rows of one unit.

    Attributes:
        file: the number of the arrival.
        final: whether its last rows are among these.
        ids, scores: of each row.
        places: where it stands in the file.
        vectors: embeddings, if there are any.
        known: whether it has a label already.
    """

    file: int
    final: bool
    ids: pa.Array
    scores: Array
    places: npt.NDArray[np.int64]
    vectors: Array | None
    known: npt.NDArray[np.bool_] | None

    @property
    def rows(self) -> int:
        return len(self.ids)

    def slice(self, start: int, size: int) -> _ArrivedRows:
        """Return some of the rows."""
        return self.take(np.arange(start, start + size))

    def take(self, rows: npt.NDArray[np.int64]) -> _ArrivedRows:
        """Return some of the rows."""
        vectors, known = (None if values is None else values[rows] for values in (self.vectors, self.known))
        return replace(
            self, ids=self.ids.take(pa.array(rows)), scores=self.scores[rows], places=self.places[rows], vectors=vectors, known=known
        )


class _DecisionsPart:
    """Decisions that are committed together."""

    def __init__(self) -> None:
        self.tables: list[pa.Table] = []
        self.rows = 0

    @classmethod
    def empty(cls, schema: pa.Schema) -> _DecisionsPart:
        """Make a part of no row."""
        part = cls()
        part.tables.append(schema.remove_metadata().empty_table())
        return part

    def add(self, id_name: str, block: _ArrivedRows, state: StreamState, epoch: int) -> None:
        """Decide on further rows."""
        before = state.sampler.seen
        vectors = None if block.vectors is None else block.vectors.astype(np.float64)
        found = state.decide(block.scores.astype(np.float64), vectors, block.known)
        self.rows += block.rows
        self.tables.append(
            pa.table(
                {
                    id_name: block.ids,
                    "score": pa.array(block.scores, from_pandas=True),
                    "threshold": pa.array([None if decision is None else decision.threshold for decision in found], pa.float64()),
                    "chosen": pa.array([decision is not None and decision.chosen for decision in found], pa.bool_()),
                    "seen": pa.array(before + np.cumsum([decision is not None for decision in found]), pa.int64()),
                    "epoch": pa.array(np.full(block.rows, epoch), pa.int32()),
                }
            )
        )

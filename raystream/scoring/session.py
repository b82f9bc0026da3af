"""Brings up workers when there is something to score, keeps them for what comes next, and ends them."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType

import numpy as np

from raystream.errors import ModelError, PoolError, StoreError, UnitsFailed
from raystream.figures import number_of
from raystream.query import Query
from raystream.scoring.executor import (
    Event,
    Executor,
    Scoring,
    StartFailed,
    Told,
    UnitEnded,
    UnitGoesOn,
    WorkerLost,
    WorkerReady,
    WorkerSource,
)
from raystream.scoring.job import ScoringJob, UnitTask
from raystream.scoring.plan import ScoringPlan, Tasks
from raystream.scoring.progress import Meter, Reporter, ScoringProgress
from raystream.store.integrity import MOST_KNOWN, just_written
from raystream.store.life import SignOfLife
from raystream.store.packs import write_packs
from raystream.store.protocol import Store
from raystream.store.receipts import UnitOutputs
from raystream.store.unit_columns import ScoredUnits, of_models, whole_units, with_losses

_log = logging.getLogger("raystream")
_NAMED_FAILURES = 3
_ROUNDING = 1e-9
"""0.29 x 100 is a little less than 29."""
FAILED_UNITS = "failed_units.jsonl"
"""In a query's folder: the units that the last run had to do without."""


class Session:
    """The workers of one run. Nothing is started until something must be scored.

    Args:
        job: what they are told.
        store: where they write to.
        folder: of the store, where it is kept what each worker did.
        reporter: told how far it is.
        processes: where workers run.
        life: the run's signs of life; left out, there are some while workers are up.
        may_score: whether anything may be computed; see there.

    Attributes:
        units_scored: units for which the model ran.
        bytes_read: of the pool, by these.
        warnings: what is to be said of units that were left out, and of requests that broke.
    """

    def __init__(
        self,
        job: ScoringJob,
        store: Store,
        folder: str,
        reporter: Reporter,
        processes: WorkerSource,
        life: SignOfLife | None = None,
        *,
        may_score: bool = True,
    ) -> None:
        self._job, self._store, self._folder, self._processes = job, store, folder, processes
        self._life, self._own_life = life or SignOfLife(), life is None
        self._progress = _ProgressLog(store, reporter, folder)
        self._executor: Executor | None = None
        self._scoring: Scoring | None = None
        self._left_out: list[str] = []
        self._asked = self._given_up = 0
        self._failed: list[str] = []
        self._repeated = 0
        self.units_scored = self.bytes_read = 0
        self.may_score = may_score

    @property
    def start_seconds(self) -> float:
        """The seconds that it took until a worker was up; 0 if none was needed."""
        return self._progress.start_seconds

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end_workers()

    def end_workers(self) -> None:
        """Give back what the workers hold: nothing more is to be scored."""
        if self._executor is not None:
            self._executor.close()
        self._executor = self._scoring = None
        if self._own_life:
            self._life.end()
            self._life = SignOfLife()
        self._progress.end()

    @property
    def warnings(self) -> list[str]:
        again = [f"{self._repeated} requests to object storage broke and were made again"] if self._repeated else []
        return [*self._left_out, *again]

    def needs(self, plan: ScoringPlan) -> None:
        """Note that the run uses what this plan names beside the plan in its folder: `raystream gc` is told to leave these units whole."""
        self._life.needs(plan.keys)

    def score(self, plan: ScoringPlan) -> ScoredUnits:
        """Return the outputs of a plan's units, what the store lacks computed now; without the units that `on_error: skip` leaves out.

        Raises:
            UnitsFailed: units failed three times, and the query says to fail, or more of them than it may leave out.
        """
        self.compute(plan)
        return whole_units(self._store, plan.found)

    def compute(self, plan: ScoringPlan, task_of: Callable[[UnitTask], UnitTask] | None = None) -> None:
        """Compute and keep what the store lacks of a plan's outputs, which comes into its tables; see `score`.

        Args:
            plan: says what.
            task_of: what a worker is to be told instead of each task; left out, the task.
        """
        try:
            self._compute(plan, task_of)
        except UnitsFailed:
            self._pack(plan)  # the others are scored
            raise
        self._pack(plan)

    def _pack(self, plan: ScoringPlan) -> None:
        with suppress(StoreError):  # packs only spare later lookups
            write_packs(self._store, plan.found)

    def _compute(self, plan: ScoringPlan, task_of: Callable[[UnitTask], UnitTask] | None) -> None:
        missing = plan.missing
        self._asked += len(plan.units)
        if not missing:
            return
        # The largest first: what is left when the first worker runs dry is then small.
        order = missing.places[np.argsort(-plan.units.bytes[missing.places], kind="stable")]
        tasks, rows = Tasks(plan, order, task_of), plan.units.rows[order]
        self._progress.begin(rows)
        if self._scoring is None:
            self._scoring = self._start(int(rows.sum()), int(plan.units.bytes[order].sum()))
        tables = {table.output: table for table in plan.found}
        places = order.data
        to_remember = len(tasks) * len(tables) <= MOST_KNOWN  # of more, the first would be forgotten before they are read

        def keep(index: int, unit: UnitOutputs) -> None:
            place, new = places[index], False
            for receipt in unit.receipts:
                new |= tables[receipt.output].add(place, receipt)  # they may come twice
            if to_remember:
                just_written(self._store, unit.files)
            if new and task_of is None:
                self.units_scored += 1
                self.bytes_read += unit.receipts[0].bytes_read
                self._repeated += unit.receipts[0].repeated_reads

        failed = self._scoring.score(tasks, keep)
        self._progress.tell()
        self._judge(tasks, failed)

    def _judge(self, tasks: Sequence[UnitTask], failed: Mapping[int, tuple[BaseException, ...]]) -> None:
        if not failed:
            return
        told = [(tasks[index].unit.name, [str(cause) for cause in causes]) for index, causes in sorted(failed.items())]
        self._keep_causes(told)
        count = len(failed)
        where = f"; {self._store.place(f'{self._folder}/{FAILED_UNITS}')} has all causes"
        if not self._job.skip_bad_rows:
            raise UnitsFailed(
                f"{count} of {number_of(len(tasks), 'unit')} failed three times: {_by_cause(told)}{where}; the others are scored and kept, "
                "mend the cause and run again, or set on_error to skip"
            )
        self._given_up += count
        first = _by_cause([(name, causes[-1:]) for name, causes in told])
        if self._given_up > self._job.max_quarantined * self._asked + _ROUNDING:
            some_are = self._given_up < self._asked
            kept, allow = ("the others are scored and kept, ", ", or raise max_quarantined") if some_are else ("", "")
            raise UnitsFailed(
                f"{self._given_up} of {number_of(self._asked, 'unit')} can't be scored, {self._given_up / self._asked:.2%} of them, and "
                f"max_quarantined allows {self._job.max_quarantined:.2%}: {first}{where}; {kept}mend the cause and run again{allow}"
            )
        self._left_out.append(f"{number_of(count, 'unit')} {'was' if count == 1 else 'were'} left out: {first}{where}")

    def _keep_causes(self, failed: Sequence[tuple[str, Sequence[str]]]) -> None:
        """Leave a line for each unit that has no outputs, with the causes of all attempts, oldest first."""
        lines = [json.dumps({"unit": name, "causes": causes}) for name, causes in failed]
        self._failed += lines
        with suppress(StoreError):  # they only inform
            self._store.put(f"{self._folder}/{FAILED_UNITS}", "".join(f"{line}\n" for line in self._failed).encode())

    def _start(self, rows: int, size: int) -> Scoring:
        if not self._life.begun:
            self._life.begin(self._store, self._folder)
        self._executor, workers = self._processes.workers(replace(self._job, token=self._life.token), rows, size)
        return Scoring(self._executor, workers, keep_going=self._job.skip_bad_rows, on_event=self._progress.on_event)


def _by_cause(told: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Name the first causes that units failed for, in words: each once, after the first of the units that it is the same for."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, causes in told:
        alike.setdefault(tuple(dict.fromkeys(cause.removeprefix(f"{name}: ") for cause in causes)), []).append(name)
    some = list(alike.items())[:_NAMED_FAILURES]
    others = [f" and {number_of(len(names) - 1, 'other unit')}" if len(names) > 1 else "" for _, names in some]
    words = [f"{names[0]}{more}: {' / '.join(causes)}" for (causes, names), more in zip(some, others, strict=True)]
    rest = len(told) - sum(len(names) for _, names in some)
    return "; ".join(words) + (f" (and {rest} more)" if rest else "")


class _ProgressLog:
    """Follows what workers do for the reporter and for `workers.jsonl`."""

    def __init__(self, store: Store, reporter: Reporter, folder: str) -> None:
        self._store, self._reporter, self._folder = store, reporter, folder
        # invariant: how many rows of each unit that has begun and not ended are behind
        self._behind: dict[int, int] = {}
        self._unit_rows = np.empty(0, np.int64)
        self._ended = bytearray()
        self._units = self._rows = self._of_rows = 0
        self._began = self._ready = self._last = self._kept = self._told = 0.0
        self._meter = Meter()
        self._lines: list[str] = []
        self._up: set[int] = set()
        self.start_seconds = 0.0

    def begin(self, rows: np.ndarray) -> None:
        """Expect units of so many rows each, too; they are known by their numbers, counted on from the last."""
        self._began = time.perf_counter()
        if self._ready:
            self._ready += self._began - self._last  # nothing was scored in between
        self._unit_rows = np.concatenate([self._unit_rows, rows])
        self._ended += bytes(len(rows))
        self._of_rows += int(rows.sum())

    def on_event(self, event: Event | None) -> None:
        now = self._last = time.perf_counter()
        if isinstance(event, UnitEnded):
            if isinstance(event.outcome, UnitOutputs):
                self._end_unit(event.unit)
        elif isinstance(event, UnitGoesOn):
            self._go_on(event.unit, event.rows)
        elif isinstance(event, WorkerReady):
            if not self._ready:
                self._ready = now
                self.start_seconds = now - self._began
                self._reporter.stage(f"Scoring {number_of(self._of_rows, 'row')} in {number_of(len(self._ended), 'unit')}")
            self._up.add(event.worker)
            self.tell()
        elif isinstance(event, WorkerLost):
            self._up.discard(event.worker)
        elif isinstance(event, Told):
            _log.warning("%s", event.text)
        if event is not None and not isinstance(event, UnitGoesOn):
            self._lines.append(_line(event))
        if event is None or now - self._kept > _KEPT_SECONDS:
            self._kept = now
            self._write()
        if now - self._told > _TOLD_SECONDS:
            self.tell()

    def tell(self) -> None:
        """Tell the reporter how far it is, once a worker is up."""
        if self._ready:
            self._told = self._last
            self._reporter.units(self._so_far(self._last - self._ready))

    def _go_on(self, unit: int, rows: int) -> None:
        if not self._ended[unit]:
            self._rows += rows - self._behind.get(unit, 0)  # less than before, where it is begun again
            self._behind[unit] = rows

    def _end_unit(self, unit: int) -> None:
        behind = self._behind.pop(unit, 0)
        if not self._ended[unit]:
            self._rows += int(self._unit_rows[unit]) - behind
            self._ended[unit], self._units = True, self._units + 1

    def _so_far(self, seconds: float) -> ScoringProgress:
        rate = self._meter.rate(self._rows, seconds)
        left = None if rate is None or self._units == len(self._ended) else (self._of_rows - self._rows) / rate
        return ScoringProgress(self._units, len(self._ended), self._rows, self._of_rows, rate, left, len(self._up))

    def end(self) -> None:
        """Keep all that was noted: no further event comes, the workers being gone."""
        self._up.clear()
        self._write()
        with suppress(StoreError):  # events only inform
            self._store.flush()

    def _write(self) -> None:
        if self._lines:
            with suppress(StoreError):
                self._store.append(f"{self._folder}/workers.jsonl", "".join(self._lines).encode())
            self._lines = []


_TOLD_SECONDS = 0.05
"""After which the reporter hears of progress again."""
_KEPT_SECONDS = 0.2
"""For which events are held back, since to write many at once takes no longer than to write one."""


_quoted = json.JSONEncoder().encode


def _line(event: Event) -> str:
    """Make a line of `workers.jsonl`."""
    head = f'{{"time": {time.time():.3f}, "event": "{type(event).__name__}", "worker": {event.worker}'
    if isinstance(event, UnitEnded):
        outcome = event.outcome
        if isinstance(outcome, UnitOutputs):  # by hand: there is one a unit
            written = outcome.receipts[0]
            again = f', "repeated_reads": {written.repeated_reads}' if written.repeated_reads else ""
            return f'{head}, "unit": {_quoted(written.unit)}, "rows": {outcome.rows}, "seconds": {written.seconds}{again}}}\n'
        return f"{head}, {json.dumps({'unit': event.unit, 'error': str(outcome.error)})[1:]}\n"
    if isinstance(event, StartFailed | WorkerLost):
        return f"{head}, {json.dumps({'error': str(event.error)})[1:]}\n"
    return f"{head}, {json.dumps({'text': event.text})[1:]}\n" if isinstance(event, Told) else f"{head}}}\n"


def refuse_quarantined(query: Query, units: Iterable[UnitOutputs]) -> None:
    """Refuse units that were scored with rows left out for a query that must not leave out any.

    Raises:
        PoolError: there is one.
    """
    if query.on_error != "fail":
        return
    for unit in with_losses([units]):
        raise PoolError(
            f"{unit.unit}: {unit.quarantined} rows were quarantined when it was scored, "
            f"first: {unit.reasons[0]}; set on_error to skip to choose from the rest"
        )


def one_opinion(compares: str, unit: str, otherwise: str = "") -> ModelError:
    """Make the error for what compares several opinions of a row, where the model gave one.

    Args:
        compares: the score or the strategy.
        unit: the name of one whose rows got one each.
        otherwise: what else could be asked.
    """
    return ModelError(
        f"{compares} compares several opinions of a row, but the model gave one in unit {unit}; use a committee, such as a forest, or MC "
        f"dropout{otherwise}"
    )


def score_warnings(query: Query, units: Iterable[UnitOutputs], session: Session) -> list[str]:
    """List the warnings that the scoring has for the user."""
    warnings = session.warnings
    lost = with_losses([units])
    first = next(lost, None)
    if first is not None:
        count = first.quarantined + sum(unit.quarantined for unit in lost)
        warnings.append(f"{count} rows were quarantined, first: {first.reasons[0]}")
    size = query.model.batch_size
    smallest = min((receipt.batch_size for receipt in of_models([units])), default=size)
    if smallest < size:
        warnings.append(f"the device ran out of memory and batches were cut from {size} to {smallest} rows; scores agree to 1e-6")
    return warnings


def model_notes(units: Iterable[UnitOutputs]) -> list[str]:
    """Collect what the workers that scored the units have to say of the model."""
    return list(dict.fromkeys(note for receipt in of_models([units]) for note in receipt.notes))

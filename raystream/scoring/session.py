"""Brings up workers when there is something to score, keeps them for what comes next, and ends them."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType

from raystream.errors import PoolError, StoreError, UnitsFailed
from raystream.figures import number_of
from raystream.query import Query
from raystream.scoring.executor import (
    Event,
    Executor,
    Scored,
    Scoring,
    StartFailed,
    Told,
    UnitEnded,
    UnitGoesOn,
    WorkerLost,
    WorkerReady,
    WorkerSource,
)
from raystream.scoring.job import Job, UnitTask
from raystream.scoring.plan import ScoringPlan
from raystream.scoring.progress import Meter, Progress, Reporter
from raystream.store.integrity import just_written
from raystream.store.life import SignOfLife
from raystream.store.packs import write_packs
from raystream.store.protocol import Store
from raystream.store.receipts import UnitOutputs
from raystream.store.unit_columns import aligned

_log = logging.getLogger("raystream")
_NAMED_FAILURES = 3


class Session:
    """The workers of one run. Nothing is started until something must be scored.

    Args:
        job: what they are told.
        store: where they write to.
        folder: of the store, where the run's events are kept.
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
        job: Job,
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
        self._progress = _Progress(store, reporter, folder)
        self._executor: Executor | None = None
        self._scoring: Scoring | None = None
        self._left_out: list[str] = []
        self._repeated = 0
        self.units_scored = self.bytes_read = 0
        self.may_score = may_score

    @property
    def start_seconds(self) -> float:
        """How long it took until a worker was up; 0 if none was needed."""
        return self._progress.start_seconds

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end_workers()

    def end_workers(self) -> None:
        """Nothing more is to be scored: give back what the workers hold."""
        if self._executor is not None:
            self._executor.close()
        self._executor = self._scoring = None
        if self._own_life:
            self._life.end()
            self._life = SignOfLife()
        with suppress(StoreError):  # events only inform
            self._store.flush()

    @property
    def warnings(self) -> list[str]:
        again = [f"{self._repeated} requests to object storage broke and were made again"] if self._repeated else []
        return [*self._left_out, *again]

    def needs(self, plan: ScoringPlan) -> None:
        """The run uses what this plan names beside the plan in its folder: `raystream gc` is told to leave these units whole."""
        self._life.needs(plan.keys)

    def score(self, plan: ScoringPlan) -> list[UnitOutputs | None]:
        """The outputs of all units of a plan, what the store lacks computed now; None for units that `on_error: skip` leaves out.

        Raises:
            UnitsFailed: units failed three times, and the query says to fail.
        """
        found = plan.complete(self.compute(plan.missing))
        with suppress(StoreError):  # packs only spare later lookups
            write_packs(self._store, found, plan.keys, [output.name for output in plan.outputs])
        whole = iter(aligned(self._store, [unit for unit in found if unit is not None]))
        return [unit if unit is None else next(whole) for unit in found]

    def compute(self, tasks: Sequence[UnitTask]) -> list[UnitOutputs | None]:
        """Compute and keep what the tasks say, one entry for each; see `score`."""
        if not tasks:
            return []
        # The largest first: what is left when the first worker runs dry is then small.
        order = sorted(range(len(tasks)), key=lambda index: -tasks[index].unit.bytes)
        ordered = [tasks[index] for index in order]
        self._progress.begin(ordered)
        if self._scoring is None:
            self._scoring = self._start(ordered)
        scored = self._scoring.score(ordered)
        self._judge(ordered, scored)
        outputs: list[UnitOutputs | None] = [None] * len(tasks)
        just_written(self._store, (file for unit in scored.outputs.values() for file in unit.files))
        for place, unit in scored.outputs.items():
            outputs[order[place]] = unit
            if tasks[order[place]].targets is None:
                self.units_scored += 1
                self.bytes_read += unit.receipts[0].bytes_read
                self._repeated += unit.receipts[0].repeated_reads
        return outputs

    def _judge(self, tasks: Sequence[UnitTask], scored: Scored) -> None:
        if not scored.failed:
            return
        causes = [str(cause) for _, cause in sorted(scored.failed.items())][:_NAMED_FAILURES]
        count = len(scored.failed)
        if not self._job.skip_bad_rows:
            more = f" (and {count - len(causes)} more)" if count > len(causes) else ""
            names = [f"{tasks[index].unit.name}: {cause}" for index, cause in sorted(scored.failed.items())][:_NAMED_FAILURES]
            raise UnitsFailed(
                f"{count} of {number_of(len(tasks), 'unit')} failed three times: {'; '.join(names)}{more}; the others are scored and kept, "
                "mend the cause and run again, or set on_error to skip"
            )
        self._left_out.append(f"{number_of(count, 'unit')} {'was' if count == 1 else 'were'} left out: {'; '.join(causes)}")

    def _start(self, tasks: Sequence[UnitTask]) -> Scoring:
        if not self._life.begun:
            self._life.begin(self._store, self._folder)
        self._executor, workers = self._processes.workers(replace(self._job, token=self._life.token), tasks)
        return Scoring(self._executor, workers, keep_going=self._job.skip_bad_rows, on_event=self._progress.on_event)


class _Progress:
    """Follows the events of a run for the reporter and for `events.jsonl`."""

    def __init__(self, store: Store, reporter: Reporter, folder: str) -> None:
        self._store, self._reporter, self._folder = store, reporter, folder
        self._tasks: list[UnitTask] = []
        # invariant: unit -> how many of its rows are behind; all of them once it has ended
        self._behind: dict[int, int] = {}
        self._rows = self._of_rows = 0
        self._ended: set[int] = set()
        self._began = self._ready = self._last = 0.0
        self._meter = Meter()
        self.start_seconds = 0.0

    def begin(self, tasks: Sequence[UnitTask]) -> None:
        """These further units are to be scored; they are known by their numbers, counted on from the last."""
        self._began = time.perf_counter()
        if self._ready:
            self._ready += self._began - self._last  # nothing was scored in between
        self._tasks += tasks
        self._of_rows += sum(task.unit.rows for task in tasks)

    def on_event(self, event: Event | None) -> None:
        now = self._last = time.perf_counter()
        if isinstance(event, WorkerReady) and not self._ready:
            self._ready = now
            self.start_seconds = now - self._began
            self._reporter.stage(f"Scoring {number_of(self._of_rows, 'row')} in {number_of(len(self._tasks), 'unit')}")
        if isinstance(event, UnitEnded) and isinstance(event.outcome, UnitOutputs):
            self._ended.add(event.unit)
            self._is_at(event.unit, self._tasks[event.unit].unit.rows)
        if isinstance(event, UnitGoesOn) and event.unit not in self._ended:
            self._is_at(event.unit, event.rows)
        if isinstance(event, Told):
            _log.warning("%s", event.text)
        if event is not None and not isinstance(event, UnitGoesOn):
            with suppress(StoreError):  # events only inform
                self._log(event)
        if self._ready:
            self._reporter.units(self._so_far(now - self._ready))

    def _is_at(self, unit: int, rows: int) -> None:
        """So much of a unit is behind; less than before, where it is begun again."""
        self._rows += rows - self._behind.get(unit, 0)
        self._behind[unit] = rows

    def _so_far(self, seconds: float) -> Progress:
        rate = self._meter.rate(self._rows, seconds)
        left = None if rate is None or len(self._ended) == len(self._tasks) else (self._of_rows - self._rows) / rate
        return Progress(len(self._ended), len(self._tasks), self._rows, self._of_rows, rate, left)

    def _log(self, event: Event) -> None:
        entry: dict[str, object] = {"time": round(time.time(), 3), "event": type(event).__name__, "worker": event.worker}
        if isinstance(event, UnitEnded):
            outcome = event.outcome
            if isinstance(outcome, UnitOutputs):
                written = outcome.receipts[0]
                entry |= {"unit": outcome.unit, "rows": outcome.rows, "seconds": written.seconds}
                entry |= {"repeated_reads": written.repeated_reads} if written.repeated_reads else {}
            else:
                entry |= {"unit": event.unit, "error": str(outcome.error)}
        if isinstance(event, StartFailed | WorkerLost):
            entry["error"] = str(event.error)
        if isinstance(event, Told):
            entry["text"] = event.text
        self._store.append(f"{self._folder}/events.jsonl", json.dumps(entry).encode() + b"\n")


def refuse_quarantined(query: Query, units: Sequence[UnitOutputs]) -> None:
    """Refuse units that were scored with rows left out for a query that must not leave out any.

    Raises:
        PoolError: there is one.
    """
    for unit in units:
        if unit.quarantined and query.on_error == "fail":
            raise PoolError(
                f"{unit.unit}: {unit.quarantined} rows were quarantined when it was scored, "
                f"first: {unit.reasons[0]}; set on_error to skip to choose from the rest"
            )


def score_warnings(query: Query, units: Sequence[UnitOutputs], session: Session) -> list[str]:
    """What the scoring has to say to the user."""
    warnings = session.warnings
    quarantined = sum(unit.quarantined for unit in units)
    if quarantined:
        warnings.append(f"{quarantined} rows were quarantined, first: {next(reason for unit in units for reason in unit.reasons)}")
    size = query.model.batch_size
    smallest = min((unit.batch_size for unit in units), default=size)
    if smallest < size:
        warnings.append(f"the device ran out of memory and batches were cut from {size} to {smallest} rows; scores agree to 1e-6")
    return warnings


def model_notes(units: Sequence[UnitOutputs]) -> list[str]:
    """What the workers that scored the units have to say of the model."""
    return list(dict.fromkeys(note for unit in units for note in unit.notes))

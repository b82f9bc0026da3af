"""Brings up workers when there is something to score, keeps them for what comes next, and ends them."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from raystream.errors import PoolError, StoreError, UnitsFailed
from raystream.figures import number_of
from raystream.query import Query
from raystream.scoring.class_labels import named_classes
from raystream.scoring.dispatch import Scored, Scoring
from raystream.scoring.executor import Event, Executor, Processes, StartFailed, Told, UnitEnded, WorkerLost, WorkerReady
from raystream.scoring.first_rows import PROBE_UNITS
from raystream.scoring.job import Job, Task, importable_folders
from raystream.scoring.plan import Prepared
from raystream.scoring.progress import Reporter
from raystream.scoring.score_reduction import Reduction
from raystream.store.integrity import just_written
from raystream.store.life import SignOfLife
from raystream.store.queries import query_folder
from raystream.store.receipts import Receipt

if TYPE_CHECKING:
    pass

_log = logging.getLogger("raystream")
_NAMED_FAILURES = 3


class Session:
    """The workers of one run. Nothing is started until something must be scored.

    Args:
        prepared: the query.
        reporter: told how far it is.
        processes: where workers run.
        folder: of the store, where its events are kept; the query's own if left out.
        life: the run's signs of life; left out, there are some while workers are up.
    """

    def __init__(
        self, prepared: Prepared, reporter: Reporter, processes: Processes, folder: str | None = None, life: SignOfLife | None = None
    ) -> None:
        self._prepared, self._processes = prepared, processes
        self._folder = folder = folder or query_folder(prepared.name)
        self._life, self._own_life = life or SignOfLife(), life is None
        self._progress = _Progress(prepared, reporter, folder)
        self._executor: Executor | None = None
        self._scoring: Scoring | None = None
        self.warnings: list[str] = []
        self.units_scored = 0

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
            self._prepared.store.flush()

    def score(self, tasks: Sequence[Task]) -> list[Receipt | None]:
        """Score the tasks; a receipt for each, or None for what `on_error: skip` leaves out.

        Raises:
            UnitsFailed: units failed three times, and the query says to fail.
        """
        if not tasks:
            return []
        self._progress.begin(len(tasks))
        if self._scoring is None:
            self._scoring = self._start(len(tasks))
        # The largest first: what is left when the first worker runs dry is then small.
        order = sorted(range(len(tasks)), key=lambda index: -tasks[index].unit.bytes)
        scored = self._scoring.score([tasks[index] for index in order])
        self.units_scored += sum(tasks[order[place]].epig is None for place in scored.receipts)
        self._judge([tasks[index] for index in order], scored)
        receipts: list[Receipt | None] = [None] * len(tasks)
        just_written(self._prepared.store, scored.receipts.values())
        for place, receipt in scored.receipts.items():
            receipts[order[place]] = receipt
        return receipts

    def _judge(self, tasks: Sequence[Task], scored: Scored) -> None:
        if not scored.failed:
            return
        causes = [str(cause) for _, cause in sorted(scored.failed.items())][:_NAMED_FAILURES]
        count = len(scored.failed)
        if self._prepared.query.on_error == "fail":
            more = f" (and {count - len(causes)} more)" if count > len(causes) else ""
            names = [f"{tasks[index].unit.name}: {cause}" for index, cause in sorted(scored.failed.items())][:_NAMED_FAILURES]
            raise UnitsFailed(
                f"{count} of {number_of(len(tasks), 'unit')} failed three times: {'; '.join(names)}{more}; the others are scored and kept, "
                "mend the cause and run again, or set on_error to skip"
            )
        self.warnings.append(f"{number_of(count, 'unit')} {'was' if count == 1 else 'were'} left out: {'; '.join(causes)}")

    def _start(self, units: int) -> Scoring:
        query = self._prepared.query
        if not self._life.begun:
            self._life.begin(self._prepared.store, self._folder)
        job = Job(
            model=query.model,
            fingerprint=self._prepared.fingerprint,
            read=self._prepared.pool.read,
            store=self._prepared.store.uri,
            token=self._life.token,
            embedding=self._prepared.wanted.embedding,
            probabilities=self._prepared.wanted.probabilities,
            samples=self._prepared.wanted.samples,
            logits=self._prepared.wanted.logits,
            mc_samples=query.acquire.mc_samples or 0,
            seed=query.seed,
            threads=query.cluster.cpus_per_worker,
            skip_bad_rows=query.on_error == "skip",
            import_paths=importable_folders(),
            asked=self._prepared.asked,
            reduction=Reduction.of(query.model, query.acquire),
            storage=query.pool.options,
            store_storage=self._prepared.store.storage,
            first=self._prepared.pool.units[:PROBE_UNITS],
        )
        self._executor, workers = self._processes.workers(job, units)
        return Scoring(self._executor, workers, keep_going=query.on_error == "skip", on_event=self._progress.on_event)


class _Progress:
    """Follows the events of a run for the reporter and for `events.jsonl`."""

    def __init__(self, prepared: Prepared, reporter: Reporter, folder: str) -> None:
        self._prepared, self._reporter, self._folder = prepared, reporter, folder
        self._units = self._done = self._rows = 0
        self._began = self._ready = self._last = 0.0
        self.start_seconds = 0.0

    def begin(self, units: int) -> None:
        """So many further units are to be scored."""
        self._began = time.perf_counter()
        if self._ready:
            self._ready += self._began - self._last  # nothing was scored in between
        self._units += units

    def on_event(self, event: Event | None) -> None:
        now = self._last = time.perf_counter()
        if isinstance(event, WorkerReady) and not self._ready:
            self._ready = now
            self.start_seconds = now - self._began
            self._reporter.stage(f"Scoring {number_of(self._units, 'unit')}")
        if isinstance(event, UnitEnded) and isinstance(event.outcome, Receipt):
            self._done += 1
            self._rows += event.outcome.rows
        if isinstance(event, Told):
            _log.warning("%s", event.text)
        if event is not None:
            with suppress(StoreError):  # events only inform
                self._log(event)
        if self._ready:
            self._reporter.units(self._done, self._units, self._rows, now - self._ready)

    def _log(self, event: Event) -> None:
        entry: dict[str, object] = {"time": round(time.time(), 3), "event": type(event).__name__, "worker": event.worker}
        if isinstance(event, UnitEnded):
            outcome = event.outcome
            entry["unit"] = outcome.unit if isinstance(outcome, Receipt) else event.unit
            entry |= {"rows": outcome.rows, "seconds": outcome.seconds} if isinstance(outcome, Receipt) else {"error": str(outcome.error)}
            if isinstance(outcome, Receipt) and outcome.repeated_reads:
                entry["repeated_reads"] = outcome.repeated_reads
        if isinstance(event, StartFailed | WorkerLost):
            entry["error"] = str(event.error)
        if isinstance(event, Told):
            entry["text"] = event.text
        self._prepared.store.append(f"{self._folder}/events.jsonl", json.dumps(entry).encode() + b"\n")


def refuse_quarantined(query: Query, receipts: Sequence[Receipt]) -> None:
    """Refuse units that were scored with rows left out for a query that must not leave out any.

    Raises:
        PoolError: there is one.
    """
    for receipt in receipts:
        if receipt.quarantined and query.on_error == "fail":
            raise PoolError(
                f"{receipt.unit}: {receipt.quarantined} rows were quarantined when it was scored, "
                f"first: {receipt.quarantine_reasons[0]}; set on_error to skip to choose from the rest"
            )


def all_receipts(prepared: Prepared, session: Session) -> list[Receipt]:
    """Receipts of all units in row order, those scored before and those scored now."""
    new = iter(session.score(prepared.missing))
    receipts = [receipt if receipt is not None else next(new) for receipt in prepared.receipts]
    found = [receipt for receipt in receipts if receipt is not None]
    refuse_quarantined(prepared.query, found)
    return found



def score_warnings(prepared: Prepared, receipts: Sequence[Receipt], session: Session) -> list[str]:
    """What the scoring has to say to the user."""
    warnings = [*(prepared.calibration.warnings if prepared.calibration else ()), *prepared.pool.warnings, *session.warnings]
    quarantined = sum(receipt.quarantined for receipt in receipts)
    if quarantined:
        reasons = [reason for receipt in receipts for reason in receipt.quarantine_reasons]
        warnings.append(f"{quarantined} rows were quarantined, first: {reasons[0]}")
    new = {task.key for task in prepared.missing}
    repeated = sum(receipt.repeated_reads for receipt in receipts if receipt.key in new)
    if repeated:
        warnings.append(f"{repeated} requests to object storage broke and were made again")
    asked = prepared.query.model.batch_size
    smallest = min((receipt.batch_size for receipt in receipts), default=asked)
    if smallest < asked:
        warnings.append(f"the device ran out of memory and batches were cut from {asked} to {smallest} rows; scores agree to 1e-6")
    return warnings



def model_notes(receipts: Sequence[Receipt]) -> list[str]:
    """What the workers that scored the units have to say of the model."""
    return list(dict.fromkeys(note for receipt in receipts for note in receipt.notes))



def with_class_names(prepared: Prepared, receipts: Sequence[Receipt]) -> Prepared:
    """The query with the names of the model's classes, where it gives none and the model has some."""
    return replace(prepared, classes=named_classes(prepared.classes, receipts))

"""Brings up workers when there is something to score, keeps them for what comes next, and ends them."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

from raystream.engine.damage import just_written
from raystream.engine.executor import Event, Executor, InProcess, StartFailed, Told, UnitEnded, WorkerLost, WorkerReady
from raystream.engine.first_rows import PROBE_UNITS
from raystream.engine.job import Job, Task, importable_folders
from raystream.engine.life import SignOfLife
from raystream.engine.manifest import query_folder
from raystream.engine.prepare import Prepared
from raystream.engine.progress import Reporter
from raystream.engine.ray_token import own_ray_wanted, protect_own_ray
from raystream.engine.receipt import Receipt
from raystream.engine.reduced import Reduction
from raystream.engine.scoring import Scored, Scoring
from raystream.errors import StoreError, UnitsFailed
from raystream.figures import number_of

_log = logging.getLogger("raystream")
_NAMED_FAILURES = 3
_FEW_UNITS = 2
"""Up to so many, starting a Ray takes longer than scoring them, if they aren't large."""


class Session:
    """The workers of one run. Nothing is started until something must be scored.

    Args:
        prepared: the query.
        reporter: told how far it is.
        folder: of the store, where its events are kept; the query's own if left out.
        life: the run's signs of life; left out, there are some while workers are up.
    """

    def __init__(self, prepared: Prepared, reporter: Reporter, folder: str | None = None, life: SignOfLife | None = None) -> None:
        self._prepared = prepared
        self._folder = folder = folder or query_folder(prepared.name)
        self._life, self._own_life = life or SignOfLife(), life is None
        self._progress = _Progress(prepared, reporter, folder)
        self._reporter = reporter
        self._executor: Executor | None = None
        self._scoring: Scoring | None = None
        self._connected = False
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
        if self._connected:
            from raystream.engine.ray_executor import disconnect

            disconnect()

    def end_workers(self) -> None:
        """Nothing more is to be scored: give back what the workers hold, but stay with the cluster."""
        if self._executor is not None:
            self._executor.close()
        self._executor = self._scoring = None
        if self._own_life:
            self._life.end()
            self._life = SignOfLife()
        with suppress(StoreError):  # events only inform
            self._prepared.store.flush()

    @property
    def _starts_own_ray(self) -> bool:
        return not self._connected and own_ray_wanted(self._prepared.query.cluster.address)

    def connect(self) -> None:
        """Be connected to the query's Ray until the session ends; it may be a Ray of our own that starts now."""
        cluster = self._prepared.query.cluster
        if own_ray_wanted(cluster.address):
            protect_own_ray()
        from raystream.engine.ray_executor import connect

        self._connected = connect(cluster) or self._connected

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
        self._executor, workers = self._in_process(job) if query.cluster.address == "in_process" else self._on_ray(job, units)
        return Scoring(self._executor, workers, keep_going=query.on_error == "skip", on_event=self._progress.on_event)

    def _in_process(self, job: Job) -> tuple[Executor, int]:
        workers = self._prepared.query.cluster.workers
        self._reporter.stage("Loading the model")
        return InProcess(job), 1 if workers == "auto" else workers

    def _on_ray(self, job: Job, units: int) -> tuple[Executor, int]:
        hint = "; cluster.address: in_process needs none" if units <= _FEW_UNITS and self._starts_own_ray else ""
        self._reporter.stage(f"Starting Ray workers{hint}")
        self.connect()
        from raystream.engine.ray_executor import OnRay, worker_count

        cluster = self._prepared.query.cluster
        grows = not (self._connected and own_ray_wanted(cluster.address))
        return OnRay(job, cluster), worker_count(cluster, grows=grows)


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

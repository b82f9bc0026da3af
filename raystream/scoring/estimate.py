"""Estimate what a query would read and write, and about how long it would take, before anything is spent."""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from raystream.lake import LOCAL
from raystream.query import Cluster, Query
from raystream.scoring.calibrate import known_temperature
from raystream.scoring.executor import RAY_PAYS_SECONDS, RAY_SECONDS
from raystream.scoring.job import UnitTask
from raystream.scoring.plan import ResolvedQuery, ScoringPlan, resolve
from raystream.scoring.worker import Abandoned, Worker
from raystream.store.opening import open_store
from raystream.store.queries import Changes, changes_since
from raystream.store.receipt_table import ReceiptTable
from raystream.store.receipts import EMBEDDINGS

_SCORE_BYTES = 40
"""A row of a scores file without its id: five scores, prediction, confidence, row."""
_PROBE_SECONDS = 2.0
_FEW_ROWS = 64
"""Batches that tell whether one of the model's own would take too long to be waited for; then, they are what is timed."""
_UNFITTED = (
    "model.temperature is not fitted yet, so all units count as not scored, and the rows that it is fitted on are not counted; "
    "run raystream calibrate first"
)
_PROBE_UNITS = 8
_FEW_UNITS = 100
"""A worker's, above which it doesn't matter that they aren't of one size."""


@dataclass(frozen=True)
class Estimate:
    """A query's figures.

    `seconds` is scoring time on `workers` workers: 0 if all is scored, None if it can't be told; `start_seconds` comes before it:
    about what Ray and its workers take to start, where no unit is scored meanwhile.
    `changes` are those of the pool's files since the newest committed query over the same pool, None if there is none.
    """

    query: str
    committed: bool
    files: int
    rows: int
    unit_rows: int
    bytes: int
    units: int
    units_scored: int
    bytes_to_read: int
    bytes_to_write: int
    workers: int
    seconds: float | None
    start_seconds: float
    measured_on: str
    warnings: tuple[str, ...]
    changes: Changes | None = None

    def summary(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return asdict(self)


@dataclass(frozen=True)
class _Pace:
    """How one worker scores: seconds a row, and those of processors; None where it can't be told."""

    seconds: float | None
    processor: float
    width: int
    measured_on: str


def estimate(
    query: Query,
    *,
    own_machine: bool = False,
    ray_first: bool = False,
    foresee: Callable[[ResolvedQuery, ScoringPlan], Sequence[str]] = lambda asked, plan: (),
    check_room: Callable[[ResolvedQuery, ScoringPlan, int], None] = lambda asked, plan, width: None,
) -> Estimate:
    """Plan a query without scoring or choosing anything.

    The time is estimated from units that this model has scored, or else by scoring some rows here, into a folder that is removed
    again, on one worker's threads, for about two seconds.

    Args:
        query: as asked.
        own_machine: whether workers share this machine, and no cluster is there.
        ray_first: whether a Ray of our own would have to start before anything is scored.
        foresee: refuses what can't end well, and says what may not.
        check_room: refuses a store without room for the outputs, given the embeddings' width, 0 if there are none.

    Raises:
        RaystreamError: whatever planning the query would raise.
    """
    calibration = known_temperature(query)
    unfitted = bool(query.model.calibration_files) and calibration is None
    asked = resolve(_at_one(query) if unfitted else query, calibration, look_only=True)
    plan = asked.plan(asked.pool.units)
    if unfitted:  # nothing is scored at a temperature that isn't known
        nothing = tuple(ReceiptTable(output.name, plan.keys) for output in plan.outputs)
        plan = replace(plan, found=nothing, to_compute=np.arange(len(plan.units)))
    missing = plan.missing
    rows = int(plan.units.rows[plan.to_compute].sum())
    warnings = foresee(asked, plan)
    pace = _pace(asked, plan) if missing else _Pace(0.0, 0.0, 0, "what is scored")
    check_room(asked, plan, pace.width)
    alone = rows * (pace.seconds or 0.0)
    grows = own_machine and not ray_first
    workers = 1 if grows and alone <= RAY_PAYS_SECONDS else min(_workers(query.cluster), max(1, len(missing)))
    seconds = None if pace.seconds is None else alone
    if seconds is not None and workers > 1:
        together = max(_together(pace, workers, own_machine), _largest_share(plan.units.rows[plan.to_compute], workers))
        first = min(seconds, RAY_SECONDS) if grows else 0.0  # one worker's, while the others start
        seconds = first + (seconds - first) * together
    item = 2 if query.model.embedding_dtype == "float16" else 4
    return Estimate(
        query=(query.store.query or "(unnamed)") if unfitted else asked.name,
        committed=not unfitted and asked.committed is not None,
        files=len(asked.pool.files),
        rows=asked.pool.rows,
        unit_rows=asked.pool.unit_rows,
        bytes=asked.pool.bytes,
        units=len(plan.units),
        units_scored=len(plan.units) - len(missing),
        bytes_to_read=int(plan.units.bytes[plan.to_compute].sum()),
        bytes_to_write=rows * (_SCORE_BYTES + pace.width * item),
        workers=workers,
        seconds=seconds,
        start_seconds=RAY_SECONDS if missing and ray_first else 0.0,
        measured_on=pace.measured_on,
        warnings=(*((_UNFITTED,) if unfitted else ()), *asked.pool.warnings, *warnings),
        changes=changes_since(asked.store, query.pool, asked.pool.snapshot, asked.identity),
    )


def _at_one(query: Query) -> Query:
    """Return the query as it is before its temperature is known."""
    return query.derived(model=query.model.derived(temperature=1.0))


def _workers(cluster: Cluster) -> int:
    if cluster.workers != "auto":
        return cluster.workers
    return 1 if cluster.address == "in_process" else max(1, (os.cpu_count() or 1) // cluster.cpus_per_worker)


def _together(pace: _Pace, workers: int, own_machine: bool) -> float:
    """Return the part of one worker's time that so many take: they share the processors, of which one alone may use several."""
    part = 1 / workers
    if own_machine and pace.seconds:
        part = max(part, pace.processor / pace.seconds / (os.cpu_count() or 1))
    return min(1.0, part)


def _largest_share(rows: np.ndarray, workers: int) -> float:
    """Return the largest part of all rows that a worker takes, each the next unit once it is done with one; of many units an even part."""
    if len(rows) > _FEW_UNITS * workers:
        return 1 / workers
    loads = [0] * workers
    for some in rows.tolist():
        heapq.heapreplace(loads, loads[0] + some)
    return max(loads) / max(sum(loads), 1)


def _pace(asked: ResolvedQuery, plan: ScoringPlan) -> _Pace:
    """Take the pace of the units that have a receipt, whichever outputs they lack; else score some rows."""
    rows, seconds = np.zeros(len(plan.units), np.int64), np.zeros(len(plan.units))
    for table in reversed(plan.found):  # the first that is there counts
        filled = table.rows > 0
        rows[filled], seconds[filled] = table.rows[filled], table.seconds[filled]
    known = np.flatnonzero(rows)
    if not len(known):
        return _probe(asked, plan.missing)
    receipts = [table.at(int(known[0])) for table in plan.found if table.kind == EMBEDDINGS]
    width = next((receipt.width for receipt in receipts if receipt is not None and receipt.width), 0)
    return _Pace(float(seconds.sum()) / int(rows.sum()), 0.0, width, f"{len(known)} units that are scored already")


def _probe(asked: ResolvedQuery, missing: Sequence[UnitTask]) -> _Pace:
    """Score the first rows that aren't scored yet, for long enough; what is written goes to a folder of its own, and away."""
    before, watch, few = torch.get_num_threads(), _RateWatch(), _RateWatch(0.0)
    size = asked.query.model.batch_size
    try:
        with TemporaryDirectory(prefix="raystream-") as folder:
            store = open_store(folder)
            store.put("token", b"")
            worker = Worker(replace(asked.job, store=store.uri, store_storage=LOCAL, token="token"))
            if size > _FEW_ROWS:
                few.see(worker, missing, _FEW_ROWS)
                if few.found[1] * size > _PROBE_SECONDS * few.found[0]:  # one batch alone would take longer than is to be waited
                    size = _FEW_ROWS
            watch.see(worker, missing, size)
    finally:
        torch.set_num_threads(before)
    rows, seconds, processor = watch.found
    if not rows:
        return _Pace(None, 0.0, 0, f"nothing: no row of the first {_PROBE_UNITS} units passes the filters")
    return _Pace(seconds / rows, processor / rows, worker.width, f"{rows:,} rows scored here")


class _RateWatch:
    """Times rows as they are scored, for so many seconds; the first batch warms the model up, and counts only if it is the only one."""

    def __init__(self, seconds: float = _PROBE_SECONDS) -> None:
        # rows, seconds and those of processors: at the start, after the first batch, and now
        self._marks: list[tuple[int, float, float]] = []
        self._before = self._here = 0
        self._seconds = seconds

    def see(self, worker: Worker, tasks: Sequence[UnitTask], batch_size: int) -> None:
        """Have some units scored, a part of the last one, by a worker whose model is loaded."""
        self._marks.append((0, time.perf_counter(), time.process_time()))
        with suppress(Abandoned):
            for task in tasks[:_PROBE_UNITS]:
                worker.score(task, self._follow, batch_size)
                if self._end_unit():
                    break

    def _follow(self, rows: int) -> None:
        """Note that so many rows of the unit are behind, and end it after long enough."""
        self._here = rows
        self._mark()
        if self._marks[-1][1] - self._marks[1][1] > self._seconds:
            raise Abandoned

    def _end_unit(self) -> bool:
        """Note that the unit is written, and tell whether that is enough."""
        scored, self._before, self._here = self._here > 0, self._before + self._here, 0
        if scored:
            self._mark()
        return len(self._marks) > 1 and self._marks[-1][1] - self._marks[0][1] > self._seconds / 2

    @property
    def found(self) -> tuple[int, float, float]:
        """Rows, and the seconds and processors' seconds that they took."""
        if len(self._marks) < 2:
            return 0, 0.0, 0.0
        first = self._marks[1] if self._marks[-1][0] > self._marks[1][0] else self._marks[0]
        rows, seconds, processor = (last - before for last, before in zip(self._marks[-1], first, strict=True))
        return int(rows), seconds, processor

    def _mark(self) -> None:
        mark = self._before + self._here, time.perf_counter(), time.process_time()
        self._marks[2:] = [] if len(self._marks) < 2 else [mark]
        if len(self._marks) < 2:
            self._marks.append(mark)

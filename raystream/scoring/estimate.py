"""What a query would read and write, and about how long it would take, before anything is spent."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from raystream.model import Predictor, load, with_local_files
from raystream.query import Cluster, Query
from raystream.scoring.batch_reader import BatchReader, preparation
from raystream.scoring.calibrate import known_temperature
from raystream.scoring.job import UnitTask
from raystream.scoring.plan import ResolvedQuery, ScoringPlan, resolve
from raystream.store.queries import Changes, changes_since
from raystream.store.receipt_table import ReceiptTable
from raystream.store.receipts import EMBEDDINGS

_SCORE_BYTES = 40
"""A row of a scores file without its id: five scores, prediction, confidence, row."""
_PROBE_SECONDS = 2.0
_RAY_START = 6.0
_UNFITTED = (
    "model.temperature is not fitted yet, so all units count as not scored, and the rows that it is fitted on are not counted; "
    "run raystream calibrate first"
)
_PROBE_UNITS = 8


@dataclass(frozen=True)
class Estimate:
    """A query's figures.

    `seconds` is scoring time on `workers` workers: 0 if all is scored, None if it can't be told; `start_seconds` comes before it,
    about what Ray and its workers take to start where nothing else runs.
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
        """What `--json` prints."""
        return asdict(self)


@dataclass(frozen=True)
class _Rate:
    rows_per_second: float | None
    dimension: int
    measured_on: str


def estimate(query: Query, *, starts_ray: bool = False) -> Estimate:
    """Plan a query without scoring or choosing anything.

    The time is estimated from units that this model has scored, or else by running it here, on one worker's threads,
    for about two seconds. `starts_ray` says that a Ray of our own would have to start first.

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
    rate = _rate(asked, plan) if missing else _Rate(1.0, 0, "what is scored")
    workers = _workers(query.cluster)
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
        bytes_to_write=rows * (_SCORE_BYTES + rate.dimension * item),
        workers=workers,
        seconds=rows / rate.rows_per_second / min(workers, max(1, len(missing))) if rate.rows_per_second else None,
        start_seconds=_RAY_START if missing and starts_ray else 0.0,
        measured_on=rate.measured_on,
        warnings=(*((_UNFITTED,) if unfitted else ()), *asked.pool.warnings),
        changes=changes_since(asked.store, query.pool, asked.pool.snapshot, asked.identity),
    )


def _at_one(query: Query) -> Query:
    """The query before its temperature is known."""
    return query.derived(model=query.model.derived(temperature=1.0))


def _workers(cluster: Cluster) -> int:
    if cluster.workers != "auto":
        return cluster.workers
    return 1 if cluster.address == "in_process" else max(1, (os.cpu_count() or 1) // cluster.cpus_per_worker)


def _rate(asked: ResolvedQuery, plan: ScoringPlan) -> _Rate:
    """By the units that have a receipt, whichever outputs they lack; else by running the model."""
    rows, seconds = np.zeros(len(plan.units), np.int64), np.zeros(len(plan.units))
    for table in reversed(plan.found):  # the first that is there counts
        filled = table.rows > 0
        rows[filled], seconds[filled] = table.rows[filled], table.seconds[filled]
    known = np.flatnonzero(rows)
    if not len(known):
        return _probe(asked, plan.missing)
    receipts = [table.at(int(known[0])) for table in plan.found if table.kind == EMBEDDINGS]
    width = next((receipt.width for receipt in receipts if receipt is not None and receipt.width), 0)
    return _Rate(int(rows.sum()) / max(float(seconds.sum()), 1e-9), width, f"{len(known)} units that are scored already")


def _probe(asked: ResolvedQuery, missing: Sequence[UnitTask]) -> _Rate:
    """Run the model on the first rows that aren't scored, until it has run for long enough."""
    query = asked.query
    before = torch.get_num_threads()
    torch.set_num_threads(query.cluster.cpus_per_worker)
    try:
        read, threads = asked.pool.read, query.cluster.cpus_per_worker
        model = load(with_local_files(query.model, query.pool.options), embedding=query.needs_embedding, names=read.names)
        prepare = preparation(read)
        timed = _Timed(model, query.model.batch_size)
        for task in missing[:_PROBE_UNITS]:
            with BatchReader(task.unit, read, query.model.batch_size, model.device.type == "cuda", threads, prepare) as reader:
                for chunk in reader:
                    timed.run(chunk.inputs)
                    if timed.seconds > _PROBE_SECONDS:
                        break
            if timed.rows:
                break
    finally:
        torch.set_num_threads(before)
    if not timed.rows:
        return _Rate(None, 0, f"nothing: no row of the first {_PROBE_UNITS} units passes the filters")
    return _Rate(timed.rows / max(timed.seconds, 1e-9), timed.dimension, f"{timed.rows:,} rows run here")


@dataclass
class _Timed:
    """Times a model batch by batch; the first one warms it up, and counts only if it is the only one."""

    model: Predictor
    batch_size: int
    rows: int = 0
    seconds: float = 0.0
    dimension: int = 0
    batches: int = 0

    def run(self, inputs: tuple[Any, ...]) -> None:
        for start in range(0, len(inputs[0]), self.batch_size):
            batch = tuple(values[start : start + self.batch_size] for values in inputs)
            began = time.perf_counter()
            prediction = self.model.predict(batch)
            for values in (prediction.logits, prediction.embedding):
                if values is not None:
                    values.cpu()
            if self.batches == 1:
                self.rows, self.seconds = 0, 0.0
            self.batches += 1
            self.rows += len(batch[0])
            self.seconds += time.perf_counter() - began
            if prediction.embedding is not None:
                self.dimension = prediction.embedding.shape[1]
            if self.seconds > _PROBE_SECONDS:
                return

"""What a query would read and write, and about how long it would take, before anything is spent."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from raystream.model import Predictor, load, with_local_files
from raystream.query import Cluster, Query
from raystream.scoring.batch_reader import BatchReader
from raystream.scoring.calibrate import known_temperature
from raystream.scoring.first_rows import preparation
from raystream.scoring.plan import Prepared, prepare
from raystream.store.changes import Changes, changes_since
from raystream.store.receipts import Receipt

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
    prepared = _unfitted(query) if unfitted else prepare(query, calibration, look_only=True)
    missing = prepared.missing
    rows = sum(task.unit.rows for task in missing)
    rate = _rate(prepared) if missing else _Rate(1.0, 0, "what is scored")
    workers = _workers(query.cluster)
    item = 2 if query.model.embedding_dtype == "float16" else 4
    return Estimate(
        query=prepared.name,
        committed=not unfitted and prepared.committed is not None,
        files=len(prepared.pool.files),
        rows=prepared.pool.rows,
        unit_rows=prepared.pool.unit_rows,
        bytes=prepared.pool.bytes,
        units=len(prepared.tasks),
        units_scored=len(prepared.tasks) - len(missing),
        bytes_to_read=sum(task.unit.bytes for task in missing),
        bytes_to_write=rows * (_SCORE_BYTES + rate.dimension * item),
        workers=workers,
        seconds=rows / rate.rows_per_second / min(workers, max(1, len(missing))) if rate.rows_per_second else None,
        start_seconds=_RAY_START if missing and starts_ray else 0.0,
        measured_on=rate.measured_on,
        warnings=(*((_UNFITTED,) if unfitted else ()), *prepared.pool.warnings),
        changes=changes_since(prepared.store, query.pool, prepared.pool.snapshot, prepared.identity),
    )


def _unfitted(query: Query) -> Prepared:
    """The query before its temperature is known: nothing is scored at it, and unless given, it has no name yet."""
    at_one = query.model_copy(update={"model": query.model.model_copy(update={"temperature": 1.0})})
    prepared = prepare(at_one, look_only=True)
    return replace(prepared, name=query.store.query or "(unnamed)", receipts=(None,) * len(prepared.tasks))


def _workers(cluster: Cluster) -> int:
    if cluster.workers != "auto":
        return cluster.workers
    return 1 if cluster.address == "in_process" else max(1, (os.cpu_count() or 1) // cluster.cpus_per_worker)


def _rate(prepared: Prepared) -> _Rate:
    known = [receipt for receipt in prepared.receipts if receipt is not None and receipt.rows]
    return _from_receipts(known) if known else _probe(prepared)


def _from_receipts(receipts: list[Receipt]) -> _Rate:
    rows = sum(receipt.rows for receipt in receipts)
    seconds = sum(receipt.seconds for receipt in receipts)
    return _Rate(rows / max(seconds, 1e-9), receipts[0].dimension or 0, f"{len(receipts)} units that are scored already")


def _probe(prepared: Prepared) -> _Rate:
    """Run the model on the first rows that aren't scored, until it has run for long enough."""
    query = prepared.query
    before = torch.get_num_threads()
    torch.set_num_threads(query.cluster.cpus_per_worker)
    try:
        read, threads = prepared.pool.read, query.cluster.cpus_per_worker
        model = load(with_local_files(query.model, query.pool.options), embedding=query.needs_embedding, names=read.names)
        prepare = preparation(read)
        timed = _Timed(model, query.model.batch_size)
        for task in prepared.missing[:_PROBE_UNITS]:
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

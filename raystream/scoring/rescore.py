"""Scores some units of a committed query again, in this process, and compares what comes out with what the store holds of them.

Nothing of it is written to that store: a worker writes the units into one of its own, in the temporary folder. On one type of device, with
as many threads and the same libraries, the files are the same byte for byte; elsewhere numbers agree to a tolerance.
"""

from __future__ import annotations

import heapq
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
import xxhash

from raystream.errors import ModelError, PoolError, QueryError, RaystreamError, VerificationError
from raystream.figures import number_of
from raystream.lake import LOCAL
from raystream.pool import UnitNames, Units
from raystream.query import Query
from raystream.scoring.job import UnitTask
from raystream.scoring.plan import ResolvedQuery, resolve
from raystream.scoring.progress import Reporter
from raystream.scoring.worker import Failure, Worker
from raystream.store.integrity import damaged
from raystream.store.manifest import Manifest
from raystream.store.opening import open_store
from raystream.store.protocol import Store
from raystream.store.queries import StoredUnits
from raystream.store.receipts import Receipt, UnitOutputs
from raystream.store.unit_columns import read_table
from raystream.store.vectors import VectorFiles

TOLERANCE = 1e-6
"""By how much of their size, or absolutely where they are below one, numbers may differ between devices."""
_NAMED = 3
_HALF = np.finfo(np.float16)


@dataclass(frozen=True)
class Close:
    """A unit whose numbers differ, by `difference` at most, of their size or absolutely where that is below one; `column` differs most."""

    unit: str
    column: str
    difference: float


@dataclass(frozen=True)
class Rescored:
    """Units that were scored again and agree.

    Attributes:
        seed: of the draw, by which the same units are drawn again.
        units: how many were drawn, of `among`; `rows` are theirs.
        outputs: the kinds of outputs that were compared.
        identical: how many are the same byte for byte.
        close: the others, the farthest off first.
        tolerance: up to which they may be; of numbers stored as float16, one in their last place more.
    """

    seed: int
    units: int
    among: int
    rows: int
    outputs: tuple[str, ...]
    identical: int
    close: tuple[Close, ...]
    tolerance: float


def rescore(store: Store, manifest: Manifest, given: Query, units: StoredUnits, count: int, seed: int, reporter: Reporter) -> Rescored:
    """Score `count` random units of a committed query again, or all if there are fewer, and compare.

    Args:
        store: holds the query, and stays as it is.
        manifest: the query's.
        given: the query as it was given.
        units: what the store holds of its units; those that were left out are not drawn.
        count, seed: how many are drawn, and by which chance: a function of the seed and the units' keys.
        reporter: told how far it is.

    Raises:
        PoolError, ModelError, QueryError: the pool's files, the model or what else scores depend on are others now.
        VerificationError: outputs differ by more than the tolerance; says of which units, and by how much.
    """
    digests = units.outputs.tables[0].keys.digests[units.outputs.places]
    places = drawn([digest.tobytes() for digest in digests], count, seed)
    asked = _resolved(store, manifest, given)
    tasks = list(zip(places, _tasks(asked, manifest, units, places), strict=True))
    close: list[Close] = []
    wrong: list[Close] = []
    rows = 0
    with tempfile.TemporaryDirectory(prefix="raystream-rescore-") as folder, _own_threads():
        here = open_store(folder)
        worker = Worker(replace(asked.job, store=here.uri, store_storage=LOCAL, token="format.json"))
        for number, (place, task) in enumerate(tasks, 1):
            reporter.stage(f"Scoring unit {number} of {len(tasks)} again: {task.unit.name}")
            found = worker.attempt(task)
            if isinstance(found, Failure):
                raise _failed(found.error, task)
            kept = units.outputs[place]
            rows += kept.rows
            differs = _compare(store, kept, here, found)
            if differs is not None:
                (wrong if differs[1] else close).append(differs[0])
    if wrong:
        raise VerificationError(_told(manifest, wrong, len(tasks)))
    return Rescored(
        seed=seed,
        units=len(tasks),
        among=len(units.outputs),
        rows=rows,
        outputs=tuple(output.kind for output in asked.outputs),
        identical=len(tasks) - len(close),
        close=tuple(sorted(close, key=lambda one: -one.difference)),
        tolerance=TOLERANCE,
    )


@contextmanager
def _own_threads() -> Iterator[None]:
    """Give this process its own threads back when the block ends: a worker in it computes by as many as its query says."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def drawn(keys: Sequence[bytes], count: int, seed: int) -> list[int]:
    """Draw the places, ascending, of at most so many of these keys; each has the same chance, whatever their order."""
    lowest = heapq.nsmallest(count, range(len(keys)), key=lambda place: xxhash.xxh3_64_intdigest(keys[place], seed & (1 << 64) - 1))
    return sorted(lowest)


def _resolved(store: Store, manifest: Manifest, given: Query) -> ResolvedQuery:
    """Resolve the query against the pool and the model as they are now."""
    at = given.store if store.remote else given.store.derived(uri=store.uri, storage={})
    asked = resolve(given.derived(store=at), manifest.calibration, look_only=True)
    if asked.fingerprint != manifest.fingerprint:
        raise ModelError(
            f"model.source or model.weights: the model is not that of query {manifest.query} (fingerprint {asked.fingerprint[:12]}, "
            f"{manifest.fingerprint[:12]} then), so its units can't be scored again; restore it"
        )
    return asked


def _tasks(asked: ResolvedQuery, manifest: Manifest, units: StoredUnits, places: Sequence[int]) -> list[UnitTask]:
    """List what is to be computed of the units at these places: all that the query had the model run for."""
    table = Units.of(asked.pool.units)
    names = {name: place for place, name in enumerate(UnitNames(table)[:])}
    sizes = {path: (path, size, version) for path, size, version in manifest.files}
    tasks = []
    for place in places:
        outputs = units.outputs[place]
        path = units.paths[units.path_of[place]]
        found = names.get(outputs.unit)
        unit = None if found is None else table[found]
        if unit is None or unit.file.identity != sizes.get(path):
            was = "is gone or cut into other units" if unit is None else "was rewritten"
            raise PoolError(f"{path} {was} since query {manifest.query} was committed, so {outputs.unit} can't be scored again; restore it")
        key = asked.keys.of(Units.of([unit]))[0]
        if key != outputs.key:
            raise QueryError(
                f"{outputs.unit} was scored under other settings or functions than query {manifest.query} has now, so it can't be scored "
                "again; restore query.yaml and the source of what prepares inputs"
            )
        tasks.append(UnitTask(unit, key, asked.outputs))
    return tasks


def _failed(error: RaystreamError, task: UnitTask) -> RaystreamError:
    """Make the error of a unit that could be scored then and can't be now, of its own kind."""
    text = str(error)
    return error if task.unit.name in text else type(error)(f"{task.unit.name}: {text}")


def _compare(store: Store, kept: UnitOutputs, here: Store, found: UnitOutputs) -> tuple[Close, bool] | None:
    """Find where a unit's outputs differ most, and whether that is too much; None if they are the same."""
    now = {receipt.output: receipt for receipt in found.receipts}
    worst: Close | None = None
    far = False
    for receipt in kept.receipts:
        again = now.get(receipt.output)
        if again is None:
            continue  # it comes from stored outputs, not from the model
        for column, difference, too_far in _differences(store, receipt, here, again):
            if worst is None or (too_far, difference) > (far, worst.difference):
                worst = Close(kept.unit, column, difference)
            far = far or too_far
    return None if worst is None else (worst, far)


_Differs = tuple[str, float, bool]
"""A column that differs, by how much, and whether that is too much."""


def _differences(store: Store, then: Receipt, here: Store, now: Receipt) -> list[_Differs]:
    """List the columns of one kind of outputs that differ."""
    if then.file is not None and not store.is_whole(then.file):
        raise damaged(store.place(then.file.name))
    if (then.rows, then.positions, then.quarantined) != (now.rows, now.positions, now.quarantined):
        counts = f"{then.rows:,} then and {now.rows:,} now, {then.quarantined:,} and {now.quarantined:,} left out"
        return [(f"the rows of {then.kind}: {counts}", math.inf, True)]
    if then.file is None or now.file is None:
        return [] if then.file is now.file else [(f"the file of {then.kind}", math.inf, True)]
    if (then.file.size, then.file.xxh3) == (now.file.size, now.file.xxh3):
        return []
    if not then.columns:
        vectors = [VectorFiles(where).at(receipt.file, receipt.rows) for where, receipt in ((store, then), (here, now)) if receipt.file]
        return _far(then.kind, *vectors)
    tables = [read_table(where, receipt.file, then.columns) for where, receipt in ((store, then), (here, now)) if receipt.file]
    return [one for name in then.columns for one in _of_columns(name, *(table.column(name) for table in tables))]


def _of_columns(name: str, then: pa.ChunkedArray, now: pa.ChunkedArray) -> list[_Differs]:
    if not pa.types.is_floating(then.type):
        return [] if then.equals(now) else [(name, math.inf, True)]
    return _far(name, then.to_numpy(), now.to_numpy())


def _far(name: str, then: np.ndarray, now: np.ndarray) -> list[_Differs]:
    """Find by how much two arrays differ at most, where it is too much if it is anywhere; nothing if they are equal, NaN and NaN included.

    Of numbers stored as float16, those that agree may have been rounded to neighbours.
    """
    if then.shape != now.shape or then.dtype != now.dtype:
        return [(name, math.inf, True)]
    wide, again = then.astype(np.float64), now.astype(np.float64)
    same = (wide == again) | (np.isnan(wide) & np.isnan(again))
    if same.all():
        return []
    wide, again = wide[~same], again[~same]
    size = np.maximum(np.abs(wide), np.abs(again))
    off = np.nan_to_num(np.abs(wide - again), nan=np.inf)
    allowed = TOLERANCE * np.maximum(size, 1.0)
    if then.dtype == np.float16:
        allowed += _HALF.eps * np.maximum(size, _HALF.tiny)
    too_far = ~(off <= allowed)
    of_size = off / np.maximum(size, 1.0)
    return [(name, float((of_size[too_far] if too_far.any() else of_size).max()), bool(too_far.any()))]


def _told(manifest: Manifest, wrong: list[Close], drawn_units: int) -> str:
    first = sorted(wrong, key=lambda one: -one.difference)
    told = [f"{one.unit} ({one.column}{f' by {one.difference:.2g}' if math.isfinite(one.difference) else ''})" for one in first[:_NAMED]]
    more = f" and {len(first) - _NAMED} more" if len(first) > _NAMED else ""
    return (
        f"query {manifest.query}: {len(first)} of {number_of(drawn_units, 'unit')} that were scored again differ from what is stored by "
        f"more than {TOLERANCE:g}: {', '.join(told)}{more}; the model gives other numbers here than the store holds: look whether it was "
        "another type of device, or other versions, that scored them"
    )

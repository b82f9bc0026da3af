"""Read what a report needs of the scored units: the pool's scores, a sample of its embeddings, those of the chosen rows.

The time must not grow with the pool: beyond `_UNITS` units, evenly spaced ones stand for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raystream.lake import storage_from
from raystream.pool import comparable, read_labelled
from raystream.pool.ids import KnownIds
from raystream.store.protocol import Store
from raystream.store.queries import ColumnOfNames, paths_of, plan_outputs, read_plan
from raystream.store.receipt_table import Keys
from raystream.store.receipts import EMBEDDINGS, UnitOutputs
from raystream.store.result import Result
from raystream.store.unit_columns import ScoredUnits, read_columns, read_outputs
from raystream.store.vectors import VectorFiles

_UNITS = 256
_SAMPLE_ROWS = 10_000
_LABELLED_ROWS = 400
_LABELLED_AMONG = 1 << 20
"""Rows whose ids are looked up among the labelled ones."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class StoredPool:
    """A pool's stored outputs, or as many of them as a report looks at.

    Attributes:
        total: units of the whole pool.
        units: those that are looked at, in row order, without those that have no rows.
        keys, names: of all units, in the order of the plan.
        by_path: the places of all units in the plan by the file they belong to.
        outputs: what the query reads of each.
    """

    store: Store
    total: int
    units: ScoredUnits
    keys: Keys
    names: ColumnOfNames
    by_path: dict[str, npt.NDArray[np.int64]]
    outputs: tuple[str, ...]

    @property
    def rows(self) -> int:
        """Rows of the units that are looked at."""
        return int(self.units.rows.sum())

    @property
    def is_sample(self) -> bool:
        """True if some units are not looked at."""
        return len(self.units) < self.total


def stored_pool(result: Result) -> StoredPool:
    """Return the units behind a committed query, by the plan that lies beside its selection."""
    store = result.store
    plan = read_plan(store, result.query)
    keys, names, outputs = Keys.of_column(plan.column("key")), ColumnOfNames(plan.column("unit")), plan_outputs(plan.schema)
    paths, of = paths_of(plan)
    order = np.argsort(of, kind="stable")
    by_path = dict(zip(paths, np.split(order, np.flatnonzero(np.diff(of[order])) + 1), strict=True))
    looked_at = np.unique(np.linspace(0, len(keys) - 1, min(len(keys), _UNITS)).round().astype(np.int64))
    found = read_outputs(store, keys, outputs, names, looked_at)
    return StoredPool(store, len(keys), found.filled, keys, names, by_path, outputs)


def pool_scores(pool: StoredPool, score: str) -> Floats:
    """Read one score of every row that is looked at; empty when the units hold no such column."""
    units = [unit for unit in pool.units if any(score in receipt.columns for receipt in unit.receipts)]
    parts = [table.column(0).to_numpy() for table in read_columns(pool.store, units, [score])]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def embedded_units(pool: StoredPool) -> list[UnitOutputs]:
    """List the units that are looked at and have embeddings."""
    return [unit for unit in pool.units if unit.of(EMBEDDINGS) is not None]


def evenly_spaced(units: Sequence[UnitOutputs], count: int) -> list[npt.NDArray[np.int64]]:
    """Find for each unit the ascending positions of those rows that are among about so many evenly spaced ones of all."""
    total = sum(unit.rows for unit in units)
    wanted = np.linspace(0, total - 1, min(total, count)).round().astype(np.int64)
    found, start = [], 0
    for unit in units:
        found.append(wanted[slice(*np.searchsorted(wanted, [start, start + unit.rows]))] - start)
        start += unit.rows
    return found


def sampled_embeddings(pool: StoredPool) -> Floats:
    """Read (at most 10,000, d) evenly spaced rows of the stored embeddings; (0, 0) when there are none."""
    units, vectors = embedded_units(pool), VectorFiles(pool.store, checked=False)
    parts = [embeddings_at(vectors, unit, rows) for unit, rows in zip(units, evenly_spaced(units, _SAMPLE_ROWS), strict=True)]
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


def chosen_embeddings(pool: StoredPool, selection: pa.Table) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return the embeddings of chosen rows: their ranks, ascending, and (n, d) values; those in too many units are left out."""
    paths, rows = np.array(selection.column("path").to_pylist(), object), selection.column("row").to_numpy()
    opened: dict[str, npt.NDArray[np.int64]] = {}
    for path in dict.fromkeys(paths.tolist()):
        places = pool.by_path.get(path, np.empty(0, np.int64))
        if opened and sum(map(len, opened.values())) + len(places) > _UNITS:
            break
        opened[path] = places
    of = {place: path for path, places in opened.items() for place in places.tolist()}
    units = read_outputs(pool.store, pool.keys, pool.outputs, pool.names, np.array(sorted(of), np.int64))
    found: dict[int, Floats] = {}
    vectors = VectorFiles(pool.store, checked=False)
    for place, unit in zip(units.places.tolist(), units, strict=True):
        if unit.of(EMBEDDINGS) is not None and unit.rows:
            ranks = np.flatnonzero(paths == of[place])
            _find(pool.store, vectors, unit, ranks, rows[ranks], found)
    ranks = np.array(sorted(found), dtype=np.int64)
    return ranks, np.stack([found[rank] for rank in ranks.tolist()]) if found else np.empty((0, 0), np.float32)


def labelled_embeddings(result: Result, pool: StoredPool) -> Floats:
    """Read (at most 400, d) embeddings of labelled rows of the pool, evenly spaced; none where labels aren't the query's any more.

    Raises:
        LabelsError: the labelled files can't be read.
    """
    units = _thinned(embedded_units(pool), _LABELLED_AMONG)
    rows = labelled_rows(result, pool.store, units)
    apart = -(-sum(map(len, rows)) // _LABELLED_ROWS) or 1
    vectors = VectorFiles(pool.store, checked=False)
    parts = [embeddings_at(vectors, unit, some[::apart]) for unit, some in zip(units, rows, strict=True) if len(some)]
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


def labelled_rows(result: Result, store: Store, units: Sequence[UnitOutputs]) -> list[npt.NDArray[np.int64]]:
    """Find for each unit the ascending positions of its labelled rows; none where labels aren't those of the query any more, or too many.

    Raises:
        LabelsError: the labelled files can't be read.
    """
    asked, none = result.manifest.resolved["pool"], [np.empty(0, np.int64) for _ in units]
    if not asked["labelled"] or not units or result.manifest.counts.labelled > _LABELLED_AMONG:
        return none
    tables = list(read_columns(store, units, [result.selection.column_names[1]]))
    labelled = read_labelled(asked["labelled"], asked["id"], tables[0].schema.types[0], storage=storage_from(asked.get("storage", {})))
    if labelled.digest != result.manifest.labelled_digest:
        return none
    known = KnownIds(labelled.ids)
    return [np.flatnonzero(known.index(comparable(table.column(0).combine_chunks())) >= 0) for table in tables]


def _thinned(units: Sequence[UnitOutputs], rows: int) -> list[UnitOutputs]:
    """Choose evenly spaced units that hold about so many rows together, at least one of them."""
    apart = -(-sum(unit.rows for unit in units) // rows) or 1
    return list(units[::apart])


def _find(
    store: Store,
    vectors: VectorFiles,
    unit: UnitOutputs,
    ranks: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    found: dict[int, Floats],
) -> None:
    """Add the embeddings of those of these rows of a file that a unit holds; which unit that is, only the units know."""
    held = next(read_columns(store, [unit], ["row"])).column(0).to_numpy()
    at = np.minimum(np.searchsorted(held, rows), len(held) - 1)
    here = np.flatnonzero(held[at] == rows)
    order = here[np.argsort(at[here])]
    for rank, value in zip(ranks[order].tolist(), embeddings_at(vectors, unit, at[order]) if len(order) else (), strict=True):
        found[rank] = value


def embeddings_at(vectors: VectorFiles, unit: UnitOutputs, rows: npt.NDArray[np.int64]) -> Floats:
    """Return the embeddings of ascending rows of one unit, as float32."""
    receipt = unit.of(EMBEDDINGS)
    assert receipt is not None  # whoever asks has seen to it
    assert receipt.file is not None
    if receipt.output in unit.kept:
        rows = unit.kept[receipt.output][rows]
    return vectors.at(receipt.file, receipt.rows, rows).astype(np.float32)

"""What a report reads of the scored units: the pool's scores, a sample of its embeddings, those of the chosen rows.

The time must not grow with the pool: beyond `_UNITS` units, evenly spaced ones stand for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from raystream.store.integrity import reading
from raystream.store.protocol import Store
from raystream.store.queries import further_keys, read_plan
from raystream.store.receipts import Receipt, read_receipt
from raystream.store.result import Result
from raystream.store.unit_columns import read_all
from raystream.store.vectors import VectorFiles

_UNITS = 256
_SAMPLE_ROWS = 20_000

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class StoredPool:
    """A pool's stored outputs, or as many of them as a report looks at.

    Attributes:
        units: of the whole pool.
        receipts: of the units that are looked at, in row order.
        by_path: the keys of all units by the file they belong to.
        further: the receipts of their EPIG, if the query asked for it.
    """

    store: Store
    units: int
    receipts: tuple[Receipt, ...]
    by_path: dict[str, list[str]]
    further: tuple[Receipt, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of the units that are looked at."""
        return sum(receipt.rows for receipt in self.receipts)

    @property
    def is_sample(self) -> bool:
        """Whether some units are not looked at."""
        return len(self.receipts) < self.units


def stored_pool(result: Result) -> StoredPool:
    """The units behind a committed query, by the plan that lies beside its selection."""
    store = result.store
    plan = read_plan(store, result.query)
    keys = plan.column("key").to_pylist()
    after = dict(zip(keys, further_keys(plan) or [None] * len(keys), strict=True))
    by_path: dict[str, list[str]] = {}
    for unit, key in zip(plan.column("unit").to_pylist(), keys, strict=True):
        by_path.setdefault(unit.rpartition("#rg")[0], []).append(key)
    looked_at = keys if len(keys) <= _UNITS else [keys[i] for i in np.linspace(0, len(keys) - 1, _UNITS).round().astype(int)]
    receipts = (read_receipt(store, key) for key in looked_at)
    further = (read_receipt(store, after[key]) for key in looked_at if after.get(key))
    return StoredPool(
        store,
        len(keys),
        tuple(receipt for receipt in receipts if receipt is not None and receipt.rows),
        by_path,
        tuple(receipt for receipt in further if receipt is not None),
    )


def pool_scores(pool: StoredPool, score: str) -> Floats:
    """One score of every row that is looked at; empty when the units hold no such column."""
    parts = []
    for receipt in (*pool.receipts, *pool.further):
        with reading(pool.store, receipt.scores), pq.ParquetFile(pool.store.source(receipt.scores)) as file:
            if score in file.schema_arrow.names:
                parts.append(file.read(columns=[score]).column(0).to_numpy())
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def sampled_embeddings(pool: StoredPool) -> Floats:
    """(at most 20,000, d) evenly spaced rows of the stored embeddings; (0, 0) when there are none."""
    total = sum(receipt.rows for receipt in pool.receipts if receipt.embeddings)
    wanted = np.linspace(0, total - 1, min(total, _SAMPLE_ROWS)).round().astype(np.int64)
    parts: list[Floats] = []
    start = 0
    for receipt in pool.receipts:
        if receipt.embeddings is None:
            continue
        inside = wanted[slice(*np.searchsorted(wanted, [start, start + receipt.rows]))] - start
        parts.append(_embeddings_at(pool.store, receipt, inside))
        start += receipt.rows
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


def chosen_embeddings(pool: StoredPool, selection: pa.Table) -> tuple[npt.NDArray[np.int64], Floats]:
    """The embeddings of chosen rows: their ranks, ascending, and (n, d) values; those in too many units are left out."""
    paths, rows = selection.column("path").to_pylist(), selection.column("row").to_numpy()
    opened = 0
    found: dict[int, Floats] = {}
    for path in dict.fromkeys(paths):
        keys = pool.by_path.get(path, [])
        opened += len(keys)
        if opened > _UNITS and found:
            break
        ranks = np.array([rank for rank, other in enumerate(paths) if other == path])
        _find(pool.store, keys, ranks, rows[ranks], found)
    ranks = np.array(sorted(found), dtype=np.int64)
    return ranks, np.stack([found[rank] for rank in ranks.tolist()]) if found else np.empty((0, 0), np.float32)


def _find(store: Store, keys: Sequence[str], ranks: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], found: dict[int, Floats]) -> None:
    """Add the embeddings of these rows of a file; which unit holds a row, only the units know."""
    for key in keys:
        receipt = read_receipt(store, key)
        if receipt is None or receipt.embeddings is None or not receipt.rows:
            continue
        held = next(read_all(store, [receipt], ["row"])).column(0).to_numpy()
        at = np.minimum(np.searchsorted(held, rows), len(held) - 1)
        here = np.flatnonzero(held[at] == rows)
        order = here[np.argsort(at[here])]
        for rank, value in zip(ranks[order].tolist(), _embeddings_at(store, receipt, at[order]), strict=True):
            found[rank] = value


def _embeddings_at(store: Store, receipt: Receipt, rows: npt.NDArray[np.int64]) -> Floats:
    """The embeddings of ascending rows of one unit, as float32."""
    assert receipt.embeddings is not None
    vectors = VectorFiles(store, checked=False)
    held = vectors.few(receipt.embeddings, receipt.rows, rows)
    if held is not None:
        return held.array.astype(np.float32)
    pieces = []
    start = 0
    for part in vectors.parts(receipt.embeddings, receipt.rows):
        low, high = np.searchsorted(rows, [start, start + part.rows])
        if low < high:
            pieces.append(part.array[rows[low:high] - start].astype(np.float32))
            part.release()
        start += part.rows
    return np.concatenate(pieces) if pieces else np.empty((0, receipt.dimension or 0), np.float32)

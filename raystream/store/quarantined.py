"""Rows that were left out under `on_error: skip`: each kind of a unit's outputs keeps its own in a file, a query has all in one.

The columns are the id under its own name, `path`, `row` and `reason`; the rows stand in the pool's order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raystream.figures import number_of
from raystream.store.protocol import Store, StoredFile
from raystream.store.receipts import Receipt, UnitOutputs
from raystream.store.unit_columns import read_table

NAMED = 10
"""Rows that are named one by one where people look; the file has all of them."""


def quarantined_rows(store: Store, units: Iterable[UnitOutputs]) -> Iterator[pa.Table]:
    """The rows that some kind of these units' outputs left out, unit by unit, each row once.

    Raises:
        StoreError: a file isn't what was written.
    """
    for unit in units:
        apart: dict[str, Receipt] = {}  # kinds that hold the same rows left out the same
        for receipt in unit.receipts:
            apart.setdefault(receipt.positions, receipt)
        tables = [read_table(store, receipt.quarantine) for receipt in apart.values() if receipt.quarantine is not None]
        if len(tables) > 1:
            every = pa.concat_tables(tables)
            _, first = np.unique(every.column("row").to_numpy(), return_index=True)
            tables = [every.take(pa.array(first))]
        yield from tables


def write_quarantined(store: Store, name: str, units: Iterable[UnitOutputs]) -> StoredFile | None:
    """Write the rows that these units left out into one file, a unit at a time; None if there are none."""
    tables = quarantined_rows(store, units)
    first = next(tables, None)
    if first is None:
        return None
    with store.writing(name) as file, pq.ParquetWriter(file, first.schema, use_dictionary=["path", "reason"]) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)
    return store.stored(name)


def named(tables: Iterable[pa.Table], count: int) -> list[str]:
    """How many rows were left out, and a line for each of the first ten; nothing if none was.

    Args:
        tables: the rows.
        count: of all of them.
    """
    lines: list[str] = []
    for table in tables:
        lines += described(table.slice(0, NAMED - len(lines)))
        if len(lines) == NAMED:
            break
    were = "1 row was" if count == 1 else f"{number_of(count, 'row')} were"
    return [f"{were} quarantined{f', the first {NAMED}' if count > NAMED else ''}:", *lines] if count else []


def described(rows: pa.Table) -> list[str]:
    """A line for each of some quarantined rows, with its id if that is among the columns."""
    *ids, paths, numbers, reasons = (column.to_pylist() for column in rows.columns)
    places = [f"{path} row {row}: {reason}" for path, row, reason in zip(paths, numbers, reasons, strict=True)]
    if not ids:
        return places
    return [f"{id_.hex() if isinstance(id_, bytes) else id_}, {place}" for id_, place in zip(ids[0], places, strict=True)]

"""Rows that were left out under `on_error: skip`: each unit keeps all of its own in a file, and a query has them in one.

The columns are the id under its own name, `path`, `row` and `reason`; the rows stand in the pool's order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from raystream.figures import number_of
from raystream.store.integrity import check_file, reading
from raystream.store.local import LocalStore
from raystream.store.protocol import Store, StoredFile
from raystream.store.receipts import Receipt

NAMED = 10
"""Rows that are named one by one where people look; the file has all of them."""






def quarantined_rows(store: Store, receipts: Sequence[Receipt]) -> Iterator[pa.Table]:
    """The rows that these units left out, unit by unit.

    Raises:
        StoreError: a file isn't what was written.
    """
    for receipt in receipts:
        if receipt.quarantine is None:
            continue
        if isinstance(store, LocalStore):
            check_file(store.path(receipt.quarantine.name), receipt.quarantine)
        with reading(store, receipt.quarantine):
            yield pq.ParquetFile(store.source(receipt.quarantine), pre_buffer=False).read()


def write_quarantined(store: Store, name: str, receipts: Sequence[Receipt]) -> StoredFile | None:
    """Write the rows that these units left out into one file, a unit at a time; None if there are none."""
    tables = quarantined_rows(store, receipts)
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

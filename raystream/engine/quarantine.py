"""Rows that were left out under `on_error: skip`: each unit keeps all of its own in a file, and a query has them in one.

The columns are the id under its own name, `path`, `row` and `reason`; the rows stand in the pool's order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raystream.engine.damage import check_file, reading
from raystream.engine.receipt import Receipt
from raystream.engine.store import LocalStore, StoredFile
from raystream.engine.stores import Store
from raystream.errors import PoolError
from raystream.figures import number_of
from raystream.pool import BadRow
from raystream.query import Query

NAMED = 10
"""Rows that are named one by one where people look; the file has all of them."""


class Quarantine:
    """The rows that one attempt at a unit leaves out.

    Args:
        id_name: the id column.
        path: of the unit's file.
    """

    def __init__(self, id_name: str, path: str) -> None:
        self._id_name, self._path = id_name, path
        self._ids: list[pa.Array] = []
        self._rows: list[np.ndarray] = []
        self._reasons: list[str] = []

    def __len__(self) -> int:
        return len(self._reasons)

    @property
    def positions(self) -> np.ndarray:
        """(n,) int64, where the rows stand in the file, in the order in which they were left out."""
        return np.concatenate(self._rows) if self._rows else np.empty(0, np.int64)

    def add(self, ids: pa.Array, rows: np.ndarray, reasons: Sequence[str]) -> None:
        """Leave these rows out: their ids, (n,) positions in the file, and what is wrong with each."""
        if len(rows):
            self._ids.append(ids)
            self._rows.append(np.asarray(rows, np.int64))
            self._reasons += reasons

    def add_read(self, bad: Sequence[BadRow], id_type: pa.DataType) -> None:
        """Leave out rows that can't be read."""
        self.add(pa.array([row.id for row in bad], id_type), np.array([row.row for row in bad]), [row.flaw for row in bad])

    def first(self, count: int) -> list[str]:
        """Where the first few stand, and what is wrong with them."""
        return described(self.table().slice(0, count).drop_columns([self._id_name])) if len(self) else []

    def table(self) -> pa.Table:
        """All of them, by row; at least one."""
        rows = self.positions
        columns = {
            self._id_name: pa.concat_arrays(self._ids),
            "path": pa.repeat(pa.scalar(self._path, pa.string()), len(rows)),
            "row": pa.array(rows),
            "reason": pa.array(self._reasons, pa.string()),
        }
        return pa.table(columns).take(pa.array(np.argsort(rows, kind="stable")))


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

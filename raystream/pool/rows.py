"""Reading columns of chosen rows only, by their positions."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raystream.pool.column_types import cast
from raystream.pool.files import File, open_parquet, threads_for
from raystream.pool.filters import partition_value
from raystream.pool.scan import check_text, group_starts, scan


@dataclass(frozen=True, eq=False)
class Places:
    """Where rows are: (n,) the number of each row's file among `files`, and its position in it; there may be as many as a pool has rows."""

    files: tuple[File, ...]
    of: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int64]

    @classmethod
    def of_pairs(cls, pairs: Sequence[tuple[File, int]]) -> Places:
        """The same of files and rows given one by one."""
        files = {file.path: file for file, _ in pairs}
        numbers = {path: number for number, path in enumerate(files)}
        of = np.array([numbers[file.path] for file, _ in pairs], dtype=np.int32)
        return cls(tuple(files.values()), of, np.array([row for _, row in pairs], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[File, int]:
        return self.files[self.of[index]], int(self.rows[index])

    @property
    def paths(self) -> pa.Array:
        """(n,) each row's file."""
        return pa.array([file.path for file in self.files], pa.string()).take(pa.array(self.of))


def read_columns_at(places: Places | Sequence[tuple[File, int]], schema: pa.Schema) -> pa.Table:
    """Columns of chosen rows, in the order given; only the row groups that hold them are read, one at a time.

    Args:
        places: (n,) the file and the row in it.
        schema: the columns wanted and their types, such as `PoolPlan.keep_schema`; hive folders count as columns.

    Raises:
        PoolError: a file is gone, changed or damaged.
    """
    if not isinstance(places, Places):
        places = Places.of_pairs(places)
    if not len(places):
        return schema.empty_table()
    order = np.lexsort((places.rows, places.of))
    rows = places.rows[order]
    edges = np.searchsorted(places.of[order], np.arange(len(places.files) + 1))
    held = [(file, low, high) for file, low, high in zip(places.files, edges, edges[1:], strict=False) if low < high]
    with ThreadPoolExecutor(threads_for([file for file, _, _ in held], 1)) as executor:
        tables = executor.map(lambda found: _read_file(found[0], rows[found[1] : found[2]], schema), held)
        parts = [table for found in tables for table in found]
    # The table is in sorted order; the inverse permutation restores the one asked for.
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return pa.concat_tables(parts).take(pa.array(back))


def _read_file(file: File, rows: npt.NDArray[np.int64], schema: pa.Schema) -> list[pa.Table]:
    """The tables of a file's sorted rows, some rows each, in order."""
    folders = {name for name, _ in file.partitions}
    stored = [name for name in schema.names if name not in folders]
    if not stored:
        return [_as_schema(file, None, len(rows), schema)]
    tables: list[pa.Table] = []
    with open_parquet(file) as parquet:
        starts = group_starts(parquet)
        edges = np.searchsorted(rows, starts)
        for group, (low, high) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
            if low == high:
                continue
            for first, batch in scan(file, parquet, stored, groups=[group], what=f"{file.path}#rg{group}"):
                here = rows[slice(*np.searchsorted(rows, [first, first + batch.num_rows]))]
                if len(here):
                    tables.append(_as_schema(file, batch.take(pa.array(here - first)), len(here), schema))
    return tables


def _as_schema(file: File, batch: pa.RecordBatch | None, rows: int, schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        if batch is not None and field.name in batch.schema.names:
            column = batch.column(field.name)
            check_text(column, f"column {field.name} of {file.path}")
            columns.append(cast(column, field.type, f"column {field.name} of {file.path}"))
        else:
            columns.append(pa.repeat(pa.scalar(partition_value(file, field.name, field.type), field.type), rows))
    return pa.table(columns, schema=schema)

"""Reading columns of chosen rows only, by their positions."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raystream.pool.column_types import cast
from raystream.pool.files import File, open_parquet, threads_for
from raystream.pool.filters import partition_value
from raystream.pool.scan import check_text, group_starts, scan


def read_columns_at(places: Sequence[tuple[File, int]], schema: pa.Schema) -> pa.Table:
    """Columns of chosen rows, in the order given; only the row groups that hold them are read, one at a time.

    Args:
        places: (n,) the file and the row in it.
        schema: the columns wanted and their types, such as `PoolPlan.keep_schema`; hive folders count as columns.

    Raises:
        PoolError: a file is gone, changed or damaged.
    """
    if not places:
        return schema.empty_table()
    files = {file.path: file for file, _ in places}
    numbers = {path: number for number, path in enumerate(sorted(files))}
    of = np.array([numbers[file.path] for file, _ in places])
    rows = np.array([row for _, row in places], dtype=np.int64)
    order = np.lexsort((rows, of))
    with ThreadPoolExecutor(threads_for(list(files.values()), 1)) as executor:
        tables = executor.map(lambda path: _read_file(files[path], rows[order[of[order] == numbers[path]]], schema), numbers)
        parts = [table for found in tables for table in found]
    # The table is in sorted order; the inverse permutation restores the one asked for.
    return pa.concat_tables(parts).take(pa.array(np.argsort(order)))


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

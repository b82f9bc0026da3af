"""Reading columns of chosen rows only, by their positions."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raystream.pool.column_types import cast
from raystream.pool.columns import plain_table
from raystream.pool.files import File, open_parquet, threads_for, unreadable
from raystream.pool.filters import partition_value


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
    """The tables of a file's sorted rows, one a row group."""
    folders = {name for name, _ in file.partitions}
    stored = [name for name in schema.names if name not in folders]
    if not stored:
        return [_as_schema(file, None, len(rows), schema)]
    tables: list[pa.Table] = []
    with open_parquet(file) as parquet:
        starts = [0, *accumulate(parquet.metadata.row_group(i).num_rows for i in range(parquet.metadata.num_row_groups))]
        edges = np.searchsorted(rows, starts)
        for group, (low, high) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
            if low == high:
                continue
            try:
                table = parquet.read_row_group(group, columns=stored)
            except (pa.ArrowException, OSError) as error:
                raise unreadable(file, f"{file.path}#rg{group} can't be read", error) from None
            tables.append(_as_schema(file, plain_table(table).take(pa.array(rows[low:high] - starts[group])), high - low, schema))
    return tables


def _as_schema(file: File, table: pa.Table | None, rows: int, schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        if table is not None and field.name in table.column_names:
            column = table.column(field.name)
            columns.append(cast(column, field.type, f"column {field.name} of {file.path}"))
        else:
            columns.append(pa.repeat(pa.scalar(partition_value(file, field.name, field.type), field.type), rows))
    return pa.table(columns, schema=schema)

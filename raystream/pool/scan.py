"""Reading columns of a file in order, every row that its footer counts or an error.

Also reading columns of chosen rows only, by their positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from raystream.errors import PoolError
from raystream.lake import reason
from raystream.pool.column_types import cast
from raystream.pool.columns import plain_batch
from raystream.pool.files import FOREIGN, File, UnreachableError, open_parquet, threads_for, unreadable
from raystream.pool.filters import partition_value
from raystream.pool.remote import RemoteParquet

_ROWS = 1 << 16


def group_starts(parquet: pq.ParquetFile | RemoteParquet) -> list[int]:
    """Find where each row group's first row stands in the file, and count the rows."""
    return [0, *accumulate(parquet.metadata.row_group(i).num_rows for i in range(parquet.metadata.num_row_groups))]


def check_text(array: pa.Array, what: str) -> None:
    """Raise PoolError for strings that aren't UTF-8, which Parquet and Arrow let through, but Python doesn't; `what` names them."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        raise PoolError(f"{what} is damaged: {reason(error)}; write it anew") from None


def scan(
    file: File,
    parquet: pq.ParquetFile | RemoteParquet,
    columns: Sequence[str],
    batch_rows: int = _ROWS,
    groups: Sequence[int] | None = None,
    then: Callable[[], None] | None = None,
    what: str | None = None,
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield batches in the file's order, their columns in plain types, each with the position of its first row in the file.

    pyarrow ends where any of the columns ends, without a word; here that is an error.

    Args:
        file: what is read.
        parquet: the same, opened.
        columns: those wanted, each once.
        batch_rows: the most rows of a batch.
        groups: consecutive row groups; all of them, if left out.
        then: of a remote file, called once all bytes have come; what it raises is raised after the last batch.
        what: is read, for messages; the file, if left out.

    Raises:
        PoolError: the file can't be read, or doesn't hold as many rows of a column as its footer counts.
    """
    starts = group_starts(parquet)
    groups = range(len(starts) - 1) if groups is None else groups
    if not len(groups):
        return
    row, end = starts[groups[0]], starts[groups[-1] + 1]
    further = {"then": then} if isinstance(parquet, RemoteParquet) else {}
    batches = parquet.iter_batches(batch_size=batch_rows, row_groups=list(groups), columns=list(columns), **further)
    while True:
        try:
            batch = next(batches, None)
            batch = None if batch is None else plain_batch(batch)
        except PoolError:
            raise  # of `then`
        except FOREIGN as error:
            failure = unreadable(file, f"{what or file.path} can't be read near row {row}", error)
            if not isinstance(failure, UnreachableError):  # else it didn't come, and wouldn't column by column
                _check_columns(file, parquet, columns, groups, starts)
            raise failure from None
        if batch is None or row + batch.num_rows > end:
            break
        yield row, batch
        row += batch.num_rows
    if row != end or batch is not None:
        _check_columns(file, parquet, columns, groups, starts)
        raise PoolError(f"{what or file.path} doesn't end at row {end}, as its footer says; write the file anew")


def _check_columns(
    file: File, parquet: pq.ParquetFile | RemoteParquet, columns: Sequence[str], groups: Sequence[int], starts: Sequence[int]
) -> None:
    """Raise PoolError for a column of which a row group holds more or fewer rows than the footer counts; damage is left to others."""
    for group in groups:
        expected = starts[group + 1] - starts[group]
        for name in columns:
            try:
                rows = sum(batch.num_rows for batch in parquet.iter_batches(row_groups=[group], columns=[name]))
            except FOREIGN:
                continue
            if rows != expected:
                raise PoolError(
                    f"column {name} of {file.path}#rg{group} holds {rows} rows, but the footer counts {expected}; write the file anew"
                )


@dataclass(frozen=True, eq=False)
class Places:
    """Where rows are: (n,) the number of each row's file among `files`, and its position in it; there may be as many as a pool has rows."""

    files: tuple[File, ...]
    of: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int64]

    @classmethod
    def of_pairs(cls, pairs: Sequence[tuple[File, int]]) -> Places:
        """Return the same of files and rows given one by one."""
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
    """Read columns of chosen rows, in the order given; only the row groups that hold them are read, one at a time.

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
    """Return the tables of a file's sorted rows, some rows each, in order."""
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

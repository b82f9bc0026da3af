"""Reading columns of a file in order, every row that its footer counts or an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq

from raystream.errors import PoolError
from raystream.pool.columns import plain_batch
from raystream.pool.files import FOREIGN, File, UnreachableError, one_line, unreadable
from raystream.pool.remote import RemoteParquet

_ROWS = 1 << 16


def group_starts(parquet: pq.ParquetFile | RemoteParquet) -> list[int]:
    """Where each row group's first row stands in the file, and how many rows there are."""
    return [0, *accumulate(parquet.metadata.row_group(i).num_rows for i in range(parquet.metadata.num_row_groups))]


def check_text(array: pa.Array, what: str) -> None:
    """Raise PoolError for strings that aren't UTF-8, which Parquet and Arrow let through, but Python doesn't; `what` names them."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        raise PoolError(f"{what} is damaged: {one_line(error)}; write it anew") from None


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

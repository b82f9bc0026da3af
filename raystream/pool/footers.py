"""What the Parquet footers tell before any row is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raystream.errors import PoolError, did_you_mean
from raystream.pool.files import File, UnreadableFileError, one_line, open_parquet, pinned, threads_for
from raystream.pool.table_file import TableFile
from raystream.pool.tensor_types import declared_type


@dataclass(frozen=True, slots=True)
class Statistics:
    """A filter column within one row group; None where the writer left it out.

    `least` and `greatest` are bounds: nothing lies outside, but neither need occur.
    """

    bytes: int
    least: Any
    greatest: Any
    nulls: int | None


@dataclass(frozen=True, slots=True)
class RowGroup:
    """One row group: its rows, the uncompressed bytes of the columns always read, and the filter columns."""

    rows: int
    bytes: int
    statistics: tuple[tuple[str, Statistics], ...] = ()


@dataclass(frozen=True, slots=True)
class Footer:
    """What planning needs of one file's footer."""

    file: File
    schema: pa.Schema
    row_groups: tuple[RowGroup, ...]

    @property
    def rows(self) -> int:
        """Rows of the file, before filters, without those that its table has deleted."""
        deletes = self.file.deletes
        return sum(group.rows for group in self.row_groups) - (len(deletes.positions) if deletes else 0)


def read_footers(
    files: Sequence[File],
    columns: Sequence[str],
    filter_columns: Sequence[str] = (),
    keep: Sequence[str] = (),
    threads: int = 16,
    unreadable: Callable[[File, str], None] | None = None,
) -> list[Footer]:
    """The footers of all files, in their order.

    Args:
        files: as listed.
        columns: those that every unit reads; they must stand in the files.
        filter_columns: those whose statistics are wanted; in the files, or hive folders.
        keep: further columns whose types are wanted; in the files, or hive folders.
        threads: footers read at a time.
        unreadable: is told, in order, of each file whose footer can't be read and why; that file is left out. Without
            it, such a file is an error.

    Raises:
        PoolError: a file isn't Parquet, or lacks a column.
    """
    with ThreadPoolExecutor(max_workers=threads_for(files, threads)) as executor:
        results = list(executor.map(lambda file: _try_footer(file, columns, filter_columns, keep), files))
    footers: list[Footer] = []
    for file, result in zip(files, results, strict=True):
        if isinstance(result, Footer):
            footers.append(result)
        elif unreadable is None:
            raise result
        else:
            unreadable(file, str(result))
    if footers:
        # Thousands of equal schemas would be most of a plan's memory.
        first = footers[0].schema
        footers = [Footer(f.file, first, f.row_groups) if f.schema.equals(first) else f for f in footers]
    return footers


def _try_footer(file: File, columns: Sequence[str], filter_columns: Sequence[str], keep: Sequence[str]) -> Footer | UnreadableFileError:
    try:
        return _read_footer(file, columns, filter_columns, keep)
    except UnreadableFileError as error:
        return error


def _read_footer(file: File, columns: Sequence[str], filter_columns: Sequence[str], keep: Sequence[str]) -> Footer:
    with open_parquet(file) as parquet:
        try:
            metadata, schema = parquet.metadata, parquet.schema_arrow
            file = pinned(file, parquet)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            raise UnreadableFileError(f"{file.path} has a schema that can't be read: {one_line(error)}; write the file anew") from None
    if file.table is not None:
        file = _completed(file, file.table, metadata.num_rows, schema, [*columns, *filter_columns, *keep])
    folders = [name for name, _ in file.partitions]
    for name in columns:
        if name in folders and name not in schema.names:
            raise PoolError(
                f"column {name} of {file.path} {_NOT_IN_FILE[file.table is None]}; expected the id and the inputs in the file itself"
            )
    wanted = dict.fromkeys([*columns, *filter_columns, *keep])
    in_file = [name for name in wanted if name not in folders or name in schema.names]
    for name in in_file:
        _check_column(file, schema.names, name, folders)
    filters = [name for name in filter_columns if name in in_file]
    leaves = _leaves(metadata, in_file)
    groups = (_row_group(metadata.row_group(i), columns, filters, leaves) for i in range(metadata.num_row_groups))
    return Footer(file, pa.schema([_declared(schema.field(name)) for name in in_file]), tuple(groups))


def _declared(field: pa.Field) -> pa.Field:
    return field.remove_metadata().with_type(declared_type(field))


_NOT_IN_FILE = {True: "is a hive folder", False: "is a partition column, or was added to the table after the file was written"}


def _completed(file: File, table: TableFile, rows: int, schema: pa.Schema, names: Sequence[str]) -> File:
    """A table's file with all columns that it doesn't hold itself among its partitions.

    Raises:
        PoolError: the file isn't what the table says of it.
    """
    if file.deletes is not None and file.deletes.positions[-1] >= rows:
        raise PoolError(f"{table.name} deletes row {file.deletes.positions[-1]} of {file.path}, which has {rows} rows; repair the table")
    known = {name: value for name, value in file.partitions if name not in schema.names}
    absent = table.absent(file.path, schema, [name for name in names if name not in known])
    return replace(file, partitions=(*known.items(), *absent))


def _check_column(file: File, names: Sequence[str], name: str, folders: Sequence[str]) -> None:
    if name in folders:
        raise PoolError(f"{name} is both a column and a partition of {file.path}; rename the column or the folders")
    count = names.count(name)
    if not count:
        raise PoolError(f"column {name} is missing in {file.path}{did_you_mean(name, [*names, *folders])}")
    if count > 1:
        raise PoolError(f"column {name} stands {count} times in {file.path}; expected different names, so rename all but one")


def _leaves(metadata: pq.FileMetaData, names: Sequence[str]) -> dict[str, list[int]]:
    """Column -> the Parquet leaf columns that it is stored in."""
    paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    return {name: [i for i, path in enumerate(paths) if path == name or path.startswith(f"{name}.")] for name in names}


def _row_group(group: pq.RowGroupMetaData, columns: Sequence[str], filters: Sequence[str], leaves: dict[str, list[int]]) -> RowGroup:
    def stored(name: str) -> int:
        return sum(group.column(leaf).total_uncompressed_size for leaf in leaves[name])

    statistics = tuple((name, _statistics(group, leaves[name], stored(name))) for name in filters)
    return RowGroup(group.num_rows, sum(stored(name) for name in dict.fromkeys(columns)), statistics)


def _statistics(group: pq.RowGroupMetaData, leaves: Sequence[int], stored: int) -> Statistics:
    found = group.column(leaves[0]).statistics if len(leaves) == 1 else None
    if found is None:
        return Statistics(stored, None, None, None)
    nulls = found.null_count if found.has_null_count else None
    if not found.has_min_max:
        return Statistics(stored, None, None, nulls)
    try:
        return Statistics(stored, found.min, found.max, nulls)
    except (pa.ArrowException, ValueError, OverflowError, NotImplementedError):
        return Statistics(stored, None, None, nulls)  # a type whose bounds Arrow doesn't decode prunes nothing

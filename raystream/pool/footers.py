"""Read what the Parquet footers tell before any row is read."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from raystream.errors import PoolError
from raystream.figures import of_columns
from raystream.lake import reason
from raystream.pool.columns import declared_type, plain_type
from raystream.pool.files import (
    FOREIGN,
    File,
    TableFile,
    UnreachableError,
    UnreadableFileError,
    footer_of,
    open_parquet,
    pinned,
    schema_of,
    threads_for,
    unreadable,
)
from raystream.pool.footer_bytes import ColumnChunk, DamagedFooterError, GroupChunks, find_groups
from raystream.pool.remote import RemoteParquet


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
    """The parts of one file's footer that planning needs."""

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
    """Return the footers of all files, in their order.

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
        footers = [Footer(f.file, first, f.row_groups) if f.schema.equals(first, check_metadata=True) else f for f in footers]
    return footers


def _try_footer(file: File, columns: Sequence[str], filter_columns: Sequence[str], keep: Sequence[str]) -> Footer | UnreadableFileError:
    try:
        return _read_footer(file, columns, filter_columns, keep)
    except UnreadableFileError as error:
        return error


def _read_footer(file: File, columns: Sequence[str], filter_columns: Sequence[str], keep: Sequence[str]) -> Footer:
    with open_parquet(file) as parquet:
        schema = schema_of(file, parquet)
        try:
            leaves = _leaf_columns(parquet)
            file = pinned(file, parquet)
            footer = footer_of(file, parquet)
        except FOREIGN as error:
            failure = unreadable(file, f"the footer of {file.path} can't be read", error)
            if isinstance(failure, UnreachableError):
                raise failure from None
            raise UnreadableFileError(f"{file.path} has a footer that can't be read: {reason(error)}; write the file anew") from None
        metadata = parquet.metadata
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
    fields = {name: _declared(schema.field(name), leaves, file.table) for name in in_file}
    groups = _row_groups(file, footer, metadata, columns, [fields[name] for name in filter_columns if name in fields], leaves, in_file)
    return Footer(file, pa.schema(fields.values()), groups)


def _declared(field: pa.Field, leaves: Sequence[_Leaf], table: TableFile | None) -> pa.Field:
    found = field.with_type(declared_type(field)).remove_metadata()
    if not any(leaf.path == field.name and leaf.int96 for leaf in leaves):
        return found
    said = table.types.get(field.name) if table is not None else None
    zone = said.tz if said is not None and pa.types.is_timestamp(said) else None
    return found.with_metadata({INT96: zone or ""})


INT96 = b"raystream:int96"
"""In the metadata of fields that are stored as INT96, which says no zone: the zone that a table says, or nothing."""
_TEXT = "text"
_FORMS: tuple[tuple[Callable[[pa.DataType], bool], str], ...] = (
    (lambda type_: (pa.types.is_integer(type_) and type_.bit_width <= 16) or type_ == pa.int32(), "<i"),
    (pa.types.is_int64, "<q"),
    (pa.types.is_float32, "<f"),
    (pa.types.is_float64, "<d"),
    (pa.types.is_boolean, "<?"),
    (lambda type_: pa.types.is_string(type_) or pa.types.is_large_string(type_), _TEXT),
)
"""How bounds of columns are encoded, by the columns' plain types."""
_NOT_IN_FILE = {True: "is a hive folder", False: "is a partition column, or was added to the table after the file was written"}


def _completed(file: File, table: TableFile, rows: int, schema: pa.Schema, names: Sequence[str]) -> File:
    """Return a table's file with all columns that it doesn't hold itself among its partitions.

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
        raise PoolError(f"column {name} is missing in {file.path}{of_columns(name, [*names, *folders])}")
    if count > 1:
        raise PoolError(f"column {name} stands {count} times in {file.path}; expected different names, so rename all but one")


class _Leaf(NamedTuple):
    """A leaf column of the schema."""

    path: str
    int96: bool
    repeated: bool


def _leaf_columns(parquet: pq.ParquetFile | RemoteParquet) -> list[_Leaf]:
    schema = parquet.metadata.schema
    columns = (schema.column(i) for i in range(parquet.metadata.num_columns))
    return [_Leaf(column.path, column.physical_type == "INT96", column.max_repetition_level > 0) for column in columns]


def _row_groups(
    file: File,
    footer: tuple[bytes, int],
    metadata: pq.FileMetaData,
    columns: Sequence[str],
    filters: Sequence[pa.Field],
    leaves: Sequence[_Leaf],
    names: Sequence[str],
) -> tuple[RowGroup, ...]:
    """Return the row groups, once it is certain that the columns can be read, as far as the footer tells.

    Args:
        file: for messages.
        footer: its bytes, and the size of the file.
        metadata: the same as pyarrow has it.
        columns: those that every unit reads.
        filters: the fields of the filters' columns.
        leaves: all of the schema.
        names: the columns that may be read.
    """
    of = {name: [i for i, leaf in enumerate(leaves) if leaf.path == name or leaf.path.startswith(f"{name}.")] for name in names}
    try:
        data, size = footer
        groups = find_groups(data, {leaf: leaves[leaf].path for found in of.values() for leaf in found}, metadata, size)
        rows = sum(group.rows for group in groups)
        if rows != metadata.num_rows:
            raise DamagedFooterError(f"its row groups have {rows} rows, but the file {metadata.num_rows}")
    except DamagedFooterError as error:
        raise UnreadableFileError(f"the footer of {file.path} is damaged: {error}; repair or remove the file") from None

    for number, group in enumerate(groups):
        for name, found in of.items():
            for leaf in found:
                chunk = group.chunks[leaf]
                if chunk.encrypted or chunk.values < group.rows or (chunk.values > group.rows and not leaves[leaf].repeated):
                    raise _unreadable_chunk(f"column {name} of {file.path}", f"{file.path}#rg{number}", chunk, group.rows)

    def stored(group: GroupChunks, name: str) -> int:
        return sum(group.chunks[leaf].size for leaf in of[name])

    forms = {field.name: next((form for holds, form in _FORMS if holds(plain_type(field.type))), None) for field in filters}

    def statistics(group: GroupChunks, name: str) -> Statistics:
        if len(of[name]) != 1:
            return Statistics(stored(group, name), None, None, None)
        chunk = group.chunks[of[name][0]]
        least, greatest = _bound(chunk.least, forms[name]), _bound(chunk.greatest, forms[name])
        return Statistics(chunk.size, least, None if least is None else greatest, chunk.nulls)

    always = list(dict.fromkeys(columns))
    return tuple(
        RowGroup(
            group.rows,
            sum(stored(group, name) for name in always),
            tuple((field.name, statistics(group, field.name)) for field in filters),
        )
        for group in groups
    )


def _unreadable_chunk(column: str, where: str, chunk: ColumnChunk, rows: int) -> UnreadableFileError:
    """Return the error for a column chunk that is encrypted, or holds another number of values than there are rows."""
    if chunk.encrypted:
        return UnreadableFileError(
            f"{column} is encrypted, and raystream holds no keys; write it without encryption, or read other columns"
        )
    return UnreadableFileError(f"{column} holds {chunk.values} values in {where}, which has {rows} rows; write the file anew")


def _bound(encoded: bytes | None, form: str | None) -> Any:
    """Return a bound as Python's value, of the types that `row_group_may_match` compares; None of others, and where it can't be one."""
    if encoded is None or form is None:
        return None
    try:
        return encoded.decode() if form == _TEXT else struct.unpack(form, encoded)[0]
    except (struct.error, UnicodeDecodeError):  # cut short by whoever wrote it, or damaged
        return None

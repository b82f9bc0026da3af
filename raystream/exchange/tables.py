"""Results as tables that other jobs read: Iceberg, Delta or a Parquet file, replaced as a whole for each query.

Writing twice leaves what writing once leaves: a query's rows carry its name in the column `query_id`, and
those that are there already are replaced in the same commit.
"""

from __future__ import annotations

import os
import uuid
import warnings
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raystream.errors import QueryError, RaystreamError, StoreError
from raystream.pool.files import one_line, resolve
from raystream.pool.table_uri import TableUri, is_table, package, parse_table

QUERY_ID = "query_id"
_ATTEMPTS = 4


def check_output(uri: str, key: str = "output") -> None:
    """Refuse, before any work, a place that can't be written to: its form is wrong, or a package is missing.

    Raises:
        QueryError: the URI isn't one of a table or a Parquet file or folder, or names a version.
        StoreError: the package that writes such tables is missing.
    """
    if not is_table(uri):
        resolve(uri, key)
        return
    table = parse_table(uri, key)
    if table.version is not None:
        raise QueryError(f"{key} {uri} names a version, but only the newest can be written; leave it out")
    package("pyiceberg.catalog" if table.kind == "iceberg" else "deltalake", table, key, StoreError)


def write_table(table: pa.Table, uri: str, query_id: str, name: str = "selection", key: str = "output") -> bool:
    """Write a query's rows to a table, in place of those that it holds of this query; other queries' rows stay.

    Args:
        table: the rows; a column `query_id` is added. Columns that the table hasn't are added to it.
        uri: `iceberg://catalog/namespace.table`, `delta+s3://…`, `delta+/folder`, made if it isn't there; a file that ends
            in `.parquet`; or a folder, which gets `<name>-<query_id>.parquet`.
        query_id: the query's name.
        name: what the rows are, for the name of a file.
        key: the query's key or the option that the URI stands in, for messages.

    Returns:
        Whether anything was written; ranked rows that stand there just so are left alone.

    Raises:
        QueryError: the URI can't be used.
        StoreError: it can't be written.
    """
    check_output(uri, key)
    if QUERY_ID in table.column_names:
        raise StoreError(
            f"{key} {uri}: the rows have a column {QUERY_ID} of their own; rename it in the pool, or leave it out of pool.keep"
        )
    marked = table.append_column(QUERY_ID, pa.repeat(pa.scalar(query_id, pa.string()), table.num_rows))
    try:
        if not is_table(uri):
            return _write_parquet(marked, uri, f"{name}-{query_id}.parquet", key)
        place = parse_table(uri, key)
        rows = _portable(marked)
        return (_write_iceberg if place.kind == "iceberg" else _write_delta)(rows, place, query_id, key)
    except RaystreamError:
        raise
    except Exception as error:  # what catalogs, object stores and their packages raise has no common root
        raise StoreError(f"{key} {uri} can't be written: {one_line(error)}") from error


def _write_iceberg(rows: pa.Table, place: TableUri, query_id: str, key: str) -> bool:
    catalogs = package("pyiceberg.catalog", place, key, StoreError)
    exceptions = package("pyiceberg.exceptions", place, key, StoreError)
    equal_to = package("pyiceberg.expressions", place, key, StoreError).EqualTo(QUERY_ID, query_id)
    catalog = catalogs.load_catalog(place.catalog)
    for attempt in range(_ATTEMPTS):
        try:
            table = catalog.load_table(place.name)
        except exceptions.NoSuchTableError:
            catalog.create_namespace_if_not_exists(place.name.rpartition(".")[0])
            table = catalog.create_table_if_not_exists(place.name, schema=rows.schema)
        try:
            if QUERY_ID not in table.schema().column_names:
                _not_ours(place, key)
            if _same(table.scan(row_filter=equal_to).to_arrow(), rows):
                return False
            with warnings.catch_warnings(), table.transaction() as transaction:
                warnings.simplefilter("ignore")  # that there was nothing to replace
                with transaction.update_schema() as update:
                    update.union_by_name(rows.schema)
                transaction.overwrite(rows, overwrite_filter=equal_to)
            return True
        except exceptions.CommitFailedException:
            if attempt + 1 == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def _write_delta(rows: pa.Table, place: TableUri, query_id: str, key: str) -> bool:
    deltalake = package("deltalake", place, key, StoreError)
    errors = package("deltalake.exceptions", place, key, StoreError)
    folder = delta_location(place, key)
    where = f"{QUERY_ID} = '{query_id.replace(chr(39), 2 * chr(39))}'"
    for attempt in range(_ATTEMPTS):
        exists = deltalake.DeltaTable.is_deltatable(folder)
        if exists:
            table = deltalake.DeltaTable(folder)
            if QUERY_ID not in [field.name for field in table.schema().fields]:
                _not_ours(place, key)
            if _same(pa.table(table.scan(predicate=where).read_all()), rows):
                return False
        try:
            options: dict[str, Any] = {"mode": "overwrite", "predicate": where, "schema_mode": "merge"} if exists else {"mode": "error"}
            deltalake.write_deltalake(folder, rows, **options)
            return True
        except errors.CommitFailedError:
            if attempt + 1 == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def delta_location(place: TableUri, key: str) -> str:
    """A Delta table's folder as deltalake takes it: an absolute path, or the URI of an object store."""
    if "://" in place.name and not place.name.startswith("file://"):
        return place.name
    return resolve(place.name, key)[1]


def _not_ours(place: TableUri, key: str) -> NoReturn:
    raise StoreError(
        f"{key} {place.text} is a table without a column {QUERY_ID}, so that nothing in it can be replaced; name another table"
    )


def _same(held: pa.Table, rows: pa.Table) -> bool:
    """Whether a table holds exactly these ranked rows."""
    if "rank" not in rows.column_names or held.num_rows != rows.num_rows or set(rows.column_names) - set(held.column_names):
        return False
    others = [name for name in held.column_names if name not in rows.column_names]
    if any(held.column(name).null_count < held.num_rows for name in others):
        return False
    try:
        return bool(held.select(rows.column_names).cast(rows.schema).sort_by("rank").equals(rows.sort_by("rank")))
    except pa.ArrowException:
        return False


def _portable(rows: pa.Table) -> pa.Table:
    """The rows in types that both kinds of tables have, every value as it was."""
    columns = [column.cast(_portable_type(column.type)) for column in rows.columns]
    return pa.table(columns, schema=pa.schema([pa.field(n, c.type) for n, c in zip(rows.column_names, columns, strict=True)]))


def _portable_type(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(type_):
        return _portable_type(type_.value_type)
    if pa.types.is_unsigned_integer(type_) or pa.types.is_int8(type_) or pa.types.is_int16(type_):
        return pa.int32() if type_.bit_width <= 16 else pa.int64()  # a uint64 beyond int64 is an error of the cast's
    if pa.types.is_float16(type_):
        return pa.float32()
    if pa.types.is_null(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        return pa.string()
    if pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_):
        return pa.binary()
    if pa.types.is_timestamp(type_):
        return pa.timestamp("us", "UTC" if type_.tz else None)
    if pa.types.is_fixed_size_list(type_) or pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return pa.list_(_portable_type(type_.value_type))
    return type_


def _write_parquet(rows: pa.Table, uri: str, name: str, key: str) -> bool:
    filesystem, path = resolve(uri, key)
    path = path if path.endswith(".parquet") else f"{path.rstrip('/')}/{name}"
    if not isinstance(filesystem, pafs.LocalFileSystem):
        with filesystem.open_output_stream(path) as stream:  # there when it is closed, and not before
            pq.write_table(rows, stream)
        return True
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            pq.write_table(rows, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return True

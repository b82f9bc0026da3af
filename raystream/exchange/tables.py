"""Results as tables that other jobs read: Iceberg, Delta or a Parquet file, replaced as a whole for each query.

Writing twice leaves what writing once leaves: a query's rows carry its name in the column `query_id`, and
those that are there already are replaced in the same commit.
"""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raystream.errors import QueryError, RaystreamError, StoreError
from raystream.lake import filesystem_of
from raystream.pool.delta import delta_location
from raystream.pool.files import one_line
from raystream.pool.table_uri import TableUri, is_table, package, parse_table

QUERY_ID = "query_id"
_ATTEMPTS = 4


def check_output(uri: str, key: str = "output") -> None:
    """Refuse, before any work, a place that can't be written to as far as that can be told by reading.

    Raises:
        QueryError: the URI isn't one of a table or a Parquet file or folder, or names a version.
        StoreError: the package that writes such tables is missing, the catalog can't be read, or the table there is of another kind.
    """
    if not is_table(uri):
        filesystem, path = filesystem_of(uri, key=key)
        if isinstance(filesystem, pafs.LocalFileSystem):
            check_replaceable(Path(path), key)
        return
    place = _place(uri, key)
    try:
        _rows_of_query(place, "", key)
    except RaystreamError:
        raise
    except Exception as error:
        raise _explained(uri, error, key) from error


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
        Whether anything was written; ranked rows that stand in a table just so are left alone.

    Raises:
        QueryError: the URI can't be used.
        StoreError: it can't be written.
    """
    place = _place(uri, key) if is_table(uri) else None
    if QUERY_ID in table.column_names:
        raise StoreError(
            f"{key} {uri}: the rows have a column {QUERY_ID} of their own; rename it in the pool, or leave it out of pool.keep"
        )
    marked = table.append_column(QUERY_ID, pa.repeat(pa.scalar(query_id, pa.string()), table.num_rows))
    try:
        if place is None:
            _write_parquet(marked, uri, f"{name}-{query_id}.parquet", key)
            return True
        return _replace(_portable(marked), place, query_id, key)
    except RaystreamError:
        raise
    except Exception as error:  # what catalogs, object stores and their packages raise has no common root
        raise _explained(uri, error, key) from error


def check_replaceable(target: Path, key: str) -> None:
    """Refuse to replace a file that raystream didn't write: it may be somebody's pool or labels.

    Raises:
        StoreError: it is there, and neither a selection nor scores.
    """
    if not target.is_file():
        return
    try:
        schema = pq.read_schema(target)
        ours = QUERY_ID in schema.names or b"raystream.query" in (schema.metadata or {})
    except (pa.ArrowInvalid, OSError):
        ours = False
    if not ours:
        raise StoreError(f"{key} {target} is there already and was not written by raystream, so it is not replaced; name another file")


def _explained(uri: str, error: Exception, key: str) -> StoreError:
    return StoreError(f"{key} {uri} can't be written: {one_line(error)}")


def _place(uri: str, key: str) -> TableUri:
    place = parse_table(uri, key)
    if place.version is not None:
        raise QueryError(f"{key} {uri} names a version, but only the newest can be written; leave it out")
    package("pyiceberg.catalog" if place.kind == "iceberg" else "deltalake", place, key, StoreError)
    return place


def _replace(rows: pa.Table, place: TableUri, query_id: str, key: str) -> bool:
    """Commit the rows until the table holds them once: of writers at the same time, both may have added theirs."""
    write = _write_iceberg if place.kind == "iceberg" else _write_delta
    failure: Exception | None = None
    written = False
    for attempt in range(_ATTEMPTS + 1):
        held = _rows_of_query(place, query_id, key)
        if held is not None and written and held([QUERY_ID]).num_rows == rows.num_rows:
            return True
        if held is not None and not written and "rank" in rows.column_names and _same(held(None), rows):
            return False
        if attempt == _ATTEMPTS:
            break
        try:
            write(rows, place, query_id, key, held is not None)
            written = True
        except Exception as error:
            failure = error
    raise failure or StoreError(f"{key} {place.text} is written by others at the same time; run the same again")


def _rows_of_query(place: TableUri, query_id: str, key: str) -> Callable[[list[str] | None], pa.Table] | None:
    """Reads what a table holds of a query, in these columns or all; None if the table isn't there."""
    if place.kind == "iceberg":
        missing = package("pyiceberg.exceptions", place, key, StoreError).NoSuchTableError
        try:
            table = package("pyiceberg.catalog", place, key, StoreError).load_catalog(place.catalog).load_table(place.name)
        except missing:
            return None
        _check_ours(table.schema().column_names, place, key)
        return lambda columns: table.scan(_equal_to(place, query_id, key), selected_fields=tuple(columns or ["*"])).to_arrow()
    deltalake, folder = package("deltalake", place, key, StoreError), delta_location(place, key)
    if not deltalake.DeltaTable.is_deltatable(folder):
        return None
    opened = deltalake.DeltaTable(folder)
    _check_ours([field.name for field in opened.schema().fields], place, key)
    return lambda columns: pa.table(opened.scan(columns, _predicate(query_id)).read_all())


def _write_iceberg(rows: pa.Table, place: TableUri, query_id: str, key: str, exists: bool) -> None:
    catalog = package("pyiceberg.catalog", place, key, StoreError).load_catalog(place.catalog)
    if not exists:
        catalog.create_namespace_if_not_exists(place.name.rpartition(".")[0])
        catalog.create_table_if_not_exists(place.name, schema=rows.schema)
    table = catalog.load_table(place.name)
    with warnings.catch_warnings(), table.transaction() as transaction:
        warnings.simplefilter("ignore")  # that there was nothing to replace
        with transaction.update_schema() as update:
            update.union_by_name(rows.schema)
        transaction.overwrite(rows, overwrite_filter=_equal_to(place, query_id, key))


def _write_delta(rows: pa.Table, place: TableUri, query_id: str, key: str, exists: bool) -> None:
    options: dict[str, Any] = {"mode": "overwrite", "predicate": _predicate(query_id), "schema_mode": "merge"}
    write = package("deltalake", place, key, StoreError).write_deltalake
    write(delta_location(place, key), rows, **(options if exists else {"mode": "error"}))


def _equal_to(place: TableUri, query_id: str, key: str) -> Any:
    return package("pyiceberg.expressions", place, key, StoreError).EqualTo(QUERY_ID, query_id)


def _predicate(query_id: str) -> str:
    doubled = query_id.replace("'", "''")
    return f"{QUERY_ID} = '{doubled}'"


def _check_ours(names: Sequence[str], place: TableUri, key: str) -> None:
    if QUERY_ID not in names:
        raise StoreError(
            f"{key} {place.text} is a table without a column {QUERY_ID}, so that nothing in it can be replaced; name another table"
        )


def _same(held: pa.Table, rows: pa.Table) -> bool:
    """Whether a table holds exactly these ranked rows."""
    if held.num_rows != rows.num_rows or set(rows.column_names) - set(held.column_names):
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


def _write_parquet(rows: pa.Table, uri: str, name: str, key: str) -> None:
    filesystem, path = filesystem_of(uri, key=key)
    path = path if path.endswith(".parquet") else f"{path.rstrip('/')}/{name}"
    if not isinstance(filesystem, pafs.LocalFileSystem):
        with filesystem.open_output_stream(path) as stream:  # there when it is closed, and not before
            pq.write_table(rows, stream)
        return
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

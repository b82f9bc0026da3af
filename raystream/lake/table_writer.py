"""Results as tables that other jobs read: Iceberg, Delta or a Parquet file, replaced as a whole for each query.

Writing twice leaves what writing once leaves: a query's rows carry its name in the column `query_id`, and
those that are there already are replaced in the same commit. Rows are read batch by batch, as often as a writer begins anew,
in types that all tables have. A file in object storage is there, whole, when it is finished, and untouched after an error.
"""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raystream.errors import QueryError, RaystreamError, StoreError
from raystream.lake import LOCAL, Location, Storage, filesystem_at, is_final, parse, reason, redacted, with_options
from raystream.lake.bucket import delta_place
from raystream.lake.retry import retried, server_reason
from raystream.lake.table_uri import TableUri, is_table, package, parse_table

_PIECE = 4


@dataclass(frozen=True)
class TableRows:
    """So many rows of a schema; `batches` begins at the first one each time that it is called.

    `group_rows` is how many a row group may hold, which a writer keeps in memory.
    """

    schema: pa.Schema
    count: int
    batches: Callable[[], Iterator[pa.RecordBatch]] = field(repr=False)
    group_rows: int = 1 << 20

    @classmethod
    def of(cls, table: pa.Table) -> TableRows:
        """Return the rows of a table in memory."""
        return cls(table.schema, table.num_rows, lambda: iter(table.to_batches()))

    def reader(self) -> pa.RecordBatchReader:
        """Open all rows, to be read once."""
        return pa.RecordBatchReader.from_batches(self.schema, self.batches())

    def pieces(self) -> Iterator[pa.Table]:
        """Yield all rows, as many at a time as a few row groups hold; one table at least."""
        held: list[pa.RecordBatch] = []
        for batch in self.batches():
            if held and sum(map(len, held)) + len(batch) > _PIECE * self.group_rows:
                yield pa.Table.from_batches(held)
                held = []
            held.append(batch)
        yield pa.Table.from_batches(held, self.schema)

    def table(self) -> pa.Table:
        """Read all rows into memory."""
        return self.reader().read_all()

    def marked(self, name: str, value: str) -> TableRows:
        """Return the rows with a further column that holds one text."""
        schema = self.schema.append(pa.field(name, pa.string()))

        def batches() -> Iterator[pa.RecordBatch]:
            for batch in self.batches():
                marks = pa.repeat(pa.scalar(value, pa.string()), batch.num_rows)
                yield pa.record_batch([*batch.columns, marks], schema=schema)

        return replace(self, schema=schema, batches=batches)

    @property
    def about(self) -> dict[str, str]:
        """The entries of the schema's metadata that say where the rows come from."""
        told = {key.decode(): value.decode() for key, value in (self.schema.metadata or {}).items()}
        return {key: value for key, value in told.items() if key.startswith("raystream.")}

    def portable(self) -> TableRows:
        """Return the rows in types that both kinds of tables have, every value as it was."""
        fields = [pa.field(column.name, _portable_type(column.type)) for column in self.schema]
        schema = pa.schema(fields, metadata=self.schema.metadata)
        return replace(self, schema=schema, batches=lambda: (_cast(batch, schema) for batch in self.batches()))


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    return pa.record_batch([column.cast(to.type) for column, to in zip(batch.columns, schema, strict=True)], schema=schema)


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


PART_BYTES = 16 << 20
"""What is sent at once; S3 takes 10,000 of them, so 160 GB."""
_PARTS_AT_A_TIME = 4


@contextmanager
def uploading(uri: str, storage: Storage = LOCAL, key: str = "output") -> Iterator[pa.NativeFile]:
    """Open a file to write to; what the URI named before stays until the new one is whole.

    Args:
        uri: of an object, remote.
        storage: how to reach it; the URI's own options come first.
        key: the query's key or the option that the URI stands in, for messages.

    Raises:
        QueryError: the URI or an option can't be used.
        StoreError: it can't be written.
    """
    import obstore
    from obstore.exceptions import BaseError

    from raystream.lake.bucket import HashingWriter, bucket_of

    location = parse(uri, key)
    folder, _, name = location.path.rpartition("/")
    bucket: Any = bucket_of(replace(location, path=folder).uri, with_options(location, storage, key), key)
    try:
        # Left by an error, the writer ends the upload without an object.
        with obstore.open_writer(bucket, name, buffer_size=PART_BYTES, max_concurrency=_PARTS_AT_A_TIME) as sink:
            writer = HashingWriter(sink)
            with pa.PythonFile(writer, "wb") as file:
                yield file
        written = obstore.head(bucket, name)["size"]
    except (BaseError, OSError) as error:
        if isinstance(error, RaystreamError):
            raise
        what = f"{key} {location.uri} can't be written: {server_reason(error)}"
        raise StoreError(f"{what}; check the bucket, the options and the credentials in the environment") from None
    if written != writer.size:
        raise StoreError(f"{key} {location.uri} holds {written} bytes, but {writer.size} were written: the server damages uploads")


QUERY_ID = "query_id"
_QUERY = b"raystream.query"
_OTHER_FILES = ("csv", "tsv", "json", "jsonl", "txt", "arrow", "feather", "orc", "avro", "xlsx", "pq", "parq", "gz", "zip")
_ATTEMPTS = 4


def check_output(uri: str, key: str = "output", storage: Storage = LOCAL) -> None:
    """Refuse, before any work, a place that can't be written to as far as that can be told by reading; arguments as for `write_table`.

    Raises:
        QueryError: the URI isn't one of a table or a Parquet file or folder, or names a version.
        StoreError: the package that writes such tables is missing, the catalog can't be read, or the table there is of another kind.
    """
    try:
        if is_table(uri):
            _rows_of_query(_place(uri, key), "", True, key, storage)
        else:
            location = parse(uri, key)
            file_in(location, "", key)
            check_replaceable(location, True, key, storage)
    except RaystreamError:
        raise
    except Exception as error:
        raise _explained(uri, error, key) from error


def write_table(
    table: pa.Table | TableRows, uri: str, query_id: str, name: str = "selection", key: str = "output", storage: Storage = LOCAL
) -> bool:
    """Write a query's rows to a table, in place of those that it holds of this query; other queries' rows stay.

    Args:
        table: the rows; a column `query_id` is added. Columns that the table hasn't are added to it. `Rows` reach a table batch
            by batch; what their schema says of where they come from (`raystream.…`) stands in the commit.
        uri: `iceberg://catalog/namespace.table`, `delta+s3://…`, `delta+/folder`, made if it isn't there; a file that ends
            in `.parquet`; or a folder, which gets `<name>-<query_id>.parquet`.
        query_id: the query's name.
        name: what the rows are, for the name of a file.
        key: the query's key or the option that the URI stands in, for messages.
        storage: how to reach what is in object storage; the URI's own options come first, an Iceberg catalog has its own.

    Returns:
        Whether anything was written; ranked rows that stand in a table just so are left alone.

    Raises:
        QueryError: the URI can't be used.
        StoreError: it can't be written.
    """
    place = _place(uri, key) if is_table(uri) else None
    rows = table if isinstance(table, TableRows) else TableRows.of(table)
    if QUERY_ID in rows.schema.names:
        raise StoreError(
            f"{key} {uri}: the rows have a column {QUERY_ID} of their own; rename it in the pool, or leave it out of pool.keep"
        )
    marked = rows.marked(QUERY_ID, query_id)
    try:
        if place is None:
            _write_parquet(marked.table(), uri, f"{name}-{query_id}.parquet", query_id, key, storage)
            return True
        return _replace(marked.portable(), place, query_id, key, storage)
    except RaystreamError:
        raise
    except Exception as error:  # what catalogs, object stores and their packages raise has no common root
        raise _explained(uri, error, key) from error


def check_replaceable(target: Location, ranked: bool, key: str, storage: Storage = LOCAL) -> None:
    """Refuse to replace a file that raystream didn't write, or wrote otherwise: it may be somebody's pool or labels.

    Args:
        target: a file, which needn't be there; of a folder nothing is said.
        ranked: whether a selection is to be written; else scores.
        key: the query's key or the option that it stands in, for messages.
        storage: how to reach what is in object storage.

    Raises:
        StoreError: it is there, and neither a selection nor scores, or the one and not the other.
        OSError: it can't be looked at.
    """
    filesystem, path = filesystem_at(target, storage, key)
    if retried(lambda: filesystem.get_file_info(path)).type != pafs.FileType.File:
        return
    try:
        schema = retried(lambda: pq.read_schema(path, filesystem=filesystem))
    except pa.ArrowInvalid:
        schema = pa.schema([])
    # Tools that change a file, such as pandas, leave the metadata out.
    if _QUERY not in (schema.metadata or {}):
        raise StoreError(f"{key} {target.uri} is there already and was not written by raystream, so it is not replaced; name another file")
    _check_kind(schema.names, ranked, f"{key} {target.uri}")


def _check_kind(names: Sequence[str], ranked: bool, where: str) -> None:
    """Raise StoreError if a file or table of raystream's holds scores and gets a selection, or the other way round."""
    if "row" in names and ("rank" in names) != ranked:
        held, written = ("scores", "a selection") if ranked else ("selections", "scores")
        raise StoreError(f"{where} holds {held}, whose rows {written} would take the place of; name another one")


def _explained(uri: str, error: Exception, key: str) -> StoreError:
    return StoreError(f"{key} {redacted(uri)} can't be written: {_told(error)}")


def _told(error: Exception) -> str:
    """Return a server's own words where there are any, else the first line."""
    return server_reason(error) if "<Code>" in str(error) else reason(error)


def _place(uri: str, key: str) -> TableUri:
    place = parse_table(uri, key)
    if place.version is not None:
        raise QueryError(f"{key} {uri} names a version, but only the newest can be written; leave it out")
    package("pyiceberg.catalog" if place.kind == "iceberg" else "deltalake", place, key, StoreError)
    return place


def _replace(rows: TableRows, place: TableUri, query_id: str, key: str, storage: Storage) -> bool:
    """Commit the rows until the table holds them once: of writers at the same time, both may have added theirs."""
    failure: Exception | None = None
    written = False
    for attempt in range(_ATTEMPTS + 1):
        held = _rows_of_query(place, query_id, "rank" in rows.schema.names, key, storage)
        if held is not None and written and held.count() == rows.count:
            return True
        if held is not None and not written and "rank" in rows.schema.names and _same(held.table(), rows.table()):
            return False
        if attempt == _ATTEMPTS:
            break
        try:
            if place.kind == "iceberg":
                _write_iceberg(rows, place, query_id, key, held is not None)
            else:
                _write_delta(rows, place, query_id, key, held is not None, storage)
            written = True
        except Exception as error:
            failure = error
            if is_final(error):
                break
    raise failure or StoreError(f"{key} {place.text} is written by others at the same time; run the same again")


@dataclass(frozen=True)
class _RowsOfQuery:
    """The rows that a table holds of a query: how many there are, and all of them."""

    count: Callable[[], int]
    table: Callable[[], pa.Table]


def _rows_of_query(place: TableUri, query_id: str, ranked: bool, key: str, storage: Storage) -> _RowsOfQuery | None:
    """Find the rows that a table holds of a query; None if the table isn't there."""
    if place.kind == "iceberg":
        missing = package("pyiceberg.exceptions", place, key, StoreError).NoSuchTableError
        try:
            table = package("pyiceberg.catalog", place, key, StoreError).load_catalog(place.catalog).load_table(place.name)
        except missing:
            return None
        _check_ours(table.schema().column_names, place, ranked, key)
        scan = table.scan(_equal_to(place, query_id, key))
        return _RowsOfQuery(scan.count, scan.to_arrow)
    deltalake, (folder, options) = package("deltalake", place, key, StoreError), delta_place(place.name, storage, key)
    if not deltalake.DeltaTable.is_deltatable(folder, options):
        return None
    opened = deltalake.DeltaTable(folder, storage_options=options)
    _check_ours([field.name for field in opened.schema().fields], place, ranked, key)

    def scanned(columns: list[str] | None) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_stream(opened.scan(columns, _predicate(query_id)))

    return _RowsOfQuery(lambda: sum(batch.num_rows for batch in scanned([QUERY_ID])), lambda: scanned(None).read_all())


def _write_iceberg(rows: TableRows, place: TableUri, query_id: str, key: str, exists: bool) -> None:
    catalog = package("pyiceberg.catalog", place, key, StoreError).load_catalog(place.catalog)
    if not exists:
        catalog.create_namespace_if_not_exists(place.name.rpartition(".")[0])
        catalog.create_table_if_not_exists(place.name, schema=rows.schema)
    table = catalog.load_table(place.name)
    # pyiceberg takes rows batch by batch into tables without partitions alone; into others some at a time, all in one commit.
    pieces: Iterator[pa.Table | pa.RecordBatchReader] = iter([rows.reader()]) if table.spec().is_unpartitioned() else rows.pieces()
    with warnings.catch_warnings(), table.transaction() as transaction:
        warnings.simplefilter("ignore")  # that there was nothing to replace
        with transaction.update_schema() as update:
            update.union_by_name(rows.schema)
        transaction.overwrite(next(pieces), overwrite_filter=_equal_to(place, query_id, key), snapshot_properties=rows.about)
        for piece in pieces:
            transaction.append(piece, snapshot_properties=rows.about)


def _write_delta(rows: TableRows, place: TableUri, query_id: str, key: str, exists: bool, storage: Storage) -> None:
    more: dict[str, Any] = {"mode": "overwrite", "predicate": _predicate(query_id), "schema_mode": "merge"}
    deltalake = package("deltalake", place, key, StoreError)
    folder, options = delta_place(place.name, storage, key)
    groups = deltalake.WriterProperties(max_row_group_size=rows.group_rows)
    more = more if exists else {"mode": "error"}
    more["commit_properties"] = deltalake.CommitProperties(custom_metadata=rows.about)
    deltalake.write_deltalake(folder, rows.reader(), storage_options=options, writer_properties=groups, **more)


def _equal_to(place: TableUri, query_id: str, key: str) -> Any:
    return package("pyiceberg.expressions", place, key, StoreError).EqualTo(QUERY_ID, query_id)


def _predicate(query_id: str) -> str:
    doubled = query_id.replace("'", "''")
    return f"{QUERY_ID} = '{doubled}'"


def _check_ours(names: Sequence[str], place: TableUri, ranked: bool, key: str) -> None:
    if QUERY_ID not in names:
        raise StoreError(
            f"{key} {place.text} is a table without a column {QUERY_ID}, so that nothing in it can be replaced; name another table"
        )
    _check_kind(names, ranked, f"{key} {place.text}")


def _same(held: pa.Table, rows: pa.Table) -> bool:
    """Tell whether a table holds exactly these ranked rows."""
    if held.num_rows != rows.num_rows or set(rows.column_names) - set(held.column_names):
        return False
    others = [name for name in held.column_names if name not in rows.column_names]
    if any(held.column(name).null_count < held.num_rows for name in others):
        return False
    try:
        return bool(held.select(rows.column_names).cast(rows.schema).sort_by("rank").equals(rows.sort_by("rank")))
    except pa.ArrowException:
        return False


def file_in(location: Location, name: str, key: str) -> str:
    """Return the path of a file to write: the location's own if it ends in `.parquet`, else one of this name below it.

    Raises:
        QueryError: the location ends like a file of another kind.
    """
    ending = location.path.rpartition("/")[2].rpartition(".")[2].lower()
    if ending in _OTHER_FILES:
        raise QueryError(f"{key} {location.uri} ends in .{ending}, but only Parquet is written; end it in .parquet, or name a folder")
    return location.path if location.path.endswith(".parquet") else f"{location.path.rstrip('/')}/{name}"


def _write_parquet(rows: pa.Table, uri: str, name: str, query_id: str, key: str, storage: Storage) -> None:
    location = parse(uri, key)
    path = file_in(location, name, key)
    check_replaceable(replace(location, path=path), "rank" in rows.column_names, key, storage)
    rows = rows.replace_schema_metadata({**(rows.schema.metadata or {}), _QUERY: query_id})
    if location.scheme != "file":
        with uploading(location.at(path), with_options(location, storage, key), key) as stream:
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

"""The data files of an Iceberg table at one snapshot, with the rows that its delete files take away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from raystream.errors import PoolError, RaystreamError, did_you_mean
from raystream.lake import LOCAL, Storage, reason, storage_from
from raystream.lake.table_uri import TableUri, package
from raystream.lake.uri import TableVersion
from raystream.pool.files import Deletes, NothingThereError, TableFile
from raystream.pool.filters import Filters, Term
from raystream.pool.listing import Listed, TableListing, check_filter_columns, types_of

_THREADS = 16
_SHOWN = 5


def list_iceberg(table: TableUri, filters: Filters, key: str, storage: Storage = LOCAL) -> TableListing:
    """List an Iceberg table's files; the catalog is configured as pyiceberg has it, in its file or the environment.

    Args:
        table: which, and at which snapshot; the current one if it names none.
        filters: files without a row that passes, by the table's partitions and statistics, are left out.
        key: of the query, for messages.
        storage: how to reach its data files; without any option, as the catalog's own properties say.

    Raises:
        PoolError: the table or its snapshot isn't there, or has deletes or files that can't be read.
    """
    opened = open_iceberg(table, key)
    snapshot = opened.current_snapshot() if table.version is None else opened.snapshot_by_id(table.version)
    if snapshot is None:
        raise (NothingThereError if table.version is None else PoolError)(_no_snapshot(opened, table, key))
    version = TableVersion(table.text, str(opened.metadata.table_uuid), int(snapshot.snapshot_id))
    scan = opened.scan(snapshot_id=snapshot.snapshot_id)
    # Without a snapshot asked for, columns have the names that they have today, though the snapshot may be older than a renaming.
    schema = opened.schema() if table.version is None else scan.projection()
    arrow = package("pyiceberg.io.pyarrow", table, key, PoolError).schema_to_pyarrow(schema, include_field_ids=False)
    types = types_of(arrow)
    check_filter_columns(filters, list(types), table.text)
    # Statistics are looked up by the columns that the table has now; an older snapshot may have had others.
    same_schema = schema.schema_id == opened.schema().schema_id
    expression = _row_filter(filters, schema, table, key) if same_schema else None
    try:
        tasks, pruned = _plan(scan, expression)
        deletes = _deletes(opened.io, tasks, table, key)
    except RaystreamError:
        raise
    except Exception as error:
        if "equality delete" in str(error):
            raise PoolError(
                f"{key} {table.text} has equality deletes in snapshot {version.version}, which can't be applied to row positions; "
                "compact the table, which writes them into the files (rewrite_data_files), then run the query again"
            ) from None
        raise PoolError(f"{key} {table.text} can't be read: {reason(error)}") from error
    ids = {field.name: field.field_id for field in schema.fields}
    defaults = frozenset(field.name for field in schema.fields if field.initial_default is not None)
    files = []
    for task in tasks:
        if task.file.file_format.value.upper() != "PARQUET":
            raise PoolError(
                f"{key} {table.text} holds {task.file.file_path}, a file of {task.file.file_format.value}; only Parquet can be read"
            )
        columns = TableFile(table.text, types, ids, _constants(opened, schema, task.file), defaults)
        files.append(Listed(local_path(task.file.file_path), columns, (), deletes.get(task.file.file_path), task.file.file_size_in_bytes))
    return TableListing(version, files, pruned, storage if storage != LOCAL else _storage(opened.io.properties, key))


_PROPERTIES = {
    "s3.endpoint": "endpoint_override", "s3.region": "region", "s3.anonymous": "anonymous",
    "s3.force-virtual-addressing": "virtual_addressing", "s3.connect-timeout": "connect_timeout", "s3.request-timeout": "request_timeout",
    "adls.account-name": "account_name", "gcs.service.host": "endpoint_override",
}  # fmt: skip
"""pyiceberg's names of what `pool.storage` says, too; credentials that a catalog holds are not taken over."""


def _storage(properties: Mapping[str, Any], key: str) -> Storage:
    found = {ours: properties[theirs] for theirs, ours in _PROPERTIES.items() if properties.get(theirs) not in (None, "")}
    whole = {name: str(int(float(value))) if name.endswith("timeout") else str(value) for name, value in found.items()}
    return storage_from(whole, f"{key}, the catalog's properties")


def _plan(scan: Any, expression: Any) -> tuple[list[Any], bool]:
    """Return the data files of a scan with their delete files, and whether the expression chose among them."""
    if expression is not None:
        try:
            return list(scan.filter(expression).plan_files()), True
        except TypeError:
            pass  # pyiceberg 0.12 can't order a partition that is null; the rows are filtered all the same
    return list(scan.plan_files()), False


def open_iceberg(table: TableUri, key: str) -> Any:
    """Return the table, by its catalog, as pyiceberg has it.

    Raises:
        PoolError: it isn't there, or its catalog can't be read.
    """
    catalogs = package("pyiceberg.catalog", table, key, PoolError)
    missing = package("pyiceberg.exceptions", table, key, PoolError).NoSuchTableError
    try:
        catalog = catalogs.load_catalog(table.catalog)
        try:
            return catalog.load_table(table.name)
        except missing:
            namespace = table.name.rpartition(".")[0]
            there = [".".join(name) for name in catalog.list_tables(namespace)] if catalog.namespace_exists(namespace) else []
            hint = did_you_mean(table.name, there) or f"; the namespace {namespace} holds no table"
            raise PoolError(f"{key} {table.stem}: catalog {table.catalog} has no table {table.name}{hint}") from None
    except RaystreamError:
        raise
    except Exception as error:  # what catalogs raise has no common root
        if "URI missing" in str(error):
            name = table.catalog.upper()
            raise PoolError(
                f"{key} {table.stem}: no catalog {table.catalog} is configured; say where it is in .pyiceberg.yaml, under "
                f"catalog.{table.catalog}, or by the variable PYICEBERG_CATALOG__{name}__URI"
            ) from None
        raise PoolError(f"{key} {table.stem}: catalog {table.catalog} can't be read: {reason(error)}") from error


def _no_snapshot(opened: Any, table: TableUri, key: str) -> str:
    if table.version is None:
        return f"{key} {table.text} holds no snapshot yet; write rows to the table first"
    held = sorted(opened.metadata.snapshots, key=lambda snapshot: -snapshot.timestamp_ms)
    times = [(s.snapshot_id, datetime.fromtimestamp(s.timestamp_ms / 1000, UTC)) for s in held[:_SHOWN]]
    shown = ", ".join(f"{number} ({time:%Y-%m-%d %H:%M} UTC)" for number, time in times) or "none"
    return f"{key} {table.stem} has no snapshot {table.version}; the newest of {len(held)} are {shown}"


def local_path(path: str) -> str:
    """Return a data file's location, which Iceberg doesn't percent-encode, as a path if it is local."""
    if not path.startswith("file:"):
        return path
    return "/" + path.removeprefix("file:").lstrip("/")


def _constants(opened: Any, schema: Any, file: Any) -> dict[str, str | None]:
    """Return the values of columns that the table is partitioned by as they are: files taken over from Hive don't hold them."""
    constants: dict[str, str | None] = {}
    for position, field in enumerate(opened.specs()[file.spec_id].fields):
        column = next((column for column in schema.fields if column.field_id == field.source_id), None)
        if column is None or str(field.transform) != "identity":
            continue
        value = file.partition[position]
        constants[column.name] = None if value is None else field.transform.to_human_string(column.field_type, value)
    return constants


def _deletes(io: Any, tasks: Sequence[Any], table: TableUri, key: str) -> dict[str, Deletes]:
    """Return the deleted rows of each data file that has any; a delete file applies to those files that were planned with it."""
    applies: dict[str, set[str]] = {}
    files = {}
    for task in tasks:
        for file in task.delete_files:
            files[file.file_path] = file
            applies.setdefault(file.file_path, set()).add(task.file.file_path)
    parts: dict[str, list[npt.NDArray[np.int64]]] = {}
    if files:
        with ThreadPoolExecutor(min(_THREADS, len(files))) as executor:
            read = executor.map(lambda file: (file.file_path, _read_deletes(io, file, table, key)), files.values())
            for delete_path, found in read:
                for path, positions in found:
                    if path in applies[delete_path]:
                        parts.setdefault(path, []).append(positions)
    unions = {path: Deletes.of(positions) for path, positions in parts.items()}
    return {path: deletes for path, deletes in unions.items() if deletes is not None}


def _read_deletes(io: Any, file: Any, table: TableUri, key: str) -> Iterable[tuple[str, npt.NDArray[np.int64]]]:
    """Read deleted positions by data file, of a file of position deletes or of deletion vectors."""
    form = file.file_format.value.upper()
    with io.new_input(file.file_path).open() as stream:
        if form == "PUFFIN":
            puffin = package("pyiceberg.table.puffin", table, key, PoolError).PuffinFile(stream.read())
            vectors = package("pyiceberg.table.deletion_vector", table, key, PoolError).deletion_vectors_from_puffin_file(puffin)
            return [(vector.referenced_data_file, vector.to_vector().to_numpy()) for vector in vectors]
        if form != "PARQUET":
            raise PoolError(
                f"{key} {table.text} has deletes in {file.file_path}, a file of {form}; only Parquet can be read, compact the table"
            )
        held = pq.read_table(stream, columns=["file_path", "pos"], page_checksum_verification=True)
    if held.num_rows != file.record_count:  # deleted rows would be back
        raise PoolError(
            f"{key} {table.text}: {file.file_path} holds {held.num_rows} deletes, but the table counts {file.record_count}; repair it"
        )
    paths = held.column("file_path").combine_chunks().dictionary_encode()
    codes, positions = paths.indices.to_numpy(), held.column("pos").to_numpy()
    order = np.argsort(codes, kind="stable")
    edges = np.searchsorted(codes[order], np.arange(len(paths.dictionary) + 1))
    return [(path, positions[order[edges[i] : edges[i + 1]]]) for i, path in enumerate(paths.dictionary.to_pylist())]


def _row_filter(filters: Filters, schema: Any, table: TableUri, key: str) -> Any:
    """Translate what Iceberg's statistics may decide of the filters into its expression; None if that rules nothing out.

    A term is left out where Iceberg might not compare as rows are compared: then more files are read, never fewer.
    """
    expressions = package("pyiceberg.expressions", table, key, PoolError)
    names = {"==": "EqualTo", "<": "LessThan", "<=": "LessThanOrEqual", ">": "GreaterThan", ">=": "GreaterThanOrEqual", "in": "In"}
    either = []
    for conjunction in filters:
        terms = [getattr(expressions, names[op])(name, value) for name, op, value in conjunction if _alike((name, op, value), schema)]
        if not terms:
            return None
        either.append(reduce(expressions.And, terms))
    return reduce(expressions.Or, either) if either else None


def _alike(term: Term, schema: Any) -> bool:
    """Tell whether Iceberg compares a column with the term's value as Arrow does."""
    name, op, value = term
    if op in ("!=", "not in"):
        return False
    type_ = str(schema.find_field(name).field_type)
    values = value if isinstance(value, tuple) else (value,)
    if type_ in ("int", "long"):
        least = -(2**31) if type_ == "int" else -(2**63)
        return bool(values) and all(isinstance(v, int) and not isinstance(v, bool) and least <= v < -least for v in values)
    if type_ == "double":
        return op != "in" and isinstance(value, float)
    return type_ == "string" and bool(values) and all(isinstance(v, str) for v in values)

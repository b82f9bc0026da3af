"""The data files of a Delta table at one version, with partition values and deletion vectors from its log."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from raystream.errors import PoolError
from raystream.lake import LOCAL, Storage, is_remote, parse, reason, with_options
from raystream.lake.bucket import delta_place
from raystream.lake.retry import server_reason
from raystream.lake.table_uri import TableUri, package
from raystream.lake.uri import TableVersion
from raystream.pool.files import Deletes, File, TableFile
from raystream.pool.filters import Filters, filter_columns, residual, row_group_may_match
from raystream.pool.footers import Statistics
from raystream.pool.listing import Listed, TableListing, check_filter_columns, types_of


def list_delta(table: TableUri, filters: Filters, key: str, storage: Storage = LOCAL) -> TableListing:
    """List a Delta table's files.

    Args:
        table: which, and at which version; the newest if it names none.
        filters: files without a row that passes, by the log's partition values and statistics, are left out.
        key: of the query, for messages.
        storage: how to reach it; the URI's own options come first.

    Raises:
        PoolError: the table or its version isn't there, or has features that can't be read.
    """
    deltalake = package("deltalake", table, key, PoolError)
    opened = _open(deltalake, table, key, storage)
    version = TableVersion(table.text, str(opened.metadata().id), int(opened.version()))
    try:
        mapping = opened.metadata().configuration.get("delta.columnMapping.mode", "none")
        types = types_of(pa.schema(opened.schema().to_arrow()))
        actions = pa.table(opened.get_add_actions(flatten=True))
        paths = opened.file_uris()
        deleted = _deleted(opened, set(paths), table, key)
    except PoolError:
        raise
    except Exception as error:  # deltalake's errors have no common root
        raise PoolError(f"{key} {table.text} can't be read as a Delta table: {reason(error)}") from error
    if mapping != "none":
        raise PoolError(
            f"{key} {table.text} maps its columns to other names in the files (mode {mapping}), which can't be read; rewrite it"
        )
    check_filter_columns(filters, list(types), table.text)
    names = opened.metadata().partition_columns
    values = {name: _texts(actions.column(f"partition.{name}")) for name in names}
    columns = TableFile(table.text, types)
    rows = actions.select([name for name in actions.column_names if _needed(name, filters)]).to_pylist()
    files: list[Listed] = []
    for i, (path, row) in enumerate(zip(paths, rows, strict=True)):
        if not path.endswith((row["path"], unquote(row["path"]))):
            raise PoolError(f"{key} {table.text}: deltalake lists {path} where its log has {row['path']}; use another version of deltalake")
        partitions = tuple((name, values[name][i]) for name in names)
        listed = Listed(_place(path, opened, table, key), columns, partitions, deleted.get(path), row["size_bytes"])
        if _may_match(listed, row, filters, types):
            files.append(listed)
    if is_remote(table.name):
        storage = with_options(parse(table.name, key), storage, key)
    return TableListing(version, files, len(files) < len(paths), storage)


def _place(path: str, opened: Any, table: TableUri, key: str) -> str:
    """Find where a file of `file_uris` lies: that of a local table percent-encodes the table's folder, and nothing below it."""
    root = opened.table_uri.removeprefix("file://")
    if "://" in root or not path.startswith(root):
        return path
    return f"{delta_place(table.name, key=key)[0]}/{path.removeprefix(root)}"


def _open(deltalake: Any, table: TableUri, key: str, storage: Storage) -> Any:
    folder, options = delta_place(table.name, storage, key)
    try:
        return deltalake.DeltaTable(folder, version=table.version, storage_options=options)
    except Exception as error:
        if table.version is not None:
            try:
                held = [entry["version"] for entry in deltalake.DeltaTable(folder, storage_options=options).history()]
            except Exception:
                held = []
            if held and table.version not in held:
                raise PoolError(f"{key} {table.stem} has no version {table.version}; its log holds {min(held)} to {max(held)}") from None
        raise PoolError(
            f"{key} {table.text} can't be opened as a Delta table: {server_reason(error)}; expected a folder with _delta_log"
        ) from error


def _deleted(opened: Any, paths: set[str], table: TableUri, key: str) -> dict[str, Deletes]:
    """Return the deleted rows of each file that has any."""
    found: dict[str, Deletes] = {}
    root = opened.table_uri
    for batch in opened.deletion_vectors():
        columns = pa.table(batch) if not isinstance(batch, pa.RecordBatch) else pa.Table.from_batches([batch])
        vectors = columns.column("selection_vector").combine_chunks()
        for i, uri in enumerate(columns.column("filepath").to_pylist()):
            inside = root.removeprefix("file://") + unquote(uri.removeprefix(root))
            path = next((p for p in (uri, unquote(uri), inside) if p in paths), None)
            if path is None:
                raise PoolError(f"{key} {table.text} has a deletion vector for {uri}, a file that it doesn't list; repair the table")
            keep = vectors[i].values.to_numpy(zero_copy_only=False)
            # Rows beyond the vector's end are kept.
            if (deletes := Deletes.of([np.flatnonzero(~keep)])) is not None:
                found[path] = deletes
    return found


def _texts(column: pa.ChunkedArray) -> list[str | None]:
    values: list[str | None] = column.cast(pa.string()).to_pylist()
    return values


def _needed(name: str, filters: Filters) -> bool:
    return name in ("path", "num_records", "size_bytes") or name.partition(".")[2] in filter_columns(filters)


def _may_match(listed: Listed, row: dict[str, Any], filters: Filters, types: dict[str, pa.DataType]) -> bool:
    """Tell whether the log leaves room for a row of the file that passes the filters."""
    left = residual(filters, File(listed.path, 0, "", listed.partitions), types)
    if left is None:
        return False
    statistics = {
        name: Statistics(0, row.get(f"min.{name}"), row.get(f"max.{name}"), row.get(f"null_count.{name}")) for name in filter_columns(left)
    }
    rows = row.get("num_records")
    return row_group_may_match(left, statistics, -1 if rows is None else rows, types)

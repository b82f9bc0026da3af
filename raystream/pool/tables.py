"""Iceberg and Delta tables as pools, and what has arrived in them since.

The files of a pool, whether they are named as such or by a table, which pins one of its versions and knows what is deleted.

When the files of a table came into it: by which snapshot or version, and whether that one took other files out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs
from pyarrow.fs import FileType

from raystream.errors import PoolError
from raystream.lake import LOCAL, Storage, filesystem_at, filesystem_of, located, parse, reason
from raystream.lake.retry import retried
from raystream.lake.table_uri import TableUri, is_table, parse_table
from raystream.lake.uri import TableVersion
from raystream.pool.files import File, NothingThereError
from raystream.pool.filters import Filters
from raystream.pool.folders import list_files
from raystream.pool.iceberg import local_path, open_iceberg
from raystream.pool.listing import Listed

_THREADS = 32


def list_pool(
    uris: Sequence[str], key: str = "pool.uri", filters: Filters = (), storage: Storage = LOCAL, *, texts: bool = False
) -> tuple[list[File], tuple[TableVersion, ...]]:
    """Return the files under URIs of files, folders, globs and tables, sorted by path, each once.

    Args:
        uris: what to list.
        key: the query's key that they stand in, for messages.
        storage: how to reach what is in object storage; a Delta table's URI and an Iceberg catalog may have options of their own.
        filters: files that a table's partitions and statistics prove to hold no row of these may be left out.
        texts: whether files of text are taken, too, as labels are.

    Returns:
        The files, and for each table the version that was read.

    Raises:
        QueryError: a URI can't be used.
        PoolError: something is missing or can't be read.
    """
    plain = [uri for uri in uris if not is_table(uri)]
    files = {file.path: file for file in list_files(plain, key, storage, texts=texts)} if plain or not uris else {}
    versions: list[TableVersion] = []
    for uri in uris:
        if not is_table(uri):
            continue
        found, version = _list_table(uri, key, filters, storage)
        versions.append(version)
        for file in found:
            known = files.setdefault(file.path, file)
            if known.deletes != file.deletes:
                raise PoolError(
                    f"{key} names {file.path} twice, with different rows deleted; name each table once, and not its files beside it"
                )
    return [files[path] for path in sorted(files)], tuple(versions)


def _list_table(uri: str, key: str, filters: Filters, storage: Storage) -> tuple[list[File], TableVersion]:
    table = parse_table(uri, key)
    if table.kind == "iceberg":
        from raystream.pool.iceberg import list_iceberg

        listing = list_iceberg(table, filters, key, storage)
    else:
        from raystream.pool.delta import list_delta

        listing = list_delta(table, filters, key, storage)
    if not listing.files:
        if listing.pruned:
            raise PoolError(f"no row of {uri} is left after pool.filters, by the table's own statistics; change pool.filters")
        raise NothingThereError(f"{key} {uri} holds no data file in version {listing.version.version}; expected at least one")

    def found(listed: Listed) -> File:
        place = located(listed.path, key)
        size, version = listed.size, ""
        if size is None or place.scheme == "file":
            # Else nothing is asked until the footer is read, which pins the ETag: a table says the size and never replaces a file.
            filesystem, path = filesystem_at(place, listing.storage, key)
            info = retried(lambda: filesystem.get_file_info(path))
            if info.type != FileType.File:
                raise PoolError(f"{key} {uri} lists the file {place.uri}, which isn't there; restore it or read a newer version")
            size, version = info.size, str(info.mtime_ns)
        storage = LOCAL if place.scheme == "file" else listing.storage
        return File(place.uri, size, version, listed.partitions, listed.deletes, listed.file, storage)

    with ThreadPoolExecutor(min(_THREADS, len(listing.files))) as executor:
        return list(executor.map(found, listing.files)), listing.version


_COMMIT = re.compile(r"(\d{20})\.json")


@dataclass(frozen=True)
class Added:
    """How a file came into a table.

    Attributes:
        sequence: the number of the snapshot or version; 0 where the table no longer knows it.
        rewritten: whether other files went at the same time or just before, or the table no longer knows: the file may hold rows of theirs.
            (An overwrite may be written as two snapshots.)
    """

    sequence: int
    rewritten: bool


_UNKNOWN = Added(0, True)


def added_files(uri: str, wanted: Collection[str], key: str = "pool.uri", storage: Storage = LOCAL) -> dict[str, Added]:
    """Find how some of a table's files came into it; the newest are found first.

    Args:
        uri: of the table.
        wanted: paths of its files, as `File` has them.
        key: of the query, for messages.
        storage: how to reach it.

    Raises:
        PoolError: the table can't be read.
    """
    left, found = set(wanted), {}
    table = parse_table(uri, key)
    try:
        for path, added in _iceberg(table, key) if table.kind == "iceberg" else _delta(table, key, storage):
            if path in left:
                found[path] = added
                left.remove(path)
            if not left:
                break
    except PoolError:
        raise
    except Exception as error:  # what catalogs raise has no common root
        raise PoolError(f"{key} {table.text}: its history can't be read: {reason(error)}") from error
    return found | dict.fromkeys(left, _UNKNOWN)


def _iceberg(table: TableUri, key: str) -> Iterator[tuple[str, Added]]:
    opened = open_iceberg(table, key)
    snapshot = opened.current_snapshot()
    old = opened.metadata.format_version == 1  # which numbers no snapshots
    manifests = sorted(snapshot.manifests(opened.io), key=lambda manifest: -(manifest.sequence_number or 0))
    snapshots = {known.snapshot_id: known for known in opened.metadata.snapshots}
    for manifest in manifests:
        for entry in manifest.fetch_manifest_entry(opened.io):
            by: Any = snapshots.get(entry.snapshot_id)
            appended = _appended(by) and (by.parent_snapshot_id is None or _appended(snapshots.get(by.parent_snapshot_id)))
            sequence = (by.timestamp_ms if by else 0) if old else entry.file_sequence_number or entry.sequence_number or 0
            yield located(local_path(entry.data_file.file_path), key).uri, Added(int(sequence), not appended)


def _appended(snapshot: Any) -> bool:
    """Tell whether a snapshot is known to have added files alone."""
    return snapshot is not None and snapshot.summary is not None and snapshot.summary.operation.value == "append"


def _delta(table: TableUri, key: str, storage: Storage) -> Iterator[tuple[str, Added]]:
    root = parse(table.name, key)
    filesystem, folder = filesystem_of(table.name, storage, key)
    infos = retried(lambda: filesystem.get_file_info(pafs.FileSelector(f"{folder}/_delta_log")))
    commits = {int(match[1]): info.path for info in infos if (match := _COMMIT.fullmatch(info.base_name))}
    before: list[dict[str, Any]] | None = None
    for version in sorted(commits, reverse=True):
        actions = _actions(filesystem, commits[version]) if before is None else before
        before = _actions(filesystem, commits[version - 1]) if version - 1 in commits else None
        # A table's first version has none before it; of a later one it may have been forgotten.
        rewritten = any("remove" in action for action in [*actions, *(before or [])]) or (before is None and version > 0)
        for action in actions:
            if "add" in action:
                yield f"{root.uri.rstrip('/')}/{unquote(action['add']['path'])}", Added(version + 1, rewritten)


def _actions(filesystem: pafs.FileSystem, path: str) -> list[dict[str, Any]]:
    def read() -> bytes:
        with filesystem.open_input_stream(path) as source:
            data: bytes = source.read()
            return data

    return [json.loads(line) for line in retried(read, errors=(OSError, pa.ArrowException)).splitlines() if line.strip()]

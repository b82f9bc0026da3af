"""When the files of a table came into it: by which snapshot or version, and whether that one took other files out."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs

from raystream.errors import PoolError
from raystream.lake import LOCAL, Storage, filesystem_of, located, parse, reason
from raystream.lake.retry import retried
from raystream.lake.table_uri import TableUri, parse_table
from raystream.pool.iceberg import local_path, open_iceberg

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

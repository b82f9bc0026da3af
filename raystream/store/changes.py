"""What became of a pool's files since the last query over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raystream.errors import StoreError, StoreUnreachable
from raystream.query import Pool
from raystream.store.manifest import Manifest
from raystream.store.protocol import Store
from raystream.store.queries import query_folder, read_manifest


@dataclass(frozen=True)
class Changes:
    """Files of a pool, compared with those that the newest committed query over the same `pool.uri` saw.

    Attributes:
        since: that query.
        added: files that are there now and weren't then.
        rewritten: files of the same name whose size or version is another.
        removed: files that are gone.
        bytes: sizes of the added and rewritten files.
        settings: what else is another than that query's of all that scores depend on, such as the model's weights, so that what it
            scored can't be used.
    """

    since: str
    added: int
    rewritten: int
    removed: int
    bytes: int
    settings: tuple[str, ...] = ()


_SETTINGS = (
    "the model's weights, arguments or source", "model.embedding", "model.embedding_dtype", "model.precision", "model.batch_size",
    "model.temperature", "model.preprocess", "the source of model.preprocess", "pool.id", "pool.inputs", "pool.filters",
    "acquire.mc_samples",
)  # fmt: skip
"""Of the parts of a query's identity, those that its units' keys depend on."""


def changes_since(store: Store, pool: Pool, files: Sequence[tuple[str, int, str]], identity: Mapping[str, str]) -> Changes | None:
    """How a pool differs from what the newest committed query over it saw; None if there is no such query.

    Queries whose manifest is damaged don't count: `raystream doctor` names them.

    Args:
        store: holds the queries.
        pool: a query over other URIs doesn't count, whatever files they share; nor does one over a table with other filters,
            by which the table left out other files.
        files: path, size and version of every file of the pool now.
        identity: of the query that is planned, by part.
    """
    manifests = [entry for entry in store.walk("queries") if entry.name.endswith("/manifest.json")]
    for entry in sorted(manifests, key=lambda entry: (-entry.modified, entry.name)):
        manifest = _readable(store, entry.name.removeprefix(query_folder("")).partition("/")[0])
        if manifest is None or sorted(manifest.pool_uris) != sorted(pool.uris):
            continue
        if manifest.tables and _left_out_by(manifest.resolved["pool"]) != _left_out_by(pool.model_dump(mode="json")):
            continue
        then = {path: (size, version) for path, size, version in manifest.files}
        now = {path: (size, version) for path, size, version in files}
        rewritten = [path for path in now if path in then and now[path] != then[path]]
        added = [path for path in now if path not in then]
        size = sum(now[path][0] for path in (*added, *rewritten))
        settings = tuple(name for name in _SETTINGS if manifest.identity.get(name) != identity.get(name))
        return Changes(manifest.query, len(added), len(rewritten), len(then.keys() - now.keys()), size, settings)
    return None


def _readable(store: Store, name: str) -> Manifest | None:
    try:
        return read_manifest(store, name)
    except StoreUnreachable:
        raise
    except StoreError:
        return None


def _left_out_by(pool: dict[str, Any]) -> tuple[object, bool]:
    """What decides which files of a table are left unread."""
    return pool.get("filters") or [], bool(pool.get("labelled"))

"""The committed queries of a store, newest first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from raystream.engine.manifest import Manifest, query_folder, read_manifest
from raystream.engine.stores import Store
from raystream.errors import StoreError, StoreUnreachable

_THREADS = 16


@dataclass(frozen=True)
class Listed:
    """A committed query: its name, when it was committed, and its manifest, which is None if it is damaged."""

    query: str
    committed: str
    manifest: Manifest | None

    def summary(self) -> dict[str, Any]:
        """What `--json` prints of it."""
        if self.manifest is None:
            return {"query": self.query, "damaged": True}
        resolved = self.manifest.resolved
        return {
            "query": self.query,
            "committed": self.committed,
            "rows": self.manifest.counts.chosen,
            "strategy": resolved["select"]["strategy"],
            "score": resolved["acquire"]["score"] if self.manifest.gives_scores else None,
            "pool": resolved["pool"]["uri"],
            "model": resolved["model"].get("source") or resolved["model"]["kind"],
            "counts": asdict(self.manifest.counts),
        }


def committed_queries(store: Store) -> list[Listed]:
    """All committed queries, the newest first."""

    def look(name: str) -> Listed | None:
        if not store.exists(f"{query_folder(name)}/manifest.json"):
            return None
        try:
            manifest = read_manifest(store, name)
        except StoreUnreachable:
            raise
        except StoreError:
            return Listed(name, "", None)
        return Listed(name, manifest.committed, manifest) if manifest is not None else None

    with ThreadPoolExecutor(_THREADS if store.remote else 1) as threads:
        found = [listed for listed in threads.map(look, store.names("queries")) if listed is not None]
    return sorted(found, key=lambda listed: (listed.committed, listed.query), reverse=True)

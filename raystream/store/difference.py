"""The difference of two committed queries, as data; `raystream.choosing.difference` finds it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raystream.store.manifest import Manifest

_NAMED = 10


@dataclass(frozen=True)
class FileChanges:
    """The files of two pools, by path: how many are the same, and those that only B has, only A has, and that B has rewritten."""

    same: int
    added: tuple[str, ...]
    removed: tuple[str, ...]
    rewritten: tuple[str, ...]

    @classmethod
    def between(cls, a: Manifest, b: Manifest) -> FileChanges:
        """Compare what A's and B's manifests say."""
        then, now = ({path: (size, version) for path, size, version in of.files} for of in (a, b))
        shared = [path for path in then if path in now]
        rewritten = tuple(path for path in shared if then[path] != now[path])
        return cls(
            same=len(shared) - len(rewritten),
            added=tuple(path for path in now if path not in then),
            removed=tuple(path for path in then if path not in now),
            rewritten=rewritten,
        )

    def summary(self) -> dict[str, Any]:
        """Return counts, and the first paths of each."""
        named = {"added": self.added, "removed": self.removed, "rewritten": self.rewritten}
        counts = {"same": self.same, **{name: len(paths) for name, paths in named.items()}}
        return counts | {"first": {name: list(paths[:_NAMED]) for name, paths in named.items() if paths}}


@dataclass(frozen=True)
class RowChanges:
    """Rows, counted by who chose them.

    `same_rank` of those that both did stand at the same rank. Of the rows of one alone, `absent` were not scored for the other query,
    `labelled` had a label there; None where the labelled files have changed since, so that it isn't known.
    """

    both: int
    only_a: int
    only_b: int
    same_rank: int
    absent_in_a: int
    absent_in_b: int
    labelled_in_a: int | None
    labelled_in_b: int | None


@dataclass(frozen=True)
class Difference:
    """Two committed queries, compared.

    Attributes:
        a, b: their manifests; `stores` are the URIs of their stores.
        settings: by key of the query, what either gives as JSON; None where it leaves it out.
        sources: what else a query's name stands for and differs, such as the source of a function.
        files: of the pools.
        versions: those that differ, of A and of B.
        rows: a row for each that either chose: A's in their order, then those of B alone. The id, `chosen_by`, `rank_a`, `rank_b` and
            so on; `score` of a row that a query didn't choose is what it gave it all the same, null where it has none.
        counts: of these.
        out: where the rows were written, if they were.
    """

    a: Manifest
    b: Manifest
    stores: tuple[str, str]
    settings: Mapping[str, tuple[str | None, str | None]]
    sources: tuple[str, ...]
    files: FileChanges
    versions: Mapping[str, tuple[str, str]]
    rows: pa.Table
    counts: RowChanges
    out: str | None = None

    @property
    def same_model(self) -> bool:
        return self.a.fingerprint == self.b.fingerprint

    @property
    def same_labels(self) -> bool:
        return self.a.labelled_digest == self.b.labelled_digest

    @property
    def same_rows(self) -> bool:
        """True if both chose the same rows in the same order."""
        return self.counts.same_rank == int(self.rows.num_rows)

    def summary(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        sides = {
            name: {"query": of.query, "store": store, "committed": of.committed, "rows": of.counts.chosen}
            for name, of, store in (("a", self.a, self.stores[0]), ("b", self.b, self.stores[1]))
        }
        return sides | {
            "same_rows": self.same_rows,
            "settings": {key: _pair(*(None if text is None else json.loads(text) for text in both)) for key, both in self.settings.items()},
            "sources": list(self.sources),
            "pool": self.files.summary(),
            "model": {"same": self.same_model} | _pair(self.a.fingerprint, self.b.fingerprint),
            "labelled": {"same": self.same_labels} | _pair(self.a.counts.labelled, self.b.counts.labelled),
            "versions": {name: _pair(*both) for name, both in self.versions.items()},
            "rows": dict(vars(self.counts)),
            "out": self.out,
        }


def _pair(a: object, b: object) -> dict[str, object]:
    return {"a": a, "b": b}

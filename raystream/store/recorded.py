"""Committed queries named from outside, and what tells two of them apart.

Committed queries named from outside: by their folder or manifest instead of by a store and a name, and as queries to run again.

A manifest says what its query was in full, so that it can be run elsewhere, where neither the store nor `query.yaml` is at hand.

The difference of two committed queries, as data; `raystream.choosing.difference` finds it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from raystream.errors import QueryError, StoreError
from raystream.lake.uri import absolute, is_remote, redacted
from raystream.query import LOOP_SECTIONS, Query
from raystream.query.part import Part
from raystream.spec import overridden
from raystream.store.calibration import Calibration
from raystream.store.manifest import Manifest
from raystream.store.opening import existing_store
from raystream.store.protocol import Store
from raystream.store.queries import find_query, read_manifest

_MANIFEST = "manifest.json"
_FOLDER = "queries"


@dataclass(frozen=True)
class Recorded:
    """A query as a manifest has it.

    Attributes:
        query: as resolved then, with what was replaced in it.
        manifest: the record.
        place: where that was read.
        replaced: the keys that were given anew, such as `pool.uri`.
    """

    query: Query
    manifest: Manifest
    place: str
    replaced: tuple[str, ...] = ()

    def replaces(self, *keys: str) -> bool:
        """Tell whether one of these keys, or a key within one, was given anew."""
        return any(given == key or given.startswith(f"{key}.") or key.startswith(f"{given}.") for given in self.replaced for key in keys)

    @property
    def calibration(self) -> Calibration | None:
        """How the temperature was fitted that the query has as a number; None if it was given, or is given anew."""
        return None if self.replaces("model.temperature") else self.manifest.calibration


def recorded(place: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recorded | None:
    """Read the query that a manifest records; None if the place names none, so that it may be a query file.

    Args:
        place: a `manifest.json`, under whatever name that ends in `.json`, or the folder of a query; of a store in a bucket, its URI.
        overrides: `section.key=value`, as `Query.load` takes them.

    Raises:
        StoreError: it is the place of a manifest, but holds none.
        QueryError: what was replaced makes no query of it.
    """
    text = os.fspath(place)
    data = _read(text)
    if data is None:
        return None
    try:
        manifest = Manifest.from_json(data)
    except (ValidationError, ValueError, TypeError, KeyError):
        raise StoreError(f"{absolute(text)} is no manifest of a committed query, or is damaged; restore it or give a query file") from None
    sections = overridden(as_given(manifest.resolved), overrides)
    query = Query(**{str(key): value for key, value in sections.items() if key not in LOOP_SECTIONS})
    return Recorded(query, manifest, absolute(text), tuple(change.partition("=")[0].strip() for change in overrides))


def _read(text: str) -> bytes | None:
    """Read the bytes of a manifest; None where the place is none of a manifest."""
    if is_remote(text):
        found = _in_store(text)
        if found is None:
            raise QueryError(f"{redacted(text)} names no query of a store; expected STORE/queries/NAME, or the manifest.json in it")
        store = existing_store(found[0])
        return store.read(f"{_FOLDER}/{found[1]}/{_MANIFEST}")
    path = Path(text).expanduser()
    path = path / _MANIFEST if path.is_dir() else path
    if path.suffix != ".json":
        return None
    try:
        data = path.read_bytes()
    except OSError as error:
        raise QueryError(f"{absolute(str(path))} can't be read: {error.strerror}; give a manifest or a query file") from None
    try:
        held = json.loads(data)
    except ValueError:
        held = None
    if path.name != _MANIFEST and not (isinstance(held, dict) and "resolved" in held):
        return None  # a query written as JSON, which is YAML as well
    return data


def as_given(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of a resolved query without what is at its default: strict keys refuse some, such as other strategies'."""
    return _pruned(resolved, Query)


def _pruned(values: Mapping[str, Any], part: type[Part]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        field = part.model_fields.get(name)
        inner = _part_of(field.annotation) if field is not None else None
        if isinstance(value, Mapping) and inner is not None:
            value = _pruned(value, inner)
            if not value and field is not None and isinstance(field.default, Part):
                continue
        elif isinstance(value, list) and inner is not None and value and all(isinstance(item, Mapping) for item in value):
            value = [_pruned(item, inner) for item in value]
        elif field is not None and not field.is_required() and value == _plain(field.get_default(call_default_factory=True)):
            continue
        found[name] = value
    return found


def _part_of(annotation: Any) -> type[Part] | None:
    """Return the part that a key holds, or holds a list of."""
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, Part) else None
    return next((part for inner in getattr(annotation, "__args__", ()) if (part := _part_of(inner)) is not None), None)


def _plain(default: object) -> object:
    """Return a default as a dump has it."""
    return list(default) if isinstance(default, tuple) else default


def _in_store(text: str) -> tuple[str, str] | None:
    """Split `STORE/queries/NAME`, a manifest behind it or none, into the store and the name."""
    head, question, options = text.partition("?")
    folder, _, name = head.rstrip("/").removesuffix(f"/{_MANIFEST}").rpartition("/")
    store, _, queries = folder.rpartition("/")
    return (f"{store}{question}{options}", name) if queries == _FOLDER and name else None


def named_query(name: str, store_uri: str) -> tuple[Store, Manifest]:
    """Find a committed query and its store, by its name or the beginning of it, or by its folder or manifest in whatever store.

    Args:
        name: of the query in the store, or a path or URI: `STORE/queries/NAME`, with or without `/manifest.json`.
        store_uri: the store, for names.

    Raises:
        QueryError: there is no such query.
        StoreError: its manifest is damaged.
    """
    if "/" in name or name == _MANIFEST:
        found = _in_store(name if is_remote(name) else os.path.abspath(os.path.expanduser(name)))
        if found is None:
            raise QueryError(f"{redacted(name)} names no query of a store; expected a name, STORE/queries/NAME, or the manifest.json in it")
        store_uri, name = found
    store = existing_store(store_uri)
    manifest = read_manifest(store, find_query(store, name))
    assert manifest is not None
    return store, manifest


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

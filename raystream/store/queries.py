"""Queries in a store: the plan, the query as it was given, the manifest, and the scored units that these lead to.

By the plan, which names the units' keys and the outputs that the query reads of them, `raystream gc` knows what the query needs.

What became of a pool's files since the last query over it is told from that plan, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from pydantic import ValidationError

from raystream.errors import QueryError, StoreError, StoreUnreachable
from raystream.query import Pool, Query
from raystream.store.manifest import Manifest
from raystream.store.protocol import Store
from raystream.store.receipt_table import Keys
from raystream.store.unit_columns import COMPUTED, ScoredUnits, read_outputs

TABLES = "tables"
"""Where rows lie that were given in memory."""
PLAN_OUTPUTS = "raystream.outputs"
"""In the metadata of a plan: a JSON list of the names of the outputs that the query reads of each unit."""
_TYPES = {"unit": pa.string(), "key": pa.string(), "first_row": pa.int64()}


def read_plan(store: Store, name: str) -> pa.Table:
    """Read the units of a query's pool in row order.

    Raises:
        StoreError: the plan isn't there, or isn't one.
    """
    file = f"{query_folder(name)}/plan.parquet"
    data = store.read_if_there(file)
    plan = None if data is None else parsed_plan(data)
    if plan is None:
        state = "is missing" if data is None else "is damaged"
        raise StoreError(
            f"store: {store.place(file)} {state}, so the units of query {name} are unknown; restore it, or forget the query by "
            f"raystream gc --drop {name}"
        )
    return plan


def plan_outputs(schema: pa.Schema) -> tuple[str, ...]:
    """Name the outputs that a query reads of each unit, by its plan's schema."""
    return tuple(json.loads((schema.metadata or {})[PLAN_OUTPUTS.encode()]))


def read_parquet(data: bytes) -> pa.Table:
    """Read the table in the bytes of a Parquet file, by this thread alone.

    Arrow's own threads may let go of the bytes later than the interpreter ends, which aborts the process after its result is printed.
    """
    return pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)


def parquet_bytes(table: pa.Table, metadata: Mapping[str, str] | None = None) -> bytes:
    """Write a table as the bytes of a Parquet file, the same for the same rows, with this metadata or none."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink)
    return bytes(sink.getvalue().to_pybytes())


def parsed_plan(data: bytes) -> pa.Table | None:
    """Read the table that a file holds; None if it holds none, or one of something else."""
    try:
        plan = read_parquet(data)
    except (pa.ArrowException, OSError):
        return None
    known = {field.name: field.type for field in plan.schema}
    if any(known.get(name) != type_ or plan.column(name).null_count for name, type_ in _TYPES.items()):
        return None
    try:
        Keys.of_column(plan.column("key"))
        return plan if plan_outputs(plan.schema) else None
    except (KeyError, TypeError, ValueError):
        return None


def read_query(store: Store, name: str) -> Query:
    """Read the query that `query.yaml` holds.

    Raises:
        StoreError: it isn't there, or is no query.
    """
    file = f"{query_folder(name)}/query.yaml"
    try:
        return Query(**yaml.safe_load(store.read(file)))
    except StoreError:
        raise
    except (yaml.YAMLError, QueryError, TypeError, ValueError) as error:
        told = " ".join(str(error).split()) if isinstance(error, QueryError) else "it holds no keys and values"
        raise StoreError(
            f"store: {store.place(file)} is damaged ({told}), so what query {name} asked for is unknown; restore it, or forget the query "
            f"by raystream gc --drop {name}"
        ) from None


@dataclass(frozen=True, eq=False)
class StoredUnits:
    """The scored units of a query's pool, in row order.

    Attributes:
        outputs: of each.
        paths: the files of the pool that units are of, sorted.
        path_of: (m,) the place among `paths` of each unit's file.
    """

    outputs: ScoredUnits
    paths: tuple[str, ...]
    path_of: npt.NDArray[np.int32]


def stored_units(store: Store, manifest: Manifest) -> StoredUnits:
    """Read the units of a query's pool, in row order; those that it left out under `on_error: skip` are left out.

    Raises:
        StoreError: some are gone.
    """
    plan = read_plan(store, manifest.query)
    names = ColumnOfNames(plan.column("unit"))
    outputs = read_outputs(store, Keys.of_column(plan.column("key")), plan_outputs(plan.schema), names)
    rows = int(outputs.rows.sum())
    if rows != manifest.counts.scored:
        raise StoreError(
            f"{len(names) - len(outputs)} of the {len(names)} units of query {manifest.query} are gone from store {store.uri}: "
            f"{rows:,} of its {manifest.counts.scored:,} scored rows are left; run raystream score with its query.yaml to have them again"
        )
    paths, of = paths_of(plan)
    return StoredUnits(outputs, paths, of[outputs.places])


def paths_of(plan: pa.Table) -> tuple[tuple[str, ...], npt.NDArray[np.int32]]:
    """Return the files that the units of a plan are of, in the plan's order, and (n,) the place among them of each unit's file."""
    paths = pc.replace_substring_regex(plan.column("unit"), r"#rg[0-9]+(-[0-9]+|\[[0-9]+:[0-9]+\])?$", "").combine_chunks()
    encoded = paths.dictionary_encode()
    return tuple(encoded.dictionary.to_pylist()), encoded.indices.to_numpy()


class ColumnOfNames(Sequence[str]):
    """The names of a plan's units."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> list[str]: ...

    def __getitem__(self, place: int | slice) -> str | list[str]:
        found: str | list[str] = self._column[place].to_pylist() if isinstance(place, slice) else self._column[place].as_py()
        return found


def labelled_keys(keys: Sequence[str], name: str) -> Keys:
    """Return the keys that the manifest of a query gives of units over labelled rows.

    Raises:
        StoreError: one of them is none.
    """
    try:
        return Keys.of(keys)
    except ValueError:
        raise StoreError(
            f"store: the manifest of query {name} is damaged (labelled_units holds what is no key of a unit); restore it, or forget the "
            f"query by raystream gc --drop {name}"
        ) from None


def stored_labelled_units(store: Store, manifest: Manifest) -> ScoredUnits:
    """Read the units over labelled rows outside a query's pool, as they were read.

    Raises:
        StoreError: some are gone.
    """
    keys = labelled_keys(manifest.labelled_units, manifest.query)
    plan = read_plan(store, manifest.query)
    found = read_outputs(store, keys, [name for name in plan_outputs(plan.schema) if not name.startswith(COMPUTED)])
    if len(found) < len(keys):
        raise StoreError(
            f"{len(keys) - len(found)} units over labelled rows of query {manifest.query} are gone from store {store.uri}; run raystream "
            "score with its query.yaml to have them again"
        )
    return found


_THREADS = 16


@dataclass(frozen=True)
class CommittedQuery:
    """A committed query: its name, when it was committed, and its manifest, which is None if it is damaged."""

    query: str
    committed: str
    manifest: Manifest | None

    def summary(self) -> dict[str, Any]:
        """Return what `--json` prints of it."""
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
            "weights": resolved["model"].get("weights"),
            "labelled": self.manifest.counts.labelled,
            "counts": asdict(self.manifest.counts),
        }


def committed_queries(store: Store) -> list[CommittedQuery]:
    """List all committed queries, the newest first."""

    def look(name: str) -> CommittedQuery | None:
        if not store.exists(f"{query_folder(name)}/manifest.json"):
            return None
        try:
            manifest = read_manifest(store, name)
        except StoreUnreachable:
            raise
        except StoreError:
            return CommittedQuery(name, "", None)
        return CommittedQuery(name, manifest.committed, manifest) if manifest is not None else None

    with ThreadPoolExecutor(_THREADS if store.remote else 1) as threads:
        found = [listed for listed in threads.map(look, store.names("queries")) if listed is not None]
    return sorted(found, key=lambda listed: (listed.committed, listed.query), reverse=True)


def query_folder(name: str) -> str:
    """Name the query's folder in the store."""
    return f"queries/{name}"


def read_manifest(store: Store, name: str) -> Manifest | None:
    """Read the manifest of a committed query; None if there is none.

    Raises:
        StoreError: it is there, but is not what was written.
    """
    file = f"{query_folder(name)}/manifest.json"
    data = store.read_if_there(file)
    if data is None:
        return None
    try:
        manifest = Manifest.from_json(data)
        told = None if manifest.query == name else f"it is that of query {manifest.query}"
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        told = ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
    except (ValueError, TypeError, KeyError):
        told = "resolved.pool.uri: expected a URI or several"
    if told is not None:
        raise StoreError(
            f"store: {store.place(file)} is damaged ({told}), so what query {name} is made of is unknown; restore it, or forget the query "
            f"by raystream gc --drop {name}"
        )
    return manifest


_LEAST_OF_DROPPED = 4
"""Characters of a beginning that says which query is to be forgotten."""


def find_query(store: Store, name: str) -> str:
    """Find the whole name of a committed query, given that or its beginning.

    Raises:
        QueryError: there is none of this name, or several begin with it.
    """
    return _only(store, name, [n for n in store.names("queries") if store.exists(f"{query_folder(n)}/manifest.json")])


def find_run(store: Store, name: str) -> str:
    """Find the whole name of a query, committed or not, given that or its beginning.

    Raises:
        QueryError: there is none of this name, or several begin with it.
    """
    return _only(store, name, store.names("queries"))


def find_dropped(store: Store, name: str) -> str:
    """Find the whole name of a query that is to be forgotten, committed or not, whole or damaged.

    Args:
        store: holds it.
        name: of the query, or its beginning, of four characters at least: what is forgotten doesn't come back.

    Raises:
        QueryError: there is none of this name, several begin with it, or it is too short a beginning.
    """
    found = _only(store, name, [n for n in store.names("queries") if store.names(query_folder(n))])
    if found != name and len(name) < _LEAST_OF_DROPPED:
        raise QueryError(f"--drop {name} is the beginning of query {found}; give {_LEAST_OF_DROPPED} characters of it at least, or all")
    return found


def _only(store: Store, name: str, names: list[str]) -> str:
    """Return the one of these names that is meant."""
    if not name.strip():
        raise QueryError(f"the name of a query of store {store.uri} is empty (it holds {_some(names)}); give it, or its beginning")
    matches = [name] if name in names else [n for n in names if n.startswith(name)]
    if len(matches) != 1:
        found = f"{len(matches)} begin with it: {_some(matches)}" if matches else f"it holds {_some(names)}"
        raise QueryError(f"store {store.uri} has no query {name} ({found}); see --store")
    return matches[0]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more or "none"


@dataclass(frozen=True)
class Changes:
    """Files of a pool, compared with those that the newest committed query over the same `pool.uri` saw.

    Attributes:
        since: that query.
        added: files that are there now and weren't then.
        rewritten: files of the same name whose size or version is another.
        removed: files that are gone.
        bytes: sizes of the added and rewritten files.
        settings: what else is another than that query's of all that outputs depend on, such as the model's weights, so that not all of
            what it scored can be used.
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
"""Of the parts of a query's identity, those that its units' keys, or the kinds of their outputs, depend on."""


def changes_since(store: Store, pool: Pool, files: Sequence[tuple[str, int, str]], identity: Mapping[str, str]) -> Changes | None:
    """Find how a pool differs from what the newest committed query over it saw; None if there is no such query.

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
    """Return what decides which files of a table are left unread."""
    return pool.get("filters") or [], bool(pool.get("labelled"))

"""What differs between two committed queries: in what they asked and read, and, row by row, in what they chose.

Everything comes from the manifests and the store. Of a row that one of them alone chose, the other's score is looked up among the
other's units, a few of which are read, and whether it had a label there, from the labelled files if these are as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from raystream.errors import DataError, QueryError
from raystream.lake.table_writer import write_table
from raystream.lake.uri import absolute
from raystream.pool import read_labelled
from raystream.query import Query
from raystream.query.select import column_of
from raystream.store.manifest import Manifest, changed_versions
from raystream.store.opening import refuse_in_store
from raystream.store.protocol import Store
from raystream.store.queries import paths_of, plan_outputs, read_plan
from raystream.store.receipt_table import Keys
from raystream.store.recorded import Difference, FileChanges, RowChanges, as_given
from raystream.store.result import committed_table
from raystream.store.unit_columns import read_columns, read_outputs

BOTH, A_ALONE, B_ALONE = "both", "a", "b"
"""Who chose a row, in the column `chosen_by`."""
_COMPARED = ("rank", "score", "gain", "distance", "prediction", "why", "turn", "probability")
_ROW_BITS = 40
"""More than a row's place in its file takes."""


def compare(first: tuple[Store, Manifest], second: tuple[Store, Manifest], out: str | None = None) -> Difference:
    """Compare two committed queries, of one store or of two.

    Args:
        first, second: the stores and manifests, A's and B's.
        out: a `.parquet` file, a folder or a table that gets the rows.

    Raises:
        QueryError: their ids are of different kinds, so that no row of the one can be found in the other, or `out` can't be used.
        StoreError: what they committed is gone or damaged, or `out` can't be written.
    """
    (store_a, a), (store_b, b) = first, second
    for store in (store_a, store_b):
        if out is not None:
            refuse_in_store(out, store.uri, "--out")
    chosen_a, chosen_b = _ComparedQuery(store_a, a), _ComparedQuery(store_b, b)
    if chosen_a.kind != chosen_b.kind:
        raise QueryError(
            f"the ids of query {a.query} are {chosen_a.ids.type} and those of query {b.query} {chosen_b.ids.type}, so their rows can't be "
            "matched; compare queries over pools with the same id column"
        )
    rows, counts = _rows(chosen_a, chosen_b)
    if out is not None:
        write_table(rows.replace_schema_metadata(a.about), out, f"{a.query}..{b.query}", "diff", "--out")
    identities = a.identity, b.identity
    changed = [key for key in {**identities[0], **identities[1]} if identities[0].get(key) != identities[1].get(key)]
    told = {"the pool's files", "the labelled rows", "the model's weights, arguments or source"}
    return Difference(
        a=a,
        b=b,
        stores=(store_a.uri, store_b.uri),
        settings={key: (a.identity.get(key), b.identity.get(key)) for key in changed if not key.startswith("the ")},
        sources=tuple(key for key in changed if key.startswith("the ") and key not in told),
        files=FileChanges.between(a, b),
        versions=changed_versions(a.versions, b.versions),
        rows=rows,
        counts=counts,
        out=None if out is None else absolute(out),
    )


class _ComparedQuery:
    """What one query chose, and what else it knows of rows."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._store, self.manifest = store, manifest
        self.table = committed_table(store, manifest, manifest.selection)
        self.id_name: str = manifest.resolved["pool"].get("id") or "id"
        self.ids = self.table.column(self.id_name).combine_chunks()
        self.places = {value: rank for rank, value in enumerate(self.ids.to_pylist())}

    @property
    def kind(self) -> str:
        """Integers of any width are of one kind, and so are strings, and bytes."""
        type_ = self.ids.type
        text = pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)
        return "integers" if pa.types.is_integer(type_) else "strings" if text else "bytes"

    def column(self, name: str, ids: Sequence[object]) -> pa.Array:
        """Return a column of the selection at these ids; null where the query didn't choose the row."""
        if name not in self.table.column_names:
            return pa.nulls(len(ids), pa.int32() if name == "turn" else pa.float64())  # selections of before lack both columns
        places = pa.array([self.places.get(value) for value in ids], pa.int64())
        found = self.table.column(name).take(places)
        return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found

    def scores_of(self, other: _ComparedQuery, ids: Sequence[object]) -> dict[object, float | None]:
        """Find the scores that this query gave to rows that the other one chose, of those that it scored; None where it gives none."""
        resolved = self.manifest.resolved
        score = column_of(resolved["acquire"]["score"]) if self.manifest.gives_scores else None
        ranks = [other.places[value] for value in ids]
        paths, rows = (other.table.column(name).take(pa.array(ranks, pa.int64())).to_pylist() for name in ("path", "row"))
        wanted = {(path, row): value for path, row, value in zip(paths, rows, ids, strict=True)}
        found: dict[object, float | None] = {}
        for path, table in self._units_of(wanted):
            held = table.column(self.id_name).to_pylist()
            scores = table.column(score).to_pylist() if score in table.column_names else [None] * len(held)
            for value, row, number in zip(held, table.column("row").to_pylist(), scores, strict=True):
                if wanted.get((path, row), _NONE) == value:  # else the file holds another row there now
                    found[value] = number
        return found

    def _units_of(self, wanted: Mapping[tuple[str, int], object]) -> Iterator[tuple[str, pa.Table]]:
        """Read the stored rows of the units that hold rows at these paths and places, and yield them with the paths."""
        if not wanted:
            return
        plan = read_plan(self._store, self.manifest.query)
        paths, path_of = paths_of(plan)
        known = {path: place for place, path in enumerate(paths)}
        at = np.asarray([(known.get(path, -1), row) for path, row in wanted], np.int64).reshape(-1, 2)
        at = at[at[:, 0] >= 0]
        # units lie in the order of (path, row), so that the last one which doesn't begin behind a row is the one that may hold it
        begins = (path_of.astype(np.int64) << _ROW_BITS) + plan.column("first_row").to_numpy()
        places = np.unique(np.searchsorted(begins, (at[:, 0] << _ROW_BITS) + at[:, 1], side="right") - 1)
        names = plan_outputs(plan.schema)
        units = read_outputs(self._store, Keys.of_column(plan.column("key")), names, plan.column("unit").to_pylist(), places[places >= 0])
        score = column_of(self.manifest.resolved["acquire"]["score"])
        for place, unit in zip(units.places.tolist(), units, strict=True):
            columns = [name for name in (self.id_name, "row", score) if any(name in receipt.columns for receipt in unit.receipts)]
            for table in read_columns(self._store, [unit], columns):
                yield paths[path_of[place]], table

    def labelled(self, ids: Sequence[object]) -> np.ndarray | None:
        """Return (n,) whether each of some ids had a label; None where that isn't known any more."""
        if self.manifest.labelled_digest is None:
            return np.zeros(len(ids), bool)
        pool = Query(**as_given(self.manifest.resolved)).pool
        try:
            found = read_labelled(pool.labelled, pool.id, self.ids.type, storage=pool.options)
        except DataError:
            return None
        if found.digest != self.manifest.labelled_digest:
            return None
        held: np.ndarray = found.find(pa.array(ids, self.ids.type))
        return held


_NONE = object()


def _rows(a: _ComparedQuery, b: _ComparedQuery) -> tuple[pa.Table, RowChanges]:
    """Return the rows that either chose, and how many of which sort there are."""
    only_a = [value for value in a.places if value not in b.places]
    only_b = [value for value in b.places if value not in a.places]
    ids = [*a.places, *only_b]
    by = [BOTH if value in b.places else A_ALONE for value in a.places] + [B_ALONE] * len(only_b)
    columns: dict[str, pa.Array] = {a.id_name: _of_type(ids, a, b), "chosen_by": pa.array(by, pa.string())}
    if a.id_name in ("chosen_by", *(f"{name}_{side}" for name in _COMPARED for side in "ab")):
        raise QueryError(f"pool.id {a.id_name} of query {a.manifest.query} is named like a column of the comparison; rename it in the pool")
    for name in _COMPARED:
        columns |= {f"{name}_a": a.column(name, ids), f"{name}_b": b.column(name, ids)}
    elsewhere = {"a": a.scores_of(b, only_b), "b": b.scores_of(a, only_a)}
    for side, found in elsewhere.items():
        scores = columns[f"score_{side}"].to_pylist()
        columns[f"score_{side}"] = pa.array([found.get(value, score) for value, score in zip(ids, scores, strict=True)], pa.float32())
    labelled_in_a, labelled_in_b = (
        None if held is None else int(held.sum()) for held in (a.labelled(only_b), b.labelled(only_a))
    )
    counts = RowChanges(
        both=len(a.places) - len(only_a),
        only_a=len(only_a),
        only_b=len(only_b),
        same_rank=sum(b.places.get(value) == rank for value, rank in a.places.items()),
        absent_in_a=len(only_b) - len(elsewhere["a"]),
        absent_in_b=len(only_a) - len(elsewhere["b"]),
        labelled_in_a=labelled_in_a,
        labelled_in_b=labelled_in_b,
    )
    return pa.table(columns), counts


def _of_type(ids: Sequence[object], a: _ComparedQuery, b: _ComparedQuery) -> pa.Array:
    """Return ids of both as a column of A's type, or where that doesn't hold them, B's."""
    try:
        return pa.array(ids, a.ids.type)
    except (pa.ArrowInvalid, OverflowError):
        return pa.array(ids, b.ids.type)

"""The map of a pool: an evenly spaced sample of its rows in a plane, with all chosen and all labelled ones that can be found.

Embeddings are read a unit at a time and forgotten, so that the memory goes with the sample's rows, not with their width.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raystream.errors import RaystreamError
from raystream.query.select import column_of
from raystream.report.cards import name_of_prediction
from raystream.report.pool_map import Projection, project
from raystream.report.stored import (
    StoredPool,
    chosen_embeddings,
    embedded_units,
    embeddings_at,
    evenly_spaced,
    labelled_rows,
    sampled_embeddings,
    stored_pool,
)
from raystream.service.formats import ids
from raystream.store.receipts import EMBEDDINGS, UnitOutputs
from raystream.store.result import Result
from raystream.store.unit_columns import read_columns
from raystream.store.vectors import VectorFiles

POINTS = 200_000
"""Rows of the pool that a map shows at most, beside the chosen and the labelled ones."""
_LABELLED = 20_000
_SIDE = 65_535
_CLASSES = 24
"""Predictions that have a colour of their own; more are not told apart on a map."""
NEAR = 60
"""Rows that are shown of those which a chosen row stands for."""

POOL, LABELLED, CHOSEN = 0, 1, 2

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PoolSample:
    """Rows of a pool on its map; those of the pool come first, in row order, then the chosen ones, by rank.

    Attributes:
        rows: `id`, `path`, `row`, and `score` where there is one; of the pool's rows and the chosen.
        plane: (n, 2).
        kind: (n,) `POOL`, `LABELLED` or `CHOSEN`.
        ranks: (m,) of the chosen ones.
        share: of the variance that the plane shows.
        whole: whether these are all scored rows.
        units: those that the pool's rows are of, and which of their rows.
        embeddings: (m, d) of the chosen ones.
    """

    rows: pa.Table
    plane: Floats
    kind: npt.NDArray[np.uint8]
    ranks: Integers
    share: float
    whole: bool
    units: tuple[tuple[UnitOutputs, Integers], ...]
    embeddings: Floats

    def as_data(self, predictions: Sequence[str | None]) -> dict[str, Any]:
        """Return what the page draws: numbers as base64 of little-endian arrays.

        Args:
            predictions: the class of each row of the selection by its name, for the chosen ones' colours.
        """
        names = sorted({name for name in predictions if name is not None})
        number = {name: place for place, name in enumerate(names)}
        x, y = _on_grid(self.plane, self.kind)
        data: dict[str, Any] = {
            "points": len(self.plane),
            "whole": self.whole,
            "share": self.share,
            "x": _base64(x),
            "y": _base64(y),
            "kind": _base64(self.kind),
            "ranks": self.ranks.tolist(),
            "labelled": int((self.kind == LABELLED).sum()),
        }
        if 1 < len(names) <= _CLASSES:
            data["classes"] = names
            data["predicted"] = [number.get(predictions[rank] or "", -1) for rank in self.ranks.tolist()]
        return data

    @property
    def ids(self) -> list[str]:
        """Of all points, in their order."""
        return ids(self.rows.column("id"))


def pool_sample(result: Result, points: int = POINTS) -> PoolSample | str:
    """Take the sample, or say why there is none."""
    try:
        pool = stored_pool(result)
        units = embedded_units(pool)
    except (RaystreamError, OSError) as error:
        return f"There is no map of the pool: {error}."
    plane = project(sampled_embeddings(pool)) if units else None
    if plane is None:
        return (
            "There is no map of the pool: its embeddings all but coincide."
            if units
            else "There is no map of the pool: the strategy looked at no embeddings, so none are in the store."
        )
    return _sample(result, pool, units, plane, points)


def _sample(result: Result, pool: StoredPool, units: list[UnitOutputs], plane: Projection, points: int) -> PoolSample:
    ranks, embeddings = chosen_embeddings(pool, result.selection)
    places = {place: path for path, inside in pool.by_path.items() for place in inside.tolist()}
    looked_at = zip(pool.units.places.tolist(), pool.units, strict=True)
    paths = [places[place] for place, unit in looked_at if unit.of(EMBEDDINGS) is not None]
    chosen_rows = _by_path(result.selection)
    marked = _labelled(result, pool, units)
    score = column_of(result.manifest.resolved["acquire"]["score"]) if result.manifest.gives_scores else None
    vectors = VectorFiles(pool.store, checked=False)
    tables, planes, kinds, taken = [], [], [], []
    id_name = result.selection.column_names[1]
    for unit, path, spaced, labelled in zip(units, paths, evenly_spaced(units, points), marked, strict=True):
        columns = [name for name in (id_name, "row", score) if name and any(name in one.columns for one in unit.receipts)]
        inside = np.union1d(spaced, labelled) if len(labelled) else spaced
        table = next(read_columns(pool.store, [unit], columns)).take(pa.array(inside))
        free = ~np.isin(table.column("row").to_numpy(), chosen_rows.get(path, []))
        inside, table = inside[free], table.filter(pa.array(free))
        tables.append(_row_table(table, path, score, id_name))
        planes.append(plane(embeddings_at(vectors, unit, inside)).astype(np.float32) if len(inside) else np.empty((0, 2), np.float32))
        kinds.append(np.where(np.isin(inside, labelled), LABELLED, POOL).astype(np.uint8))
        taken.append((unit, inside))
    head = result.selection.take(pa.array(ranks))
    tables.append(
        pa.table(
            {
                "id": head.column(1),
                "path": head.column("path").cast(pa.string()),
                "row": head.column("row").cast(pa.int64()),
                "score": head.column("score").cast(pa.float64()),
            }
        )
    )
    if len(ranks):
        planes.append(plane(embeddings).astype(np.float32))
    kinds.append(np.full(len(ranks), CHOSEN, np.uint8))
    id_type = tables[-1].schema.field("id").type
    rows = pa.concat_tables([table.set_column(0, "id", table.column("id").cast(id_type)) for table in tables])
    whole = sum(len(inside) for _, inside in taken) + len(ranks) >= result.manifest.counts.scored
    return PoolSample(rows, np.concatenate(planes), np.concatenate(kinds), ranks, plane.share, whole, tuple(taken), embeddings)


def _row_table(table: pa.Table, path: str, score: str | None, id_name: str) -> pa.Table:
    """Return a unit's rows as the sample has them; what there is none of is null."""

    def of(name: str | None, type_: pa.DataType) -> pa.ChunkedArray:
        if name is None or name not in table.column_names or pa.types.is_nested(table.schema.field(name).type):
            return pa.nulls(table.num_rows, type_)
        return table.column(name).cast(type_)

    return pa.table(
        {
            "id": table.column(id_name),
            "path": pa.repeat(pa.scalar(path, pa.string()), table.num_rows),
            "row": of("row", pa.int64()),
            "score": of(score, pa.float64()),
        }
    )


def _labelled(result: Result, pool: StoredPool, units: list[UnitOutputs]) -> list[Integers]:
    """Find which rows of each unit are labelled, evenly spaced ones of very many; none where that can't be found out."""
    try:
        found = labelled_rows(result, pool.store, units)
    except (RaystreamError, OSError):
        return [np.empty(0, np.int64) for _ in units]
    apart = -(-sum(map(len, found)) // _LABELLED) or 1
    return [rows[::apart] for rows in found]


def _by_path(selection: pa.Table) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for path, row in zip(selection.column("path").to_pylist(), selection.column("row").to_pylist(), strict=True):
        found.setdefault(path, []).append(row)
    return found


@dataclass(frozen=True, eq=False)
class NearestChosen:
    """Which chosen row each of the sample's rows of the pool is nearest to.

    Attributes:
        of: (n,) the place among the chosen ones; -1 of rows that are not candidates as far as can be told.
        distance: (n,) to it, in the query's metric.
    """

    of: npt.NDArray[np.int32]
    distance: Floats

    def rows_of(self, place: int) -> Integers:
        """Find the rows that are nearest to this chosen one, the nearest first."""
        rows = np.flatnonzero(self.of == place)
        return rows[np.argsort(self.distance[rows], kind="stable")]


def nearest_chosen(result: Result, sample: PoolSample, vectors: VectorFiles) -> NearestChosen:
    """Compare the sample's rows of the pool with all chosen ones.

    Labelled rows are left out, and those with a score below that of any candidate, as far as the sample tells it.
    """
    cosine = result.manifest.resolved["select"]["metric"] == "cosine"
    chosen = _directions(sample.embeddings) if cosine else sample.embeddings
    squares = np.square(chosen).sum(axis=1)
    count = sum(len(rows) for _, rows in sample.units)
    of, distance = np.full(count, -1, np.int32), np.zeros(count, np.float32)
    start = 0
    for block in _blocks(sample, vectors):
        x = _directions(block) if cosine else block
        products = squares - 2 * (x @ chosen.T)
        best = products.argmin(axis=1) if len(chosen) else np.full(len(x), -1)
        stop = start + len(x)
        of[start:stop] = best
        if len(chosen):
            distance[start:stop] = np.sqrt(np.maximum(0, products[np.arange(len(x)), best] + np.square(x).sum(axis=1)))
        start = stop
    of[~_candidates(result, sample, count)] = -1
    return NearestChosen(of, distance)


def _blocks(sample: PoolSample, vectors: VectorFiles) -> Iterator[Floats]:
    """Yield the embeddings of the sample's rows of the pool, some thousand at a time."""
    for unit, rows in sample.units:
        for start in range(0, len(rows), 16_384):
            yield embeddings_at(vectors, unit, rows[start : start + 16_384])


def _candidates(result: Result, sample: PoolSample, count: int) -> npt.NDArray[np.bool_]:
    """Tell (n,) which rows of the pool were candidates: of eligible ones those with the highest scores, as many as there were."""
    counts = result.manifest.counts
    eligible = sample.kind[:count] != LABELLED
    if counts.candidates >= counts.eligible or not result.manifest.gives_scores:
        return np.asarray(eligible, bool)
    scores = sample.rows.column("score").slice(0, count).to_numpy(zero_copy_only=False).astype(np.float64)
    kept = np.sort(np.nan_to_num(scores[eligible], nan=-np.inf))
    share = max(0, counts.candidates - counts.chosen) / max(1, counts.eligible - counts.chosen)
    limit = kept[max(0, len(kept) - round(share * len(kept)))] if round(share * len(kept)) else np.inf
    found: npt.NDArray[np.bool_] = eligible & (np.nan_to_num(scores, nan=-np.inf) >= limit)
    return found


def _directions(values: Floats) -> Floats:
    found: Floats = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return found


def _on_grid(plane: Floats, kind: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]]:
    """Scale both coordinates to 0 to 65,535, in one scale: nearly all of the pool fits, and every chosen and labelled row."""
    low, high = np.quantile(plane, [0.001, 0.999], axis=0)
    marked = plane[kind != POOL]
    if len(marked):
        low, high = np.minimum(low, marked.min(axis=0)), np.maximum(high, marked.max(axis=0))
    span = float((high - low).max()) * 1.04 or 1.0
    middle = (low + high) / 2
    grid = np.clip(((plane - middle) / span + 0.5) * _SIDE, 0, _SIDE).round().astype("<u2")
    return grid[:, 0], grid[:, 1]


def _base64(values: npt.NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def predictions_of(result: Result) -> list[str | None]:
    """Return the predicted class of each chosen row."""
    return name_of_prediction(result.selection)

"""From scored candidates to a ranked batch: the strategies by name, and what is reported for each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from raystream.errors import QueryError, did_you_mean
from raystream.selection.bounds import Encoding
from raystream.selection.core_set import farthest_first, score_weights
from raystream.selection.k_means import cluster
from raystream.selection.near_duplicates import NearDuplicates, walk
from raystream.selection.nearest import Centres, nearest
from raystream.selection.ranking import random_order, top_k
from raystream.selection.represents import Assignment, assign, represents
from raystream.selection.rows import Array, Metric, squared_distances, vectors
from raystream.selection.shards import DEFAULT_MEMORY, LocalShards


@dataclass(frozen=True)
class Candidates:
    """The n rows to choose from, in row order.

    Attributes:
        score: (n,) float, higher = label sooner; None when nothing asks for it.
        keys: (n,) uint64 of `row_hash`; for the strategy random alone.
        shards: their embeddings; None when nothing needs them.
        labelled: (m, d) float16 or float32 embeddings of labelled rows, as stored; may be empty or None.
    """

    score: Array | None = None
    keys: Array | None = None
    shards: LocalShards | None = None
    labelled: Array | None = None

    def __len__(self) -> int:
        held = next((part for part in (self.shards, self.score, self.keys) if part is not None), ())
        return len(held)


class Certificate(TypedDict):
    """How well the batch covers the candidates.

    `radius` is the largest distance of a candidate to the chosen and labelled rows. No batch of this size has a
    radius below `lower_bound`; it is None unless that is proven, as it is for farthest-first by distance alone.
    """

    radius: float
    lower_bound: float | None


@dataclass(frozen=True)
class Chosen:
    """The batch in rank order.

    Attributes:
        rows: (b,) int64 numbers of the candidates.
        gain: (b,) float64, what the strategy maximised when it took the row; nan where it maximised nothing.
        distance: (b,) float64 to the nearest row chosen before or labelled, nan when there is none; None without embeddings.
        represents: (b,) int64, how many candidates are nearest to the row; those nearer to a labelled row count for none.
        why: the constraint that bound each row, else ''.
        certificate: None without embeddings.
        passes: how often the embeddings were read to choose.
        note: why fewer than min(budget, n) rows came back; None when there were no more candidates.
    """

    rows: Array
    gain: Array
    distance: Array | None
    represents: Array | None
    why: list[str]
    certificate: Certificate | None
    passes: int
    note: str | None


@dataclass(frozen=True)
class Request:
    """What a strategy is asked for. `labelled` is (m, d) float32 in the metric's space; `near_duplicates` is None when off."""

    budget: int
    seed: int
    weight: float
    memory: int
    labelled: Array | None
    near_duplicates: NearDuplicates | None
    args: Mapping[str, Any]


@dataclass(frozen=True)
class Picked:
    """What a strategy answers; `distance` only if it has come by it."""

    rows: Array
    gain: Array
    distance: Array | None = None
    passes: int = 0


Strategy = Callable[[Candidates, Request], Picked]


def choose(
    candidates: Candidates,
    *,
    strategy: str,
    budget: int,
    seed: int = 0,
    metric: Metric = "euclidean",
    weight: float = 0.0,
    near_duplicates: float | None = None,
    memory: int = DEFAULT_MEMORY,
    args: Mapping[str, Any] | None = None,
) -> Chosen:
    """Choose up to `budget` candidates by the strategy of that name.

    Raises:
        QueryError: an unknown strategy, or one that lacks its score or embeddings, or whose weights are negative.
        DataError: embeddings or scores that are not numbers.
    """
    if strategy not in STRATEGIES:
        raise QueryError(f"select.strategy {strategy!r} is unknown{did_you_mean(strategy, STRATEGIES)}")
    shards = candidates.shards
    if shards is not None and shards.metric != metric:
        raise QueryError(f"the embeddings were opened for metric {shards.metric}, but select.metric is {metric}")
    labelled = None if shards is None else vectors(candidates.labelled if len(shards) else None, shards.width, metric)
    if near_duplicates is not None and shards is None:
        raise QueryError("select.near_duplicates compares embeddings, but the model gives none; set model.embedding")
    blocked = None if near_duplicates is None or shards is None else NearDuplicates(near_duplicates, shards.width, labelled)
    request = Request(budget, seed, weight, memory, labelled, blocked, args or {})
    nothing = Picked(np.empty(0, dtype=np.int64), np.empty(0))
    picked = STRATEGIES[strategy](candidates, request) if len(candidates) and budget > 0 else nothing
    distance = counts = None
    certificate: Certificate | None = None
    if shards is not None and labelled is not None:
        x = shards.gather(picked.rows)
        distance = picked.distance if picked.distance is not None else _distances(x, labelled)
        everything = np.concatenate([x, labelled])
        assignment = assign(shards.rows, everything) if len(everything) else Assignment(np.empty(0, dtype=np.int32), 0.0, -1)
        counts = represents(assignment, len(x))
        proven = strategy == "core_set" and weight == 0 and near_duplicates is None
        certificate = {"radius": assignment.radius, "lower_bound": assignment.radius / 2 if proven else None}
    note = _note(len(picked.rows), budget, len(candidates), near_duplicates)
    return Chosen(picked.rows, picked.gain, distance, counts, [""] * len(picked.rows), certificate, picked.passes, note)


def _note(chosen: int, budget: int, n: int, near_duplicates: float | None) -> str | None:
    if chosen >= min(budget, n):
        return None  # who gave fewer candidates than the budget knows why
    return (
        f"{chosen} rows instead of {budget}: of the {n} candidates all others have a cosine of at least {near_duplicates} "
        "with a chosen or labelled row; raise select.candidates"
    )


def _distances(x: Array, labelled: Array) -> Array:
    """(b,) float64 distances of each row to the nearest before it or labelled; nan when there is none."""
    before = np.concatenate([labelled, x])
    result = np.full(len(x), np.inf)
    if not len(x):
        return result
    encoding = Encoding.fit(before.mean(axis=0, dtype=np.float64), float(np.abs(before).max()), on_grid=False, precision="float32")
    step = 64
    for begin in range(0, len(x), step):
        block = x[begin : begin + step]
        end = len(labelled) + begin
        if end:
            for first in range(0, end, 8192):
                found = nearest(block, Centres.of(before[first : min(first + 8192, end)], encoding), exact_distance=True).upper
                np.minimum(result[begin : begin + step], found, out=result[begin : begin + step])
        for i in range(1, len(block)):
            result[begin + i] = min(result[begin + i], float(squared_distances(block[:i], block[i]).min()))
    return np.where(np.isinf(result), np.nan, np.sqrt(result))


def _needed(part: Any, what: str, strategy: str) -> Any:
    if part is None:
        raise QueryError(f"select.strategy {strategy} needs {what}, but the candidates have none")
    return part


def _gather(candidates: Candidates) -> Callable[[Array], Array] | None:
    return None if candidates.shards is None else candidates.shards.gather


def _top_k(candidates: Candidates, request: Request) -> Picked:
    score = np.asarray(_needed(candidates.score, "a score", "top_k"))
    order = top_k(score, request.budget if request.near_duplicates is None else len(score))
    rows = walk(order, request.budget, request.near_duplicates, _gather(candidates))
    return Picked(rows, score[rows].astype(np.float64))


def _random(candidates: Candidates, request: Request) -> Picked:
    keys = np.asarray(_needed(candidates.keys, "hashes of the ids", "random"))
    order = random_order(keys, request.budget if request.near_duplicates is None else len(keys))
    rows = walk(order, request.budget, request.near_duplicates, _gather(candidates))
    return Picked(rows, np.full(len(rows), np.nan))


def _k_means(candidates: Candidates, request: Request) -> Picked:
    shards = _needed(candidates.shards, "embeddings", "k_means")
    found = cluster(
        shards.rows,
        request.budget,
        weight=candidates.score,
        seed=request.seed,
        memory=request.memory,
        near_duplicates=request.near_duplicates,
        **request.args,
    )
    return Picked(found.rows, found.gain, passes=1)


def _core_set(candidates: Candidates, request: Request) -> Picked:
    shards = _needed(candidates.shards, "embeddings", "core_set")
    weight = score_weights(candidates.score, request.weight, len(shards))
    found = farthest_first(shards, request.budget, score_weight=weight, labelled=request.labelled, near_duplicates=request.near_duplicates)
    return Picked(found.rows, found.gain, found.distance, found.passes)


STRATEGIES: dict[str, Strategy] = {"core_set": _core_set, "k_means": _k_means, "random": _random, "top_k": _top_k}
"""What `select.strategy` may be. A new one is a module with its algorithm, a function like those above and a line here."""

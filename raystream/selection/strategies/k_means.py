"""Weighted k-means selection: one row for each part of the space, where the weights ask for many or few parts.

The weights are usually the acquisition score, as in Zhdanov, *Diverse mini-batch active learning*, 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from raystream.selection.arguments import checked_seed, count, optional_column, rows_of
from raystream.selection.clustered import Clustered, Spread, clustered, taken
from raystream.selection.clusters import ONE_LEVEL, fit_centres
from raystream.selection.constraints import Constraints
from raystream.selection.hashing import checked_weights
from raystream.selection.lloyd import BLOCK, encode, encoding_of, slices
from raystream.selection.rows import Array, Metric, squared_distances
from raystream.selection.shards import DEFAULT_MEMORY, LocalPieces, Shards
from raystream.selection.strategy import Candidates, Picked, Request, embeddings

_PRODUCTS = 1 << 23
_FEWEST = 64
"""Rows that stretches name at once as the nearest to a centre, four times as many each time after."""


@dataclass(frozen=True)
class WeightedRows:
    """`rows` (b,) int64 in descending weight of their clusters; `gain` (b,) float64, those weights; how often all rows were read."""

    rows: Array
    gain: Array
    passes: int = 0


def k_means(
    x: ArrayLike,
    k: int,
    *,
    score: ArrayLike | None = None,
    metric: Metric = "euclidean",
    seed: int = 0,
    iterations: int = 20,
    memory: int = DEFAULT_MEMORY,
) -> Array:
    """Choose the rows nearest to the centres of weighted k-means.

    To each centre, in descending weight of its cluster (ties to the lower centre), the nearest row that is not taken yet, of those
    that are nearer to it than to other centres, or of all when none of those is left; distances in float64, ties to the lower row.

    Args:
        x: (n, d) embeddings; taken as float32 unless float16.
        k: how many rows; all n when there are fewer.
        score: (n,), at least 0, by which rows pull centres; left out or all zero, they do so equally.
        metric: `cosine` works on rows divided by their lengths.
        seed: of the first centres.
        iterations: of Lloyd's algorithm at most, of which the first two thirds see 131,072 rows or 64 k, if there are more; they end
            once moving the centres gains less than a thousandth of what all moves have gained.
        memory: bytes that rows may take as float32; of more of them, samples are gathered, and passes read the rest.

    Returns:
        (min(k, n),) int64 distinct rows, the heaviest cluster first.

    Raises:
        DataError: embeddings that are not finite.
        QueryError: a negative score, or a sample that doesn't fit `memory`.
    """
    rows = rows_of(x, metric)
    weight = optional_column(score, len(rows))
    return cluster(
        Shards(rows, 1, LocalPieces, memory=memory), count(k), weight=weight, seed=checked_seed(seed), iterations=iterations, memory=memory
    ).rows


def cluster(
    shards: Shards,
    k: int,
    *,
    weight: Array | None = None,
    seed: int = 0,
    iterations: int = 20,
    memory: int = DEFAULT_MEMORY,
    constraints: Constraints | None = None,
    one_level: int = ONE_LEVEL,
) -> WeightedRows:
    """Run `k_means` over rows wherever they are, passing over those that `constraints` block."""
    n = len(shards)
    k = min(k, n)
    checked = _weights(weight, n)
    if k <= 0:
        return WeightedRows(np.empty(0, dtype=np.int64), np.empty(0))
    rows = clustered(shards, memory, "k_means")
    centres = rows.take() if k == n else fit_centres(rows, checked, k, seed, iterations, one_level)
    nearest = rows.nearest(centres)
    return _chosen(rows, centres, nearest, np.bincount(nearest, weights=checked, minlength=k), constraints)


def _weights(weight: Array | None, n: int) -> Array:
    """Check (n,) float64 weights; uniform when there are none."""
    if weight is None:
        return np.ones(n)
    checked = checked_weights(weight, n)
    return checked if checked.any() else np.ones(n)


def _chosen(x: Clustered, centres: Array, nearest: Array, weight: Array, constraints: Constraints | None) -> WeightedRows:
    """Choose for each centre in descending weight of its cluster, (k,) float64, a row that is neither used nor blocked."""
    order = np.argsort(-weight, kind="stable")
    squared = x.squared_to_own(centres, nearest)
    by_cluster = np.lexsort((squared, nearest))
    ends = np.cumsum(np.bincount(nearest, minlength=len(centres)))
    unused = _Unused(x, centres[order], constraints)
    rows: list[int] = []
    for place, centre in enumerate(order):
        own = by_cluster[ends[centre - 1] if centre else 0 : ends[centre]]
        row = unused.first(own)
        row = unused.nearest(place) if row is None else row
        if row is None:
            break
        rows.append(row)
    return WeightedRows(np.asarray(rows, dtype=np.int64), weight[order[: len(rows)]], x.passes)


class _Unused:
    """The rows that may still be taken."""

    def __init__(self, x: Clustered, centres: Array, constraints: Constraints | None) -> None:
        self._x, self._centres, self._constraints = x, centres, constraints
        self._gone = np.zeros(len(x), dtype=bool)  # taken or blocked: what is blocked stays so
        self._near: _ClosestRows | _NearSpread | None = None

    def first(self, rows: Array) -> int | None:
        """Take the first of `rows` (int64) that can be taken."""
        at, step = 0, 1
        while at < len(rows):
            some = rows[at : at + step]
            some = some[~self._gone[some]]
            if self._constraints is not None and len(some):
                blocked = self._constraints.blocked(some, taken(self._x, some))
                self._gone[some[blocked]] = True
                some = some[~blocked]
            if len(some):
                row = int(some[0])
                self._gone[row] = True
                if self._constraints is not None:
                    self._constraints.take(row, self._x.take(some[:1])[0])
                return row
            at, step = at + step, min(2 * step, 4096)
        return None

    def nearest(self, place: int) -> int | None:
        """Find the nearest row to the centre in this place that can be taken."""
        if self._near is None:
            self._near = _NearSpread(self._x, self._centres) if isinstance(self._x, Spread) else _ClosestRows(self._x.take(), self._centres)
        while (close := self._near.closest(place, self._gone)) is not None:
            row = self.first(np.asarray([close]))
            if row is not None:
                return row
        return None


class _NearSpread:
    """The rows nearest to a centre, from stretches of them: several at a time, more each time that none of them could be taken."""

    def __init__(self, x: Spread, centres: Array) -> None:
        self._x, self._centres = x, centres
        self._place, self._count, self._rows = -1, 0, np.empty(0, dtype=np.int64)

    def closest(self, place: int, gone: Array) -> int | None:
        """Find the nearest row to the centre in this place that isn't gone, the lowest at a tie; None when all are."""
        if place != self._place:
            self._place, self._count, self._rows = place, _FEWEST, np.empty(0, dtype=np.int64)
        self._rows = self._rows[~gone[self._rows]]
        if not len(self._rows):
            self._rows = self._x.closest(self._centres[place], gone, self._count)[1]
            self._count *= 4
        return int(self._rows[0]) if len(self._rows) else None


class _ClosestRows:
    """The rows nearest to a centre, of rows in memory: products of some centres at a time with all rows leave few to be looked at."""

    def __init__(self, x: Array, centres: Array) -> None:
        self._x, self._centres = x, centres
        self._encoding = encoding_of(x, "float32")
        self._operand = encode(x, self._encoding)[0]
        self._of_centres = self._encoding.centres(centres)[0]
        self._largest_square = float(self._operand[:, -2].max())
        self._step = max(_PRODUCTS // len(x), 1)
        self._at, self._now = -self._step, np.empty(0)

    def closest(self, place: int, gone: Array) -> int | None:
        """See `_NearSpread`."""
        close = self._close(place, gone)
        if close is None:
            return None
        least, found = np.inf, -1
        for at in slices(len(close), BLOCK):  # of many copies of the centre only some are looked at
            squared = squared_distances(self._x[close[at]], self._centres[place])
            if squared.min() < least:
                least, found = float(squared.min()), int(close[at][np.argmin(squared)])
            if least == 0:
                break
        return found

    def _close(self, place: int, gone: Array) -> Array | None:
        """Find int64 rows, not gone, among which the nearest to the centre in this place is; None when all are gone."""
        if not self._at <= place < self._at + self._step:
            self._at = place
            self._now = torch.mm(self._of_centres[place : place + self._step], self._operand.T).numpy()
        free = np.where(gone, np.float32(np.inf), self._now[place - self._at])
        least = float(free.min())
        if least == np.inf:
            return None
        square = self._largest_square + float(self._of_centres[place, -1])
        width = float(self._encoding.width_of(np.asarray(square)))
        return np.flatnonzero(free <= np.nextafter(np.float32(max(least, 0.0) + width), np.float32(np.inf)))


def k_means_strategy(candidates: Candidates, request: Request) -> Picked:
    """Run `k_means` in a query, weighted by the score."""
    found = cluster(
        embeddings(candidates, "k_means"),
        request.budget,
        weight=candidates.score,
        seed=request.seed,
        memory=request.memory,
        constraints=request.constraints,
        **request.args,
    )
    return Picked(found.rows, found.gain, passes=found.passes)

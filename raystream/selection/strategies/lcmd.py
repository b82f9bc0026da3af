"""Largest cluster maximum distance: the farthest row of the cluster that is covered worst in all.

Holzmüller, Zaverkin, Kästner and Steinwart, *A framework and benchmark for deep batch active learning for
regression*, 2023. Where farthest-first goes after single outliers, this goes where many rows are far.

Rows are held in cells, one for each centre: see `cells`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from raystream.selection.arguments import count, labelled_of, shards_of
from raystream.selection.bounds import Precision, encode_rows
from raystream.selection.constraints import Constraints
from raystream.selection.nearest import Cells, in_order, squared_to
from raystream.selection.rows import Array, Metric
from raystream.selection.shards import DEFAULT_MEMORY, LocalShards, Shards
from raystream.selection.strategies.core_set import glance
from raystream.selection.strategy import Candidates, Picked, Request, embeddings, gathered

_BLOCK = 2048


@dataclass(frozen=True)
class LargestCluster:
    """The result of choosing from the largest clusters.

    Attributes:
        rows: (b,) int64 in order of choice.
        gain: (b,) float64, the sum of squared distances in the row's cluster when it was taken; nan for the first if nothing is labelled.
        distance: (b,) float64 to the nearest row chosen before or labelled; nan for the first if nothing is labelled.
    """

    rows: Array
    gain: Array
    distance: Array


def lcmd(x: ArrayLike, k: int, *, labelled: ArrayLike | None = None, metric: Metric = "euclidean", memory: int = DEFAULT_MEMORY) -> Array:
    """Choose k rows, each the farthest from its centre in the cluster with the largest sum of squared distances.

    A row's cluster is that of the nearest row chosen before or labelled, the earlier one at a tie. With nothing
    labelled the first row is the farthest from the mean. Ties go to the cluster of the earlier centre, labelled
    ones first, then to the lower row. Sums are exact to n 2^-61 of the largest squared distance at the time, in any order.

    Args:
        x: (n, d) embeddings; taken as float32 unless float16.
        k: how many rows; all n when there are fewer.
        labelled: (m, d) rows that are centres already.
        metric: `cosine` works on rows divided by their lengths.
        memory: bytes that the rows may take as float32.

    Returns:
        (min(k, n),) int64 rows in order of choice.

    Raises:
        DataError: embeddings that are not finite, or not as wide as the labelled ones.
        QueryError: rows that don't fit `memory`.
    """
    shards = shards_of(x, metric)
    return largest_cluster(shards, count(k), labelled=labelled_of(labelled, shards.width, metric), memory=memory).rows


def largest_cluster(
    shards: Shards,
    k: int,
    *,
    labelled: Array | None = None,
    constraints: Constraints | None = None,
    memory: int = DEFAULT_MEMORY,
    precision: Precision = "auto",
) -> LargestCluster:
    """Run `lcmd` over shards.

    Args:
        shards: the candidates.
        k: how many rows at most.
        labelled: (m, d) float32 in the metric's space.
        constraints: rows that they block are passed over, do not become centres, but count in their clusters' sums.
        memory: bytes that the rows may take as float32.
        precision: of the bounds; has no influence on the result.
    """
    if len(shards) == 0 or k <= 0:
        return LargestCluster(np.empty(0, dtype=np.int64), np.empty(0), np.empty(0))
    fixed = np.empty((0, shards.width), dtype=np.float32) if labelled is None else labelled
    x = gathered(shards.rows, memory, "lcmd")
    local = LocalShards.of_array(x)
    encoding, look = glance(local, fixed, precision)
    encoded = encode_rows(local.rows, encoding, look, keep=True, block=_BLOCK)
    free, cells = _Free(x, constraints), Cells(x, fixed, encoding, encoded, k)
    rows: list[int] = []
    gain: list[float] = []
    distance: list[float] = []
    if not cells.size:
        squared = squared_to(x, encoded.total / len(x))
        first = free.take(lambda count: in_order(np.flatnonzero(free.alive), squared, count))
        if first is not None:
            rows, gain, distance = [first], [math.nan], [math.nan]
            cells.add(first, free.alive)
    while cells.size and len(rows) < k and (cell := cells.largest(free.alive)) is not None:
        row = free.take(partial(cells.first, cell, free.alive))
        if row is not None:  # else all of the cell's rows are blocked
            rows.append(row)
            gain.append(cells.sum_of(cell))
            distance.append(float(np.sqrt(cells.squared[row])))
            cells.add(row, free.alive)
    return LargestCluster(np.asarray(rows, dtype=np.int64), np.asarray(gain), np.asarray(distance))


def lcmd_strategy(candidates: Candidates, request: Request) -> Picked:
    """Run `lcmd` in a query."""
    found = largest_cluster(
        embeddings(candidates, "lcmd"), request.budget, labelled=request.labelled, constraints=request.constraints, memory=request.memory
    )
    return Picked(found.rows, found.gain, found.distance, passes=1)


class _Free:
    """Which rows may still be chosen, as far as is known."""

    def __init__(self, x: Array, constraints: Constraints | None) -> None:
        self._x, self._constraints = x, constraints
        self.alive = np.ones(len(x), dtype=bool)
        if constraints is not None:
            self.alive[constraints.taken] = False

    def take(self, first: Callable[[int], Array]) -> int | None:
        """Take the first row that nothing blocks; None if all are blocked.

        Args:
            first: how many -> the first rows alive, in order.
        """
        step = 1
        while len(rows := first(step)):
            x = self._x[rows]
            blocked = np.zeros(len(rows), dtype=bool) if self._constraints is None else self._constraints.blocked(rows, x)
            self.alive[rows[blocked]] = False
            left = np.flatnonzero(~blocked)
            if len(left):
                row = int(rows[left[0]])
                self.alive[row] = False
                if self._constraints is not None:
                    self._constraints.take(row, x[left[0]])
                return row
            step = min(max(64, 4 * step), 16384)
        return None

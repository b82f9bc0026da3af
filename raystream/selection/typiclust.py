"""Typical rows of the parts of the space that have the fewest labels: for the first rounds, when no score means much.

Hacohen, Dekel and Weinshall, *Active learning on a budget: opposite strategies suit high and low budgets*, 2022.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import ArrayLike

from raystream.selection.arguments import checked_seed, count, labelled_of, rows_of
from raystream.selection.clusters import clusters as fit_clusters
from raystream.selection.constraints import Constraints
from raystream.selection.neighbours import nearest_neighbours
from raystream.selection.represents import assign
from raystream.selection.rows import Array, Metric, as_rows, vectors
from raystream.selection.shards import DEFAULT_MEMORY
from raystream.selection.strategy import Candidates, Picked, Request, embeddings, gathered

CLUSTERS = 500
NEIGHBOURS = 20
_SMALL = 5
"""Clusters with fewer rows are likely to be outliers."""
_EXACT = 20_000
"""Above this many rows in a cluster, its neighbour graph goes through inverted lists."""


def typiclust(
    x: ArrayLike,
    k: int,
    *,
    labelled: ArrayLike | None = None,
    metric: Metric = "euclidean",
    seed: int = 0,
    clusters: int = CLUSTERS,
    neighbours: int = NEIGHBOURS,
    memory: int = DEFAULT_MEMORY,
) -> Array:
    """Choose the densest row of the clusters that have the fewest labels.

    k-means makes as many clusters as there are labelled rows and rows to choose. Each next row is from the cluster with
    the fewest labelled or chosen rows, of these the largest, ties to the lower; in it the row with the least mean distance
    to its nearest neighbours within the cluster, ties to the lower row. Clusters of fewer than 5 rows come last.

    Args:
        x: (n, d) embeddings.
        k: how many rows; all n when there are fewer.
        labelled: (m, d) rows that are labelled already; each counts for the cluster with the nearest centre.
        metric: `cosine` works on rows divided by their lengths.
        seed: of the first centres.
        clusters: how many at most; beyond it every cluster is gone to again.
        neighbours: how many the density looks at.
        memory: bytes that the rows may take as float32.

    Returns:
        (min(k, n),) int64 distinct rows in order of choice.

    Raises:
        DataError: embeddings that are not finite.
        QueryError: rows that don't fit `memory`.
    """
    rows, k = rows_of(x, metric), count(k)
    fixed = labelled_of(labelled, rows.width, metric)
    return _typical(gathered(rows, memory, "typiclust"), k, fixed, Constraints(k), checked_seed(seed), clusters, neighbours).rows


def typiclust_strategy(candidates: Candidates, request: Request) -> Picked:
    """`typiclust` in a query."""
    shards = embeddings(candidates, "typiclust")
    x = gathered(shards.rows, request.memory, "typiclust")
    labelled = vectors(request.labelled, shards.width, "euclidean")
    most, neighbours = int(request.args.get("clusters", CLUSTERS)), int(request.args.get("neighbours", NEIGHBOURS))
    return _typical(x, request.budget, labelled, request.constraints, request.seed, most, neighbours)


def _typical(x: Array, budget: int, labelled: Array, constraints: Constraints, seed: int, most: int, neighbours: int) -> Picked:
    if not len(x) or budget <= 0:
        return Picked(np.empty(0, dtype=np.int64), np.empty(0))
    found = fit_clusters(x, min(len(labelled) + budget, most), seed, iterations=20)
    covered = np.zeros(len(found.size), dtype=np.int64)
    if len(labelled):
        covered += np.bincount(assign(as_rows(labelled), found.centres).nearest, minlength=len(covered))
    parts = [_Part(x, members, neighbours, seed) for members in found.members()]
    rows: list[int] = []
    gain: list[float] = []
    for small in (False, True):
        queue = [(int(covered[c]), -int(size), c) for c, size in enumerate(found.size) if size > 0 and (size < _SMALL) == small]
        heapq.heapify(queue)
        while queue and len(rows) < budget:
            count, size, c = heapq.heappop(queue)
            taken = parts[c].take(constraints)
            if taken is not None:
                rows.append(taken[0])
                gain.append(taken[1])
                heapq.heappush(queue, (count + 1, size, c))
    recall = min((part.recall for part in parts), default=1.0)
    facts = {"clusters": len(parts), "recall": recall}
    return Picked(np.asarray(rows, dtype=np.int64), np.asarray(gain, dtype=np.float64), passes=1, facts=facts)


class _Part:
    """The rows of one cluster, the densest first; its neighbours are looked for when it is first asked."""

    def __init__(self, x: Array, members: Array, neighbours: int, seed: int) -> None:
        self._x, self._rows, self._neighbours, self._seed = x, members, neighbours, seed
        self._typicality: Array | None = None
        self._at = 0
        self.recall = 1.0

    def take(self, constraints: Constraints) -> tuple[int, float] | None:
        """The densest row that nothing blocks, of which the constraints are told, and its typicality; None if there is none left."""
        if self._typicality is None:
            self._sort()
        step = 1
        while self._at < len(self._rows):
            some = self._rows[self._at : self._at + step]
            free = np.flatnonzero(~constraints.blocked(some, self._x[some]))
            self._at += int(free[0]) + 1 if len(free) else len(some)  # what is blocked stays blocked
            if len(free):
                row = int(some[free[0]])
                constraints.take(row, self._x[row])
                assert self._typicality is not None
                return row, float(self._typicality[self._at - 1])
            step = min(2 * step, 4096)
        return None

    def _sort(self) -> None:
        """By typicality, the reciprocal of the mean distance: infinite among equal rows, 0 for a row by itself."""
        found = nearest_neighbours(self._x[self._rows], self._neighbours, seed=self._seed, exact=_EXACT)
        self.recall = float(found.facts["recall"])
        with np.errstate(divide="ignore"):
            typicality = 1 / found.distance.mean(axis=1) if len(self._rows) > 1 else np.zeros(1)
        order = np.argsort(-typicality, kind="stable")
        self._rows, self._typicality = self._rows[order], typicality[order]

"""Typical rows of the parts of the space that have the fewest labels: for the first rounds, when no score means much.

Hacohen, Dekel and Weinshall, *Active learning on a budget: opposite strategies suit high and low budgets*, 2022.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from itertools import chain, islice

import numpy as np
from numpy.typing import ArrayLike

from raystream.selection.arguments import checked_seed, count, labelled_of, rows_of
from raystream.selection.clusters import clusters as fit_clusters
from raystream.selection.constraints import Constraints
from raystream.selection.density import densest
from raystream.selection.derived import Kept
from raystream.selection.neighbours import nearest_neighbours
from raystream.selection.represents import assign
from raystream.selection.rows import Array, Metric, as_rows, vectors
from raystream.selection.shards import DEFAULT_MEMORY
from raystream.selection.strategy import Candidates, Picked, Request, embeddings, gathered
from raystream.selection.threads import each

CLUSTERS = 500
NEIGHBOURS = 20
_SMALL = 5
"""Clusters with fewer rows are likely to be outliers."""
_EXACT = 20_000
"""Above this many rows in a cluster, its neighbour graph goes through inverted lists."""
_AT_ONCE = 64
"""Clusters that are looked into at a time, so that each thread has some."""


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
    return _typical(x, request.budget, labelled, request.constraints, request.seed, most, neighbours, candidates.kept)


def _typical(
    x: Array, budget: int, labelled: Array, constraints: Constraints, seed: int, most: int, neighbours: int, kept: Kept | None = None
) -> Picked:
    if not len(x) or budget <= 0:
        return Picked(np.empty(0, dtype=np.int64), np.empty(0))
    found = fit_clusters(x, min(len(labelled) + budget, most), seed, iterations=20, kept=kept)
    covered = np.zeros(len(found.size), dtype=np.int64)
    if len(labelled):
        covered += np.bincount(assign(as_rows(labelled), found.centres).nearest, minlength=len(covered))
    parts = _Parts(x, found.members(), neighbours, seed)
    rows: list[int] = []
    gain: list[float] = []
    for small in (False, True):
        queue = [(int(covered[c]), -int(size), c) for c, size in enumerate(found.size) if size > 0 and (size < _SMALL) == small]
        heapq.heapify(queue)
        while queue and len(rows) < budget:
            if not parts.ready(queue[0][2]):
                parts.prepare([c for _, _, c in heapq.nsmallest(min(budget - len(rows), _AT_ONCE), queue)])
            count, size, c = heapq.heappop(queue)
            taken = parts.take(c, constraints)
            if taken is not None:
                rows.append(taken[0])
                gain.append(taken[1])
                heapq.heappush(queue, (count + 1, size, c))
    facts = {"clusters": len(found.size), "recall": parts.recall}
    return Picked(np.asarray(rows, dtype=np.int64), np.asarray(gain, dtype=np.float64), passes=1, facts=facts)


class _Parts:
    """The clusters' rows, the densest of each first; a cluster is looked into when it is first needed, or shortly before."""

    def __init__(self, x: Array, members: list[Array], neighbours: int, seed: int) -> None:
        self._x, self._members, self._neighbours, self._seed = x, members, neighbours, seed
        self._rows: dict[int, Iterator[tuple[int, float]]] = {}
        self._waiting: dict[int, list[tuple[int, float]]] = {}  # rows that have come and were neither taken nor blocked
        self.recall = 1.0

    def ready(self, cluster: int) -> bool:
        """Whether it has been prepared."""
        return cluster in self._rows

    def prepare(self, clusters: list[int]) -> None:
        """Find the densest row of each, a thread a cluster."""
        new = [c for c in clusters if not self.ready(c)]
        small = [c for c in new if len(self._members[c]) <= _EXACT]

        def look(cluster: int) -> Iterator[tuple[int, float]]:
            rows = densest(self._x, self._members[cluster], self._neighbours)
            return chain([next(rows)], rows)

        self._rows |= zip(small, each(small, lambda: look), strict=True)
        self._rows |= {c: self._by_graph(self._members[c]) for c in new if c not in self._rows}

    def _by_graph(self, group: Array) -> Iterator[tuple[int, float]]:
        """As `densest`, as far as inverted lists find the neighbours."""
        found = nearest_neighbours(self._x[group], self._neighbours, seed=self._seed, exact=_EXACT)
        self.recall = min(self.recall, float(found.facts["recall"]))
        mean = found.distance.mean(axis=1)
        order = np.argsort(mean, kind="stable")
        return zip(group[order].tolist(), mean[order].tolist(), strict=True)

    def take(self, cluster: int, constraints: Constraints) -> tuple[int, float] | None:
        """The densest row that nothing blocks, of which the constraints are told, and its typicality; None if there is none left."""
        step = 1
        while some := self._waiting.pop(cluster, []) or list(islice(self._rows[cluster], step)):
            rows = np.asarray([row for row, _ in some])
            free = np.flatnonzero(~constraints.blocked(rows, self._x[rows]))
            if len(free):
                row, mean = some[free[0]]
                self._waiting[cluster] = some[free[0] + 1 :]  # what is blocked stays so
                constraints.take(row, self._x[row])
                return row, 1 / mean if mean > 0 else math.inf
            step = min(2 * step, 4096)
        return None

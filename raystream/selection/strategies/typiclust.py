"""Typical rows of the parts of the space that have the fewest labels: for the first rounds, when no score means much.

Hacohen, Dekel and Weinshall, *Active learning on a budget: opposite strategies suit high and low budgets*, 2022.

Within a group the densest row comes first: the one whose nearest others are nearest. Products of all pairs, in bfloat16 where that is
fast, give lower bounds of the rows' mean distances to their nearest others. The mean itself is taken for the rows of the lowest bounds
alone, until the least mean is below the bounds of all other rows: from float32 products, which leave few pairs in doubt, and float64
differences of those.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from itertools import chain, islice

import numpy as np
import torch
from numpy.typing import ArrayLike

from raystream.selection.arguments import checked_seed, count, labelled_of, rows_of
from raystream.selection.clustered import Clustered, HeldRows, clustered, taken
from raystream.selection.clusters import clusters as fit_clusters
from raystream.selection.constraints import Constraints
from raystream.selection.lloyd import encoding_of, slices
from raystream.selection.nearest import near_bounds, pair_distances
from raystream.selection.neighbours import Facts, nearest_neighbours
from raystream.selection.represents import assign
from raystream.selection.rows import Array, Metric, as_rows, vectors
from raystream.selection.shards import DEFAULT_MEMORY, LocalPieces, Shards
from raystream.selection.strategy import Candidates, Kept, Picked, Request, embeddings
from raystream.threads import each


def typicality(x: Array, neighbours: int = 20) -> tuple[Array, Facts]:
    """Compute (n,) float64: 1 / (1 + mean distance to the nearest other rows), above 0, at most 1; 1 for a row alone.

    Args:
        x: (n, d) float32, finite.
        neighbours: to how many other rows the distance is averaged; all others when there are fewer.

    Returns:
        the typicalities, and which index found the neighbours, with what recall.
    """
    if len(x) < 2 or neighbours < 1:
        return np.ones(len(x)), {}
    found = nearest_neighbours(x, neighbours)
    similar: Array = 1 / (1 + found.distance.mean(axis=1))
    return similar, found.facts


_BLOCK = 1024
"""Rows whose products with all others are kept at a time."""
_SHIFT_ROWS = 64
_FEWEST, _MOST = 16, 512
"""Rows whose means are taken at a time, twice as many each time."""
_WHOLE = 256
"""The means of groups of up to so many rows are taken at once: bounds would take as long."""
_PAIRS_A_NEIGHBOUR = 8
"""Where float32 leaves more pairs in doubt than this many times the neighbours asked for, the nearest of them are looked at."""
_PRODUCT_UP = 1 + 1.01 * 2.0**-8
"""What rounding to bfloat16 may multiply a product by."""


def densest(x: Array | Clustered, group: Array, neighbours: int) -> Iterator[tuple[int, float]]:
    """Yield the rows of a group by the mean distance to their nearest others, ascending, ties to the lower row, each with it.

    Args:
        x: the rows, (n, d) float32 if they are an array. The group's are taken anew whenever they are looked at, which is seldom.
        group: (m,) int64 rows of x, ascending.
        neighbours: over how many others the mean is taken, at least one; all when there are fewer. It is infinite for a row by itself.
    """
    count = min(neighbours, len(group) - 1)
    if count < 1:
        yield from ((int(row), math.inf) for row in group)
        return
    rows = HeldRows(x) if isinstance(x, np.ndarray) else x
    whole = len(group) <= _WHOLE
    low = np.zeros(len(group)) if whole else _lower_bounds(rows.take(group), count)
    order = np.argsort(low, kind="stable")
    at, step = 0, _WHOLE if whole else _FEWEST
    known: list[tuple[float, int]] = []  # a heap of means and places in the group
    while at < len(order) or known:
        if at < len(order) and not (known and known[0] <= (low[order[at]], order[at])):
            ask = order[at : at + step]
            for mean, place in zip(_means(rows.take(group), ask, count).tolist(), ask.tolist(), strict=True):
                heapq.heappush(known, (mean, place))
            at, step = at + len(ask), min(2 * step, _MOST)
            continue
        mean, place = heapq.heappop(known)
        yield int(group[place]), mean


def _products(rows: torch.Tensor, others: torch.Tensor, own: Array) -> Array:
    """Compute (m, n) products as integers in the same order, a row's product with itself being the largest."""
    products = torch.mm(rows, others.T).clamp_(min=0.0)
    products[torch.arange(len(own)), torch.from_numpy(own)] = torch.inf
    result: Array = products.view(torch.int16 if products.dtype == torch.bfloat16 else torch.int32).numpy()
    return result


def _lower_bounds(x: Array, count: int) -> Array:
    """Return (m,) float64, at most the mean distance of each of the (m, d) rows to its `count` nearest others."""
    encoding = encoding_of(x, looked_at=_SHIFT_ROWS)
    rows, slack = encoding.rows(x)
    others = encoding.as_centre(rows)
    result = np.empty(len(x))
    for at in slices(len(x), _BLOCK):
        products = _products(rows[at], others, np.arange(at.start, at.stop))
        near = torch.from_numpy(np.partition(products, count - 1, axis=1)[:, :count].copy()).view(encoding.dtype)
        # each bound grows with the product: those of the smallest products are below the smallest distances
        near_slack, square = near_bounds(encoding, rows[at], slack[at], near)
        square += rows[at, x.shape[1], None].double().mul_(1 + 2.0**-7)
        squared = near.double().div_(_PRODUCT_UP if encoding.bfloat16 else 1.0).sub_(torch.from_numpy(encoding.width_of(square.numpy())))
        distance = squared.clamp_(min=0.0).sqrt_().sub_(near_slack if encoding.bfloat16 else 0.0).sub_(slack[at].double()[:, None])
        result[at] = distance.clamp_(min=0.0).mean(1).mul_((1 - 2.0**-40) * 2.0**-encoding.power).numpy()
    return result


def _means(x: Array, which: Array, count: int) -> Array:
    """Return (r,) float64 mean distances of some of the rows, `which` (int64), to their `count` nearest others."""
    encoding = encoding_of(x, "float32", looked_at=_SHIFT_ROWS)
    operand, slack = encoding.rows(x)
    rows = operand[torch.from_numpy(which)]
    products = _products(rows, encoding.as_centre(operand), which)
    last = torch.from_numpy(np.partition(products, count - 1, axis=1)[:, count - 1 : count].copy()).view(torch.float32)
    square = near_bounds(encoding, rows, slack[: len(which)], last)[1] + rows[:, x.shape[1], None].double().mul_(1 + 2.0**-7)
    limit = (last.double() + torch.from_numpy(encoding.width_of(square.numpy()))).mul_(1 + 2.0**-20).float().view(torch.int32).numpy()
    doubt = products <= limit
    most = min(_PAIRS_A_NEIGHBOUR * count, products.shape[1])
    for i in np.flatnonzero(doubt.sum(axis=1) > most):
        doubt[i] = False
        doubt[i, np.argpartition(products[i], most - 1)[:most]] = True
    row, other = np.nonzero(doubt)
    squared = pair_distances(x, x, which[row], other)
    order = np.lexsort((squared, row))
    starts = np.flatnonzero(np.diff(row, prepend=-1))
    nearest = squared[order[starts[:, None] + np.arange(count)]]
    result: Array = np.sqrt(nearest).mean(axis=1)
    return result


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
        memory: bytes that rows may take as float32; of more of them, samples and a cluster at a time are gathered.

    Returns:
        (min(k, n),) int64 distinct rows in order of choice.

    Raises:
        DataError: embeddings that are not finite.
        QueryError: a sample, or a cluster, that doesn't fit `memory`.
    """
    rows, k = rows_of(x, metric), count(k)
    fixed = labelled_of(labelled, rows.width, metric)
    shards = Shards(rows, 1, LocalPieces, memory=memory)
    return _typical(clustered(shards, memory, "typiclust"), k, fixed, Constraints(k), checked_seed(seed), clusters, neighbours).rows


def typiclust_strategy(candidates: Candidates, request: Request) -> Picked:
    """Run `typiclust` in a query."""
    shards = embeddings(candidates, "typiclust")
    x = clustered(shards, request.memory, "typiclust")
    labelled = vectors(request.labelled, shards.width, "euclidean")
    most, neighbours = int(request.args.get("clusters", CLUSTERS)), int(request.args.get("neighbours", NEIGHBOURS))
    return _typical(x, request.budget, labelled, request.constraints, request.seed, most, neighbours, candidates.kept)


def _typical(
    x: Clustered, budget: int, labelled: Array, constraints: Constraints, seed: int, most: int, neighbours: int, kept: Kept | None = None
) -> Picked:
    if not len(x) or budget <= 0:
        return Picked(np.empty(0, dtype=np.int64), np.empty(0))
    found = fit_clusters(x, min(len(labelled) + budget, most), seed, iterations=20, kept=kept)
    covered = np.zeros(len(found.size), dtype=np.int64)
    if len(labelled):
        covered += np.bincount(assign(as_rows(labelled), found.centres).nearest, minlength=len(covered))
    parts = _ClusterRows(x, found.members(), neighbours, seed)
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
    return Picked(np.asarray(rows, dtype=np.int64), np.asarray(gain, dtype=np.float64), passes=x.passes, facts=facts)


class _ClusterRows:
    """The clusters' rows, the densest of each first; a cluster is looked into when it is first needed, or shortly before."""

    def __init__(self, x: Clustered, members: list[Array], neighbours: int, seed: int) -> None:
        self._x, self._members, self._neighbours, self._seed = x, members, neighbours, seed
        self._rows: dict[int, Iterator[tuple[int, float]]] = {}
        self._waiting: dict[int, list[tuple[int, float]]] = {}  # rows that have come and were neither taken nor blocked
        self.recall = 1.0

    def ready(self, cluster: int) -> bool:
        """Tell whether a cluster has been prepared."""
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
        """Yield as `densest` does, as far as inverted lists find the neighbours."""
        found = nearest_neighbours(self._x.take(group), self._neighbours, seed=self._seed, exact=_EXACT)
        self.recall = min(self.recall, float(found.facts["recall"]))
        mean = found.distance.mean(axis=1)
        order = np.argsort(mean, kind="stable")
        return zip(group[order].tolist(), mean[order].tolist(), strict=True)

    def take(self, cluster: int, constraints: Constraints) -> tuple[int, float] | None:
        """Take the densest row that nothing blocks, of which the constraints are told, and its typicality; None if there is none left."""
        step = 1
        while some := self._waiting.pop(cluster, []) or list(islice(self._rows[cluster], step)):
            rows = np.asarray([row for row, _ in some])
            free = np.flatnonzero(~constraints.blocked(rows, taken(self._x, rows)))
            if len(free):
                row, mean = some[free[0]]
                self._waiting[cluster] = some[free[0] + 1 :]  # what is blocked stays so
                constraints.take(row, self._x.take(np.asarray([row]))[0])
                return row, 1 / mean if mean > 0 else math.inf
            step = min(2 * step, 4096)
        return None

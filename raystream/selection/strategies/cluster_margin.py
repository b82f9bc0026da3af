"""The least certain rows, spread over clusters: for large batches.

After Citovsky et al., *Batch active learning at scale*, 2021, who cluster hierarchically, where this is k-means. They go from the smallest
cluster to the largest; here the highest score comes first. Where there are more clusters than rows to choose, the smallest of them
are the pool's outliers, which teach a model no more than rows at random (benchmarks/LOG.md).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from raystream.errors import QueryError
from raystream.selection.arguments import checked_seed, column, rows_of
from raystream.selection.arguments import count as checked_count
from raystream.selection.clustered import Clustered, clustered, taken
from raystream.selection.clusters import clusters as fit_clusters
from raystream.selection.constraints import Constraints
from raystream.selection.rows import Array, Metric
from raystream.selection.shards import DEFAULT_MEMORY, LocalPieces, Shards
from raystream.selection.strategies.ranking import top_k, walk
from raystream.selection.strategy import Candidates, Kept, Picked, Request, embeddings, scores

SHORTLIST = 10.0
_CLUSTERS_A_ROW = 2
_ITERATIONS = 3


def cluster_margin(
    x: ArrayLike,
    k: int,
    *,
    score: ArrayLike,
    metric: Metric = "euclidean",
    seed: int = 0,
    clusters: int | None = None,
    m: float = SHORTLIST,
    memory: int = DEFAULT_MEMORY,
) -> Array:
    """Choose the rows of highest score, at most one from each cluster in a round.

    The m * k rows of the highest scores are shortlisted. In each round every cluster that has a row left there gives the highest, the
    highest of all first (ties to the lower row).

    Args:
        x: (n, d) embeddings.
        k: how many rows; all n when there are fewer.
        score: (n,), higher = label sooner; `margin` in the paper.
        metric: `cosine` works on rows divided by their lengths.
        seed: of the first centres.
        clusters: of all rows; left out, 2 k.
        m: at least 1; 1.25 for clean pools to 10 for redundant ones. A longer one changes
            nothing once rows of k clusters are in it, unless constraints block some.
        memory: bytes that rows may take as float32; of more of them, samples are gathered, and passes read the rest.

    Returns:
        (min(k, n),) int64 distinct rows in order of choice.

    Raises:
        DataError: embeddings that are not finite, or a score that is NaN.
        QueryError: an m below 1, or a sample that doesn't fit `memory`.
    """
    rows, k = rows_of(x, metric), checked_count(k)
    vectors = clustered(Shards(rows, 1, LocalPieces, memory=memory), memory, "cluster_margin")
    return _spread(vectors, column(score, len(rows)), k, Constraints(k), checked_seed(seed), clusters, m)


def cluster_margin_strategy(candidates: Candidates, request: Request) -> Picked:
    """Run `cluster_margin` in a query."""
    score = scores(candidates, "cluster_margin")
    x = clustered(embeddings(candidates, "cluster_margin"), request.memory, "cluster_margin")
    count, m = request.args.get("clusters"), float(request.args.get("m", SHORTLIST))
    rows = _spread(x, score, request.budget, request.constraints, request.seed, count, m, candidates.kept)
    return Picked(rows, score[rows].astype(np.float64), passes=x.passes)


def _spread(
    x: Clustered, score: Array, budget: int, constraints: Constraints, seed: int, count: int | None, m: float, kept: Kept | None = None
) -> Array:
    if not m >= 1:
        raise QueryError(f"`m` is {m:g}, expected at least 1: the shortlist can't be shorter than the batch")
    if len(score) != len(x):
        raise QueryError(f"score has {len(score)} values, expected {len(x)}, one for each row")
    rows: list[Array] = [np.empty(0, dtype=np.int64)]
    left = min(budget, len(x))
    if left <= 0:
        return rows[0]
    cluster = fit_clusters(x, count or _CLUSTERS_A_ROW * budget, seed, iterations=_ITERATIONS, kept=kept).nearest
    order = top_k(score, len(x))
    order = order[~np.isin(order, constraints.taken)]
    while left > 0 and len(order):  # again only if constraints blocked so much of the shortlist
        length = math.ceil(min(m * left, len(order)))
        rows.append(walk(_turns(order[:length], cluster), left, constraints, lambda some: taken(x, some)))
        left -= len(rows[-1])
        order = order[length:]
    return np.concatenate(rows)


def _turns(rows: Array, cluster: Array) -> Array:
    """Order the rows, which are in order of score, by the rounds in which their clusters give them."""
    of = cluster[rows]
    by_cluster = np.argsort(of, kind="stable")
    _, start, size = np.unique(of[by_cluster], return_index=True, return_counts=True)
    turn = np.empty(len(rows), dtype=np.int64)
    turn[by_cluster] = np.arange(len(rows)) - np.repeat(start, size)
    result: Array = rows[np.argsort(turn, kind="stable")]
    return result

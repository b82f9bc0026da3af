"""The least certain rows, spread over clusters, small ones first: for large batches.

Citovsky et al., *Batch active learning at scale*, 2021; k-means here where they cluster hierarchically.
"""

from __future__ import annotations

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
_CLUSTERS_A_ROW = 4
_COVERED_A_ROW = 2
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
    """Choose the rows of highest score, one from each cluster in turn, the smallest cluster first.

    The m * k rows of the highest scores are shortlisted, or more, so that they come from at least 2 k clusters where there are that
    many. Then each cluster gives its row of the highest score, in ascending order of how many of its rows are shortlisted (ties to
    the lower cluster), and so on round after round.

    Args:
        x: (n, d) embeddings.
        k: how many rows; all n when there are fewer.
        score: (n,), higher = label sooner; `margin` in the paper.
        metric: `cosine` works on rows divided by their lengths.
        seed: of the first centres.
        clusters: of all rows; left out, 4 k.
        m: at least 1; 1.25 for clean pools to 10 for redundant ones.
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
    if m < 1:
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
        length = _shortlist(cluster[order], left, m)
        rows.append(walk(_turns(order[:length], cluster), left, constraints, lambda some: taken(x, some)))
        left -= len(rows[-1])
        order = order[length:]
    return np.concatenate(rows)


def _shortlist(cluster: Array, budget: int, m: float) -> int:
    """Choose how many rows to shortlist of those whose clusters these are, in order of score."""
    first = np.sort(np.unique(cluster, return_index=True)[1])
    wanted = _COVERED_A_ROW * budget
    return max(int(np.ceil(m * budget)), int(first[wanted - 1]) + 1 if len(first) >= wanted else 0)


def _turns(rows: Array, cluster: Array) -> Array:
    """Order the rows, which are in order of score, as the clusters give them in turn."""
    of = cluster[rows]
    by_cluster = np.argsort(of, kind="stable")
    _, start, inverse, size = np.unique(of[by_cluster], return_index=True, return_inverse=True, return_counts=True)
    turn = np.arange(len(rows)) - start[inverse]
    result: Array = rows[by_cluster][np.lexsort((inverse, size[inverse], turn))]
    return result

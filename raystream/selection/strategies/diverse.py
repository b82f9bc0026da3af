"""Score and diversity in one sum: rows that are worth a label, or far from those chosen, or some of both.

Carbonell and Goldstein, *The use of MMR, diversity-based reranking for reordering documents and producing
summaries*, 1998, with distances in place of similarities.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from raystream.errors import QueryError
from raystream.selection.arguments import column, count, labelled_of, shards_of
from raystream.selection.constraints import Constraints
from raystream.selection.lazy_bounds import Gain
from raystream.selection.rows import Array, Metric
from raystream.selection.shards import Shards
from raystream.selection.strategies.core_set import FarthestFirst, covering_radius, farthest_first
from raystream.selection.strategy import Candidates, Picked, Request, embeddings, scores
from raystream.selection.weights import checked_weights


def diverse(
    x: ArrayLike, k: int, *, score: ArrayLike, labelled: ArrayLike | None = None, metric: Metric = "euclidean", mix: float = 0.5
) -> Array:
    """Choose k rows by (1 - mix) * score + mix * distance to the nearest row chosen before or labelled.

    Both are divided by their largest value at the start; with nothing labelled the first distance is to
    the mean of all rows. A part whose largest value is 0 counts for nothing. Ties go to the lower row.

    Args:
        x: (n, d) embeddings; taken as float32 unless float16.
        k: how many rows; all n when there are fewer.
        score: (n,), at least 0, higher = label sooner.
        labelled: (m, d) rows that count as chosen already.
        metric: `cosine` works on rows divided by their lengths.
        mix: from 0, the score alone, to 1, the distance alone.

    Returns:
        (min(k, n),) int64 rows in order of choice.

    Raises:
        DataError: embeddings that are not finite, or not as wide as the labelled ones.
        QueryError: a negative score, or a mix outside 0 .. 1.
    """
    shards = shards_of(x, metric)
    return _mixed(shards, count(k), column(score, len(shards)), mix, labelled_of(labelled, shards.width, metric), None).rows


def diverse_strategy(candidates: Candidates, request: Request) -> Picked:
    """Run `diverse` in a query."""
    shards, score = embeddings(candidates, "diverse"), scores(candidates, "diverse")
    found = _mixed(shards, request.budget, score, request.mix, request.labelled, request.constraints)
    return Picked(found.rows, found.gain, found.distance, found.passes + 1)


def _mixed(shards: Shards, k: int, score: Array, mix: float, labelled: Array | None, constraints: Constraints | None) -> FarthestFirst:
    if not 0 <= mix <= 1:
        raise QueryError(f"`mix` is {mix}, expected a number from 0 to 1")
    n = len(shards)
    checked = checked_weights(score, n)
    most = float(checked.max(initial=0.0))
    reach = covering_radius(shards, labelled)
    offset = (1 - mix) * (checked / most) if most > 0 else np.zeros(n)
    gain = Gain(np.full(n, mix / reach if reach > 0 else 0.0), offset)
    exclude = None if constraints is None else constraints.taken
    return farthest_first(shards, k, gain=gain, labelled=labelled, exclude=exclude, constraints=constraints)

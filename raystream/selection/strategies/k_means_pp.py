"""k-means++ seeding as a batch: rows drawn with probability proportional to their squared distance to those before.

Arthur and Vassilvitskii, *k-means++: the advantages of careful seeding*, 2007.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from raystream.selection.arguments import checked_seed, count, labelled_of, shards_of
from raystream.selection.bounds import Precision
from raystream.selection.constraints import Constraints
from raystream.selection.d_squared import BLOCK, DSquared, DSquaredPiece, d_squared
from raystream.selection.geometry import Euclidean
from raystream.selection.rows import Array, Metric
from raystream.selection.shards import Shards
from raystream.selection.strategies.core_set import prepare
from raystream.selection.strategy import Candidates, Picked, Request, embeddings


def k_means_pp(x: ArrayLike, k: int, *, labelled: ArrayLike | None = None, metric: Metric = "euclidean", seed: int = 0) -> Array:
    """Draw k rows, each with probability proportional to D, its squared distance to the nearest row drawn before or labelled.

    With nothing labelled the first is drawn uniformly. The draws depend on the seed and the data alone.

    Args:
        x: (n, d) embeddings; taken as float32 unless float16.
        k: how many rows.
        labelled: (m, d) rows that count as drawn already.
        metric: `cosine` works on rows divided by their lengths.
        seed: another seed draws other rows.

    Returns:
        (b,) int64 row numbers in order of choice; b < min(k, n) only when the rest are equal to chosen or labelled rows.

    Raises:
        DataError: embeddings that are not finite, or not as wide as the labelled ones.
    """
    shards = shards_of(x, metric)
    return sample(shards, count(k), labelled=labelled_of(labelled, shards.width, metric), seed=checked_seed(seed)).rows


def sample(
    shards: Shards,
    k: int,
    *,
    labelled: Array,
    seed: int = 0,
    constraints: Constraints | None = None,
    precision: Precision = "auto",
    block: int = BLOCK,
) -> DSquared:
    """Run `k_means_pp` over shards; `labelled` (m, d) float32 in the metric's space."""
    if len(shards) == 0 or k <= 0:
        return DSquared(np.empty(0, dtype=np.int64), np.empty(0), 0, 0, 0, False)
    geometry = Euclidean(prepare(shards, labelled, precision)[0])
    pieces = shards.pieces(DSquaredPiece, block=block)
    return d_squared(
        pieces, len(shards), k, geometry, memory=shards.memory, block=block, seed=seed, centres=(labelled,), constraints=constraints
    )


def picked(found: DSquared, distance: Array | None) -> Picked:
    """Answer as a strategy; there is a note when what is left repeats what was chosen."""
    note = f"only {len(found.rows)} rows differ from each other and from those already covered" if found.distinct else None
    facts = {"proposals": found.proposals, "refinements": found.refinements}
    return Picked(found.rows, found.gain, distance, found.passes, note, facts=facts)


def k_means_pp_strategy(candidates: Candidates, request: Request) -> Picked:
    """Run `k_means_pp` in a query; the gain is the squared distance."""
    shards = embeddings(candidates, "k_means_pp")
    labelled = np.empty((0, shards.width), dtype=np.float32) if request.labelled is None else request.labelled
    found = sample(shards, request.budget, labelled=labelled, seed=request.seed, constraints=request.constraints)
    return picked(found, np.sqrt(found.gain))

"""BADGE: D-squared sampling of the gradients that labels would give the last layer, so that a batch is uncertain and diverse.

Ash, Zhang, Krishnamurthy, Langford and Agarwal, *Deep batch active learning by diverse, uncertain gradient
lower bounds*, 2020. `gradients` has the formulas.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from raystream.errors import DataError, QueryError
from raystream.selection.arguments import checked_seed, count, optional, shards_of
from raystream.selection.arguments import embeddings as checked
from raystream.selection.bounds import Precision, has_bfloat16_units
from raystream.selection.constraints import Constraints
from raystream.selection.d_squared import DSquared, d_squared
from raystream.selection.d_squared_piece import BLOCK, DSquaredPiece
from raystream.selection.geometry import Vectors, joined
from raystream.selection.gradients import Gradients
from raystream.selection.k_means_pp import picked
from raystream.selection.rows import Array, Rows, as_rows, not_finite, vectors
from raystream.selection.shards import Shards
from raystream.selection.strategy import Candidates, Picked, Request, embeddings


def badge(
    x: ArrayLike,
    k: int,
    *,
    probabilities: ArrayLike,
    labelled: ArrayLike | None = None,
    labelled_probabilities: ArrayLike | None = None,
    seed: int = 0,
    bias: bool = True,
) -> Array:
    """Draw k rows, each with probability proportional to the squared distance of its gradient to those drawn before.

    The first is the row with the largest gradient, the lowest at a tie, unless there are labelled rows.

    Args:
        x: (n, d) input of the last layer; taken as float32 unless float16.
        k: how many rows.
        probabilities: (n, c) of the classes.
        labelled: (m, d) of labelled rows, if these count as drawn already; they don't in the paper.
        labelled_probabilities: (m, c), theirs.
        seed: another seed draws other rows.
        bias: the last layer has a bias, which is part of the gradient.

    Returns:
        (b,) int64 row numbers in order of choice; b < min(k, n) only when the gradients of the rest are equal to chosen ones.

    Raises:
        DataError: numbers that are not finite, or probabilities above 1, or shapes that don't fit.
    """
    shards, p = shards_of(x), as_rows(checked(probabilities, "probabilities"))
    fixed = optional(labelled_probabilities, "labelled_probabilities"), optional(labelled, "labelled")
    centres = _vectors(*fixed, p.width, shards)
    return sample(shards, p, count(k), centres=centres, bias=bias, seed=checked_seed(seed)).rows


def _vectors(p: Array | None, h: Array | None, classes: int, shards: Shards) -> Vectors:
    """Labelled rows, checked."""
    found = vectors(p, classes, "euclidean", "labelled probabilities'"), vectors(h, shards.width, shards.metric)
    if len(found[0]) != len(found[1]):
        raise DataError(f"{len(found[0])} labelled rows have probabilities and {len(found[1])} have embeddings; expected both of each")
    return found


def sample(
    shards: Shards,
    probabilities: Rows,
    k: int,
    *,
    centres: Vectors,
    bias: bool = True,
    seed: int = 0,
    constraints: Constraints | None = None,
    precision: Precision = "auto",
    block: int = BLOCK,
) -> DSquared:
    """`badge` over shards; `centres` are probabilities (m, c) and embeddings (m, d), float32, that are covered."""
    n = len(shards)
    if len(probabilities) != n:
        raise DataError(f"{len(probabilities)} candidates have probabilities and {n} have embeddings; expected both of each")
    if n == 0 or k <= 0:
        return DSquared(np.empty(0, dtype=np.int64), np.empty(0), 0, 0, 0, False)
    pieces = shards.pieces(DSquaredPiece, beside=[probabilities], block=block)
    largest = _survey(pieces.call("survey"))
    if len(centres[1]):
        largest = max(largest, float(np.abs(centres[1]).max(initial=0.0)))
    bfloat16 = has_bfloat16_units() if precision == "auto" else precision == "bfloat16"
    geometry = Gradients.fit(probabilities.width, shards.width, largest, bias=bias, bfloat16=bfloat16)
    return d_squared(
        pieces,
        n,
        k,
        geometry,
        memory=shards.memory,
        block=block,
        seed=seed,
        centres=centres,
        origin=geometry.origin,
        constraints=constraints,
    )


def _survey(found: list[list[tuple[float, Array]]]) -> float:
    """The largest absolute value of the embeddings; everything is checked."""
    bad_p, bad_h = (np.concatenate([source[number][1] for source in found]) for number in range(2))
    if len(bad_p):
        raise DataError(
            f"{len(bad_p)} candidates have probabilities that are NaN or infinite, first at row {bad_p[0]}; expected numbers from 0 to 1"
        )
    if len(bad_h):
        raise not_finite(len(bad_h), [int(row) for row in bad_h[:3]])
    highest = max(source[0][0] for source in found)
    if highest > 1.01:
        raise DataError(f"badge got probabilities up to {highest:g}, expected numbers from 0 to 1; are they logits?")
    return max(source[1][0] for source in found)


def badge_strategy(candidates: Candidates, request: Request) -> Picked:
    """`badge` in a query; the gain is the squared distance of gradients, that of the first pick the squared norm."""
    shards = embeddings(candidates, "badge")
    p = candidates.probabilities
    if p is None:
        raise QueryError("badge needs class `probabilities`, but the candidates have none")
    args = dict(request.args)
    covered = args.pop("covered", False)
    taken = request.constraints.taken  # they are part of this batch
    centres: Vectors = p.gather(taken), shards.gather(taken)
    labelled = 0 if candidates.labelled is None else len(candidates.labelled)
    if covered and labelled:
        if candidates.labelled_probabilities is None:
            raise QueryError("`covered` is true, which needs `labelled_probabilities`, but there are none")
        fixed = _vectors(candidates.labelled_probabilities, candidates.labelled, p.width, shards)
        centres = joined([fixed, centres])
    found = sample(shards, p, request.budget, centres=centres, seed=request.seed, constraints=request.constraints, **args)
    return picked(found, None)

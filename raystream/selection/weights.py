"""Acquisition scores as weights: what a score must be to multiply a distance or to pull a centre."""

from __future__ import annotations

import numpy as np

from raystream.errors import QueryError
from raystream.selection.rows import Array


def checked_weights(score: Array, n: int) -> Array:
    """Check (n,) scores that can be weights, and return them as float64; see `check_weights`."""
    check_weights(score, n)
    return np.ascontiguousarray(score, dtype=np.float64)


def check_weights(score: Array, n: int) -> None:
    """See that (n,) scores can be weights: finite and at least 0.

    Raises:
        QueryError: another shape, or scores that are negative or not finite.
    """
    score = np.asarray(score)
    if score.shape != (n,):
        raise QueryError(f"`score` has shape {score.shape}, expected ({n},), one for each candidate")
    negative = int(np.count_nonzero(score < 0))
    if negative:
        raise QueryError(
            f"{negative} of {n} candidates have a negative score, the lowest {np.nanmin(score):g}; a score used as a weight must be >= 0, "
            "and energy can be negative: take another `score`"
        )
    bad = n - int(np.count_nonzero(np.isfinite(score)))
    if bad:
        raise QueryError(f"{bad} of {n} candidates have a score that is NaN or infinite; a score used as a weight must be a finite number")

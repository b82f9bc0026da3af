"""Acquisition scores as weights: what a score must be to multiply a distance or to pull a centre."""

from __future__ import annotations

import numpy as np

from raystream.errors import QueryError
from raystream.selection.rows import Array


def checked_weights(score: Array, n: int) -> Array:
    """Check (n,) float64 scores that can be weights: finite and at least 0.

    Raises:
        QueryError: another shape, or scores that are negative or not finite.
    """
    wide = np.ascontiguousarray(score, dtype=np.float64)
    if wide.shape != (n,):
        raise QueryError(f"`score` has shape {wide.shape}, expected ({n},), one for each candidate")
    negative = int(np.count_nonzero(wide < 0))
    if negative:
        raise QueryError(
            f"{negative} of {n} candidates have a negative score, the lowest {np.nanmin(wide):g}; a score used as a weight must be >= 0, "
            "and energy can be negative: take another `score`"
        )
    bad = n - int(np.count_nonzero(np.isfinite(wide)))
    if bad:
        raise QueryError(f"{bad} of {n} candidates have a score that is NaN or infinite; a score used as a weight must be a finite number")
    return wide

"""What a batch that was drawn with known probabilities says about a model's loss over all rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from raystream.arrays import numbers
from raystream.errors import DataError, QueryError


def lure(losses: ArrayLike, probabilities: ArrayLike, n: int) -> float:
    """Compute the mean loss over the n rows that were eligible at the first draw, from m of them drawn without replacement.

    Unbiased for a model that was **not** trained on these rows, where each draw's probability was above 0 for every row left. Only the
    longest beginning of the draws of which all are labelled may be given. A selection has what it takes: its rows by `turn`, their
    `probability`, and `counts.eligible` of its manifest.

    Args:
        losses: (m,) of the drawn rows, in the order of drawing.
        probabilities: (m,) of each draw, given those before it; above 0, at most 1.
        n: how many rows were eligible at the first draw, at least m.

    Raises:
        DataError: losses or probabilities that are no numbers, probabilities outside (0, 1], or other lengths.
        QueryError: n is below m.

    References:
        Farquhar, Gal and Rainforth, On Statistical Bias in Active Learning, 2021; Kossen et al., Active Testing, 2021.
    """
    loss, q = numbers(losses, "losses").astype(np.float64), numbers(probabilities, "probabilities").astype(np.float64)
    if loss.ndim != 1 or loss.shape != q.shape or not len(loss):
        raise DataError(f"`losses` has shape {loss.shape} and `probabilities` {q.shape}, expected (m,) both, and at least one draw")
    bad = np.flatnonzero(~((q > 0) & (q <= 1)) | ~np.isfinite(loss))
    if len(bad):
        raise DataError(
            f"draw {bad[0]} has loss {loss[bad[0]]} and probability {q[bad[0]]}, expected a finite loss, and a probability in (0, 1]"
        )
    m = len(loss)
    if n < m:
        raise QueryError(f"`n` is {n}, but {m} rows were drawn from them, expected at least as many")
    if m == n:
        return float(loss.mean())
    before = np.arange(m)
    weight = 1 + (n - m) / (n - before - 1) * (1 / ((n - before) * q) - 1)
    return float((weight * loss).mean())

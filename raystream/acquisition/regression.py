"""Scores of models that predict numbers, from members: higher = label sooner."""

from __future__ import annotations

from numpy.typing import ArrayLike

from raystream.acquisition.inputs import InKind, checked_predictions, in_kind


def regression_variance(predictions: ArrayLike) -> InKind:
    """How much members disagree on numbers: the population variance over members, summed over outputs.

    Outputs on different scales should be divided by their scale first, else the largest decides.

    Args:
        predictions: (n_rows, n_members) or (n_rows, n_members, n_outputs).

    Returns:
        float64 (n_rows,), exactly 0 where members agree; NaN where a row holds NaN or infinity. A tensor where one is given, else a NumPy
        array.

    References:
        Burbidge, Rowland and King, Active Learning for Regression Based on Query by Committee, 2007.
    """
    wide = checked_predictions(predictions).double()
    if wide.ndim == 2:
        wide = wide.unsqueeze(2)
    apart = wide - wide[:, :1]  # exact for equal members, and harmless otherwise: the first is one of the data
    return in_kind((apart - apart.mean(dim=1, keepdim=True)).square().mean(dim=1).sum(dim=1), predictions)

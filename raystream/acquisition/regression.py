"""Scores of models that predict numbers, from members: higher = label sooner."""

from __future__ import annotations

from torch import Tensor

from raystream.acquisition.inputs import checked_predictions


def regression_variance(predictions: Tensor) -> Tensor:
    """How much members disagree on numbers: the population variance over members, summed over outputs.

    Outputs on different scales should be divided by their scale first, else the largest decides.

    Args:
        predictions: floating, (n_rows, n_members) or (n_rows, n_members, n_outputs).

    Returns:
        float64 (n_rows,), exactly 0 where members agree; NaN where a row holds NaN or infinity.

    References:
        Burbidge, Rowland and King, Active Learning for Regression Based on Query by Committee, 2007.
    """
    wide = checked_predictions(predictions).double()
    if wide.ndim == 2:
        wide = wide.unsqueeze(2)
    apart = wide - wide[:, :1]  # exact for equal members, and harmless otherwise: the first is one of the data
    return (apart - apart.mean(dim=1, keepdim=True)).square().mean(dim=1).sum(dim=1)

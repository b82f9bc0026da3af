"""Scores from the gradient of the last layer, in closed form: `logits` and the layer's inputs, no backward pass.

With p = softmax(z / T) and label y, the gradient of -log p_y in the last layer's weights is (p - e_y) ⊗ h / T, and in weights and
bias (p - e_y) ⊗ h~ / T, h~ = [h; 1]; its length is ‖p - e_y‖ ‖h~‖ / T. With j the likeliest class and the odds w of the others:

    ‖p - e_j‖ = sqrt(rest² + square) / whole
    ‖p - e_y‖ = sqrt(1 + square - 2 w_y whole + whole²) / whole       which is at least 1/2: nothing cancels
"""

from __future__ import annotations

import torch
from torch import Tensor

from raystream.acquisition.inputs import checked_embedding
from raystream.acquisition.odds import Odds, by_blocks


def egl(logits: Tensor, h: Tensor, *, bias: bool = True, temperature: float = 1.0) -> Tensor:
    """Expected gradient length of the last layer, sum_y p_y ‖p - e_y‖ ‖h~‖ / T: how far a step on this row would move the model.

    Args:
        logits: floating, (n_rows, n_classes) with at least two classes, before temperature.
        h: floating, (n_rows, n_dimensions), the inputs of the layer that gave the logits; or their lengths, (n_rows, 1), which are all
            that counts of them and little to keep until many rows are scored at once.
        bias: whether that layer has a bias: h~ = [h; 1], else h~ = h.
        temperature: T in p = softmax(z / T).

    Returns:
        (n_rows,), the widest dtype of logits and h, float32 at least; NaN where a row's logits hold NaN or +inf.

    References:
        Settles, Craven and Ray, Multiple-Instance Active Learning, 2008.
    """
    factor = by_blocks(_expected_factor, logits, temperature)
    return factor * _length(checked_embedding(h, len(logits)), bias) / temperature


def badge_norm(logits: Tensor, h: Tensor, *, bias: bool = True, temperature: float = 1.0) -> Tensor:
    """Length of BADGE's gradient embedding, ‖p - e_top‖ ‖h~‖: the gradient if the prediction were the label.

    It is the length of `badge_factors` ⊗ h~, and like them not divided by T. Args and Returns as `egl`.

    References:
        Ash, Zhang, Krishnamurthy, Langford and Agarwal, Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds, 2020.
    """
    return by_blocks(_top_factor, logits, temperature) * _length(checked_embedding(h, len(logits)), bias)


def badge_factors(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The first factor of BADGE's gradient embedding a ⊗ h~: a = p - e_top, top the likeliest class, the lowest at a tie.

    The top class holds -rest / (1 + rest), exact down to the smallest floats, where p - 1 would be 0.

    Args:
        logits: floating, (n_rows, n_classes) with at least two classes.
        temperature: T in p = softmax(z / T).

    Returns:
        (n_rows, n_classes), float32 or the wider dtype of the logits; each row sums to 0.

    References:
        Ash, Zhang, Krishnamurthy, Langford and Agarwal, 2020.
    """
    return by_blocks(_factors, logits, temperature)


def _expected_factor(odds: Odds) -> Tensor:
    """sum_y p_y ‖p - e_y‖, (b,)."""
    others = (odds.weights * -2).mul_(odds.whole).add_(1 + odds.square + odds.whole.square()).sqrt_().mul_(odds.weights)
    top = (odds.rest.square() + odds.square).sqrt()
    return ((top + others.sum(dim=1, keepdim=True)) / odds.whole.square()).squeeze(1)


def _top_factor(odds: Odds) -> Tensor:
    """‖p - e_j‖, (b,)."""
    return ((odds.rest.square() + odds.square).sqrt() / odds.whole).squeeze(1)


def _factors(odds: Odds) -> Tensor:
    """p - e_j, (b, c)."""
    return odds.weights.scatter(1, odds.winner, -odds.rest).div_(odds.whole)


def _length(h: Tensor, bias: bool) -> Tensor:
    """‖h~‖, (n,)."""
    length = torch.linalg.vector_norm(h, dim=1)
    return torch.hypot(length, length.new_ones(())) if bias else length

"""Scores from the gradient of the last layer, in closed form: `logits` and the layer's inputs, no backward pass.

With p = softmax(z / T) and label y, the gradient of -log p_y in the last layer's weights is (p - e_y) ⊗ h / T, and in weights and
bias (p - e_y) ⊗ h~ / T, h~ = [h; 1]; its length is ‖p - e_y‖ ‖h~‖ / T. With j the likeliest class, w_c = exp((z_c - z_j) / T) for the
others and w_j = 0, rest = sum w, square = sum w² and whole = 1 + rest:

    ‖p - e_j‖ = sqrt(rest² + square) / whole
    ‖p - e_y‖ = sqrt(1 + square - 2 w_y whole + whole²) / whole       which is at least 1/2: nothing cancels

What depends on logits alone is computed in float64, which costs little beside a forward pass and leaves sure rows in their order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from raystream.acquisition.inputs import checked_embedding, checked_logits, checked_temperature
from raystream.acquisition.member_parts import total

_BLOCK = 1 << 16
"""Numbers of a block of logits, which stay in a processor's cache."""


@dataclass(frozen=True)
class _Odds:
    """float64, rows innermost."""

    weights: Tensor  # (c, b), w
    winner: Tensor  # (1, b), j
    rest: Tensor  # (b,)
    square: Tensor  # (b,)
    whole: Tensor  # (b,)


def egl(logits: Tensor, h: Tensor, *, bias: bool = True, temperature: float = 1.0) -> Tensor:
    """Expected gradient length of the last layer, sum_y p_y ‖p - e_y‖ ‖h~‖ / T: how far a step on this row would move the model.

    Args:
        logits: floating, (n_rows, n_classes) with at least two classes, before temperature.
        h: floating, (n_rows, n_dimensions), the inputs of the layer that gave the logits.
        bias: whether that layer has a bias: h~ = [h; 1], else h~ = h.
        temperature: T in p = softmax(z / T).

    Returns:
        (n_rows,), the widest dtype of logits and h, float32 at least; NaN where a row's logits hold NaN or +inf.

    References:
        Settles, Craven and Ray, Multiple-Instance Active Learning, 2008.
    """
    factor = _by_blocks(_expected_factor, logits, temperature)
    return factor * _length(checked_embedding(h, len(logits)), bias) / temperature


def badge_norm(logits: Tensor, h: Tensor, *, bias: bool = True, temperature: float = 1.0) -> Tensor:
    """Length of BADGE's gradient embedding, ‖p - e_top‖ ‖h~‖: the gradient if the prediction were the label.

    It is the length of `badge_factors` ⊗ h~, and like them not divided by T. Args and Returns as `egl`.

    References:
        Ash, Zhang, Krishnamurthy, Langford and Agarwal, Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds, 2020.
    """
    return _by_blocks(_top_factor, logits, temperature) * _length(checked_embedding(h, len(logits)), bias)


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
    return _by_blocks(_factors, logits, temperature)


def _by_blocks(function: Callable[[_Odds], Tensor], logits: Tensor, temperature: float) -> Tensor:
    logits = checked_logits(logits)
    checked_temperature(temperature)
    blocks = torch.split(logits, max(64, _BLOCK // logits.shape[1]))
    return torch.cat([function(_odds(block, temperature)).to(logits.dtype) for block in blocks])


def _odds(logits: Tensor, temperature: float) -> _Odds:
    below = logits.t().to(torch.float64, copy=True, memory_format=torch.contiguous_format)
    top, winner = below.max(dim=0, keepdim=True)
    below -= top + top * 0  # NaN when not finite, and so is all that follows
    if temperature != 1.0:
        below /= temperature
    weights = below.exp_().scatter_(0, winner, 0.0)
    rest = total(weights)
    return _Odds(weights, winner, rest, total(weights.square()), 1 + rest)


def _expected_factor(odds: _Odds) -> Tensor:
    """sum_y p_y ‖p - e_y‖, (b,)."""
    others = (odds.weights * -2).mul_(odds.whole).add_(1 + odds.square + odds.whole.square()).sqrt_().mul_(odds.weights)
    return ((odds.rest.square() + odds.square).sqrt() + total(others)) / odds.whole.square()


def _top_factor(odds: _Odds) -> Tensor:
    """‖p - e_j‖, (b,)."""
    return (odds.rest.square() + odds.square).sqrt() / odds.whole


def _factors(odds: _Odds) -> Tensor:
    """p - e_j, (b, c)."""
    return odds.weights.scatter(0, odds.winner, -odds.rest.unsqueeze(0)).div_(odds.whole).t().contiguous()


def _length(h: Tensor, bias: bool) -> Tensor:
    """‖h~‖, (n,)."""
    length = torch.linalg.vector_norm(h, dim=1)
    return torch.hypot(length, length.new_ones(())) if bias else length

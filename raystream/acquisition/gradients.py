"""Scores from the gradient of the last layer, in closed form: `logits` and the layer's inputs, no backward pass.

With p = softmax(z / T) and label y, the gradient of -log p_y in the last layer's weights is (p - e_y) ⊗ h / T, and in weights and
bias (p - e_y) ⊗ h~ / T, h~ = [h; 1]; its length is ‖p - e_y‖ ‖h~‖ / T. With j the likeliest class and the odds w of the others:

    ‖p - e_j‖ = sqrt(rest² + square) / whole
    ‖p - e_y‖ = sqrt(1 + square - 2 w_y whole + whole²) / whole       which is at least 1/2: nothing cancels
"""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from raystream.acquisition.inputs import InKind, checked_embedding, given_logits, in_kind
from raystream.acquisition.odds import Odds, by_blocks


def egl(
    logits: ArrayLike | None,
    h: ArrayLike,
    *,
    probabilities: ArrayLike | None = None,
    bias: bool = True,
    temperature: float = 1.0,
) -> InKind:
    """Expected gradient length of the last layer, sum_y p_y ‖p - e_y‖ ‖h~‖ / T: how far a step on this row would move the model.

    Args:
        logits: (n_rows, n_classes) with at least two classes, before temperature; None with probabilities.
        h: (n_rows, n_dimensions), the inputs of the layer that gave the logits; or their lengths, (n_rows, 1), which are all
            that counts of them and little to keep until many rows are scored at once.
        probabilities: (n_rows, n_classes) that sum to 1, instead of logits.
        bias: whether that layer has a bias: h~ = [h; 1], else h~ = h.
        temperature: T in p = softmax(z / T).

    Returns:
        (n_rows,), the widest dtype of logits and h, float32 at least; NaN where a row's logits hold NaN or +inf. A tensor where one is
        given, else a NumPy array.

    References:
        Settles, Craven and Ray, Multiple-Instance Active Learning, 2008.
    """
    return in_kind(expected_length(given_logits(logits, probabilities), h, bias, temperature), logits, h, probabilities)


def expected_length(logits: Tensor, h: ArrayLike, bias: bool, temperature: float) -> Tensor:
    """`egl` of a block of a model's outputs, whatever they are."""
    return by_blocks(_expected_factor, logits, temperature) * _length(checked_embedding(h, len(logits)), bias) / temperature


def badge_norm(
    logits: ArrayLike | None,
    h: ArrayLike,
    *,
    probabilities: ArrayLike | None = None,
    bias: bool = True,
    temperature: float = 1.0,
) -> InKind:
    """Length of BADGE's gradient embedding, ‖p - e_top‖ ‖h~‖: the gradient if the prediction were the label.

    It is the length of `badge_factors` ⊗ h~, and like them not divided by T. Args and Returns as `egl`.

    References:
        Ash, Zhang, Krishnamurthy, Langford and Agarwal, Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds, 2020.
    """
    return in_kind(top_length(given_logits(logits, probabilities), h, bias, temperature), logits, h, probabilities)


def top_length(logits: Tensor, h: ArrayLike, bias: bool, temperature: float) -> Tensor:
    """`badge_norm` of a block of a model's outputs, whatever they are."""
    return by_blocks(_top_factor, logits, temperature) * _length(checked_embedding(h, len(logits)), bias)


def badge_factors(logits: ArrayLike | None = None, *, probabilities: ArrayLike | None = None, temperature: float = 1.0) -> InKind:
    """The first factor of BADGE's gradient embedding a ⊗ h~: a = p - e_top, top the likeliest class, the lowest at a tie.

    The top class holds -rest / (1 + rest), exact down to the smallest floats, where p - 1 would be 0.

    Args:
        logits: (n_rows, n_classes) with at least two classes.
        probabilities: (n_rows, n_classes) that sum to 1, instead of logits.
        temperature: T in p = softmax(z / T).

    Returns:
        (n_rows, n_classes), float32 or the wider dtype of the logits; each row sums to 0. A tensor where one is given, else a NumPy array.

    References:
        Ash, Zhang, Krishnamurthy, Langford and Agarwal, 2020.
    """
    return in_kind(by_blocks(factors, given_logits(logits, probabilities), temperature), logits, probabilities)


def _expected_factor(odds: Odds) -> Tensor:
    """sum_y p_y ‖p - e_y‖, (b,)."""
    others = (odds.weights * -2).mul_(odds.whole).add_(1 + odds.square + odds.whole.square()).sqrt_().mul_(odds.weights)
    top = (odds.rest.square() + odds.square).sqrt()
    return ((top + others.sum(dim=1, keepdim=True)) / odds.whole.square()).squeeze(1)


def _top_factor(odds: Odds) -> Tensor:
    """‖p - e_j‖, (b,)."""
    return ((odds.rest.square() + odds.square).sqrt() / odds.whole).squeeze(1)


def factors(odds: Odds) -> Tensor:
    """p - e_j, (b, c)."""
    return odds.weights.scatter(1, odds.winner, -odds.rest).div_(odds.whole)


def _length(h: Tensor, bias: bool) -> Tensor:
    """‖h~‖, (n,)."""
    length = torch.linalg.vector_norm(h, dim=1)
    return torch.hypot(length, length.new_ones(())) if bias else length

"""Softmax as odds against the likeliest class, in float64: what scores are made of that need every class, not three sums.

With j the likeliest class, the lowest at a tie, and T the temperature:

    w_c = exp((z_c - z_j) / T),  w_j = 0;   rest = sum w;   square = sum w²;   whole = 1 + rest
    p_c = w_c / whole,  p_j = 1 / whole,  1 - p_j = rest / whole

float64 costs little beside a forward pass, and leaves rows in their order that are surer than float32 can say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from raystream.acquisition.inputs import checked_logits, checked_temperature

_BLOCK = 1 << 16
"""Numbers of a block of logits, which stay in a processor's cache."""


@dataclass(frozen=True)
class Odds:
    """Of a block of b rows, float64; NaN in rows that hold NaN or +inf, or nothing but -inf."""

    weights: Tensor  # (b, c), w
    winner: Tensor  # (b, 1), j
    rest: Tensor  # (b, 1)
    square: Tensor  # (b, 1)
    whole: Tensor  # (b, 1)


def by_blocks(function: Callable[[Odds], Tensor], logits: Tensor, temperature: float) -> Tensor:
    """What a function makes of the odds of (n, c) logits, blocks of rows joined, in float32 or the wider dtype of the logits."""
    logits = checked_logits(logits)
    checked_temperature(temperature)
    blocks = torch.split(logits, max(64, _BLOCK // logits.shape[1]))
    return torch.cat([function(_odds(block, temperature)).to(logits.dtype) for block in blocks])


def _odds(logits: Tensor, temperature: float) -> Odds:
    top, winner = logits.max(dim=1, keepdim=True)
    top = top.double()
    below = logits.double() - (top + top * 0)  # NaN when not finite, and so is all that follows
    if temperature != 1.0:
        below /= temperature
    weights = below.exp_().scatter_(1, winner, 0.0)
    rest = weights.sum(dim=1, keepdim=True)
    return Odds(weights, winner, rest, weights.square().sum(dim=1, keepdim=True), 1 + rest)

"""What scores of K members share, computed once per block of rows, in float64 with the rows innermost.

With l_kc the log-probability that member k gives class c, everything follows from what lies below the largest member of each class:

    largest = max over k of l_kc,   below = l - largest <= 0,   ratio = exp(below),   share = mean over k of ratio
    log p_mean = logsumexp over k of l_k - log K = largest + log(share)

Equal members give below = 0, so that their disagreement is exactly 0 and not what rounding leaves of a difference. Sums are
taken pairwise and elementwise, so that a row's score doesn't depend on the rows beside it, not even in its last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from raystream.errors import QueryError

UNDERFLOW = -1000.0
"""exp() of it is 0 in float64; being finite, it makes 0 * log 0 come out as 0."""

_BLOCK = 1 << 18
"""Numbers of a block of rows: what is computed from them stays in a processor's cache, or within some MB."""

_LEAST_ROWS = 64
"""Of a block, however many its members and classes: the rows are the axis along which the processor computes."""

_SLACK = 0.05
"""How far probabilities may be from summing to 1: bfloat16 is some thousandths off, logits given by mistake are far."""


@dataclass(frozen=True)
class MemberParts:
    """What the scores of one block share, in float64 with rows innermost."""

    members: Tensor  # (k, c, b), as given
    largest: Tensor  # (c, b)
    below: Tensor  # (k, c, b)
    ratio: Tensor  # (k, c, b)
    share: Tensor  # (c, b)
    broken: Tensor  # (b,), 0, or NaN where a row holds NaN or infinity

    @cached_property
    def mean(self) -> Tensor:
        """p_mean, (c, b)."""
        return self.largest.exp() * self.share

    @cached_property
    def log_mean(self) -> Tensor:
        """log p_mean, (c, b); -inf where it is 0."""
        return self.largest + self.log_share

    @cached_property
    def log_share(self) -> Tensor:
        """(c, b), -inf where every member rules the class out."""
        return self.share.log()

    @cached_property
    def votes(self) -> Tensor:
        """The part of the members that votes for each class, (c, b)."""
        winners = self.members.max(dim=1).indices
        counts = torch.zeros_like(self.largest)
        counts.scatter_add_(0, winners, counts.new_ones(()).expand_as(winners))
        return counts / len(self.members) + self.broken

    @cached_property
    def variances(self) -> Tensor:
        """Over members, of the probability of each class, (c, b).

        From deviations from the largest member, which is one of the data, so that the difference loses at most a factor K.
        """
        deviation = self.ratio - 1
        mean_square = mean(deviation.square())
        return (mean_square - mean(deviation).square()).clamp_(min=0) * (2 * self.largest).exp()


def blocks(log_probs: Tensor) -> Iterator[tuple[slice, MemberParts]]:
    """The parts of (n, k, c) log-probabilities, block by block; an error if a row of them is no distribution."""
    for rows in row_blocks(log_probs):
        members = rows_innermost(log_probs[rows]).double()
        largest = members.amax(dim=0).clamp_(min=UNDERFLOW)
        below = (members - largest).clamp_(min=UNDERFLOW)
        ratio = below.exp()
        share = mean(ratio)
        mass = total(largest.exp() * share)
        check_mass(mass, rows.start)
        yield rows, MemberParts(members, largest, below, ratio, share, broken=mass * 0)


def check_mass(mass: Tensor, start: int = 0) -> None:
    """Raise QueryError unless the probabilities of each row, counted from `start`, sum to about 1; NaN and infinity pass."""
    wrong = torch.nonzero((mass - 1 + mass * 0).abs() > _SLACK).flatten()
    if len(wrong):
        row = int(wrong[0])
        raise QueryError(
            f"the probabilities of row {start + row} sum to {float(mass[row]):.6g} in the mean of its members, expected 1; "
            "give log-probabilities: log_probabilities(logits), or the logarithm of probabilities"
        )


def row_blocks(samples: Tensor) -> Iterator[slice]:
    """Runs of rows of (n, k, c) samples that are computed at once."""
    n, members, classes = samples.shape
    numbers = _BLOCK if samples.device.type == "cpu" else 64 * _BLOCK
    size = max(_LEAST_ROWS, numbers // (members * classes))
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def rows_innermost(samples: Tensor) -> Tensor:
    """(b, k, c) -> (k, c, b), contiguous; by way of two dimensions, whose transposition is the fast one."""
    rows, members, classes = samples.shape
    return samples.reshape(rows, members * classes).t().contiguous().view(members, classes, rows)


def total(values: Tensor) -> Tensor:
    """The sum over the first axis."""
    while len(values) > 1:
        half = len(values) // 2
        rest = values[: len(values) - half].clone()
        rest[:half] += values[len(values) - half :]
        values = rest
    return values[0]


def mean(values: Tensor) -> Tensor:
    """The mean over the first axis."""
    return total(values) / len(values)

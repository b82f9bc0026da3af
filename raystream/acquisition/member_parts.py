"""What scores of K members share, computed once per block of rows, in float64 with the rows innermost.

With l_kc the log-probability that member k gives class c, everything follows from what lies below the largest member of each class:

    largest = max over k of l_kc,   below = l - largest <= 0,   ratio = exp(below),   share = mean over k of ratio
    log p_mean = logsumexp over k of l_k - log K = largest + log(share)

Equal members give below = 0, so that their disagreement is exactly 0 and not what rounding leaves of a difference. Sums are
taken pairwise and elementwise, so that a row's score doesn't depend on the rows beside it, not even in its last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from raystream.errors import QueryError
from raystream.threads import each

UNDERFLOW = -1000.0
"""exp() of it is 0 in float64; being finite, it makes 0 * log 0 come out as 0."""

_BLOCK = 1 << 18
"""Numbers of a block of rows: what is computed from them stays within some MB."""

_CHUNK = 1 << 16
"""Numbers of some classes of a block, which stay in a core's cache while they go through a dozen operations."""

_LINE = 16
"""Rows that come with each other into a processor's cache where they are innermost in memory."""

_SLACK = 0.05
"""How far probabilities may be from summing to 1: bfloat16 is some thousandths off, logits given by mistake are far."""

WITHIN, VARIANCES = "within", "variances"
"""Parts that only some scores need."""


@dataclass(frozen=True)
class MemberParts:
    """What the scores of one block share, in float64, but for the members, with rows innermost."""

    members: Tensor  # (k, c, b), as given
    largest: Tensor  # (c, b)
    share: Tensor  # (c, b)
    broken: Tensor  # (b,), 0, or NaN where a row holds NaN or infinity
    more: Mapping[str, Tensor]  # each (c, b), of what was asked for

    @property
    def within(self) -> Tensor:
        """mean over k of ratio log ratio, (c, b)."""
        return self.more[WITHIN]

    @property
    def variances(self) -> Tensor:
        """Over members, of the probability of each class, (c, b).

        From deviations from the largest member, which is one of the data, so that the difference loses at most a factor K.
        """
        return self.more[VARIANCES] * (2 * self.largest).exp()

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


def by_blocks(log_probs: Tensor, see: Callable[[slice, MemberParts], None], parts: Collection[str] = ()) -> None:
    """Show the parts of (n, k, c) log-probabilities, block by block, with those named; an error if a row of them is no distribution."""
    each_block(log_probs, lambda rows: see(rows, _parts(log_probs, rows, parts)))


def each_block(samples: Tensor, work: Callable[[slice], None]) -> None:
    """Do the work on all blocks of rows of (n, k, c) samples; on a processor each thread takes blocks of its own."""
    if samples.device.type != "cpu":
        for rows in row_blocks(samples):
            work(rows)
        return
    inference = torch.is_inference_mode_enabled()  # a thread begins outside

    def here(rows: slice) -> None:
        with torch.inference_mode(inference):
            work(rows)

    each(row_blocks(samples), lambda: here)


def _parts(log_probs: Tensor, rows: slice, parts: Collection[str]) -> MemberParts:
    members = rows_innermost(log_probs[rows])
    largest = members.amax(dim=0).double().clamp_(min=UNDERFLOW)
    share, more = torch.empty_like(largest), {name: torch.empty_like(largest) for name in parts}
    for classes in _chunks(members):
        below = members[:, classes].to(torch.float64, copy=True).sub_(largest[classes]).clamp_(min=UNDERFLOW)
        ratio = below.exp()
        share[classes] = _over_members(ratio)
        if WITHIN in more:
            more[WITHIN][classes] = _over_members(below.mul_(ratio))
        if VARIANCES in more:
            square = _over_members(ratio.sub_(1)).square_()
            more[VARIANCES][classes] = _over_members(ratio.square_()).sub_(square).clamp_(min=0)
    mass = total(largest.exp() * share)
    check_mass(mass, rows.start)
    return MemberParts(members, largest, share, mass * 0, more)


def _chunks(members: Tensor) -> Iterator[slice]:
    """Runs of classes of (k, c, b) members."""
    count, classes, rows = members.shape
    size = max(_CHUNK // (count * rows), 1) if members.device.type == "cpu" else classes
    return (slice(start, start + size) for start in range(0, classes, size))


def _over_members(values: Tensor) -> Tensor:
    """The mean over the members of (k, c, b): of each class and row the same sum, wherever it stands."""
    return values.sum(dim=0).div_(len(values))


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
    size = numbers // (members * classes)
    if size < _LINE:  # transposing few rows costs more than it gives, unless they are innermost already
        size = _LINE if samples.stride(0) == 1 else 1
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def rows_innermost(samples: Tensor) -> Tensor:
    """(b, k, c) -> (k, c, b), contiguous; by way of two dimensions, whose transposition is the fast one."""
    rows, members, classes = samples.shape
    return samples.reshape(rows, members * classes).t().contiguous().view(members, classes, rows)


def total(values: Tensor) -> Tensor:
    """The sum over the first axis."""
    while len(values) > 1:
        half, odd = divmod(len(values), 2)
        if odd:
            rest = torch.empty_like(values[: half + 1])
            torch.add(values[:half], values[half + 1 :], out=rest[:half])
            rest[half] = values[half]
            values = rest
        else:
            values = values[:half] + values[half:]
    return values[0]


def mean(values: Tensor) -> Tensor:
    """The mean over the first axis."""
    return total(values) / len(values)

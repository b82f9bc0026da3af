"""To each row its nearest centre, exact in float64, from one bounded product and a few differences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from raystream.selection.bounds import Encoding, smallest_products
from raystream.selection.rows import Array, squared_distances
from raystream.selection.threads import one_thread

_PRODUCTS = 1 << 21
"""Products that are kept at a time: with the operands they stay in the processor's second-level caches."""
_PAIR_BYTES = 1 << 20
"""Differences that are kept at a time; more than the caches hold takes four times as long, most of it in page faults."""


@dataclass(frozen=True)
class Nearest:
    """For m rows: `index` (m,) int64 of the nearest centre, the lowest at a tie; `upper` (m,) float64, a bound of its squared distance."""

    index: Array
    upper: Array


def block_rows(centres: int) -> int:
    """How many rows to multiply at a time."""
    return int(min(max(_PRODUCTS // max(centres, 1), 2048), 16384))


@dataclass(frozen=True)
class Centres:
    """(k, d) float32 centres with their operands, in the order that decides ties."""

    x: Array
    encoding: Encoding
    operand: torch.Tensor
    slack: float
    largest_square: float

    @classmethod
    def of(cls, x: Array, encoding: Encoding) -> Centres:
        """Encode (k, d) float32 vectors."""
        with one_thread():  # too little for threads, which would wait for each other a dozen times
            operand, slack = encoding.centres(x)
        pieces = 3 if encoding.bfloat16 else 1
        first = x.shape[1] + pieces
        largest = float(operand[:, first : first + pieces].double().sum(1).max()) if len(x) else 0.0
        return cls(x, encoding, operand, slack, largest)


def nearest(
    x: Array,
    centres: Centres,
    *,
    exact_distance: bool = False,
    encoded: tuple[torch.Tensor, torch.Tensor] | None = None,
    room: torch.Tensor | None = None,
) -> Nearest:
    """The nearest of `centres` (at least one) to each row of `x`, (m, d) float32.

    Args:
        x: the rows; blocks of `block_rows` are the fastest.
        centres: where ties go to the lower index.
        exact_distance: `upper` is the squared distance itself, by the definition.
        encoded: the rows' operand and slack, if they are at hand.
        room: at least (m, k) products, in the encoding's dtype.
    """
    operand, slack = centres.encoding.rows(x) if encoded is None else encoded
    out = torch.empty((len(x), len(centres.x)), dtype=centres.encoding.dtype) if room is None else room[: len(x)]
    smallest = smallest_products(operand, centres.operand, out)
    near_slack, near_square = (bound[:, 0] for bound in near_bounds(centres.encoding, operand, slack, smallest[:, None]))
    near_slack.clamp_(max=centres.slack)
    limit = centres.encoding.reach(smallest, slack, near_slack, operand, near_square.clamp_(max=centres.largest_square))
    bits = torch.int16 if out.dtype == torch.bfloat16 else torch.int32
    within = out.view(bits).numpy() <= limit.view(bits).numpy()[:, None]
    flat = np.flatnonzero(within)
    row, centre = np.divmod(flat, len(centres.x))
    starts = np.flatnonzero(np.diff(row, prepend=-1))
    index = centre[starts]
    upper = centres.encoding.upper(smallest, slack.double() + near_slack)
    if centres.encoding.exact:
        return Nearest(index, upper)
    # a row with one pair left is decided already
    undecided = np.diff(starts, append=len(row)) > (0 if exact_distance else 1)
    pairs = undecided[row]
    index[undecided], upper[undecided] = _resolve(x, centres.x, row[pairs], centre[pairs], exact_distance)
    return Nearest(index, upper)


def near_bounds(encoding: Encoding, operand: torch.Tensor, slack: torch.Tensor, products: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(m, c) float64 bounds of the slack and of the square, both scaled, of whatever is as near to a row as a product of it says.

    Its length is at most the row's and the distance. Without this, one centre far from all the others would put every centre in doubt
    for every row.

    Args:
        operand: (m, width) of the rows, with their `slack` (m,).
        products: (m, c) of the rows.
    """
    wide = slack.double()[:, None]
    length = operand[:, len(encoding.shift), None].double().mul_(1 + 2.0**-7).sqrt_() + wide
    # rounding takes at most 2^-8 of a length, and of the length of a difference
    farthest = (length + products.double().clamp_(min=0.0).sqrt_() + wide).mul_(1 + 2.0**-5)
    return farthest.mul(2.0**-8).add_(2.0**-50), farthest.square_().add_(2.0**-80)


def _resolve(x: Array, c: Array, row: Array, centre: Array, exact_distance: bool) -> tuple[Array, Array]:
    """(index, upper) for the rows that occur among the pairs (row, centre), which are sorted by row, then centre."""
    if not len(row):
        return row, np.empty(0)
    value = float32_distances(x, c, row, centre)
    error = (x.shape[1] + 8) * 2.0**-23  # twice what summing d squares of differences in float32 can err by, relatively
    tiny = x.shape[1] * 2.0**-120
    first = np.diff(row, prepend=-1) != 0
    starts, group = np.flatnonzero(first), np.cumsum(first) - 1
    close = value <= (np.minimum.reduceat(value, starts) * (1 + 2.0 * error) + tiny)[group]
    ask = close
    if not exact_distance:
        ask = close & (np.add.reduceat(close, starts, dtype=np.int64) > 1)[group]
    asked = np.flatnonzero(ask)
    exact = np.where(close, value, np.inf)
    exact[asked] = pair_distances(x, c, row[asked], centre[asked])
    best = np.minimum.reduceat(exact, starts)
    winner = np.flatnonzero(exact == best[group])
    winner = winner[np.flatnonzero(np.diff(group[winner], prepend=-1))]
    return centre[winner], best if exact_distance else best * (1 + error) + tiny


def float32_distances(x: Array, c: Array, row: Array, centre: Array) -> Array:
    """(pairs,) float64 squared distances of x[row] and c[centre] in float32: 0 for equal ones, infinite where squares overflow."""
    result = np.empty(len(row), dtype=np.float64)
    step = max(_PAIR_BYTES // (8 * max(x.shape[1], 1)), 1)
    with np.errstate(over="ignore"):
        for begin in range(0, len(row), step):
            which = slice(begin, begin + step)
            difference = x[row[which]]
            difference -= c[centre[which]]
            result[which] = np.einsum("ij,ij->i", difference, difference)
    return result


def pair_distances(x: Array, c: Array, row: Array, centre: Array) -> Array:
    """(pairs,) float64 squared distances of x[row] and c[centre] by the definition, in bounded memory."""
    result = np.empty(len(row), dtype=np.float64)
    step = max(_PAIR_BYTES // (8 * max(x.shape[1], 1)), 1)
    for begin in range(0, len(row), step):
        which = slice(begin, begin + step)
        result[which] = squared_distances(x[row[which]], c[centre[which]])
    return result

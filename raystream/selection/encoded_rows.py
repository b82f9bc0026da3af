"""A stretch of rows as operands of products, and what is found on the way over them: their sum, and how far out each lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from raystream.selection.bounds import Encoding, unfilled
from raystream.selection.rows import Array, Block, Rows, squared_distances, tensor
from raystream.selection.threads import each

_SUMMED = 1 << 17
"""Numbers that are summed at a time, in float64."""


@dataclass(frozen=True, eq=False)
class Look:
    """What to look at.

    Attributes:
        near: (d,) float32, a vector near the mean, which is the encoding's shift unless products are exact.
        power: sum up the rows rounded to multiples of 2^-power, and bound their distances to `near`; None: don't.
    """

    near: Array
    power: int | None

    def same(self, other: Look) -> bool:
        """Whether the two look at the same."""
        return self.power == other.power and np.array_equal(self.near, other.near)


@dataclass(frozen=True, eq=False)
class EncodedRows:
    """n rows, encoded.

    Attributes:
        copy: operands (n, width) and slack (n,) float32, see `Encoding.rows`; None where they are not kept.
        reach: (n,) float64, never below the rows' distances to `Look.near`; empty if not asked for.
        total: (d,) float64, the exact sum of the rounded rows; zero if not asked for.
    """

    copy: tuple[torch.Tensor, torch.Tensor] | None
    reach: Array
    total: Array


def encode_rows(rows: Rows, encoding: Encoding, look: Look, *, keep: bool, block: int) -> EncodedRows:
    """Encode all rows in one pass, `block` of them at a time; `keep` asks for the operands."""
    n = len(rows)
    copy = (unfilled((n, encoding.width), encoding.dtype), unfilled((n,), torch.float32)) if keep else None
    reach = np.empty(0 if look.power is None else n)

    def start() -> Callable[[Block], Array]:
        room = unfilled((0 if keep else block, encoding.width), encoding.dtype)
        total = None if look.power is None else Total(look.power, rows.width)

        def encode(item: Block) -> Array:
            x, at = item.read(), slice(item.start - rows.start, item.stop - rows.start)
            out = room[: len(x)] if copy is None else copy[0][at]
            bounded = len(reach) > 0 and not encoding.exact
            if copy is not None or bounded:
                slack = encoding.rows(x, out)[1]
                if copy is not None:
                    copy[1][at] = slack
                if bounded:
                    reach[at] = encoding.radius(out, slack).numpy()
            if len(reach) and encoding.exact:
                reach[at] = _reach(x, look.near)
            return np.zeros(rows.width) if total is None else total.of(x)

        return encode

    totals = each(rows.blocks(rows.start, rows.stop, block), start) if keep or len(reach) else []
    # sums of whole multiples below 2^53: no order of adding changes them
    return EncodedRows(copy, reach, np.sum(totals, axis=0) if totals else np.zeros(rows.width))


class Total:
    """One thread's sums of rows rounded to multiples of 2^-power."""

    def __init__(self, power: int, width: int) -> None:
        # adding and taking away 1.5 * 2^(52 - power) rounds float64 to such multiples
        self._rounding = 1.5 * 2.0 ** (52 - power)
        self._room = unfilled((max(_SUMMED // max(width, 1), 16), width), torch.float64)

    def of(self, x: Array) -> Array:
        """(d,) float64, the sum of (m, d) float32 rows."""
        result = np.zeros(x.shape[1])
        for begin in range(0, len(x), len(self._room)):
            part = tensor(x[begin : begin + len(self._room)])
            result += self._room[: len(part)].copy_(part).add_(self._rounding).sub_(self._rounding).sum(0).numpy()
        return result


def _reach(x: Array, point: Array) -> Array:
    """(m,) float64, never below the distances of (m, d) float32 rows to a float32 point."""
    length = torch.linalg.vector_norm(tensor(x) - torch.from_numpy(point), dim=1).double().numpy()
    if not np.isfinite(length).all():  # squares beyond float32
        length = np.sqrt(squared_distances(x, point))
    result: Array = length * (1 + (x.shape[1] + 32) * 2.0**-23) + x.shape[1] * 2.0**-60
    return result

"""A stretch of rows as operands of products, and what is found on the way over them: their sum, and how far out each lies.

`CentreList` has the rows that others are compared with, as vectors and as operands; it grows while rows are chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from raystream.selection.bounds import Encoding, unfilled
from raystream.selection.rows import Array, Block, Rows, squared_distances, tensor
from raystream.threads import each

_SUMMED = 1 << 17
"""Numbers that are summed at a time, in float64."""


@dataclass(frozen=True, eq=False)
class Look:
    """The things to look at while rows are encoded.

    Attributes:
        near: (d,) float32, a vector near the mean, which is the encoding's shift unless products are exact.
        power: sum up the rows rounded to multiples of 2^-power, and bound their distances to `near`; None: don't.
    """

    near: Array
    power: int | None

    def same(self, other: Look) -> bool:
        """Tell whether the two look at the same."""
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
        """Sum (m, d) float32 rows: (d,) float64."""
        result = np.zeros(x.shape[1])
        for begin in range(0, len(x), len(self._room)):
            part = tensor(x[begin : begin + len(self._room)])
            result += self._room[: len(part)].copy_(part).add_(self._rounding).sub_(self._rounding).sum(0).numpy()
        return result


def _reach(x: Array, point: Array) -> Array:
    """Return (m,) float64, never below the distances of (m, d) float32 rows to a float32 point."""
    length = torch.linalg.vector_norm(tensor(x) - torch.from_numpy(point), dim=1).double().numpy()
    if not np.isfinite(length).all():  # squares beyond float32
        length = np.sqrt(squared_distances(x, point))
    result: Array = length * (1 + (x.shape[1] + 32) * 2.0**-23) + x.shape[1] * 2.0**-60
    return result


_NARROW, _WIDE = 16, 64
"""Products are made for a multiple of so many centres: other numbers take as long, and their minimum longer."""
AT_ONCE = 1024
"""Centres that rows are multiplied with at a time."""
ROWS_UNIT = 128
"""The same of rows: oneDNN makes code for each shape of a bfloat16 product, which takes as long as a small one."""
_STANDING = 256
"""Up to so many centres, the minimum is faster over products that lie centre by centre."""


def whole_units(rows: int) -> int:
    """Round up to at least so many rows, of which products are made."""
    return -(-rows // ROWS_UNIT) * ROWS_UNIT


class CentreList:
    """(k, d) centres in the order in which they came.

    Attributes:
        encoding: of the operands.
        slack: the largest of the centres' slacks.
        largest_square: the largest of the bounds of their squared lengths.
    """

    def __init__(self, encoding: Encoding, capacity: int = 0) -> None:
        self.encoding = encoding
        self.slack = self.largest_square = 0.0
        self._size = 0
        self._reserve(capacity)

    def _reserve(self, capacity: int) -> None:
        x = np.empty((capacity, len(self.encoding.shift)), dtype=np.float32)
        # behind the last centre lie copies of it, so that products may be wider than the list is long
        operand = unfilled((capacity + _WIDE, self.encoding.width), self.encoding.dtype)
        if self._size:
            x[: self._size], operand[: self._size] = self.x, self.operand
        self._x, self._operand = x, operand

    def __len__(self) -> int:
        return self._size

    def add(self, x: Array) -> None:
        """Append (m, d) float32 centres."""
        if len(x):
            operand, slack = self.encoding.centres(x)
            self.slack = max(self.slack, slack)
            self._put(x, operand, float(self.encoding.squares(operand).max()))

    def append(self, x: Array, operand: torch.Tensor, square: float) -> None:
        """Append a (d,) float32 centre with its (width,) operand, which has no slack, and the bound of its squared length."""
        self._put(x[None], operand[None], square)

    def _put(self, x: Array, operand: torch.Tensor, square: float) -> None:
        begin, end = self._size, self._size + len(x)
        if end > len(self._x):
            self._reserve(max(end, 2 * len(self._x)))
        self._x[begin:end] = x
        self._operand[begin:end] = operand
        self._operand[end : end + _WIDE] = operand[-1]
        self._size = end
        self.largest_square = max(self.largest_square, square)

    @property
    def x(self) -> Array:
        """(k, d) float32."""
        return self._x[: self._size]

    @property
    def operand(self) -> torch.Tensor:
        """(k, width)."""
        return self._operand[: self._size]

    def products(self, rows: torch.Tensor, begin: int, room: torch.Tensor) -> torch.Tensor:
        """Multiply (m, width) rows with the AT_ONCE centres from number `begin` on, or as many as there are: (m, c)."""
        count = min(self._size - begin, AT_ONCE)
        centres = self._operand[begin : begin + self._columns(count)]
        return torch.mm(rows, centres.T, out=room[: len(rows) * len(centres)].view(len(rows), len(centres)))[:, :count]

    def smallest_products(self, rows: torch.Tensor, since: int, room: torch.Tensor) -> torch.Tensor:
        """Find (m,) the smallest product of each of (m, width) rows with the centres from number `since` on, at least one.

        Args:
            rows: operands.
            since: the number of the first centre.
            room: for m * AT_ONCE products.
        """
        # as integers: the order is the same, and a negative product can only stand for zero
        bits = torch.int16 if room.dtype == torch.bfloat16 else torch.int32
        result: torch.Tensor | None = None
        for begin in range(since, self._size, AT_ONCE):
            centres = self._operand[begin : begin + self._columns(min(self._size - begin, AT_ONCE))]
            if len(centres) <= _STANDING:
                out = torch.mm(centres, rows.T, out=room[: len(centres) * len(rows)].view(len(centres), len(rows)))
                smallest = torch.amin(out.view(bits), dim=0)
            else:
                out = torch.mm(rows, centres.T, out=room[: len(centres) * len(rows)].view(len(rows), len(centres)))
                smallest = torch.amin(out.view(bits), dim=1)
            result = smallest if result is None else torch.minimum(result, smallest)
        assert result is not None
        return result.view(room.dtype)

    def _columns(self, count: int) -> int:
        """Choose how wide a product for `count` centres should be."""
        if count < _NARROW and not self.encoding.bfloat16:
            return count
        unit = _NARROW if count <= _STANDING else _WIDE
        return -(-count // unit) * unit

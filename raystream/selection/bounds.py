"""Bounds of squared distances, and rows as operands of the products that they come from.

Upper bounds of squared distances from one matrix product, rigorous in any order of summation.

Rows are stored as `[y, a, 1]` and centres as `[-2 y, 1, a]`, y = (x - shift) * scale rounded, so that
one product gives S = a_i + a_j - 2 y_i.y_j at no cost beyond the product itself. Let u = 2^-24,
gamma = m u / (1 - m u) with m = d + 32. Any order of summing S in float32 errs by at most
gamma' (2 |y_i||y_j| + a_i + a_j) <= 2 gamma' (a_i + a_j), gamma' for d + 8 terms. With

    a >= (1 + 2.1 gamma) |y|^2 + delta        delta = (d + 32) 2^-122 covers whatever underflows

S, as computed, is therefore never below |x_i - x_j|^2, the rounding of y included: that is below
4 u (|y_i|^2 + |y_j|^2), and 2.1 gamma - 2 gamma' leaves 40 u. The norms are summed in float32 as well,
for which a is another 1.1 gamma larger.

In bfloat16, a is split into three exact pieces of eight bits, and the product comes back rounded to
bfloat16, by a factor of at most 1 + 2^-8 of S itself, not of the terms: near duplicates keep tight bounds.
What rounding y to bfloat16 moved is added as a distance, r.

Where x lies on a grid coarse enough for float32 to hold every partial sum (counts, 0/1, one-hot,
pixels), S *is* the squared distance and no bound is needed.

A stretch of rows as operands of products, and what is found on the way over them: their sum, and how far out each lies.

`CentreList` has the rows that others are compared with, as vectors and as operands; it grows while rows are chosen.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from raystream.selection.rows import Array, Block, Rows, squared_distances, tensor
from raystream.threads import each

Precision = Literal["auto", "bfloat16", "float32"]

_BFLOAT16_UP = 1 + 1.01 * 2.0**-8
_FLOAT64_UP = 1 + 2.0**-44
_NUMBERS = 1 << 18
"""Numbers that are encoded at a time: they stay in the caches."""


_UNITS = ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16")
"""What processors call the instructions that multiply bfloat16 matrices."""


@functools.cache
def has_bfloat16_units() -> bool:
    """Tell whether this processor has instructions that multiply bfloat16 matrices: two to eight times as fast, slower without.

    It is looked up, not timed: draws by D-squared sampling depend on the bounds, which must be the same in each run on a machine.
    """
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in _UNITS)


def grid_power(width: int, largest: float) -> int:
    """Return p such that rows made of multiples of 2^-p, at most `largest` in size, have exact float32 products."""
    if largest == 0:
        return 0
    return math.floor((22 - math.log2(max(width, 1))) / 2 - math.log2(largest) - 1e-9)


def on_grid(x: Array, power: int) -> bool:
    """Tell whether all numbers are multiples of 2^-power."""
    scaled = x.astype(np.float64) * 2.0**power
    return bool((scaled == np.rint(scaled)).all())


@dataclass(frozen=True)
class Encoding:
    """The encoding of rows as operands of the product; the same for rows and centres.

    Attributes:
        shift: (d,) float32, a fixed vector near the mean.
        power: data is multiplied by 2^power, which makes the largest norm about one.
        bfloat16: operands in bfloat16 instead of float32.
        exact: the data lies on a grid on which the float32 product is the squared distance.
    """

    shift: Array
    power: int
    bfloat16: bool
    exact: bool

    @classmethod
    def fit(cls, mean: Array, largest: float, *, on_grid: bool, precision: Precision) -> Encoding:
        """Fit the encoding to rows with this mean and this largest absolute value."""
        width = len(mean)
        reach = largest * math.sqrt(max(width, 1))
        power = 0 if reach == 0 else -math.frexp(reach)[1]
        power = min(power, 126)  # 2^127 and above is not a float32 that can be squared back
        bfloat16 = not on_grid and (has_bfloat16_units() if precision == "auto" else precision == "bfloat16")
        shift = np.zeros(width, dtype=np.float32) if on_grid else mean.astype(np.float32)
        return cls(shift, power, bfloat16, on_grid)

    def same(self, other: Encoding) -> bool:
        """Tell whether the two make the same of every row."""
        settings = (self.power, self.bfloat16, self.exact)
        return settings == (other.power, other.bfloat16, other.exact) and np.array_equal(self.shift, other.shift)

    @property
    def width(self) -> int:
        """Columns of an operand; a multiple of 32 in bfloat16, which is what the matrix units take at a time."""
        d = len(self.shift)
        return -(-(d + 6) // 32) * 32 if self.bfloat16 else d + 2

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of operands and products."""
        return torch.bfloat16 if self.bfloat16 else torch.float32

    @property
    def row_bytes(self) -> int:
        """Memory that one encoded row takes, its slack included."""
        return self.width * self.dtype.itemsize + 4

    @property
    def _inflation(self) -> float:
        m = (len(self.shift) + 32) * 2.0**-24
        return 3.2 * m / (1 - m)

    @property
    def _underflow(self) -> float:
        return (len(self.shift) + 32) * 2.0**-122

    def rows(self, x: Array, out: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn (m, d) float32 into operand (m, width) and slack (m,) float32, what rounding may have moved each row by."""
        return self._encode(x, out, centre=False)

    def centres(self, x: Array) -> tuple[torch.Tensor, float]:
        """Turn (m, d) float32 into operand (m, width) and the largest slack."""
        operand, slack = self._encode(x, None, centre=True)
        return operand, float(slack.max()) if len(slack) else 0.0

    def as_centre(self, rows: torch.Tensor) -> torch.Tensor:
        """Turn (..., width) operands of rows into those of the same vectors as centres."""
        d, pieces = len(self.shift), self._pieces
        result = rows.clone()
        result[..., :d] *= -2.0
        result[..., d : d + pieces] = 1.0
        result[..., d + pieces : d + 2 * pieces] = rows[..., d : d + pieces]
        return result

    def squares(self, centres: torch.Tensor) -> torch.Tensor:
        """Return (m,) float64, the bounds a of the squared lengths in (m, width) operands of centres."""
        first = len(self.shift) + self._pieces
        return centres[:, first : first + self._pieces].double().sum(1)

    def row_squares(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (m,) float64, the same in operands of rows."""
        d = len(self.shift)
        return rows[:, d : d + self._pieces].double().sum(1)

    def radius(self, rows: torch.Tensor, slack: torch.Tensor) -> torch.Tensor:
        """Return (m,) float64, in the data's own scale, never below the distances of rows with these operands to the shift."""
        return (self.row_squares(rows).sqrt_() * (1 + 2.0**-20) + slack).mul_(2.0**-self.power)

    @property
    def _pieces(self) -> int:
        return 3 if self.bfloat16 else 1

    def _encode(self, x: Array, out: torch.Tensor | None, *, centre: bool) -> tuple[torch.Tensor, torch.Tensor]:
        out = unfilled((len(x), self.width), self.dtype) if out is None else out
        slack = torch.zeros(len(x))
        # memory that is larger, or made anew for each operation, costs more in page faults than the arithmetic
        step = max(_NUMBERS // max(x.shape[1], 1), 16)
        room = unfilled((2, min(step, len(x)), x.shape[1]), torch.float32)
        tail = torch.zeros((room.shape[1], self.width - x.shape[1]))
        shift = tensor(self.shift) * -(2.0**self.power)
        for begin in range(0, len(x), step):
            at = slice(begin, begin + step)
            y, other = room[:, : len(out[at])]
            # scaling by a power of two is exact, so that y is rounded once
            torch.add(shift, tensor(x[at]), alpha=2.0**self.power, out=y)
            self._encode_some(y, other, tail[: len(y)], out[at], slack[at], centre=centre)
        return out, slack

    def _encode_some(
        self, y: torch.Tensor, room: torch.Tensor, tail: torch.Tensor, out: torch.Tensor, slack: torch.Tensor, *, centre: bool
    ) -> None:
        d, pieces = len(self.shift), self._pieces
        body = out[:, :d]
        body.copy_(y)
        if self.bfloat16:
            stored = room.copy_(body)
            moved = y.sub_(stored).square_().sum(1).double()
            square = stored.square_().sum(1).double()
            slack.copy_(_round_up((moved.sqrt_() + 2.0**-22 * square.sqrt() + 2.0**-60) * (1 + self._inflation)))
        else:
            square = y.square_().sum(1).double()
        bound = square.float() if self.exact else _round_up(square * (1 + self._inflation) + self._underflow)
        norm_at, one_at = (pieces, 0) if centre else (0, pieces)
        for piece in range(pieces):
            part = bound.view(torch.int32).bitwise_and(-65536).view(torch.float32) if self.bfloat16 else bound
            tail[:, norm_at + piece] = part
            bound = bound - part
        tail[:, one_at : one_at + pieces] = 1.0
        out[:, d:] = tail
        if centre:
            body.mul_(-2.0)

    def upper(self, product: torch.Tensor, slack: torch.Tensor | float) -> Array:
        """Return float64 upper bounds of the squared distances behind products; slack is row's plus centre's."""
        wide = product.double().clamp_(min=0.0)
        if self.bfloat16:
            wide = wide.mul_(_BFLOAT16_UP).sqrt_().add_(slack).square_().mul_(_FLOAT64_UP)
        result: Array = wide.mul_(4.0**-self.power).numpy()
        return result

    def width_of(self, square: Array) -> Array:
        """Bound how far float32 products of bounds a_i + a_j = `square` (float64) may lie above the squared distances, scaled."""
        return np.zeros_like(square) if self.exact else 2.2 * self._inflation * square + 8 * self._underflow

    def reach(
        self,
        smallest: torch.Tensor,
        slack: torch.Tensor,
        largest_slack: float | torch.Tensor,
        rows: torch.Tensor,
        largest_square: float | torch.Tensor,
    ) -> torch.Tensor:
        """Return the product up to which another centre may still be nearer than the one with the smallest product.

        Args:
            smallest: (m,) the smallest product of each row.
            slack: (m,) of the rows, and `largest_slack` of the centres.
            rows: (m, width) the rows' operands; `largest_square` is the largest a_j of the centres. Both may be (m,) float64, for
                each row the largest of the centres that may be nearest to it.
        """
        low = smallest.double().clamp_(min=0.0)
        if self.exact:
            return low.float()
        square = rows[:, len(self.shift)].double() * (1 + 2.0**-7) + largest_square
        width = torch.from_numpy(self.width_of(square.numpy()))
        if not self.bfloat16:
            return _round_up((low + width) * _FLOAT64_UP)
        limit = (low.mul_(_BFLOAT16_UP).sqrt_() + 2 * (slack.double() + largest_slack)).square_() + width
        return _bfloat16_up(limit * (_BFLOAT16_UP * _FLOAT64_UP))

    def limit(self, squared: Array, slack: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        """Return the product above which a centre is certainly farther than the squared distance.

        Args:
            squared: (m,) float64, in the data's own scale.
            slack: (m,) float64, the row's plus the centre's.
            square: (m,) float64 bounds of a_i + a_j.
        """
        scaled = torch.from_numpy(squared) * 4.0**self.power
        if self.exact:
            return scaled.float()
        width = torch.from_numpy(self.width_of(square.numpy()))
        if not self.bfloat16:
            return _round_up((scaled + width) * _FLOAT64_UP)
        return _bfloat16_up((scaled.sqrt_().add_(slack).square_() + width) * (_BFLOAT16_UP * _FLOAT64_UP))


def unfilled(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Make a tensor whose values don't matter yet. NumPy asks for large pages, which take a tenth of the time to be handed out."""
    kind = {2: np.int16, 4: np.float32, 8: np.float64}[dtype.itemsize]
    return torch.from_numpy(np.empty(shape, dtype=kind)).view(dtype)


def _round_up(x: torch.Tensor) -> torch.Tensor:
    """Round float64 to float32, never below."""
    narrow = x.float()
    return torch.where(narrow.double() < x, torch.nextafter(narrow, torch.full_like(narrow, math.inf)), narrow)


def _bfloat16_up(x: torch.Tensor) -> torch.Tensor:
    """Round float64, not negative, to bfloat16, never below."""
    rounded = x.to(torch.bfloat16)
    return (rounded.view(torch.int16) + (rounded.double() < x)).to(torch.int16).view(torch.bfloat16)


def smallest_products(rows: torch.Tensor, centres: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Find (m,) the smallest of each row's products; `out` (m, k) receives them all.

    Products are compared as integers: for floats that are not negative the order is the same, and it
    is ten times as fast as torch's minimum of bfloat16. A negative one can only stand for zero.
    """
    torch.mm(rows, centres.T, out=out)
    bits = torch.int16 if out.dtype == torch.bfloat16 else torch.int32
    return torch.amin(out.view(bits), dim=1).view(out.dtype)


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

"""The rows that others are compared with, as vectors and as operands of a product; grows while rows are chosen."""

from __future__ import annotations

import numpy as np
import torch

from raystream.selection.bounds import Encoding, unfilled
from raystream.selection.rows import Array

_NARROW, _WIDE = 16, 64
"""Products are made for a multiple of so many centres: other numbers take as long, and their minimum longer."""
AT_ONCE = 1024
"""Centres that rows are multiplied with at a time."""
ROWS_UNIT = 128
"""The same of rows: oneDNN makes code for each shape of a bfloat16 product, which takes as long as a small one."""
_STANDING = 256
"""Up to so many centres, the minimum is faster over products that lie centre by centre."""


def whole_units(rows: int) -> int:
    """At least so many rows, of which products are made."""
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
        """A (d,) float32 centre with its (width,) operand, which has no slack, and the bound of its squared length."""
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
        """The products of (m, width) rows with the AT_ONCE centres from number `begin` on, or as many as there are: (m, c)."""
        count = min(self._size - begin, AT_ONCE)
        centres = self._operand[begin : begin + self._columns(count)]
        return torch.mm(rows, centres.T, out=room[: len(rows) * len(centres)].view(len(rows), len(centres)))[:, :count]

    def smallest_products(self, rows: torch.Tensor, since: int, room: torch.Tensor) -> torch.Tensor:
        """(m,) the smallest of the products of (m, width) rows with the centres from number `since` on, of which there must be one.

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
        """How wide a product for `count` centres should be."""
        if count < _NARROW and not self.encoding.bfloat16:
            return count
        unit = _NARROW if count <= _STANDING else _WIDE
        return -(-count // unit) * unit

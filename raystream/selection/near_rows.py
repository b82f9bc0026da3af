"""For blocks of rows, the rows near them: found by bounded products, so that none that belongs there is missed.

Rows stand in an order of their own, in which those that are compared with the same others lie side by side: every product is of two
stretches of one array. A product bounds a squared distance from above and, a little below, from below (see `bounds`). What lies
beyond the radius, or beyond what the k nearest seen so far are certainly within, is passed over; float64 decides among the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from raystream.selection.bounds import Encoding
from raystream.selection.rows import Array
from raystream.threads import each

_PRODUCTS = 1 << 22
"""Products at a time."""
_UNIT = 128
"""Rows are multiplied in multiples of this many: each shape of bfloat16 products needs code of its own, 0.4 ms to make."""
_ENCODED = 8192
_SPARE = 8
_TIED = 256
"""A row of which the products leave 4 k and this many more rows to be among the k nearest is compared in float32."""

Stretches = list[tuple[int, int]]
"""Places [start, stop)."""


@dataclass(frozen=True)
class Near:
    """Pairs of a row of a block and another row, in the order of the block's rows.

    Attributes:
        row: (p,) int64, from 0, in the block.
        place: (p,) int64, of the other row.
        product: (p,) of the two; infinite if it isn't known.
        upper: (p,) float64, a bound of the squared distance.
    """

    row: Array
    place: Array
    product: torch.Tensor
    upper: Array


class NearRows:
    """The rows of `x` in the order `order`; places are numbers in that order.

    Args:
        x: (n, d) float32, finite.
        order: (n,) int64.
    """

    def __init__(self, x: Array, order: Array) -> None:
        n, d = x.shape
        largest = max(float(x.max(initial=0.0)), -float(x.min(initial=0.0)))
        self.encoding = Encoding.fit(x.mean(axis=0, dtype=np.float64), largest, on_grid=False, precision="auto")
        self.x, self.order = x, order
        self.operand = torch.empty((n, self.encoding.width), dtype=self.encoding.dtype)
        self.slack, self.square = torch.empty(n, dtype=torch.float64), torch.empty(n, dtype=torch.float64)

        def see(begin: int) -> None:
            at = slice(begin, begin + _ENCODED)
            _, self.slack[at] = self.encoding.rows(x[order[at]], self.operand[at])
            self.square[at] = self.operand[at, d : d + _pieces(self.encoding)].double().sum(1)

        each(range(0, n, _ENCODED), lambda: see)

    def find(self, places: Array, stretches: Stretches, k: int | None, radius: float) -> Near:
        """Find the others among the rows in `stretches` that may be within `radius` of, and among the k nearest to, those at `places`.

        Where products can't tell which are the k nearest, k + 8 that float32 says are.
        """
        size = max(_PRODUCTS // len(places), 1)
        stretches = [(first, min(first + size, stop)) for start, stop in stretches for first in range(start, stop, size)]
        search = _Search(self, places, k, radius)
        for start, stop in stretches:
            search.see(start, stop)
        return search.found(stretches)

    def limit(self, squared: Array, places: Array, slack: float, square: float) -> torch.Tensor:
        """The products above which rows of at most this slack and square are farther than `squared` (m,) from those at `places`."""
        at = torch.from_numpy(places)
        return self.encoding.limit(squared, self.slack[at] + slack, self.square[at] + square)

    def upper(self, product: torch.Tensor, places: Array, others: Array) -> Array:
        """(p,) float64 bounds of squared distances."""
        return self.encoding.upper(product, self.slack[torch.from_numpy(places)] + self.slack[torch.from_numpy(others)])


def bits(product: torch.Tensor) -> Array:
    """Products as integers of the same order, but for negative ones, which stand for zero."""
    result: Array = product.view(torch.int16 if product.dtype == torch.bfloat16 else torch.int32).numpy()
    return result


def _pieces(encoding: Encoding) -> int:
    return 3 if encoding.bfloat16 else 1


def _as_centres(operand: torch.Tensor, encoding: Encoding) -> torch.Tensor:
    """Rows' operands as the other factor."""
    d, pieces = len(encoding.shift), _pieces(encoding)
    result = operand.clone()
    result[:, :d] *= -2.0
    result[:, d : d + 2 * pieces] = result[:, d : d + 2 * pieces].roll(pieces, 1)
    return result


class _Search:
    """One block's."""

    def __init__(self, rows: NearRows, places: Array, k: int | None, radius: float) -> None:
        self._rows, self._places, self._cut, self._k = rows, places, k is not None, k or 0
        whole = np.pad(places, (0, -len(places) % _UNIT), mode="edge")
        self._centres = _as_centres(rows.operand[torch.from_numpy(whole)], rows.encoding)
        # invariant: of others that are farther, nothing is wanted; a root is rounded, so that a little more is
        self._reach = np.full(len(places), np.square(np.float64(radius)) * (1 + 2.0**-50))
        infinite = bits(torch.tensor([torch.inf], dtype=rows.encoding.dtype))
        self._least = np.full((len(places), self._k + 1), infinite)
        self._many = np.zeros(len(places), dtype=np.int64)
        self._tied = np.zeros(len(places), dtype=bool)
        self._seen: list[tuple[Array, Array, Array]] = []
        self._slack = self._square = 0.0

    def see(self, start: int, stop: int) -> None:
        """Compare the block with the rows at [start, stop)."""
        whole = self._rows.operand[start : stop + (start - stop) % _UNIT]
        found = bits(torch.mm(self._centres, whole.T))[: len(self._places), : stop - start]
        slack, square = float(self._rows.slack[start:stop].max()), float(self._rows.square[start:stop].max())
        self._slack, self._square = max(self._slack, slack), max(self._square, square)
        near = found <= self._limit(slack, square)[:, None]
        if self._cut and np.count_nonzero(near) > len(found) * self._k / 8:
            self._tighten(found)
            near = found <= self._limit(slack, square)[:, None]
        flat = np.flatnonzero(near)
        row, column = np.divmod(flat, found.shape[1])
        if self._cut:
            self._many += np.bincount(row, minlength=len(self._many))
            self._tied |= self._many > 4 * self._k + _TIED
        self._seen.append((row, column + start, found[row, column]))

    def _tighten(self, found: Array) -> None:
        """Lower the reach to that of the k nearest so far, and the row itself: what lies beyond is not wanted."""
        self._least = np.partition(np.concatenate([self._least, found], axis=1), self._k, axis=1)[:, : self._k + 1]
        last = torch.from_numpy(self._least[:, self._k].copy()).view(self._rows.encoding.dtype)
        upper = self._rows.encoding.upper(last, self._rows.slack[torch.from_numpy(self._places)] + self._slack)
        np.minimum(self._reach, upper, out=self._reach)

    def _limit(self, slack: float, square: float) -> Array:
        result = bits(self._rows.limit(self._reach, self._places, slack, square)).copy()
        result[self._tied] = np.iinfo(result.dtype).min
        return result

    def found(self, stretches: Stretches) -> Near:
        """Gather the pairs that belong there, of tied rows by float32."""
        row, place, found = (np.concatenate(parts) for parts in zip(*self._seen, strict=True))
        keep = (found <= self._limit(self._slack, self._square)[row]) & (place != self._places[row])
        row, place, product = row[keep], place[keep], torch.from_numpy(found[keep]).view(self._rows.encoding.dtype)
        upper = self._rows.upper(product, self._places[row], place)
        if self._tied.any():
            tied, near = self._by_float32(stretches)
            row, place = np.concatenate([row, tied]), np.concatenate([place, near])
            product = torch.cat([product, torch.full((len(tied),), torch.inf, dtype=product.dtype)])
            upper = np.concatenate([upper, np.full(len(tied), np.inf)])
        order = np.argsort(row, kind="stable")
        return Near(row[order], place[order], product[torch.from_numpy(order)], upper[order])

    def _by_float32(self, stretches: Stretches) -> tuple[Array, Array]:
        """(row, place) of the k + 8 others that are nearest to each tied row; of those found equally near, the first."""
        rows, tied = self._rows, np.flatnonzero(self._tied)
        encoding = replace(rows.encoding, bfloat16=False)
        own = self._places[tied]
        centres, _ = encoding.centres(rows.x[rows.order[own]])
        most = min(self._k + _SPARE, sum(stop - start for start, stop in stretches) - 1)

        def compare(start: int, stop: int) -> Array:
            operand, _ = encoding.rows(rows.x[rows.order[start:stop]])
            found: Array = np.maximum(bits(torch.mm(centres, operand.T)), 0)
            inside = (own >= start) & (own < stop)
            found[inside, own[inside] - start] = np.iinfo(np.int32).max
            return found

        least = np.full((len(tied), most), np.iinfo(np.int32).max, dtype=np.int32)
        for start, stop in stretches:
            least = np.partition(np.concatenate([least, compare(start, stop)], axis=1), most - 1, axis=1)[:, :most]
        last = least.max(axis=1, keepdims=True)
        room = (least == last).sum(axis=1)
        result = []
        for start, stop in stretches:
            found = compare(start, stop)
            equal = found == last
            equal &= np.cumsum(equal, axis=1) <= room[:, None]
            room -= equal.sum(axis=1)
            row, column = np.nonzero((found < last) | equal)
            result.append((tied[row], column + start))
        return np.concatenate([row for row, _ in result]), np.concatenate([place for _, place in result])

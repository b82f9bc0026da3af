"""For blocks of rows, the rows near them: found by bounded products, so that none that belongs there is missed.

Rows stand in an order of their own, in which those that are compared with the same others lie side by side: every product is of two
stretches of one array. A product bounds a squared distance from above and, a little below, from below (see `bounds`). What lies
beyond the radius, or beyond what the k nearest seen so far are certainly within, is passed over; float64 decides among the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from raystream.selection.bounds import Encoding
from raystream.selection.rows import Array
from raystream.threads import each

_PRODUCTS = 1 << 22
"""Products at a time."""
_UNIT = 128
"""Rows are multiplied in multiples of this many: each shape of bfloat16 products needs code of its own, 0.4 ms to make."""
_BLOCK_UNIT, _FEW = 64, 16
"""Those of a block, the fewer, in multiples of this many; a few of them in multiples of what matrix units take at a time at least."""
_ENCODED = 8192
_CLOSER = 4
"""Rows that are so many times nearer, in squares, to the middle of their block than to that of all are encoded anew."""
_SPARE = 8
_TIED = 256
"""A row of which the products leave 4 k and this many more to be among the k nearest is compared in float32, which takes long."""

Stretches = list[tuple[int, int]]
"""Places [start, stop)."""


@dataclass(frozen=True)
class NearPairs:
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
        order: (n,) int64, of all rows or of some.
        encoding: of the operands; left out, one for all of `x`.
    """

    def __init__(self, x: Array, order: Array, encoding: Encoding | None = None) -> None:
        n, d = len(order), x.shape[1]
        if encoding is None:
            largest = max(float(x.max(initial=0.0)), -float(x.min(initial=0.0)))
            encoding = Encoding.fit(x.mean(axis=0, dtype=np.float64), largest, on_grid=False, precision="auto")
        self.encoding = encoding
        self.x, self.order = x, order
        self.operand = torch.empty((n, self.encoding.width), dtype=self.encoding.dtype)
        self.slack, self.square = torch.empty(n, dtype=torch.float64), torch.empty(n, dtype=torch.float64)

        def see(begin: int) -> None:
            at = slice(begin, begin + _ENCODED)
            _, self.slack[at] = self.encoding.rows(x[order[at]], self.operand[at])
            self.square[at] = self.operand[at, d : d + _pieces(self.encoding)].double().sum(1)

        each(range(0, n, _ENCODED), lambda: see)

    def around(self, places: Array, stretches: Stretches) -> tuple[NearRows, Array, Stretches]:
        """See the rows in `stretches` from the middle of those at `places`, which are among them; and say where these stand then.

        What bfloat16 leaves open goes with the distance from what operands are relative to. Where rows lie close to one another and far
        from the middle of all, it leaves open several times as many pairs as it has to; else these rows are returned as they are.
        """
        some = self.x[self.order[places]]
        middle = some.mean(axis=0, dtype=np.float64).astype(np.float32)
        scaled = np.ldexp(some.astype(np.float64) - middle, self.encoding.power)
        spread, now = float(np.square(scaled).sum(axis=1).mean()), float(self.square[torch.from_numpy(places)].mean())
        if not self.encoding.bfloat16 or spread * _CLOSER > now:
            return self, places, stretches
        order = np.concatenate([self.order[start:stop] for start, stop in stretches])
        begin, size = np.array([start for start, _ in stretches]), np.array([stop - start for start, stop in stretches])
        by_start = np.argsort(begin)
        which = by_start[np.searchsorted(begin[by_start], places, side="right") - 1]
        there = places - begin[which] + (np.cumsum(size) - size)[which]
        return NearRows(self.x, order, replace(self.encoding, shift=middle)), there, [(0, len(order))]

    def find(
        self, places: Array, stretches: Stretches, k: int | None, radius: float, room: Room | None = None, tied: int = _TIED
    ) -> NearPairs:
        """Find the others among the rows in `stretches` that may be within `radius` of, and among the k nearest to, those at `places`.

        Of rows of which products leave more than 4 k + `tied` others, k + 8 that float32 says are nearest. `room` is the thread's, to be
        used again.
        """
        search = _Search(self, places, stretches, k, radius, Room() if room is None else room, tied)
        groups = grouped(stretches, max(_PRODUCTS // search.size // _UNIT, 1) * _UNIT)
        for group in groups:
            search.see(group)
        return search.found([stretch for group in groups for stretch in group])

    def limit(self, squared: Array, places: Array, slack: float, square: float) -> torch.Tensor:
        """Return the products above which rows of at most this slack and square are farther than `squared` (m,) from those at `places`."""
        at = torch.from_numpy(places)
        return self.encoding.limit(squared, self.slack[at] + slack, self.square[at] + square)

    def upper(self, product: torch.Tensor, places: Array, others: Array) -> Array:
        """Return (p,) float64 bounds of squared distances."""
        return self.encoding.upper(product, self.slack[torch.from_numpy(places)] + self.slack[torch.from_numpy(others)])


def grouped(stretches: Stretches, size: int) -> list[Stretches]:
    """Cut the stretches, in their order, so that groups of them have at most `size` places each."""
    groups: list[Stretches] = []
    left = 0
    for start, stop in stretches:
        while start < stop:
            if not left:
                groups.append([])
                left = size
            end = min(start + left, stop)
            groups[-1].append((start, end))
            left -= end - start
            start = end
    return groups


def bits(product: torch.Tensor) -> Array:
    """Return products as integers of the same order, but for negative ones, which stand for zero."""
    result: Array = product.view(torch.int16 if product.dtype == torch.bfloat16 else torch.int32).numpy()
    return result


def _pieces(encoding: Encoding) -> int:
    return 3 if encoding.bfloat16 else 1


def _packed(found: Array, near: Array, count: Array, infinite: Any) -> Array:
    """Pack (m, the largest `count`): what of `found` (m, c) is `near` (m, c) bool, (m,) `count` of them in a row, and else infinite."""
    result = np.full((len(found), max(int(count.max()), 1)), infinite)
    row, column = where(near)
    result[row, ranks(count)] = found[row, column]
    return result


def ranks(count: Array) -> Array:
    """Return (sum of `count`,) int64: 0, 1, .. within each of groups of so many."""
    result: Array = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return result


class Room:
    """The memory that one thread compares in: new memory costs as much as the product that is written there."""

    def __init__(self) -> None:
        self._product, self._near = torch.empty(0, dtype=torch.bfloat16), np.empty(0, dtype=bool)

    def product(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Multiply (m, d) and (n, d): (m, n) inner products, which hold until the next are made."""
        size = len(a) * len(b)
        if len(self._product) < size or self._product.dtype != a.dtype:
            self._product = torch.empty(max(size, _PRODUCTS), dtype=a.dtype)
        return torch.mm(a, b.T, out=self._product[:size].view(len(a), len(b)))

    def at_most(self, found: Array, limit: Array) -> Array:
        """Tell (m, n) bool where `found` is at most the `limit` (m,) of its row, n a multiple of 8; holds until the next."""
        if len(self._near) < found.size:
            self._near = np.empty(max(found.size, _PRODUCTS), dtype=bool)
        return np.less_equal(found, limit[:, None], out=self._near[: found.size].reshape(found.shape))


def counts(near: Array) -> Array:
    """Count (m,) int64 what is true in each row of (m, n) bool, n a multiple of 8: by words, without the interpreter's lock."""
    words = near.view(np.uint64)
    sums = np.add.reduceat(words, np.arange(0, words.shape[1], 255), axis=1)  # each byte of a sum holds up to 255
    result: Array = sums.view(np.uint8).sum(axis=1, dtype=np.int64)
    return result


def where(near: Array) -> tuple[Array, Array]:
    """Find (row, column) int64 of what is true in (m, n) bool, n a multiple of 8: by words first, which NumPy doesn't."""
    words = near.view(np.uint64).ravel()
    some = np.flatnonzero(words != 0)
    true = np.flatnonzero(words[some].view(bool))
    return np.divmod(some[true >> 3] * 8 + (true & 7), near.shape[1])


class _Search:
    """One block's.

    Attributes:
        size: how many rows are multiplied for it.
    """

    def __init__(self, rows: NearRows, places: Array, stretches: Stretches, k: int | None, radius: float, room: Room, tied: int) -> None:
        self._rows, self._places, self._cut, self._k, self._room = rows, places, k is not None, k or 0, room
        whole = np.pad(places, (0, -len(places) % (_BLOCK_UNIT if len(places) > _FEW else _FEW)), mode="edge")
        self.size = max(len(whole), 1)
        self._centres = rows.encoding.as_centre(rows.operand[torch.from_numpy(whole)])
        # invariant: of others that are farther, nothing is wanted; a root is rounded, so that a little more is
        self._reach = np.full(len(places), np.square(np.float64(radius)) * (1 + 2.0**-50))
        self._infinite = bits(torch.tensor([torch.inf], dtype=rows.encoding.dtype))[0]
        self._least = np.full((len(places), self._k + 1), self._infinite)
        self._most = 4 * self._k + tied
        self._many = np.zeros(len(places), dtype=np.int64)
        self._tied = np.zeros(len(places), dtype=bool)
        self._seen: list[tuple[Array, Array, Array]] = []
        self._slack, self._square = (
            max(float(of[start:stop].max(initial=0.0)) for start, stop in stretches) for of in (rows.slack.numpy(), rows.square.numpy())
        )
        self._limits = self._limit()  # invariant: of reach and slack as they are; what is tied has none

    def see(self, stretches: Stretches) -> None:
        """Compare the block with the rows in `stretches`, by one product."""
        places = np.concatenate([np.arange(*stretch) for stretch in stretches])
        product = self._room.product(self._centres, self._operand(stretches, -len(places) % _UNIT))
        found = bits(product)[: len(self._places), : len(places)]
        near = self._near(product, len(places))
        if self._cut and (count := counts(near)).sum() > len(found) * self._k / 8:
            self._tighten(found if 4 * int(count.max()) > len(places) else _packed(found, near, count, self._infinite))
            near = self._near(product, len(places))
        row, column = where(near)
        self._seen.append((row, places[column], found[row, column]))
        if self._cut:
            self._many += np.bincount(row, minlength=len(self._many))
            if (self._many > self._most).any():
                self._forget()

    def _near(self, product: torch.Tensor, count: int) -> Array:
        """Tell (m, n) bool which products, the first `count` of each row, are within the limits."""
        near = self._room.at_most(bits(product)[: len(self._places)], self._limits)
        near[:, count:] = False
        return near

    def _operand(self, stretches: Stretches, more: int) -> torch.Tensor:
        """Return the rows in `stretches` as operands, and so many more, whichever they are."""
        every = self._rows.operand
        if len(stretches) == 1 and stretches[0][1] + more <= len(every):
            return every[stretches[0][0] : stretches[0][1] + more]
        return torch.cat([every[start:stop] for start, stop in stretches] + [every[torch.arange(more) % len(every)]])

    def _forget(self) -> None:
        """Let go of what was near when it was seen, and isn't any more; rows of which too many are left are tied."""
        row, place, found = (np.concatenate(parts) for parts in zip(*self._seen, strict=True))
        keep = found <= self._limits[row]
        self._many = np.bincount(row[keep], minlength=len(self._many))
        self._tied |= self._many > self._most
        self._limits[self._tied] = np.iinfo(self._limits.dtype).min
        self._many[self._tied] = 0  # nothing more is seen of these
        keep &= ~self._tied[row]
        self._seen = [(row[keep], place[keep], found[keep])]

    def _tighten(self, found: Array) -> None:
        """Lower the reach to that of the k nearest so far, and the row itself: what lies beyond is not wanted."""
        self._least = np.partition(np.concatenate([self._least, found], axis=1), self._k, axis=1)[:, : self._k + 1]
        last = torch.from_numpy(self._least[:, self._k].copy()).view(self._rows.encoding.dtype)
        upper = self._rows.encoding.upper(last, self._rows.slack[torch.from_numpy(self._places)] + self._slack)
        np.minimum(self._reach, upper, out=self._reach)
        self._limits = self._limit()

    def _limit(self) -> Array:
        result = bits(self._rows.limit(self._reach, self._places, self._slack, self._square)).copy()
        result[self._tied] = np.iinfo(result.dtype).min
        return result

    def found(self, stretches: Stretches) -> NearPairs:
        """Gather the pairs that belong there, of tied rows by float32."""
        row, place, found = (np.concatenate(parts) for parts in zip(*self._seen, strict=True))
        order = np.argsort(row, kind="stable")
        row, place, found = row[order], place[order], found[order]
        if self._cut:
            count = np.bincount(row, minlength=len(self._places))
            self._least = np.full((len(count), max(self._k + 1, int(count.max()))), self._infinite)
            self._least[row, ranks(count)] = found
            self._tighten(self._least[:, :0])
        keep = (found <= self._limits[row]) & (place != self._places[row])
        row, place, product = row[keep], place[keep], torch.from_numpy(found[keep]).view(self._rows.encoding.dtype)
        upper = self._rows.upper(product, self._places[row], place)
        if self._tied.any():
            tied, near = self._by_float32(stretches)
            row, place = np.concatenate([row, tied]), np.concatenate([place, near])
            product = torch.cat([product, torch.full((len(tied),), torch.inf, dtype=product.dtype)])
            upper = np.concatenate([upper, np.full(len(tied), np.inf)])
        order = np.argsort(row, kind="stable")
        return NearPairs(row[order], place[order], product[torch.from_numpy(order)], upper[order])

    def _by_float32(self, stretches: Stretches) -> tuple[Array, Array]:
        """Find (row, place) of the k + 8 others that are nearest to each tied row; of those found equally near, the first."""
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

"""Each row's nearest centre, the exact squared distance to it, and the sum of these for each centre, while rows become centres.

A new centre is nearer to few rows, and one product tells which those may be. It is made for many rows that
may become centres soon: what it rules out stays ruled out, since distances only shrink.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from raystream.selection.bounds import Encoding, unfilled
from raystream.selection.encoded_rows import EncodedRows
from raystream.selection.nearest import Centres, block_rows, nearest
from raystream.selection.rows import Array, squared_distances
from raystream.selection.threads import each

_BLOCK = 8192
_CENTRES_AT_ONCE = 4096
_SUM_BITS = 61
_DISTANCES = 2048
"""Rows whose differences from a centre are kept at a time."""
_SEVERAL = 8192
"""More distances than this are worth several threads."""
_AT_ONCE = 32
"""Rows that a product is made for; a multiple of 16, for which bfloat16 units are made."""
_REMEMBERED = 4
"""Of so many products the results are kept."""
_ORDERED = 64
"""Rows of a cell that are put in order at a time."""
_NO_ROWS = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class _Foresight:
    """Which rows may be nearer to some centres than to their own.

    Attributes:
        centres: the rows that may become centres.
        blocks: the first row of each block, places from there on, int32, and (k + 1,) where the places of each centre begin.
    """

    centres: Sequence[int]
    blocks: list[tuple[int, Array, Array]]

    def rows(self, centre: int) -> Array:
        """(m,) int64, ascending."""
        which = self.centres.index(centre)
        return np.concatenate([begin + places[starts[which] : starts[which + 1]].astype(np.int64) for begin, places, starts in self.blocks])


class Cells:
    """The cells of centres, numbered as these came: the labelled ones first.

    Attributes:
        size: how many there are.
        squared: (n,) float64 squared distances to the nearest centre; inf before the first.
    """

    def __init__(self, x: Array, labelled: Array, encoding: Encoding, encoded: EncodedRows, picks: int) -> None:
        n = len(x)
        assert encoded.copy is not None
        self._x, self._encoding = x, encoding
        self._operand, self._slack = encoded.copy
        self.size = len(labelled)
        self.squared = np.full(n, np.inf)
        self._of = np.zeros(n, dtype=np.int32)
        # a product above a row's limit means that its present centre is nearer; to be made anew where the row has moved
        self._limit, self._moved = unfilled((n,), encoding.dtype), np.ones(n, dtype=bool)
        self._largest_slack = float(self._slack.max())
        self._largest_square = float(encoding.row_squares(self._operand).max())
        self._sum = np.zeros(len(labelled) + min(picks, n), dtype=np.int64)
        self._free = np.ones(len(self._sum), dtype=bool)
        # invariant: a cell gets no rows after its first ones; those that have left it may still be in both lists
        self._members: list[Array] = []
        self._leading: list[Array] = []
        self._foreseen: deque[_Foresight] = deque(maxlen=_REMEMBERED)
        # what a pick leaves of its cell's sum, as of late
        self._left = 0.5
        self._peak, self._exponent = 0, 0
        if len(labelled):
            self._start(labelled)

    def sum_of(self, cell: int) -> float:
        """The sum of squared distances."""
        return math.ldexp(float(self._sum[cell]), -self._power)

    def largest(self, alive: Array) -> int | None:
        """The cell with the largest sum, the earliest at a tie, that has rows alive, of (n,); None if no row is."""
        while True:
            cell = int(np.argmax(np.where(self._free[: self.size], self._sum[: self.size], -1)))
            if not self._free[cell]:
                return None
            if len(self.first(cell, alive, 1)):
                return cell
            self._free[cell] = False  # for good: it gets no more rows

    def first(self, cell: int, alive: Array, count: int) -> Array:
        """The first `count` rows alive of a cell, from the farthest on, the lower one at a tie; fewer if no more are left."""
        rows = self._leading[cell]
        rows = rows[(self._of[rows] == cell) & alive[rows]]
        if len(rows) < count:
            members = self._members[cell]
            self._members[cell] = members = members[self._of[members] == cell]
            rows = in_order(members[alive[members]], self.squared, max(_ORDERED, 4 * count))
        self._leading[cell] = rows
        return rows[:count]

    def add(self, row: int, alive: Array) -> None:
        """The row becomes a centre; those alive may become centres later."""
        number, self.size = self.size, self.size + 1
        if number == 0:
            self.squared[:] = squared_to(self._x, self._x[row])
            self._settle()
            return
        rows = self._nearer(row, alive)
        squared = squared_to(self._x, self._x[row], rows)
        nearer = squared < self.squared[rows]
        rows, squared = rows[nearer], squared[nearer]
        before, old = float(self._sum.max()), int(self._of[row])
        np.subtract.at(self._sum, self._of[rows], self._units(self.squared[rows]))
        if before > 0:
            self._left = 0.8 * self._left + 0.2 * float(self._sum[old]) / before
        self._sum[number] = self._units(squared).sum()
        self._of[rows], self.squared[rows], self._moved[rows] = number, squared, True
        self._members.append(rows)
        self._leading.append(_NO_ROWS)
        if (power := self._unit()) != self._power:
            self._sum_up(power)

    def _start(self, labelled: Array) -> None:
        """Put each row to its nearest labelled row."""
        parts = range(0, len(labelled), _CENTRES_AT_ONCE)
        chunks = [(begin, Centres.of(labelled[begin : begin + _CENTRES_AT_ONCE], self._encoding)) for begin in parts]

        def see(at: slice) -> None:
            for begin, chunk in chunks:
                found = nearest(self._x[at], chunk, exact_distance=True)
                nearer = found.upper < self.squared[at]
                self.squared[at] = np.where(nearer, found.upper, self.squared[at])
                self._of[at] = np.where(nearer, found.index + begin, self._of[at])

        each(self._blocks(block_rows(min(len(labelled), _CENTRES_AT_ONCE))), lambda: see)
        self._settle()

    def _settle(self) -> None:
        """Every row has a centre for the first time."""
        cells = np.split(np.argsort(self._of, kind="stable"), np.cumsum(np.bincount(self._of, minlength=self.size))[:-1])
        self._members, self._leading = list(cells), [_NO_ROWS] * self.size
        self._peak = int(np.argmax(self.squared))
        self._exponent = math.frexp(float(self.squared[self._peak]))[1]
        self._sum_up(self._unit())

    def _blocks(self, size: int) -> list[slice]:
        return [slice(begin, min(begin + size, len(self._x))) for begin in range(0, len(self._x), size)]

    def _unit(self) -> int:
        """p, from the largest distance at present: sums are of multiples of 2^-p."""
        peak = float(self.squared[self._peak])
        # while the peak keeps its exponent, it is that of the largest distance; zero's means nothing
        if not peak or math.frexp(peak)[1] != self._exponent:
            self._peak = int(np.argmax(self.squared))
            self._exponent = math.frexp(float(self.squared[self._peak]))[1]
        return _SUM_BITS - math.ceil(math.log2(max(len(self._x), 2))) - self._exponent

    def _sum_up(self, power: int) -> None:
        self._power = power
        self._sum[:] = 0
        np.add.at(self._sum, self._of, self._units(self.squared))

    def _units(self, squared: Array) -> Array:
        """int64, below 2^61 / n: no order of summing changes a sum."""
        result: Array = np.rint(np.ldexp(squared, self._power)).astype(np.int64)
        return result

    def _nearer(self, row: int, alive: Array) -> Array:
        """The rows that may be nearer to this one than to their centres, ascending."""
        for foresight in self._foreseen:
            if row in foresight.centres:
                return foresight.rows(row)
        foresight = self._foresee([row, *self._next(alive, _AT_ONCE - 1)])
        self._foreseen.append(foresight)
        return foresight.rows(row)

    def _next(self, alive: Array, count: int) -> list[int]:
        """Up to `count` rows that may become centres soon, as if each took from its cell alone, as much as of late."""
        seen = {row for foresight in self._foreseen for row in foresight.centres}
        sums = np.where(self._free[: self.size], self._sum[: self.size], -1)
        sums[self.size - 1] = -1  # its rows are not known yet
        heap = [(-float(sums[cell]), int(cell)) for cell in np.argsort(-sums, kind="stable")[:count] if sums[cell] >= 0]
        heapq.heapify(heap)
        used = dict.fromkeys((cell for _, cell in heap), 0)
        result: list[int] = []
        for _ in range(4 * count):
            if not heap or len(result) == count:
                break
            value, cell = heapq.heappop(heap)
            rows = self.first(cell, alive, used[cell] + 1)
            if len(rows) <= used[cell]:
                continue
            row = int(rows[used[cell]])
            if row not in seen:
                result.append(row)
            used[cell] += 1
            heapq.heappush(heap, (value * self._left, cell))
        return result

    def _foresee(self, centres: list[int]) -> _Foresight:
        """One product of all rows with rows that may become centres."""
        count, encoding = len(centres), self._encoding
        operand = encoding.centres(self._x[centres + centres[-1:] * (-count % 16 if encoding.bfloat16 else 0)])[0]
        bits = torch.int16 if encoding.bfloat16 else torch.int32

        def start() -> Callable[[slice], tuple[int, Array, Array]]:
            room = unfilled((len(operand) * _BLOCK,), encoding.dtype)

            def look(at: slice) -> tuple[int, Array, Array]:
                size = at.stop - at.start
                self._renew(at)
                product = torch.mm(operand, self._operand[at].T, out=room[: len(operand) * size].view(len(operand), size))
                # as integers: the order is the same, and a negative product can only stand for zero
                found, limit = product[:count].view(bits).numpy(), self._limit[at].view(bits).numpy()
                flat = np.flatnonzero(found < limit if encoding.exact else found <= limit)
                starts = np.searchsorted(flat, np.arange(count + 1) * size)
                return at.start, (flat % size).astype(np.int32), starts

            return look

        return _Foresight(centres, each(self._blocks(_BLOCK), start))

    def _renew(self, at: slice) -> None:
        """Bring the limits of the rows that have moved up to date."""
        rows = at.start + np.flatnonzero(self._moved[at])
        if len(rows):
            which = torch.from_numpy(rows)
            square = self._encoding.row_squares(self._operand[which]) + self._largest_square
            self._limit[which] = self._encoding.limit(self.squared[rows], self._slack[which].double() + self._largest_slack, square)
            self._moved[at] = False


def squared_to(x: Array, point: Array, rows: Array | None = None) -> Array:
    """(m,) float64 squared distances of `rows` of x, or of all, to a point, by the definition, in bounded memory."""
    result = np.empty(len(x) if rows is None else len(rows))

    def see(begin: int) -> None:
        at = slice(begin, begin + _DISTANCES)
        result[at] = squared_distances(x[at] if rows is None else x[rows[at]], point)

    if len(result) <= _SEVERAL:
        for begin in range(0, len(result), _DISTANCES):
            see(begin)
    else:
        each(range(0, len(result), _DISTANCES), lambda: see)
    return result


def in_order(rows: Array, squared: Array, count: int) -> Array:
    """The first `count` of these rows, ascending, by `squared` (n,) descending, the lower one at a tie; all if there are fewer."""
    value = squared[rows]
    if len(rows) > count:
        last = np.partition(value, len(rows) - count)[len(rows) - count]
        above = rows[value > last]
        rows = np.concatenate([above, rows[value == last][: count - len(above)]])
        value = squared[rows]
    result: Array = rows[np.lexsort((rows, -value))]
    return result

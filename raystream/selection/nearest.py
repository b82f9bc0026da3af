"""To each row its nearest centre, exact in float64, from one bounded product and a few differences.

While rows become centres, each row's nearest one, the exact squared distance to it, and each centre's sum of these are kept. A new
centre is nearer to few rows, and one product tells which those may be. It is made for many rows that may become centres soon: what it
rules out stays ruled out, since distances only shrink.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from raystream.selection.bounds import EncodedRows, Encoding, smallest_products, unfilled
from raystream.selection.rows import Array, squared_distances
from raystream.threads import each, one_thread

_PRODUCTS = 1 << 21
"""Products that are kept at a time: with the operands they stay in the processor's second-level caches."""
_MANY_LEFT = 7
"""Where products leave more pairs than this for each row that they don't decide, one distance is worth what it rules out."""
_PAIR_BYTES = 1 << 20
"""Differences that are kept at a time; more than the caches hold takes four times as long, most of it in page faults."""


@dataclass(frozen=True)
class Nearest:
    """For m rows: `index` (m,) int64 of the nearest centre, the lowest at a tie; `upper` (m,) float64, a bound of its squared distance."""

    index: Array
    upper: Array


def block_rows(centres: int) -> int:
    """Choose how many rows to multiply at a time."""
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
    """Find the nearest of `centres` (at least one) to each row of `x`, (m, d) float32.

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
    pairs = np.flatnonzero(undecided[row])
    if len(pairs) > _MANY_LEFT * max(int(undecided.sum()), 1):
        some = torch.from_numpy(np.flatnonzero(undecided))
        square = near_square[some] + operand[some, x.shape[1]].double() * (1 + 2.0**-7)
        slacks = slack[some].double() + near_slack[some]

        def limits(squared: Array) -> Array:
            found: Array = centres.encoding.limit(squared, slacks, square).view(bits).numpy()
            return found

        product = out.view(bits).numpy().ravel()[flat[pairs]]
        pairs = pairs[_still_open(x, centres.x, row[pairs], centre[pairs], product, limits)]
    index[undecided], upper[undecided] = _resolve(x, centres.x, row[pairs], centre[pairs], exact_distance)
    return Nearest(index, upper)


def near_bounds(encoding: Encoding, operand: torch.Tensor, slack: torch.Tensor, products: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return (m, c) float64 bounds of the slack and of the square, both scaled, of whatever is as near to a row as a product of it says.

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


def _still_open(x: Array, c: Array, row: Array, centre: Array, product: Array, limits: Callable[[Array], Array]) -> Array:
    """Tell (pairs,) bool which pairs a row's distance to the centre of its smallest product leaves open; that one is among them.

    Args:
        x, c: rows and centres.
        row, centre: (pairs,) int64, sorted by row.
        product: (pairs,) as integers.
        limits: the products, of these rows in turn, above which a centre is certainly farther than (rows,) float64 squared distances.
    """
    first = np.diff(row, prepend=-1) != 0
    starts, group = np.flatnonzero(first), np.cumsum(first) - 1
    smallest = np.flatnonzero(product == np.minimum.reduceat(product, starts)[group])
    smallest = smallest[np.flatnonzero(np.diff(group[smallest], prepend=-1))]
    squared = float32_distances(x, c, row[smallest], centre[smallest])
    left: Array = product <= limits(squared * (1 + _error(x)) + _tiny(x))[group]
    return left


def _error(x: Array) -> float:
    """Return twice what summing d squares of differences in float32 can err by, relatively; what underflows is below `_tiny`."""
    return float((x.shape[1] + 8) * 2.0**-23)


def _tiny(x: Array) -> float:
    return float(x.shape[1] * 2.0**-120)


def _resolve(x: Array, c: Array, row: Array, centre: Array, exact_distance: bool) -> tuple[Array, Array]:
    """Resolve (index, upper) for the rows that occur among the pairs (row, centre), which are sorted by row, then centre."""
    if not len(row):
        return row, np.empty(0)
    value = float32_distances(x, c, row, centre)
    error, tiny = _error(x), _tiny(x)
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
    """Return (pairs,) float64 squared distances of x[row] and c[centre] in float32: 0 for equal ones, infinite where squares overflow."""
    result = np.empty(len(row), dtype=np.float64)
    step = max(_PAIR_BYTES // (8 * max(x.shape[1], 1)), 1)
    room = np.empty((2, min(step, len(row)), x.shape[1]), dtype=np.float32)
    with np.errstate(over="ignore"):
        for begin in range(0, len(row), step):
            which = slice(begin, begin + step)
            difference, other = room[:, : len(row[which])]
            # "clip" because "raise" would copy to memory of its own first; no number is out of range
            np.take(x, row[which], axis=0, out=difference, mode="clip")
            np.take(c, centre[which], axis=0, out=other, mode="clip")
            difference -= other
            result[which] = np.einsum("ij,ij->i", difference, difference)
    return result


def pair_distances(x: Array, c: Array, row: Array, centre: Array) -> Array:
    """Return (pairs,) float64 squared distances of x[row] and c[centre] by the definition, in bounded memory."""
    result = np.empty(len(row), dtype=np.float64)
    step = max(_PAIR_BYTES // (8 * max(x.shape[1], 1)), 1)
    for begin in range(0, len(row), step):
        which = slice(begin, begin + step)
        result[which] = squared_distances(x[row[which]], c[centre[which]])
    return result


_BLOCK = 8192
CENTRES_AT_ONCE = 4096
"""Of more of them, those nearest in each so many are compared: a thread holds all products of its rows."""
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
        """Return the rows, (m,) int64, ascending."""
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
        """Return the sum of squared distances of a cell."""
        return math.ldexp(float(self._sum[cell]), -self._power)

    def largest(self, alive: Array) -> int | None:
        """Find the cell with the largest sum, the earliest at a tie, that has rows alive, of (n,); None if no row is."""
        while True:
            cell = int(np.argmax(np.where(self._free[: self.size], self._sum[: self.size], -1)))
            if not self._free[cell]:
                return None
            if len(self.first(cell, alive, 1)):
                return cell
            self._free[cell] = False  # for good: it gets no more rows

    def first(self, cell: int, alive: Array, count: int) -> Array:
        """Find the first `count` rows alive of a cell, from the farthest on, the lower one at a tie; fewer if no more are left."""
        rows = self._leading[cell]
        rows = rows[(self._of[rows] == cell) & alive[rows]]
        if len(rows) < count:
            members = self._members[cell]
            self._members[cell] = members = members[self._of[members] == cell]
            rows = in_order(members[alive[members]], self.squared, max(_ORDERED, 4 * count))
        self._leading[cell] = rows
        return rows[:count]

    def add(self, row: int, alive: Array) -> None:
        """Make the row a centre; those alive may become centres later."""
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
        parts = range(0, len(labelled), CENTRES_AT_ONCE)
        chunks = [(begin, Centres.of(labelled[begin : begin + CENTRES_AT_ONCE], self._encoding)) for begin in parts]

        def see(at: slice) -> None:
            for begin, chunk in chunks:
                found = nearest(self._x[at], chunk, exact_distance=True)
                nearer = found.upper < self.squared[at]
                self.squared[at] = np.where(nearer, found.upper, self.squared[at])
                self._of[at] = np.where(nearer, found.index + begin, self._of[at])

        each(self._blocks(block_rows(min(len(labelled), CENTRES_AT_ONCE))), lambda: see)
        self._settle()

    def _settle(self) -> None:
        """Give every row a centre for the first time."""
        cells = np.split(np.argsort(self._of, kind="stable"), np.cumsum(np.bincount(self._of, minlength=self.size))[:-1])
        self._members, self._leading = list(cells), [_NO_ROWS] * self.size
        self._peak = int(np.argmax(self.squared))
        self._exponent = math.frexp(float(self.squared[self._peak]))[1]
        self._sum_up(self._unit())

    def _blocks(self, size: int) -> list[slice]:
        return [slice(begin, min(begin + size, len(self._x))) for begin in range(0, len(self._x), size)]

    def _unit(self) -> int:
        """Return p, from the largest distance at present: sums are of multiples of 2^-p."""
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
        """Return int64 multiples, below 2^61 / n: no order of summing changes a sum."""
        result: Array = np.rint(np.ldexp(squared, self._power)).astype(np.int64)
        return result

    def _nearer(self, row: int, alive: Array) -> Array:
        """Find the rows that may be nearer to this one than to their centres, ascending."""
        for foresight in self._foreseen:
            if row in foresight.centres:
                return foresight.rows(row)
        foresight = self._foresee([row, *self._next(alive, _AT_ONCE - 1)])
        self._foreseen.append(foresight)
        return foresight.rows(row)

    def _next(self, alive: Array, count: int) -> list[int]:
        """Guess up to `count` rows that may become centres soon, as if each took from its cell alone, as much as of late."""
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
        """Make one product of all rows with rows that may become centres."""
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
    """Return (m,) float64 squared distances of `rows` of x, or of all, to a point, by the definition, in bounded memory."""
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
    """Find the first `count` of these rows, ascending, by `squared` (n,) descending, the lower one at a tie; all if there are fewer."""
    value = squared[rows]
    if len(rows) > count:
        last = np.partition(value, len(rows) - count)[len(rows) - count]
        above = rows[value > last]
        rows = np.concatenate([above, rows[value == last][: count - len(above)]])
        value = squared[rows]
    result: Array = rows[np.lexsort((rows, -value))]
    return result

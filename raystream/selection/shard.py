"""One stretch of the candidates, and which of its rows lead the order of farthest-first.

Those are chosen from one after the other. A few rows at the head, the front, are compared with every row that is chosen. The others wait
with what they were worth at first, and are brought up to date, many at once, when they come to the head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from raystream.selection.bounds import CentreList, EncodedRows, Encoding, Look, Total, encode_rows, on_grid, unfilled
from raystream.selection.lazy_bounds import Gain, LazyBounds, rough_rank
from raystream.selection.nearest import pair_distances
from raystream.selection.represents import Covering, cover
from raystream.selection.rows import Array, Block, Rows, squared_distances, tensor
from raystream.threads import each


@dataclass(frozen=True)
class LeadingRows:
    """The rows that lead the order, and a bound on all others.

    Attributes:
        rows: (q,) int64, ascending.
        x: (q, d) float32, their vectors.
        squared: (q,) float64, their squared distances to the nearest centre.
        bound: (gain, row) of the first row that is not among them, by its upper bound; None when there is none.
    """

    rows: Array
    x: Array
    squared: Array
    bound: tuple[float, int] | None


def first_in_order(found: Sequence[tuple[float, int]]) -> tuple[float, int]:
    """Find the first of (gain, row) by gain descending, then row ascending."""
    return min(found, key=lambda pair: (-pair[0], pair[1]))


def ordered(gain: Array, rows: Array, count: int) -> tuple[Array, Array]:
    """Find the first `count` of (gain, row), float64 and int64, by gain descending, then row ascending."""
    order = np.lexsort((rows, -gain))[:count]
    return gain[order], rows[order]


def merge(answers: Sequence[LeadingRows]) -> LeadingRows:
    """Merge the answers of all shards, which lie in row order."""
    if len(answers) == 1:
        return answers[0]
    bounds = [answer.bound for answer in answers if answer.bound is not None]
    return LeadingRows(
        np.concatenate([answer.rows for answer in answers]),
        np.concatenate([answer.x for answer in answers]),
        np.concatenate([answer.squared for answer in answers]),
        first_in_order(bounds) if bounds else None,
    )


class Shard:
    """A stretch of the candidates, and what farthest-first keeps for each of them."""

    pure = frozenset({"survey", "sample", "on_grid", "total", "farthest", "cover"})
    fresh = frozenset({"begin"})

    def __init__(self, rows: Rows, block: int) -> None:
        self._rows, self._start, self._stop, self._block = rows, rows.start, rows.stop, block
        # kept from one choice to the next: all that depends on the rows and the encoding alone
        self._encoded: tuple[tuple[Encoding, Look, bool], EncodedRows] | None = None

    def survey(self) -> tuple[float, Array]:
        """Find the largest absolute value among finite rows, and the rows that are not finite."""
        seen = each(self._rows.blocks(self._start, self._stop, self._block), lambda: _reach)
        bad = [rows for _, rows in seen if len(rows)]
        return max((largest for largest, _ in seen), default=0.0), np.concatenate(bad) if bad else np.empty(0, dtype=np.int64)

    def sample(self, step: int) -> Array:
        """Read (s, d) float32, every row whose number is a multiple of `step`."""
        return self._rows.gather(np.arange(-(-self._start // step) * step, self._stop, step))

    def on_grid(self, power: int) -> bool:
        """See `Shards.on_grid`."""
        right = True

        def look(block: Block) -> None:
            nonlocal right
            right = right and on_grid(block.read(), power)

        each(self._rows.blocks(self._start, self._stop, self._block // 8 or 1), lambda: look)
        return right

    def total(self, power: int) -> Array:
        """See `Shards.total`."""
        totals = each(self._rows.blocks(self._start, self._stop, self._block // 4 or 1), lambda: _sum(Total(power, self._rows.width)))
        return np.sum(totals, axis=0) if totals else np.zeros(self._rows.width)

    def begin(self, encoding: Encoding, look: Look, gain: Gain, cached: bool) -> Array:
        """Forget every centre; returns the rows' sum, see `Look`.

        Args:
            encoding: of the rows.
            look: what to look at meanwhile.
            gain: of this stretch alone.
            cached: whether to keep a working copy.
        """
        asked = encoding, look, cached
        if self._encoded is None or not _same(self._encoded[0], asked):
            self._encoded = None  # the old copy goes before a new one is made
            self._encoded = asked, encode_rows(self._rows, encoding, look, keep=cached, block=self._block // 4 or 1)
        self._gain, self._near, found = gain, look.near, self._encoded[1]
        self._bounds = LazyBounds(self._rows, encoding, found, gain)
        self._reach = found.reach
        return found.total

    def farthest(self, point: Array, exclude: Array, count: int) -> tuple[Array, Array]:
        """See `Shards.farthest`; fewer when the shard has no more rows for it."""
        off = float(np.sqrt(squared_distances(point, self._near)))
        upper = self._gain.of(np.square(self._reach + off) * (1 + 2.0**-40))
        upper[self._mine(exclude)] = -np.inf
        gain, found = np.empty(0), np.empty(0, dtype=np.int64)
        ask = max(1024, 2 * count)
        while len(order := _leading(upper, ask)):
            for begin in range(0, len(order), 4096):
                rows = np.sort(order[begin : begin + 4096])
                exact = self._gain.of(squared_distances(self._rows.gather(rows + self._start), point), rows)
                gain, found = ordered(np.concatenate([gain, exact]), np.concatenate([found, rows]), count)
            upper[order] = -np.inf
            after = int(np.argmax(upper))
            if len(found) == count and (-upper[after], after) > (-gain[-1], found[-1]):
                break
            ask *= 4
        return gain, found + self._start

    def _mine(self, rows: Array) -> Array:
        """Return those of the candidates `rows` that lie in this shard, numbered from its own start."""
        return rows[(rows >= self._start) & (rows < self._stop)] - self._start

    def advance(self, centres: Array, taken: Array, count: int, least: int) -> LeadingRows:
        """See `Shards.advance`."""
        self._bounds.drop(self._mine(taken))
        self._bounds.add(centres)
        return self._answer(count, least)

    def refine(self, gain: float, count: int, least: int) -> LeadingRows:
        """See `Shards.refine`."""
        self._bounds.settle_from(gain)
        return self._answer(count, least)

    def cover(self, centres: Array, chosen: int) -> Covering:
        """See `Shards.cover`."""
        return cover(self._rows, centres, chosen)

    def _answer(self, count: int, least: int) -> LeadingRows:
        bounds = self._bounds
        bounds.catch_up(count)
        order, bound = _leading(bounds.gain, count + 1), None
        if len(order) > count:
            last = int(order[-1])
            order, bound = order[:-1], (float(bounds.gain[last]), last + self._start)
        rows = np.sort(order)
        x, gain = bounds.settle(rows), bounds.gain[rows]
        # what comes after the bound now is of no use, but for the first ones, which tell how far to refine
        kept = gain >= (-np.inf if bound is None else bound[0])
        if kept.sum() < least:
            kept[np.argsort(-gain, kind="stable")[:least]] = True
        if not kept.all():
            rows, x = rows[kept], x[kept]
        return LeadingRows(rows + self._start, x, bounds.squared[rows], bound)


def _sum(total: Total) -> Callable[[Block], Array]:
    return lambda block: total.of(block.read())


def _same(one: tuple[Encoding, Look, bool], other: tuple[Encoding, Look, bool]) -> bool:
    return one[0].same(other[0]) and one[1].same(other[1]) and one[2] == other[2]


def _reach(block: Block) -> tuple[float, Array]:
    """Find the largest absolute value, 0 if it is not finite, and the rows that are not finite."""
    x, none = block.read(), np.empty(0, dtype=np.int64)
    if x.size == 0:
        return 0.0, none
    low, high = torch.aminmax(tensor(x))
    reach = max(-low.item(), high.item())
    return (reach, none) if np.isfinite(reach) else (0.0, block.start + np.flatnonzero(~np.isfinite(x).all(axis=1)))


def _leading(gain: Array, count: int) -> Array:
    """Find the places of the first `count` gains above -inf, descending, then by place; the last comes last."""
    rough = max(rough_rank(gain, count), np.finfo(np.float64).min) if len(gain) > count else np.finfo(np.float64).min
    rows = np.flatnonzero(gain >= rough)
    if len(rows) < count and rough > np.finfo(np.float64).min:
        rows = np.flatnonzero(gain > -np.inf)
    if len(rows) < count:
        return rows
    value = gain[rows]
    last = np.partition(value, len(value) - count)[len(value) - count]
    above = rows[value > last]
    ties = rows[value == last][: count - len(above)]
    return np.concatenate([above, ties])


_FRONT, _LONGEST_FRONT = 512, 4096
_FEW_TAKEN = 8
"""A front that is formed anew after fewer rows were taken gets twice as long."""
_CENTRES = 512
"""Centres that rows are compared with at a time, when they come to the head."""
_NOWHERE = (-np.inf, -1)


class Leaders:
    """The rows that one answer of the shards returned, still to be chosen from.

    Attributes:
        rows: (q,) int64, ascending, so that the first of equal gains is the lowest row.
        x: (q, d) float32.
    """

    def __init__(self, answer: LeadingRows, centres: CentreList, gain: Gain, count: int) -> None:
        self.rows, self.x, self._bound = answer.rows, answer.x, answer.bound
        self._centres, self._encoding = centres, centres.encoding
        self._gain_of = gain.at(self.rows)
        # invariant: _squared[i] is the squared distance to the nearest of the first _known[i] centres
        self._squared, self._gain = answer.squared, self._gain_of.of(answer.squared)
        self._known = np.full(len(self.rows), len(centres))
        self._operand = unfilled((len(self.rows), centres.encoding.width), torch.float32)
        # bounds of their squared lengths, as in _operand; -1 before that is made
        self._square = np.full(len(self.rows), -1.0)
        # how long the front is to be, and how many centres there were when it was formed
        self._size, self._renewed = max(_FRONT, 2 * count), -_FEW_TAKEN
        # invariant: the rows at _front, ascending, know all centres; all others come at _floor, a (gain, place), or after it
        self._front, self._floor = np.empty(0, dtype=np.int64), (np.inf, -1)
        self._front_operand, self._front_limit = self._operand[:0], np.empty(0)

    def distance(self, place: int) -> float:
        """Return that of a row which `first` returned."""
        return float(np.sqrt(self._squared[place]))

    def gain(self, place: int) -> float:
        """Return the gain of a row that `first` returned."""
        return float(self._gain[place])

    def remove(self, which: Array) -> None:
        """Remove the rows at these places, which can't be chosen."""
        self._gain[which] = -np.inf

    @property
    def left(self) -> bool:
        """True if a row is left to choose."""
        return bool((self._gain > -np.inf).any())

    def take(self, place: int) -> None:
        """Make a row that `first` returned a centre."""
        self._gain[place] = -np.inf
        operand = self._encoding.as_centre(self._operand[place])
        reached = self._centres.largest_square
        self._centres.append(self.x[place], operand, float(self._square[place]))
        if self._centres.largest_square > reached:  # products with a longer centre err by more
            self._front_limit = self._limit(self._front)
        if self._squared[place] == 0:  # it equals a centre, so that none is nearer to it
            return
        product = torch.mv(self._front_operand, operand).numpy()
        near = np.flatnonzero(product <= self._front_limit)
        if not len(near):
            return
        places = self._front[near]
        if self._encoding.exact:
            squared = np.maximum(product[near], 0.0, dtype=np.float64) * 4.0**-self._encoding.power
        else:
            squared = squared_distances(self.x[places], self.x[place])
        nearer = squared < self._squared[places]
        places, squared = places[nearer], squared[nearer]
        self._squared[places] = squared
        left = self._gain[places] > -np.inf
        self._gain[places[left]] = self._gain_of.of(squared[left], places[left])
        self._front_limit[near[nearer]] = self._limit(places)

    def first(self, count: int) -> Array | None:
        """Find the places of the first `count` candidates in order; fewer if no more are left; None when the shards have to be asked."""
        while True:
            first = self._in_front(count)
            if len(first) == count:
                last = int(first[-1])
                gain = float(self._gain[last])
                if gain > self._floor[0] or (gain == self._floor[0] and last < self._floor[1]):
                    return first if self._before_bound(last) else None
            elif self._floor == _NOWHERE:
                return first if self._bound is None and len(first) else None
            self._renew()

    def best(self, count: int) -> float:
        """Return the gain of the last of the first `count` rows that are left, of which there must be one."""
        bound, self._bound = self._bound, None
        first = self.first(count)
        self._bound = bound
        assert first is not None
        return float(self._gain[first[-1]])

    def _in_front(self, count: int) -> Array:
        gain = self._gain[self._front]
        if count == 1:
            lead = int(np.argmax(gain)) if len(gain) else 0
            return self._front[lead : lead + 1] if len(gain) and gain[lead] > -np.inf else self._front[:0]
        order = np.argsort(-gain, kind="stable")[:count]
        result: Array = self._front[order[gain[order] > -np.inf]]
        return result

    def _before_bound(self, place: int) -> bool:
        """Tell whether the row comes before every row that was not returned."""
        if self._bound is None:
            return True
        gain = float(self._gain[place])
        return gain > self._bound[0] or (gain == self._bound[0] and bool(self.rows[place] < self._bound[1]))

    def _renew(self) -> None:
        """Let the front hold the rows that are first by what is known, and bring them up to date."""
        self._known[self._front] = len(self._centres)
        if len(self._centres) - self._renewed < _FEW_TAKEN and self._size < _LONGEST_FRONT:
            self._size *= 2
        size, self._renewed = self._size, len(self._centres)
        rows = np.flatnonzero(self._gain > -np.inf)
        if len(rows) > size:
            gain = self._gain[rows]
            value = np.sort(gain)[len(gain) - size]  # numpy's partition is slow on ties, its sort is not
            above, ties = rows[gain > value], rows[gain == value]
            spare = size - len(above)
            self._front = np.sort(np.concatenate([above, ties[:spare]]))
            if len(ties) > spare:
                self._floor = (float(value), int(ties[spare]))
            else:
                below = np.where(gain < value, gain, -np.inf)
                lead = int(np.argmax(below))
                self._floor = (float(below[lead]), int(rows[lead]))
        else:
            self._front, self._floor = rows, _NOWHERE
        self._encode(self._front[self._square[self._front] < 0])
        stale = self._front[(self._known[self._front] < len(self._centres)) & (self._squared[self._front] > 0)]
        if len(stale):
            self._refresh(stale)
        self._front_operand, self._front_limit = self._operand[torch.from_numpy(self._front)], self._limit(self._front)

    def _encode(self, which: Array) -> None:
        if len(which):
            operand = self._encoding.rows(self.x[which])[0]
            self._operand[torch.from_numpy(which)] = operand
            self._square[which] = self._encoding.row_squares(operand).numpy()

    def _refresh(self, which: Array) -> None:
        """Bring the rows at these places up to date: float64 for the pairs that a float32 product can't rule out."""
        rows, squared, known = self._operand[torch.from_numpy(which)], self._squared[which], self._known[which]
        scale, width = 4.0**self._encoding.power, self._width(which)
        for begin in range(int(known.min()), len(self._centres), _CENTRES):
            product = torch.mm(rows, self._centres.operand[begin : begin + _CENTRES].T).numpy()
            smallest = np.maximum(product.min(axis=1), 0.0, dtype=np.float64)
            if self._encoding.exact:
                np.minimum(squared, smallest * 4.0**-self._encoding.power, out=squared)
                continue
            near = product <= (np.minimum(smallest, squared * scale) + width)[:, None]
            row, centre = np.nonzero(near)
            new = centre + begin >= known[row]
            row, centre = row[new], centre[new]
            if len(row):
                np.minimum.at(squared, row, pair_distances(self.x, self._centres.x, which[row], centre + begin))
        self._squared[which], self._gain[which] = squared, self._gain_of.of(squared, which)

    def _limit(self, places: Array) -> Array:
        """Return (m,) the products above which a centre is certainly farther than the row's nearest one."""
        result: Array = self._squared[places] * 4.0**self._encoding.power + self._width(places)
        return result

    def _width(self, places: Array) -> Array:
        """Return by how much a product may exceed another and still be that of the nearer centre."""
        return self._encoding.width_of(self._square[places] + self._centres.largest_square)

"""The rows that lead the order of farthest-first, with distances made exact as late as possible.

A value computed some picks ago is an upper bound, so a row's distance is brought up to date only when
the row comes to the head of the order: Minoux' lazy greedy (1978), inside farthest-first.
"""

from __future__ import annotations

import numpy as np
import torch

from raystream.selection.bounds import Encoding
from raystream.selection.gain import Gain
from raystream.selection.nearest import pair_distances
from raystream.selection.rows import Array
from raystream.selection.shard import Answer

_FEW, _MANY = 32, 2048
"""The fewest and most rows to bring up to date at a time."""
_LONG = 64
"""More centres than this to compare with pay for a larger batch of rows."""
_FRONT = 2048


class CentreList:
    """The labelled and chosen rows, in order, as (k, d) float32 and as operands of a float32 product."""

    def __init__(self, encoding: Encoding, first: Array, capacity: int) -> None:
        self.encoding = encoding
        self._size = 0
        self._x = np.empty((len(first) + capacity, first.shape[1]), dtype=np.float32)
        self._operand = np.empty((len(self._x), encoding.width), dtype=np.float32)
        self.largest_square = 0.0
        self.add(first)

    def __len__(self) -> int:
        return self._size

    def add(self, x: Array) -> None:
        """Append (m, d) float32 centres."""
        at = slice(self._size, self._size + len(x))
        self._x[at] = x
        self._operand[at] = self.encoding.centres(self._x[at])[0].numpy()
        self._size += len(x)
        if len(x):
            self.largest_square = max(self.largest_square, float(self._operand[at, -1].max()))

    @property
    def x(self) -> Array:
        """(k, d) float32."""
        return self._x[: self._size]

    @property
    def operand(self) -> Array:
        """(k, width) float32."""
        return self._operand[: self._size]


class Leaders:
    """The rows that one answer of the shards returned, still to be chosen from.

    Attributes:
        rows: (q,) int64, ascending, so that the first of equal gains is the lowest row.
        squared: (q,) float64 upper bounds of the squared distances; exact for a row that `head` returned.
        gain: (q,) float64, of `squared`; -inf for a row that is gone.
    """

    def __init__(self, answer: Answer, centres: CentreList, gain: Gain, previous: Leaders | None = None) -> None:
        self.rows, self.x, self.bound = answer.rows, answer.x, answer.bound
        self.squared = answer.squared
        self._gain = gain.at(self.rows)
        self._centres = centres
        # invariant: _exact[i] is the squared distance to the first _known[i] centres by the definition
        self._exact = np.full(len(self.rows), np.inf)
        self._known = np.zeros(len(self.rows), dtype=np.int64)
        self._operand = centres.encoding.rows(self.x)[0].numpy()
        if previous is not None:
            self._inherit(previous)
        self.gain = self._gain.of(self.squared)
        # invariant: no row outside _front has a gain above _floor
        self._front, self._floor = np.empty(0, dtype=np.int64), np.inf

    def _inherit(self, previous: Leaders) -> None:
        _, here, there = np.intersect1d(self.rows, previous.rows, assume_unique=True, return_indices=True)
        self._exact[here], self._known[here] = previous._exact[there], previous._known[there]
        np.minimum(self.squared, self._exact, out=self.squared)

    def remove(self, which: Array | int) -> None:
        """Rows at these places are chosen or can't be."""
        self.gain[which] = -np.inf

    def first(self, count: int) -> Array | None:
        """The places of the first `count` of all candidates, in order; fewer if no more are left; None when the shards have to be asked."""
        if count == 1:
            head = self.head()
            return None if head is None else np.asarray([head])
        size = _FEW
        while True:
            order = self._order(count + size)
            first = order[:count]
            if not len(first) or (self.bound is not None and (len(first) < count or not self._before_bound(int(first[-1])))):
                return None
            if not len(self._lacking(first)):
                return first
            stale = self._lacking(order)
            # rows that lack many centres are no reason to compare the others with all of them
            many = len(self._centres) - self._known[stale] > _LONG
            for group in (stale[~many], stale[many]):
                for begin in range(0, len(group), _MANY):
                    self._refresh(group[begin : begin + _MANY])
            size = min(4 * size, _MANY)

    def _lacking(self, places: Array) -> Array:
        """Those of the places that are not up to date."""
        result: Array = places[(self._known[places] < len(self._centres)) & (self.squared[places] > 0)]
        return result

    def _before_bound(self, place: int) -> bool:
        """Whether the row comes before every row that was not returned."""
        if self.bound is None:
            return True
        gain = float(self.gain[place])
        return gain > self.bound[0] or (gain == self.bound[0] and bool(self.rows[place] < self.bound[1]))

    def head(self) -> int | None:
        """The place of the row that comes first of all candidates; None when the shards have to be asked."""
        size = _FEW
        while True:
            lead = self._lead()
            if lead < 0 or self.gain[lead] == -np.inf or not self._before_bound(lead):
                return None
            if self._known[lead] == len(self._centres) or self.squared[lead] == 0:  # zero can't shrink
                return lead
            stale = self._stale(lead, size)
            if len(self._centres) - int(self._known[stale].min()) > _LONG:
                # many centres to compare with: worth it for more rows at once, and not for those that lack few
                more = self._stale(lead, min(16 * size, _MANY))
                more = more[len(self._centres) - self._known[more] > _LONG]
                stale = more if len(more) else stale  # none of them where many tie
            self._refresh(stale)
            size = min(4 * size, _MANY)

    def best(self, count: int) -> float:
        """The exact gain of the last of the first `count` rows that are left, of which there must be one; brings those up to date."""
        bound, self.bound = self.bound, None
        first = self.first(count)
        self.bound = bound
        assert first is not None
        return float(self.gain[first[-1]])

    @property
    def left(self) -> bool:
        """Whether a row is left to choose."""
        return bool((self.gain > -np.inf).any())

    def _lead(self) -> int:
        """The first in order by what is known; -1 without any rows. Looks at few rows: gains only shrink."""
        if len(self._front):
            lead = int(self._front[np.argmax(self.gain[self._front])])
            if self.gain[lead] > self._floor:
                return lead
        if not len(self.rows):
            return -1
        self._renew(_FRONT)
        return int(np.argmax(self.gain))

    def _order(self, count: int) -> Array:
        """The first `count` in order by what is known; fewer when no more are left."""
        order = self._in_front(count)
        if len(self.rows) and (len(order) < count or self.gain[order[-1]] <= self._floor):
            self._renew(max(_FRONT, 2 * count))
            order = self._in_front(count)
        result: Array = order[self.gain[order] > -np.inf]
        return result

    def _in_front(self, count: int) -> Array:
        result: Array = self._front[np.argsort(-self.gain[self._front], kind="stable")[:count]]
        return result

    def _renew(self, size: int) -> None:
        """Let the front hold the first `size` rows and those that tie with the last of them."""
        last = max(len(self.gain) - size, 0)
        value = np.sort(self.gain)[last]  # numpy's partition is slow on ties, its sort is not
        inside = self.gain >= value
        self._front = np.flatnonzero(inside)
        self._floor = float(np.max(self.gain, where=~inside, initial=-np.inf))

    def _stale(self, lead: int, size: int) -> Array:
        """Rows among about the first `size` that are not up to date, of which `lead` is one."""
        first = self._front
        if size < len(first):
            gain = self.gain[first]
            first = first[gain >= np.sort(gain)[len(gain) - size]][: 2 * size]
        stale = (self._known[first] < len(self._centres)) & (self.squared[first] > 0) & (self.gain[first] > -np.inf)
        result: Array = first[stale]
        return result if lead in result else np.append(result, lead)

    def _refresh(self, which: Array) -> None:
        """Make the rows at `which` exact: float64 for the pairs that a float32 product can't rule out."""
        reach = self._width(self._operand[which, -2])
        scale = 4.0**self._centres.encoding.power
        limit = self.squared[which] * scale + reach
        exact = self._exact[which]
        rows = torch.from_numpy(self._operand[which])
        for begin in range(int(self._known[which].min()), len(self._centres), _MANY):
            end = min(begin + _MANY, len(self._centres))
            product = torch.mm(rows, torch.from_numpy(self._centres.operand[begin:end]).T).numpy()
            smallest = product.min(axis=1)
            if self._centres.encoding.exact:
                np.minimum(exact, smallest / scale, out=exact)
                continue
            near = np.minimum(smallest + reach, limit)
            row, centre = np.nonzero(product <= near[:, None])
            if len(row):
                np.minimum.at(exact, row, pair_distances(self.x, self._centres.x, which[row], centre + begin))
        self._exact[which] = self.squared[which] = exact
        self._known[which] = len(self._centres)
        self.gain[which] = self._gain.of(exact, which)

    def _width(self, square: Array) -> Array:
        """What a product may exceed the smallest one by and still belong to the nearest centre."""
        return self._centres.encoding.width_of(square.astype(np.float64) + self._centres.largest_square)

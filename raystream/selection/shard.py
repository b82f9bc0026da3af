"""One stretch of the candidates, and which of its rows lead the order of farthest-first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from raystream.selection.bounds import Encoding, on_grid
from raystream.selection.encoded_rows import EncodedRows, Look, Total, encode_rows
from raystream.selection.gain import Gain
from raystream.selection.lazy_bounds import LazyBounds, rough_rank
from raystream.selection.represents import Covering, cover
from raystream.selection.rows import Array, Block, Rows, squared_distances, tensor
from raystream.selection.threads import each


@dataclass(frozen=True)
class Answer:
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
    """The first of (gain, row) by gain descending, then row ascending."""
    return min(found, key=lambda pair: (-pair[0], pair[1]))


def ordered(gain: Array, rows: Array, count: int) -> tuple[Array, Array]:
    """The first `count` of (gain, row), float64 and int64, by gain descending, then row ascending."""
    order = np.lexsort((rows, -gain))[:count]
    return gain[order], rows[order]


def merge(answers: Sequence[Answer]) -> Answer:
    """The answers of all shards, which lie in row order, as one."""
    if len(answers) == 1:
        return answers[0]
    bounds = [answer.bound for answer in answers if answer.bound is not None]
    return Answer(
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
        """The largest absolute value among finite rows, and the rows that are not finite."""
        seen = each(self._rows.blocks(self._start, self._stop, self._block), lambda: _reach)
        bad = [rows for _, rows in seen if len(rows)]
        return max((largest for largest, _ in seen), default=0.0), np.concatenate(bad) if bad else np.empty(0, dtype=np.int64)

    def sample(self, step: int) -> Array:
        """(s, d) float32, every row whose number is a multiple of `step`."""
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
        """Those of the candidates `rows` that lie in this shard, from its own start."""
        return rows[(rows >= self._start) & (rows < self._stop)] - self._start

    def advance(self, centres: Array, taken: Array, count: int, least: int) -> Answer:
        """See `Shards.advance`."""
        self._bounds.drop(self._mine(taken))
        self._bounds.add(centres)
        return self._answer(count, least)

    def refine(self, gain: float, count: int, least: int) -> Answer:
        """See `Shards.refine`."""
        self._bounds.settle_from(gain)
        return self._answer(count, least)

    def cover(self, centres: Array, chosen: int) -> Covering:
        """See `Shards.cover`."""
        return cover(self._rows, centres, chosen)

    def _answer(self, count: int, least: int) -> Answer:
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
        return Answer(rows + self._start, x, bounds.squared[rows], bound)


def _sum(total: Total) -> Callable[[Block], Array]:
    return lambda block: total.of(block.read())


def _same(one: tuple[Encoding, Look, bool], other: tuple[Encoding, Look, bool]) -> bool:
    return one[0].same(other[0]) and one[1].same(other[1]) and one[2] == other[2]


def _reach(block: Block) -> tuple[float, Array]:
    """The largest absolute value, 0 if it is not finite, and the rows that are not finite."""
    x, none = block.read(), np.empty(0, dtype=np.int64)
    if x.size == 0:
        return 0.0, none
    low, high = torch.aminmax(tensor(x))
    reach = max(-low.item(), high.item())
    return (reach, none) if np.isfinite(reach) else (0.0, block.start + np.flatnonzero(~np.isfinite(x).all(axis=1)))


def _leading(gain: Array, count: int) -> Array:
    """The places of the first `count` gains above -inf, descending, then by place; the last comes last."""
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

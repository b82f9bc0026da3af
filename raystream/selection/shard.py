"""One stretch of the candidates, with an upper bound of each row's squared distance to the nearest centre."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from raystream.selection.bounds import Encoding, smallest_products
from raystream.selection.gain import Gain
from raystream.selection.nearest import Centres, block_rows, nearest
from raystream.selection.represents import Covering, cover
from raystream.selection.rows import Array, Block, Rows, squared_distances, tensor
from raystream.selection.threads import each

_CENTRES_AT_ONCE = 1024
_FEWEST_CENTRES = 32
"""A narrower product takes as long; centres are repeated up to this number."""


@dataclass(frozen=True)
class Answer:
    """The rows that lead the order, and a bound on all others.

    Attributes:
        rows: (q,) int64, ascending.
        x: (q, d) float32, their vectors.
        squared: (q,) float64 upper bounds of their squared distances to the nearest centre.
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
    bounds = [answer.bound for answer in answers if answer.bound is not None]
    return Answer(
        np.concatenate([answer.rows for answer in answers]),
        np.concatenate([answer.x for answer in answers]),
        np.concatenate([answer.squared for answer in answers]),
        first_in_order(bounds) if bounds else None,
    )


class Shard:
    """A stretch of the candidates, and what farthest-first keeps for each of them."""

    pure = frozenset({"survey", "total", "farthest", "cover"})
    fresh = frozenset({"begin"})

    def __init__(self, rows: Rows, block: int) -> None:
        self._rows, self._start, self._stop, self._block = rows, rows.start, rows.stop, block

    def survey(self) -> tuple[float, Array]:
        """The largest absolute value among finite rows, and the rows that are not finite."""
        seen = each(self._rows.blocks(self._start, self._stop, self._block), lambda: _reach)
        bad = [rows for _, rows in seen if len(rows)]
        return max((largest for largest, _ in seen), default=0.0), np.concatenate(bad) if bad else np.empty(0, dtype=np.int64)

    def total(self, power: int, grid: int) -> tuple[Array, bool]:
        """See `Shards.total`: integers below 2^53, so that no order of summing changes the result."""
        size, on_grid = max(self._block // 8, 1), True

        def start() -> Callable[[Block], Array]:
            room = torch.empty((2, size, self._rows.width), dtype=torch.float64)

            def add(block: Block) -> Array:
                nonlocal on_grid
                wide, rounded = room[:, : block.stop - block.start]
                wide.copy_(tensor(block.read()))
                if on_grid:
                    wide.mul_(2.0**grid)
                    if not torch.equal(wide, torch.round(wide, out=rounded)):
                        on_grid = False
                    wide.mul_(2.0**-grid)
                result: Array = wide.mul_(2.0**power).round_().sum(0).numpy()
                return result

            return add

        totals = each(self._rows.blocks(self._start, self._stop, size), start)
        return np.sum(totals, axis=0) if totals else np.zeros(self._rows.width), on_grid

    def begin(self, encoding: Encoding, gain: Gain, cached: bool) -> None:
        """Forget every centre; `gain` is of this stretch alone, `cached` asks for a working copy of it."""
        n = self._stop - self._start
        self._encoding = encoding
        self._gain = gain
        self._squared = np.full(n, np.inf)
        self._alive = np.ones(n, dtype=bool)
        self._centres: list[Array] = []
        self._copy: tuple[torch.Tensor, torch.Tensor] | None = None
        if cached:
            operand, slack = torch.empty((n, encoding.width), dtype=encoding.dtype), torch.empty(n)

            def encode(block: Block) -> None:
                at = self._at(block)
                slack[at] = encoding.rows(block.read(), operand[at])[1]

            each(self._rows.blocks(self._start, self._stop, self._block // 4 or 1), lambda: encode)
            self._copy = operand, slack

    def _at(self, block: Block) -> slice:
        return slice(block.start - self._start, block.stop - self._start)

    def _operands(self, size: int) -> Iterator[tuple[slice, Block | None]]:
        """Where the operands are, block by block: in the working copy, or else still to be encoded from a block of the parts."""
        if self._copy is None:
            yield from ((self._at(block), block) for block in self._rows.blocks(self._start, self._stop, size))
            return
        n = self._stop - self._start
        yield from ((slice(begin, min(begin + size, n)), None) for begin in range(0, n, size))

    def farthest(self, point: Array, exclude: Array, count: int) -> tuple[Array, Array]:
        """See `Shards.farthest`; fewer when the shard has no more rows for it."""
        limit = np.empty(self._stop - self._start)

        def bound(block: Block) -> None:
            limit[self._at(block)] = _float32_reach(block.read(), point)

        each(self._rows.blocks(self._start, self._stop, self._block // 4 or 1), lambda: bound)
        upper = self._gain.of(limit)
        upper[self._mine(exclude)] = -np.inf
        gain, found = np.empty(0), np.empty(0, dtype=np.int64)
        ask = max(1024, 2 * count)
        while len(order := _leading(upper, upper > -np.inf, ask)):
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

    def advance(self, centres: Array, taken: Array, count: int) -> Answer:
        """See `Shards.advance`."""
        self._alive[self._mine(taken)] = False
        if len(centres):
            self._centres.append(centres)
            self._apply(centres)
        return self._answer(count)

    def _apply(self, centres: Array) -> None:
        chunks = [_operand(centres[i : i + _CENTRES_AT_ONCE], self._encoding) for i in range(0, len(centres), _CENTRES_AT_ONCE)]
        widest = max(len(operand) for operand, _ in chunks)
        size = block_rows(widest)
        each(self._operands(size), lambda: self._shrink(chunks, size, widest))

    def _shrink(self, chunks: list[tuple[torch.Tensor, float]], size: int, widest: int) -> Callable[[tuple[slice, Block | None]], None]:
        """One thread's work in a pass: bring bounds down to those by the centres in `chunks`."""
        room = torch.empty(size * widest, dtype=self._encoding.dtype)
        rows = torch.empty((size if self._copy is None else 0, self._encoding.width), dtype=self._encoding.dtype)

        def shrink(item: tuple[slice, Block | None]) -> None:
            at, block = item
            if block is not None:
                operand, slack = self._encoding.rows(block.read(), rows[: block.stop - block.start])
            else:
                assert self._copy is not None
                operand, slack = self._copy[0][at], self._copy[1][at]
            for centre, centre_slack in chunks:
                out = room[: len(operand) * len(centre)].view(len(operand), len(centre))
                smallest = smallest_products(operand, centre, out)
                squared = self._encoding.upper(smallest, slack.double() + centre_slack)
                np.minimum(self._squared[at], squared, out=self._squared[at])

        return shrink

    def refine(self, gain: float, count: int) -> Answer:
        """See `Shards.refine`."""
        ask = self._alive & (self._gain.of(self._squared) >= gain)
        centres = Centres.of(np.concatenate(self._centres), self._encoding)
        rows = np.flatnonzero(ask)
        size = block_rows(len(centres.x))

        def exact(item: tuple[Array, Array]) -> None:
            which, x = item
            self._squared[which] = nearest(x, centres, exact_distance=True).upper

        pieces = (rows[begin : begin + size] for begin in range(0, len(rows), size))
        each(((which, self._rows.gather(which + self._start)) for which in pieces), lambda: exact)
        return self._answer(count)

    def cover(self, centres: Array, chosen: int) -> Covering:
        """See `Shards.cover`."""
        return cover(self._rows, centres, chosen)

    def _answer(self, count: int) -> Answer:
        gain = self._gain.of(self._squared)
        order = _leading(gain, self._alive, count + 1)
        bound = None
        if len(order) > count:
            last = int(order[-1])
            order, bound = order[:-1], (float(gain[last]), last + self._start)
        rows = np.sort(order)
        return Answer(rows + self._start, self._rows.gather(rows + self._start), self._squared[rows], bound)


def _reach(block: Block) -> tuple[float, Array]:
    """The largest absolute value, 0 if it is not finite, and the rows that are not finite."""
    x, none = block.read(), np.empty(0, dtype=np.int64)
    if x.size == 0:
        return 0.0, none
    low, high = torch.aminmax(tensor(x))
    reach = max(-low.item(), high.item())
    return (reach, none) if np.isfinite(reach) else (0.0, block.start + np.flatnonzero(~np.isfinite(x).all(axis=1)))


def _operand(centres: Array, encoding: Encoding) -> tuple[torch.Tensor, float]:
    operand, slack = encoding.centres(centres)
    if len(operand) < _FEWEST_CENTRES and encoding.bfloat16:
        operand = operand.repeat(-(-_FEWEST_CENTRES // len(operand)), 1)
    return operand, slack


def _float32_reach(x: Array, point: Array) -> Array:
    """(m,) float64 upper bounds of the squared distances of (m, d) float32 rows to a float64 point."""
    near = point.astype(np.float32)
    wide = tensor(x) - torch.from_numpy(near)
    rounding = float(np.sqrt(np.square(point - near.astype(np.float64)).sum())) + x.shape[1] * 2.0**-60
    length = torch.linalg.vector_norm(wide, dim=1).double().numpy()
    if not np.isfinite(length).all():  # squares beyond float32
        length = np.sqrt(squared_distances(x, near))
    result: Array = np.square(length * (1 + (x.shape[1] + 32) * 2.0**-23) + rounding) * (1 + 2.0**-40)
    return result


def _leading(gain: Array, alive: Array, count: int) -> Array:
    """The positions of the first `count` alive rows by gain descending, then row ascending; the last comes last."""
    rows = np.flatnonzero(alive)
    if len(rows) >= count:
        sample = gain[rows[:: max(len(rows) // 65536, 1)]]
        rank = max(len(sample) - 1 - int(1.3 * count * len(sample) / len(rows)) - 64, 0)
        rough = np.partition(sample, rank)[rank]
        kept = rows[gain[rows] >= rough]
        rows = kept if len(kept) >= count else rows
        value = gain[rows]
        last = np.partition(value, len(value) - count)[len(value) - count]
        above = rows[value > last]
        ties = rows[value == last][: count - len(above)]
        return np.concatenate([above, ties])
    return rows

"""One stretch of the candidates for D-squared sampling: an upper bound of each row's squared distance D, and weights made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from raystream.selection.constraints import Constraints
from raystream.selection.geometry import CENTRES_AT_ONCE, Geometry, Operands, Vectors, Wide, joined, nearest_squared
from raystream.selection.rows import Array, Block, Rows
from raystream.selection.shard import Shard, first_in_order
from raystream.selection.threads import each

BLOCK = 4096
"""Rows that are weighed together; by their numbers among all candidates, whatever the pieces."""
_EXACT_ROWS = 512
_Read = list[list[Block]]
"""What a block's vectors are read from, source by source."""


@dataclass(frozen=True)
class Proposed:
    """The rows that proposals fell on: `which` (m,) int64 of the proposals, their `rows`, `weight` (int64) and `vectors`."""

    which: Array
    rows: Array
    weight: Array
    vectors: Vectors


class DSquaredPiece:
    """A stretch of the candidates, whole blocks of them.

    Args:
        rows: the embeddings.
        beside: what else makes up a row's vectors; comes before the embedding.
    """

    pure = frozenset({"survey", "propose", "rows", "holds_free", "farthest"})
    fresh = frozenset({"begin"})

    def __init__(self, rows: Rows, *beside: Rows) -> None:
        self._sources, self._start, self._stop, self._block = (*beside, rows), rows.start, rows.stop, BLOCK

    def survey(self) -> list[tuple[float, Array]]:
        """Per source the largest absolute value, and the rows that are not finite."""
        return [Shard(rows, self._block).survey() for rows in self._sources]

    def begin(self, geometry: Geometry, memory: float, block: int) -> None:
        """Encode the rows, if there is memory for it; nothing is covered yet.

        Args:
            geometry: of the vectors.
            memory: bytes for the working copy of these rows; when it doesn't fit, every pass reads them again.
            block: rows that are weighed together; no influence on any draw but through the last bits of matrix products.
        """
        self._memory, self._block = memory, block
        # invariant: at least D; 0 only if D is 0 or the row is gone
        self._upper = np.full(self._stop - self._start, np.inf)
        # rows that are taken, or blocked, which they remain
        self._gone = np.zeros(self._stop - self._start, dtype=bool)
        self._geometry = geometry
        self._centres: list[Vectors] = []
        self._copy: list[Operands] | None = None
        if geometry.row_bytes * len(self._upper) <= self._memory:
            self._copy = each(self._vectors(), lambda: lambda blocks: geometry.rows(_read(blocks)))

    def drop(self, rows: Array) -> None:
        """Candidates (int64) that are taken or blocked; those of other pieces are of no account."""
        mine = rows[(rows >= self._start) & (rows < self._stop)] - self._start
        self._gone[mine] = True
        self._upper[mine] = 0.0

    def drop_blocked(self, constraints: Constraints) -> float:
        """Drop all rows that the constraints block, and answer as `advance` does."""
        rows = np.flatnonzero(self._upper > 0) + self._start
        for some in np.split(rows, range(self._block, len(rows), self._block)):
            self.drop(some[self._blocked(some, constraints)])
        return self._largest()

    def holds_free(self, constraints: Constraints | None) -> bool:
        """Whether any row might still be taken, covered or not."""
        rows = np.flatnonzero(~self._gone) + self._start
        if constraints is None:
            return len(rows) > 0
        return any(not self._blocked(some, constraints).all() for some in np.split(rows, range(self._block, len(rows), self._block)))

    def _blocked(self, rows: Array, constraints: Constraints) -> Array:
        return constraints.blocked(rows, self._sources[-1].gather(rows) if constraints.vectors else None)

    def advance(self, centres: Vectors | None, gone: Array) -> float:
        """Bring bounds down to those by new centres, drop the rows that are gone, and return the largest bound that is left."""
        if centres is not None:
            self._centres.append(centres)
            self._each_bound(centres, self._upper)
        self.drop(gone)
        return self._largest()

    def _largest(self) -> float:
        return float(self._upper.max(initial=0.0))

    def _each_bound(self, centres: Vectors, upper: Array) -> None:
        """upper (n,) = the least of itself and bounds by these centres; a block at a time, by one thread."""
        geometry, make = self._geometry, self._geometry.bounds(centres)

        def start() -> Callable[[tuple[slice, _Read | Operands]], None]:
            bound = make()

            def shrink(item: tuple[slice, _Read | Operands]) -> None:
                at, rows = item
                operands = geometry.rows(_read(rows)) if isinstance(rows, list) else rows
                np.minimum(upper[at], bound(operands), out=upper[at])

            return shrink

        blocks: Iterator[_Read | Operands] = self._vectors() if self._copy is None else iter(self._copy)
        edges = range(0, len(upper), self._block)
        each(((slice(edge, edge + self._block), rows) for edge, rows in zip(edges, blocks, strict=True)), start)

    def refine(self) -> float:
        """Make D exact for all rows, by the definition, and answer as `advance` does."""
        if self._geometry.exact or not self._centres:
            return self._largest()
        centres = joined(self._centres)
        chunks = [
            self._geometry.wide(tuple(c[i : i + CENTRES_AT_ONCE] for c in centres)) for i in range(0, len(centres[0]), CENTRES_AT_ONCE)
        ]

        def exact(rows: Array) -> None:
            self._upper[rows] = nearest_squared(self._geometry, self._wide(rows), chunks)

        rows = np.flatnonzero(self._upper > 0)
        each((rows[i : i + _EXACT_ROWS] for i in range(0, len(rows), _EXACT_ROWS)), lambda: exact)
        return self._largest()

    def farthest(self, point: Vectors) -> tuple[float, int] | None:
        """(D, row) of the row farthest from one point, exactly, the lowest at a tie; None when all rows are gone."""
        upper = np.where(self._gone, -np.inf, np.inf)
        self._each_bound(point, upper)
        centre = self._geometry.wide(point)
        best: tuple[float, int] | None = None
        count = _EXACT_ROWS
        while (upper > -np.inf).any() and (best is None or upper.max() >= best[0]):
            least = np.sort(upper)[max(len(upper) - count, 0)]
            rows = np.flatnonzero((upper >= least) & (upper > -np.inf))
            for some in np.split(rows, range(_EXACT_ROWS, len(rows), _EXACT_ROWS)):
                squared = nearest_squared(self._geometry, self._wide(some), [centre])
                lead = int(np.argmax(squared))
                found = (float(squared[lead]), int(some[lead]) + self._start)
                best = found if best is None else first_in_order([best, found])
            upper[rows] = -np.inf
            count *= 4
        return best

    def weigh(self, power: int | None) -> Array:
        """Make integer weights ceil(U 2^power), at least 1 where U > 0, or 1 for each row that is not gone; their sums, int64, by block."""
        positive = self._upper > 0
        weight = positive.astype(np.int64)
        if power is not None:
            np.maximum(weight, np.ceil(np.ldexp(self._upper, power)).astype(np.int64), out=weight)
        self._weight = weight
        edges = np.arange(0, len(weight), self._block)
        sums: Array = np.add.reduceat(weight, edges) if len(edges) else np.empty(0, dtype=np.int64)
        return sums

    def propose(self, blocks: Array, offsets: Array) -> Proposed:
        """The rows at which the prefix sums of the weights in `blocks` (m,) first exceed `offsets` (m,) int64.

        Args:
            blocks: by their numbers among all candidates; those of other pieces are left out.
            offsets: each below the sum of its block.
        """
        first, last = self._start // self._block, -(-self._stop // self._block)
        which = np.flatnonzero((blocks >= first) & (blocks < last))
        place = np.empty(len(which), dtype=np.int64)
        for block in np.unique(blocks[which]):
            here = np.flatnonzero(blocks[which] == block)
            edge = (int(block) - first) * self._block
            prefix = np.cumsum(self._weight[edge : edge + self._block])
            place[here] = edge + np.searchsorted(prefix, offsets[which][here], side="right")
        return Proposed(which, place + self._start, self._weight[place], self._gather(place))

    def rows(self, rows: Array) -> Vectors:
        """The vectors of those of the candidates (int64, ascending) that lie in this piece."""
        return self._gather(rows[(rows >= self._start) & (rows < self._stop)] - self._start)

    def _gather(self, place: Array) -> Vectors:
        return tuple(rows.gather(place + self._start) for rows in self._sources)

    def _wide(self, place: Array) -> Wide:
        return self._geometry.wide(self._gather(place))

    def _vectors(self) -> Iterator[_Read]:
        """Per block what it is read from, source by source."""
        yield from map(list, zip(*(_whole(rows, self._start, self._stop, self._block) for rows in self._sources), strict=True))


def _whole(rows: Rows, start: int, stop: int, size: int) -> Iterator[list[Block]]:
    """The candidates [start, stop) by blocks that end at multiples of `size`, whatever parts they lie in."""
    found: list[Block] = []
    for block in rows.blocks(start, stop, size):
        edge = min(-(-(block.start + 1) // size) * size, block.stop)
        for begin, end in ((block.start, edge), (edge, block.stop)):
            if begin < end:
                found.append(_cut(block, begin, end))
            if found and end % size == 0:
                yield found
                found = []
    if found:
        yield found


def _cut(block: Block, begin: int, end: int) -> Block:
    which = slice(begin - block.start, end - block.start)
    if block.positions is None:
        return Block(begin, end, block.array[which], None, block.metric)
    return Block(begin, end, block.array, block.positions[which], block.metric)


def _read(sources: _Read) -> Vectors:
    return tuple(blocks[0].read() if len(blocks) == 1 else np.concatenate([block.read() for block in blocks]) for blocks in sources)

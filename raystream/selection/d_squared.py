"""D-squared sampling, exact, in a few passes: each next row with probability proportional to D, its squared distance to those before it.

Arthur and Vassilvitskii, *k-means++: the advantages of careful seeding*, 2007; Ash et al., *Deep batch
active learning by diverse, uncertain gradient lower bounds* (BADGE), 2020.

D only shrinks as rows are chosen, so a value computed some picks ago is an upper bound U. Rows are
proposed in proportion to U and accepted with probability D / U: what is accepted follows the law of
sequential sampling, exactly. Weights are integers, w = ceil(U 2^e), whose sums are the same in any
order, and every draw is a function of the seed and of the proposal's number, so that no sharding,
batch size or thread changes a choice. A proposal that is blocked counts as rejected: the law is that of
sampling among the rows that are not.

Bounds are brought up to date by one product a pass when fewer than half of at least 32 proposals were
accepted. D itself is computed for all rows, in float64, when a product's bounds are no use: none was accepted, or half of
the first 32 would have been rejected before any row was taken, as happens where rows differ by less than a product's rounding.

A piece is one stretch of the candidates: an upper bound of each row's D, and weights made of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from raystream.selection.constraints import Constraints
from raystream.selection.geometry import CENTRES_AT_ONCE, Geometry, Operands, Vectors, Wide, joined, nearest_squared, take
from raystream.selection.hashing import philox
from raystream.selection.rows import Array, Block, Rows
from raystream.selection.shard import Shard, first_in_order
from raystream.selection.shards import DEFAULT_MEMORY, Pieces
from raystream.threads import each, one_thread

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
        """Find per source the largest absolute value, and the rows that are not finite."""
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
        """Drop candidates (int64) that are taken or blocked; those of other pieces are of no account."""
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
        """Tell whether any row might still be taken, covered or not."""
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
        """Lower upper (n,) to the least of itself and bounds by these centres; a block at a time, by one thread."""
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
        """Find (D, row) of the row farthest from one point, exactly, the lowest at a tie; None when all rows are gone."""
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
        """Find the rows at which the prefix sums of the weights in `blocks` (m,) first exceed `offsets` (m,) int64.

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
        """Read the vectors of those of the candidates (int64, ascending) that lie in this piece."""
        return self._gather(rows[(rows >= self._start) & (rows < self._stop)] - self._start)

    def _gather(self, place: Array) -> Vectors:
        return tuple(rows.gather(place + self._start) for rows in self._sources)

    def _wide(self, place: Array) -> Wide:
        return self._geometry.wide(self._gather(place))

    def _vectors(self) -> Iterator[_Read]:
        """Yield per block what it is read from, source by source."""
        yield from map(list, zip(*(_whole(rows, self._start, self._stop, self._block) for rows in self._sources), strict=True))


def _whole(rows: Rows, start: int, stop: int, size: int) -> Iterator[list[Block]]:
    """Yield the candidates [start, stop) by blocks that end at multiples of `size`, whatever parts they lie in."""
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


_FEWEST_PROPOSALS = 32
"""Before a refresh is considered."""
_AT_ONCE = 256
"""Proposals whose rows are asked for at a time; has no influence on any result."""


@dataclass(frozen=True)
class DSquared:
    """The result of D-squared sampling.

    Attributes:
        rows: (b,) int64 in order of choice.
        gain: (b,) float64, D when the row was taken; nan for a first row that was drawn uniformly.
        passes: how often all rows were gone over, refinements included.
        refinements: how many of the passes made D exact.
        proposals: how many rows were drawn.
        distinct: every row that is left is equal to a chosen one, or to a centre given.
    """

    rows: Array
    gain: Array
    passes: int
    refinements: int
    proposals: int
    distinct: bool


def d_squared(
    pieces: Pieces,
    n: int,
    k: int,
    geometry: Geometry,
    *,
    seed: int,
    centres: Vectors,
    memory: float = DEFAULT_MEMORY,
    block: int = BLOCK,
    origin: Vectors | None = None,
    constraints: Constraints | None = None,
) -> DSquared:
    """Sample up to k of n rows; `k_means_pp` and `badge` for those who have arrays.

    Args:
        pieces: of kind `DSquaredPiece`, in row order.
        n: how many rows they hold.
        k: how many rows at most; fewer come back when D is zero for all that are left.
        geometry: what D is.
        seed: of every draw.
        centres: rows that are covered from the start.
        memory: bytes for the working copy of each piece.
        block: rows that are weighed together.
        origin: the first pick without centres is the row farthest from this point, the lowest at a tie; None: drawn uniformly.
        constraints: rows that they block are passed over; they are told of the chosen rows.
    """
    sampling = _Sampling(pieces, n, min(k, n), geometry, seed, constraints)
    if n == 0 or k <= 0:
        return sampling.result(distinct=False)
    pieces.call("begin", geometry, memory, block)
    return sampling.run(centres, origin)


@dataclass
class _ProposalTally:
    """A count of what became of the proposals since the weights were made."""

    proposals: int = 0
    accepted: int = 0
    blocked: int = 0
    loose: bool = False  # most of the first proposals fail by the bounds as they were made, before any row was taken

    @property
    def stale(self) -> bool:
        """True if bounds have become too loose to go on with."""
        return self.proposals >= _FEWEST_PROPOSALS and 2 * self.accepted < self.proposals


class _Sampling:
    """One run: the centres, and what has been chosen."""

    def __init__(self, pieces: Pieces, n: int, k: int, geometry: Geometry, seed: int, constraints: Constraints | None) -> None:
        self._pieces, self._n, self._budget, self._geometry, self._seed = pieces, n, k, geometry, seed
        self._constraints = constraints
        self._centres: list[Wide] = []
        # since the last pass: new centres, and rows to drop
        self._new: list[Vectors] = []
        self._gone: list[int] = []
        self._rows: list[int] = []
        self._gain: list[float] = []
        self._proposals = self._passes = self._refinements = 0

    def result(self, *, distinct: bool) -> DSquared:
        rows, gain = np.asarray(self._rows, dtype=np.int64), np.asarray(self._gain, dtype=np.float64)
        return DSquared(rows, gain, self._passes, self._refinements, self._proposals, distinct)

    def run(self, centres: Vectors, origin: Vectors | None) -> DSquared:
        if self._constraints is not None:
            self._gone = self._constraints.taken.tolist()
        if len(centres[0]):
            self._new.append(centres)
            self._centres = [
                self._geometry.wide(take(centres, slice(i, i + CENTRES_AT_ONCE))) for i in range(0, len(centres[0]), CENTRES_AT_ONCE)
            ]
        elif not (self._first_uniform() if origin is None else self._first_farthest(origin)):
            return self.result(distinct=False)
        tally = _ProposalTally()
        while len(self._rows) < self._budget:
            largest = self._refresh(tally)
            if largest == 0:
                return self.result(distinct=any(self._pieces.call("holds_free", self._constraints)))
            # n weights of at most 2^(61 - log2 n) each: the total stays below 2^62
            power = 61 - self._n.bit_length() - math.frexp(largest)[1]
            tally = self._sample(power)
        return self.result(distinct=False)

    def _refresh(self, tally: _ProposalTally) -> float:
        """Bring the pieces up to date; the largest bound that is left."""
        largest = self._advance()
        self._passes += 1
        if tally.loose or (tally.proposals and not tally.accepted):
            largest = max(self._pieces.call("refine"))
            self._passes += 1
            self._refinements += 1
        if self._constraints is not None and 2 * tally.blocked > tally.proposals - tally.accepted:
            largest = max(self._pieces.call("drop_blocked", self._constraints))
        return largest

    def _advance(self) -> float:
        centres = joined(self._new) if self._new else None
        gone = np.asarray(self._gone, dtype=np.int64)
        self._new, self._gone = [], []
        return float(max(self._pieces.call("advance", centres, gone)))

    def _first_farthest(self, origin: Vectors) -> bool:
        """Take the row farthest from the origin; False when all rows are blocked."""
        swept = False
        while True:
            self._advance()
            found = [pair for pair in self._pieces.call("farthest", origin) if pair is not None]
            self._passes += 1
            if not found:
                return False
            squared, row = first_in_order(found)
            vectors = joined(self._pieces.call("rows", np.asarray([row])))
            if not self._blocked(row, vectors):
                self._take(row, squared, vectors)
                self._cover(vectors, self._geometry.wide(vectors))
                return True
            if not swept:
                self._pieces.call("drop_blocked", self._constraints)
                swept = True

    def _first_uniform(self) -> bool:
        """Take any row; False when all are blocked."""
        self._advance()
        while not self._rows:
            if not self._sample(None).proposals:
                return False
            if not self._rows:
                self._pieces.call("drop_blocked", self._constraints)
        return True

    def _sample(self, power: int | None) -> _ProposalTally:
        """Take rows until the bounds are stale or the budget is spent; after one row if `power` is None, which means equal weights."""
        prefix = np.cumsum(np.concatenate(self._pieces.call("weigh", power)))
        tally = _ProposalTally()
        while int(prefix[-1]) and not tally.stale and len(self._rows) < self._budget and not (power is None and tally.accepted):
            left = 1 if power is None else self._budget - len(self._rows)
            self._go_through(self._propose(prefix, min(max(2 * left, _FEWEST_PROPOSALS), _AT_ONCE)), power, tally)
        return tally

    def _propose(self, prefix: Array, count: int) -> _Proposals:
        """Draw the next `count` proposals. Those that are not gone through are drawn again later, from other weights."""
        words = philox(self._seed, "d_squared", self._proposals, count)
        total = int(prefix[-1])
        drawn = np.asarray([int(word) * total >> 64 for word in words[:, 0]], dtype=np.int64)
        blocks = np.searchsorted(prefix, drawn, side="right")
        offsets = drawn - np.concatenate([[0], prefix])[blocks]
        answers: list[Proposed] = [some for some in self._pieces.call("propose", blocks, offsets) if len(some.rows)]
        order = np.argsort(np.concatenate([some.which for some in answers]))
        rows, weight = np.concatenate([some.rows for some in answers])[order], np.concatenate([some.weight for some in answers])[order]
        level = words[:, 1].astype(np.float64) * 2.0**-64 * weight
        return _Proposals(rows, level, take(joined([some.vectors for some in answers]), order))

    def _go_through(self, proposals: _Proposals, power: int | None, tally: _ProposalTally) -> None:
        """Accept or reject one at a time, until the budget is spent or the bounds are stale."""
        taken: list[int] = []
        with one_thread():
            wide = self._geometry.wide(proposals.vectors)
            squared, lower = np.ones(len(proposals.rows)), None
            if self._centres:
                squared = nearest_squared(self._geometry, wide, self._centres)
                estimate, error = self._geometry.estimate(wide, wide)
                lower = np.subtract(estimate, error[:, None], out=estimate)
            if tally.proposals == 0:
                sound = proposals.level[:_FEWEST_PROPOSALS] < np.ldexp(squared[:_FEWEST_PROPOSALS], power or 0)
                tally.loose = 2 * int(sound.sum()) < len(sound)
            for i, row in enumerate(proposals.rows.tolist()):
                self._proposals += 1
                tally.proposals += 1
                if proposals.level[i] < math.ldexp(squared[i], power or 0):
                    if self._blocked(row, take(proposals.vectors, [i])):
                        tally.blocked += 1
                        self._gone.append(row)
                    else:
                        tally.accepted += 1
                        taken.append(i)
                        self._take(row, float(squared[i]) if self._centres else np.nan, take(proposals.vectors, [i]))
                        if lower is not None:
                            later = np.flatnonzero(lower[i + 1 :, i] < squared[i + 1 :]) + i + 1
                            now = self._geometry.squared(take(wide, later), take(wide, [i]))
                            squared[later] = np.minimum(squared[later], now)
                if tally.stale or len(self._rows) == self._budget or (lower is None and taken):
                    break
            if taken:
                self._cover(take(proposals.vectors, taken), take(wide, taken))

    def _blocked(self, row: int, vectors: Vectors) -> bool:
        return self._constraints is not None and bool(self._constraints.blocked(np.asarray([row]), vectors[-1])[0])

    def _take(self, row: int, squared: float, vectors: Vectors) -> None:
        self._rows.append(row)
        self._gain.append(squared)
        self._gone.append(row)
        if self._constraints is not None:
            self._constraints.take(row, vectors[-1][0])

    def _cover(self, vectors: Vectors, wide: Wide) -> None:
        """Count rows as centres, in chunks that are worth a product."""
        self._new.append(vectors)
        if self._centres and len(self._centres[-1][0]) + len(wide[0]) <= CENTRES_AT_ONCE:
            wide = joined([self._centres.pop(), wide])
        self._centres.append(wide)


@dataclass(frozen=True)
class _Proposals:
    """`rows` (m,) int64, `vectors` of them, and `level` (m,) float64: D 2^e above which a proposal is accepted."""

    rows: Array
    level: Array
    vectors: Vectors

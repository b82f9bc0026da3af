"""The candidates' embeddings, cut into stretches of rows that may lie in several processes.

Every question and answer is small (row numbers, vectors, gains), never the data. `LocalShards` answers from arrays and
memory maps of this process; with another `Spread`, actors answer in its place.

`Pieces` is the seam between an algorithm and the processes that hold its data: objects that each answer for a stretch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from raystream.selection.bounds import Encoding, Look, has_bfloat16_units
from raystream.selection.lazy_bounds import Gain
from raystream.selection.represents import Covering
from raystream.selection.rows import Array, ArrayPart, EmbeddingPart, Metric, Rows, as_rows
from raystream.selection.shard import LeadingRows, Shard, first_in_order, merge, ordered

__all__ = ["DEFAULT_MEMORY", "ArrayPart", "EmbeddingPart", "LeadingRows", "LocalShards", "Shards", "Survey", "working_bytes"]

Factory = Callable[..., Any]
"""Makes a piece; importable, as are its arguments picklable, since the piece may live in another process.

It may say of its methods, for whoever has to make a lost piece again: `pure`, the names of those that change nothing in
the piece, and `fresh`, of those after which no call before matters. All others are made again, in order.
"""


class Pieces(Protocol):
    """Objects made by one factory, in this process or in others, which may be lost and made again."""

    def call(self, method: str, *args: Any, apart: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        """Call `method(*args, *apart[i])` of each piece, and return the answers in row order."""


Spread = Callable[[Factory, Sequence[tuple[Any, ...]]], Pieces]
"""Makes `factory(*args)` for each of the arguments, one piece for each stretch of rows."""


class LocalPieces:
    """Pieces in this process, asked one after the other: each uses all threads."""

    def __init__(self, factory: Factory, args: Sequence[tuple[Any, ...]]) -> None:
        self._pieces = [factory(*own) for own in args]

    def call(self, method: str, *args: Any, apart: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        """See `Pieces`."""
        each = [()] * len(self._pieces) if apart is None else apart
        return [getattr(piece, method)(*args, *own) for piece, own in zip(self._pieces, each, strict=True)]


DEFAULT_MEMORY = 2 << 30
"""Bytes that a process may hold of the candidates' embeddings, unless it is told otherwise."""
_BLOCK = 8192


def working_bytes(rows: int, width: int) -> int:
    """Estimate how much memory, in bytes, the working copy of so many rows takes, in this processor's fastest precision."""
    return rows * Encoding(np.zeros(width, dtype=np.float32), 0, has_bfloat16_units(), exact=False).row_bytes


@dataclass(frozen=True)
class Survey:
    """The findings of one look at every row: the largest absolute value, and where values are not finite."""

    largest: float
    bad: int
    first_bad: tuple[int, ...]


class Shards:
    """The candidates 0 .. n-1 of width d, and one piece for each of several stretches of them.

    Args:
        rows: all candidates.
        count: how many stretches; has no influence on any result.
        spread: where the pieces are.
        memory: bytes that each piece may take for a working copy; one that doesn't fit is streamed from the parts, each pass.
        block: rows read at a time; has no influence on any result.

    Attributes:
        rows: all candidates; whoever gathers them reads them here.
        memory: as given.
        count: as given.
    """

    def __init__(self, rows: Rows, count: int, spread: Spread, *, memory: float, block: int = _BLOCK) -> None:
        self.rows = rows
        self.memory = memory
        self.count, self._spread = count, spread
        self._stretches = self.stretches(1)
        self._surveyed: Survey | None = None
        self._pieces = self.pieces(Shard, block)

    def pieces(self, factory: Factory, *args: Any, beside: Sequence[Rows] = (), block: int = 1) -> Pieces:
        """Make `factory(rows, *beside, *args)` for each stretch, where the stretch is: for algorithms with a state of their own.

        Args:
            factory: see `Factory`.
            args: the same for each.
            beside: more about the same candidates; cut as they are.
            block: each stretch is of whole blocks of so many rows, but for the last block; some stretches may then be empty.
        """
        every = [self.rows, *beside]
        return self._spread(factory, [(*(rows.slice(start, stop) for rows in every), *args) for start, stop in self.stretches(block)])

    def stretches(self, block: int) -> list[tuple[int, int]]:
        """Return the first row of each stretch, and the one behind its last, as `pieces` cuts them."""
        edges = np.linspace(0, -(-len(self.rows) // block), self.count + 1).astype(np.int64) * block
        return [(int(start), int(stop)) for start, stop in pairwise(np.minimum(edges, len(self.rows)))]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        """d."""
        return self.rows.width

    @property
    def metric(self) -> Metric:
        """The space that the rows are in."""
        return self.rows.metric

    def survey(self) -> Survey:
        """Find the largest absolute value, and the rows that hold NaN or infinities; looked for once."""
        if self._surveyed is None:
            surveys = self._pieces.call("survey")
            bad = np.concatenate([rows for _, rows in surveys])
            self._surveyed = Survey(max(largest for largest, _ in surveys), len(bad), tuple(int(row) for row in bad[:3]))
        return self._surveyed

    def sample(self, count: int) -> Array:
        """Read (s, d) float32, about `count` rows at even distances, the same for any sharding."""
        return np.concatenate(self._pieces.call("sample", max(len(self) // count, 1)))

    def on_grid(self, power: int) -> bool:
        """Tell whether all numbers are multiples of 2^-power."""
        return all(self._pieces.call("on_grid", power))

    def total(self, power: int) -> Array:
        """Return (d,) float64, the exact sum of the rows rounded to multiples of 2^-power."""
        total: Array = np.stack(self._pieces.call("total", power)).sum(axis=0)
        return total

    def begin(self, encoding: Encoding, look: Look, gain: Gain) -> Array:
        """Forget every centre; rows are ordered by `gain` from now on. Returns the sum of the rows, (d,), see `Look`."""
        totals = self._pieces.call(
            "begin",
            encoding,
            look,
            apart=[(gain.at(slice(start, stop)), self._fits(encoding, stop - start)) for start, stop in self._stretches],
        )
        total: Array = np.stack(totals).sum(axis=0)
        return total

    def reads(self, encoding: Encoding) -> bool:
        """Tell whether some rows have no working copy of this encoding, so that each pass reads them from the parts."""
        return not all(self._fits(encoding, stop - start) for start, stop in self._stretches)

    def _fits(self, encoding: Encoding, rows: int) -> bool:
        return encoding.row_bytes * rows <= self.memory

    def farthest(self, point: Array, exclude: Array, count: int) -> tuple[Array, Array]:
        """Find (gains, rows) of the first `count` in order, exactly, D being to a float64 `point`; fewer if no more are left."""
        found = self._pieces.call("farthest", point, exclude, count)
        return ordered(np.concatenate([gain for gain, _ in found]), np.concatenate([rows for _, rows in found]), count)

    def advance(self, centres: Array, taken: Array, count: int, least: int = 1) -> LeadingRows:
        """Apply (m, d) float32 centres, take the rows `taken` out, and return the rows that lead the order.

        About `count` rows are looked at; those that come before the bound are returned, and from each shard the first
        `least`, where it has as many.
        """
        return merge(self._pieces.call("advance", centres, taken, self._share(count, least), least))

    def refine(self, gain: float, count: int, least: int = 1) -> LeadingRows:
        """Make the distances of rows that may gain at least `gain` exact, and answer as `advance` does."""
        return merge(self._pieces.call("refine", gain, self._share(count, least), least))

    def cover(self, centres: Array, chosen: int) -> Covering:
        """Find how (k, d) float32 centres, the first `chosen` of which are chosen rows, cover all candidates; exactly, in one pass.

        Raises:
            QueryError: there are no centres.
            DataError: rows that are not finite.
        """
        found: list[Covering] = self._pieces.call("cover", centres, chosen)
        squared, row = first_in_order([(piece.squared, piece.farthest) for piece in found if piece.farthest >= 0] or [(0.0, -1)])
        counts: Array = np.stack([piece.counts for piece in found]).sum(axis=0)
        return Covering(counts, squared, row)

    def gather(self, rows: Array) -> Array:
        """Read (m, d) float32 vectors of `rows`."""
        return self.rows.gather(rows)

    def subset(self, which: Array, memory: int) -> LocalShards:
        """Return the candidates `which`, int64, ascending and at least one, numbered from 0, in this process."""
        rows = self.rows.subset(which)
        return LocalShards(rows.parts, rows.positions, metric=self.metric, memory=memory)

    def _share(self, count: int, least: int) -> int:
        return max(count // self.count, least)


class LocalShards(Shards):
    """Candidates that this process reads and keeps.

    Args:
        parts: where the embeddings are, (n_i, d) float16 or float32 each.
        rows: per part, the sorted int64 positions of the candidates in it; None takes all.
        metric: `cosine` works on rows divided by their lengths.
        memory: bytes for the working copy; when it doesn't fit, every pass streams from the parts.
        shards: in how many independent pieces to keep the state; has no influence on any result.
        block: rows read at a time; has no influence on any result.
    """

    def __init__(
        self,
        parts: Sequence[EmbeddingPart],
        rows: Sequence[Array | None] | None = None,
        *,
        metric: Metric = "euclidean",
        memory: int = DEFAULT_MEMORY,
        shards: int = 1,
        block: int = _BLOCK,
    ) -> None:
        super().__init__(Rows(parts, rows, metric), shards, LocalPieces, memory=memory / shards, block=block)

    @classmethod
    def of_array(
        cls, x: Array, *, metric: Metric = "euclidean", memory: int = DEFAULT_MEMORY, shards: int = 1, block: int = _BLOCK
    ) -> LocalShards:
        """Make shards over one plain (n, d) array."""
        rows = as_rows(x, metric)
        return cls(rows.parts, metric=metric, memory=memory, shards=shards, block=block)

"""The seam between farthest-first and the processes that hold the candidates' embeddings.

Every call takes and returns small things (row numbers, vectors, gains), never the data. `LocalShards`
answers from arrays and memory maps of this process; actors can answer in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from raystream.selection.bounds import Encoding
from raystream.selection.rows import Array, ArrayPart, EmbeddingPart, Metric, Rows, as_rows
from raystream.selection.shard import Answer, Shard, first_in_order, merge

__all__ = ["DEFAULT_MEMORY", "Answer", "ArrayPart", "EmbeddingPart", "LocalShards", "Shards", "Survey"]

DEFAULT_MEMORY = 2 << 30
"""Bytes that a process may hold of the candidates' embeddings, unless it is told otherwise."""


@dataclass(frozen=True)
class Survey:
    """What one look at every row finds: the largest absolute value, and where values are not finite."""

    largest: float
    bad: int
    first_bad: tuple[int, ...]


class Shards(Protocol):
    """The candidates 0 .. n-1 of width d, wherever they are."""

    @property
    def width(self) -> int:
        """d."""

    def __len__(self) -> int:
        """n."""

    def survey(self) -> Survey:
        """The largest absolute value, and the rows that hold NaN or infinities."""

    def total(self, power: int, grid: int) -> tuple[Array, bool]:
        """(d,) the exact sum of the rows rounded to multiples of 2^-power; whether all are multiples of 2^-grid."""

    def begin(self, encoding: Encoding, weight: Array | None) -> None:
        """Forget every centre; `weight` (n,) float64 multiplies the distances of the rows to choose by."""

    def farthest(self, point: Array, exclude: Array) -> tuple[float, int]:
        """(gain, row): the first in order of weight * distance to a float64 `point`, exactly; row -1 if all are excluded."""

    def advance(self, centres: Array, taken: Array, count: int) -> Answer:
        """Apply (m, d) float32 centres, take the rows `taken` out, and return about `count` rows that lead the order."""

    def refine(self, gain: float, count: int) -> Answer:
        """Make the distances of rows that may gain at least `gain` exact, and answer as `advance` does."""

    def gather(self, rows: Array) -> Array:
        """(m, d) float32 vectors of `rows`."""


class LocalShards:
    """Candidates that this process can read.

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
        block: int = 8192,
    ) -> None:
        self.rows = Rows(parts, rows, metric)
        self.metric = metric
        self._memory = memory
        edges = np.linspace(0, len(self.rows), shards + 1).astype(np.int64)
        self._shards = [Shard(self.rows, int(a), int(b), block) for a, b in pairwise(edges)]

    @classmethod
    def of_array(
        cls, x: Array, *, metric: Metric = "euclidean", memory: int = DEFAULT_MEMORY, shards: int = 1, block: int = 8192
    ) -> LocalShards:
        """Shards over one plain (n, d) array."""
        rows = as_rows(x, metric)
        return cls(rows.parts, metric=metric, memory=memory, shards=shards, block=block)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        """The embeddings' width."""
        return self.rows.width

    def survey(self) -> Survey:
        """See `Shards`."""
        surveys = [shard.survey() for shard in self._shards]
        largest = max((value for value, _ in surveys), default=0.0)
        bad = np.concatenate([rows for _, rows in surveys]) if surveys else np.empty(0, dtype=np.int64)
        return Survey(largest, len(bad), tuple(int(row) for row in bad[:3]))

    def total(self, power: int, grid: int) -> tuple[Array, bool]:
        """See `Shards`."""
        totals = [shard.total(power, grid) for shard in self._shards]
        total: Array = np.stack([total for total, _ in totals]).sum(axis=0)
        return total, all(on_grid for _, on_grid in totals)

    def begin(self, encoding: Encoding, weight: Array | None) -> None:
        """See `Shards`."""
        cached = encoding.row_bytes * len(self) <= self._memory
        for shard in self._shards:
            shard.begin(encoding, weight, cached=cached)

    def farthest(self, point: Array, exclude: Array) -> tuple[float, int]:
        """See `Shards`."""
        found = [shard.farthest(point, exclude) for shard in self._shards]
        return first_in_order([pair for pair in found if pair is not None] or [(-np.inf, -1)])

    def advance(self, centres: Array, taken: Array, count: int) -> Answer:
        """See `Shards`."""
        return merge([shard.advance(centres, taken, self._share(count)) for shard in self._shards], self.rows)

    def refine(self, gain: float, count: int) -> Answer:
        """See `Shards`."""
        return merge([shard.refine(gain, self._share(count)) for shard in self._shards], self.rows)

    def gather(self, rows: Array) -> Array:
        """See `Shards`."""
        return self.rows.gather(rows)

    def spans(self, block: int) -> list[tuple[int, int]]:
        """[start, stop) of as many pieces of the candidates as there are shards, each of whole blocks, some of them empty."""
        edges = np.linspace(0, -(-len(self) // block), len(self._shards) + 1).astype(np.int64) * block
        return [(int(a), int(b)) for a, b in pairwise(np.minimum(edges, len(self)))]

    def _share(self, count: int) -> int:
        return max(count // len(self._shards), 1)

"""The rows within a radius of each row, as a graph with a limited number of edges, and whole where one is asked for."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from raystream.selection.derived import Kept, derive
from raystream.selection.neighbours import COMPARED, EXACT, Edges, Index
from raystream.selection.rows import Array


class Balls:
    """Balls around the (n, d) float32 rows `x`, whose edges `kept` may hold.

    Attributes:
        edges: from each row to the rows of its ball but itself, the nearest `most` of them.
    """

    def __init__(self, x: Array, radius: float, most: int, seed: int, *, exact: int = EXACT, kept: Kept | None = None) -> None:
        self._x, self._radius, self._seed, self._exact, self._kept = x, radius, seed, exact, kept
        parameters = {"radius": radius, "most": most, "seed": seed, "exact": exact, "compared": COMPARED}
        self.edges = Edges.kept(derive(kept, "edges", parameters, lambda: self._index.edges(radius, most).arrays()))

    def uncovered(self, row: int, covered: Array) -> Array:
        """int64 rows of the whole ball around `row`, itself included, that are not `covered` (n,) bool; ascending."""
        ball = self._index.ball(row, self._radius) if self.edges.full[row] else np.sort(np.append(self.edges.of(np.asarray([row])), row))
        result: Array = ball[~covered[ball]]
        return result

    @cached_property
    def _index(self) -> Index:
        return Index(self._x, self._seed, self._exact, self._kept)

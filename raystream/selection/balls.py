"""The rows within a radius of each row, as a graph with a limited number of edges, and whole where one is asked for."""

from __future__ import annotations

import numpy as np

from raystream.selection.neighbours import EXACT, Index
from raystream.selection.rows import Array


class Balls:
    """Balls around the (n, d) float32 rows `x`.

    Attributes:
        edges: from each row to the rows of its ball but itself, the nearest `most` of them.
    """

    def __init__(self, x: Array, radius: float, most: int, seed: int, *, exact: int = EXACT) -> None:
        self._index, self._radius = Index(x, seed, exact), radius
        self.edges = self._index.edges(radius, most)

    def uncovered(self, row: int, covered: Array) -> Array:
        """int64 rows of the whole ball around `row`, itself included, that are not `covered` (n,) bool; ascending."""
        ball = self._index.ball(row, self._radius) if self.edges.full[row] else np.sort(np.append(self.edges.of(np.asarray([row])), row))
        result: Array = ball[~covered[ball]]
        return result

"""The rows within a radius of each row, as a graph with a limited number of edges, and whole where one is asked for."""

from __future__ import annotations

import numpy as np
import torch

from raystream.selection.neighbours import within
from raystream.selection.rows import Array, squared_distances

_EXACT = 4096


class Balls:
    """Balls around the (n, d) float32 rows `x`.

    Attributes:
        edges: from each row to the rows of its ball but itself, the nearest `most` of them.
    """

    def __init__(self, x: Array, radius: float, most: int, seed: int) -> None:
        self.edges = within(x, radius, most, seed=seed)
        self._x, self._radius = x, radius
        self._norm: Array | None = None

    def uncovered(self, row: int, covered: Array) -> Array:
        """int64 rows of the whole ball around `row`, itself included, that are not `covered` (n,) bool; ascending."""
        ball = self._whole(row, covered) if self.edges.full[row] else np.sort(np.append(self.edges.of(np.asarray([row])), row))
        result: Array = ball[~covered[ball]]
        return result

    def _whole(self, row: int, covered: Array) -> Array:
        """By one pass over the rows in float32, and in float64 where that leaves a doubt."""
        if self._norm is None:
            self._norm = np.einsum("ij,ij->i", self._x, self._x).astype(np.float64)
        centre = self._x[row]
        products = torch.mv(torch.from_numpy(self._x), torch.from_numpy(centre)).numpy()
        with np.errstate(over="ignore", invalid="ignore"):
            squared = self._norm + self._norm[row] - 2.0 * products
            # float32 may underflow, too
            error = 8 * (self._x.shape[1] + 8) * 2.0**-24 * (self._norm + self._norm[row]) + 2.0**-100
            inside = squared + error < self._radius**2
            outside = squared - error > self._radius**2 * (1 + 2.0**-50)
        unsure = np.flatnonzero(~inside & ~outside & ~covered)  # also where squares overflow
        for begin in range(0, len(unsure), _EXACT):
            which = unsure[begin : begin + _EXACT]
            inside[which] = np.sqrt(squared_distances(self._x[which], centre)) <= self._radius
        return np.flatnonzero(inside)

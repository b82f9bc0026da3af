"""All rows in clusters: k-means fitted on a sample of bounded size, then every row with its nearest centre."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raystream.selection.hashing import row_hash
from raystream.selection.k_means import ONE_LEVEL, fit_centres
from raystream.selection.ranking import lowest
from raystream.selection.represents import assign
from raystream.selection.rows import Array, as_rows

_POINTS = 1 << 17
_POINTS_A_CENTRE = 64


@dataclass(frozen=True)
class Clusters:
    """c clusters of n rows.

    Attributes:
        centres: (c, d) float32.
        nearest: (n,) int32, each row's cluster.
        size: (c,) int64, which may be 0.
    """

    centres: Array
    nearest: Array
    size: Array

    def members(self) -> list[Array]:
        """For each cluster its rows, int64, ascending."""
        order = np.argsort(self.nearest, kind="stable")
        return np.split(order, np.cumsum(self.size)[:-1])


def clusters(x: Array, count: int, seed: int, *, iterations: int = 10, points_a_centre: int = _POINTS_A_CENTRE) -> Clusters:
    """min(count, n) clusters of the (n, d) float32 rows, the same from any number of threads.

    Args:
        x: the rows, at least one.
        count: how many clusters.
        seed: of the sample and the first centres.
        iterations: of Lloyd's algorithm.
        points_a_centre: beyond 131,072 rows, this many for each centre are enough to fit it.
    """
    count = min(count, len(x))
    some = x[sample(len(x), max(points_a_centre * count, _POINTS), seed)]
    centres = some if count == len(some) else fit_centres(some, np.ones(len(some)), count, seed, iterations, ONE_LEVEL)
    nearest = assign(as_rows(x), centres).nearest
    return Clusters(centres, nearest, np.bincount(nearest, minlength=count))


def sample(n: int, count: int, seed: int) -> Array:
    """min(count, n) rows of n by chance, int64, ascending: a function of the seed and the rows' numbers."""
    if count >= n:
        return np.arange(n)
    result: Array = np.sort(lowest(row_hash(seed, np.arange(n)), count))
    return result

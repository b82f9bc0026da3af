"""How densely each row's neighbourhood is filled.

As in Hacohen, Dekel and Weinshall, *Active learning on a budget: opposite strategies suit high and low
budgets*, 2022.
"""

from __future__ import annotations

import numpy as np

from raystream.selection.neighbours import Facts, nearest_neighbours
from raystream.selection.rows import Array


def typicality(x: Array, neighbours: int = 20) -> tuple[Array, Facts]:
    """(n,) float64: 1 / (1 + mean distance to the nearest other rows), above 0, at most 1; 1 for a row alone.

    Args:
        x: (n, d) float32, finite.
        neighbours: to how many other rows the distance is averaged; all others when there are fewer.

    Returns:
        the typicalities, and which index found the neighbours, with what recall.
    """
    if len(x) < 2 or neighbours < 1:
        return np.ones(len(x)), {}
    found = nearest_neighbours(x, neighbours)
    similar: Array = 1 / (1 + found.distance.mean(axis=1))
    return similar, found.facts

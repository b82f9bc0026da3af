"""How densely each row's neighbourhood is filled.

As in Hacohen, Dekel and Weinshall, *Active learning on a budget: opposite strategies suit high and low
budgets*, 2022.
"""

from __future__ import annotations

import math

import faiss
import numpy as np

from raystream.selection.nearest import pair_distances
from raystream.selection.rows import Array
from raystream.selection.threads import each

_BATCH = 1024
_TINY = 2.0**-126
_SPARE = 8
"""More neighbours than needed are asked of float32, so that float64 chooses among those that it can't tell apart."""


def typicality(x: Array, neighbours: int = 20) -> Array:
    """(n,) float64: 1 / (1 + mean distance to the nearest other rows), above 0, at most 1; 1 for a row alone.

    Exact search, which takes time in proportion to n squared.

    Args:
        x: (n, d) float32, finite.
        neighbours: to how many other rows the distance is averaged; all others when there are fewer.
    """
    n, d = x.shape
    count = min(neighbours, n - 1)
    if count < 1:
        return np.ones(n)
    near = _scaled(x)
    index = faiss.IndexFlatL2(d)
    index.add(near)
    result = np.empty(n)

    def see(begin: int) -> None:
        rows = np.arange(begin, min(begin + _BATCH, n))
        found = _search(index, near[begin : begin + _BATCH], min(count + 1 + _SPARE, n))
        squared = pair_distances(x, x, np.repeat(rows, found.shape[1]), found.ravel()).reshape(found.shape)
        squared[found == rows[:, None]] = np.inf
        # where a row has so many equals that it isn't among its own neighbours, they do as well
        result[begin : begin + _BATCH] = np.sqrt(np.sort(squared, axis=1)[:, :count]).mean(axis=1)

    # batches that lie where they do whatever the threads: how a product is cut up may change its last bits
    each(range(0, n, _BATCH), lambda: see)
    similar: Array = 1 / (1 + result)
    return similar


def _search(index: faiss.IndexFlatL2, x: Array, count: int) -> Array:
    """(m, count) int64 neighbours; FAISS starts no threads of its own, since batches have theirs."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        found: Array = index.search(x, count)[1].astype(np.int64)
    finally:
        faiss.omp_set_num_threads(before)
    return found


def _scaled(x: Array) -> Array:
    """(n, d) float32 around the mean, with a largest length near one: float32 squares neither overflow nor lose what tells rows apart."""
    power = -math.frexp(max(float(np.abs(x).max()), _TINY))[1]
    centred = np.ldexp(x, power) - np.ldexp(x.mean(axis=0, dtype=np.float64), power).astype(np.float32)
    reach = math.frexp(max(float(np.abs(centred).max()) * math.sqrt(x.shape[1]), _TINY))[1]
    result: Array = np.ascontiguousarray(np.ldexp(centred, -reach))
    return result

"""Each row's nearest other rows: exact for pools of moderate size, through inverted lists of measured recall above.

FAISS compares the rows, a block at a time and in single threads, which makes the result independent of
how many there are. In large pools the rows of one list of a coarse k-means are compared, all at once, with those
of the lists nearest to it: matrix products, where an inverted-file index scans vector by vector, take a third
of the time at equal recall, and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import faiss
import numpy as np

from raystream.selection.clusters import scale_power
from raystream.selection.inverted_lists import InvertedLists, inverted_lists
from raystream.selection.rows import Array, squared_distances
from raystream.selection.threads import each

EXACT = 100_000
"""Up to this many rows, every row is compared with every other one."""
RECALL = 0.95
"""What share of the true neighbours is to be found, as long as few enough rows have to be compared."""
COMPARED = 1 << 16
"""At most about this many rows are compared with each row of larger pools, even if the recall is lower then."""
_SAMPLE = 1000
_QUERIES = 1024
_LEAST_QUERIES = 512
_DATABASE = 1 << 16
_DIFFERENCES = 1 << 20
_FOUND = 1 << 21
_SPARE = 8
"""Rows found beyond those asked for: float32 leaves the order of the last few uncertain, float64 then decides."""

Facts = dict[str, float | int | str]
Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Neighbours:
    """The k nearest rows of each of n rows, itself left out.

    Attributes:
        distance: (n, k) float64, ascending.
        index: (n, k) int32; of those found at the same distance, the lower first.
        facts: which index found them, and with what recall.
    """

    distance: Array
    index: Array
    facts: Facts


@dataclass(frozen=True)
class Edges:
    """Row i's neighbours are `index[start[i] : start[i + 1]]`.

    Attributes:
        start: (n + 1,) int64.
        index: (e,) int32, ascending within each row.
        full: (n,) bool, the rows that have as many as were allowed, and perhaps more than were kept.
        facts: see `Neighbours`.
    """

    start: Array
    index: Array
    full: Array
    facts: Facts

    def of(self, rows: Array) -> Array:
        """int64 neighbours of all these rows, one row's after another's."""
        count = self.start[rows + 1] - self.start[rows]
        skipped = self.start[rows] - np.concatenate([[0], np.cumsum(count)[:-1]])
        result: Array = self.index[np.arange(count.sum()) + np.repeat(skipped, count)].astype(np.int64)
        return result


def nearest_neighbours(x: Array, k: int, *, seed: int = 0, exact: int = EXACT, compared: int = COMPARED) -> Neighbours:
    """Each row's k nearest other rows.

    Args:
        x: (n, d) float32, finite.
        k: how many; all n - 1 when there are fewer.
        seed: of the inverted lists.
        exact: the number of rows up to which all are compared.
        compared: see `COMPARED`.
    """
    k = max(min(k, len(x) - 1), 0)
    distance, index = np.empty((len(x), k)), np.empty((len(x), k), dtype=np.int32)

    def keep(found: _Found) -> None:
        squared = _squared(x, found.rows, found.index)
        order = np.lexsort((found.index, squared), axis=-1)[:, :k]
        index[found.rows] = np.take_along_axis(found.index, order, axis=1)
        distance[found.rows] = np.sqrt(np.take_along_axis(squared, order, axis=1))

    _, facts = _search(x, k, keep, seed, exact, compared)
    return Neighbours(distance, index, facts)


def within(x: Array, radius: float, most: int, *, seed: int = 0, exact: int = EXACT, compared: int = COMPARED) -> Edges:
    """Each row's neighbours at a distance of at most `radius` in float64, itself left out, the nearest `most` of them.

    Args:
        x: (n, d) float32, finite.
        radius: at least 0.
        most: neighbours for each row.
        seed, exact, compared: see `nearest_neighbours`.
    """
    n, most = len(x), max(min(most, len(x) - 1), 0)
    count = np.zeros(n, dtype=np.int64)

    def keep(found: _Found) -> tuple[Array, Array]:
        near = np.sqrt(np.maximum(found.squared - found.error, 0)) <= radius
        unsure = near & (np.sqrt(found.squared + found.error) > radius)
        for i in np.flatnonzero(unsure.any(axis=1)):
            which = np.flatnonzero(unsure[i])
            near[i, which] = np.sqrt(squared_distances(x[found.index[i, which]], x[found.rows[i]])) <= radius
        near &= np.cumsum(near, axis=1) <= most
        count[found.rows] = near.sum(axis=1)
        order = np.argsort(np.where(near, found.index, n), axis=1)
        kept = np.take_along_axis(found.index, order, axis=1)
        return found.rows, kept[np.arange(kept.shape[1]) < count[found.rows][:, None]]

    blocks, facts = _search(x, most, keep, seed, exact, compared)
    start = np.concatenate([[0], np.cumsum(count)])
    index = np.empty(start[-1], dtype=np.int32)
    for rows, kept in blocks:
        ends = np.cumsum(count[rows])
        index[np.arange(len(kept)) + np.repeat(start[rows] - (ends - count[rows]), count[rows])] = kept
    return Edges(start, index, count >= most, facts)


@dataclass(frozen=True)
class _Found:
    """For m `rows` (int64): `index` (m, k') int32 by ascending `squared` (m, k') float64, which errs by at most `error`."""

    rows: Array
    index: Array
    squared: Array
    error: Array


class _Near:
    """Rows as FAISS compares them: around their mean and scaled by a power of two, so that products neither cancel nor overflow."""

    def __init__(self, x: Array) -> None:
        self._x, self._power = x, scale_power(x)
        self._mean = np.ldexp(x.mean(axis=0, dtype=np.float64), self._power).astype(np.float32)

    def of(self, rows: Array | slice) -> Array:
        """(m, d) float32."""
        x = self._x[rows]
        result: Array = np.subtract(np.ldexp(x, self._power) if self._power else x, self._mean)
        return result

    def find(self, rows: Array, others: Array, near: Array, k: int) -> _Found:
        """The k nearest, and some to spare, of `others` (int64), which `near` holds, to each of `rows`, itself left out."""
        y = self.of(rows)
        with one_faiss_thread():
            squared, at = faiss.knn(_padded(y), near, min(k + 1 + _SPARE, len(others)))
        index, squared = others[at[: len(rows)]].astype(np.int32), squared[: len(rows)]
        drop = index == rows[:, None]
        drop[~drop.any(axis=1), -1] = True  # crowded out by equal rows, or among others
        shape = (len(rows), index.shape[1] - 1)
        index, squared = index[~drop].reshape(shape), squared[~drop].reshape(shape).astype(np.float64)
        norm = np.square(y, dtype=np.float64).sum(axis=1)
        # |y_j|^2 <= 2 |y_i|^2 + 2 |y_i - y_j|^2; a sum of d products errs by d 2^-24 of their sizes
        error = 8 * (y.shape[1] + 8) * 2.0**-24 * (norm[:, None] + squared) + 2.0**-120
        return _Found(rows, index, np.ldexp(squared, -2 * self._power), np.ldexp(error, -2 * self._power))


def _search(x: Array, k: int, keep: Callable[[_Found], Kept], seed: int, exact: int, compared: int) -> tuple[list[Kept], Facts]:
    """What `keep` makes of the neighbours of one block of rows after another."""
    n = len(x)
    if k == 0:
        return [], {"index": "exact", "recall": 1.0}
    near = _Near(x)
    if n <= exact:
        everyone, all_near = np.arange(n), near.of(slice(None))
        step = min(max(_FOUND // k, 1), _QUERIES)

        def compare(begin: int) -> Kept:
            return keep(near.find(everyone[begin : begin + step], everyone, all_near, k))

        return each(range(0, n, step), lambda: compare), {"index": "exact", "recall": 1.0}
    lists = inverted_lists(x, seed)
    probes, recall = _probes(near, n, lists, k, compared)

    def probe(number: int) -> Kept:
        others = lists.probed(number, probes, k + 1)
        return keep(near.find(lists.members[number], others, near.of(others), k))

    facts: Facts = {"index": f"{len(lists.members)} inverted lists, {probes} probed", "recall": round(recall, 4)}
    return each((number for number, rows in enumerate(lists.members) if len(rows)), lambda: probe), facts


def _probes(near: _Near, n: int, lists: InvertedLists, k: int, compared: int) -> tuple[int, float]:
    """How many lists to compare each list with, and the recall: the share of true neighbours of some fixed rows that are in them."""
    rows = np.unique(np.linspace(0, n - 1, _SAMPLE).astype(np.int64))

    def compare(begin: int) -> _Found:
        others = np.arange(begin, min(begin + _DATABASE, n))
        return near.find(rows, others, near.of(slice(begin, begin + _DATABASE)), k)

    parts = each(range(0, n, _DATABASE), lambda: compare)
    index, squared = np.concatenate([part.index for part in parts], axis=1), np.concatenate([part.squared for part in parts], axis=1)
    true = np.take_along_axis(index, np.argsort(squared, axis=1, kind="stable")[:, :k], axis=1)
    needed = lists.rank(rows, true)
    recall = np.cumsum(np.bincount(needed.ravel(), minlength=len(lists.members))) / needed.size
    allowed = max(compared * len(lists.members) // n, 1)
    probes = min(int(np.searchsorted(recall, RECALL)) + 1, allowed, len(lists.members))
    return probes, float(recall[probes - 1])


@contextmanager
def one_faiss_thread() -> Iterator[None]:
    """How a matrix product is shared out among threads may change its last bits, and with them a selection."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _padded(y: Array) -> Array:
    """Fewer queries than this take FAISS longer than this many do: 12 ms for 250 beside 2,000 rows, 6 ms for 512."""
    return y if len(y) >= _LEAST_QUERIES else np.concatenate([y, np.zeros((_LEAST_QUERIES - len(y), y.shape[1]), dtype=np.float32)])


def _squared(x: Array, rows: Array, index: Array) -> Array:
    """(m, k) float64 by the definition."""
    result = np.empty(index.shape)
    step = max(_DIFFERENCES // max(index.shape[1] * x.shape[1], 1), 1)
    for begin in range(0, len(rows), step):
        which = slice(begin, begin + step)
        result[which] = squared_distances(x[index[which]], x[rows[which]][:, None])
    return result

"""Which chosen row stands for each candidate, and how far the farthest candidate is from all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from raystream.errors import QueryError
from raystream.selection.bounds import Encoding, Precision, grid_power
from raystream.selection.nearest import CENTRES_AT_ONCE, Centres, block_rows, nearest
from raystream.selection.rows import Array, Block, Rows, not_finite, squared_distances, tensor
from raystream.threads import each, one_thread

_FEWEST = 1024
"""Rows that are looked at at a time, at least: of few, small operations take longer than what they are for."""


@dataclass(frozen=True)
class Assignment:
    """Each candidate's nearest centre.

    Attributes:
        nearest: (n,) int32, the lowest centre at a tie.
        radius: the largest distance of a candidate to its nearest centre; 0 without candidates.
        farthest: the lowest row at that distance, -1 without candidates.
    """

    nearest: Array
    radius: float
    farthest: int


@dataclass(frozen=True)
class Covering:
    """The covering of candidates by centres.

    Attributes:
        counts: (chosen,) int64, how many candidates are nearest to each of the first `chosen` centres.
        squared: the largest squared distance of a candidate to its nearest centre; 0 without candidates.
        farthest: the lowest row at that distance, -1 without candidates.
    """

    counts: Array
    squared: float
    farthest: int

    @property
    def radius(self) -> float:
        """The largest distance."""
        return float(np.sqrt(self.squared))


def represents(assignment: Assignment, chosen: int) -> Array:
    """Count (chosen,) int64 how many candidates are nearest to each of the first `chosen` centres.

    Centres after those are labelled rows: what is nearest to them is represented already, by no chosen row.
    """
    counts: Array = np.bincount(assignment.nearest, minlength=chosen)[:chosen].astype(np.int64)
    return counts


def assign(rows: Rows, centres: Array, *, precision: Precision = "auto") -> Assignment:
    """Find the nearest of `centres`, (k, d) float32 in the metric's space, to every candidate, exactly, in one pass.

    The order is that of the float64 squared distances. Candidates equal to a centre are nearest to it.
    """
    result = np.empty(len(rows), dtype=np.int32)

    def keep(begin: int, index: Array) -> None:
        result[begin - rows.start : begin - rows.start + len(index)] = index

    squared, row = _pass(rows, centres, precision, lambda: keep)
    return Assignment(result, float(np.sqrt(squared)), row)


def cover(rows: Rows, centres: Array, chosen: int, *, precision: Precision = "auto") -> Covering:
    """Find what `assign` and `represents` find together, without keeping each candidate's nearest centre."""
    counts: list[Array] = []

    def start() -> Callable[[int, Array], None]:
        mine = np.zeros(len(centres), dtype=np.int64)
        counts.append(mine)

        def count(_: int, index: Array) -> None:
            mine[:] += np.bincount(index, minlength=len(mine))

        return count

    squared, row = _pass(rows, centres, precision, start)
    total = np.zeros(len(centres), dtype=np.int64)
    for mine in counts:
        total += mine
    return Covering(total[:chosen], squared, row)


def _pass(rows: Rows, centres: Array, precision: Precision, start: Callable[[], Callable[[int, Array], None]]) -> tuple[float, int]:
    """Tell of each block's first row and nearest centres; returns the largest squared distance and the lowest row at it."""
    if not len(centres):
        raise QueryError("no row was chosen and none is labelled, so no candidate has a nearest one")
    if not len(rows):
        return 0.0, -1
    encoded = _Encoded(centres, precision)
    far = _Farthest(centres)

    def begin() -> Callable[[Block], None]:
        tell = start()

        def see(block: Block) -> None:
            x = block.read()
            _check(x, block.start)
            index, upper = _nearest(x, encoded.chunks(x))
            tell(block.start, index)
            far.see(block.start, x, index, upper)

        return see

    size = block_rows(min(len(centres), CENTRES_AT_ONCE))
    looks = -(-len(rows) // size)
    if looks > 1:  # as many for each thread
        threads = torch.get_num_threads()
        size = min(size, max(-(-len(rows) // (-(-looks // threads) * threads)), _FEWEST))
    with one_thread() if looks == 1 else nullcontext():
        each(rows.blocks(rows.start, rows.stop, size), begin)
    return far.found


class _Encoded:
    """The centres' operands; a second set serves the blocks of rows on which products are exact."""

    def __init__(self, centres: Array, precision: Precision) -> None:
        largest = float(np.abs(centres).max())
        # around the centres' mean: the candidates themselves are then read once only
        mean = centres.mean(axis=0, dtype=np.float64)
        self._bounded = _chunks(centres, Encoding.fit(mean, largest, on_grid=False, precision=precision))
        self._largest = largest
        self._grid = grid_power(centres.shape[1], largest)
        self._exact = _chunks(centres, Encoding.fit(mean, largest, on_grid=True, precision=precision)) if self._on_grid(centres) else None

    def _on_grid(self, x: Array) -> bool:
        scaled = x.astype(np.float64) * 2.0**self._grid
        return bool((scaled == np.rint(scaled)).all() and (np.abs(x) <= self._largest).all())

    def chunks(self, x: Array) -> list[Centres]:
        """Return the centres to compare the rows `x` with."""
        return self._exact if self._exact is not None and self._on_grid(x) else self._bounded


def _chunks(centres: Array, encoding: Encoding) -> list[Centres]:
    return [Centres.of(centres[i : i + CENTRES_AT_ONCE], encoding) for i in range(0, len(centres), CENTRES_AT_ONCE)]


def _check(x: Array, start: int) -> None:
    if not torch.isfinite(tensor(x).sum()):  # also infinite when finite values overflow: then look closer
        bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
        if len(bad):
            raise not_finite(len(bad), [start + int(row) for row in bad[:3]])


def _nearest(x: Array, chunks: list[Centres]) -> tuple[Array, Array]:
    """Find (m,) index and (m,) float64 upper bound of the squared distance; several chunks are compared by exact distances."""
    if len(chunks) == 1:
        found = nearest(x, chunks[0])
        return found.index, found.upper
    best = nearest(x, chunks[0], exact_distance=True)
    index, squared, offset = best.index.copy(), best.upper.copy(), len(chunks[0].x)
    for chunk in chunks[1:]:
        found = nearest(x, chunk, exact_distance=True)
        nearer = found.upper < squared
        index[nearer], squared[nearer] = found.index[nearer] + offset, found.upper[nearer]
        offset += len(chunk.x)
    return index, squared


class _Farthest:
    """The row farthest from its centre, exact, from upper bounds."""

    def __init__(self, centres: Array) -> None:
        self._centres = centres
        self._lock = threading.Lock()
        self.found = (-1.0, -1)

    def see(self, start: int, x: Array, index: Array, upper: Array) -> None:
        """See a block of rows; blocks may come in any order, from several threads."""
        best, row = self.found
        maybe = np.flatnonzero(upper >= best if start < row else upper > best)
        # from the largest bound down, so that few differences are taken
        maybe = maybe[np.argsort(-upper[maybe], kind="stable")]
        step = 64
        while len(maybe):
            ask = maybe[:step]
            squared = squared_distances(x[ask], self._centres[index[ask]])
            top = float(squared.max())
            row = start + int(ask[squared == top].min())
            with self._lock:
                if (-top, row) < (-self.found[0], self.found[1]):
                    self.found = (top, row)
                best = self.found[0]
            maybe = maybe[step:]
            maybe = maybe[upper[maybe] >= best]
            step *= 4

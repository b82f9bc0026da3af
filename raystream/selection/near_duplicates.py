"""Rows too alike to be labelled twice: a cosine at or above a threshold."""

from __future__ import annotations

import numpy as np

from raystream.errors import QueryError
from raystream.selection.rows import Array, Rows, normalised
from raystream.selection.shards import Shards

_PAIRS = 1 << 22
_COUNTED = 1 << 40
"""Products of numbers that counting may take: about ten seconds of two cores."""


def cosines(a: Array, b: Array) -> Array:
    """Return (...) float64 cosines of (..., d) and (..., d); equal rows give exactly 1, two zero rows too, one zero row 0."""
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    dot = (wide_a * wide_b).sum(axis=-1)
    square_a, square_b = (wide_a * wide_a).sum(axis=-1), (wide_b * wide_b).sum(axis=-1)
    norm = np.sqrt(square_a * square_b)
    result: Array = np.where(norm > 0, dot / np.where(norm > 0, norm, 1.0), (square_a == square_b).astype(np.float64))
    return result


class NearDuplicates:
    """The rows chosen so far, and whether another one may still be chosen.

    Args:
        threshold: a row whose cosine with a chosen or labelled one is at least this is blocked.
        width: d.
        labelled: (m, d) float32; these rows block, too.
    """

    def __init__(self, threshold: float, width: int, labelled: Array | None = None) -> None:
        if not 0 < threshold <= 1:
            raise QueryError(f"`near_duplicates` is {threshold}, expected a cosine in (0, 1]")
        self.threshold, self.width = threshold, width
        self._x = np.empty((0, width), dtype=np.float32)
        self._unit = np.empty((0, width), dtype=np.float32)
        self._size = 0
        if labelled is not None and len(labelled):
            self.add(labelled)

    def add(self, x: Array) -> None:
        """Note that rows (m, d) float32 have been chosen."""
        need = self._size + len(x)
        if need > len(self._x):
            room = max(need, 2 * len(self._x), 64)
            self._x = np.concatenate([self._x[: self._size], np.empty((room - self._size, x.shape[1]), dtype=np.float32)])
            self._unit = np.concatenate([self._unit[: self._size], np.empty((room - self._size, x.shape[1]), dtype=np.float32)])
        self._x[self._size : need] = x
        self._unit[self._size : need] = normalised(x)
        self._size = need

    def blocked(self, x: Array, since: int = 0) -> Array:
        """Tell (m,) bool which of (m, d) float32 rows are near-duplicates; chosen rows before the number `since` are left out."""
        result = np.zeros(len(x), dtype=bool)
        if since >= self._size:
            return result
        step = max(_PAIRS // (self._size - since), 1)
        for begin in range(0, len(x), step):
            result[begin : begin + step] = self._blocked(x[begin : begin + step], since)
        return result

    def __len__(self) -> int:
        return self._size

    def _blocked(self, x: Array, since: int) -> Array:
        chosen, unit = self._x[since : self._size], self._unit[since : self._size]
        rough = normalised(x) @ unit.T
        error = 4 * (x.shape[1] + 8) * 2.0**-24
        result: Array = (rough >= self.threshold + error).any(axis=1)
        # zero rows have a product of 0 whatever the threshold, and are alike
        zeros = ~chosen.any(axis=1)
        if zeros.any():
            result |= ~x.any(axis=1)
        row, other = np.nonzero((rough >= self.threshold - error) & ~result[:, None])
        step = max(_PAIRS // max(x.shape[1], 1), 1)
        for begin in range(0, len(row), step):
            which = slice(begin, begin + step)
            alike = cosines(x[row[which]], chosen[other[which]]) >= self.threshold
            result[row[which][alike]] = True
        return result


class _Alike:
    """Counts the near-duplicates in a stretch of the candidates, where it is."""

    def __init__(self, rows: Rows, threshold: float, x: Array) -> None:
        self._rows, self._known = rows, NearDuplicates(threshold, rows.width, x)

    def count(self) -> int:
        return sum(int(self._known.blocked(block.read()).sum()) for block in self._rows.blocks(self._rows.start, self._rows.stop, 8192))


def count_alike(shards: Shards, threshold: float, x: Array) -> int | None:
    """Count the candidates that are near-duplicates of the rows (m, d) `x`, these included; None where counting would take too long."""
    if len(shards) * x.size > _COUNTED:
        return None
    counts: list[int] = shards.pieces(_Alike, threshold, x).call("count")
    return sum(counts)

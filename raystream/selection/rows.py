"""The candidates' embeddings as one sequence of rows, read block by block from the parts that hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np
import torch

from raystream.errors import DataError
from raystream.threads import one_thread

Array = np.ndarray[Any, np.dtype[Any]]
Metric = Literal["euclidean", "cosine"]

_RELEASE_BYTES = 1 << 27
"""Mapped pages count towards a process's memory: they are handed back after every 128 MiB read."""


class EmbeddingPart(Protocol):
    """A stretch of rows that lie in one array, usually a memory map."""

    @property
    def array(self) -> Array:
        """(n_i, d) float16 or float32."""

    def release(self) -> None:
        """Drop the mapped pages from memory; may be called at any time."""


@dataclass(frozen=True)
class ArrayPart:
    """A part that is already in memory."""

    array: Array

    def release(self) -> None:
        """Do nothing: there is nothing to drop."""


@dataclass(frozen=True)
class _PartOf:
    """The rows [begin, end) of a part."""

    part: EmbeddingPart
    begin: int
    end: int

    @property
    def array(self) -> Array:
        return self.part.array[self.begin : self.end]

    def release(self) -> None:
        self.part.release()


@dataclass(frozen=True)
class Block:
    """Rows that have been found but not read: a part is looked up by one thread, its rows are read by another.

    Attributes:
        start: the number of the first candidate.
        stop: the number after the last.
        array: of the part, or what is taken from it.
        positions: int64 rows of `array`; None for all of them.
    """

    start: int
    stop: int
    array: Array
    positions: Array | None
    metric: Metric

    def read(self) -> Array:
        """Read (m, d) float32, in the metric's space, which may be a view of the part and must not be written to."""
        taken = self.stored()
        return normalised(taken) if self.metric == "cosine" else float32(taken)

    def stored(self) -> Array:
        """Read (m, d) float16 or float32, as they lie in the part, which must not be written to."""
        return self.array if self.positions is None else self.array[self.positions]


def tensor(x: Array) -> torch.Tensor:
    """Return the array as a tensor; a copy where the array is read-only, of which torch would warn."""
    return torch.from_numpy(x if x.flags.writeable else x.copy())


def float32(x: Array) -> Array:
    """Return `x` in float32, C-contiguous and as torch takes it without a warning; a view where it can be."""
    if x.dtype == np.float16:
        # torch converts ten times as fast as NumPy
        result: Array = tensor(np.ascontiguousarray(x)).float().numpy()
        return result
    return np.require(x, np.float32, ["C", "W"])


def squared_distances(x: Array, y: Array) -> Array:
    """Compute the squared distance that defines every result, of (..., d) and (..., d): (...), in float64.

    Each row is summed by itself over the contiguous last axis, so that a value depends on the two
    vectors alone, not on where they stand or on what stands beside them.
    """
    difference = np.subtract(x, y, dtype=np.float64)
    np.square(difference, out=difference)
    result: Array = difference.sum(axis=-1)
    return result


def normalised(x: Array) -> Array:
    """Return (n, d) rows of length one in float32; rows of zeros stay zero. The norm is taken in float64."""
    wide = x.astype(np.float64)
    norm = np.sqrt(np.square(wide).sum(axis=1, keepdims=True))
    wide /= np.where(norm > 0, norm, 1.0)
    result: Array = wide.astype(np.float32)
    return result


def _shape(part: EmbeddingPart) -> tuple[int, int]:
    """Return (n_i, d); the part is let go of at once, since a pool has more parts than a process may have open files."""
    known: tuple[int, int] | None = getattr(part, "shape", None)
    if known is not None:
        return known
    count, width = part.array.shape
    part.release()
    return int(count), int(width)


class Rows:
    """n candidates of width d in part order; this order decides every tie.

    Args:
        parts: the arrays, all of one width.
        positions: per part, the sorted int64 positions of the candidates in it; None takes all rows.
        metric: `cosine` divides each row by its length as it is read.
    """

    def __init__(
        self, parts: Sequence[EmbeddingPart], positions: Sequence[Array | None] | None = None, metric: Metric = "euclidean"
    ) -> None:
        shapes = [_shape(part) for part in parts]
        widths = {width for _, width in shapes}
        if len(widths) > 1:
            raise DataError(f"embeddings have several widths, {sorted(widths)}; expected one: were they written by different models?")
        self.width = widths.pop() if widths else 0
        self.metric = metric
        self.parts = list(parts)
        self.positions: list[Array | None] = list(positions) if positions is not None else [None] * len(self.parts)
        sizes = [count if rows is None else len(rows) for (count, _), rows in zip(shapes, self.positions, strict=True)]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)

    @property
    def start(self) -> int:
        """The number of the first candidate; 0 but for a `slice`."""
        return int(self._starts[0])

    @property
    def stop(self) -> int:
        """The number after the last."""
        return int(self._starts[-1])

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def held(self) -> Array | None:
        """Candidates that are all the rows of one float32 array in memory, as they are read: that array."""
        if len(self.parts) != 1 or self.positions[0] is not None or self.metric != "euclidean" or not isinstance(self.parts[0], ArrayPart):
            return None
        array = self.parts[0].array
        plain = type(array) is np.ndarray and array.dtype == np.float32 and array.flags.c_contiguous and array.flags.writeable
        return array if plain else None

    def slice(self, start: int, stop: int) -> Rows:
        """Return the candidates [start, stop) with the parts that hold them and nothing else, under the numbers that they have here."""
        result = copy(self)
        starts = [start]
        result.parts, result.positions = [], []
        for part in range(len(self.parts)):
            low, high = max(start, int(self._starts[part])), min(stop, int(self._starts[part + 1]))
            if low >= high:
                continue
            held, positions = self.parts[part], self.positions[part]
            begin, end = low - int(self._starts[part]), high - int(self._starts[part])
            if positions is None and high - low < self._starts[part + 1] - self._starts[part]:
                held = _PartOf(held, begin, end)
            result.parts.append(held)
            result.positions.append(None if positions is None else positions[begin:end])
            starts.append(high)
        result._starts = np.asarray(starts, dtype=np.int64)
        return result

    def _block(self, part: int, begin: int, end: int) -> Block:
        positions, array = self.positions[part], self.parts[part].array
        which = slice(begin - int(self._starts[part]), end - int(self._starts[part]))
        if positions is None:
            return Block(begin, end, array[which], None, self.metric)
        return Block(begin, end, array, positions[which], self.metric)

    def blocks(self, start: int, stop: int, size: int) -> Iterator[Block]:
        """Yield the candidates [start, stop), at most `size` rows at a time."""
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for part in range(first, len(self.parts)):
            origin = int(self._starts[part])
            low, high = max(start, origin), min(stop, int(self._starts[part + 1]))
            unreleased = 0
            for begin in range(low, high, size):
                end = min(begin + size, high)
                yield self._block(part, begin, end)
                unreleased += (end - begin) * self.width * 4
                if unreleased >= _RELEASE_BYTES:
                    self.parts[part].release()
                    unreleased = 0
            if unreleased:
                self.parts[part].release()
            if stop <= self._starts[part + 1]:
                return

    def subset(self, which: Array) -> Rows:
        """Return the candidates `which`, int64, ascending and at least one, as rows of their own."""
        cuts = np.searchsorted(which, self._starts)
        parts, positions = [], []
        for part, (begin, end) in enumerate(pairwise(cuts)):
            if begin < end:
                mine, here = self.positions[part], which[begin:end] - self._starts[part]
                parts.append(self.parts[part])
                positions.append(here if mine is None else mine[here])
        return Rows(parts, positions, self.metric)

    def gather(self, rows: Array) -> Array:
        """Read (m, d) float32, the candidates `rows` (int64, in any order)."""
        return self._gathered(rows, np.dtype(np.float32), Block.read)

    def stored(self, rows: Array) -> Array:
        """Read (m, d) of `dtype`, the candidates `rows` (int64, in any order) as they are stored."""
        return self._gathered(rows, self.dtype, Block.stored)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parts, float16 or float32; float32 where there are none."""
        if not self.parts:
            return np.dtype(np.float32)
        dtype = self.parts[0].array.dtype
        self.parts[0].release()
        return dtype

    def _gathered(self, rows: Array, dtype: np.dtype[Any], read: Callable[[Block], Array]) -> Array:
        if len(self.parts) == 1:
            return self._taken(0, rows, read)
        result = np.empty((len(rows), self.width), dtype=dtype)
        part_of = np.searchsorted(self._starts, rows, side="right") - 1
        with one_thread():  # a few rows from each of many parts
            for part in np.unique(part_of):
                here = np.flatnonzero(part_of == part)
                result[here] = self._taken(part, rows[here], read)
        return result

    def _taken(self, part: int, rows: Array, read: Callable[[Block], Array]) -> Array:
        """Read the candidates `rows`, all of them in one part, into memory of their own."""
        positions, which = self.positions[part], rows - self._starts[part]
        x = read(Block(0, len(rows), self.parts[part].array, which if positions is None else positions[which], self.metric))
        self.parts[part].release()
        return x


def as_rows(x: Array, metric: Metric = "euclidean") -> Rows:
    """Make rows over one plain (n, d) array; anything but float16 is taken as float32."""
    array = np.asarray(x)
    if array.ndim != 2:
        raise DataError(f"embeddings have shape {array.shape}; expected (rows, width)")
    if array.dtype != np.float16:
        array = array.astype(np.float32, copy=False)
    return Rows([ArrayPart(array)], metric=metric)


def vectors(x: Array | None, width: int, metric: Metric, name: str = "labelled") -> Array:
    """Return (m, d) float32 in the metric's space from what a caller gave, checked; None is no rows."""
    if x is None or len(x) == 0:
        return np.empty((0, width), dtype=np.float32)
    array = np.asarray(x)
    if array.ndim != 2 or array.shape[1] != width:
        raise DataError(f"{name} embeddings have shape {array.shape}, expected width {width} as the candidates have")
    wide = array.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(wide).all(axis=1))
    if len(bad):
        raise not_finite(len(bad), [int(row) for row in bad[:3]], name)
    return normalised(wide) if metric == "cosine" else wide


def not_finite(count: int, first: Sequence[int], name: str = "candidate") -> DataError:
    """Make the error for embeddings with NaN or infinite values."""
    rows = ", ".join(str(row) for row in first)
    return DataError(f"{count} {name} embeddings hold NaN or infinite values, first at rows {rows}; expected finite numbers")

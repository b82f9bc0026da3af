"""The rows that k-means clusters: in this process's memory, or in stretches wherever they are, answering alike to the last bit.

What each row answers depends on it alone, or on the block of rows at a fixed place that it stands in; stretches are of whole blocks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch

from raystream.errors import QueryError
from raystream.selection.bounds import Encoding
from raystream.selection.lloyd import (
    BLOCK,
    Finder,
    FittedCentres,
    Points,
    Read,
    Sums,
    by_blocks,
    by_thread,
    distinct,
    encoding_around,
    encoding_of,
    finder,
    iterate,
    lloyd,
    looked_at_of,
    looked_rows,
    part_rows,
    part_sums,
    slices,
    spans,
    squared_to,
    squares,
)
from raystream.selection.nearest import CENTRES_AT_ONCE
from raystream.selection.represents import assign
from raystream.selection.rows import Array, Block, Rows, as_rows, not_finite, squared_distances, tensor
from raystream.selection.shards import Pieces, Shards
from raystream.selection.strategy import gathered
from raystream.threads import each


class Clustered(Protocol):
    """n rows that are clustered."""

    @property
    def width(self) -> int:
        """d."""

    @property
    def largest(self) -> float:
        """The largest absolute value."""

    @property
    def passes(self) -> int:
        """How often all rows have been read."""

    def __len__(self) -> int:
        """Return n, the number of rows."""

    def scaled(self, power: int) -> Clustered:
        """Return the same rows times 2^power."""

    def encoding(self) -> Encoding:
        """Fit an encoding to the rows and to centres among them, for products."""

    def squared_to(self, point: Array) -> Array:
        """Return (n,) float32 squared distances to a (d,) float32 point, by differences."""

    def take(self, rows: Array | None = None) -> Array:
        """Read (m, d) float32, some rows, int64, ascending; all of them for None.

        Raises:
            QueryError: they don't fit the memory that may be used.
        """

    def points(self, weight: Array, encoding: Encoding) -> Points:
        """Read all rows, weighted, and encode them.

        Raises:
            QueryError: they don't fit the memory that may be used.
        """

    def iterate(self, weight: Array, encoding: Encoding, centres: Array, iterations: int, gained: float = 0.0) -> FittedCentres:
        """Run `lloyd.iterate` over all rows."""

    def nearest(self, centres: Array) -> Array:
        """Find (n,) int64: for each row its nearest of the (k, d) centres, exactly, the lowest at a tie."""

    def squared_to_own(self, centres: Array, nearest: Array) -> Array:
        """Return (n,) float64 squared distances to the centres of these numbers, by the definition."""


class HeldRows:
    """(n, d) float32 rows in this process's memory."""

    def __init__(self, x: Array) -> None:
        self._x = x
        self._points: Points | None = None
        self.width = x.shape[1]

    def __len__(self) -> int:
        return len(self._x)

    @property
    def passes(self) -> int:
        return 1

    @property
    def largest(self) -> float:
        return max(float(self._x.max(initial=0.0)), -float(self._x.min(initial=0.0)))

    def scaled(self, power: int) -> HeldRows:
        return HeldRows(np.ldexp(self._x, power))

    def encoding(self) -> Encoding:
        return encoding_of(self._x)

    def squared_to(self, point: Array) -> Array:
        return squared_to(self._x, point[None])

    def take(self, rows: Array | None = None) -> Array:
        found: Array = self._x if rows is None else self._x[rows]
        return found

    def points(self, weight: Array, encoding: Encoding) -> Points:
        if self._points is None or not self._points.encoding.same(encoding):
            self._points = Points.of(self._x, weight, encoding)
        return replace(self._points, weight=weight)

    def iterate(self, weight: Array, encoding: Encoding, centres: Array, iterations: int, gained: float = 0.0) -> FittedCentres:
        return lloyd(self.points(weight, encoding), centres, iterations, gained)

    def nearest(self, centres: Array) -> Array:
        points, self._points = self._points, None  # what comes after needs the memory
        if points is None or len(centres) > CENTRES_AT_ONCE:
            compared = distinct(centres)
            result: Array = compared[assign(as_rows(self._x), centres[compared]).nearest]
            return result
        size = -(-len(self) // -(-len(self) // looked_rows(centres)))  # of as few blocks as may be, all alike
        return np.concatenate(by_blocks(slices(len(self), -(-size // BLOCK) * BLOCK), points.label(centres)))

    def squared_to_own(self, centres: Array, nearest: Array) -> Array:
        result = np.empty(len(self._x))

        def see(at: slice) -> None:
            result[at] = squared_distances(self._x[at], centres[nearest[at]])

        each(slices(len(self._x), BLOCK), lambda: see)
        return result


def clustered(shards: Shards, memory: int, strategy: str) -> Clustered:
    """Bring the candidates here if they take no more than `memory` bytes as float32, else leave them where they are.

    Raises:
        DataError: rows that are not finite.
    """
    if len(shards) * shards.width * 4 <= memory:
        return HeldRows(gathered(shards.rows, memory, strategy))
    return Spread(shards, memory, strategy)


def taken(rows: Clustered, which: Array) -> Array:
    """Read (m, d) float32 of some rows, int64, in any order."""
    order = np.argsort(which, kind="stable")
    result = np.empty((len(which), rows.width), dtype=np.float32)
    result[order] = rows.take(which[order])
    return result


class Spread:
    """Rows in stretches wherever they are: at most `memory` bytes of them come here, as samples and clusters.

    Args:
        shards: the rows.
        memory: bytes of rows that may be here at a time.
        strategy: the name of who asks, for messages.

    Raises:
        DataError: rows that are not finite.
    """

    def __init__(self, shards: Shards, memory: int, strategy: str) -> None:
        self._shards, self._memory, self._strategy = shards, memory, strategy
        self._power = 0  # rows are taken times 2^power
        survey = shards.survey()
        if survey.bad:
            raise not_finite(survey.bad, survey.first_bad)
        self.width, self.largest = shards.width, float(survey.largest)
        self._passes = [1]  # of all copies together
        self._pieces: dict[int, tuple[Pieces, list[tuple[int, int]]]] = {}
        self._reading = threading.Lock()  # a part of rows is looked up by one thread at a time

    def __len__(self) -> int:
        return len(self._shards)

    @property
    def passes(self) -> int:
        return self._passes[0]

    def scaled(self, power: int) -> Spread:
        result = copy(self)
        result._power, result.largest = self._power + power, float(np.ldexp(self.largest, power))
        return result

    def encoding(self) -> Encoding:
        n = len(self)
        return encoding_around(self.take(np.arange(n)[looked_at_of(n)]), self.largest)

    def squared_to(self, point: Array) -> Array:
        return self._ask("squared_to", point, self._power)

    def take(self, rows: Array | None = None) -> Array:
        count = len(self) if rows is None else len(rows)
        need = count * self.width * 4
        if need > self._memory:
            raise QueryError(
                f"{self._strategy} looks at {count} of its {len(self)} candidates at a time, which takes {need} bytes, but `memory` is "
                f"{self._memory}; give fewer `candidates` or raise `memory`"
            )
        if not count:
            return np.empty((0, self.width), dtype=np.float32)
        with self._reading:
            x = gathered(self._shards.rows if rows is None else self._shards.rows.subset(rows), need, self._strategy)
        return np.ldexp(x, self._power) if self._power else x

    def points(self, weight: Array, encoding: Encoding) -> Points:
        return Points.of(self.take(), weight, encoding)

    def iterate(self, weight: Array, encoding: Encoding, centres: Array, iterations: int, gained: float = 0.0) -> FittedCentres:
        share = weight / weight.max()
        narrow = None if (share == 1).all() else share.astype(np.float32)
        size = part_rows(len(self), centres.nbytes)
        pieces, stretches = self._spread(size)
        own = [(None if narrow is None else narrow[start:stop],) for start, stop in stretches]
        pieces.call("begin", encoding, self._power, size, apart=own)
        self.count_pass()
        return iterate(_AllStretches(self, pieces, stretches), weight, centres, iterations, gained)

    def nearest(self, centres: Array) -> Array:
        compared = distinct(centres)
        result: Array = compared[self._ask("nearest", np.ldexp(centres[compared], -self._power))]
        return result

    def squared_to_own(self, centres: Array, nearest: Array) -> Array:
        return self._ask("squared_to_own", centres, beside=nearest)

    def squared_to_labels(self, centres: Array, label: Array) -> Array:
        """Return (n,) float32 squared distances to the centres of these labels, by differences."""
        return self._ask("squared_to", centres, self._power, beside=label)

    def closest(self, centre: Array, gone: Array, count: int) -> tuple[Array, Array]:
        """Find the `count` nearest to a (d,) centre that aren't `gone`, (n,) bool: (c,) float64 squared distances, int64 rows."""
        pieces, stretches = self._spread(BLOCK)
        own = [(np.packbits(gone[start:stop]),) for start, stop in stretches]
        found = pieces.call("closest", centre, count, apart=own)
        self.count_pass()
        squared, rows = (np.concatenate([one[i] for one in found]) for i in range(2))
        order = np.lexsort((rows, squared))[:count]
        return squared[order], rows[order]

    def count_pass(self) -> None:
        """Note that all rows are read once more."""
        self._passes[0] += 1

    def _ask(self, method: str, *args: Any, beside: Array | None = None) -> Array:
        """Collect what each row answers, in row order; `beside` holds one number a row that goes with them."""
        pieces, stretches = self._spread(BLOCK)
        own = None if beside is None else [(beside[start:stop],) for start, stop in stretches]
        self.count_pass()
        return np.concatenate(pieces.call(method, *args, apart=own))

    def _spread(self, block: int) -> tuple[Pieces, list[tuple[int, int]]]:
        """Cut stretches of whole blocks of so many rows, and make what holds each."""
        if block not in self._pieces:
            self._pieces[block] = self._shards.pieces(_Stretch, self._shards.memory, block=block), self._shards.stretches(block)
        return self._pieces[block]


class _AllStretches:
    """All stretches, for iterations."""

    def __init__(self, rows: Spread, pieces: Pieces, stretches: Sequence[tuple[int, int]]) -> None:
        self._rows, self._pieces, self._stretches = rows, pieces, stretches

    def sums(self, centres: Array) -> Sums:
        found = self._pieces.call("sums", centres)
        self._rows.count_pass()
        label = np.concatenate([one.label for one in found])
        return Sums([part for one in found for part in one.parts], label, all(one.same for one in found))

    def squares(self, centres: Array, label: Array) -> Array:
        return self._rows.squared_to_labels(centres, label)

    def at(self, rows: Array) -> Array:
        return taken(self._rows, rows)


class _Stretch:
    """One stretch of rows, read from its parts in each pass.

    Args:
        rows: the stretch, which begins at a block.
        memory: bytes that it may take for encoded rows.
    """

    pure = frozenset({"squared_to", "nearest", "squared_to_own", "closest"})
    fresh = frozenset({"begin"})

    def __init__(self, rows: Rows, memory: float) -> None:
        self._rows, self._memory = rows, memory

    def begin(self, encoding: Encoding, power: int, size: int, weight: Array | None) -> None:
        """Prepare for iterations: parts are of `size` rows, and each row counts by its weight."""
        n = len(self._rows)
        self._encoding, self._power, self._size, self._weight = encoding, power, size, weight
        self._label = np.full(n, -1, dtype=np.int64)
        self._operand: torch.Tensor | None = None
        if encoding.row_bytes * n > self._memory:
            return
        operand, slack = torch.empty((n, encoding.width), dtype=encoding.dtype), torch.empty(n)

        def see(at: slice, x: Array) -> None:
            slack[at] = encoding.rows(x, operand[at])[1]

        self._each(see, power)
        self._operand, self._slack = operand, slack

    def sums(self, centres: Array) -> Sums:
        """See `lloyd.Sums`; the labels as int32."""
        some = spans(len(self._rows), self._size, centres)
        parts = ((part, self._reading(part, self._power, looked_rows(centres))) for part in some)
        found, same = part_sums(parts, len(some), self._size, self._finder(centres), centres, self._label, self._weight)
        return Sums(found, self._label.astype(np.int32), same)

    def _finder(self, centres: Array) -> Callable[[], Finder]:
        def encoded(at: slice, x: Array) -> tuple[torch.Tensor, torch.Tensor]:
            return self._encoding.rows(x) if self._operand is None else (self._operand[at], self._slack[at])

        return finder(centres, self._encoding, encoded)

    def squared_to(self, centres: Array, power: int, label: Array | None = None) -> Array:
        """Return (m,) float32 squared distances by differences: to the centres of these labels, or to one (d,) point."""
        result = np.empty(len(self._rows), dtype=np.float32)
        wide = tensor(centres if label is not None else centres[None])

        def see(at: slice, x: Array) -> None:
            result[at] = squares(x, wide, None if label is None else label[at])

        self._each(see, power)
        return result

    def nearest(self, centres: Array) -> Array:
        """Find (m,) int32, the nearest centre of each row, exactly."""
        return assign(self._rows, centres).nearest

    def squared_to_own(self, centres: Array, nearest: Array) -> Array:
        """See `Clustered`."""
        result = np.empty(len(self._rows))

        def see(at: slice, x: Array) -> None:
            result[at] = squared_distances(x, centres[nearest[at]])

        self._each(see, 0)
        return result

    def closest(self, centre: Array, count: int, gone: Array) -> tuple[Array, Array]:
        """See `Spread`; of this stretch."""
        free = np.unpackbits(gone, count=len(self._rows)) == 0
        found: list[tuple[Array, Array]] = [(np.empty(0), np.empty(0, dtype=np.int64))]
        lock = threading.Lock()

        def see(at: slice, x: Array) -> None:
            some = np.flatnonzero(free[at])
            squared = squared_distances(x[some], centre)
            with lock:
                squared = np.concatenate([found[0][0], squared])
                rows = np.concatenate([found[0][1], self._rows.start + at.start + some])
                order = np.lexsort((rows, squared))[:count]
                found[0] = squared[order], rows[order]

        self._each(see, 0)
        return found[0]

    def _each(self, see: Callable[[slice, Array], None], power: int) -> None:
        """Look at each block of rows, by its place in the stretch."""
        blocks = slices(len(self._rows), BLOCK)

        def look(item: tuple[slice, Read]) -> None:
            at, read = item
            see(at, read(at))

        by_thread(((at, self._reading(at, power)) for at in blocks), len(blocks), lambda: look)

    def _reading(self, part: slice, power: int, size: int = BLOCK) -> Read:
        """Make what reads the rows of a part, `size` at a time; where they lie is looked up now, by this thread."""
        start = self._rows.start
        held = list(self._rows.blocks(start + part.start, start + part.stop, size))
        return _read(held, start, self._rows.width, power)


def _read(held: Sequence[Block], start: int, width: int, power: int) -> Read:
    """Make what reads rows, by their places from `start` on, from blocks that are cut where the files are."""
    remaining: Iterator[Block] = iter(held)
    block, x = next(remaining, None), np.empty((0, width), dtype=np.float32)
    fresh = True

    def read(at: slice) -> Array:
        nonlocal block, x, fresh
        begin, end = start + at.start, start + at.stop
        out: Array | None = None
        while block is not None:
            if fresh:
                x, fresh = block.read(), False
            if (block.start, block.stop) == (begin, end):
                whole, block, fresh = x, next(remaining, None), True
                return np.ldexp(whole, power) if power else whole
            out = np.empty((end - begin, width), dtype=np.float32) if out is None else out
            low, high = max(begin, block.start), min(end, block.stop)
            out[low - begin : high - begin] = x[low - block.start : high - block.start]
            if block.stop <= end:
                block, fresh = next(remaining, None), True
            if high == end:
                break
        assert out is not None
        return np.ldexp(out, power) if power else out

    return read

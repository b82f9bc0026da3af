"""Upper bounds of distances to the nearest centre, brought up to date as late as possible.

Distances only shrink while centres are added, so what was found some centres ago is a bound still. Only
rows whose old bound is among the first in order need the new centres: Minoux' lazy greedy (1978), a block
of rows and centres at a time.

`Gain` is what farthest-first maximises: any number that only shrinks while rows are chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from typing import TypeVar

import numpy as np
import torch

from raystream.errors import QueryError
from raystream.selection.bounds import AT_ONCE, ROWS_UNIT, CentreList, EncodedRows, Encoding, unfilled, whole_units
from raystream.selection.nearest import pair_distances
from raystream.selection.rows import Array, Block, Rows
from raystream.threads import each, one_thread


@dataclass(frozen=True, eq=False)
class Gain:
    """offset + weight * sqrt(D) in float64, D the squared distance to the nearest chosen or labelled row.

    Every gain is computed by `of`, so that equal rows have equal gains bit for bit, and an upper bound
    of D gives one of the gain.

    Attributes:
        weight: (n,) float64, at least 0; None is 1 for every row.
        offset: (n,) float64; None is 0.
    """

    weight: Array | None = None
    offset: Array | None = None

    def of(self, squared: Array, which: Array | slice = slice(None)) -> Array:
        """Return (m,) float64 gains of the rows `which` from their squared distances, (m,) float64."""
        result: Array = np.sqrt(squared)
        if self.weight is not None:
            np.multiply(result, self.weight[which], out=result)
        if self.offset is not None:
            np.add(result, self.offset[which], out=result)
        return result

    def at(self, which: Array | slice) -> Gain:
        """Return the gain of the rows `which` alone."""
        return Gain(None if self.weight is None else self.weight[which], None if self.offset is None else self.offset[which])

    def among(self, n: int, exclude: Array) -> Gain:
        """Return itself, checked for n rows; distance alone if all rows outside `exclude` weigh 0 and nothing else tells rows apart.

        Raises:
            QueryError: another number of rows, a negative weight, or numbers that are not finite.
        """
        for name, part in (("weight", self.weight), ("offset", self.offset)):
            if part is not None and (part.shape != (n,) or not np.isfinite(part).all()):
                raise QueryError(f"gain.{name} has shape {part.shape}, expected ({n},) finite numbers")
        if self.weight is not None and (self.weight < 0).any():
            raise QueryError("gain.weight is negative; expected at least 0, else the gain would grow as rows are chosen")
        if self.weight is not None and self.offset is None and not np.delete(self.weight, exclude).any():
            return Gain()
        return self


_Item = TypeVar("_Item")

_ROWS = 2048
"""Rows that are multiplied at a time."""
_GATHERED = 64
"""To fetch a row from anywhere takes as long as to compare it with so many centres; to read it in passing, with a fourth of that."""
_FIRST = 4
"""So many times as many rows as are to lead are brought up to date first; what leads them tells which others matter."""
_EXACT_ROWS = 1024


@dataclass(frozen=True)
class _Some:
    """Rows (int64 places) that lack the centres from number `since` on."""

    rows: Array
    since: int


class LazyBounds:
    """For each of n rows an upper bound of its squared distance to the nearest centre.

    Attributes:
        squared: (n,) float64, the bounds; inf before the first centre.
        gain: (n,) float64, of `squared`; inf before the first centre, -inf for a row that is gone.
    """

    def __init__(self, rows: Rows, encoding: Encoding, encoded: EncodedRows, gain: Gain) -> None:
        n = len(rows)
        self._rows, self._encoding, self._encoded, self._gain_of = rows, encoding, encoded, gain
        self._centres = CentreList(encoding)
        self.squared, self.gain = np.full(n, np.inf), np.full(n, np.inf)
        # invariant: squared[i] is a bound for the first _known[i] centres, and the squared distance to the first _exact[i]
        # unless one of those between is nearer
        self._known, self._exact = np.zeros(n, dtype=np.int32), np.zeros(n, dtype=np.int32)

    def add(self, centres: Array) -> None:
        """Add further centres, (m, d) float32."""
        self._centres.add(centres)

    def drop(self, rows: Array) -> None:
        """Drop the rows at these places."""
        self.gain[rows] = -np.inf

    def catch_up(self, count: int) -> None:
        """Bring rows up to date until the first `count` in order are, and the one that comes next."""
        size, least = _FIRST * count, -np.inf
        while True:
            floor = max(rough_rank(self.gain, size), least) if len(self.gain) > 2 * size else least
            rows = np.flatnonzero((self.gain >= floor) & (self.gain > -np.inf))
            self._update(rows)
            gain = self.gain[rows]
            if len(gain) > count:
                least = float(np.partition(gain, len(gain) - count - 1)[len(gain) - count - 1])
            # all others lie below the floor
            if floor <= least or floor == -np.inf:
                return
            size *= 2

    def settle(self, rows: Array) -> Array:
        """Make the squared distances of the rows at these places, ascending, exact; their vectors, (m, d) float32."""
        result = np.empty((len(rows), self._rows.width), dtype=np.float32)
        self._settle_each(rows, torch.from_numpy(result))
        return result

    def settle_from(self, gain: float) -> None:
        """Make exact what may gain at least `gain`."""
        self._update(np.flatnonzero(self.gain >= gain))
        rows = np.flatnonzero(self.gain >= gain)
        self._settle_each(rows[self._exact[rows] < len(self._centres)], None)

    def _settle_each(self, rows: Array, keep: torch.Tensor | None) -> None:
        """See `settle`; `keep` receives the vectors."""

        def start() -> Callable[[_Some], None]:
            room = unfilled((_EXACT_ROWS * AT_ONCE,), self._encoding.dtype)
            encoded = unfilled((_EXACT_ROWS, self._encoding.width), self._encoding.dtype)

            def work(some: _Some) -> None:
                x = self._rows.gather(some.rows + self._rows.start)
                if some.since < len(self._centres):
                    self._settle(some, x, encoded, room)
                if keep is not None:
                    keep.index_copy_(0, torch.from_numpy(np.searchsorted(rows, some.rows)), torch.from_numpy(x))

            return work

        _each(self._groups(rows, self._exact, _EXACT_ROWS), start)

    def _groups(self, rows: Array, known: Array, size: int) -> Iterator[_Some]:
        """Yield the rows at these places by how many centres they know, up to `size` at a time; a few join those that know more."""
        order = np.argsort(known[rows], kind="stable")
        count = known[rows[order]]
        edges = [0]
        for edge in [*np.flatnonzero(np.diff(count)) + 1, len(rows)]:
            if edge - edges[-1] >= ROWS_UNIT or edge == len(rows):
                edges.append(int(edge))
        for first, last in pairwise(edges):
            for begin in range(first, last, size):
                yield _Some(np.sort(rows[order[begin : min(begin + size, last)]]), int(count[begin]))

    def _update(self, rows: Array) -> None:
        """Bring the rows at these places, ascending, up to date."""
        n, m = len(self.gain), len(self._centres)
        rows = rows[self._known[rows] < m]
        if not len(rows):
            return
        if self._encoded.copy is None:
            _each(self._rows.blocks(self._rows.start, self._rows.stop, _ROWS), lambda: self._from_blocks(rows))
            return
        since = int(self._known[rows].min())
        apart = len(rows) * (_GATHERED + m) - int(self._known[rows].sum(dtype=np.int64))
        if apart < n * (_GATHERED // 4 + m - since):
            _each(self._groups(rows, self._known, _ROWS), self._from_anywhere)
        else:
            _each((slice(begin, min(begin + _ROWS, n)) for begin in range(0, n, _ROWS)), lambda: self._in_passing(since))

    def _from_anywhere(self) -> Callable[[_Some], None]:
        assert self._encoded.copy is not None
        operand, slack = self._encoded.copy
        room, gathered = self._room(), unfilled((_ROWS, self._encoding.width), self._encoding.dtype)

        def work(some: _Some) -> None:
            which = torch.from_numpy(some.rows)
            torch.index_select(operand, 0, which, out=gathered[: len(which)])
            self._shrink(some.rows, gathered[: whole_units(len(which))], slack[which], some.since, room)

        return work

    def _in_passing(self, since: int) -> Callable[[slice], None]:
        assert self._encoded.copy is not None
        operand, slack = self._encoded.copy
        room = self._room()

        def work(at: slice) -> None:
            self._shrink(at, operand[at], slack[at], since, room)

        return work

    def _from_blocks(self, every: Array) -> Callable[[Block], None]:
        room, encoded = self._room(), unfilled((_ROWS, self._encoding.width), self._encoding.dtype)

        def work(block: Block) -> None:
            begin = block.start - self._rows.start
            first, last = np.searchsorted(every, [begin, block.stop - self._rows.start])
            rows = every[first:last]
            if not len(rows):
                return
            x = block.read()
            x = x if len(rows) == len(x) else x[rows - begin]
            slack = self._encoding.rows(x, encoded[: len(x)])[1]
            self._shrink(rows, encoded[: whole_units(len(x))], slack, int(self._known[rows].min()), room)

        return work

    def _room(self) -> torch.Tensor:
        return unfilled((_ROWS * AT_ONCE,), self._encoding.dtype)

    def _shrink(self, rows: Array | slice, operand: torch.Tensor, slack: torch.Tensor, since: int, room: torch.Tensor) -> None:
        """Bring bounds down to those by the centres from number `since` on; operands behind those of the rows are of no account."""
        smallest = self._centres.smallest_products(operand, since, room)[: len(slack)]
        upper = self._encoding.upper(smallest, slack.double() + self._centres.slack)
        self._set(rows, np.minimum(upper, self.squared[rows]))
        self._known[rows] = len(self._centres)
        if self._encoding.exact:
            self._exact[rows] = len(self._centres)

    def _set(self, rows: Array | slice, squared: Array) -> None:
        gain = self._gain_of.of(squared, rows)
        if isinstance(rows, slice):
            gain[self.gain[rows] == -np.inf] = -np.inf
        self.squared[rows], self.gain[rows] = squared, gain

    def _settle(self, some: _Some, x: Array, encoded: torch.Tensor, room: torch.Tensor) -> None:
        """Compute in float64 for the pairs that products can't rule out."""
        encoding, centres = self._encoding, self._centres
        operand, slack = encoding.rows(x, encoded[: len(x)])
        squared = self.squared[some.rows]
        square = encoding.row_squares(operand) + centres.largest_square
        bits = torch.int16 if encoding.bfloat16 else torch.int32
        whole = encoded[: whole_units(len(x))]
        for begin in range(some.since, len(centres), AT_ONCE):
            product = centres.products(whole, begin, room)[: len(x)]
            limit = encoding.limit(squared, slack.double() + centres.slack, square)
            flat = np.flatnonzero(product.view(bits).numpy() <= limit.view(bits).numpy()[:, None])
            row, centre = np.divmod(flat, product.shape[1])
            if len(row):
                first = np.flatnonzero(np.diff(row, prepend=-1))
                exact = np.minimum.reduceat(pair_distances(x, centres.x, row, centre + begin), first)
                squared[row[first]] = np.minimum(squared[row[first]], exact)
        self._set(some.rows, squared)
        self._known[some.rows] = self._exact[some.rows] = len(centres)


def _each(items: Iterator[_Item], start: Callable[[], Callable[[_Item], None]]) -> None:
    """Run `each`; a single item, too, by one thread: torch's own would take longer to meet than so few rows take."""
    first = list(islice(items, 2))
    if len(first) > 1:
        each(chain(first, items), start)
        return
    with one_thread():
        each(first, start)


def rough_rank(value: Array, count: int) -> float:
    """Return a value that about `count` or more of the values are not below."""
    sample = value[:: max(len(value) // 65536, 1)]
    rank = max(len(sample) - 1 - int(1.1 * count * len(sample) / len(value)) - 64, 0)
    return float(np.partition(sample, rank)[rank])

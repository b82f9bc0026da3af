"""Lloyd's iterations of k-means over rows wherever they are: each answers with sums of parts at fixed places, which are added in order.

So the same centres come from any number of threads and of stretches of rows. A part is summed by one thread, in float32, row after row,
from the differences to the rows' centres; parts are added in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from raystream.selection.points import BLOCK, Finder, Points, by_thread, slices, squared_to
from raystream.selection.rows import Array, tensor
from raystream.selection.strategies.ranking import lowest

_SUM_ROWS = 32768
"""At most so many rows' differences are added in float32."""
_PARTS = 16
"""Or fewer, so that this many threads have something to do."""
_SUMS_BYTES = 1 << 28
"""Sums that are kept at a time; where there are many centres, more rows are added before they are."""

Read = Callable[[slice], Array]
"""(m, d) float32 rows of a part, at most `BLOCK` of them, asked for in their order."""


@dataclass(frozen=True)
class Sums:
    """One look at every row.

    Attributes:
        parts: (k, d) float32 each, the sums of the differences of a part's rows to their centres, in the parts' order.
        label: (n,) each row's nearest centre.
        same: whether all of these are what they were in the look before.
    """

    parts: list[Array]
    label: Array
    same: bool


class Stretches(Protocol):
    """The n rows that iterations go over."""

    def sums(self, centres: Array) -> Sums:
        """Look at every row."""

    def squares(self, centres: Array, label: Array) -> Array:
        """Return (n,) float32 squared distances to the centres of these labels."""

    def at(self, rows: Array) -> Array:
        """Read (m, d) float32, some rows."""


def iterate(stretches: Stretches, weight: Array, centres: Array, iterations: int) -> Array:
    """Return (k, d) float32 centres after so many iterations, or fewer once no row changes its centre.

    A centre without rows moves to the row that adds most to the weighted sum of squared distances, several to several such rows.

    Args:
        stretches: the rows.
        weight: (n,) float64 of the rows, at least 0, some above.
        centres: (k, d) float32, the first ones.
        iterations: how many at most.
    """
    share = weight / weight.max()
    for _ in range(iterations):
        found = stretches.sums(centres)
        if found.same:
            break
        centres = _moved(stretches, share, centres, found)
    return centres


def _moved(stretches: Stretches, weight: Array, centres: Array, found: Sums) -> Array:
    """Move the centres to the means of their rows."""
    counted = np.bincount(found.label, weights=weight, minlength=len(centres))
    total = np.zeros(centres.shape)
    for part in found.parts:
        total += part
    result: Array = (centres + total / np.where(counted > 0, counted, 1.0)[:, None]).astype(np.float32)
    empty = np.flatnonzero(counted == 0)
    if len(empty):
        far = weight * stretches.squares(centres, found.label)
        rows = lowest(-far, len(empty))
        rows = rows[far[rows] > 0]
        result[empty[: len(rows)]] = stretches.at(rows)
    return result


def part_rows(n: int, sum_bytes: int) -> int:
    """Choose how many of n rows to add up in float32, whole blocks of them."""
    rows = max(min(_SUM_ROWS, -(-n // _PARTS)), -(-n * sum_bytes // _SUMS_BYTES))
    return -(-rows // BLOCK) * BLOCK


def part_sums(
    parts: Iterable[tuple[slice, Read]], count: int, find: Callable[[], Finder], centres: Array, label: Array, weight: Array | None
) -> tuple[list[Array], bool]:
    """Sum parts, and tell whether all labels are as they were.

    Args:
        parts: where in `label` the rows of each stand, and what reads them.
        count: how many parts there are.
        find: for each thread what finds rows' nearest centres.
        centres: (k, d) float32.
        label: (n,) int64, which is written to.
        weight: (n,) float32 of the rows; None where all count the same.
    """
    wide = tensor(centres)
    narrow = None if weight is None else tensor(weight)[:, None]

    def start() -> Callable[[tuple[slice, Read]], tuple[Array, bool]]:
        nearest, room = find(), torch.empty((BLOCK, centres.shape[1]))

        def see(item: tuple[slice, Read]) -> tuple[Array, bool]:
            part, read = item
            total, same = torch.zeros(centres.shape), True
            for begin in range(part.start, part.stop, BLOCK):
                at = slice(begin, min(begin + BLOCK, part.stop))
                x = read(at)
                found = nearest(at, x)
                same = same and bool((found == label[at]).all())
                label[at] = found
                index, difference = torch.from_numpy(found), room[: len(found)]
                torch.sub(tensor(x), torch.index_select(wide, 0, index, out=difference), out=difference)
                total.index_add_(0, index, difference if narrow is None else difference.mul_(narrow[at]))
            return total.numpy(), same

        return see

    found = by_thread(parts, count, start)
    return [total for total, _ in found], all(same for _, same in found)


def lloyd(points: Points, centres: Array, iterations: int) -> Array:
    """Run `iterate` over rows in this process's memory."""
    return iterate(_OneStretch(points), points.weight, centres, iterations)


class _OneStretch:
    """Rows in this process's memory, as one stretch."""

    def __init__(self, points: Points) -> None:
        self._points = points
        share = points.weight / points.weight.max()
        self._weight = None if (share == 1).all() else share.astype(np.float32)
        self._label = np.full(len(points), -1, dtype=np.int64)

    def sums(self, centres: Array) -> Sums:
        points = self._points
        parts = slices(len(points), part_rows(len(points), centres.nbytes))
        items = ((part, points.x.__getitem__) for part in parts)
        found, same = part_sums(items, len(parts), points.finder(centres), centres, self._label, self._weight)
        return Sums(found, self._label, same)

    def squares(self, centres: Array, label: Array) -> Array:
        return squared_to(self._points.x, centres, label)

    def at(self, rows: Array) -> Array:
        found: Array = self._points.x[rows]
        return found

"""Lloyd's iterations over weighted rows, the same digits from any number of threads.

A block of rows at a fixed place is one thread's. Products find each row's centre; what moves the centres are the float32
differences from them, so that rows far from the origin, or close together beside the whole, lose nothing. Blocks are added
in float64, in their order.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from raystream.selection.points import BLOCK, Points, by_blocks, slices, squared_to
from raystream.selection.ranking import lowest
from raystream.selection.rows import Array, tensor

_SUM_ROWS = 32768
"""At most so many rows' differences are added in float32."""
_PARTS = 16
"""Or fewer, so that this many threads have something to do."""
_SUMS_BYTES = 1 << 28
"""Sums that are kept at a time; where there are many centres, more rows are added before they are."""


def lloyd(points: Points, centres: Array, iterations: int) -> Array:
    """(k, d) float32 centres after so many iterations, or fewer once no row changes its centre.

    A centre without rows moves to the row that adds most to the weighted sum of squared distances, several to several such rows.
    """
    label = np.full(len(points), -1, dtype=np.int64)
    for _ in range(iterations):
        moved = _moved(points, centres, label)
        if moved is None:
            break
        centres = moved
    return centres


def _moved(points: Points, centres: Array, label: Array) -> Array | None:
    """The centres moved to the means of their rows, which `label` (n,) int64 then says; None if all labels are as they were."""
    weight = points.weight / points.weight.max()
    narrow = tensor(weight.astype(np.float32))[:, None]
    uniform = bool((weight == 1).all())
    find, wide = points.label(centres), tensor(centres)

    def start() -> Callable[[slice], tuple[torch.Tensor, bool]]:
        nearest, room = find(), torch.empty((BLOCK, centres.shape[1]))

        def see(part: slice) -> tuple[torch.Tensor, bool]:
            total, same = torch.zeros(centres.shape), True
            for begin in range(part.start, part.stop, BLOCK):
                at = slice(begin, min(begin + BLOCK, part.stop))
                found = nearest(at)
                same = same and bool((found == label[at]).all())
                label[at] = found
                index, difference = torch.from_numpy(found), room[: len(found)]
                torch.sub(tensor(points.x[at]), torch.index_select(wide, 0, index, out=difference), out=difference)
                total.index_add_(0, index, difference if uniform else difference.mul_(narrow[at]))
            return total, same

        return see

    found = by_blocks(slices(len(points), _part_rows(len(points), centres.nbytes)), start)
    if all(same for _, same in found):
        return None
    counted = np.bincount(label, weights=weight, minlength=len(centres))
    total = np.zeros(centres.shape)
    for part, _ in found:
        total += part.numpy()
    result = (centres + total / np.where(counted > 0, counted, 1.0)[:, None]).astype(np.float32)
    empty = np.flatnonzero(counted == 0)
    if len(empty):
        far = weight * squared_to(points.x, centres, label)
        rows = lowest(-far, len(empty))
        rows = rows[far[rows] > 0]
        result[empty[: len(rows)]] = points.x[rows]
    return result


def _part_rows(n: int, sum_bytes: int) -> int:
    """How many rows to add up in float32, whole blocks of them."""
    rows = max(min(_SUM_ROWS, -(-n // _PARTS)), -(-n * sum_bytes // _SUMS_BYTES))
    return -(-rows // BLOCK) * BLOCK

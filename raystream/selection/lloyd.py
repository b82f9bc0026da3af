"""k-means step by step: weighted points, and iterations over rows wherever they are.

Lloyd's iterations of k-means over rows wherever they are: each answers with sums of parts at fixed places, which are added in order.

So the same centres come from any number of threads and of stretches of rows. A part is summed by one thread, in float32, row after row,
from the differences to the rows' centres; parts are added in float64.

Weighted rows as k-means takes them: encoded once for products with centres, and drawn so that few stand for many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from raystream.selection.bounds import Encoding, Precision
from raystream.selection.hashing import row_hash, uniform
from raystream.selection.nearest import Centres, block_rows, nearest
from raystream.selection.rows import Array, tensor
from raystream.selection.strategies.ranking import lowest
from raystream.threads import Item, Result, each, one_thread

BLOCK = 2048
"""Rows whose differences are added at a time; parts are of whole blocks."""
_LOOKED_BYTES = 1 << 25
"""Of rows that are compared with centres at a time."""
_SHIFT_ROWS = 1024
_NEXT_TO_NOTHING = 2.0**-10
"""Iterations end with a move that gains less than this share of all that moves have gained. On normal, clustered and mixed pools 20
iterations leave up to .3% less, and take about twice as long; scikit-learn, to its own end, leaves about as much as 20."""
_KEPT_BYTES = 1 << 26
"""Rows of more bytes are not kept a second time in float32."""


@dataclass(frozen=True)
class Points:
    """n rows and what each of them counts.

    Attributes:
        x: (n, d) float32.
        weight: (n,) float64, at least 0, some above.
        encoding: of rows and centres, which has no influence on what is found.
        operand, slack: the rows encoded; None where they are encoded again each time, which takes little beside a large product in float32.
    """

    x: Array
    weight: Array
    encoding: Encoding
    operand: torch.Tensor | None = None
    slack: torch.Tensor | None = None

    @classmethod
    def of(cls, x: Array, weight: Array, encoding: Encoding) -> Points:
        """Encode the rows, if they are to be kept encoded."""
        if not encoding.bfloat16 and x.nbytes > _KEPT_BYTES:
            return cls(x, weight, encoding)
        return cls(x, weight, encoding, *encode(x, encoding))

    def __len__(self) -> int:
        return len(self.x)

    def encoded(self, at: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return operand (m, width) and slack (m,) of some rows."""
        if self.operand is None or self.slack is None:
            return self.encoding.rows(self.x[at])
        return self.operand[at], self.slack[at]

    def finder(self, centres: Array) -> Callable[[], Finder]:
        """Make for each thread what finds the nearest of the (k, d) float32 centres."""
        return finder(centres, self.encoding, lambda at, x: self.encoded(at))

    def label(self, centres: Array) -> Callable[[], Callable[[slice], Array]]:
        """Make for each thread what finds it by the rows' places alone."""
        find = self.finder(centres)

        def start() -> Callable[[slice], Array]:
            near = find()
            return lambda at: near(at, self.x[at])

        return start


Finder = Callable[[slice, Array], Array]
"""Finds (m,) int64, the nearest centre as in float64, of at most `looked_rows` rows: their places and themselves, (m, d) float32."""


def looked_rows(centres: Array) -> int:
    """Choose how many rows are compared with (k, d) centres at a time, whole blocks: beside few centres, small operations cost most."""
    rows: int = min(block_rows(len(centres)), _LOOKED_BYTES // (4 * max(centres.shape[1], 1)))
    return max(rows // BLOCK, 1) * BLOCK


def finder(
    centres: Array, encoding: Encoding, encoded: Callable[[slice, Array], tuple[torch.Tensor, torch.Tensor]]
) -> Callable[[], Finder]:
    """Make for each thread what finds the nearest of the (k, d) float32 centres to rows that `encoded` has the operands of."""
    compared = distinct(centres)
    among = Centres.of(centres[compared], encoding)

    def start() -> Finder:
        room = torch.empty((looked_rows(centres), len(compared)), dtype=encoding.dtype)
        return lambda at, x: compared[nearest(x, among, encoded=encoded(at, x), room=room).index]

    return start


def encode(x: Array, encoding: Encoding) -> tuple[torch.Tensor, torch.Tensor]:
    """Return operand (n, width) and slack (n,) of (n, d) rows, some at a time, so that nothing else of their size is needed."""
    operand, slack = torch.empty((len(x), encoding.width), dtype=encoding.dtype), torch.empty(len(x))

    def see(at: slice) -> None:
        slack[at] = encoding.rows(x[at], operand[at])[1]

    by_blocks(slices(len(x), BLOCK), lambda: see)
    return operand, slack


def encoding_of(x: Array, precision: Precision = "auto", *, looked_at: int = _SHIFT_ROWS) -> Encoding:
    """Fit an encoding to rows, around the median of about so many of them: beside outliers, which move a mean, others keep their digits."""
    return encoding_around(x[looked_at_of(len(x), looked_at)], max(float(x.max()), -float(x.min())), precision)


def looked_at_of(n: int, count: int = _SHIFT_ROWS) -> slice:
    """Say which rows of n, at even distances, an encoding is fitted around."""
    return slice(0, n, -(-n // count))


def encoding_around(some: Array, largest: float, precision: Precision = "auto") -> Encoding:
    """Fit the encoding to rows whose largest absolute value is `largest`, around the median of some of them, (m, d) float32."""
    middle = np.array([(len(some) - 1) // 2, len(some) // 2])
    # np.median loads all of numpy.ma the first time, which takes longer than many a pool
    median = np.partition(some, middle, axis=0)[middle].mean(axis=0)
    return Encoding.fit(median, largest, on_grid=False, precision=precision)


def distinct(centres: Array) -> Array:
    """Find the first of all (k, d) centres that are equal, int64, ascending: with the others, every row beside them would be a tie."""
    some = np.sort(centres[:, 0])
    if (some[1:] != some[:-1]).all():
        return np.arange(len(centres))
    first: Array = np.sort(np.unique(centres, axis=0, return_index=True)[1])
    return first


def slices(n: int, size: int, start: int = 0) -> list[slice]:
    """Cut the rows [start, n) into slices of `size`."""
    return [slice(begin, min(begin + size, n)) for begin in range(start, n, size)]


def by_blocks(blocks: Sequence[Item], start: Callable[[], Callable[[Item], Result]]) -> list[Result]:
    """Run `each`, a single thread for each block even where there is one only: how a product is shared out may change its last bits."""
    return by_thread(blocks, len(blocks), start)


def by_thread(blocks: Iterable[Item], count: int, start: Callable[[], Callable[[Item], Result]]) -> list[Result]:
    """Run `by_blocks` of so many, each looked up when there is a thread for it."""
    if count > 1:
        return each(blocks, start)
    with one_thread():
        work = start()
        return [work(block) for block in blocks]


def squared_to(x: Array, centres: Array, label: Array | None = None) -> Array:
    """Return (n,) float32 squared distances by differences, of the (n, d) rows to `centres[label]`, or all to the first."""
    result = np.empty(len(x), dtype=np.float32)
    wide = tensor(centres)

    def see(at: slice) -> None:
        result[at] = squares(x[at], wide, None if label is None else label[at])

    by_blocks(slices(len(x), BLOCK), lambda: see)
    return result


def squares(x: Array, centres: torch.Tensor, label: Array | None) -> Array:
    """Return (m,) float32 squared distances of at most `BLOCK` rows, by differences, to the centres of their labels, or to the first."""
    to = centres[0] if label is None else centres[torch.from_numpy(label.astype(np.int64, copy=False))]
    found: Array = (tensor(x) - to).square_().sum(1).numpy()
    return found


def drawn(x: Array, weight: Array, count: int, seed: int, purpose: str, point: Array) -> tuple[Array, Array]:
    """Call `drawn_of` for the (n, d) float32 rows, by their squared distances to `point`."""
    return drawn_of(len(x), lambda: squared_to(x, point[None]), weight, count, seed, purpose)


def drawn_of(n: int, squared: Callable[[], Array], weight: Array, count: int, seed: int, purpose: str) -> tuple[Array, Array]:
    """Draw at most `count` rows (int64, ascending) that stand for all, and the weights (float64) that they stand for.

    Half of them in proportion to the weights, half to weighted squared distances to a point among them, so that the few outliers which
    make up a sum of squares are among them (as in Bachem et al., *Scalable k-means clustering via lightweight coresets*, 2018).
    Drawn without replacement, by priority (Duffield et al., *Priority sampling for estimation of arbitrary subset sums*, 2007):
    a sum over the rows drawn has the sum over all for its expectation.

    Args:
        n: how many there are.
        squared: gives their squared distances to the point, (n,) float32; not asked where all are drawn.
        weight: (n,) float64, at least 0, some above.
        count: how many rows are enough.
        seed, purpose: of the draw.
    """
    if count >= n:
        return np.arange(n), weight
    chance = _chance(weight, count / 2) + _chance(weight * squared(), count / 2)
    luck = uniform(row_hash(seed, np.arange(n)), purpose)
    with np.errstate(divide="ignore"):
        priority = luck / chance  # the lowest first
    order = lowest(priority, count + 1)
    rows = np.sort(order[:-1])
    with np.errstate(invalid="ignore"):
        true = np.minimum(chance[rows] * priority[order[-1]], 1.0)  # nan where there are fewer rows of any weight
    return rows, np.divide(weight[rows], true, out=weight[rows], where=true > 0)


def _chance(share: Array, count: float) -> Array:
    """Return (n,) float64 in proportion to `share` that add up to `count`, each counted as 1 at most; infinite if none has to be below."""
    most = math.ceil(count)
    parts = np.partition(share, len(share) - most)
    top = np.sort(parts[len(share) - most :])[::-1]
    # what the r-th largest and all below it add up to
    rest = parts[: len(share) - most].sum() + np.cumsum(top[::-1])[::-1]
    certain = int(np.argmax(top * (count - np.arange(most)) <= rest))
    unit = rest[certain] / (count - certain)
    return share / unit if unit > 0 else np.where(share > 0, np.inf, 0.0)


def cost(points: Points, centres: Array) -> float:
    """Sum the squared distances to the centres that the points find, weighted."""
    label = np.concatenate(by_blocks(slices(len(points), BLOCK), points.label(centres)))
    return float((points.weight * squared_to(points.x, centres, label)).sum())


_SUM_ROWS = 32768
"""At most so many rows' differences are added in float32."""
_PARTS = 16
"""Or fewer, so that this many threads have something to do."""
_SUMS_BYTES = 1 << 28
"""Sums that are kept at a time; where there are many centres, more rows are added before they are."""

Read = Callable[[slice], Array]
"""(m, d) float32 rows of a part, some at a time, asked for in their order."""


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


@dataclass(frozen=True)
class FittedCentres:
    """Where iterations ended: `centres` (k, d) float32, and by how much all moves have lowered the mean squared distance, weighted."""

    centres: Array
    gained: float


def iterate(stretches: Stretches, weight: Array, centres: Array, iterations: int, gained: float = 0.0) -> FittedCentres:
    """Move centres so many times, or fewer: once no row changes its centre, or a move gains next to nothing beside all before it.

    A centre without rows moves to the row that adds most to the weighted sum of squared distances, several to several such rows.

    Args:
        stretches: the rows.
        weight: (n,) float64 of the rows, at least 0, some above.
        centres: (k, d) float32, the first ones.
        iterations: how many at most.
        gained: by moves before, over a sample.
    """
    share = weight / weight.max()
    for _ in range(iterations):
        found = stretches.sums(centres)
        if found.same:
            break
        counted = np.bincount(found.label, weights=share, minlength=len(centres))
        step = np.zeros(centres.shape)
        for part in found.parts:
            step += part
        step /= np.where(counted > 0, counted, 1.0)[:, None]
        # by sums of NumPy's own: those of BLAS depend on its threads
        gain = float((counted * np.einsum("ij,ij->i", step, step)).sum()) / float(share.sum())
        gained += gain
        moved = (centres + step).astype(np.float32)
        far_off = _move_empty(stretches, share, centres, found.label, np.flatnonzero(counted == 0), moved)
        centres = moved
        if not far_off and gain <= _NEXT_TO_NOTHING * gained:
            break
    return FittedCentres(centres, gained)


def _move_empty(stretches: Stretches, weight: Array, centres: Array, label: Array, empty: Array, moved: Array) -> int:
    """Move the `empty` centres, of `moved`, to rows far from the centres of their labels; returns how many."""
    if not len(empty):
        return 0
    far = weight * stretches.squares(centres, label)
    rows = lowest(-far, len(empty))
    rows = rows[far[rows] > 0]
    moved[empty[: len(rows)]] = stretches.at(rows)
    return len(rows)


def part_rows(n: int, sum_bytes: int) -> int:
    """Choose how many of n rows to add up in float32, whole blocks of them."""
    rows = max(min(_SUM_ROWS, -(-n // _PARTS)), -(-n * sum_bytes // _SUMS_BYTES))
    return -(-rows // BLOCK) * BLOCK


def spans(n: int, size: int, centres: Array) -> list[slice]:
    """Cut n rows into spans of whole parts of `size`, a thread for each: several parts where they can be compared at once.

    Threads that run many small operations wait for each other, and for little work in all a single one is the quickest.
    """
    parts, looks = -(-n // size), -(-n // looked_rows(centres))
    threads = torch.get_num_threads()
    together = -(-parts // (-(-looks // threads) * threads)) if looks > 1 else parts
    return slices(n, size * max(together, 1))


def part_sums(
    parts: Iterable[tuple[slice, Read]],
    count: int,
    size: int,
    find: Callable[[], Finder],
    centres: Array,
    label: Array,
    weight: Array | None,
) -> tuple[list[Array], bool]:
    """Sum parts of `size` rows, and tell whether all labels are as they were.

    Args:
        parts: `spans` of them, where in `label` their rows stand, and what reads them, `looked_rows` at a time.
        count: how many spans there are.
        size: rows of a part, whole blocks.
        find: for each thread what finds rows' nearest centres.
        centres: (k, d) float32.
        label: (n,) int64, which is written to.
        weight: (n,) float32 of the rows; None where all count the same.
    """
    wide = tensor(centres)
    narrow = None if weight is None else tensor(weight)[:, None]
    looked = looked_rows(centres)

    def start() -> Callable[[tuple[slice, Read]], tuple[list[Array], bool]]:
        nearest, room = find(), torch.empty((BLOCK, centres.shape[1]))

        def add(at: slice, x: Array, total: torch.Tensor) -> None:
            index, difference = torch.from_numpy(label[at]), room[: len(x)]
            torch.sub(tensor(x), torch.index_select(wide, 0, index, out=difference), out=difference)
            total.index_add_(0, index, difference if narrow is None else difference.mul_(narrow[at]))

        def see(item: tuple[slice, Read]) -> tuple[list[Array], bool]:
            span, read = item
            totals, same = torch.zeros((-(-(span.stop - span.start) // size), *centres.shape)), True
            for at in slices(span.stop, looked, span.start):
                x = read(at)
                found = nearest(at, x)
                same = same and bool((found == label[at]).all())
                label[at] = found
                for block in slices(at.stop, BLOCK, at.start):
                    add(block, x[block.start - at.start : block.stop - at.start], totals[(block.start - span.start) // size])
            return list(totals.numpy()), same

        return see

    found = by_thread(parts, count, start)
    return [total for totals, _ in found for total in totals], all(same for _, same in found)


def lloyd(points: Points, centres: Array, iterations: int, gained: float = 0.0) -> FittedCentres:
    """Run `iterate` over rows in this process's memory."""
    return iterate(_OneStretch(points), points.weight, centres, iterations, gained)


class _OneStretch:
    """Rows in this process's memory, as one stretch."""

    def __init__(self, points: Points) -> None:
        self._points = points
        share = points.weight / points.weight.max()
        self._weight = None if (share == 1).all() else share.astype(np.float32)
        self._label = np.full(len(points), -1, dtype=np.int64)

    def sums(self, centres: Array) -> Sums:
        points = self._points
        size = part_rows(len(points), centres.nbytes)
        parts = spans(len(points), size, centres)
        items = ((part, points.x.__getitem__) for part in parts)
        found, same = part_sums(items, len(parts), size, points.finder(centres), centres, self._label, self._weight)
        return Sums(found, self._label, same)

    def squares(self, centres: Array, label: Array) -> Array:
        return squared_to(self._points.x, centres, label)

    def at(self, rows: Array) -> Array:
        found: Array = self._points.x[rows]
        return found

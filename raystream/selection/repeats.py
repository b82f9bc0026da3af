"""Rows alike: exact repeats, and near-duplicates.

Rows whose stored embeddings are equal: one label says what there is to say about all of them.

Equality is that of the values, so that -0.0 is 0.0. It is looked for by 64-bit hashes of the rows, and what these find is compared
value by value: no choice depends on a hash. Vectors are hashed and compared where they lie; eight bytes a row go round.

Rows too alike to be labelled twice: a cosine at or above a threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from raystream.errors import QueryError
from raystream.selection.hashing import draw
from raystream.selection.rows import Array, Block, Rows, normalised
from raystream.selection.shards import Shards
from raystream.threads import each

_BLOCK = 4096
_TWIN_BYTES = 1 << 26
"""Vectors that others are compared with at a time."""
_SORTED = 1 << 24
"""Hashes that are sorted at a time."""


class Repeats:
    """Which candidates have equals, and which of those have been chosen or labelled.

    Args:
        group: (n,) int32, the same for equal candidates; -1 for those that no candidate and no labelled row equals.
        covered: (g,) bool, the groups of labelled rows; changed as rows are taken.
    """

    def __init__(self, group: Array, covered: Array) -> None:
        self._group, self._covered = group, covered
        self.passed_over = True
        """Whether repeats are; False once nothing else is left."""

    def blocked(self, rows: Array) -> Array:
        """Tell (m,) bool which of the candidates `rows` (int64) are to be passed over."""
        return self.covered(rows) if self.passed_over else np.zeros(len(rows), dtype=bool)

    def covered(self, rows: Array) -> Array:
        """Tell (m,) bool which of the candidates equal a row that is chosen or labelled, or are chosen and have equals."""
        group = self._group[rows]
        result: Array = (group >= 0) & self._covered[group]
        return result

    def take(self, row: int) -> None:
        """Note that the candidate is chosen."""
        if self._group[row] >= 0:
            self._covered[self._group[row]] = True


def find_repeats(shards: Shards, labelled: Array | None) -> Repeats | None:
    """Find the repeats among the candidates and of labelled rows, (m, d) as stored; None if there are none."""
    n = len(shards)
    compared = _HashedRows(shards, labelled)
    known = len(compared.labelled)
    which = not_alone(compared.hashes)
    if not len(which) or which[-1] < known:
        return None
    first = which[first_equal(compared.hashes[which], lambda rows, twins: compared.differ(which[rows], which[twins]))]
    twin, number, size = np.unique(first, return_inverse=True, return_counts=True)
    several = size > 1  # what only a hash made equal is alone
    group = np.full(known + n, -1, dtype=np.int32)
    group[which] = np.where(several, np.cumsum(several) - 1, -1)[number]
    covered = (twin < known)[several]  # labelled rows come first
    return Repeats(group[known:], covered) if (group[known:] >= 0).any() else None


class _HashedRows:
    """Labelled rows, then the candidates: their hashes, and whether they are equal."""

    def __init__(self, shards: Shards, labelled: Array | None) -> None:
        self._shards, self._pieces = shards, shards.pieces(StoredPiece)
        self.labelled = as_stored(np.empty((0, shards.width), dtype=np.float32) if labelled is None else labelled, shards.rows.dtype)
        self.hashes: Array = np.concatenate([hashes_of(self.labelled), *self._pieces.call("hashes")])

    def differ(self, rows: Array, twins: Array) -> Array:
        """Tell (m,) bool which of `rows` are unequal to their `twins`."""
        result = np.zeros(len(rows), dtype=bool)
        known = len(self.labelled)
        for at, number, vectors in _by_twins(twins, self._vectors, self._shards.width):
            mine = rows[at]
            inside = np.flatnonzero(mine < known)
            result[at[inside]] = ~equal(self.labelled[mine[inside]], vectors[number[inside]])
            others = at[mine >= known]
            order = np.argsort(rows[others])
            asked = self._pieces.call("differ", rows[others][order] - known, number[mine >= known][order], vectors)
            result[others[order]] = np.concatenate(asked)
        return result

    def _vectors(self, rows: Array) -> Array:
        """Read (m, d) of rows in ascending order."""
        inside = rows < len(self.labelled)
        beside = self._shards.rows.stored(rows[~inside] - len(self.labelled))
        return np.concatenate([self.labelled[rows[inside]], beside])


class StoredPiece:
    """A stretch of the candidates as they are stored, where it is."""

    pure = frozenset({"hashes", "differ"})

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def hashes(self) -> Array:
        """Return (n_i,) uint64 hashes of the piece's rows."""
        return hashes_of_rows(self._rows)

    def differ(self, rows: Array, number: Array, vectors: Array) -> Array:
        """Tell of those of the candidates `rows` (int64, ascending) that are here whether they are unequal to `vectors[number]`."""
        low, high = np.searchsorted(rows, [self._rows.start, self._rows.stop])
        mine, number = rows[low:high], number[low:high]
        parts = [slice(i, i + _BLOCK) for i in range(0, len(mine), _BLOCK)]
        found = [~equal(self._rows.stored(mine[part]), vectors[number[part]]) for part in parts]
        return np.concatenate(found) if found else np.empty(0, dtype=bool)


def row_hashes(x: Array) -> Array:
    """Return (n,) uint64 hashes of the rows of (n, d) float16 or float32; equal rows have equal ones."""
    values = without_negative_zeros(x)
    size = values.shape[1] * values.itemsize
    if size % 8:
        padded = np.zeros((len(values), size + -size % 8), dtype=np.uint8)
        padded[:, :size] = values.view(np.uint8)
        values = padded
    # halves of words and whole factors: of whole words, flips of the highest bit would change a sum by 2^63 whatever the factor
    words = values.view(np.uint64)
    low, high = draw(np.arange(2 * words.shape[1]), "row_hashes").reshape(2, -1)
    result: Array = (words & np.uint64(2**32 - 1)) @ low + (words >> np.uint64(32)) @ high
    return result


def without_negative_zeros(x: Array) -> Array:
    """Return `x` in C order, with 0.0 for -0.0; itself where nothing has to be changed."""
    x = np.ascontiguousarray(x)
    integer = np.int16 if x.dtype == np.float16 else np.int32
    bits, lowest = x.view(integer), np.iinfo(integer).min
    if bits.size and bits.min() == lowest:
        bits = bits.copy()
        bits[bits == lowest] = 0
    return bits.view(x.dtype)


def equal(x: Array, y: Array) -> Array:
    """Tell (m,) bool which rows of (m, d) and (m, d) of one dtype are equal."""
    result: Array = (x == y).all(axis=1)
    return result


def hashes_of(x: Array) -> Array:
    """Return (n,) uint64 `row_hashes`, some rows at a time."""
    result = np.empty(len(x), dtype=np.uint64)
    for begin in range(0, len(x), _BLOCK):
        result[begin : begin + _BLOCK] = row_hashes(x[begin : begin + _BLOCK])
    return result


def hashes_of_rows(rows: Rows) -> Array:
    """Return (n,) uint64 `row_hashes` of rows as they are stored."""
    result = np.empty(len(rows), dtype=np.uint64)

    def see(block: Block) -> None:
        result[block.start - rows.start : block.stop - rows.start] = row_hashes(block.stored())

    each(rows.blocks(rows.start, rows.stop, _BLOCK), lambda: see)
    return result


def as_stored(x: Array, dtype: np.dtype[Any]) -> Array:
    """Return those of the rows (m, d) that `dtype` can hold, in it: no other can be equal to a row of it."""
    if x.dtype == dtype:
        return x
    with np.errstate(over="ignore"):
        narrow = x.astype(dtype)
    result: Array = narrow[(narrow == x).all(axis=1)]
    return result


def not_alone(hashed: Array) -> Array:
    """Find the places of (n,) uint64 that hold what another one holds, too, int64, ascending."""
    found = []
    parts = 1 << max(len(hashed) // _SORTED, 1).bit_length() - 1
    shift = np.uint64(64 - max(parts.bit_length() - 1, 1))
    for part in range(parts):
        where = np.flatnonzero(hashed >> shift == part) if parts > 1 else np.arange(len(hashed))
        ordered = np.sort(hashed[where])
        twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        if len(twice):
            at = np.minimum(np.searchsorted(twice, hashed[where]), len(twice) - 1)
            found.append(where[twice[at] == hashed[where]])
    return np.sort(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)


def first_equal(hashed: Array, differ: Callable[[Array, Array], Array]) -> Array:
    """Return (n,) int64, the first place that is equal to each.

    Args:
        hashed: (n,) uint64, equal for equal places.
        differ: (m,), (m,) places -> (m,) bool, whether they are unequal in spite of equal hashes.
    """
    first = np.arange(len(hashed))
    left = first.copy()
    while len(left):
        order = left[np.argsort(hashed[left], kind="stable")]
        begins = np.append(True, hashed[order[1:]] != hashed[order[:-1]])
        twin = order[begins][np.cumsum(begins) - 1]
        rows, twins = order[~begins], twin[~begins]
        clash = differ(rows, twins)
        first[rows[~clash]] = twins[~clash]
        left = np.sort(rows[clash])
    return first


def _by_twins(twins: Array, vectors: Callable[[Array], Array], width: int) -> Iterator[tuple[Array, Array, Array]]:
    """Yield some distinct `twins` at a time: the places that have them, the number of each one's twin, and the twins' vectors."""
    distinct, number = np.unique(twins, return_inverse=True)
    step = max(_TWIN_BYTES // (4 * max(width, 1)), 1)
    if len(distinct) <= step:
        if len(distinct):
            yield np.arange(len(twins)), number, vectors(distinct)
        return
    order = np.argsort(number, kind="stable")
    for begin in range(0, len(distinct), step):
        low, high = np.searchsorted(number[order], [begin, begin + step])
        at = order[low:high]
        yield at, number[at] - begin, vectors(distinct[begin : begin + step])


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

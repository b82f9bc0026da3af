"""Pairs of rows that products leave open: which are within a radius, and which the nearest of their group, as float64 has it.

Float32 decides where it can: by products of all rows of some pairs with all others where that takes less, then by differences, pair by
pair, of those that are open still. The definition, in float64, decides the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from raystream.selection.bounds import Encoding
from raystream.selection.near_rows import ranks
from raystream.selection.nearest import float32_distances, pair_distances
from raystream.selection.rows import Array


def pairs_within(x: Array, row: Array, other: Array, radius: float) -> Array:
    """Tell (p,) bool whether rows of these pairs are at most `radius` apart by the definition; float32 decides where it can.

    Args:
        x: (n, d) float32.
        row, other: (p,) int64 rows of the pairs, those of one `row` beside each other.
        radius: at least 0.
    """
    square = np.square(np.float64(radius))
    inside, left = np.zeros(len(row), dtype=bool), np.arange(len(row))
    for bounds in (_by_products, _by_differences):
        if (found := bounds(x, row[left], other[left])) is not None:
            near = found.above <= square * (1 - 2.0**-50)
            inside[left[near]] = True
            left = left[~(near | (found.below(found.above) > square * (1 + 2.0**-50)))]
    inside[left] = np.sqrt(pair_distances(x, x, row[left], other[left])) <= radius
    return inside


def nearest_of_groups(x: Array, group: Array, row: Array, other: Array, count: Array) -> Array:
    """Tell (p,) bool which pairs are among the (g,) `count` nearest of their group by the definition; float32 decides where it can.

    Args:
        x: (n, d) float32.
        group: (p,) int64, ascending, of one `row` each.
        row, other: (p,) int64 rows of the pairs; of those equally far apart, that of the lower `other` is nearer.
        count: of each group, 0 to all.
    """
    inside, left, count = np.zeros(len(row), dtype=bool), np.arange(len(row)), count.copy()
    for bounds in (_by_products, _by_differences):
        if (found := bounds(x, row[left], other[left])) is not None and not np.isnan(found.above).any():
            here = group[left]
            # all but `count` of a group are farther apart than what is below the first, and that many no farther than the last
            first_out, last_in = _around_count(here, found.above, count)
            near = found.above < found.below(first_out)[here]
            far = found.below(found.above) > last_in[here]
            inside[left[near]] = True
            count -= np.bincount(here[near], minlength=len(count))
            left = left[~(near | far)]
    squared = pair_distances(x, x, row[left], other[left])
    inside[left] = lowest_of_groups(group[left], squared, other[left], count)
    return inside


@dataclass(frozen=True)
class _Bounds:
    """Bounds of squared distances: `above`, (p,) float64, and how far below that they may be, relatively and besides."""

    above: Array
    relative: float
    besides: float

    def below(self, above: Array) -> Array:
        """Return float64 bounds from below of what has these from above."""
        return above * (1 - self.relative) - self.besides


def _by_differences(x: Array, row: Array, other: Array) -> _Bounds:
    """Bound (p,) squared distances by float32 differences; NaN where these overflow."""
    value, order = np.empty(len(row)), np.argsort(other)  # rows that are asked for more than once are fetched once
    value[order] = float32_distances(x, x, row[order], other[order])
    value[np.isinf(value)] = np.nan
    error, tiny = (x.shape[1] + 8) * 2.0**-23, x.shape[1] * 2.0**-120
    return _Bounds(value * (1 + error) + tiny, 2 * error, 2 * tiny)


_DIFFERENCE, _FETCHED = 32, 8
"""A difference takes as long as so many products, if these are made all at once; to fetch a row for them as long as so many differences."""
_MULTIPLIED = 1 << 22
"""Products at a time."""
_OTHERS_BYTES = 1 << 25
"""Of rows that others are multiplied with at a time."""


def _by_products(x: Array, row: Array, other: Array) -> _Bounds | None:
    """Bound the same by float32 products of all these rows with all others, if that takes less; those of one row are beside each other."""
    starts = np.flatnonzero(np.diff(row, prepend=-1))
    there = np.zeros(len(x), dtype=bool)
    there[other] = True
    others = np.flatnonzero(there)
    if not len(row) or not x.shape[1] or (len(starts) + _FETCHED * _DIFFERENCE) * len(others) > _DIFFERENCE * len(row):
        return None
    place = np.empty(len(x), dtype=np.int64)
    place[others] = np.arange(len(others))
    place = place[other]
    line = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(row)))
    some, above, besides = x[row[starts]], np.empty(len(row)), 0.0
    step = max(_OTHERS_BYTES // (4 * x.shape[1]), 1)
    for first in range(0, len(others), step):
        many = x[others[first : first + step]]
        largest = max(float(some.max()), -float(some.min()), float(many.max()), -float(many.min()))
        encoding = Encoding.fit(some.mean(axis=0, dtype=np.float64), largest, on_grid=False, precision="float32")
        rows, centres = encoding.rows(some)[0], encoding.centres(many)[0]
        which = np.flatnonzero((place >= first) & (place < first + step))
        on = line[which]
        size = max(_MULTIPLIED // len(centres), 1)
        for begin in range(0, len(starts), size):
            product = torch.mm(rows[begin : begin + size], centres.T).numpy()
            low, high = np.searchsorted(on, [begin, begin + size])
            here = which[low:high]
            above[here] = product.ravel().take((on[low:high] - begin) * len(centres) + place[here] - first)
        scale = 4.0**-encoding.power
        above[which] = np.maximum(above[which], 0.0) * scale
        square = encoding.row_squares(rows).max() + encoding.squares(centres).max()
        besides = max(besides, float(encoding.width_of(square.numpy())) * scale)
    return _Bounds(above, 0.0, besides)


def _around_count(group: Array, value: Array, count: Array) -> tuple[Array, Array]:
    """Find (g,) the value after the `count` lowest of each group, infinite if there is none, and the last of those, -infinite likewise."""
    size = np.bincount(group, minlength=len(count))
    table = np.full((len(count), int(size.max(initial=0)) + 2), np.inf)
    table[:, 0] = -np.inf
    table[group, ranks(size) + 1] = value
    table[:, 1:].sort(axis=1)
    every = np.arange(len(count))
    return table[every, count + 1], table[every, count]


def lowest_of_groups(group: Array, value: Array, number: Array, count: Array) -> Array:
    """Tell (p,) bool which are among the (g,) `count` lowest values of their group, of equal ones those of the lower `number`.

    Args:
        group: (p,) int64, ascending.
        value: (p,) float64, finite.
        number: (p,) int64.
        count: of each group, 0 to all.
    """
    first_out, _ = _around_count(group, value, count)
    inside = value < first_out[group]
    tied = np.flatnonzero((np.bincount(group[inside], minlength=len(count)) < count)[group] & (value == first_out[group]))
    tied = tied[np.lexsort((number[tied], group[tied]))]
    missing = count - np.bincount(group[inside], minlength=len(count))
    inside[tied[ranks(np.bincount(group[tied], minlength=len(count))) < missing[group[tied]]]] = True
    return inside

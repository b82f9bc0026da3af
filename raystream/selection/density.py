"""The rows of a group, the densest first: those whose nearest others are nearest.

Products of all pairs, in bfloat16 where that is fast, give lower bounds of the rows' mean distances to their nearest others. The
mean itself is taken for the rows of the lowest bounds alone, until the least mean is below the bounds of all other rows: from
float32 products, which leave few pairs in doubt, and float64 differences of those.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

import numpy as np
import torch

from raystream.selection.nearest import near_bounds, pair_distances
from raystream.selection.points import encoding_of, slices
from raystream.selection.rows import Array

_BLOCK = 1024
"""Rows whose products with all others are kept at a time."""
_SHIFT_ROWS = 64
_FEWEST, _MOST = 16, 512
"""Rows whose means are taken at a time, twice as many each time."""
_WHOLE = 64
"""The means of groups of up to so many rows are taken at once: bounds would take as long."""
_PAIRS_A_NEIGHBOUR = 8
"""Where float32 leaves more pairs in doubt than this many times the neighbours asked for, the nearest of them are looked at."""
_PRODUCT_UP = 1 + 1.01 * 2.0**-8
"""What rounding to bfloat16 may multiply a product by."""


def densest(x: Array, group: Array, neighbours: int) -> Iterator[tuple[int, float]]:
    """The rows of a group in ascending order of the mean distance to their nearest others, ties to the lower row, each with that mean.

    Args:
        x: (n, d) float32.
        group: (m,) int64 rows of x, ascending.
        neighbours: over how many others the mean is taken, at least one; all when there are fewer. It is infinite for a row by itself.
    """
    count = min(neighbours, len(group) - 1)
    if count < 1:
        yield from ((int(row), math.inf) for row in group)
        return
    whole = len(group) <= _WHOLE
    low = np.zeros(len(group)) if whole else _lower_bounds(x[group], count)
    order = np.argsort(low, kind="stable")
    at, step = 0, _WHOLE if whole else _FEWEST
    known: list[tuple[float, int]] = []  # a heap of means and places in the group
    while at < len(order) or known:
        if at < len(order) and not (known and known[0] <= (low[order[at]], order[at])):
            ask = order[at : at + step]
            for mean, place in zip(_means(x[group], ask, count).tolist(), ask.tolist(), strict=True):
                heapq.heappush(known, (mean, place))
            at, step = at + len(ask), min(2 * step, _MOST)
            continue
        mean, place = heapq.heappop(known)
        yield int(group[place]), mean


def _products(rows: torch.Tensor, others: torch.Tensor, own: Array) -> Array:
    """(m, n) as integers in the same order, a row's product with itself being the largest."""
    products = torch.mm(rows, others.T).clamp_(min=0.0)
    products[torch.arange(len(own)), torch.from_numpy(own)] = torch.inf
    result: Array = products.view(torch.int16 if products.dtype == torch.bfloat16 else torch.int32).numpy()
    return result


def _lower_bounds(x: Array, count: int) -> Array:
    """(m,) float64, at most the mean distance of each of the (m, d) rows to its `count` nearest others."""
    encoding = encoding_of(x, looked_at=_SHIFT_ROWS)
    rows, slack = encoding.rows(x)
    others = encoding.centres(x)[0]
    result = np.empty(len(x))
    for at in slices(len(x), _BLOCK):
        products = _products(rows[at], others, np.arange(at.start, at.stop))
        near = torch.from_numpy(np.partition(products, count - 1, axis=1)[:, :count].copy()).view(encoding.dtype)
        # each bound grows with the product: those of the smallest products are below the smallest distances
        near_slack, square = near_bounds(encoding, rows[at], slack[at], near)
        square += rows[at, x.shape[1], None].double().mul_(1 + 2.0**-7)
        squared = near.double().div_(_PRODUCT_UP if encoding.bfloat16 else 1.0).sub_(torch.from_numpy(encoding.width_of(square.numpy())))
        distance = squared.clamp_(min=0.0).sqrt_().sub_(near_slack if encoding.bfloat16 else 0.0).sub_(slack[at].double()[:, None])
        result[at] = distance.clamp_(min=0.0).mean(1).mul_((1 - 2.0**-40) * 2.0**-encoding.power).numpy()
    return result


def _means(x: Array, which: Array, count: int) -> Array:
    """(r,) float64 mean distances of some of the rows, `which` (int64), to their `count` nearest others."""
    encoding = encoding_of(x, "float32", looked_at=_SHIFT_ROWS)
    operand, slack = encoding.rows(x)
    rows = operand[torch.from_numpy(which)]
    products = _products(rows, encoding.centres(x)[0], which)
    last = torch.from_numpy(np.partition(products, count - 1, axis=1)[:, count - 1 : count].copy()).view(torch.float32)
    square = near_bounds(encoding, rows, slack[: len(which)], last)[1] + rows[:, x.shape[1], None].double().mul_(1 + 2.0**-7)
    limit = (last.double() + torch.from_numpy(encoding.width_of(square.numpy()))).mul_(1 + 2.0**-20).float().view(torch.int32).numpy()
    doubt = products <= limit
    most = min(_PAIRS_A_NEIGHBOUR * count, products.shape[1])
    for i in np.flatnonzero(doubt.sum(axis=1) > most):
        doubt[i] = False
        doubt[i, np.argpartition(products[i], most - 1)[:most]] = True
    row, other = np.nonzero(doubt)
    squared = pair_distances(x, x, which[row], other)
    order = np.lexsort((squared, row))
    starts = np.flatnonzero(np.diff(row, prepend=-1))
    nearest = squared[order[starts[:, None] + np.arange(count)]]
    result: Array = np.sqrt(nearest).mean(axis=1)
    return result

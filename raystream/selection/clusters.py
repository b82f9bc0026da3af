"""k-means: greedy k-means++ on some rows, iterations on more, the last ones on all, and every row with its nearest centre.

What a strategy clusters by, all of them. The same centres come from any number of threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from raystream.selection.derived import Arrays, Kept, derive
from raystream.selection.hashing import row_hash
from raystream.selection.lloyd import lloyd
from raystream.selection.points import Points, cost, distinct, drawn, encoding_of
from raystream.selection.ranking import lowest
from raystream.selection.represents import assign
from raystream.selection.rows import Array, as_rows
from raystream.selection.seeding import greedy_seeds

ONE_LEVEL = 20_000
"""Above this many centres, k-means runs on coarse clusters first and then within each."""
_POINTS = 1 << 17
_POINTS_A_CENTRE = 64
_SEED_NUMBERS = 1 << 22
"""The first centres are found among rows of about so many numbers in all; more of them where rows are narrow."""
_SEED_POINTS = 1 << 12
_SEED_POINTS_A_CENTRE = 4
_TRIALS_AN_ITERATION, _MOST_TRIALS, _SEEN_A_TRIAL = 0.4, 32, 8
"""Rows of which each first centre is the best: 8 beside 20 iterations, so that they take no longer than these, and more where the
iterations see many times as many rows. On 1,000 clusters of 100 rows each, 8 leave a sum of squares of 70, 16 of 66, 32 of 64.6;
scikit-learn's 2 + log k = 8 on all rows 67."""
_STARTS, _SMALL = 3, 1 << 18
"""Where rows x centres are no more than this, the best of so many starts counts, which is some percent better than one."""


@dataclass(frozen=True)
class Clusters:
    """c clusters of n rows.

    Attributes:
        centres: (c, d) float32.
        nearest: (n,) int64, each row's cluster.
        size: (c,) int64, which may be 0.
    """

    centres: Array
    nearest: Array
    size: Array

    def members(self) -> list[Array]:
        """For each cluster its rows, int64, ascending."""
        order = np.argsort(self.nearest, kind="stable")
        return np.split(order, np.cumsum(self.size)[:-1])


def clusters(
    x: Array, count: int, seed: int, *, iterations: int = 10, points_a_centre: int = _POINTS_A_CENTRE, kept: Kept | None = None
) -> Clusters:
    """min(count, n) clusters of the (n, d) float32 rows, the same from any number of threads.

    Args:
        x: the rows, at least one.
        count: how many clusters.
        seed: of the sample and the first centres.
        iterations: of Lloyd's algorithm.
        points_a_centre: beyond 131,072 rows, this many for each centre are enough to fit it.
        kept: where clusters of these rows may lie already.
    """
    count = min(count, len(x))
    fit = max(points_a_centre * count, _POINTS)

    def fitted() -> Arrays:
        centres = x if count == len(x) else fit_centres(x, np.ones(len(x)), count, seed, iterations, fit_on=fit)
        return {"centres": centres, "nearest": nearest_centre(x, centres)}

    found = derive(kept, "clusters", {"count": count, "seed": seed, "iterations": iterations, "fit": fit}, fitted)
    return Clusters(found["centres"], found["nearest"], np.bincount(found["nearest"], minlength=count))


def nearest_centre(x: Array, centres: Array) -> Array:
    """(n,) int64: for each of the (n, d) rows its nearest of the (k, d) centres, exactly, the lowest at a tie."""
    compared = distinct(centres)
    result: Array = compared[assign(as_rows(x), centres[compared]).nearest]
    return result


def sample(n: int, count: int, seed: int) -> Array:
    """min(count, n) rows of n by chance, int64, ascending: a function of the seed and the rows' numbers."""
    if count >= n:
        return np.arange(n)
    result: Array = np.sort(lowest(row_hash(seed, np.arange(n)), count))
    return result


def fit_centres(
    x: Array, weight: Array, k: int, seed: int, iterations: int, one_level: int = ONE_LEVEL, *, fit_on: int | None = None
) -> Array:
    """(k, d) float32 centres of weighted k-means; k is below the number of rows.

    Args:
        x: (n, d) float32, finite.
        weight: (n,) float64, at least 0, some above.
        k: how many centres.
        seed: of samples and first centres.
        iterations: of Lloyd's algorithm; in large pools the first two thirds of them see a sample.
        one_level: see `ONE_LEVEL`.
        fit_on: at most so many rows are seen at all; left out, the last iterations see every one.
    """
    power = scale_power(x)
    if power:
        return np.ldexp(fit_centres(np.ldexp(x, power), weight, k, seed, iterations, one_level, fit_on=fit_on), -power)
    if k <= one_level:
        return _fit(x, weight, k, seed, iterations, fit_on)
    coarse = _fit(x, weight, min(math.ceil(math.sqrt(k)), one_level), seed, iterations, fit_on)
    nearest = nearest_centre(x, coarse)
    share = _shares(np.bincount(nearest, weights=weight, minlength=len(coarse)), np.bincount(nearest, minlength=len(coarse)), k)
    found = []
    for part in np.flatnonzero(share):
        here = np.flatnonzero(nearest == part)
        inner = weight[here] if weight[here].any() else np.ones(len(here))
        count = int(share[part])
        found.append(x[here] if count == len(here) else fit_centres(x[here], inner, count, seed, iterations, one_level, fit_on=fit_on))
    return np.concatenate(found)


def _fit(x: Array, weight: Array, k: int, seed: int, iterations: int, fit_on: int | None) -> Array:
    """`fit_centres` on one level."""
    encoding = encoding_of(x)
    many = max(_POINTS_A_CENTRE * k, _POINTS) if fit_on is None else fit_on
    rows, weights = drawn(x, weight, many, seed, "k-means, iterations", encoding.shift)
    points = Points.of(x if len(rows) == len(x) else x[rows], weights, encoding)
    last = 0 if fit_on is not None or len(points) == len(x) else math.ceil(iterations / 3)
    seen = len(points) * (iterations - last) + len(x) * last
    if len(x) * k <= _SMALL:
        starts = [lloyd(points, _seeds(points, k, seen, iterations, seed, start), iterations) for start in range(_STARTS)]
        return min(starts, key=lambda found: cost(points, found))
    centres = lloyd(points, _seeds(points, k, seen, iterations, seed), iterations - last)
    return lloyd(Points.of(x, weight, encoding), centres, last) if last else centres


def _seeds(points: Points, k: int, seen: int, iterations: int, seed: int, start: int = 0) -> Array:
    """(k, d) first centres, found among as many of the points as can be afforded beside iterations that see so many rows in all."""
    count = max(_SEED_POINTS_A_CENTRE * k, _SEED_POINTS, _SEED_NUMBERS // (points.x.shape[1] + 32))
    rows, weight = drawn(points.x, points.weight, count, seed, "k-means, seeds", points.encoding.shift)
    x = points.x if len(rows) == len(points) else points.x[rows]
    trials = min(max(seen // (_SEEN_A_TRIAL * len(x)), math.ceil(_TRIALS_AN_ITERATION * iterations), 1), _MOST_TRIALS)
    result: Array = x[greedy_seeds(x, weight, k, trials, points.encoding.shift, seed, start)]
    return result


def _shares(weight: Array, room: Array, k: int) -> Array:
    """(c,) int64: k centres shared out in proportion to the weights, at most `room` each; k is at most the sum of room."""
    share = np.zeros(len(weight), dtype=np.int64)
    while share.sum() < k:
        open_ = share < room
        asked = np.where(open_, weight, 0.0)
        asked = asked if asked.any() else open_.astype(np.float64)
        left = int(k - share.sum())
        part = asked / asked.sum() * left
        more = np.minimum(np.floor(part).astype(np.int64), room - share)
        if not more.any():  # fewer left than parts: one each to the largest
            order = np.argsort(-part, kind="stable")
            order = order[open_[order]][:left]
            more[order] = 1
        share += more
    return share


def scale_power(x: Array) -> int:
    """p such that 2^p x has norms near one; 0 where the squares of x are far from float32's limits already."""
    exponent = math.frexp(max(float(x.max(initial=0.0)), -float(x.min(initial=0.0))) * math.sqrt(x.shape[1]))[1]
    return 0 if -30 <= exponent <= 60 else -exponent

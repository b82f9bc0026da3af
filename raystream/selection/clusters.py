"""k-means: greedy k-means++ on some rows, iterations on more, the last ones on all, and every row with its nearest centre.

All strategies that cluster do it by this. The same digits come from any number of threads, and from rows in memory or in stretches wherever
they are (`raystream.selection.clustered`): a block of rows at a fixed place is one thread's. Products find each row's centre; what moves
the centres are the float32 differences from them, so that rows far from the origin, or close together beside the whole, lose nothing.

Seeding is Arthur and Vassilvitskii, *k-means++: the advantages of careful seeding*, 2007, section 5: of several rows drawn with
probability proportional to their weighted squared distance D to the seeds so far, the one that leaves the least sum.

Rows are proposed many at a time in proportion to a D computed some seeds ago, an upper bound, and accepted with probability D now / D
then: those accepted follow the law of drawing one after another, and one product gives the distances to all that are proposed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from raystream.selection.clustered import Clustered, HeldRows
from raystream.selection.hashing import philox, row_hash
from raystream.selection.lloyd import Points, by_blocks, cost, drawn, drawn_of, lloyd, slices
from raystream.selection.nearest import float32_distances
from raystream.selection.rows import Array, tensor
from raystream.selection.strategies.ranking import lowest
from raystream.selection.strategy import Arrays, Kept, derive
from raystream.threads import one_thread

_PROPOSALS = 64
_BLOCK = 4096
_DOUBTFUL = 2.0**-17
"""Products this small, beside the squares that they are the difference of, may be little but rounding."""


def greedy_seeds(x: Array, weight: Array, k: int, trials: int, shift: Array, seed: int, start: int = 0) -> Array:
    """Draw (k,) int64 distinct rows.

    Once every row that has a weight is equal to a seed, the lowest of the rest follow, those with a weight first.

    Args:
        x: (n, d) float32, at least k rows, whose squares are far from float32's limits.
        weight: (n,) float64, at least 0, some above.
        k: how many seeds.
        trials: among how many rows each seed is the best; at most 64.
        shift: (d,) float32, a point among the rows.
        seed: of every draw.
        start: another draws others.
    """
    seeding = _Seeding(x, weight, trials, shift, seed, f"k-means++ {start}")
    rows = [seeding.first()]
    while len(rows) < k and (proposed := seeding.propose()) is not None:
        with one_thread():  # a few million operations: threads would take longer to meet
            while len(rows) < k and (row := seeding.next(proposed)) is not None:
                rows.append(row)
    chosen = np.asarray(rows, dtype=np.int64)
    if len(chosen) == k:
        return chosen
    left = np.setdiff1d(np.arange(len(x)), chosen)
    left = left[np.argsort(weight[left] == 0, kind="stable")]
    return np.concatenate([chosen, left[: k - len(chosen)]])


class _ProposedRows:
    """Rows that were drawn together, and what has become of them."""

    def __init__(self, rows: Array, luck: Array, then: Array) -> None:
        self.rows = rows  # (p,) int64
        self.limit = luck * then  # accepted while D is above; (p,) float64
        self.at = 0  # those before it have been used


class _Seeding:
    """D of every row, and the distances to the rows proposed."""

    def __init__(self, x: Array, weight: Array, trials: int, shift: Array, seed: int, purpose: str) -> None:
        self._x, self._trials = x, trials
        self._seed, self._purpose, self._drawn = seed, purpose, 0
        self._mass = weight  # what the next rows are drawn in proportion to
        self._weight = torch.from_numpy((weight / weight.max()).astype(np.float32))
        self._squared = torch.empty((_PROPOSALS, len(x)))
        self._nearest, self._room = torch.empty(0), torch.empty((trials, len(x)))
        # [y, |y|^2, 1], of which the product with [-2 z, 1, |z|^2] is |y - z|^2
        self._operand = torch.empty((len(x), x.shape[1] + 2))

        def encode(at: slice) -> None:
            y = torch.sub(tensor(x[at]), tensor(shift), out=self._operand[at, :-2])
            torch.sum(y.square(), 1, out=self._operand[at, -2])
            self._operand[at, -1] = 1.0

        by_blocks(slices(len(x), _BLOCK), lambda: encode)

    def first(self) -> int:
        """Draw a row by weight alone."""
        row = int(self._draw(1)[0][0])
        self._measure(np.asarray([row]))
        self._nearest = self._squared[0].clone()
        return row

    def _draw(self, count: int) -> tuple[Array, Array]:
        """Draw `count` rows by prefix sums of the mass, and another uniform number for each."""
        words = philox(self._seed, self._purpose, self._drawn, count)
        self._drawn += count
        u, v = ((words >> np.uint64(11)) * 2.0**-53).T
        sums = np.cumsum(self._mass, dtype=np.float64)
        # u is below 1 by at least as much as its product with the whole sum may be rounded up: a row without mass is never met
        return np.searchsorted(sums, u * sums[-1], side="right"), v

    def propose(self) -> _ProposedRows | None:
        """Draw rows in proportion to D as it is; None when it is zero throughout."""
        self._mass = (self._nearest * self._weight).numpy()
        if not self._mass.any():
            return None
        rows, luck = self._draw(_PROPOSALS)
        self._measure(rows)
        return _ProposedRows(rows, luck, self._nearest.numpy()[rows].astype(np.float64))

    def _measure(self, rows: Array) -> None:
        """Measure the squared distances of all rows to some."""
        d = self._x.shape[1]
        with one_thread():
            chosen = self._operand[torch.from_numpy(rows)]
            centres = torch.cat([chosen[:, :d] * -2, chosen[:, d + 1 :], chosen[:, d : d + 1]], dim=1)
        square = chosen[:, d]

        def multiply(at: slice) -> None:
            products = torch.mm(centres, self._operand[at].T, out=self._squared[: len(rows), at])
            own = np.flatnonzero((rows >= at.start) & (rows < at.stop))
            itself = torch.from_numpy(own), torch.from_numpy(rows[own] - at.start)
            products[itself] = torch.inf
            least = (square + self._operand[at, d].max()) * _DOUBTFUL
            some = torch.nonzero(products.amin(1) <= least)[:, 0]
            doubt = products[some] <= (square[some, None] + self._operand[at, d]) * _DOUBTFUL
            which, row = torch.nonzero(doubt, as_tuple=True)
            exact = float32_distances(self._x, self._x, at.start + row.numpy(), rows[some[which].numpy()])
            products[some[which], row] = torch.from_numpy(exact).float()
            products[itself] = 0.0

        by_blocks(slices(len(self._x), _BLOCK), lambda: multiply)

    def next(self, proposed: _ProposedRows) -> int | None:
        """Take the best of the next rows accepted, from now on a seed; None when too few are left."""
        accepted = proposed.at + np.flatnonzero(proposed.limit[proposed.at :] < self._nearest.numpy()[proposed.rows[proposed.at :]])
        if len(accepted) < self._trials:
            return None
        tried = accepted[: self._trials]
        proposed.at = int(tried[-1]) + 1
        room = torch.index_select(self._squared, 0, torch.from_numpy(tried), out=self._room)
        best = int(tried[int(torch.mv(torch.minimum(room, self._nearest, out=room), self._weight).argmin())])
        torch.minimum(self._squared[best], self._nearest, out=self._nearest)
        return int(proposed.rows[best])


ONE_LEVEL = 20_000
"""Above this many centres, k-means runs on coarse clusters first and then within each."""
_POINTS = 1 << 17
_POINTS_A_CENTRE = 64
_SEED_NUMBERS = 1 << 22
"""The first centres are found among rows of about so many numbers in all; more of them where rows are narrow."""
_SEED_POINTS = 1 << 11
_SEED_POINTS_A_CENTRE, _CAREFULLY = 4, 10
"""Fewer rows are enough in small pools, so that seeding takes no longer than iterations would, were all of them made: 4 a centre, and up
to 40 where the centres themselves are wanted. On 1,000 clusters of 30 rows of 128 numbers, 9 a centre leave 2.6% more than scikit-learn,
and the 26 that are affordable nothing."""
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
        """List the rows of each cluster, int64, ascending."""
        order = np.argsort(self.nearest, kind="stable")
        return np.split(order, np.cumsum(self.size)[:-1])


def clusters(
    x: Array | Clustered, count: int, seed: int, *, iterations: int = 10, points_a_centre: int = _POINTS_A_CENTRE, kept: Kept | None = None
) -> Clusters:
    """Make min(count, n) clusters of the rows, the same from any number of threads and wherever the rows are.

    Args:
        x: the rows, at least one; (n, d) float32 if they are an array.
        count: how many clusters.
        seed: of the sample and the first centres.
        iterations: of Lloyd's algorithm at most.
        points_a_centre: beyond 131,072 rows, this many for each centre are enough to fit it.
        kept: where clusters of these rows may lie already.
    """
    rows = HeldRows(x) if isinstance(x, np.ndarray) else x
    count = min(count, len(rows))
    fit = max(points_a_centre * count, _POINTS)

    def fitted() -> Arrays:
        centres = rows.take() if count == len(rows) else fit_centres(rows, np.ones(len(rows)), count, seed, iterations, fit_on=fit)
        return {"centres": centres, "nearest": rows.nearest(centres)}

    found = derive(kept, "clusters 2", {"count": count, "seed": seed, "iterations": iterations, "fit": fit}, fitted)
    return Clusters(found["centres"], found["nearest"], np.bincount(found["nearest"], minlength=count))


def sample(n: int, count: int, seed: int) -> Array:
    """Draw min(count, n) rows of n by chance, int64, ascending: a function of the seed and the rows' numbers."""
    if count >= n:
        return np.arange(n)
    result: Array = np.sort(lowest(row_hash(seed, np.arange(n)), count))
    return result


def fit_centres(
    x: Array | Clustered, weight: Array, k: int, seed: int, iterations: int, one_level: int = ONE_LEVEL, *, fit_on: int | None = None
) -> Array:
    """Fit (k, d) float32 centres of weighted k-means; k is below the number of rows.

    Args:
        x: the n rows, finite; (n, d) float32 if they are an array.
        weight: (n,) float64, at least 0, some above.
        k: how many centres.
        seed: of samples and first centres.
        iterations: of Lloyd's algorithm at most; in large pools the first two thirds of them see a sample.
        one_level: see `ONE_LEVEL`.
        fit_on: at most so many rows are seen at all; left out, the last iterations see every one.
    """
    rows = HeldRows(x) if isinstance(x, np.ndarray) else x
    power = scale_power_of(rows.largest, rows.width)
    if power:
        return np.ldexp(_fitted(rows.scaled(power), weight, k, seed, iterations, one_level, fit_on), -power)
    return _fitted(rows, weight, k, seed, iterations, one_level, fit_on)


def _fitted(rows: Clustered, weight: Array, k: int, seed: int, iterations: int, one_level: int, fit_on: int | None) -> Array:
    """Fit the centres of rows whose squares are far from float32's limits, on one level or two."""
    if k <= one_level:
        return _fit(rows, weight, k, seed, iterations, fit_on)
    coarse = _fit(rows, weight, min(math.ceil(math.sqrt(k)), one_level), seed, iterations, fit_on)
    nearest = rows.nearest(coarse)
    share = _shares(np.bincount(nearest, weights=weight, minlength=len(coarse)), np.bincount(nearest, minlength=len(coarse)), k)
    found = []
    for part in np.flatnonzero(share):
        here = np.flatnonzero(nearest == part)
        inner = weight[here] if weight[here].any() else np.ones(len(here))
        count, x = int(share[part]), rows.take(here)
        found.append(x if count == len(here) else fit_centres(x, inner, count, seed, iterations, one_level, fit_on=fit_on))
    return np.concatenate(found)


def _fit(rows: Clustered, weight: Array, k: int, seed: int, iterations: int, fit_on: int | None) -> Array:
    """Fit the centres on one level."""
    n = len(rows)
    encoding = rows.encoding()
    many = max(_POINTS_A_CENTRE * k, _POINTS) if fit_on is None else fit_on
    which, weights = drawn_of(n, lambda: rows.squared_to(encoding.shift), weight, many, seed, "k-means, iterations")
    points = rows.points(weights, encoding) if len(which) == n else Points.of(rows.take(which), weights, encoding)
    last = 0 if fit_on is not None or len(points) == n else math.ceil(iterations / 3)
    careful = fit_on is None
    seen = len(points) * (iterations - last) + n * last
    if n * k <= _SMALL:
        starts = [lloyd(points, _seeds(points, k, seen, iterations, seed, careful, start), iterations).centres for start in range(_STARTS)]
        return min(starts, key=lambda found: cost(points, found))
    found = lloyd(points, _seeds(points, k, seen, iterations, seed, careful), iterations - last)
    return rows.iterate(weight, encoding, found.centres, last, found.gained).centres if last else found.centres


def _seeds(points: Points, k: int, seen: int, iterations: int, seed: int, careful: bool, start: int = 0) -> Array:
    """Find (k, d) first centres among as many of the points as can be afforded beside iterations that see so many rows in all."""
    fewest = max(math.ceil(_TRIALS_AN_ITERATION * iterations), 1)
    few = _SEED_POINTS_A_CENTRE * k
    wanted = max(seen // (_SEEN_A_TRIAL * fewest), _CAREFULLY * few if careful else 0)
    count = max(min(wanted, _SEED_NUMBERS // (points.x.shape[1] + 32)), few, _SEED_POINTS)
    rows, weight = drawn(points.x, points.weight, count, seed, "k-means, seeds", points.encoding.shift)
    x = points.x if len(rows) == len(points) else points.x[rows]
    trials = min(max(seen // (_SEEN_A_TRIAL * len(x)), fewest), _MOST_TRIALS)
    result: Array = x[greedy_seeds(x, weight, k, trials, points.encoding.shift, seed, start)]
    return result


def _shares(weight: Array, room: Array, k: int) -> Array:
    """Share k centres out in proportion to the weights, at most `room` each: (c,) int64; k is at most the sum of room."""
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
    """Return p such that 2^p x has norms near one; 0 where the squares of x are far from float32's limits already."""
    return scale_power_of(HeldRows(x).largest, x.shape[1])


def scale_power_of(largest: float, width: int) -> int:
    """Return `scale_power` of rows of this largest absolute value and width."""
    exponent = math.frexp(largest * math.sqrt(width))[1]
    return 0 if -30 <= exponent <= 60 else -exponent

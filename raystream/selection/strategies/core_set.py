"""Farthest-first selection (core set), exact, in a handful of passes over the candidates.

Gonzalez, *Clustering to minimize the maximum intercluster distance*, 1985; Sener and Savarese, *Active
learning for convolutional neural networks: a core-set approach*, 2018 (their k-Center-Greedy).

Distances to the chosen rows only shrink, so a value computed some picks ago is an upper bound. Each
shard returns the rows that lead by such bounds, and a bound on all others; rows are chosen among the
returned ones as long as the best of them, in exact float64, comes before that bound.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from raystream.errors import QueryError
from raystream.selection.arguments import count, labelled_of, optional_column, shards_of
from raystream.selection.bounds import CentreList, Encoding, Look, Precision, grid_power, on_grid
from raystream.selection.constraints import Constraints
from raystream.selection.hashing import checked_weights
from raystream.selection.lazy_bounds import Gain
from raystream.selection.rows import Array, Metric, not_finite
from raystream.selection.shard import Leaders
from raystream.selection.shards import Shards
from raystream.selection.strategy import Candidates, Picked, Request, embeddings
from raystream.threads import one_thread

_LEADERS = 16384
_ROWS_FOR_A_LEADER, _ROWS_READ_FOR_A_LEADER, _FEWEST_LEADERS = 256, 16, 1024
"""Passes over a working copy cost little, rows that lead in vain more, and reading most; at least so many lead from each stretch."""
_LEADER_BYTES = 1 << 28
_FEW_PICKS, _POOR_PASSES = 32, 8
"""More rows lead once so many passes in a row have found fewer rows to take."""
_SAMPLE = 4096
"""The most rows whose mean bounds are taken around."""
_NO_ROWS = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class FarthestFirst:
    """The result of farthest-first.

    Attributes:
        rows: (b,) int64 in order of choice.
        gain: (b,) float64, of `Gain` when the row was taken; the first one's distance is to the mean if nothing is labelled.
        distance: (b,) float64 to the nearest row chosen before or labelled; nan for the first if nothing is labelled.
        passes: how often the shards went over their rows to choose, refinements included.
        refinements: how many of the passes made distances exact.
        blocked: how many rows came to the head and were passed over.
    """

    rows: Array
    gain: Array
    distance: Array
    passes: int
    refinements: int
    blocked: int


def core_set(
    x: ArrayLike,
    k: int,
    *,
    score: ArrayLike | None = None,
    labelled: ArrayLike | None = None,
    metric: Metric = "euclidean",
    weight: float = 0.0,
    outliers: int = 0,
) -> Array:
    """Choose k rows so that every row is near a chosen one: each next row is the farthest from those before it.

    The order is that of sequential greedy in float64 on the gain score^weight * sqrt(D), where D is the
    least sum of squared differences to a chosen or labelled row; equal gains go to the lower row.
    With nothing labelled, D of the first pick is to the mean of all rows.

    Args:
        x: (n, d) embeddings; taken as float32 unless float16.
        k: how many rows; all n when there are fewer.
        score: (n,), at least 0; needed if `weight` is above 0. When all are 0, distance alone decides.
        labelled: (m, d) rows that count as chosen already.
        metric: `cosine` works on rows divided by their lengths.
        weight: 0 is distance alone.
        outliers: at each step this many rows, the first in order, are passed over for the next one; they stay
            candidates. When no more are left, the last one is taken.

    Returns:
        (min(k, n),) int64 row numbers in order of choice.

    Raises:
        DataError: embeddings that are not finite, or not as wide as the labelled ones.
        QueryError: a negative score, weight or number of outliers.
    """
    shards = shards_of(x, metric)
    gain = Gain(score_weights(optional_column(score, len(shards)), weight, len(shards)))
    return farthest_first(shards, count(k), gain=gain, labelled=labelled_of(labelled, shards.width, metric), outliers=outliers).rows


def score_weights(score: Array | None, weight: float, n: int) -> Array | None:
    """Compute (n,) float64 score^weight, which multiplies distances; None when the weight is 0."""
    if weight < 0:
        raise QueryError(f"`weight` is {weight}, expected at least 0: with a negative one the gain would grow as rows are chosen")
    if weight == 0:
        return None
    if score is None:
        raise QueryError(f"`weight` is {weight}, which needs a `score` for each row")
    checked = checked_weights(score, n)
    with np.errstate(over="ignore"):
        result: Array = np.power(checked, weight)
    if not np.isfinite(result).all():
        raise QueryError(f"the largest score, {checked.max():g}, to the power of {weight:g} is beyond float64; lower `weight`")
    return result


def farthest_first(
    shards: Shards,
    k: int,
    *,
    gain: Gain | None = None,
    labelled: Array | None = None,
    exclude: Array | None = None,
    constraints: Constraints | None = None,
    outliers: int = 0,
    precision: Precision = "auto",
    leaders: int = _LEADERS,
) -> FarthestFirst:
    """Run farthest-first over shards; `core_set` for those who have them.

    Args:
        shards: the candidates.
        k: how many rows at most.
        gain: what to maximise; the distance if it is left out, or if it is a weight alone that is 0 for every row that may be chosen.
        labelled: (m, d) float32 in the metric's space.
        exclude: int64 rows that must not be chosen, and don't count as covered.
        constraints: rows that they block are passed over and do not become centres; they are told of the chosen rows.
        outliers: see `core_set`; rows that are blocked are not counted.
        precision: of the bounds; has no influence on the result.
        leaders: how many rows the shards return at most, until passes find too few; has no influence on the result.
    """
    if outliers < 0:
        raise QueryError(f"`outliers` is {outliers}, expected a whole number of at least 0")
    fixed = np.empty((0, shards.width), dtype=np.float32) if labelled is None else labelled
    if len(shards) == 0 or k <= 0:
        return FarthestFirst(_NO_ROWS, np.empty(0), np.empty(0), 0, 0, 0)
    excluded = _NO_ROWS if exclude is None else exclude
    gain = Gain() if gain is None else gain.among(len(shards), excluded)
    encoding, look = glance(shards, fixed, precision)
    total = shards.begin(encoding, look, gain)
    mean = None if look.power is None else total / len(shards)
    return _Choice(shards, k, encoding, mean, fixed, gain, constraints, outliers, leaders).run(excluded)


def covering_radius(shards: Shards, centres: Array | None, *, exclude: Array | None = None, outliers: int = 0) -> float:
    """Find the largest distance of a row to the nearest of `centres`, (m, d) float32, once the `outliers` farthest rows are left out.

    Without centres it is the distance to the mean; 0 when no row is left. Takes a pass over the rows.
    """
    left = len(shards) - (0 if exclude is None else len(np.unique(exclude)))
    if left <= outliers:
        return 0.0
    return float(farthest_first(shards, 1, labelled=centres, exclude=exclude, outliers=outliers).gain[0])


def core_set_strategy(candidates: Candidates, request: Request) -> Picked:
    """Run `core_set` in a query."""
    shards = embeddings(candidates, "core_set")
    outliers = int(request.args.get("outliers", 0))
    found = farthest_first(
        shards,
        request.budget,
        gain=Gain(score_weights(candidates.score, request.weight, len(shards))),
        labelled=request.labelled,
        exclude=request.constraints.excluded(len(shards)),
        constraints=request.constraints,
        outliers=outliers,
    )
    if not outliers:
        return Picked(found.rows, found.gain, found.distance, found.passes)
    radius = covering_radius(shards, covered(shards, request.labelled, found.rows), outliers=outliers)
    return Picked(found.rows, found.gain, found.distance, found.passes + 1, radius=radius)


def covered(shards: Shards, labelled: Array | None, rows: Array) -> Array:
    """Return (m, d) float32: labelled rows, then the candidates `rows`."""
    x = shards.gather(rows)
    return x if labelled is None else np.concatenate([labelled, x])


def glance(shards: Shards, labelled: Array, precision: Precision) -> tuple[Encoding, Look]:
    """Fit the encoding around the mean of a sample, and say what to look at: the sum only if nothing is labelled."""
    sizes = _sizes(shards, labelled)
    near = sizes.sample.mean(axis=0, dtype=np.float64).astype(np.float32)
    encoding = Encoding.fit(near, sizes.largest, on_grid=sizes.on_grid, precision=precision)
    return encoding, Look(near, None if len(labelled) else sizes.power)


def prepare(shards: Shards, labelled: Array, precision: Precision) -> tuple[Encoding, Array]:
    """Fit the encoding around the mean of these rows, and return both, the mean as (d,) float64; the same for any sharding."""
    sizes = _sizes(shards, labelled)
    mean = shards.total(sizes.power) / len(shards)
    return Encoding.fit(mean, sizes.largest, on_grid=sizes.on_grid, precision=precision), mean


@dataclass(frozen=True)
class _Sizes:
    """The facts about rows that encodings need.

    Attributes:
        largest: absolute value of rows and labelled ones.
        power: see `Look`.
        on_grid: whether products of them are exact.
        sample: (s, d) float32, some rows.
    """

    largest: float
    power: int
    on_grid: bool
    sample: Array


def _sizes(shards: Shards, labelled: Array) -> _Sizes:
    survey = shards.survey()
    if survey.bad:
        raise not_finite(survey.bad, survey.first_bad)
    largest = max(survey.largest, float(np.abs(labelled).max())) if labelled.size else survey.largest
    # integers up to 2^(52 - log2 n) in size: every partial sum is exact, so their order is of no account
    power = 52 - int(np.ceil(np.log2(len(shards)))) - int(np.frexp(survey.largest)[1]) if survey.largest else 0
    sample, grid = shards.sample(min(len(shards) // 64 + 1, _SAMPLE)), grid_power(shards.width, largest)
    # a few rows tell most data apart from whole numbers
    exact = all(on_grid(x, grid) for x in (sample[:16], sample, labelled)) and shards.on_grid(grid)
    return _Sizes(largest, power, exact, sample)


class _Choice:
    """One run of farthest-first: the centres, and what has been chosen."""

    def __init__(
        self,
        shards: Shards,
        k: int,
        encoding: Encoding,
        mean: Array | None,
        labelled: Array,
        gain: Gain,
        constraints: Constraints | None,
        outliers: int,
        leaders: int,
    ) -> None:
        self._shards, self._mean, self._gain_of = shards, mean, gain
        self._budget = min(k, len(shards))
        self._centres = CentreList(replace(encoding, bfloat16=False), len(labelled) + self._budget)
        self._centres.add(labelled)
        self._constraints = constraints
        self._among = outliers + 1
        self._reads = shards.reads(encoding)
        most = len(shards) // (_ROWS_READ_FOR_A_LEADER if self._reads else _ROWS_FOR_A_LEADER)
        self._leaders = max(min(leaders, max(most, _FEWEST_LEADERS * shards.count)), 2 * outliers)
        self._most_leaders = max(_LEADER_BYTES // (4 * max(shards.width, 1)), self._leaders)
        self._rows: list[int] = []
        self._gain: list[float] = []
        self._distance: list[float] = []
        self._passes = self._refinements = self._blocked = 0

    def run(self, exclude: Array) -> FarthestFirst:
        sent, gone = 0, exclude
        if self._mean is not None:
            gone = self._first(self._mean, exclude)
        refine: float | None = None
        poor = 0
        while len(self._rows) < self._budget and len(self._centres):
            before = len(self._rows)
            if refine is None:
                answer = self._shards.advance(self._centres.x[sent:], gone, self._leaders, self._among)
                sent = len(self._centres)
            else:
                answer = self._shards.refine(refine, self._leaders, self._among)
                self._refinements += 1
            self._passes += 1
            if not len(answer.rows):
                break
            with one_thread():
                leaders = Leaders(answer, self._centres, self._gain_of, self._among)
                gone = self._choose(leaders)
                refine = leaders.best(self._among) if not len(gone) and leaders.left else None
            few = (self._budget - before) // 4 if self._reads else _FEW_PICKS
            poor = poor + 1 if len(self._rows) - before < few else 0
            if poor >= (1 if self._reads else _POOR_PASSES):
                self._leaders = min(2 * self._leaders, self._most_leaders)
        rows = np.asarray(self._rows, dtype=np.int64)
        gain, distance = np.asarray(self._gain, dtype=np.float64), np.asarray(self._distance, dtype=np.float64)
        return FarthestFirst(rows, gain, distance, self._passes, self._refinements, self._blocked)

    def _first(self, mean: Array, exclude: Array) -> Array:
        """Choose by the distance to the mean; all rows that are out from now on, int64."""
        gone, count = exclude, self._among
        while True:
            gain, rows = self._shards.farthest(mean, gone, count)
            x = self._shards.gather(rows)
            blocked = np.zeros(len(rows), dtype=bool) if self._constraints is None else self._constraints.blocked(rows, x)
            free = np.flatnonzero(~blocked)
            if len(rows) < count or len(free) >= self._among:
                if len(free):
                    last = int(free[: self._among][-1])
                    self._centres.add(x[last : last + 1])
                    self._take(int(rows[last]), float(gain[last]), np.nan, x[last])
                    gone = np.append(gone, rows[last])
                return gone
            self._blocked += int(blocked.sum())
            gone = np.concatenate([gone, rows[blocked]])
            count = min(4 * count + 64, len(self._shards))

    def _take(self, row: int, gain: float, distance: float, x: Array) -> None:
        self._rows.append(row)
        self._gain.append(gain)
        self._distance.append(distance)
        if self._constraints is not None:
            self._constraints.take(row, x)

    def _choose(self, leaders: Leaders) -> Array:
        """Choose among the leaders while that is certain; the rows that are chosen or blocked, int64."""
        gone: list[Array] = []
        if self._constraints is not None and not self._constraints.free:
            gone.append(self._drop(leaders, np.flatnonzero(self._constraints.blocked(leaders.rows, leaders.x))))
        while len(self._rows) < self._budget and (first := leaders.first(self._among)) is not None:
            if self._constraints is not None:
                blocked = self._constraints.blocked(leaders.rows[first], leaders.x[first])
                if blocked.any():
                    gone.append(self._drop(leaders, first[blocked]))
                    continue
            lead = int(first[-1])
            self._take(int(leaders.rows[lead]), leaders.gain(lead), leaders.distance(lead), leaders.x[lead])
            gone.append(leaders.rows[lead : lead + 1])
            leaders.take(lead)
        return np.concatenate(gone) if gone else _NO_ROWS

    def _drop(self, leaders: Leaders, which: Array) -> Array:
        leaders.remove(which)
        self._blocked += len(which)
        return leaders.rows[which]

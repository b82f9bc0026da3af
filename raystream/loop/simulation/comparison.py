"""What a strategy is worth beside chance: curves paired by seed, the area under them, the labels that they save, and how sure that is.

Every strategy runs with the same seeds: the same start, the same split, the same seed of the trainer. So differences are taken seed by
seed, and intervals come from drawing seeds anew, both curves with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from raystream.errors import DataError

Array = npt.NDArray[Any]
Verdict = Literal["pays", "costs", "no difference"]

LEVELS = 11
"""Evenly from 50% to 100% of the way from the higher start to the lower end: where labels are counted."""
DRAWS = 2000
MOST_POINTS = 500
"""Of a curve over what labels cost, which is another number in every run and round."""
_TAILS = (2.5, 97.5)
_LEAST_SHARE = 0.95
"""An interval of 95% needs that share of the draws to have a value."""


@dataclass(frozen=True, eq=False)
class Curves:
    """One strategy's curves.

    Attributes:
        labels: (r,) ascending numbers of labels, or what they cost, the same for every seed.
        values: (seeds, r) of one metric.
    """

    labels: Array
    values: Array

    @property
    def mean(self) -> Array:
        """(r,)."""
        mean: Array = self.values.mean(axis=0)
        return mean


@dataclass(frozen=True)
class Figures:
    """One strategy beside chance.

    Attributes:
        auc: the area under the mean curve over labels, divided by their span: a mean of the metric.
        auc_se: its standard error over seeds; None with one.
        final: the mean of the metric at the last number of labels.
        gain: by how much the area is better than chance's, positive where it is, whichever way the metric goes.
        gain_low, gain_high: its interval; None with one seed.
        labels_saved: the share of chance's labels that are not needed for the same quality; None where there is none to compare at.
        low, high: its interval; None with one seed.
        p_value: of the two-sided paired t test on the area; None with one seed.
        verdict: `pays` if both intervals lie above 0, `costs` if both lie below, else no difference was found.
    """

    auc: float
    auc_se: float | None
    final: float
    gain: float
    gain_low: float | None
    gain_high: float | None
    labels_saved: float | None
    low: float | None
    high: float | None
    p_value: float | None
    verdict: Verdict


def compare(curves: Curves, chance: Curves, *, lower_is_better: bool = False, draws: int = DRAWS) -> Figures:
    """Compare a strategy's curves with those of chance, of the same seeds in the same order.

    Args:
        curves: the strategy's.
        chance: those of `random`.
        lower_is_better: whether a smaller value is the better one.
        draws: of the bootstrap, the same ones for each strategy.

    Raises:
        DataError: the two have other labels or seeds.
    """
    if not np.array_equal(curves.labels, chance.labels) or curves.values.shape != chance.values.shape:
        raise DataError(
            f"curves over {len(curves.labels)} numbers of labels and {len(curves.values)} seeds can't be paired with those over "
            f"{len(chance.labels)} and {len(chance.values)}"
        )
    labels, seeds = curves.labels.astype(np.float64), len(curves.values)
    sign = -1.0 if lower_is_better else 1.0
    ours, theirs = sign * curves.values.astype(np.float64), sign * chance.values.astype(np.float64)
    own = area(labels, ours)
    gains = own - area(labels, theirs)
    saved = _number(labels_saved(labels, ours.mean(axis=0), theirs.mean(axis=0)))
    gain_low = gain_high = low = high = None
    if seeds > 1:
        weights = _bootstrap(seeds, draws)
        gain_low, gain_high = interval(float(gains.mean()), weights @ gains, seeds)
        if saved is not None:
            low, high = interval(saved, labels_saved(labels, weights @ ours, weights @ theirs), seeds)
    return Figures(
        auc=float(sign * own.mean()),
        auc_se=None if seeds < 2 else float(own.std(ddof=1) / math.sqrt(seeds)),
        final=float(sign * ours[:, -1].mean()),
        gain=float(gains.mean()),
        gain_low=gain_low,
        gain_high=gain_high,
        labels_saved=saved,
        low=low,
        high=high,
        p_value=paired_t_test(gains),
        verdict=_verdict((low, high), (gain_low, gain_high)),
    )


def area(labels: Array, values: Array) -> Array:
    """Compute (...,) the area under curves (..., r) by trapezoids, divided by the span of labels; of a single point its value."""
    span = labels[-1] - labels[0]
    if span == 0:
        single: Array = values[..., -1]
        return single
    result: Array = ((values[..., 1:] + values[..., :-1]) / 2 @ np.diff(labels)) / span
    return result


def monotone(curves: Array) -> Array:
    """Compute (..., r) curves that never fall: the mean of the running maximum from the left and the running minimum from the right."""
    rising = np.maximum.accumulate(curves, axis=-1)
    falling = np.minimum.accumulate(curves[..., ::-1], axis=-1)[..., ::-1]
    result: Array = (rising + falling) / 2
    return result


def labels_saved(labels: Array, ours: Array, theirs: Array) -> Array:
    """Compute (...,) the share of chance's labels that isn't needed, from mean curves (..., r); nan where there is no common rise.

    Both curves are made monotone. At each of the levels, the first numbers of labels at which they get there are compared.
    """
    ours, theirs = monotone(ours), monotone(theirs)
    start, end = np.maximum(ours[..., 0], theirs[..., 0]), np.minimum(ours[..., -1], theirs[..., -1])
    shares = np.linspace(0.5, 1.0, LEVELS)
    # rounding must not put the last level above the end, which one of the curves reaches only just
    levels = np.minimum(start[..., None] + shares * (end - start)[..., None], end[..., None])
    needed = [first_crossing(labels, curve, levels).sum(axis=-1) for curve in (ours, theirs)]
    result: Array = np.where(end > start, 1 - needed[0] / needed[1], np.nan)
    return result


def first_crossing(labels: Array, curves: Array, levels: Array) -> Array:
    """Find (..., l) the least numbers of labels at which monotone curves (..., r), straight between their points, reach levels (..., l).

    Each level is at most the curve's end.
    """
    at = (curves[..., None, :] < levels[..., :, None]).sum(axis=-1)
    at = np.minimum(at, len(labels) - 1)
    before = np.maximum(at - 1, 0)
    low, high = np.take_along_axis(curves, before, axis=-1), np.take_along_axis(curves, at, axis=-1)
    rise = high - low
    share = np.where(rise > 0, (levels - low) / np.where(rise > 0, rise, 1), 1.0)
    result: Array = np.where(at == 0, labels[0], labels[before] + share * (labels[at] - labels[before]))
    return result


def interval(estimate: float, draws: Array, seeds: int) -> tuple[float, float] | tuple[None, None]:
    """Compute the bootstrap's 95% interval about an estimate, widened for few seeds; none where too many draws have no value.

    Both half-widths are multiplied by sqrt(S / (S - 1)) and by Student's quantile over the normal one.
    """
    there = draws[~np.isnan(draws)]
    if len(there) < _LEAST_SHARE * len(draws):
        return None, None
    factor = math.sqrt(seeds / (seeds - 1)) * student_quantile(0.975, seeds - 1) / 1.96
    low, high = np.percentile(there, _TAILS)
    return estimate - factor * (estimate - float(low)), estimate + factor * (float(high) - estimate)


def paired_t_test(differences: Array) -> float | None:
    """Compute the two-sided p value of (seeds,) differences having mean 0; None with one seed."""
    seeds = len(differences)
    if seeds < 2:
        return None
    mean, error = float(differences.mean()), float(differences.std(ddof=1)) / math.sqrt(seeds)
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return 1 - student_within(abs(mean) / error, seeds - 1)


def student_within(t: float, freedom: int) -> float:
    """Compute the probability that |T| <= t >= 0 for Student's T, whole degrees of freedom (Abramowitz and Stegun, 26.7.3, 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= square * k / (k + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def student_quantile(p: float, freedom: int) -> float:
    """Compute the value below which Student's T lies with probability p, 0.5 <= p < 1."""
    low, high = 0.0, 1.0
    while student_within(high, freedom) < 2 * p - 1:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_within(middle, freedom) < 2 * p - 1 else (low, middle)
    return high


def aligned(runs: Mapping[Any, Sequence[tuple[Array, Array]]]) -> dict[Any, Curves]:
    """Bring curves to one range of labels, of runs that may have been labelled in other steps.

    Where all have the same numbers of labels, these; else all that occur between the latest start and the earliest end, straight lines
    between a run's own, or, of more than `MOST_POINTS`, as many at even distances.

    Args:
        runs: by strategy, a run for each seed in one order: (r,) ascending labels, or what they cost, and (r,) values. Of several
            values at one place, where further labels cost nothing, the last one counts.

    Raises:
        DataError: the runs have no number of labels in common.
    """
    runs = {name: [_steps(*run) for run in of] for name, of in runs.items()}
    every = [labels for of in runs.values() for labels, _ in of]
    low, high = max(labels[0] for labels in every), min(labels[-1] for labels in every)
    if low > high:
        raise DataError(f"one run starts at {low} labels, another ends at {high}: there is nothing to compare")
    occurring = np.unique(np.concatenate(every))
    grid = occurring[(occurring >= low) & (occurring <= high)]
    if len(grid) > MOST_POINTS:
        grid = np.linspace(low, high, MOST_POINTS)
    return {name: Curves(grid, np.array([np.interp(grid, labels, values) for labels, values in of])) for name, of in runs.items()}


def _steps(labels: Array, values: Array) -> tuple[Array, Array]:
    """Return a run's points without those that the next one follows at the same place."""
    last = np.append(np.diff(labels) > 0, True)
    return labels[last], values[last]


def _bootstrap(seeds: int, draws: int) -> Array:
    """Return (draws, seeds) how often each seed was drawn, over the number of seeds: weights of a mean. Always the same ones."""
    drawn = np.random.default_rng(seeds).integers(0, seeds, (draws, seeds))
    counts = np.zeros((draws, seeds))
    np.add.at(counts, (np.arange(draws)[:, None], drawn), 1)
    result: Array = counts / seeds
    return result


def _verdict(saved: tuple[float | None, float | None], gain: tuple[float | None, float | None]) -> Verdict:
    if saved[0] is None or saved[1] is None or gain[0] is None or gain[1] is None:
        return "no difference"
    if saved[0] > 0 and gain[0] > 0:
        return "pays"
    return "costs" if saved[1] < 0 and gain[1] < 0 else "no difference"


def _number(value: Array) -> float | None:
    return None if np.isnan(value) else float(value)

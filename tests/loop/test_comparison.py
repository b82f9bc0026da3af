"""Comparing strategies: areas, labels saved, intervals and verdicts, against a slow and literal reading of the definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from raystream.errors import DataError
from raystream.loop.simulation.comparison import (
    Curves,
    aligned,
    area,
    compare,
    interval,
    labels_saved,
    monotone,
    paired_t_test,
    student_quantile,
    student_within,
)

LABELS = np.array([20.0, 30.0, 40.0, 60.0])
mean_curves = st.lists(st.floats(0, 1), min_size=4, max_size=4).map(np.array)


def literal_monotone(curve):
    return [(max(curve[: i + 1]) + min(curve[i:])) / 2 for i in range(len(curve))]


def literal_crossing(labels, curve, level):
    """Walk along the straight lines until one of them gets there."""
    if curve[0] >= level:
        return labels[0]
    for i in range(1, len(curve)):
        if curve[i] >= level:
            return labels[i - 1] + (labels[i] - labels[i - 1]) * (level - curve[i - 1]) / (curve[i] - curve[i - 1])
    return labels[-1]


def literal_saved(labels, ours, theirs):
    ours, theirs = literal_monotone(ours), literal_monotone(theirs)
    start, end = max(ours[0], theirs[0]), min(ours[-1], theirs[-1])
    if end <= start:
        return math.nan
    # a level that is off by a unit in the last place is another one where a curve is flat: the same levels for both
    levels = [min(start + share * (end - start), end) for share in np.linspace(0.5, 1.0, 11)]
    sums = [sum(literal_crossing(labels, curve, level) for level in levels) for curve in (ours, theirs)]
    return 1 - sums[0] / sums[1]


@example(np.array([0.0, 0.0, 0.0, 1.0]), np.array([0.45, 0.16434732, 0.99999, 0.63532941]))
@given(mean_curves, mean_curves)
def test_labels_saved_is_what_it_says(ours, theirs):
    """Eleven levels from half the common rise to all of it, the first labels that reach each."""
    np.testing.assert_allclose(monotone(ours), literal_monotone(ours))
    assert (np.diff(monotone(ours)) >= 0).all()
    expected, found = literal_saved(LABELS, ours, theirs), float(labels_saved(LABELS, ours, theirs))
    # a rise of a few units in the last place is decided by rounding
    if math.isnan(expected) or min(monotone(ours)[-1], monotone(theirs)[-1]) - max(monotone(ours)[0], monotone(theirs)[0]) > 1e-9:
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-6, nan_ok=True)


def test_labels_saved_by_value():
    """Twice as fast from 20 labels: levels at 25 .. 30 instead of 30 .. 40."""
    labels = np.array([20.0, 30.0, 40.0])
    assert labels_saved(labels, np.array([0.0, 1.0, 1.0]), np.array([0.0, 0.5, 1.0])) == pytest.approx(1 - 27.5 / 35)
    assert labels_saved(labels, np.array([0.0, 0.5, 1.0]), np.array([0.0, 0.5, 1.0])) == 0
    assert np.isnan(labels_saved(labels, np.array([0.5, 0.4, 0.5]), np.array([0.0, 0.2, 0.4])))


def test_area_by_value():
    """Trapezoids over the labels, not over the rounds; of one round its value."""
    assert area(LABELS, np.array([0.0, 1.0, 1.0, 0.0])) == pytest.approx((5 + 10 + 10) / 40)
    assert area(np.array([20.0]), np.array([[0.3]])) == pytest.approx([0.3])


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 10, 19, 50, 99])
def test_students_distribution(freedom):
    """As scipy has it."""
    for t in (0.0, 0.1, 1.0, 2.5, 30.0):
        assert student_within(t, freedom) == pytest.approx(1 - 2 * stats.t.sf(t, freedom), abs=1e-12)
    assert student_quantile(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom))


def test_paired_t_test():
    """As scipy has it; equal curves differ by nothing, and one seed tells nothing."""
    a, b = np.random.default_rng(0).normal(size=(2, 12))
    assert paired_t_test(a - b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert paired_t_test(np.zeros(3)) == 1
    assert paired_t_test(np.full(3, 0.5)) == 0
    assert paired_t_test(np.array([0.5])) is None


def test_intervals_are_widened_for_few_seeds():
    """By 1.096 at 20 seeds and 1.217 at 10, each half about the estimate; none where draws have no value."""
    draws = np.concatenate([np.full(1000, -1.0), np.full(1000, 3.0)])
    for seeds, factor in ((20, 1.096), (10, 1.217)):
        assert interval(0.5, draws, seeds) == pytest.approx((0.5 - 1.5 * factor, 0.5 + 2.5 * factor), abs=2e-3)
    assert interval(0.5, np.append(draws, np.full(200, np.nan)), 10) == (None, None)


def noisy(rng, seeds, speed, noise=0.01):
    labels = np.arange(20, 220, 20)
    return Curves(labels, 1 - np.exp(-labels / speed) + rng.normal(0, noise, (seeds, len(labels))))


def test_the_bootstrap_draws_seeds_with_both_curves():
    """The interval is that of means over seeds drawn anew, written out."""
    rng = np.random.default_rng(1)
    ours, theirs = noisy(rng, 6, 60), noisy(rng, 6, 80)
    drawn = np.random.default_rng(6).integers(0, 6, (2000, 6))
    saved = np.array([labels_saved(ours.labels, ours.values[rows].mean(axis=0), theirs.values[rows].mean(axis=0)) for rows in drawn])
    gains = np.array([(area(ours.labels, ours.values[rows]) - area(ours.labels, theirs.values[rows])).mean() for rows in drawn])
    found = compare(ours, theirs)
    assert (found.low, found.high) == pytest.approx(interval(found.labels_saved, saved, 6))
    assert (found.gain_low, found.gain_high) == pytest.approx(interval(found.gain, gains, 6))
    assert found.auc == pytest.approx(area(ours.labels, ours.mean))
    assert found.auc_se == pytest.approx(area(ours.labels, ours.values).std(ddof=1) / math.sqrt(6))
    assert found.final == pytest.approx(ours.values[:, -1].mean())


def test_verdicts():
    """Pays where both intervals lie above 0, costs where both lie below, else no difference was found."""
    rng = np.random.default_rng(0)
    chance = noisy(rng, 10, 80)
    assert compare(noisy(rng, 10, 50), chance).verdict == "pays"
    assert compare(noisy(rng, 10, 120), chance).verdict == "costs"
    assert compare(noisy(rng, 10, 80), chance).verdict == "no difference"
    assert compare(chance, chance).verdict == "no difference"
    alone = compare(Curves(chance.labels, chance.values[:1]), Curves(chance.labels, chance.values[1:2]))
    assert (alone.auc_se, alone.low, alone.high, alone.p_value, alone.verdict) == (None, None, None, None, "no difference")


def test_lower_may_be_better():
    """The same comparison with the sign turned, figures in the metric's own."""
    rng = np.random.default_rng(0)
    ours, theirs = noisy(rng, 10, 50), noisy(rng, 10, 80)
    up = compare(ours, theirs)
    down = compare(Curves(ours.labels, 3 - ours.values), Curves(theirs.labels, 3 - theirs.values), lower_is_better=True)
    assert (down.labels_saved, down.low, down.gain, down.p_value) == pytest.approx((up.labels_saved, up.low, up.gain, up.p_value))
    assert (down.auc, down.final, down.verdict) == (pytest.approx(3 - up.auc), pytest.approx(3 - up.final), "pays")


def test_curves_of_other_seeds_cant_be_paired():
    """Nor those over other labels."""
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="can't be paired"):
        compare(noisy(rng, 3, 50), noisy(rng, 4, 50))


def test_aligned_runs():
    """One range of labels; as they are where all have the same."""
    same = aligned({"a": [(LABELS, LABELS), (LABELS, 2 * LABELS)], "b": [(LABELS, 3 * LABELS)] * 2})
    np.testing.assert_array_equal(same["a"].labels, LABELS)
    np.testing.assert_array_equal(same["a"].values, [LABELS, 2 * LABELS])
    other = aligned({"a": [(np.array([10.0, 30.0]), np.array([1.0, 3.0]))], "b": [(np.array([20.0, 40.0]), np.array([0.0, 4.0]))]})
    np.testing.assert_array_equal(other["a"].labels, [20, 30])
    np.testing.assert_array_equal(other["a"].values, [[2, 3]])
    np.testing.assert_array_equal(other["b"].values, [[0, 2]])
    with pytest.raises(DataError, match="nothing to compare"):
        aligned({"a": [(np.array([10.0]), np.array([1.0]))], "b": [(np.array([20.0]), np.array([1.0]))]})


def test_curves_over_costs():
    """Costs are other numbers in every run: of many, even steps on the same straight lines; what cost nothing more counts as it ended."""
    rng = np.random.default_rng(0)

    def run():
        costs = np.concatenate([[0.0], rng.uniform(0.1, 3, 39).cumsum(), [200.0]])
        return costs, rng.normal(size=41)

    runs = {name: [run() for _ in range(20)] for name in ("ours", "random")}
    found = aligned(runs)
    grid = found["ours"].labels
    assert (len(grid), grid[0], grid[-1]) == (500, 0.0, 200.0)
    for name, each in runs.items():
        np.testing.assert_allclose(found[name].values, [np.interp(grid, *pair) for pair in each])
    free = aligned({"a": [(np.array([1.0, 1.0, 3.0]), np.array([5.0, 7.0, 9.0]))], "b": [(np.array([1.0, 2.0, 3.0]), np.zeros(3))]})
    np.testing.assert_array_equal(free["a"].values, [[7.0, 8.0, 9.0]])

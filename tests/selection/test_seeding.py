from __future__ import annotations

import collections

import numpy as np
import pytest
import torch
from laws import chi_squared, critical, sequences
from oracle import data, distances_to

from raystream.selection.clusters import greedy_seeds


def seeds(x, k, trials, seed, weight=None, start=0):
    """Rows, around their mean, weighted alike unless said."""
    weight = np.ones(len(x)) if weight is None else weight
    return greedy_seeds(x, weight, k, trials, x.mean(axis=0), seed, start)


def left_over(x, rows, weight=1.0):
    """The weighted sum of squared distances to the nearest of the rows."""
    return float((np.min([distances_to(x, x[row]) for row in rows], axis=0) * weight).sum())


def test_with_one_trial_the_law_is_that_of_k_means_pp():
    """First by weight, then by weight times squared distance, each row once, though many rows are proposed together."""
    x = np.array([[0.0], [1], [3], [3.5], [8]], dtype=np.float32)
    weight = np.array([1.0, 2, 0.5, 1, 0.25])
    squared = np.square(x - x.T).astype(np.float64) * weight
    law = collections.Counter()
    for first in range(5):
        law.update({rows: p * weight[first] / weight.sum() for rows, p in sequences(squared, 3, first=first).items()})
    found = collections.Counter(tuple(seeds(x, 3, 1, seed, weight).tolist()) for seed in range(1500))
    statistic, freedom = chi_squared(found, law)
    assert statistic < critical(freedom)


def test_the_best_of_those_tried_is_taken():
    """Of so many trials that every row is among them, greedy minimisation by brute force."""
    x = data("normal", 12, 3, 0)
    for seed in range(20):
        rows = seeds(x, 4, 48, seed)
        for step in range(1, 4):
            sums = [left_over(x, [*rows[:step], row]) for row in range(12)]
            # a row that is hardly ever drawn may be missing
            assert sums[rows[step]] <= np.sort(sums)[1]


def test_more_trials_leave_less():
    """On groups of uneven size."""
    rng = np.random.default_rng(0)
    of = rng.choice(40, 600, p=rng.dirichlet(np.ones(40)))
    x = (5 * rng.standard_normal((40, 6))[of] + 0.2 * rng.standard_normal((600, 6))).astype(np.float32)
    means = [np.mean([left_over(x, seeds(x, 40, trials, seed)) for seed in range(20)]) for trials in (1, 8)]
    assert means[1] < 0.8 * means[0]


def test_distinct_rows_where_points_are_few():
    """When every row of any weight is at a seed, the others with a weight come, the lowest first, then those without."""
    x = np.repeat(data("normal", 3, 4, 0), 5, axis=0)
    weight = np.ones(15)
    weight[[0, 6, 14]] = 0
    rows = seeds(x, 15, 8, 0, weight)
    assert sorted(rows.tolist()) == list(range(15))
    assert len({row // 5 for row in rows[:3]}) == 3
    assert (np.diff(rows[3:12]) > 0).all()
    assert rows[12:].tolist() == [0, 6, 14]


@pytest.mark.parametrize("kind", ["normal", "duplicated", "one_hot", "unit", "offset"])
def test_threads_change_nothing(kind):
    """The same seeds from any number of threads, of more rows than are multiplied at a time; another start draws others."""
    x = data(kind, 9000, 5, 0)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(seeds(x, 40, 8, 3).tolist())
            assert len(set(found[-1])) == 40
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2] != seeds(x, 40, 8, 3, start=1).tolist()

"""LURE: the vector, and the mean over every possible draw."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from raystream.errors import DataError, QueryError
from raystream.loop import lure
from raystream.selection import power

WEIGHTS, LOSSES = np.array([4.0, 3.0, 2.0, 1.0]), np.array([1.0, 0.0, 0.5, 0.25])


def drawn(rows, weights):
    """The probability of each draw, given those before it."""
    left, found = float(weights.sum()), []
    for row in rows:
        found.append(weights[row] / left)
        left -= weights[row]
    return np.array(found)


def test_the_vector():
    """Rows 1, then 3, of four: the weights are 3/4 and 1."""
    assert lure([1, 0.5], drawn([0, 2], WEIGHTS), 4) == pytest.approx(5 / 8)
    assert lure([1, 0], drawn([0, 2], WEIGHTS), 4) == pytest.approx(3 / 8)
    assert lure([0, 1], drawn([0, 2], WEIGHTS), 4) == pytest.approx(1 / 2)


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_it_is_unbiased(m):
    """The mean over all draws of m rows, each as likely as it is, is the mean loss of all rows."""
    mean = total = 0.0
    for rows in permutations(range(4), m):
        q = drawn(rows, WEIGHTS)
        mean += q.prod() * lure(LOSSES[list(rows)], q, 4)
        total += q.prod()
    assert total == pytest.approx(1)
    assert mean == pytest.approx(7 / 16)


def test_draws_of_power_say_the_mean():
    """As docs/loop.md has it: over 500 seeds the mean is that of all rows within three standard errors, the plain mean far from it."""
    rng = np.random.default_rng(0)
    score = rng.uniform(0.05, 1, 400)
    loss = (rng.random(400) < score / 2).astype(float)
    found = []
    for seed in range(500):
        rows = power(score, 40, seed=seed)
        found.append((lure(loss[rows], drawn(rows, score), 400), loss[rows].mean()))
    means, errors = np.mean(found, axis=0), np.std(found, axis=0) / np.sqrt(500)
    assert abs(means[0] - loss.mean()) < 3 * errors[0]
    assert abs(means[1] - loss.mean()) > 20 * errors[1]


def test_uniform_draws_weigh_alike():
    """They are a plain mean."""
    assert lure(LOSSES[:3], [1 / 9, 1 / 8, 1 / 7], 9) == pytest.approx(LOSSES[:3].mean())


@pytest.mark.parametrize(
    ("losses", "probabilities", "n", "error"),
    [
        ([1.0], [0.0], 4, DataError),
        ([1.0], [np.nan], 4, DataError),
        ([np.nan], [0.5], 4, DataError),
        ([1.0], [1.5], 4, DataError),
        ([1.0, 2.0], [0.5], 4, DataError),
        ([], [], 4, DataError),
        ([1.0, 2.0], [0.5, 0.5], 1, QueryError),
    ],
)
def test_what_can_be_no_draw_is_refused(losses, probabilities, n, error):
    """A probability of 0 would be an infinite weight."""
    with pytest.raises(error):
        lure(losses, probabilities, n)

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import KINDS, data, distances_to, pools

from raystream.selection import bounds
from raystream.selection.strategies.typiclust import densest


def brute(x, group, neighbours):
    """[(row, mean distance to its nearest others)] by float64 differences, the least first, ties to the lower row."""
    found = []
    for row in group:
        others = np.sort(np.sqrt(distances_to(x[group[group != row]], x[row])))[:neighbours]
        found.append((others.mean() if len(others) else np.inf, row))
    return [(row, mean) for mean, row in sorted(found)]


@pytest.mark.parametrize("units", [False, True])
@settings(max_examples=40, deadline=None)
@given(pool=pools(), neighbours=st.integers(1, 20), whole=st.sampled_from([0, 64]))
def test_brute_force(units, pool, neighbours, whole):
    """Every row of the group comes once, in the order of its mean distance, whatever products its bounds come from, if any."""
    x, k = pool
    group = np.flatnonzero(np.arange(len(x)) % 3 != k % 3) if len(x) > 2 else np.arange(len(x))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "has_bfloat16_units", lambda: units)
        patch.setattr("raystream.selection.strategies.typiclust._WHOLE", whole)
        found = list(densest(x, group, neighbours))
    expected = brute(x, group, neighbours)
    assert [row for row, _ in found] == [row for row, _ in expected]
    np.testing.assert_allclose([mean for _, mean in found], [mean for _, mean in expected], rtol=1e-12)


@pytest.mark.parametrize("units", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_past_a_block(monkeypatch, kind, units):
    """The same for more rows than are multiplied at a time, of which only some are asked for."""
    monkeypatch.setattr(bounds, "has_bfloat16_units", lambda: units)
    x = data(kind, 1300, 6, 0)
    squared = np.array([distances_to(x, row) for row in x])
    np.fill_diagonal(squared, np.inf)
    mean = np.sqrt(np.sort(squared, axis=1)[:, :20]).mean(axis=1)
    rows = densest(x, np.arange(1300), 20)
    assert [next(rows)[0] for _ in range(40)] == np.argsort(mean, kind="stable")[:40].tolist()


def test_an_outlier_does_not_blur_the_others():
    """Rows a million times closer together than the whole are told apart."""
    x = np.concatenate([data("normal", 60, 5, 0), data("normal", 3, 5, 1) * 1e6])
    assert [row for row, _ in densest(x, np.arange(63), 7)] == [row for row, _ in brute(x, np.arange(63), 7)]

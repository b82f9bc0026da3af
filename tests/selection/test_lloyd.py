from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import data, distances_to, pools

from raystream.selection import lloyd as lloyd_module
from raystream.selection.lloyd import Points, encoding_of, lloyd

FEW = ("normal", "clustered", "duplicated", "equal", "binary", "one_hot", "counts", "unit", "offset")


def points(x, weight=None, rounded=False):
    """Rows as the iterations take them."""
    encoding = replace(encoding_of(x), bfloat16=rounded)
    return Points.of(x, np.ones(len(x)) if weight is None else weight, encoding)


def brute(x, weight, centres):
    """One iteration in float64: (centres, those of them without rows, what each row adds to the sum of squares before it)."""
    squared = np.array([distances_to(x, c) for c in centres])
    label = squared.argmin(axis=0)
    result = centres.astype(np.float64)
    empty = [c for c in range(len(centres)) if weight[label == c].sum() == 0]
    for c in set(range(len(centres))) - set(empty):
        mine = label == c
        result[c] = (weight[mine, None] * x[mine].astype(np.float64)).sum(axis=0) / weight[mine].sum()
    return result, empty, squared.min(axis=0) * weight


@settings(max_examples=60, deadline=None)
@given(pools(kinds=FEW), st.integers(0, 10**6), st.booleans())
def test_an_iteration_is_that_of_float64(pool, seed, rounded):
    """Every centre is the weighted mean of its rows, one without rows the row that counts most; the sum of squares never rises."""
    x, k = pool
    rng = np.random.default_rng(seed)
    weight = rng.integers(0, 4, len(x)) / 4
    weight[0] = 1
    centres = x[rng.integers(0, len(x), k)] + np.float32(1e-3) * rng.integers(0, 2, (k, 1)).astype(np.float32)
    expected, empty, adds = brute(x, weight, centres)
    found = lloyd(points(x, weight, rounded), centres, 1).centres
    # those that add most, or about as much as float32 can tell
    for c, most in zip(empty, np.sort(adds)[::-1], strict=False):
        rows = np.flatnonzero((x == found[c]).all(axis=1))
        if most > 0:
            assert adds[rows].max() >= most * (1 - 1e-4)
            expected[c] = found[c]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(x).max())
    after = brute(x, weight, found)[2].sum()
    assert after <= adds.sum() + 1e-6 * (weight @ np.square(x.astype(np.float64)).sum(axis=1))


def test_it_ends_where_nothing_moves():
    """The centres of separate groups are reached in two iterations, and stay."""
    x = (np.arange(60)[:, None] // 20 * 100 + data("normal", 60, 2, 0)).astype(np.float32)
    found = lloyd(points(x), x[::20].copy(), 2).centres
    np.testing.assert_allclose(found, x.reshape(3, 20, 2).mean(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(lloyd(points(x), found, 50).centres, found)


def test_it_ends_where_moving_gains_next_to_nothing(monkeypatch):
    """Only those moves are made that gain a thousandth of what all have gained; what a sample's gained is carried on."""
    x = data("normal", 5000, 8, 0)
    start, ones = x[:40].copy(), np.ones(len(x))
    looks = []
    real = lloyd_module._OneStretch.sums
    monkeypatch.setattr(lloyd_module._OneStretch, "sums", lambda self, centres: looks.append(1) or real(self, centres))
    found, moves = lloyd(points(x), start, 100), len(looks)
    assert 5 < moves < 60
    before, after = (brute(x, ones, centres)[2].mean() for centres in (start, found.centres))
    # what moves gain is part of what is gained: rows that change their centre gain the rest
    assert 0 < found.gained < before - after
    last = lloyd(points(x), start, moves - 1)
    assert found.gained - last.gained <= 2.0**-10 * found.gained
    one_less = lloyd(points(x), start, moves - 2)
    assert last.gained - one_less.gained > 2.0**-10 * last.gained
    carried = lloyd(points(x), one_less.centres, 100, one_less.gained)
    np.testing.assert_array_equal(carried.centres, found.centres)
    assert carried.gained == pytest.approx(found.gained, rel=1e-12)
    monkeypatch.setattr(lloyd_module, "_NEXT_TO_NOTHING", -1.0)
    assert lloyd(points(x), start, 100).gained > 1.01 * found.gained


def test_a_centre_without_rows_goes_on():
    """A centre that has just moved to a far row hasn't had its rows yet, however little the others gained by moving."""
    x = np.concatenate([data("normal", 3000, 4, 0), 50 + 1e-3 * data("normal", 30, 4, 1)]).astype(np.float32)
    centres = np.concatenate([x[:3000].mean(axis=0, keepdims=True), np.full((1, 4), 1e4)]).astype(np.float32)
    found = lloyd(points(x), centres, 20, 1e9).centres
    np.testing.assert_allclose(np.sort(found, axis=0), [x[:3000].mean(axis=0), x[3000:].mean(axis=0)], rtol=1e-4, atol=1e-4)


def test_rows_far_away_and_close_together():
    """Groups of a thousandth of their distance from each other have the means of float64."""
    rng = np.random.default_rng(0)
    x = (np.array([-1000, 1000])[np.arange(5000) % 2, None] + 1e-2 * rng.standard_normal((5000, 3))).astype(np.float32)
    found = lloyd(points(x), x[:2].copy(), 1).centres
    np.testing.assert_allclose(found, [x[::2].mean(axis=0, dtype=np.float64), x[1::2].mean(axis=0, dtype=np.float64)], atol=1e-4)


@pytest.mark.parametrize("kind", ["normal", "clustered", "one_hot", "unit"])
@pytest.mark.parametrize("weighted", [False, True])
def test_threads_and_units_change_no_digit(kind, weighted):
    """The same centres from 1, 2 and 4 threads and from products in either precision, over more rows than a thread adds up at once."""
    x = data(kind, 70_000, 4, 0)
    weight = np.random.default_rng(0).random(len(x)) if weighted else None
    before, found = torch.get_num_threads(), []
    try:
        for threads, rounded in ((1, False), (2, False), (4, True)):
            torch.set_num_threads(threads)
            found.append(lloyd(points(x, weight, rounded), x[:30].copy(), 3).centres)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    expected = brute(x, np.ones(len(x)) if weight is None else weight, x[:30])[0]
    np.testing.assert_allclose(lloyd(points(x, weight), x[:30].copy(), 1).centres, expected, atol=1e-5)

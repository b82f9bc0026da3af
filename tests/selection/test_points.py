from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import data, distances_to, pools

from raystream.selection.lloyd import BLOCK, Points, by_blocks, cost, distinct, drawn, encoding_of, slices, squared_to

FEW = ("normal", "clustered", "duplicated", "equal", "binary", "one_hot", "counts", "unit", "offset")


@settings(max_examples=40, deadline=None)
@given(pools(kinds=FEW), st.booleans(), st.booleans())
def test_labels_are_those_of_float64(pool, rounded, keep):
    """The nearest centre by float64 differences, ties to the lower, encoded before or not, in bfloat16 or float32."""
    x, k = pool
    centres = x[:: max(len(x) // k, 1)] + np.float32(0.25) * (np.arange(x.shape[1]) % 2).astype(np.float32)
    points = Points.of(x, np.ones(len(x)), replace(encoding_of(x), bfloat16=rounded))
    points = points if keep else replace(points, operand=None, slack=None)
    label = points.label(centres)()(slice(0, len(x)))
    squared = np.array([distances_to(x, c) for c in centres])
    np.testing.assert_array_equal(label, squared.argmin(axis=0))
    assert cost(points, centres) == pytest.approx(squared.min(axis=0).sum(), rel=1e-5)


def test_the_first_of_equal_centres_stands_for_them():
    """In order, whether or not their first numbers tell them apart."""
    np.testing.assert_array_equal(distinct(np.array([[3.0, 1], [1, 1], [3, 1], [3, 2], [1, 1], [0, 1]])), [0, 1, 3, 5])
    np.testing.assert_array_equal(distinct(np.array([[3.0, 1], [1, 1], [2, 1]])), [0, 1, 2])


def test_outliers_leave_the_others_their_digits():
    """The shift is where most rows are, not where a few rows pull the mean."""
    x = data("normal", 3000, 4, 0)
    x[::100] *= 1e6
    assert np.abs(encoding_of(x).shift).max() < 1


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_block_is_one_threads(threads):
    """Whatever there are of either, blocks see single-threaded torch, and come back in order."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for n in (1, BLOCK, 5 * BLOCK + 1):
            found = by_blocks(slices(n, BLOCK), lambda: lambda at: (at.start, at.stop, torch.get_num_threads()))
            assert [one[2] for one in found] == [1] * len(found)
            assert [one[0] for one in found] == [0, *(one[1] for one in found[:-1])]
            assert found[-1][1] == n
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_squared_distances_past_a_block():
    """To one point, and to labelled centres."""
    x = data("normal", 2 * BLOCK + 7, 3, 0)
    label = np.arange(len(x)) % 5
    np.testing.assert_allclose(squared_to(x, x[3:4]), distances_to(x, x[3]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(squared_to(x, x[:5], label), np.square(x - x[label]).sum(axis=1), rtol=1e-5, atol=1e-6)


def test_weights_drawn_have_the_sums_of_all():
    """Whatever is summed up, the mean over draws is the sum over all rows; heavy and far rows are in every draw."""
    rng = np.random.default_rng(0)
    x, weight = data("normal", 500, 3, 0), rng.random(500) ** 3
    x[7] *= 1000
    weight[11] = 1000
    weight[20:40] = 0
    of = np.stack([np.ones(500), rng.random(500), np.arange(500) < 250, x[:, 0] > 1], axis=1)
    sums = []
    for seed in range(400):
        rows, weights = drawn(x, weight, 100, seed, "test", np.zeros(3, dtype=np.float32))
        assert len(rows) == len(set(rows.tolist())) == 100
        assert (np.diff(rows) > 0).all()
        assert {7, 11} <= set(rows.tolist())
        assert weights[rows.tolist().index(11)] == 1000
        sums.append(weights @ of[rows])
    error = np.std(sums, axis=0) / np.sqrt(len(sums))
    assert (np.abs(np.mean(sums, axis=0) - weight @ of) <= 4 * error + 1e-9).all()


def test_draws_where_weights_are_few():
    """All rows of any weight come before those of none, whose weight stays zero; with room for all, all come as they are."""
    x, weight = data("normal", 50, 2, 0), np.zeros(50)
    weight[[3, 30]] = [1.0, 2.0]
    rows, weights = drawn(x, weight, 10, 0, "test", x[0])
    assert {3, 30} <= set(rows.tolist())
    assert weights.sum() == 3
    rows, weights = drawn(x, weight, 50, 0, "test", x[0])
    np.testing.assert_array_equal(rows, np.arange(50))
    np.testing.assert_array_equal(weights, weight)
    rows, weights = drawn(np.repeat(x[:1], 50, axis=0), np.ones(50), 10, 0, "test", x[0])
    assert len(set(weights.tolist())) == 1

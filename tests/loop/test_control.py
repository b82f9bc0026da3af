"""Control rows: which they are, and how far a share of them is to be trusted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystream.loop.pool_rows import Share, control_rows, controls_in, sample_rows, wilson
from raystream.selection.hashing import row_hash


@given(st.integers(1, 400).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))), st.sampled_from([1.0, 1.96, 3.02]))
def test_wilson_solves_its_equation(counts, z):
    """The ends are the shares from which the observed one is z standard errors away."""
    right, of = counts
    low, high = wilson(right, of, z)
    assert 0 <= low <= right / of <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(right / of - end) == pytest.approx(z * math.sqrt(end * (1 - end) / of), rel=1e-6)


def test_wilson_by_value():
    """Of 8 in 10; of none and of all of them, and of no rows."""
    assert wilson(8, 10, 1.959964) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert wilson(0, 5)[0] == 0.0
    assert wilson(5, 5)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)
    assert math.isnan(Share(0, 0).value)
    assert Share(1, 2) + Share(3, 4) == Share(4, 6)


def test_control_rows_are_the_pools_first_by_hash():
    """More of them begin with the same; a row is one wherever it lies, and another seed has others."""
    ids = np.arange(50_000)
    rows = control_rows(row_hash(3, ids), 500)
    assert len(set(rows.tolist())) == 500
    np.testing.assert_array_equal(control_rows(row_hash(3, ids), 40), rows[:40])
    order = np.random.default_rng(0).permutation(len(ids))
    np.testing.assert_array_equal(order[control_rows(row_hash(3, ids[order]), 500)], rows)
    assert len(np.intersect1d(rows, control_rows(row_hash(4, ids), 500))) < 30
    assert len(control_rows(row_hash(3, ids[:7]), 500)) == 7
    # what chance draws, and what is looked at to stop, are other rows
    assert len(np.intersect1d(rows, sample_rows(row_hash(3, ids), 500))) < 30


def test_the_sample_is_in_row_order():
    """1,000 rows of the pool, or all there are."""
    rows = sample_rows(row_hash(0, np.arange(20_000)))
    assert len(rows) == 1000
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(sample_rows(row_hash(0, np.arange(30))), np.arange(30))


def test_controls_of_a_batch():
    """The nearest whole number."""
    assert [controls_in(batch, 0.1) for batch in (4, 6, 10, 100)] == [0, 1, 1, 10]

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import data, distances_to, pools

from raystream.errors import DataError, QueryError
from raystream.selection import ArrayPart, LocalShards, assign, represents
from raystream.selection.rows import as_rows


@settings(max_examples=100, deadline=None)
@given(pools(), st.sampled_from(["float32", "bfloat16"]), st.integers(0, 10**6))
def test_assignment_and_radius_are_those_of_float64(pool, precision, seed):
    """Nearest centres, counts and covering radius equal brute force, ties to the lower rank."""
    x, k = pool
    centres = x[np.random.default_rng(seed).integers(0, len(x), k)]
    found = assign(as_rows(x), centres, precision=precision)
    true = np.array([distances_to(x, c) for c in centres])
    np.testing.assert_array_equal(found.nearest, true.argmin(axis=0))
    assert found.radius == np.sqrt(true.min(axis=0).max())
    assert found.farthest == int(true.min(axis=0).argmax())


def test_counts_leave_out_what_labelled_rows_stand_for():
    """Centres after the chosen ones take their share, and nobody counts it."""
    x = np.array([[0.0], [0.1], [5.0], [5.1], [9.0]], dtype=np.float32)
    found = assign(as_rows(x), np.array([[0.0], [5.0], [9.0]], dtype=np.float32))
    np.testing.assert_array_equal(represents(found, 2), [2, 2])


def test_parts_and_chunks_of_centres_change_nothing(monkeypatch):
    """However the rows are stored and however many centres are compared at a time, the answer is the same."""
    import importlib

    module = importlib.import_module("raystream.selection.represents")
    x = data("duplicated", 400, 6, 0).astype(np.float16)
    centres = x[::5].astype(np.float32)
    whole = assign(as_rows(x), centres)
    monkeypatch.setattr(module, "CENTRES_AT_ONCE", 7)
    parts = LocalShards([ArrayPart(part) for part in np.split(x, [3, 150])]).rows
    split = assign(parts, centres)
    np.testing.assert_array_equal(whole.nearest, split.nearest)
    assert (whole.radius, whole.farthest) == (split.radius, split.farthest)


def test_bad_rows_and_no_centres():
    """NaN is named with its row; without any centre there is nothing to be nearest to."""
    x = data("normal", 10, 2, 0)
    with pytest.raises(QueryError, match="nearest"):
        assign(as_rows(x), x[:0])
    x[3] = np.nan
    with pytest.raises(DataError, match="rows 3"):
        assign(as_rows(x), np.ones((1, 2), dtype=np.float32))

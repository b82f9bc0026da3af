from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import data, distances_to, pools

from raystream.errors import DataError, QueryError
from raystream.selection import ArrayPart, LocalShards, bounds, k_means
from raystream.selection.clusters import fit_centres
from raystream.selection.constraints import Constraints
from raystream.selection.repeats import NearDuplicates
from raystream.selection.strategies.k_means import cluster

FEW = ("normal", "clustered", "duplicated", "equal", "binary", "one_hot", "counts", "unit", "offset")


@settings(max_examples=40, deadline=None)
@given(pools(kinds=FEW), st.integers(0, 10**6))
def test_exactly_as_many_distinct_rows_as_there_can_be(pool, seed):
    """min(k, n) distinct rows, on duplicates, constants and zero weights too, the heaviest cluster first."""
    x, k = pool
    weight = np.random.default_rng(seed).integers(0, 3, len(x)).astype(np.float32)
    found = cluster(LocalShards.of_array(x), k, weight=weight, seed=seed)
    assert len(found.rows) == len(set(found.rows.tolist())) == min(k, len(x))
    assert (np.diff(found.gain) <= 0).all()
    assert found.gain.sum() == pytest.approx(weight.sum() if weight.any() else len(x))


def test_one_row_for_each_group_the_heaviest_first():
    """Well separated groups get a row each, nearest to their weighted mean, in order of their weights."""
    x = np.array([[0.0, 0], [0, 1], [0, 0.4], [10, 0], [10, 1], [10, 0.5], [20, 5]], dtype=np.float32)
    np.testing.assert_array_equal(k_means(x, 3, seed=1), [2, 5, 6])
    np.testing.assert_array_equal(k_means(x, 3, score=[1, 9, 1, 1, 1, 1, 30], seed=1), [6, 1, 5])


@settings(max_examples=40, deadline=None)
@given(pools(kinds=FEW), st.integers(0, 10**6))
def test_rows_are_the_nearest_unused_to_the_centres(pool, seed):
    """By brute force: to each centre, the heaviest first, its nearest own row, or the nearest of all when its own are used."""
    x, k = pool
    k = min(k, len(x) - 1)
    weight = np.random.default_rng(seed).integers(1, 9, len(x)) / 8
    if k < 1:
        return
    centres = fit_centres(x, weight, k, seed, 20)
    squared = np.array([distances_to(x, c) for c in centres])
    nearest = squared.argmin(axis=0)
    heavy = np.bincount(nearest, weights=weight, minlength=k)
    rows = []
    for centre in np.argsort(-heavy, kind="stable"):
        left = set(range(len(x))) - set(rows)
        own = {row for row in left if nearest[row] == centre}
        rows.append(min(own or left, key=lambda row: (squared[centre, row], row)))
    found = cluster(LocalShards.of_array(x), k, weight=weight, seed=seed)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.gain, np.sort(heavy)[::-1])


def test_threads_parts_and_units_change_nothing(monkeypatch):
    """The same rows from 1, 2 and 4 threads, from 1 to 64 parts and from products in either precision, past every block.

    The first iterations see a sample, the last ones all rows.
    """
    monkeypatch.setattr("raystream.selection.clusters._POINTS", 3000)
    x = data("clustered", 9000, 16, 0).astype(np.float16)
    weight = np.random.default_rng(0).random(len(x))
    before, found = torch.get_num_threads(), []
    try:
        for threads, parts, units in ((1, 64, False), (2, 1, True), (4, 2, False), (2, 7, True), (1, 1, True)):
            torch.set_num_threads(threads)
            monkeypatch.setattr(bounds, "has_bfloat16_units", lambda units=units: units)
            shards = LocalShards([ArrayPart(part) for part in np.array_split(x, parts)])
            found.append(cluster(shards, 50, weight=weight, seed=1).rows.tolist())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(rows == found[0] for rows in found)


@pytest.mark.parametrize("power", [-120, -60, 40, 63, 126])
def test_size_changes_nothing(power):
    """Powers of two are exact, so neither squares that overflow, which would end the process, nor those that vanish matter."""
    x = np.clip(data("normal", 300, 5, 0), -1.9, 1.9)
    np.testing.assert_array_equal(k_means(np.ldexp(x, power), 12, seed=4), k_means(x, 12, seed=4))


def test_two_levels_find_as_many_rows():
    """Beyond one level's centres, coarse clusters share out the centres by weight, and all distinct rows come back."""
    x = data("clustered", 400, 4, 0)
    weight = np.zeros(400)
    weight[:200] = 1
    for given_weight in (None, weight):
        found = cluster(LocalShards.of_array(x), 100, weight=given_weight, one_level=10)
        assert len(set(found.rows.tolist())) == 100
    assert len(set(cluster(LocalShards.of_array(x), 399, one_level=10).rows.tolist())) == 399


def test_copies_beyond_every_block():
    """Where the rows are copies of three, those come first, then the lowest of the rest, whichever centre they stand for."""
    x = np.repeat(data("normal", 3, 4, 0), 3000, axis=0)
    rows = k_means(x, 200)
    assert sorted(rows[:3].tolist()) == [0, 3000, 6000]
    assert len(set(rows.tolist())) == 200


def test_near_duplicates_give_way_to_the_next_row():
    """A blocked row is passed over, and the strategy goes on until every row is used or blocked."""
    x = np.repeat(data("normal", 6, 3, 0), 10, axis=0)
    found = cluster(LocalShards.of_array(x), 20, constraints=Constraints(20, near_duplicates=NearDuplicates(0.9999, 3)))
    assert sorted(row // 10 for row in found.rows) == [0, 1, 2, 3, 4, 5]


def test_refusals():
    """Negative weights, rows beyond the memory, and NaN are errors that say what to do."""
    x = data("normal", 10, 3, 0)
    with pytest.raises(QueryError, match=r"10 of 10 candidates have a negative score, the lowest -1; .* energy can be negative"):
        k_means(x, 2, score=-np.ones(10))
    with pytest.raises(QueryError, match=r"takes 120 bytes, but `memory` is 100"):
        k_means(x, 2, memory=100)
    x[5] = np.nan
    with pytest.raises(DataError, match="rows 5"):
        k_means(x, 2)

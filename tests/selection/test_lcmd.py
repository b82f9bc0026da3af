from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import KINDS, data, distances_to, pools, unit

from raystream.errors import DataError, QueryError
from raystream.selection import Candidates, Constraints, LocalShards, Quota, choose, core_set, largest_cluster, lcmd
from raystream.selection.repeats import NearDuplicates, cosines

precisions = pytest.mark.parametrize("precision", ["float32", "bfloat16"])


def brute(x, k, labelled=(), blocks=None, exclude=()):
    """Sequential and exact: clusters by float64 distances, their sums as fractions; (rows, sums, distances)."""
    n = len(x)
    alive = np.ones(n, dtype=bool)
    alive[list(exclude)] = False
    of, squared, number = np.zeros(n, dtype=int), np.full(n, np.inf), 0
    rows, sums, reached = [], [], []

    def add(centre):
        nonlocal of, squared, number, alive
        update = distances_to(x, centre)
        of, squared = np.where(update < squared, number, of), np.minimum(update, squared)
        number += 1
        if blocks is not None:
            alive &= ~blocks(x, centre)

    for centre in labelled:
        add(centre)
    while len(rows) < k and alive.any():
        if number:
            total = dict.fromkeys(of[alive].tolist(), Fraction(0))
            for cluster, value in zip(of.tolist(), squared.tolist(), strict=True):
                if cluster in total:
                    total[cluster] += Fraction(value)
            best = min(total, key=lambda c: (-total[c], c))
            row = int(np.argmax(np.where(alive & (of == best), squared, -1)))
            sums.append(float(total[best]))
            reached.append(np.sqrt(squared[row]))
        else:
            row = int(np.argmax(np.where(alive, distances_to(x, x.astype(np.float64).mean(axis=0)), -1)))
            sums.append(np.nan)
            reached.append(np.nan)
        rows.append(row)
        alive[row] = False
        add(x[row])
    return np.array(rows), np.array(sums), np.array(reached)


@settings(max_examples=120, deadline=None)
@given(pools(most=40), st.integers(0, 4), st.sampled_from(["float32", "bfloat16"]), st.sampled_from([1, 2, 7, 64]), st.integers(0, 10**6))
def test_each_row_is_the_farthest_of_the_largest_cluster(pool, m, precision, shards, seed):
    """Rows, sums and distances are those of an exact sequential loop, whatever the data, the sharding and the precision of the bounds."""
    x, k = pool
    labelled = x[np.random.default_rng(seed).integers(0, len(x), m)]
    found = largest_cluster(LocalShards.of_array(x, shards=shards, block=7), k, labelled=labelled, precision=precision)
    rows, sums, distance = brute(x, k, labelled)
    assert len(rows) == min(k, len(x))
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.distance, distance)
    np.testing.assert_allclose(found.gain, sums, rtol=1e-12)


@precisions
@pytest.mark.parametrize("kind", KINDS)
def test_order_holds_on_larger_data(kind, precision):
    """Clusters of many rows, each brought up to date by bounds, still have exact distances and sums."""
    x = data(kind, 600, 24, 1)
    found = largest_cluster(LocalShards.of_array(x), 40, precision=precision)
    np.testing.assert_array_equal(found.rows, brute(x, 40)[0])


def test_several_blocks():
    """Rows beyond the first block belong to clusters as all others do, and more rows are chosen than are foreseen at a time."""
    x = np.concatenate([data("clustered", 20000, 3, 0), data("normal", 3000, 3, 1)])
    expected, squared, of = [int(core_set(x, 1)[0])], distances_to(x, x[core_set(x, 1)[0]]), np.zeros(len(x), dtype=int)
    for number in range(1, 150):
        best = int(np.argmax(np.bincount(of, weights=squared)))
        expected.append(int(np.argmax(np.where(of == best, squared, -1))))
        update = distances_to(x, x[expected[-1]])
        of, squared = np.where(update < squared, number, of), np.minimum(update, squared)
    np.testing.assert_array_equal(lcmd(x, 150), expected)


@settings(max_examples=40, deadline=None)
@given(pools(most=40), st.sampled_from([0.3, 0.9, 1.0]), st.booleans(), st.integers(0, 10**6))
def test_blocked_rows_are_passed_over(pool, threshold, covered, seed):
    """Near-duplicates of chosen and labelled rows don't come back, and count in their clusters' sums."""
    x, k = pool
    rng = np.random.default_rng(seed)
    labelled = x[rng.integers(0, len(x), 2)] if covered else x[:0]
    constraints = Constraints(k, near_duplicates=NearDuplicates(threshold, x.shape[1], labelled))
    found = largest_cluster(LocalShards.of_array(x), k, labelled=labelled, constraints=constraints)
    rows, _, _ = brute(x, k, labelled, blocks=lambda a, b: cosines(a, b) >= threshold)
    np.testing.assert_array_equal(found.rows, rows)


def test_sums_keep_their_digits_once_the_far_rows_are_gone():
    """What is left may be far smaller than the first distances: sums are of units that follow the largest one."""
    x = np.array([[0.9], [1e-12], [0], [3e-12], [0], [2e-9], [5e-12]], dtype=np.float32)
    found = largest_cluster(LocalShards.of_array(x), 7, labelled=np.zeros((1, 1), dtype=np.float32))
    rows, sums, distance = brute(x, 7, np.zeros((1, 1)))
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.distance, distance)
    np.testing.assert_allclose(found.gain, sums, rtol=1e-12)


def test_quotas_and_rows_that_are_taken():
    """A full group is passed over in whole clusters, the first row included; rows that had to be in the batch are centres."""
    x = data("clustered", 300, 4, 0)
    group = (np.arange(300) % 3 > 0).astype(np.int32)
    quota = Quota("split", group, ("a", "b"), np.array([300, 0]), np.array([0, 0]))
    blocked = np.flatnonzero(group)
    found = choose(Candidates(shards=LocalShards.of_array(x)), strategy="lcmd", budget=100, quotas=(quota,))
    np.testing.assert_array_equal(found.rows, brute(x, 100, exclude=blocked)[0])
    found = choose(Candidates(shards=LocalShards.of_array(x)), strategy="lcmd", budget=20, must_include=np.array([5, 6]))
    np.testing.assert_array_equal(found.rows[2:], brute(x, 18, x[[5, 6]], exclude=[5, 6])[0])


def test_many_rows_together_come_before_one_far_away():
    """The second row lies in the crowd that is badly covered, not at the outlier where farthest-first goes."""
    crowd = data("normal", 500, 2, 0)
    x = np.concatenate([crowd + 20, crowd, np.array([[-30, 0]], dtype=np.float32)])
    labelled = np.array([[20, 20], [-5, 0]], dtype=np.float32)
    assert core_set(x, 1, labelled=labelled)[0] == 1000
    assert lcmd(x, 2, labelled=np.concatenate([labelled, x[-1:] + 5]))[0] < 1000


def test_cosine_is_euclidean_on_unit_rows():
    """The metric only divides rows, labelled ones too, by their lengths."""
    x = data("normal", 200, 5, 0).astype(np.float16)
    np.testing.assert_array_equal(lcmd(x, 30, labelled=x[:3] * 2, metric="cosine"), lcmd(unit(x), 30, labelled=unit(x[:3] * 2)))


def test_labelled_rows_equal_to_the_pool():
    """When every row is covered, rows still come back, in the order of their centres."""
    x = data("normal", 20, 4, 0)
    np.testing.assert_array_equal(lcmd(x, 5, labelled=x[::-1]), [19, 18, 17, 16, 15])


def test_refusals():
    """Rows that don't fit the memory, and those that are not finite, are refused by name."""
    x = data("normal", 10, 3, 0)
    with pytest.raises(QueryError, match="lcmd gathers its 10 candidates"):
        lcmd(x, 3, memory=100)
    with pytest.raises(DataError, match="1 rows of `x` hold"):
        lcmd(np.where(np.arange(10)[:, None] == 4, np.nan, x), 3)
    assert len(lcmd(x, 0)) == len(lcmd(x[:0], 3)) == 0

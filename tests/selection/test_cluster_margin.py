from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import data, pools

from raystream.errors import DataError, QueryError
from raystream.selection import Candidates, LocalShards, choose, cluster_margin
from raystream.selection.clusters import clusters

FEW = ("normal", "clustered", "duplicated", "equal", "binary", "one_hot", "counts", "unit", "offset")


def brute(x, score, k, count, m, seed):
    """Cluster-margin with lists, on the clusters that k-means finds."""
    k = min(k, len(x))
    of = clusters(x, count, seed, iterations=3).nearest
    order = sorted(range(len(x)), key=lambda i: (-score[i], i))
    short = order[: math.ceil(m * k)]
    rows = []
    while len(rows) < k:
        given = set()
        for i in short:
            if i not in rows and of[i] not in given and len(rows) < k:
                given.add(of[i])
                rows.append(i)
    return rows


@settings(max_examples=100, deadline=None)
@given(pools(kinds=FEW), st.integers(1, 70), st.sampled_from([1, 1.25, 2, 10]), st.integers(0, 10**6))
def test_brute_force(pool, count, m, seed):
    """The rows are those of the algorithm written down with lists; ties of scores go to the lower row."""
    x, k = pool
    score = np.random.default_rng(seed).integers(-3, 9, len(x)) / 4
    np.testing.assert_array_equal(cluster_margin(x, k, score=score, clusters=count, m=m, seed=2), brute(x, score, k, count, m, 2))


def test_copies_of_the_least_certain_row_do_not_fill_the_batch():
    """Where the highest scores are all in one group, the batch still reaches others, in each round by their scores."""
    rng = np.random.default_rng(0)
    of = np.repeat([0, 1, 2, 3], [40, 10, 5, 45])
    x = (rng.standard_normal((100, 2)) * 0.1 + 100 * of[:, None]).astype(np.float32)
    score = 1.0 - of / 10 + rng.random(100) / 100
    assert (of[np.argsort(-score)[:20]] == 0).all()
    seed = next(seed for seed in range(99) if sorted(clusters(x, 4, seed, iterations=3).size) == [5, 10, 40, 45])
    # 60 rows are shortlisted: 40, 10, 5 and 5 of the groups
    rows = cluster_margin(x, 6, score=score, clusters=4, m=10, seed=seed)
    assert of[rows].tolist() == [0, 1, 2, 3, 0, 1]
    for group in range(4):
        mine = rows[of[rows] == group]
        np.testing.assert_array_equal(mine, np.flatnonzero(of == group)[np.argsort(-score[of == group])][: len(mine)])
    # 6 of the 42 are of the second group, and none of the others
    assert of[cluster_margin(x, 6, score=score, clusters=4, m=7, seed=seed)].tolist() == [0, 1, 0, 1, 0, 0]


@pytest.mark.parametrize("count", [None, 400])
def test_groups_of_uneven_width_are_all_reached(count):
    """Where clusters outnumber the rows to choose, their sizes decide nothing: wide groups, of many small ones, don't get it all."""
    rng = np.random.default_rng(0)
    of = rng.integers(0, 40, 10_000)
    x = (3 * rng.standard_normal((40, 32))[of] + np.linspace(0.2, 2, 40)[of, None] * rng.standard_normal((10_000, 32))).astype(np.float32)
    rows = cluster_margin(x, 100, score=rng.random(10_000), clusters=count)
    assert 25 <= (of[rows] < 20).sum() <= 75


def test_in_a_query():
    """The gain is the score, and blocked rows are made up for beyond the shortlist."""
    x = np.repeat(data("normal", 30, 3, 0), 5, axis=0)
    score = np.linspace(1, 0, 150).astype(np.float32)
    candidates = Candidates(score, shards=LocalShards.of_array(x))
    result = choose(candidates, strategy="cluster_margin", budget=20, near_duplicates=0.9999, args={"m": 1.0, "clusters": 3})
    assert len(set((result.rows // 5).tolist())) == len(result.rows) == 20
    np.testing.assert_array_equal(result.gain, score[result.rows].astype(np.float64))


def test_refusals():
    """A shortlist shorter than the batch, scores that are NaN, and a score too few are errors."""
    x = data("normal", 10, 3, 0)
    with pytest.raises(QueryError, match=r"`m` is 0\.5"):
        cluster_margin(x, 2, score=np.ones(10), m=0.5)
    with pytest.raises(QueryError, match="`m` is nan"):
        cluster_margin(x, 2, score=np.ones(10), m=np.nan)
    with pytest.raises(DataError, match="NaN"):
        cluster_margin(x, 2, score=np.full(10, np.nan))
    with pytest.raises(DataError, match=r"`score` has shape \(9,\), expected \(10,\)"):
        cluster_margin(x, 2, score=np.ones(9))

from __future__ import annotations

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
    enough = len(set(of.tolist())) >= 2 * k
    short = []
    while len(short) < len(x) and (len(short) < m * k or (enough and len({of[i] for i in short}) < 2 * k)):
        short.append(order[len(short)])
    members = {c: [i for i in short if of[i] == c] for c in set(of.tolist())}
    turns = sorted((c for c in members if members[c]), key=lambda c: (len(members[c]), c))
    rows = []
    while len(rows) < k:
        for c in turns:
            if members[c] and len(rows) < k:
                rows.append(members[c].pop(0))
    return rows


@settings(max_examples=100, deadline=None)
@given(pools(kinds=FEW), st.integers(1, 70), st.sampled_from([1, 1.25, 2, 10]), st.integers(0, 10**6))
def test_brute_force(pool, count, m, seed):
    """The rows are those of the algorithm written down with lists; ties of scores go to the lower row."""
    x, k = pool
    score = np.random.default_rng(seed).integers(-3, 9, len(x)) / 4
    np.testing.assert_array_equal(cluster_margin(x, k, score=score, clusters=count, m=m, seed=2), brute(x, score, k, count, m, 2))


def test_copies_of_the_least_certain_row_do_not_fill_the_batch():
    """Where the highest scores are all in one group, the batch still reaches others, and the small one gives first."""
    rng = np.random.default_rng(0)
    of = np.repeat([0, 1, 2, 3], [40, 10, 5, 45])
    x = (rng.standard_normal((100, 2)) * 0.1 + 100 * of[:, None]).astype(np.float32)
    score = 1.0 - of / 10 + rng.random(100) / 100
    assert (of[np.argsort(-score)[:20]] == 0).all()
    seed = next(seed for seed in range(99) if sorted(clusters(x, 4, seed, iterations=3).size) == [5, 10, 40, 45])
    # 60 rows are shortlisted: 40, 10, 5 and 5 of the groups; the last two are equally small
    rows = cluster_margin(x, 6, score=score, clusters=4, m=10, seed=seed)
    assert sorted(of[rows[:2]]) == sorted(of[rows[4:]]) == [2, 3]
    assert of[rows[2:4]].tolist() == [1, 0]
    for group in range(4):
        mine = rows[of[rows] == group]
        np.testing.assert_array_equal(mine, np.flatnonzero(of == group)[np.argsort(-score[of == group])][: len(mine)])


def test_the_shortlist_grows_until_it_covers_enough_clusters():
    """Twice as many clusters as rows are covered where there are that many, however short m makes the list."""
    of = np.arange(60) // 10
    x = (of[:, None] * np.array([[100.0, 0]]) + np.arange(60)[:, None] % 10 * 0.01).astype(np.float32)
    score = 60.0 - np.arange(60)
    seed = next(seed for seed in range(999) if clusters(x, 6, seed, iterations=3).size.tolist() == [10] * 6)
    rows = cluster_margin(x, 3, score=score, clusters=6, m=1, seed=seed)
    assert of[rows[0]] == 5
    assert len(set(of[rows].tolist())) == 3
    assert of[cluster_margin(x, 4, score=score, clusters=6, m=1, seed=seed)].tolist() == [0, 0, 0, 0]


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
    with pytest.raises(DataError, match="NaN"):
        cluster_margin(x, 2, score=np.full(10, np.nan))
    with pytest.raises(DataError, match=r"`score` has shape \(9,\), expected \(10,\)"):
        cluster_margin(x, 2, score=np.ones(9))

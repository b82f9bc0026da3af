from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import data, distances_to, pools

from raystream.errors import DataError, QueryError
from raystream.selection import Candidates, LocalShards, choose, typiclust
from raystream.selection.clusters import clusters

FEW = ("normal", "clustered", "duplicated", "equal", "binary", "one_hot", "counts", "unit", "offset")


def brute(x, k, labelled, most, neighbours, seed):
    """TypiClust row by row in float64, on the clusters that k-means finds: (rows, typicality)."""
    found = clusters(x, min(len(labelled) + k, most), seed, iterations=20)
    labels = [int(np.argmin(distances_to(found.centres, row))) for row in labelled]
    rows, typicalities = [], []
    while len(rows) < min(k, len(x)):
        left = {c: [i for i in np.flatnonzero(found.nearest == c) if i not in rows] for c in range(len(found.size))}
        able = [c for c in left if left[c] and found.size[c] >= 5] or [c for c in left if left[c]]
        chosen = [int(found.nearest[i]) for i in rows]
        c = min(able, key=lambda c: (labels.count(c) + chosen.count(c), -found.size[c], c))
        members = np.flatnonzero(found.nearest == c)
        mean = {}
        for i in left[c]:
            others = np.sort(np.sqrt(distances_to(x[members[members != i]], x[i])))[:neighbours]
            mean[i] = others.mean() if len(others) else np.inf
        row = min(left[c], key=lambda i: (mean[i], i))
        rows.append(row)
        typicalities.append(np.inf if mean[row] == 0 else 1 / mean[row])
    return rows, typicalities


@settings(max_examples=60, deadline=None)
@given(pools(kinds=FEW), st.integers(0, 5), st.integers(1, 9), st.integers(1, 20))
def test_brute_force(pool, m, most, neighbours):
    """The rows and their typicality are those of the algorithm written down row by row."""
    x, k = pool
    candidates = Candidates(shards=LocalShards.of_array(x), labelled=x[:m])
    result = choose(
        candidates, strategy="typiclust", budget=k, seed=3, args={"clusters": most, "neighbours": neighbours}, near_duplicates=False
    )
    rows, typicality = brute(x, k, x[:m], most, neighbours, 3)
    np.testing.assert_allclose(result.gain, typicality, rtol=1e-12)
    np.testing.assert_array_equal(result.rows, rows)
    np.testing.assert_array_equal(typiclust(x, k, labelled=x[:m], clusters=most, neighbours=neighbours, seed=3), rows)


def groups(*sizes, seed=0):
    """Rows in well separated groups of these sizes, and the group of each."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(len(sizes)), sizes)
    return (rng.standard_normal((len(of), 2)) + 1000 * np.stack([of, of**2], axis=1)).astype(np.float32), of


def test_groups_without_labels_come_first_the_largest_before_others():
    """A labelled group waits; small groups wait until the others have given all their rows."""
    x, of = groups(30, 50, 4, 40)
    assert of[typiclust(x, 4)].tolist()[:3] == [1, 3, 0]
    labelled = x[of == 1][:1]
    assert of[typiclust(x, 3, labelled=labelled)].tolist()[:2] == [3, 0]
    everything = of[typiclust(x, 124, clusters=4)]
    assert (everything[-4:] == 2).all()


def test_every_cluster_is_gone_to_again():
    """With fewer clusters than rows to choose, each gives its second row once all have given the first."""
    x, of = groups(20, 25, 30)
    seed = next(seed for seed in range(99) if sorted(clusters(x, 3, seed, iterations=20).size) == [20, 25, 30])
    assert of[typiclust(x, 9, clusters=3, seed=seed)].tolist() == [2, 1, 0] * 3


def test_the_densest_row_is_chosen():
    """Of a line with a dense middle, the row in it."""
    x = np.array([[-9.0], [-4], [-1], [0], [0.5], [1.5], [5], [9]], dtype=np.float32)
    assert typiclust(x, 1, neighbours=2).tolist() == [3]


def test_blocked_rows_are_passed_over():
    """Near-duplicates of a chosen row give way to the next densest, and the rest still comes."""
    x = np.repeat(data("normal", 12, 3, 0), 10, axis=0)
    result = choose(Candidates(shards=LocalShards.of_array(x)), strategy="typiclust", budget=40, near_duplicates=0.9999)
    assert sorted(row // 10 for row in result.rows) == list(range(12))
    assert result.facts["recall"] == 1.0


def test_refusals():
    """Rows beyond the memory, and NaN, are errors that say so."""
    x = data("normal", 10, 3, 0)
    with pytest.raises(QueryError, match=r"typiclust looks at 10 of its 10 candidates at a time, which takes 120 bytes"):
        typiclust(x, 2, memory=100)
    x[3] = np.nan
    with pytest.raises(DataError, match="rows 3"):
        typiclust(x, 2)

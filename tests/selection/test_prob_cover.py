from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import KINDS, data, distances_to, greedy, pools

from raystream.errors import DataError, QueryError
from raystream.selection import Candidates, LocalShards, choose, prob_cover
from raystream.selection.clusters import clusters
from raystream.selection.strategies.prob_cover import Balls, pure_radius

FEW = ("normal", "clustered", "duplicated", "equal", "binary", "one_hot", "counts", "unit", "offset")


def all_distances(x):
    return np.sqrt(np.array([distances_to(x, row) for row in x]))


def brute(x, k, delta, labelled):
    """(rows, gains): the greedy cover on the matrix of all distances, then farthest-first."""
    inside = all_distances(x) <= delta
    covered = np.zeros(len(x), dtype=bool)
    for row in labelled:
        covered |= np.sqrt(distances_to(x, row)) <= delta
    rows, gains = [], []
    while len(rows) < min(k, len(x)):
        gain = (inside & ~covered).sum(axis=1)
        gain[rows] = -1
        best = int(gain.argmax())
        if gain[best] <= 0:
            break
        rows.append(best)
        gains.append(float(gain[best]))
        covered |= inside[best]
    left = min(k, len(x)) - len(rows)
    if left:
        rest = greedy(x, left, labelled=np.concatenate([labelled, x[rows]]), exclude=rows)[0]
        rows += rest.tolist()
        gains += [0.0] * len(rest)
    return rows, gains


@settings(max_examples=80, deadline=None)
@given(pools(kinds=FEW), st.integers(0, 4), st.floats(0.01, 1.0))
def test_brute_force(pool, m, share):
    """Rows and gains are those of the greedy cover by all distances, which farthest-first follows, on every kind of data."""
    x, k = pool
    delta = max(float(np.quantile(all_distances(x), share, method="nearest")), 1e-6)
    labelled = x[:m] + np.float32(0.25)
    candidates = Candidates(shards=LocalShards.of_array(x), labelled=labelled)
    result = choose(candidates, strategy="prob_cover", budget=k, args={"delta": delta}, near_duplicates=False)
    rows, gains = brute(x, k, delta, labelled)
    np.testing.assert_array_equal(result.rows, rows)
    np.testing.assert_array_equal(result.gain, gains)
    np.testing.assert_array_equal(prob_cover(x, k, delta=delta, labelled=labelled), rows)


@settings(max_examples=100, deadline=None)
@given(pools(most=200, kinds=FEW), st.sampled_from([0.05, 0.5, 0.95, 1.0]), st.integers(1, 8))
def test_radius_is_the_largest_pure_one(pool, purity, count):
    """At the radius enough balls hold one pseudo-label only; at the next larger distance too few do."""
    x, _ = pool
    distance, label = all_distances(x), clusters(x, count, 5).nearest
    radius = pure_radius(x, purity=purity, count=count, seed=5)

    def pure(radius):
        return np.mean([(label[row <= radius] == label[i]).all() for i, row in enumerate(distance)])

    assert pure(radius) >= purity
    if len(set(label.tolist())) == 1:
        assert (distance <= radius).all()
    else:
        assert pure(np.nextafter(radius, np.inf)) < purity


def test_balls_reach_groups_that_pseudo_labels_cut():
    """The radius found is that of groups, though there are more of them than clusters: next to each of as many rows gets one."""
    rng = np.random.default_rng(1)
    weight = rng.gamma(2, size=60)
    of = rng.choice(60, 6000, p=weight / weight.sum())
    x = (rng.standard_normal((60, 64))[of] + rng.standard_normal((6000, 64))).astype(np.float32)
    assert len(set(of[prob_cover(x, 60)].tolist())) >= 54


@pytest.mark.parametrize("exact", [1000, 0], ids=["exact", "lists"])
@pytest.mark.parametrize("kind", KINDS)
def test_cut_balls_are_whole_when_they_are_chosen(kind, exact):
    """With two edges a row, what a chosen row covers is still its whole ball, also where it was made beside another one."""
    x = data(kind, 300, 4, 0)
    distance = all_distances(x)
    for radius in (float(np.quantile(distance, 0.1, method="nearest")), float(distance.max())):
        balls = Balls(x, radius, 2, 0, exact=exact)
        covered = np.arange(300) % 3 == 0
        for row in range(0, 300, 29):
            found = balls.uncovered(row, covered, lambda row=row: np.arange(row, 300))
            np.testing.assert_array_equal(found, np.flatnonzero((distance[row] <= radius) & ~covered))


def test_few_edges_still_cover_almost_as_much():
    """Counting gains by five edges a row costs little of what is covered."""
    x = data("clustered", 1000, 3, 0)
    delta = 0.01
    distance = all_distances(x)

    def covered(rows):
        return (distance[rows] <= delta).any(axis=0).mean()

    whole, cut, chance = (
        covered(rows) for rows in (prob_cover(x, 20, delta=delta), prob_cover(x, 20, delta=delta, edges=5), np.arange(20))
    )
    assert chance < cut - 0.02
    assert cut > 0.8 * whole


@pytest.mark.parametrize("exact", [100_000, 0], ids=["exact", "lists"])
def test_balls_that_are_too_large_are_compared_by_rows_drawn(exact, monkeypatch):
    """Where every ball holds more rows than are counted, the larger group still comes first, and a pick covers its whole ball."""
    monkeypatch.setattr(Balls.__init__, "__kwdefaults__", {"exact": exact, "kept": None})
    of = np.repeat([0, 1, 2], [3000, 12_000, 6000])
    x = (100 * np.eye(3, 8)[of] + 0.1 * np.random.default_rng(0).standard_normal((len(of), 8))).astype(np.float32)
    candidates = Candidates(shards=LocalShards.of_array(x))
    result = choose(candidates, strategy="prob_cover", budget=4, args={"delta": 10.0, "edges": 40})
    assert of[result.rows[:3]].tolist() == [1, 2, 0]
    assert result.gain.tolist() == [12_000, 6000, 3000, 0]
    assert len(Balls(x, 10.0, 40, 0, exact=exact).edges.index) <= 40 * len(x)


@pytest.mark.parametrize("kind", ["copies", "one-hot", "outliers"])
def test_the_number_of_edges_is_kept_to_where_rounding_decides_what_balls_hold(kind):
    """Copies within a radius far below the spread, distances that are the radius itself, rows a trillion times as far out as the others."""
    rng = np.random.default_rng(2)
    if kind == "copies":
        x, radius = rng.standard_normal((2, 16))[rng.integers(0, 2, 12_000)], 1e-9
    elif kind == "one-hot":
        x, radius = np.eye(8)[rng.integers(0, 8, (12_000, 4))].reshape(-1, 32), np.nextafter(np.sqrt(2), 0)
    else:
        x, radius = rng.standard_normal((12_000, 4)), 1.0
        x[:3] *= 1e12
    x = x.astype(np.float32)
    held = float(np.mean([(np.sqrt(distances_to(x, row)) <= radius).sum() - 1 for row in x[::40]]))
    for most in (2, 40):
        edges = Balls(x, float(radius), most, 0).edges
        assert len(edges.index) <= 1.5 * most * len(x)
        assert len(edges.index) >= 0.5 * min(most, held) * len(x)


def test_rows_drawn_choose_nearly_as_well():
    """Counted by a third of what balls hold, about 28 rows each, the batch covers nearly as much, whatever the number of threads."""
    rng = np.random.default_rng(0)
    x = (4 * rng.standard_normal((60, 6))[rng.integers(0, 60, 12_000)] + rng.standard_normal((12_000, 6))).astype(np.float32)
    delta = 3.0

    def covered(rows):
        return float(np.mean([(distances_to(x[rows], row) <= delta**2).any() for row in x[::10]]))

    whole, drawn = (prob_cover(x, 60, delta=delta, edges=edges) for edges in (len(x), 40))
    assert drawn.tolist() != whole.tolist()
    assert covered(drawn) >= 0.95 * covered(whole)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        np.testing.assert_array_equal(prob_cover(x, 60, delta=delta, edges=40), drawn)
    finally:
        torch.set_num_threads(threads)


def test_in_a_query():
    """Radius, share covered and recall are told; gains fall to 0 where farthest-first took over."""
    x = data("clustered", 120, 3, 0)
    candidates = Candidates(shards=LocalShards.of_array(x))
    result = choose(candidates, strategy="prob_cover", budget=10, args={"clusters": 4})
    assert result.facts["delta"] == pure_radius(x, count=4)
    assert (result.facts["index"], result.facts["recall"]) == ("exact", 1.0)
    everything = choose(candidates, strategy="prob_cover", budget=10, args={"delta": 100.0})
    assert everything.gain.tolist() == [120.0] + [0.0] * 9
    assert everything.facts["covered"] == 1.0
    np.testing.assert_array_equal(everything.rows, [0, *greedy(x, 9, labelled=x[:1], exclude=[0])[0]])


def test_blocked_rows_are_passed_over():
    """Near-duplicates of chosen rows are passed over while covering and after it, until nothing is left."""
    x = np.repeat(data("normal", 12, 3, 0), 10, axis=0)
    candidates = Candidates(shards=LocalShards.of_array(x))
    for delta in (1e-3, 50.0):
        result = choose(candidates, strategy="prob_cover", budget=40, near_duplicates=0.9999, args={"delta": delta})
        assert sorted(row // 10 for row in result.rows) == list(range(12))


def test_refusals():
    """A radius that is not above 0, a purity out of range, rows beyond the memory and NaN are errors that say so."""
    x = data("normal", 10, 3, 0)
    for delta in (0, -1.0, float("nan")):
        with pytest.raises(QueryError, match=r"`delta` is"):
            prob_cover(x, 2, delta=delta)
    with pytest.raises(QueryError, match=r"`purity` is 1\.5"):
        prob_cover(x, 2, purity=1.5)
    with pytest.raises(QueryError, match="prob_cover gathers its 10 candidates"):
        prob_cover(x, 2, memory=100)
    x[3] = np.nan
    with pytest.raises(DataError, match="rows 3"):
        prob_cover(x, 2)

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import KINDS, data, distances_to, pools

from raystream.selection.near_rows import NearRows
from raystream.selection.neighbours import Index, inverted_lists, nearest_neighbours, within


@pytest.fixture(autouse=True, params=[True, False], ids=["coarse", "float32"])
def units(request, monkeypatch):
    """Whether the processor is taken to have bfloat16 units."""
    monkeypatch.setattr("raystream.selection.bounds.has_bfloat16_units", lambda: request.param)


def all_squared(x):
    """(n, n) float64, the diagonal infinite."""
    squared = np.array([distances_to(x, row) for row in x])
    np.fill_diagonal(squared, np.inf)
    return squared


@settings(max_examples=60, deadline=None)
@given(pools(), st.integers(1, 12), st.integers(0, 10**6))
def test_none_that_belongs_there_is_missed(pool, k, seed):
    """In any order and from any stretches: all others within a radius that are among the k nearest are found, and none twice."""
    x, _ = pool
    n, rng = len(x), np.random.default_rng(seed)
    order = rng.permutation(n)
    rows, squared = NearRows(x, order), all_squared(x)[order][:, order]
    places = rng.permutation(n)[: rng.integers(1, n + 1)]
    cut = int(rng.integers(0, n + 1))
    finite = squared[np.isfinite(squared)]
    radius = float(np.sqrt(rng.choice(finite))) if len(finite) else 1.0
    for most, reach, stretches in ((k, radius, [(0, n)]), (k, np.inf, [(cut, n), (0, cut)]), (None, radius, [(cut, n)])):
        near = rows.find(places, [stretch for stretch in stretches if stretch[1] > stretch[0]] or [(0, n)], most, reach)
        seen = np.concatenate([np.arange(*stretch) for stretch in stretches if stretch[1] > stretch[0]] or [np.arange(n)])
        assert (np.diff(near.row) >= 0).all()
        assert (near.upper >= squared[places[near.row], near.place] * (1 - 1e-13)).all()
        for i, place in enumerate(places):
            found = near.place[near.row == i]
            assert place not in found
            assert len(set(found.tolist())) == len(found)
            wanted = seen[(np.sqrt(squared[place, seen]) <= reach) & (seen != place)]
            if most is not None and len(wanted) > most:
                wanted = wanted[squared[place, wanted] < np.sort(squared[place, wanted])[most - 1]]
            assert set(wanted.tolist()) <= set(found.tolist())


@pytest.mark.parametrize("kind", ["equal", "one_hot", "duplicated", "normal"])
def test_rows_that_products_cannot_tell_apart(kind):
    """More rows than fit a block, most of them equally near: k true neighbours each, in bounded time and memory."""
    x = data(kind, 1500, 12, 0)
    found = nearest_neighbours(x, 3)
    for i in range(0, 1500, 100):
        squared = distances_to(x, x[i])
        squared[i] = np.inf
        assert len(set(found.index[i].tolist())) == 3
        np.testing.assert_array_equal(found.distance[i], np.sqrt(np.sort(squared)[:3]))
    edges = within(x, float(found.distance.max()), 3)
    np.testing.assert_array_equal(np.diff(edges.start), 3)


@pytest.mark.parametrize("kind", KINDS)
def test_balls_are_whole(kind):
    """With inverted lists, of which only those that can meet a ball are looked at: exactly the rows within the radius."""
    x = data(kind, 900, 6, 0)
    index = Index(x, 0, exact=0)
    squared = all_squared(x)
    np.fill_diagonal(squared, 0)
    for share in (0.001, 0.1, 1.0):
        radius = float(np.sqrt(np.quantile(squared, share, method="nearest")))
        rows = np.array([0, 17, 899])
        for row, ball in zip(rows, index.balls(rows, radius), strict=True):
            np.testing.assert_array_equal(ball, np.flatnonzero(np.sqrt(squared[row]) <= radius))
            np.testing.assert_array_equal(ball, index.balls(np.array([row]), radius)[0])


def test_lists_that_are_far_are_left_out():
    """Of separate clusters, a small ball meets few lists, and the lists of all its rows."""
    x = data("clustered", 2000, 5, 0)
    lists = inverted_lists(x, 0)
    spans = lists.spans(x)
    for row in range(0, 2000, 250):
        inside = np.flatnonzero(np.sqrt(distances_to(x, x[row])) <= 0.01)
        met = lists.meeting(spans, x[row], 0.01)
        assert set(lists.list_of[inside].tolist()) <= set(met.tolist())
        assert len(met) <= len(lists.members) / 2


def test_the_nearest_of_many_are_kept():
    """Edges are cut to the nearest, by float64, where bfloat16 leaves several open: more rows and columns than a block."""
    x = data("normal", 2500, 8, 3)
    edges = within(x, 2.5, 20)
    for row in range(0, 2500, 83):
        squared = distances_to(x, x[row])
        squared[row] = np.inf
        inside = np.flatnonzero(np.sqrt(squared) <= 2.5)
        nearest = np.sort(inside[np.argsort(squared[inside], kind="stable")[:20]])
        np.testing.assert_array_equal(edges.index[edges.start[row] : edges.start[row + 1]], nearest)


def test_lists_seen_from_their_own_middle():
    """Clumps far from the middle of all, in several groups of stretches: bounds relative to a block, the same neighbours."""
    draw = np.random.default_rng(0)
    x = np.concatenate([centre + draw.normal(size=(1500, 6)) for centre in draw.normal(size=(4, 6)) * 200]).astype(np.float32)
    rows = NearRows(x, np.arange(len(x)))
    places, stretches = np.arange(4600, 4700), [(4500, 6000), (1500, 3000), (3000, 4500)]
    local, there, whole = rows.around(places, stretches)
    assert (local is not rows) == rows.encoding.bfloat16
    np.testing.assert_array_equal(local.order[there], places)
    near = local.find(there, whole, 20, np.inf)
    for i in range(0, 100, 9):
        squared = distances_to(x, x[places[i]])
        squared[[*range(1500), places[i]]] = np.inf
        found = local.order[near.place[near.row == i]]
        assert set(np.flatnonzero(squared <= np.sort(squared)[19]).tolist()) <= set(found.tolist())
        assert len(found) < 200 or local is rows

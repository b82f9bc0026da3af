from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import KINDS, data, distances_to, pools

from raystream.selection import near_pairs
from raystream.selection.near_pairs import nearest_of_groups, pairs_within
from raystream.selection.near_rows import NearRows, Room, counts, where
from raystream.selection.neighbours import (
    Index,
    InvertedLists,
    inverted_lists,
    nearest_neighbours,
    within,
)


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
        rows, bare = np.array([0, 17, 899]), np.zeros(len(x), dtype=bool)
        for row, ball in zip(rows, index.balls(rows, radius, bare), strict=True):
            np.testing.assert_array_equal(ball, np.flatnonzero(np.sqrt(squared[row]) <= radius))
            np.testing.assert_array_equal(ball, index.balls(np.array([row]), radius, bare)[0])
            # what is covered may be left out of it, and is where a whole list is
            covered = np.random.default_rng(1).random(len(x)) < 0.9
            [part] = index.balls(np.array([row]), radius, covered)
            assert set(ball[~covered[ball]]) <= set(part) <= set(ball)
            np.testing.assert_array_equal(index.balls(np.array([row]), radius, ~bare)[0], [row])


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


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.02, 0.5, 1.0])
def test_where_numbers_are_at_most_a_limit(share):
    """Sparse or dense, of any width, in memory that held another answer before."""
    draw, room = np.random.default_rng(0), Room()
    for shape in [(64, 4096), (3, 8), (7, 16), (1, 8), (64, 4000)]:
        found = draw.integers(0, 10_000, shape).astype(np.int16)
        near = room.at_most(found, np.full(len(found), 10_000 * share - 1, dtype=np.int16))
        np.testing.assert_array_equal(near, found <= 10_000 * share - 1)
        np.testing.assert_array_equal(counts(near), near.sum(axis=1))
        np.testing.assert_array_equal(where(near), np.nonzero(near))


KINDS_OF_PAIRS = {
    "integers": lambda draw, shape: draw.integers(0, 3, shape),
    "close": lambda draw, shape: 1000 + 1e-4 * draw.integers(0, 4, shape),
    "tiny": lambda draw, shape: draw.normal(size=shape) * 1e-25,
    "huge": lambda draw, shape: draw.normal(size=shape) * 1e19,
    "normal": lambda draw, shape: draw.normal(size=shape),
}


@pytest.mark.parametrize("way", ["products", "differences"])
@pytest.mark.parametrize("kind", KINDS_OF_PAIRS)
def test_pairs_that_float32_decides(kind, way, monkeypatch):
    """Which pairs are within a radius, and the nearest of each group, as float64 has it, ties to the lower row."""
    monkeypatch.setattr(near_pairs, "_DIFFERENCE", 0 if way == "differences" else 1000)
    monkeypatch.setattr(near_pairs, "_FETCHED", 0)
    monkeypatch.setattr(near_pairs, "_MULTIPLIED", 64)
    monkeypatch.setattr(near_pairs, "_OTHERS_BYTES", 200)
    draw = np.random.default_rng(0)
    for _ in range(100):
        n = int(draw.integers(2, 60))
        x = KINDS_OF_PAIRS[kind](draw, (n, int(draw.integers(1, 9)))).astype(np.float32)
        size = np.append(draw.integers(0, 40, int(draw.integers(1, 6))), 1)
        group, count = np.repeat(np.arange(len(size)), size), draw.integers(0, size + 1)
        row = np.repeat(draw.integers(0, n, len(size)), size)
        other = np.concatenate([draw.permutation(np.arange(60) % n)[:many] for many in size])
        squared = np.square(x[row].astype(np.float64) - x[other]).sum(axis=1)
        order = np.lexsort((other, squared, group))
        nearest = order[np.concatenate([start + np.arange(many) for start, many in zip(np.cumsum(size) - size, count, strict=True)])]
        found = np.flatnonzero(nearest_of_groups(x, group, row, other, count))
        key = [tuple(part) for part in np.stack([group, squared, other], axis=1)]
        assert sorted(key[i] for i in found) == sorted(key[i] for i in nearest)
        for radius in np.sqrt(draw.choice(squared, 3)):
            np.testing.assert_array_equal(pairs_within(x, row, other, radius), np.sqrt(squared) <= radius)


def test_pairs_of_rows_without_columns():
    """They are equal."""
    edges = within(np.zeros((5, 0), dtype=np.float32), 1.0, 3)
    assert np.diff(edges.start).tolist() == [3] * 5


def test_lists_that_can_be_afforded():
    """Long lists beside each other: rows meet as many others on average as were asked for, not more; at least their own."""
    near = np.array([[0, 1, 2, 3], [1, 0, 2, 3], [2, 3, 0, 1], [3, 2, 0, 1]], dtype=np.int32)
    members = [np.arange(begin, end) for begin, end in [(0, 400), (400, 800), (800, 900), (900, 1000)]]
    lists = InvertedLists(members, np.zeros(1000, dtype=np.int32), near, np.zeros((4, 2), dtype=np.float32))
    # by one list 340 = .4 * 400 + .4 * 400 + .1 * 100 + .1 * 100; by two 680, by three 840
    assert [lists.affordable(compared) for compared in (1, 340, 679, 680, 839, 840, 10_000)] == [1, 1, 1, 2, 2, 3, 4]

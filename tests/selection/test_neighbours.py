from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import KINDS, data, distances_to, pools

from raystream.selection.neighbours import inverted_lists, nearest_neighbours, within


def all_squared(x):
    """(n, n) float64, the diagonal infinite."""
    squared = np.array([distances_to(x, row) for row in x])
    np.fill_diagonal(squared, np.inf)
    return squared


@settings(max_examples=150, deadline=None)
@given(pools(), st.integers(1, 12))
def test_exact_neighbours_are_those_of_brute_force(pool, k):
    """The distances are those of float64 brute force on every kind of data; a row is never its own neighbour, whatever its duplicates."""
    x, _ = pool
    found = nearest_neighbours(x, k)
    k = min(k, len(x) - 1)
    assert found.index.shape == found.distance.shape == (len(x), k)
    assert (found.index != np.arange(len(x))[:, None]).all()
    squared = all_squared(x)
    np.testing.assert_array_equal(found.distance, np.sqrt(np.take_along_axis(squared, found.index.astype(np.int64), axis=1)))
    np.testing.assert_array_equal(found.distance, np.sqrt(np.sort(squared, axis=1)[:, :k]))
    assert all(len(set(row.tolist())) == k for row in found.index)
    assert found.facts == {"index": "exact", "recall": 1.0}


@settings(max_examples=150, deadline=None)
@given(pools(), st.integers(0, 10**6))
def test_edges_are_those_of_brute_force(pool, pick):
    """Exactly the pairs at a float64 distance of at most the radius, which may be one of the distances."""
    x, _ = pool
    squared = all_squared(x)
    radius = float(np.sqrt(np.sort(squared[np.isfinite(squared)])[pick % (len(x) * (len(x) - 1))])) if len(x) > 1 else 1.0
    edges = within(x, radius, len(x))
    for i in range(len(x)):
        np.testing.assert_array_equal(edges.index[edges.start[i] : edges.start[i + 1]], np.flatnonzero(np.sqrt(squared[i]) <= radius))


def test_capped_edges_are_the_nearest():
    """Of more rows within the radius, as many as allowed are kept, the nearest, and the row is marked."""
    x = data("normal", 200, 3, 0)
    squared = all_squared(x)
    edges = within(x, 1.0, 5)
    many = (squared <= 1).sum(axis=1)
    np.testing.assert_array_equal(np.diff(edges.start), np.minimum(many, 5))
    np.testing.assert_array_equal(edges.full, many >= 5)
    for i in np.flatnonzero(many >= 5):
        np.testing.assert_array_equal(edges.index[edges.start[i] : edges.start[i + 1]], np.sort(np.argsort(squared[i])[:5]))


@pytest.mark.parametrize("kind", KINDS)
def test_recall_of_inverted_lists_is_what_is_reported(kind):
    """Few of the lists are compared, no row is its own neighbour, distances are true, and at least as many are right as is reported."""
    x = data(kind, 3000, 8, 1)
    found = nearest_neighbours(x, 10, exact=0)
    assert (found.index != np.arange(3000)[:, None]).all()
    some = np.unique(np.linspace(0, 2999, 1000).astype(np.int64))
    right = 0
    for i in some:
        squared = distances_to(x, x[i])
        np.testing.assert_array_equal(found.distance[i], np.sqrt(squared[found.index[i]]))
        squared[i] = np.inf
        right += (found.distance[i] <= np.sqrt(np.sort(squared)[9])).sum()
    assert found.facts["recall"] >= 0.95
    assert right / (10 * len(some)) >= found.facts["recall"] - 1e-3
    assert "inverted lists" in found.facts["index"]


def test_recall_is_told_when_it_is_low():
    """Data without structure, and few rows compared: the recall is lower than wanted, and equals brute force."""
    x = data("normal", 4000, 32, 0)
    found = nearest_neighbours(x, 10, exact=0, compared=400)
    some = np.unique(np.linspace(0, 3999, 1000).astype(np.int64))
    right = 0
    for i in some:
        squared = distances_to(x, x[i])
        squared[i] = np.inf
        right += np.isin(found.index[i], np.argsort(squared)[:10]).sum()
    assert found.facts["recall"] < 0.7
    assert found.facts["recall"] == pytest.approx(right / (10 * len(some)), abs=1e-3)
    edges = within(x, 5.0, 10, exact=0, compared=400)
    assert edges.facts == found.facts
    for i in some:
        near = found.index[i][found.distance[i] <= 5.0]
        np.testing.assert_array_equal(edges.index[edges.start[i] : edges.start[i + 1]], np.sort(near))


@pytest.mark.parametrize("exact", [0, 10_000])
def test_threads_change_nothing(exact):
    """The same neighbours from any number of torch threads, which is left as it was."""
    x = data("clustered", 3000, 16, 0)
    one = nearest_neighbours(x, 10, exact=exact)
    before = torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        try:
            other = nearest_neighbours(x, 10, exact=exact)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        np.testing.assert_array_equal(one.index, other.index)
        np.testing.assert_array_equal(one.distance, other.distance)


def test_lists_are_cut_where_they_are_long():
    """Rows that are all alike are in lists of bounded length; each row is in one list, which comes first in its own order."""
    for kind in ("equal", "clustered"):
        lists = inverted_lists(data(kind, 2500, 4, 0), 0)
        assert max(map(len, lists.members)) <= 4 * 50
        np.testing.assert_array_equal(np.sort(np.concatenate(lists.members)), np.arange(2500))
        np.testing.assert_array_equal(lists.near[:, 0], np.arange(len(lists.members)))
        np.testing.assert_array_equal(np.sort(lists.near, axis=1)[0], np.arange(len(lists.members)))

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import KINDS, data, distances_to, greedy, pools, unit

from raystream.errors import QueryError
from raystream.selection import ArrayPart, Candidates, Constraints, LocalShards, Quota, choose, core_set, k_center_two_round, two_rounds
from raystream.selection.repeats import NearDuplicates, cosines


def brute(x, k, eps, piece, labelled):
    """Both rounds by sequential float64 greedy: rows, kept rows, and the larger of both rounds' distances of pick k + 1."""
    labelled = labelled if len(labelled) else None
    kept, spread = [], 0.0
    for begin in range(0, len(x), piece):
        part = x[begin : begin + piece]
        rows, _, distance = greedy(part, len(part), labelled=labelled)
        count = len(rows)
        if len(rows) > k:
            count = next(j for j in range(k, 4 * k + 1) if j == min(4 * k, len(rows)) or distance[j] <= eps / 2 * distance[k])
            spread = max(spread, distance[k])
        kept += [begin + row for row in rows[:count]]
    kept = np.sort(kept)
    rows, _, distance = greedy(x[kept], k + 1, labelled=labelled)
    return kept[rows[:k]], kept, max(spread, distance[k] if len(rows) > k else 0.0)


def radius(x, centres):
    return np.sqrt(np.min([distances_to(x, c) for c in centres], axis=0).max())


@settings(max_examples=100, deadline=None)
@given(pools(), st.integers(0, 3), st.sampled_from([1, 4, 17, 1000]), st.sampled_from([0.1, 0.5, 1.9]), st.sampled_from([1, 2, 7, 64]))
def test_both_rounds_are_float64_greedy(pool, m, piece, eps, shards):
    """Rows, kept rows, radius and its ratio to what is proven equal brute force, whatever the sharding."""
    x, k = pool
    labelled = x[:m] + np.float32(0.5)
    found = two_rounds(LocalShards.of_array(x, shards=shards, block=7), k, eps=eps, piece=piece, labelled=labelled)
    rows, kept, spread = brute(x, k, eps, piece, labelled)
    np.testing.assert_array_equal(found.rows, rows)
    assert len(rows) == min(k, len(x))
    assert (found.kept, found.pieces) == (len(kept), -(-len(x) // piece))
    assert found.radius == radius(x, np.concatenate([x[rows], labelled]))
    assert found.within == (found.radius / (spread / 2) if spread > 0 else 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_on_larger_data(kind):
    """Several pieces of each kind of data."""
    x = data(kind, 1000, 6, 2)
    np.testing.assert_array_equal(k_center_two_round(x, 20, piece=300), brute(x, 20, 0.5, 300, ())[0])


@given(st.integers(0, 10**6), st.sampled_from([3, 5, 12]))
@settings(max_examples=15, deadline=None)
def test_certificate_holds(seed, piece):
    """The radius is at most `within` times the optimum, found among all sets of three rows out of twelve."""
    x = data("normal", 12, 2, seed)
    found = two_rounds(LocalShards.of_array(x), 3, piece=piece)
    best = min(radius(x, x[list(c)]) for c in itertools.combinations(range(12), 3))
    assert found.radius <= found.within * best * (1 + 1e-12)


def test_pieces_that_hand_on_every_row_change_nothing():
    """Up to four times k rows and a small eps: the second round is farthest-first on all rows."""
    x = data("normal", 80, 3, 0)
    np.testing.assert_array_equal(k_center_two_round(x, 10, piece=40, eps=0.001), core_set(x, 10))


def test_parts_and_positions_and_cosine():
    """Candidates that are some rows of several float16 parts, in the cosine metric, give what one array of unit rows gives."""
    x = data("normal", 300, 5, 0).astype(np.float16)
    positions = [np.arange(0, 100, 3), None, np.arange(5, 90)]
    shards = LocalShards([ArrayPart(part) for part in np.split(x, [100, 180])], positions, metric="cosine")
    kept = unit(np.concatenate([x[:100][positions[0]], x[100:180], x[180:][positions[2]]]))
    np.testing.assert_array_equal(two_rounds(shards, 15, piece=64).rows, brute(kept, 15, 0.5, 64, ())[0])


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_constraints_fill_the_batch(memory):
    """Where constraints leave too few of the kept rows, the others come from all rows, in the order of farthest-first."""
    x = data("normal", 400, 3, 0)
    rare = np.zeros(400, dtype=np.int32)
    rare[k_center_two_round(x, 40, piece=100)] = 1
    quota = Quota("split", rare, ("a", "b"), np.array([400, 0]), np.array([0, 0]))
    constraints = Constraints(300, quotas=(quota,))
    found = two_rounds(LocalShards.of_array(x), 300, piece=100, constraints=constraints, memory=memory)
    assert len(np.unique(found.rows)) == 300
    assert not rare[found.rows].any()
    assert constraints.taken.tolist() == sorted(found.rows.tolist())


def test_near_duplicates_in_the_second_round():
    """Two pieces may hand on equal rows: the batch holds one of them."""
    x = np.repeat(data("normal", 50, 4, 0), 2, axis=0)[np.r_[0:100:2, 1:100:2]]
    found = two_rounds(LocalShards.of_array(x), 30, piece=50, constraints=Constraints(30, near_duplicates=NearDuplicates(0.999, 4)))
    alike = cosines(x[found.rows][:, None], x[found.rows][None]) >= 0.999
    assert alike.sum() == len(found.rows) == 30


def test_what_the_manifest_is_told():
    """The ratio is given only where it is proven; rows that had to be in the batch are centres in both rounds."""
    x = data("clustered", 300, 4, 0)
    candidates = Candidates(shards=LocalShards.of_array(x))
    found = choose(candidates, strategy="k_center_two_round", budget=20, args={"piece": 100, "eps": 0.2}, must_include=np.array([7, 150]))
    np.testing.assert_array_equal(found.rows[:2], [7, 150])
    assert 7 not in found.rows[2:]
    assert found.facts["within"] >= 1
    assert found.facts["pieces"] == 3
    bound = choose(candidates, strategy="k_center_two_round", budget=20, near_duplicates=0.9999)
    assert "within" not in bound.facts


def test_refusals():
    """eps and piece out of range are refused by name, and nothing to choose from is an empty answer."""
    x = data("normal", 10, 3, 0)
    for options in ({"eps": 0.0}, {"piece": 0}):
        with pytest.raises(QueryError, match=r"`eps`"):
            k_center_two_round(x, 3, **options)
    assert len(k_center_two_round(x, 0)) == len(k_center_two_round(x[:0], 3)) == 0

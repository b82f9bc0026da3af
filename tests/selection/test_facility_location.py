from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import data, distances_to, greedy, pools, unit

from raystream.errors import DataError, QueryError
from raystream.query import Select
from raystream.query.catalogue import TRAITS
from raystream.selection import ArrayPart, Candidates, Cost, LocalShards, Quota, choose, facility_location, row_hash, u_herding
from raystream.selection.constraints import Constraints
from raystream.selection.coverage import Coverage
from raystream.selection.hashing import draw
from raystream.selection.kernels import Cosine, Gaussian
from raystream.selection.lazy_greedy import LazyGreedy
from raystream.selection.repeats import cosines
from raystream.selection.strategies.facility_location import target_count, target_rows
from raystream.selection.strategies.u_herding import default_delta


def cosine(squared):
    return np.maximum(1 - squared / 2, 0)


def gaussian(delta):
    def kappa(squared):
        exponent = squared / delta**2
        return np.where(exponent <= 80, np.exp(-exponent), 0)

    return kappa


def similarities(x, targets, kappa):
    """(n, m) by the definition; rows of zeros resemble nothing."""
    found = np.array([kappa(distances_to(targets, row)) for row in x]).reshape(len(x), len(targets))
    return found * x.any(axis=1)[:, None] * targets.any(axis=1)


def plain_greedy(x, k, kappa, *, weight=None, labelled=None, targets=None, blocks=None):
    """Every gain in every step, not lazily: (rows, gains); ends when nothing adds anything."""
    x = unit(x)
    targets = np.arange(len(x)) if targets is None else targets
    weight = np.ones(len(x)) if weight is None else weight
    alike = similarities(x, x[targets], kappa)
    best = np.zeros(len(targets))
    if labelled is not None and len(labelled):
        best = np.maximum(best, similarities(unit(labelled), x[targets], kappa).max(axis=0))
    alive, rows, gains = np.ones(len(x), dtype=bool), [], []
    while len(rows) < k:
        gain = (np.maximum(alike - best, 0) * weight[targets]).sum(axis=1)
        gain[~alive] = 0
        row = int(np.argmax(gain))
        if gain[row] <= 0:
            break
        alive[row] = False
        if blocks is not None and any(blocks(x[row], x[other]) for other in rows):
            continue
        rows.append(row)
        gains.append(gain[row])
        best = np.maximum(best, alike[row])
    return rows, gains


def test_greedy_reaches_its_guarantee():
    """At n = 12 and k = 3 the value is at least 1 - 1/e of the best of all 220 batches, and usually nearly it."""
    shares = []
    for seed in range(40):
        x = data("normal" if seed % 2 else "clustered", 12, 3, seed)
        score = np.random.default_rng(seed).random(12)
        for rows, weight, kappa in (
            (facility_location(x, 3), np.ones(12), cosine),
            (u_herding(x, 3, score=score, delta=0.7), score, gaussian(0.7)),
        ):
            alike = similarities(unit(x), unit(x), kappa)
            value = {batch: (alike[list(batch)].max(axis=0) * weight).sum() for batch in itertools.combinations(range(12), 3)}
            shares.append(value[tuple(sorted(rows.tolist()))] / max(value.values()))
    assert min(shares) >= 1 - 1 / np.e
    assert np.mean(shares) > 0.97


@settings(max_examples=60, deadline=None)
@given(pools(), st.integers(0, 4), st.sampled_from([1, 2, 7, 64]), st.integers(0, 10**6))
def test_order_is_that_of_plain_greedy(pool, m, shards, seed):
    """On any data, labelled rows and sharding: plain greedy's rows while something is gained, farthest-first's after that."""
    x, k = pool
    rng = np.random.default_rng(seed)
    labelled = x[rng.integers(0, len(x), m)]
    score = rng.integers(0, 3, len(x)) / 2
    keys = row_hash(0, np.arange(len(x)))
    candidates = Candidates(score, keys, LocalShards.of_array(x, shards=shards, block=7), labelled)
    weight = score if score.any() else np.ones(len(x))
    for strategy, plain, args in (
        ("facility_location", plain_greedy(x, k, cosine, labelled=labelled), {}),
        ("u_herding", plain_greedy(x, k, gaussian(0.5), weight=weight, labelled=labelled), {"delta": 0.5}),
    ):
        found = choose(candidates, strategy=strategy, budget=k, args=args, near_duplicates=False)
        rows, gain = plain
        added = int(np.count_nonzero(found.gain))
        # sums of equal numbers in another order differ in the last bits
        assert added == len(rows)
        np.testing.assert_allclose(found.gain[:added], gain, rtol=1e-12)
        np.testing.assert_array_equal(found.rows[:added], rows)
        assert len(set(found.rows.tolist())) == min(k, len(x))
        assert found.facts["by_distance"] == min(k, len(x)) - added
        if 0 < added < min(k, len(x)):
            covered = np.concatenate([labelled, x[rows]])
            rest = greedy(x, len(found.rows) - added, labelled=covered, exclude=rows)[0]
            np.testing.assert_array_equal(found.rows[added:], rest)


@pytest.mark.parametrize("kind", ["normal", "clustered", "duplicated", "one_hot", "counts", "offset", "unit"])
@pytest.mark.parametrize("count", [900, 300])
def test_order_holds_on_larger_data(kind, count):
    """Many picks and stale bounds later, on a sample of targets too, the order is still plain greedy's."""
    x = data(kind, 900, 24, 1)
    score = np.random.default_rng(1).random(900)
    targets = np.sort(np.argsort(draw(row_hash(3, np.arange(900)), "targets"), kind="stable")[:count])
    rows, _ = plain_greedy(x, 40, gaussian(0.6), weight=score, targets=targets)
    np.testing.assert_array_equal(u_herding(x, 40, score=score, delta=0.6, targets=count, seed=3)[: len(rows)], rows)
    rows, _ = plain_greedy(x, 40, cosine, targets=targets)
    np.testing.assert_array_equal(facility_location(x, 40, targets=count, seed=3)[: len(rows)], rows)


@pytest.mark.parametrize("front", [1, 8, 100])
def test_rows_behind_the_front_are_not_forgotten(monkeypatch, front):
    """However few of the bounds are looked at between sorts, the order is plain greedy's."""
    monkeypatch.setattr("raystream.selection.lazy_greedy._FRONT", front)
    for kind in ("normal", "duplicated"):
        x = data(kind, 400, 5, 0)
        rows, _ = plain_greedy(x, 40, cosine)
        np.testing.assert_array_equal(facility_location(x, 40)[: len(rows)], rows)


def test_few_gains_are_defined():
    """A row's gain is computed by the definition when it leads, not once a row and pick; rows that are equal share it."""
    for kind in ("normal", "one_hot", "duplicated", "offset"):
        x = data(kind, 3000, 16, 0)
        similarity = Cosine() if kind != "offset" else Gaussian(default_delta(unit(x), x[:0]))
        lazy = LazyGreedy(LocalShards.of_array(x), Coverage(unit(x), np.ones(3000), similarity), Constraints(15))
        lazy.run(15)
        assert len(lazy.rows) == 15
        assert lazy.defined <= 100


@settings(max_examples=40, deadline=None)
@given(pools(kinds=("normal", "clustered", "duplicated", "binary")), st.sampled_from([0.5, 0.9, 0.999]))
def test_near_duplicates_are_passed_over(pool, threshold):
    """A row too like a chosen one is skipped for good and covers nothing; all three of three near-duplicates never come."""
    x, k = pool
    x = x[x.any(axis=1)]
    if not len(x):
        return
    candidates = Candidates(keys=row_hash(0, np.arange(len(x))), shards=LocalShards.of_array(x))
    found = choose(candidates, strategy="facility_location", budget=k, near_duplicates=threshold)
    rows, _ = plain_greedy(x, k, cosine, blocks=lambda a, b: cosines(a, b) >= threshold)
    np.testing.assert_array_equal(found.rows[: len(rows)], rows)


def test_quotas_costs_and_rows_that_had_to_be_in():
    """Caps, a cost budget and must-include rows hold; rows that had to be in count as covered."""
    x = data("clustered", 300, 4, 0)
    rng = np.random.default_rng(0)
    group, cost = rng.integers(0, 3, 300).astype(np.int32), rng.random(300)
    candidates = Candidates(rng.random(300), row_hash(0, np.arange(300)), LocalShards.of_array(x))
    quota = Quota("country", group, ("a", "b", "c"), most=np.array([2, 100, 0]), least=np.array([0, 0, 0]))
    for strategy in ("facility_location", "u_herding"):
        options = {"quotas": [quota], "cost": Cost("minutes", cost, 4.0), "must_include": np.array([7])}
        found = choose(candidates, strategy=strategy, budget=40, **options)
        assert found.rows[0] == 7
        assert np.count_nonzero(group[found.rows[1:]] == 0) <= 2
        assert not (group[found.rows[1:]] == 2).any()
        assert cost[found.rows].sum() <= 4.0
        assert len(set(found.rows.tolist())) == len(found.rows)
    plain = choose(candidates, strategy="facility_location", budget=5, must_include=np.array([7]))
    np.testing.assert_array_equal(plain.rows[1:], plain_greedy(x, 4, cosine, labelled=x[7:8])[0])


def test_targets_are_drawn_by_hash_and_their_number_depends_on_n_alone():
    """20,000 until 2^32 pairs are reached, then fewer, at least 2,000; which ones is decided by the rows' keys."""
    assert [target_count(n) for n in (0, 5, 20_000, 200_000, 1_000_000, 10**8)] == [0, 5, 20_000, 20_000, 4294, 2000]
    keys = row_hash(5, np.arange(100))
    rows = target_rows(keys, 10)
    assert (np.diff(rows) > 0).all()
    assert set(rows.tolist()) == set(np.argsort(draw(keys, "targets"))[:10].tolist())


def test_zero_rows_and_opposites_resemble_nothing():
    """Rows of zeros and rows that only point away from all targets come last, and no phantom similarity covers them."""
    x = np.array([[0, 0], [1, 0], [2, 0.1], [-3, 0], [0, 0]], dtype=np.float32)
    np.testing.assert_array_equal(facility_location(x, 5)[:2], [1, 3])
    assert sorted(facility_location(x, 5).tolist()) == [0, 1, 2, 3, 4]
    assert facility_location(np.zeros((4, 3), np.float32), 3).tolist() == [0, 1, 2]


def test_delta_is_the_median_distance_to_the_20th_neighbour():
    """As by brute force, however few rows there are; equal rows don't count."""
    x = unit(data("normal", 400, 6, 0))
    apart = np.sqrt(np.sort([distances_to(x, row) for row in x], axis=1)[:, 20])
    none = np.empty((0, 6), dtype=np.float32)
    assert default_delta(x, none) == np.median(apart)
    assert default_delta(x, x[[0, 0]]) == np.median(apart)
    assert default_delta(x[:1], none) == default_delta(none, none) == 1.0
    assert default_delta(np.repeat(x[:2], 30, axis=0), none) == 1.0


def test_delta_is_at_most_the_median_distance_of_labelled_rows_to_their_nearest():
    """As by brute force, up to as many as are asked; one pair that is nearly equal changes it as much as any other pair."""
    x = unit(data("normal", 400, 6, 0))
    for rows in (x[:2], x[::2], np.concatenate([x[:300], x[:40]])):
        distinct = np.unique(rows, axis=0)
        apart = np.sqrt([np.sort(distances_to(distinct, row))[1] for row in distinct])
        assert default_delta(x, rows) == min(np.median(apart), default_delta(x, x[:0]))
    assert default_delta(x, x[::2]) < default_delta(x, x[:0])
    many = unit(data("normal", 2100, 3, 1))
    asked = [np.sort(distances_to(np.unique(many, axis=0), row))[1] for row in np.unique(many, axis=0)[::3]]
    assert default_delta(many[:5], many) == np.median(np.sqrt(asked))
    near = unit(x[:1] + np.float32(1e-3))
    assert 0.9 * default_delta(x, x[::2]) < default_delta(x, np.concatenate([x[::2], near])) <= default_delta(x, x[::2])


def test_the_manifest_says_what_was_represented():
    """Targets, delta and rows by distance are facts; an explicit delta and number of targets are used."""
    x = data("normal", 50, 4, 0)
    candidates = Candidates(np.ones(50), row_hash(0, np.arange(50)), LocalShards.of_array(x))
    found = choose(candidates, strategy="u_herding", budget=12, args={"delta": 0.3, "targets": 9})
    assert found.facts == {"targets": 9, "delta": 0.3, "by_distance": 3}
    assert choose(candidates, strategy="facility_location", budget=2).facts == {"targets": 50, "by_distance": 0}


def test_float16_parts_are_the_same_rows():
    """Rows spread over float16 parts give the batch of the float32 array."""
    x = data("normal", 200, 8, 0).astype(np.float16)
    parts = LocalShards([ArrayPart(part) for part in np.split(x, [1, 90])])
    candidates = Candidates(None, row_hash(0, np.arange(200)), parts)
    found = choose(candidates, strategy="facility_location", budget=20)
    np.testing.assert_array_equal(found.rows, facility_location(x.astype(np.float32), 20))


def test_refusals():
    """Negative scores, NaN, a delta of 0, and a metric, which the definition fixes, are errors."""
    x = data("normal", 10, 3, 0)
    with pytest.raises(QueryError, match="energy can be negative"):
        u_herding(x, 2, score=-np.ones(10))
    with pytest.raises(QueryError, match=r"`delta` is 0"):
        u_herding(x, 2, score=np.ones(10), delta=0)
    with pytest.raises(DataError, match="rows 5"):
        facility_location(np.where(np.arange(10)[:, None] == 5, np.nan, x), 2)
    with pytest.raises(QueryError, match="needs hashes"):
        choose(Candidates(score=np.ones(10), shards=LocalShards.of_array(x)), strategy="u_herding", budget=2)
    for strategy in ("facility_location", "u_herding"):
        with pytest.raises(QueryError, match=r"select\.metric is not used"):
            Select(strategy=strategy, budget=2, metric="cosine")
    with pytest.raises(QueryError, match=r"select\.args\.delta is -1; expected a number above 0"):
        Select(strategy="u_herding", budget=2, args={"delta": -1})
    assert TRAITS["batch_bald"].samples
    assert not any(own.samples for name, own in TRAITS.items() if name != "batch_bald")

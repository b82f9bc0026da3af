from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import data, distances_to, greedy, pools, unit

import raystream.selection
from raystream.errors import QueryError
from raystream.selection import Candidates, LocalShards, choose, row_hash
from raystream.selection.repeats import NearDuplicates, cosines
from raystream.selection.rows import as_rows
from raystream.selection.select import STRATEGIES

FEW = ("normal", "clustered", "duplicated", "equal", "binary", "one_hot", "counts", "unit", "offset")
MOST = {"batch_bald": 50}
"""The largest budgets of strategies that have one."""
strategies = pytest.mark.parametrize("strategy", sorted(STRATEGIES))


def candidates_of(x, *, labelled=None, metric="euclidean", shards=1):
    score = np.random.default_rng(0).random(len(x)).astype(np.float32)
    keys, shards = row_hash(0, np.arange(len(x))), LocalShards.of_array(x, metric=metric, shards=shards)
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((len(x), 4, 3))
    samples = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
    probabilities = as_rows(rng.dirichlet(np.ones(4), len(x)).astype(np.float32))
    return Candidates(score, keys, shards, labelled, probabilities, samples)


def distinct(x, labelled):
    """How many rows differ from each other and from labelled ones."""
    return len(np.unique(np.concatenate([labelled, x]) + 0.0, axis=0)) - len(np.unique(labelled + 0.0, axis=0))


@strategies
@settings(max_examples=40, deadline=None)
@given(pool=pools(kinds=FEW), m=st.integers(0, 5), metric=st.sampled_from(["euclidean", "cosine"]))
def test_what_is_reported_is_true(strategy, pool, m, metric):
    """min(budget, n) distinct rows; distance, represents and radius equal brute force for every strategy."""
    x, k = pool
    k = min(k, MOST[strategy]) if strategy in MOST else k
    labelled = x[:m] + np.float32(0.5)
    result = choose(candidates_of(x, labelled=labelled, metric=metric), strategy=strategy, budget=k, metric=metric)
    space, fixed = (unit(x), unit(labelled)) if metric == "cosine" else (x, labelled)
    # rows of a direction that is there are drawn with probability zero; exact repeats are taken where nothing else is left
    short = strategy == "k_means_pp" and distinct(space, fixed) < distinct(x, labelled)
    possible = distinct(space, fixed) if short else len(x)
    assert len(set(result.rows.tolist())) == len(result.rows) == min(k, possible)
    assert (result.note is None) == (possible >= min(k, len(x)))
    centres = np.concatenate([space[result.rows], fixed])
    squared = np.array([distances_to(space, c) for c in centres])
    np.testing.assert_array_equal(result.represents, np.bincount(squared.argmin(axis=0), minlength=len(centres))[: len(result.rows)])
    assert result.certificate["radius"] == np.sqrt(squared.min(axis=0).max())
    for rank, row in enumerate(result.rows):
        before = np.concatenate([fixed, space[result.rows[:rank]]])
        expected = np.sqrt(distances_to(before, space[row]).min()) if len(before) else np.nan
        np.testing.assert_equal(result.distance[rank], expected)


@strategies
@pytest.mark.parametrize("shards", [2, 7, 64])
def test_any_number_of_shards(strategy, shards):
    """The same batch from 1, 2, 7 and 64 shards."""
    x = data("clustered", 200, 5, 0)
    one = choose(candidates_of(x), strategy=strategy, budget=30)
    many = choose(candidates_of(x, shards=shards), strategy=strategy, budget=30)
    np.testing.assert_array_equal(one.rows, many.rows)
    np.testing.assert_array_equal(one.gain, many.gain)


@strategies
@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from(["normal", "duplicated", "equal", "unit"]), n=st.integers(1, 40), over=st.integers(-39, 3),
    covered=st.sampled_from(["none", "some", "pool"]),
)  # fmt: skip
def test_any_sharding_of_any_data(strategy, kind, n, over, covered):
    """The same rows, gains and distances from 1, 2, 7 and 64 shards: k = n and above, few distinct rows, all rows labelled."""
    x, k = data(kind, n, 4, n), max(n + over, 1)
    k = min(k, MOST[strategy]) if strategy in MOST else k
    labelled = {"none": None, "some": x[::3], "pool": x}[covered]
    one, *others = (choose(candidates_of(x, labelled=labelled, shards=shards), strategy=strategy, budget=k) for shards in (1, 2, 7, 64))
    assert len(set(one.rows.tolist())) == len(one.rows)
    assert len(one.rows) == min(k, n) or one.note
    for other in others:
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_array_equal(one.gain, other.gain)
        np.testing.assert_array_equal(one.distance, other.distance)


@strategies
def test_near_duplicates_are_never_chosen(strategy):
    """No two chosen rows, and no chosen and labelled one, reach the threshold; the note says why fewer came back."""
    n, budget = (60, 50) if strategy in MOST else (300, 250)
    x = data("normal", n, 3, 0)
    labelled = x[:2] * 3
    result = choose(candidates_of(x, labelled=labelled), strategy=strategy, budget=budget, near_duplicates=0.95)
    assert 0 < len(result.rows) < budget
    left = n - len(result.rows)
    assert result.note == f"all {left} other candidates have a cosine of at least 0.95 with a chosen or labelled row"
    assert result.facts["near_duplicates"] == left
    kept = np.concatenate([x[result.rows], labelled])
    alike = cosines(kept[:, None], kept[None]) >= 0.95
    np.fill_diagonal(alike, False)
    alike[-2:, -2:] = False
    assert not alike.any()
    others = np.setdiff1d(np.arange(n), result.rows)
    assert (cosines(x[others][:, None], kept[None]) >= 0.95).any(axis=1).all()


def test_fewer_candidates_than_the_budget_need_no_note():
    """All candidates come back; why there were no more is for the caller to say."""
    x = data("normal", 20, 3, 0)
    result = choose(candidates_of(x), strategy="core_set", budget=50)
    assert (len(result.rows), result.note) == (20, None)


def test_top_k_and_random_skip_in_their_own_order():
    """Passing over near-duplicates is the same as walking the order row by row."""
    x = data("duplicated", 400, 4, 0)
    candidates = candidates_of(x)
    for strategy, order in (("top_k", np.argsort(-candidates.score, kind="stable")), ("random", np.argsort(candidates.keys))):
        kept = []
        for row in order:
            if not any(cosines(x[row], x[other]) >= 0.999 for other in kept):
                kept.append(row)
        found = choose(candidates, strategy=strategy, budget=400, near_duplicates=0.999).rows
        np.testing.assert_array_equal(found, kept)


@settings(max_examples=60, deadline=None)
@given(pools(widest=4), st.sampled_from([0.5, 0.999, 1.0]))
def test_blocking_is_the_float64_cosine(pool, threshold):
    """Rows are blocked exactly when some chosen row's float64 cosine reaches the threshold; zero rows are alike."""
    x, k = pool
    x = np.where(np.arange(len(x))[:, None] % 5 == 0, np.float32(0), x)
    blocks = NearDuplicates(threshold, x.shape[1], x[:k])
    np.testing.assert_array_equal(blocks.blocked(x), (cosines(x[:, None], x[:k][None]) >= threshold).any(axis=1))


def test_certificate_is_proven_for_plain_farthest_first_only():
    """radius / 2 bounds what any batch can reach; a weight or a constraint breaks the proof."""
    x = data("normal", 100, 3, 0)
    plain = choose(candidates_of(x), strategy="core_set", budget=10)
    rows, _, distance = greedy(x, 11)
    np.testing.assert_array_equal(plain.rows, rows[:10])
    assert plain.certificate == {"radius": distance[10], "lower_bound": distance[10] / 2}
    for options in ({"weight": 1.0}, {"near_duplicates": 0.9}):
        assert choose(candidates_of(x), strategy="core_set", budget=10, **options).certificate["lower_bound"] is None
    assert choose(candidates_of(x), strategy="k_means", budget=10).certificate["lower_bound"] is None


@settings(max_examples=30, deadline=None)
@given(pool=pools(kinds=FEW), m=st.integers(0, 3), outliers=st.integers(1, 70), shards=st.sampled_from([1, 7]))
def test_radius_without_outliers(pool, m, outliers, shards):
    """core_set's radius is that of the rows that remain once the farthest ones are left out; the bound is not proven for it."""
    x, k = pool
    labelled = x[:m] + np.float32(0.5)
    result = choose(candidates_of(x, labelled=labelled, shards=shards), strategy="core_set", budget=k, args={"outliers": outliers})
    assert len(set(result.rows.tolist())) == min(k, len(x))
    distance = np.sqrt(np.min([distances_to(x, c) for c in np.concatenate([x[result.rows], labelled])], axis=0))
    expected = np.sort(distance)[::-1][outliers] if outliers < len(x) else 0.0
    assert result.certificate == {"radius": expected, "lower_bound": None}


def test_without_embeddings():
    """top_k and random need none, and report none."""
    score = np.array([0.1, 0.9, 0.5], dtype=np.float32)
    result = choose(Candidates(score=score), strategy="top_k", budget=2)
    np.testing.assert_array_equal(result.rows, [1, 2])
    np.testing.assert_array_equal(result.gain, score[[1, 2]].astype(np.float64))
    assert (result.distance, result.represents, result.certificate) == (None, None, None)


def test_nothing_to_choose_from():
    """An empty pool is an empty batch."""
    result = choose(candidates_of(np.empty((0, 3), dtype=np.float32)), strategy="core_set", budget=3)
    assert len(result.rows) == 0
    assert result.certificate == {"radius": 0.0, "lower_bound": 0.0}


def test_refusals():
    """A strategy without what it needs, or with an unknown name, says so."""
    with pytest.raises(QueryError, match="did you mean 'k_means'"):
        choose(Candidates(), strategy="kmeans", budget=1)
    with pytest.raises(QueryError, match="needs embeddings"):
        choose(Candidates(score=np.ones(3)), strategy="core_set", budget=1)
    with pytest.raises(QueryError, match="needs a score"):
        choose(Candidates(shards=LocalShards.of_array(np.ones((2, 2)))), strategy="top_k", budget=1)
    with pytest.raises(QueryError, match="near_duplicates"):
        choose(Candidates(score=np.ones(3)), strategy="top_k", budget=1, near_duplicates=0.9)


def test_public_names():
    """The literal list equals what the package exports, sorted."""
    names = raystream.selection.__all__
    assert names == sorted(names)
    assert all(hasattr(raystream.selection, name) for name in names)

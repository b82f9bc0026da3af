from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import KINDS, data, distances_to, pools

from raystream.errors import DataError, QueryError
from raystream.query import Select
from raystream.selection import Candidates, LocalShards, choose, combine, core_set, top_k
from raystream.selection.kernels import similarity
from raystream.selection.repeats import cosines
from raystream.selection.rows import as_rows
from raystream.selection.strategies.typiclust import typicality

TAME = tuple(kind for kind in KINDS if kind not in ("tiny", "huge"))
strengths = st.fixed_dictionaries(
    {"distance": st.sampled_from([0.0, 0.5, 1.0, 3.0])},
    optional={name: st.sampled_from([0.5, 1.0, 2.0]) for name in ("score", "typicality", "similarity")},
).filter(lambda terms: any(terms.values()))


def brute_typicality(x):
    """1 / (1 + mean distance to at most 20 other rows)."""
    if len(x) == 1:
        return np.ones(1)
    distance = np.array([np.delete(np.sqrt(distances_to(x, row)), i) for i, row in enumerate(x)])
    return 1 / (1 + np.sort(distance, axis=1)[:, :20].mean(axis=1))


def utility(value, strength):
    """To the power of its strength; what is 0 everywhere counts for nothing."""
    return value**strength if value.any() else np.ones(len(value))


def worth(x, terms, score, similar):
    """The product of what stays as it is while rows are chosen."""
    result = np.ones(len(x))
    if "score" in terms:
        result = result * utility(score / max(score.max(), 1e-300), terms["score"])
    if "typicality" in terms:
        result = result * utility(brute_typicality(x), terms["typicality"])
    if "similarity" in terms:
        result = result * utility((1 + cosines(x[:, None], similar[None]).max(axis=1)) / 2, terms["similarity"])
    return result if result.any() else np.ones(len(x))


@settings(max_examples=100, deadline=None)
@given(pools(kinds=TAME), st.integers(0, 3), strengths, st.sampled_from([1, 2, 7, 64]), st.integers(0, 10**6))
def test_each_pick_has_the_largest_product(pool, m, terms, shards, seed):
    """Each row's gain is the product of utilities to the powers of their strengths, and no row that was left had a larger one."""
    x, k = pool
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 4, len(x)).astype(np.float64)
    labelled, similar = x[rng.integers(0, len(x), m)], x[rng.integers(0, len(x), 2)] + np.float32(0.25)
    similar = similar if "similarity" in terms else None
    candidates = Candidates(score, shards=LocalShards.of_array(x, shards=shards, block=7), labelled=labelled, similar_to=similar)
    found = choose(candidates, strategy="combine", budget=k, terms=terms, near_duplicates=False)
    assert len(set(found.rows.tolist())) == len(found.rows) == min(k, len(x))
    static = worth(x, terms, score, similar)
    centres = list(labelled) or [x.astype(np.float64).mean(axis=0)]
    squared = np.min([distances_to(x, c) for c in centres], axis=0)
    strength = terms["distance"] if squared.any() else 0.0
    reach = np.sqrt(squared.max()) or 1.0
    # cosines are of float32 unit rows: for rows that point the other way 1 + cosine has few digits, and its root fewer
    slack = 1e-3 if "similarity" in terms else 1e-9
    left = np.ones(len(x), dtype=bool)
    for rank, row in enumerate(found.rows):
        product = static * (np.sqrt(squared) / reach) ** strength
        assert left[row]
        np.testing.assert_allclose(found.gain[rank], product[row], rtol=1e-5, atol=slack)
        assert product[row] >= product[left].max() * (1 - 1e-5) - slack
        left[row] = False
        update = distances_to(x, x[row])
        squared = update if rank == 0 and not m else np.minimum(squared, update)


def test_shards_change_nothing():
    """The same rows and gains, bit for bit, from any number of shards and blocks of any size."""
    x = data("clustered", 400, 6, 0)
    score = np.random.default_rng(0).random(400)
    results = []
    for shards, block in ((1, 8192), (2, 100), (7, 13), (64, 1)):
        candidates = Candidates(score, shards=LocalShards.of_array(x, shards=shards, block=block), similar_to=x[:4])
        results.append(
            choose(candidates, strategy="combine", budget=60, terms=dict.fromkeys(("score", "distance", "typicality", "similarity"), 1.0))
        )
    for result in results[1:]:
        np.testing.assert_array_equal(result.rows, results[0].rows)
        np.testing.assert_array_equal(result.gain, results[0].gain)


def test_single_terms_are_the_strategies_they_name():
    """Distance alone is core_set, whatever its strength; score alone is top_k; both are weighted core_set."""
    x, score = data("normal", 300, 5, 0), np.random.default_rng(0).random(300)
    np.testing.assert_array_equal(combine(x, 40, terms={"distance": 2.0}), core_set(x, 40))
    np.testing.assert_array_equal(combine(x, 40, terms={"score": 3.0}, score=score), top_k(score, 40))
    np.testing.assert_array_equal(combine(x, 40, score=score), core_set(x, 40, score=score, weight=1.0))
    np.testing.assert_array_equal(
        combine(x, 40, terms={"score": 1.0, "distance": 0.5}, score=score), core_set(x, 40, score=score, weight=2.0)
    )


def test_similar_rows_come_first():
    """By default a batch resembles the rows that it should resemble."""
    x = data("normal", 500, 3, 0)
    found = combine(x, 20, terms={"similarity": 20.0, "distance": 1.0}, similar_to=x[:1])
    assert cosines(x[found], x[0]).mean() > 0.8
    default = combine(x, 20, score=np.ones(500), similar_to=x[:1])
    assert cosines(x[default], x[0]).mean() > cosines(x[core_set(x, 20)], x[0]).mean() + 0.2


@settings(max_examples=60, deadline=None)
@given(pools(), st.integers(1, 5), st.booleans(), st.integers(0, 10**6))
def test_similarity_is_the_largest_cosine(pool, m, zeros, seed):
    """(1 + cosine) / 2 to the most similar row; rows of zeros are like each other and unrelated to all else; equal rows are 1 exactly."""
    x, _ = pool
    rng = np.random.default_rng(seed)
    x = np.where(rng.integers(0, 5, len(x))[:, None] == 0, np.float32(0), x) if zeros else x
    similar = x[rng.integers(0, len(x), m)] * np.float32(0.5)
    found = similarity(as_rows(x), similar)
    np.testing.assert_allclose(found, (1 + cosines(x[:, None], similar[None]).max(axis=1)) / 2, atol=1e-6)
    np.testing.assert_array_equal(similarity(as_rows(x), x), np.ones(len(x)))


@settings(max_examples=60, deadline=None)
@given(pools())
def test_typicality_is_the_mean_distance_to_neighbours(pool):
    """Equal to brute force on data of any size and offset; equal rows have equal typicality."""
    x, _ = pool
    found, _ = typicality(x)
    np.testing.assert_allclose(found, brute_typicality(x), rtol=1e-5)
    _, which = np.unique(x, axis=0, return_inverse=True)
    for group in range(which.max() + 1):
        assert len(np.unique(found[which.ravel() == group])) == 1


def test_typicality_over_several_batches():
    """Rows of different batches are each other's neighbours, and far more duplicates than neighbours are no trouble."""
    x = np.concatenate([data("clustered", 1200, 4, 0), np.ones((100, 4), dtype=np.float32)])
    np.testing.assert_allclose(typicality(x)[0], brute_typicality(x), rtol=1e-5)
    np.testing.assert_array_equal(typicality(x)[0][1200:], 1.0)


def test_refusals():
    """Terms that are unknown, negative, without what they need or without any effect are refused by name."""
    x, score = data("normal", 10, 3, 0), np.ones(10)
    for options, message in (
        ({"terms": {"distanc": 1.0}}, r"`terms\.distanc` is unknown; did you mean 'distance'"),
        ({"terms": {"distance": -1.0}}, r"`terms\.distance` is -1\.0, expected a strength of at least 0"),
        ({"terms": {"distance": 0.0}}, "have no strength above 0"),
        ({"terms": {"similarity": 1.0}}, "needs rows to be similar to; give `similar_to`"),
        ({"terms": {"distance": 1.0}, "similar_to": x[:1]}, r"`similar_to` does nothing without `terms\.similarity`"),
        ({}, r"`terms\.score` needs a `score`"),
        ({"score": -score}, "negative score"),
        ({"terms": {"typicality": 1.0}, "memory": 1}, "combine gathers its 10 candidates"),
    ):
        with pytest.raises(QueryError, match=message):
            combine(x, 3, **options)
    with pytest.raises(DataError, match="similar_to embeddings have shape"):
        combine(x, 3, score=score, similar_to=np.ones((1, 2)))
    with pytest.raises(DataError, match="1 rows of `x` hold"):
        combine(np.where(np.arange(10)[:, None] == 4, np.nan, x), 3, terms={"similarity": 1.0}, similar_to=x[:1])
    with pytest.raises(QueryError, match=r"select\.terms\.scor is unknown; did you mean 'score'"):
        Select(strategy="combine", budget=1, terms={"scor": 1.0})


def test_what_needs_a_score():
    """A query needs a score for the default terms and for the term itself, not for others."""
    assert Select(strategy="combine", budget=1).needs_score
    assert Select(strategy="combine", budget=1, terms={"score": 1.0}).needs_score
    assert not Select(strategy="combine", budget=1, terms={"distance": 1.0}).needs_score


def test_nothing_to_choose_from():
    """No candidates, or nothing asked for, is an empty answer."""
    assert len(combine(np.empty((0, 3)), 2, terms={"distance": 1.0})) == 0
    assert len(combine(np.ones((2, 3)), 0, terms={"distance": 1.0})) == 0

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import KINDS, data, distances_to, greedy, pools, unit

from raystream.errors import DataError, QueryError
from raystream.selection import Candidates, LocalShards, choose, core_set, diverse, top_k


def brute(x, k, score, mix, labelled):
    """Sequential greedy on (1 - mix) * score / max + mix * distance / largest at the start."""
    starts = list(labelled) or [x.astype(np.float64).mean(axis=0)]
    largest = np.sqrt(np.min([distances_to(x, c) for c in starts], axis=0).max())
    score = score.astype(np.float64)
    offset = (1 - mix) * (score / score.max()) if score.any() else np.zeros(len(x))
    weight = np.full(len(x), mix / largest if largest > 0 else 0.0)
    return greedy(x, k, weight=weight, offset=offset, labelled=labelled if len(labelled) else None)


@settings(max_examples=80, deadline=None)
@given(pools(), st.integers(0, 4), st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]), st.sampled_from([1, 2, 7, 64]), st.integers(0, 10**6))
def test_order_is_that_of_sequential_float64_greedy(pool, m, mix, shards, seed):
    """Whatever the data, the mix and the sharding, with and without labelled rows, scores of 0 included."""
    x, k = pool
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 4, len(x)).astype(np.float32)
    labelled = x[rng.integers(0, len(x), m)]
    rows, gain, _ = brute(x, k, score, mix, labelled)
    np.testing.assert_array_equal(diverse(x, k, score=score, mix=mix, labelled=labelled), rows)
    candidates = Candidates(score, shards=LocalShards.of_array(x, shards=shards, block=7), labelled=labelled)
    found = choose(candidates, strategy="diverse", budget=k, mix=mix, near_duplicates=False)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.gain, gain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_order_holds_on_larger_data(kind):
    """Several passes later the order is still that of float64 greedy."""
    x = data(kind, 1500, 16, 1)
    score = np.random.default_rng(0).random(len(x))
    np.testing.assert_array_equal(diverse(x, 100, score=score), brute(x, 100, score, 0.5, ())[0])


def test_ends_of_the_mix():
    """0 is the ranking by score, 1 is farthest-first."""
    x, score = data("normal", 300, 5, 0), np.random.default_rng(0).random(300)
    np.testing.assert_array_equal(diverse(x, 40, score=score, mix=0.0), top_k(score, 40))
    np.testing.assert_array_equal(diverse(x, 40, score=score, mix=1.0), core_set(x, 40))


def test_cosine_is_euclidean_on_unit_rows():
    """The metric only divides rows, labelled ones too, by their lengths."""
    x, score = data("normal", 200, 5, 0), np.random.default_rng(0).random(200)
    found = diverse(x, 30, score=score, labelled=x[:3] * 2, metric="cosine")
    np.testing.assert_array_equal(found, diverse(unit(x), 30, score=score, labelled=unit(x[:3])))


def test_refusals():
    """Scores that are negative, a mix that is none and embeddings that are not finite are refused by name."""
    x = data("normal", 10, 3, 0)
    with pytest.raises(QueryError, match="10 of 10 candidates have a negative score"):
        diverse(x, 3, score=-np.ones(10))
    with pytest.raises(QueryError, match=r"`mix` is 1\.5, expected a number from 0 to 1"):
        diverse(x, 3, score=np.ones(10), mix=1.5)
    with pytest.raises(DataError, match="1 rows of `x` hold"):
        diverse(np.where(np.arange(10)[:, None] == 4, np.nan, x), 3, score=np.ones(10))

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystream.errors import DataError, QueryError
from raystream.selection import Candidates, choose, power, row_hash, softmax, softrank
from raystream.selection.hashing import uniform
from raystream.selection.strategies import ranking

SCORE = np.array([0.1, 0.7, 0.2, 0.4])
LAWS = [
    (power, 1.0, SCORE),
    (power, 2.0, SCORE**2),
    (softmax, 3.0, np.exp(3 * SCORE)),
    (softrank, 1.0, 1 / np.array([4, 1, 3, 2])),
    (softrank, 2.0, 1 / np.array([4, 1, 3, 2]) ** 2),
]
laws = pytest.mark.parametrize(("draw", "beta", "weight"), LAWS)
draws = pytest.mark.parametrize("draw", [power, softmax, softrank])


@laws
def test_pairs_follow_the_sequential_law(draw, beta, weight):
    """The first two rows are i then j as often as w_i / sum w times w_j / (sum w - w_i), by chi-squared over 20,000 seeds."""
    runs = 20_000
    seen: dict[tuple[int, ...], int] = dict.fromkeys(itertools.permutations(range(4), 2), 0)
    for run in range(runs):
        seen[tuple(draw(SCORE, 2, beta=beta, seed=run).tolist())] += 1
    total = weight.sum()
    chi = sum(
        (count - (expected := runs * weight[i] / total * weight[j] / (total - weight[i]))) ** 2 / expected for (i, j), count in seen.items()
    )
    assert chi < 31.26  # 11 degrees of freedom, one false alarm in a thousand; the seeds are fixed


@draws
def test_luck_depends_on_the_row_alone(draw):
    """Taking rows away leaves the order of the others as it was (the scores keep their ranks), and so does moving them about."""
    rng = np.random.default_rng(0)
    score, ids = np.sort(rng.random(200))[::-1], rng.permutation(200)
    whole = ids[draw(score, 200, ids=ids, seed=3)]
    if draw is not softrank:
        some = np.sort(rng.choice(200, 50, replace=False))
        part = ids[some][draw(score[some], 50, ids=ids[some], seed=3)]
        np.testing.assert_array_equal(part, whole[np.isin(whole, ids[some])])
    moved = rng.permutation(200)
    np.testing.assert_array_equal(ids[moved][draw(score[moved], 200, ids=ids[moved], seed=3)], whole)
    assert (draw(score, 200, ids=ids, seed=4) != draw(score, 200, ids=ids, seed=3)).any()


@draws
@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.25, 1.0, 1e-300, 1e300]), min_size=1, max_size=30), st.integers(1, 40))
def test_as_many_distinct_rows_as_there_can_be(draw, score, k):
    """min(k, n) distinct rows, whatever zeros and extremes there are."""
    rows = draw(np.array(score), k, seed=1)
    assert len(set(rows.tolist())) == len(rows) == min(k, len(score))


@draws
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), max_size=60), st.integers(0, 70), st.integers(1, 25))
def test_rows_are_drawn_the_same_block_by_block(draw, score, k, at_once):
    """As by one sort of all sums, however many rows are looked at together; `choose` reports these sums."""
    score = np.array(score)
    keys = row_hash(1, np.arange(len(score)))
    with np.errstate(divide="ignore"):
        value = {power: np.log(score), softmax: score, softrank: -np.log(1 + np.argsort(np.argsort(-score, kind="stable")))}[draw]
    noise = -np.log(-np.log(uniform(keys, "power")))
    order = sorted(range(len(score)), key=lambda row: (-(value + noise)[row], -noise[row] if value[row] == -np.inf else row))[:k]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_NOISE_AT_ONCE", at_once)
        patch.setattr(ranking, "_AT_ONCE", 4 * at_once)
        assert draw(score, k, seed=1).tolist() == order
        chosen = choose(Candidates(score=score, keys=keys), strategy=draw.__name__, budget=k)
    assert chosen.rows.tolist() == order
    np.testing.assert_array_equal(chosen.gain, (value + noise)[order])


def test_zero_scores_come_last_by_chance():
    """Rows of score 0 follow all others, in an order of their own draw; when all are 0 the draw is uniform."""
    score = np.where(np.arange(100) % 2 == 0, 0.0, 1e-300)
    rows = power(score, 100, seed=5)
    assert (rows[:50] % 2 == 1).all()
    assert (rows[50:] % 2 == 0).all()
    zeros = power(np.zeros(100), 100, seed=5)
    np.testing.assert_array_equal(rows[50:], zeros[zeros % 2 == 0])
    first = np.bincount([int(power(np.zeros(4), 1, seed=seed)[0]) for seed in range(4000)], minlength=4)
    assert ((first - 1000) ** 2 / 1000).sum() < 16.27  # 3 degrees of freedom, one in a thousand


@draws
def test_a_large_beta_is_top_k(draw):
    """Noise of at most 40 can't change the order when beta spreads the values further apart."""
    score = np.array([0.3, 0.9, 0.1, 0.5])
    np.testing.assert_array_equal(draw(score, 4, beta=1e5, seed=2), [1, 3, 0, 2])


def test_softrank_breaks_ties_by_row():
    """Of equal scores the lower row has the better rank."""
    np.testing.assert_array_equal(softrank(np.zeros(5), 5, beta=1e6), np.arange(5))
    np.testing.assert_array_equal(softrank(np.array([1, 3, 3, 2], dtype=np.uint8), 4, beta=1e6), [1, 2, 3, 0])


@pytest.mark.parametrize("name", ["power", "softmax", "softrank"])
def test_gain_is_the_perturbed_value(name):
    """The gains descend, and walk the same order as the plain function."""
    score = np.random.default_rng(0).random(50).astype(np.float32)
    result = choose(Candidates(score, row_hash(7, np.arange(50))), strategy=name, budget=20, args={"beta": 2.0})
    np.testing.assert_array_equal(
        result.rows, {"power": power, "softmax": softmax, "softrank": softrank}[name](score, 20, beta=2.0, seed=7)
    )
    assert (np.diff(result.gain) <= 0).all()
    if name == "power":
        noise = result.gain - 2 * np.log(score[result.rows].astype(np.float64))
        assert noise.max() < 40
        assert noise.min() > -4


def test_refusals():
    """Negative scores are refused where a power is taken, and only there; so is a beta that is not above 0."""
    negative = np.array([-1.0, 2.0])
    with pytest.raises(QueryError, match="negative score"):
        power(negative, 1)
    assert len(softmax(negative, 2)) == len(softrank(negative, 2)) == 2
    for draw in (softmax, softrank):
        with pytest.raises(DataError, match="NaN"):
            draw(np.array([1.0, np.nan]), 1)
    for draw in (power, softmax, softrank):
        with pytest.raises(QueryError, match=r"`beta` is 0"):
            draw(np.ones(2), 1, beta=0)


def test_many_rows_are_drawn_as_in_one_piece():
    """More rows than are given noise at a time: by beta log score + Gumbel noise, then rows of score 0 by noise alone."""
    n = 140_000
    score = np.random.default_rng(0).random(n, np.float32)
    score[::5] = 0
    noise = -np.log(-np.log(uniform(row_hash(2, np.arange(n)), "power")))
    with np.errstate(divide="ignore"):
        perturbed = 2.0 * np.log(score.astype(np.float64)) + noise
    order = np.lexsort((np.arange(n), -noise, -perturbed))
    np.testing.assert_array_equal(power(score, n, beta=2.0, seed=2), order)
    np.testing.assert_array_equal(power(score, 300, beta=2.0, seed=2), order[:300])
    kept = score.astype(np.float64)
    power(kept, 10)
    np.testing.assert_array_equal(kept, score)  # what was given stays as it was
    chosen = choose(Candidates(score, row_hash(2, np.arange(n))), strategy="power", budget=50, args={"beta": 2.0})
    np.testing.assert_array_equal(chosen.gain, perturbed[chosen.rows])

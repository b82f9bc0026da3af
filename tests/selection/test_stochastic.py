from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystream.errors import DataError, QueryError
from raystream.selection import ArrayPart, Candidates, Cost, LocalShards, Picked, Quota, choose, power, row_hash, softmax, softrank, walk
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


WEIGHTS = {
    "power": lambda score, beta: score**beta,
    "softmax": lambda score, beta: np.exp(beta * (score - score.max())),
    "softrank": lambda score, beta: (1.0 + np.argsort(np.argsort(-score, kind="stable"))) ** -beta,
    "random": lambda score, beta: np.ones(len(score)),
}


def chances(weights, rows, given=()):
    """The probability of each draw by its definition: the row's weight over the sum of those left."""
    left = np.ones(len(weights), dtype=bool)
    left[list(given)] = False
    found = []
    for row in rows:
        found.append(weights[row] / math.fsum(weights[left]))
        left[row] = False
    return found


@pytest.mark.parametrize("name", WEIGHTS)
@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([0.01, 0.25, 1.0, 30.0]), min_size=3, max_size=30), st.integers(1, 40), st.sampled_from([0.5, 3.0]))
def test_probabilities_are_those_of_the_draws(name, score, budget, beta):
    """Rows drawn at random first, each 1 / rows left, then the strategy's, each its weight over the sum of the weights left."""
    score, n = np.array(score), len(score)
    candidates, args = Candidates(score, row_hash(3, np.arange(n))), {} if name == "random" else {"beta": beta}
    drawn = np.array([2, 0])[: max(budget - 1, 0)]
    result = choose(candidates, strategy=name, budget=budget, drawn=drawn, args=args)
    order = np.argsort(result.turn)
    assert result.turn[order].tolist() == list(range(min(budget, n)))
    rows, found = result.rows[order], result.probability[order]
    assert rows[: len(drawn)].tolist() == drawn.tolist()
    np.testing.assert_allclose(found[: len(drawn)], 1 / (n - np.arange(len(drawn))), rtol=1e-15)
    np.testing.assert_allclose(found[len(drawn) :], chances(WEIGHTS[name](score, beta), rows[len(drawn) :], drawn), rtol=1e-12)


def test_probabilities_stay_exact_when_the_heavy_rows_are_gone():
    """Forty rows weigh 1e18 each, the others, more than get noise at a time, 1: what is left once those are drawn is their count."""
    n = 140_000
    score = np.ones(n)
    score[:: n // 40] = 1e18
    result = choose(Candidates(score, row_hash(0, np.arange(n))), strategy="power", budget=300)
    assert (score[result.rows[:40]] == 1e18).all()
    np.testing.assert_allclose(result.probability[:40], 1 / np.arange(40, 0, -1), rtol=1e-12)
    np.testing.assert_allclose(result.probability[40:], 1 / (n - np.arange(40, 300)), rtol=1e-12)
    spread = choose(Candidates(np.linspace(-1, 1, 50), row_hash(0, np.arange(50))), strategy="softmax", budget=50, args={"beta": 1e5})
    np.testing.assert_allclose(spread.probability, 1, rtol=1e-9)  # weights beyond what a float can hold


def quota(most, least=0):
    return Quota("g", np.zeros(20, dtype=np.int32), ["a"], np.array([most]), np.array([least]))


@pytest.mark.parametrize(
    ("asked", "known"),
    [
        ({}, True),
        ({"quotas": [quota(8)]}, True),
        ({"quotas": [quota(7)]}, False),
        ({"quotas": [quota(20, least=1)]}, False),
        ({"cost": Cost("c", np.full(20, 0.5), 4.0)}, True),
        ({"cost": Cost("c", np.full(20, 0.5), 3.9)}, False),
        ({"must_include": np.array([9])}, False),
        ({"must_include": np.array([5])}, False),  # one that was drawn, too
        ({"near_duplicates": 0.99}, False),
        ({"eligible": 21, "more": True}, False),
        ({"strategy": "top_k"}, False),
    ],
)
@pytest.mark.parametrize("strategy", ["power", "random"])
def test_no_probability_where_a_row_may_have_had_no_chance(asked, known, strategy):
    """Caps, floors, costs, demanded rows, near-duplicates, a pre-filter: what can't bind changes nothing; random rows always have one."""
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    candidates = Candidates(np.linspace(0.1, 1, 20), row_hash(0, np.arange(20)), LocalShards([ArrayPart(x)]))
    result = choose(candidates, **{"strategy": strategy, "budget": 8, "drawn": np.array([5, 2])} | asked)
    assert np.isfinite(result.probability[:-2]).all() == known
    assert np.isnan(result.probability[:-2]).all() != known
    n = asked.get("eligible", 20)
    np.testing.assert_array_equal(result.probability[-2:], [1 / n, 1 / (n - 1)])
    assert result.turn.tolist() == [*range(2, len(result.rows)), 0, 1]
    assert result.rows[-2:].tolist() == [5, 2]
    assert len(set(result.rows.tolist())) == len(result.rows)


def test_a_users_strategy_may_say_its_chances():
    """They are kept as they are, unless some row may have had none."""

    def first_or_second(candidates, request):
        rows = walk(np.arange(len(candidates)), request.budget, request.constraints, None)
        return Picked(rows, np.full(len(rows), np.nan), probability=np.full(len(rows), 0.5))

    candidates = Candidates(keys=row_hash(0, np.arange(20)))
    assert choose(candidates, strategy=first_or_second, budget=3).probability.tolist() == [0.5] * 3
    assert np.isnan(choose(candidates, strategy=first_or_second, budget=3, quotas=[quota(2)]).probability).all()


def test_weights_of_zero_have_no_probability_unless_all_are():
    """A row of score 0 has no chance while others are left; where all have it, they are drawn evenly."""
    keys = row_hash(0, np.arange(30))
    some = np.append(np.ones(29), 0.0)
    assert np.isnan(choose(Candidates(some, keys), strategy="power", budget=5).probability).all()
    assert np.isfinite(choose(Candidates(some, keys), strategy="softmax", budget=5).probability).all()
    even = choose(Candidates(np.zeros(30), keys), strategy="power", budget=5, drawn=np.array([3]))
    np.testing.assert_array_equal(even.probability[even.turn.argsort()], 1 / np.arange(30, 25, -1.0))
    assert choose(Candidates(np.empty(0), keys[:0]), strategy="power", budget=5).probability.shape == (0,)

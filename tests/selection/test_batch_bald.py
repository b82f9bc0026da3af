from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystream.errors import DataError, QueryError
from raystream.selection import Candidates, batch_bald, choose
from raystream.selection.strategies.batch_bald import JointBatch

TWO = np.log([[0.9, 0.1], [0.1, 0.9]])


def samples(n, members, classes, seed, spread=2.0):
    """(n, k, c) log-probabilities."""
    logits = np.random.default_rng(seed).standard_normal((n, members, classes)) * spread
    return logits - np.logaddexp.reduce(logits, axis=2, keepdims=True)


def information(log_p, rows):
    """H(E_k prod_j p_kj) - sum_j mean_k H(p_kj) over every configuration of labels."""
    p = np.exp(log_p[list(rows)])
    joint = [
        np.prod([p[j, :, label] for j, label in enumerate(labels)], axis=0).mean()
        for labels in itertools.product(range(p.shape[2]), repeat=len(rows))
    ]
    joint = np.array([value for value in joint if value > 0])
    own = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(axis=2).mean(axis=1)
    return -(joint * np.log(joint)).sum() - own.sum()


def plain_greedy(log_p, k):
    """By the formula, every batch one row longer: rows, and the information after each."""
    rows, values = [], []
    while len(rows) < k:
        value = {row: information(log_p, [*rows, row]) for row in range(len(log_p)) if row not in rows}
        row = max(value, key=lambda r: (round(value[r], 12), -r))
        rows.append(row)
        values.append(value[row])
    return rows, values


def gains(log_p, rows, **options):
    """What each of `rows` adds to those before it."""
    batch, found = JointBatch(log_p, len(rows), **options), []
    for row in rows:
        found.append(batch.gain(int(row)))
        batch.add(int(row))
    return np.array(found)


def test_two_copies_tell_less_than_twice_as_much():
    """Two copies of the two-member case give .514375, not .736128, and no number of them more than log 2."""
    found = gains(np.stack([TWO] * 12), range(12)).cumsum()
    assert found[:2] == pytest.approx([0.368064, 0.514375], abs=5e-7)
    assert found[-1] <= np.log(2)
    assert found[-1] == pytest.approx(np.log(2), abs=2e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(2, 3), st.integers(0, 10**6), st.sampled_from([0.5, 3.0, 30.0, 2000.0]))
def test_rows_are_those_of_plain_greedy(members, classes, seed, spread):
    """While all configurations are listed: rows and information by the formula, probabilities of 0 and 1 included."""
    log_p = samples(7, members, classes, seed, spread)
    rows, values = plain_greedy(log_p, 4)
    found = batch_bald(log_p, 4)
    np.testing.assert_allclose(gains(log_p, found).cumsum(), values, atol=1e-9)
    margins = [sorted(information(log_p, [*rows[:i], r]) for r in range(7) if r not in rows[:i]) for i in range(4)]
    if all(row[-1] - row[-2] > 1e-9 for row in margins):
        np.testing.assert_array_equal(found, rows)


def test_first_row_is_that_of_bald():
    """The first row has the highest mutual information by itself."""
    log_p = samples(50, 6, 4, 0)
    p = np.exp(log_p)
    bald = -(p.mean(axis=1) * np.log(p.mean(axis=1))).sum(axis=1) + (p * log_p).sum(axis=2).mean(axis=1)
    assert batch_bald(log_p, 1)[0] == np.argmax(bald)
    assert gains(log_p, [3])[0] == pytest.approx(bald[3], rel=1e-12)


def test_drawn_configurations_estimate_what_listed_ones_give():
    """With 700 configurations drawn, of 6,561, the information of a batch of eight rows is within 1% of the exact one."""
    log_p = samples(8, 7, 3, 1, 1.0)
    exact = information(log_p, range(8))
    estimates = [gains(log_p, range(8), configurations=700, seed=seed).sum() for seed in range(4)]
    assert gains(log_p, range(8), configurations=10_000).sum() == pytest.approx(exact, rel=1e-9)
    np.testing.assert_allclose(estimates, exact, rtol=0.01)
    assert len(set(estimates)) == 4
    assert all(gain >= 0 for gain in gains(log_p, range(8), configurations=50))


def test_members_that_outnumber_the_configurations_are_drawn_from():
    """Fewer draws than members are an estimate still, and not an error."""
    log_p = samples(12, 30, 3, 1)
    assert len(set(batch_bald(log_p, 12, configurations=5).tolist())) == 12


def test_draws_depend_on_the_seed_and_not_on_where_rows_stand():
    """Rows in another order, and rows that add little beside them, give the same batch."""
    log_p = samples(60, 5, 3, 2)
    rows = batch_bald(log_p, 10, configurations=100, seed=4)
    order = np.random.default_rng(0).permutation(60)
    np.testing.assert_array_equal(order[batch_bald(log_p[order], 10, configurations=100, seed=4)], rows)
    certain = np.broadcast_to(np.log([0.6, 0.3, 0.1]), (30, 5, 3))
    np.testing.assert_array_equal(batch_bald(np.concatenate([log_p, certain]), 10, configurations=100, seed=4), rows)


def test_ties_go_to_the_lower_row():
    """Equal rows, wherever a product computes them, come in their order; members that agree make every row equal."""
    log_p = np.concatenate([samples(300, 6, 5, 0)] * 3)
    assert batch_bald(log_p, 1)[0] < 300
    agreed = np.broadcast_to(samples(40, 1, 5, 0), (40, 4, 5))
    found = choose(Candidates(samples=agreed), strategy="batch_bald", budget=5)
    np.testing.assert_array_equal(found.rows, range(5))
    assert found.gain == pytest.approx(0, abs=1e-12)


def test_rows_that_had_to_be_in_the_batch_are_known_labels():
    """The strategy chooses what adds to must-include rows, not what they tell already."""
    log_p = samples(10, 4, 3, 3)
    log_p[1] = log_p[0]
    first = np.array([0, 5])
    found = choose(Candidates(samples=log_p), strategy="batch_bald", budget=3, must_include=first)
    value = {row: information(log_p, [0, 5, row]) for row in range(10) if row not in (0, 5)}
    assert found.rows.tolist() == [0, 5, max(value, key=value.__getitem__)]
    assert found.gain[2] == pytest.approx(max(value.values()) - information(log_p, first), rel=1e-9)


def test_fifty_certain_rows_do_not_underflow():
    """Joint probabilities far below the smallest float leave finite gains and fifty distinct rows."""
    log_p = samples(55, 3, 4, 0, 400.0)
    found = choose(Candidates(samples=log_p), strategy="batch_bald", budget=50, args={"configurations": 60})
    assert len(set(found.rows.tolist())) == 50
    assert np.isfinite(found.gain).all()
    assert found.gain.sum() <= np.log(3) + 1e-9


def test_refusals():
    """No samples, too many rows and numbers that are no log-probabilities are errors that say what to do."""
    with pytest.raises(QueryError, match=r"needs the log-probabilities of several members, .*; give `log_probs`"):
        choose(Candidates(score=np.ones(3)), strategy="batch_bald", budget=1)
    with pytest.raises(QueryError, match=r"`k` is 51, but batch_bald chooses at most 50"):
        batch_bald(samples(60, 2, 2, 0), 51)
    with pytest.raises(QueryError, match="10001 candidates"):
        batch_bald(np.full((10_001, 1, 1), 0.0), 2)
    with pytest.raises(DataError, match="of 1 candidates are not log-probabilities, first at row 1"):
        batch_bald(np.stack([TWO, TWO * np.nan]), 1)
    with pytest.raises(DataError, match="first at row 0"):
        batch_bald(np.exp(np.stack([TWO])), 1)
    with pytest.raises(DataError, match="shape"):
        batch_bald(TWO, 1)


def test_many_classes():
    """3,000 classes are worked through some at a time, and the batch is that of the definition."""
    log_p = samples(12, 3, 3000, 5)
    for form in (log_p, log_p.astype(np.float32)):
        rows = batch_bald(form, 2)
        p = np.exp(form.astype(np.float64))
        mean = p.mean(axis=1)
        gains = -(mean * np.log(mean)).sum(axis=1) + (p * np.log(p)).sum(axis=2).mean(axis=1)
        assert rows[0] == np.argmax(gains)
        assert JointBatch(form, 2).gain(int(rows[0])) == pytest.approx(gains.max(), rel=1e-12)
        assert JointBatch(form, 2).best(np.arange(12))[1] == pytest.approx(gains.max(), rel=1e-12)

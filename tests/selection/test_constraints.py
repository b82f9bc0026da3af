"""What restricts a batch: it holds, it never lets a blocked row back in, and it says what is short."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystream.errors import DataError, QueryError
from raystream.selection import Candidates, Constraints, Cost, Quota, choose, row_hash, walk


def quota(group, by="g", most=None, least=None, budget=10):
    group = np.asarray(group, dtype=np.int32)
    count = int(group.max(initial=-1)) + 1
    most = np.full(count, budget) if most is None else np.asarray(most)
    least = np.zeros(count, dtype=np.int64) if least is None else np.asarray(least)
    return Quota(by, group, [f"{by}{i}" for i in range(count)], most, least)


@st.composite
def restricted(draw):
    """(n, budget, quotas, cost) with caps and floors by one or two columns, some of which can't be met."""
    n, budget = draw(st.integers(1, 30)), draw(st.integers(1, 12))
    quotas = []
    for by in draw(st.sampled_from([(), ("a",), ("a", "b")])):
        group = draw(st.lists(st.integers(-1, 2), min_size=n, max_size=n))
        held = np.bincount([g for g in group if g >= 0], minlength=3)
        group = np.asarray(group, dtype=np.int32)
        most = np.asarray([draw(st.integers(0, budget)) for _ in range(3)])
        least = np.asarray([draw(st.integers(0, int(min(m, h, 3)))) for m, h in zip(most, held, strict=True)])
        if least.sum() > budget:
            least[:] = 0
        quotas.append(Quota(by, group, [f"{by}{i}" for i in range(3)], most, least))
    cost = Cost("c", np.asarray(draw(st.lists(st.integers(0, 5), min_size=n, max_size=n)), float), 12.0) if draw(st.booleans()) else None
    return n, budget, quotas, cost


@settings(max_examples=200, deadline=None)
@given(restricted(), st.randoms(use_true_random=False))
def test_a_row_that_is_blocked_stays_blocked(case, random):
    """Whatever is taken, in whatever order, no row becomes free again; caps, cost and budget hold at the end."""
    n, budget, quotas, cost = case
    constraints = Constraints(budget, quotas=quotas, cost=cost)
    rows, before, taken = np.arange(n), np.zeros(n, dtype=bool), []
    while True:
        blocked = constraints.blocked(rows)
        assert (blocked | ~before).all()
        before = blocked
        free = np.flatnonzero(~blocked)
        if not len(free):
            break
        row = int(random.choice(free.tolist()))
        constraints.take(row)
        taken.append(row)
    assert len(set(taken)) == len(taken) <= budget
    for q in quotas:
        counts = np.bincount(q.group[taken][q.group[taken] >= 0], minlength=3)
        assert (counts <= q.most).all()
    if cost is not None:
        assert cost.column[taken].sum() <= cost.budget


@settings(max_examples=100, deadline=None)
@given(restricted())
def test_floors_of_one_column_are_met_whatever_comes_first(case):
    """Without a cost, any order of rows ends in a batch that meets every floor of a single column."""
    n, budget, quotas, _ = case
    constraints = Constraints(budget, quotas=quotas[:1])
    walk(np.arange(n), budget, constraints, None)
    constraints.check_floors()


def test_floors_of_two_columns_count_apart():
    """Floors that fit the budget side by side are met even if no row serves both."""
    a = [0] * 10 + [1] * 5 + [2] * 5
    b = [0] * 15 + [1] * 5
    constraints = Constraints(10, quotas=[quota(a, "a", least=[0, 5, 0]), quota(b, "b", least=[0, 5])])
    rows = walk(np.arange(20), 10, constraints, None)
    assert rows.tolist() == [10, 11, 12, 13, 14, 15, 16, 17, 18, 19]
    constraints.check_floors()


def test_why_names_the_floor_that_bound_a_row():
    """Rows taken while other rows were still free have no reason; those that only a floor let in name it."""
    constraints = Constraints(3, quotas=[quota([0, 0, 0, 1, 1], least=[0, 1])])
    rows = walk(np.arange(5), 3, constraints, None)
    assert rows.tolist() == [0, 1, 3]
    assert [constraints.why(int(row)) for row in rows] == ["", "", "quota g g1: at least 1"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Constraints(5, quotas=[quota([0, 0, 1], least=[0, 2])]), "g g1 are asked for, but 1 candidates have it, 1 short"),
        (lambda: Constraints(5, quotas=[quota([0, 0, 0], most=[1], least=[2])]), "select.quotas allows at most 1, 1 short"),
        (lambda: Constraints(2, quotas=[quota([0, 0, 1, 1], least=[2, 2])]), "ask for 4 rows in all, 2 above select.budget 2"),
        (lambda: Constraints(2, cost=Cost("c", np.array([1.0, -1.0]), 3.0)), "1 candidates have a c that is negative"),
    ],
)
def test_what_cannot_be_met_is_said_before_anything_is_chosen(make, says):
    """Which group, what is short, by how much."""
    with pytest.raises((QueryError, DataError), match=says):
        make()


def test_a_floor_that_other_constraints_spoil_is_an_error():
    """A batch that misses a floor never comes back: here the money runs out."""
    score = np.array([9.0, 8.0, 1.0, 0.5])
    options = {"quotas": [quota([0, 0, 1, 1], least=[0, 2])], "cost": Cost("c", np.array([0.0, 0.0, 5.0, 5.0]), 6.0)}
    with pytest.raises(QueryError, match="of at least 2 rows with g g1 only 1 could be chosen, 1 short"):
        choose(Candidates(score=score), strategy="top_k", budget=3, **options)


def test_given_rows_count_towards_quotas_and_costs():
    """Rows that must be in the batch use up caps and money before the strategy begins."""
    score = np.arange(10, dtype=np.float64)
    result = choose(
        Candidates(score=score, keys=row_hash(0, np.arange(10))), strategy="top_k", budget=6, must_include=np.array([3]),
        drawn=np.array([0]), quotas=[quota([0] * 5 + [1] * 5, most=[2, 9])], cost=Cost("c", np.ones(10), 5.0),
    )  # fmt: skip
    assert result.rows.tolist() == [3, 9, 8, 7, 0]
    assert result.why == ["must_include", "", "", "", "random_share"]
    assert "left of select.cost.budget 5" in result.note
    assert "are in groups of g that are full (g0)" in result.note

"""What restricts a batch: it holds, it never lets a blocked row back in, and it says what is short."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystream.errors import DataError, QueryError
from raystream.selection import Candidates, Constraints, Cost, LocalShards, Quota, choose, row_hash, select, walk
from raystream.selection.rows import as_rows
from raystream.selection.select import STRATEGIES
from raystream.selection.set_aside import plan_floors


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
        (lambda: Constraints(5, quotas=[quota([0, 0, 0], most=[1], least=[2])]), "`quotas` allow at most 1, 1 short"),
        (lambda: Constraints(2, quotas=[quota([0, 0, 1, 1], least=[2, 2])]), "ask for 4 rows in all, 2 above `k` 2"),
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
    with pytest.raises(QueryError, match=r"at least 2 rows with g g1 .*, but `cost.budget` 6 pays for 1 of them at most, 1 short"):
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
    assert "left of `cost.budget` 5" in result.note
    assert "3 are in groups of g that are full (g0)" in result.note


def chosen(budget, quotas=(), cost=None, **options):
    """Rows of `top_k`, which wants the first rows first."""
    n = len(cost.column if cost is not None else quotas[0].group)
    candidates = Candidates(score=-np.arange(n, dtype=np.float64))
    return choose(candidates, strategy="top_k", budget=budget, quotas=quotas, cost=cost, **options).rows


def test_money_is_set_aside_for_a_minimum():
    """Every row costs 1 of 20: 5 rows are free to choose, the other 15 are kept for the minimum, and say so."""
    group = [0] * 150 + [1] * 50
    rows = chosen(40, [quota(group, least=[0, 15], budget=40)], Cost("c", np.ones(200), 20.0))
    assert rows.tolist() == [*range(5), *range(150, 165)]
    constraints = Constraints(40, quotas=[quota(group, least=[0, 15], budget=40)], cost=Cost("c", np.ones(200), 20.0))
    walk(np.arange(200), 40, constraints, None)
    assert (constraints.why(4), constraints.why(150)) == ("", "quota g g1: at least 15")


def test_sums_of_decimals_may_be_as_much_as_the_budget():
    """Three rows of 0.1 cost 0.3, whatever they add up to in binary."""
    assert len(chosen(3, [quota([0] * 3, least=[3])], Cost("c", np.full(3, 0.1), 0.3))) == 3


@st.composite
def minimums(draw):
    """(budget, group, least, cost, given): small pools with minimums by one column, under a cost budget."""
    n = draw(st.integers(1, 9))
    group = np.asarray(draw(st.lists(st.integers(-1, 2), min_size=n, max_size=n)), dtype=np.int32)
    held = np.bincount(group[group >= 0], minlength=3)
    least = np.asarray([draw(st.integers(0, int(h))) for h in held])
    budget = draw(st.integers(max(int(least.sum()), 1), max(n, 1)))
    most = np.asarray([draw(st.integers(max(int(m), 1), n)) for m in least])
    column = np.asarray(draw(st.lists(st.sampled_from([0.0, 0.1, 0.7, 1.0, 2.0, 5.0]), min_size=n, max_size=n)))
    given = np.asarray(draw(st.lists(st.integers(0, n - 1), max_size=2, unique=True)), dtype=np.int64)
    return budget, Quota("g", group, ["g0", "g1", "g2"], most, least), Cost("c", column, draw(st.sampled_from([1.0, 2.4, 4.0, 8.0]))), given


def feasible(budget, quotas, cost, given):
    """Whether any set of rows with those given meets everything, by trying all of them."""
    n = len(cost.column)
    for size in range(len(given), budget + 1):
        for rows in map(list, combinations(range(n), size)):
            counts = [(np.bincount(q.group[rows][q.group[rows] >= 0], minlength=len(q.names)), q) for q in quotas]
            fits = all((c >= q.least).all() and (c <= q.most).all() for c, q in counts) and set(given.tolist()) <= set(rows)
            if fits and cost.column[rows].sum() <= cost.budget * (1 + 1e-12):
                return True
    return False


@settings(max_examples=400, deadline=None)
@given(minimums())
def test_a_batch_is_found_whenever_there_is_one(case):
    """Brute force agrees whether minimums can be met under the cost; what comes back meets them and never costs more."""
    budget, limit, cost, must = case
    possible = len(must) <= budget and feasible(budget, [limit], cost, must)
    try:
        rows = chosen(budget, [limit], cost, must_include=must)
    except QueryError:
        assert not possible
        return
    counts = np.bincount(limit.group[rows][limit.group[rows] >= 0], minlength=3)
    if possible:
        assert (counts >= limit.least).all()
        assert (counts <= limit.most).all()
        assert cost.column[rows].sum() <= cost.budget * (1 + 1e-12)
        constraints = Constraints(budget, quotas=[limit], cost=cost)
        for row in rows:
            constraints.take(int(row))
        assert len(rows) == budget or constraints.blocked(np.arange(len(cost.column))).all()


@settings(max_examples=200, deadline=None)
@given(minimums())
def test_a_cost_that_does_not_bind_changes_nothing(case):
    """The batch without a cost is the batch with any budget that pays for it."""
    budget, limit, cost, _ = case
    free = chosen(budget, [limit])
    paid = chosen(budget, [limit], Cost("c", cost.column, sum(cost.column[free].tolist()) or 1.0))
    assert paid.tolist() == free.tolist()


@settings(max_examples=300, deadline=None)
@given(minimums(), st.data())
def test_minimums_by_two_columns_that_greed_meets_are_met(case, data):
    """What taking the cheapest rows first meets, in slots and money, is never refused, whatever is chosen before."""
    budget, limit, cost, _ = case
    n = len(cost.column)
    other = np.asarray(data.draw(st.lists(st.integers(-1, 1), min_size=n, max_size=n)), dtype=np.int32)
    least = np.minimum(np.bincount(other[other >= 0], minlength=2), [1, 1])
    free = np.full(3, n)
    quotas = [Quota("g", limit.group, limit.names, free, limit.least), Quota("h", other, ["h0", "h1"], free[:2], least)]
    need, greedy = [q.least.copy() for q in quotas], []
    for row in np.argsort(cost.column, kind="stable"):
        if any(q.group[row] >= 0 and some[q.group[row]] > 0 for q, some in zip(quotas, need, strict=True)):
            greedy.append(row)
            for q, some in zip(quotas, need, strict=True):
                if q.group[row] >= 0:
                    some[q.group[row]] -= 1
    if sum(int(q.least.sum()) for q in quotas) <= budget and cost.column[greedy].sum() <= cost.budget:
        rows = chosen(budget, quotas, cost)
        for q in quotas:
            assert (np.bincount(q.group[rows][q.group[rows] >= 0], minlength=len(q.names)) >= q.least).all()
        assert cost.column[rows].sum() <= cost.budget * (1 + 1e-12)


def test_cheap_near_duplicates_do_not_count_as_the_minimums_rows():
    """Of a group whose cheapest rows are all alike one row is planned for, and money for dearer ones is set aside."""
    x = np.eye(12, dtype=np.float32)
    x[7:10] = x[6]
    group = [0] * 6 + [1] * 6
    cost = Cost("c", np.array([2.0] * 6 + [1.0] * 4 + [3.0] * 2), 10.0)
    candidates = Candidates(score=-np.arange(12.0), shards=LocalShards.of_array(x))
    result = choose(candidates, strategy="top_k", budget=6, quotas=[quota(group, least=[0, 3])], cost=cost, near_duplicates=0.9)
    assert result.rows.tolist() == [0, 6, 10, 11]
    assert result.facts["near_duplicates"] == 3


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - {"batch_bald"}))
def test_every_strategy_keeps_money_for_the_minimums(strategy):
    """The minimum is met by all, with rows that must be in the batch and near-duplicates about, however the candidates are sharded."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 4)).astype(np.float32)
    logits = rng.random((60, 3)).astype(np.float32)
    group = (np.arange(60) % 4 == 0).astype(np.int32)
    cost = Cost("c", 1.0 + (np.arange(60) % 3), 14.0)
    score, found = rng.random(60).astype(np.float32), []
    for shards in (1, 3):
        candidates = Candidates(
            score=score, keys=row_hash(0, np.arange(60)),
            shards=LocalShards.of_array(x, shards=shards), probabilities=as_rows(logits / logits.sum(1, keepdims=True)), similar_to=x[:1],
        )  # fmt: skip
        limits = {"quotas": [quota(group, least=[0, 6], budget=20)], "cost": cost, "near_duplicates": 0.95, "must_include": np.array([1])}
        found.append(choose(candidates, strategy=strategy, budget=20, **limits).rows.tolist())
    assert found[0] == found[1]
    assert group[found[0]].sum() >= 6
    assert cost.column[found[0]].sum() <= 14


@st.composite
def together(draw):
    """(n, budget, quotas, cost, given): small pools with floors and caps by two or three columns, caps equal to floors among them."""
    n, quotas = draw(st.integers(3, 8)), []
    budget = draw(st.integers(1, min(n, 5)))
    for by in "abc"[: draw(st.integers(2, 3))]:
        groups = draw(st.integers(1, 3))
        group = np.asarray(draw(st.lists(st.integers(-1, groups - 1), min_size=n, max_size=n)), dtype=np.int32)
        held = np.bincount(group[group >= 0], minlength=groups)
        most = np.asarray([draw(st.integers(0, budget)) for _ in range(groups)])
        least = np.asarray([draw(st.integers(0, int(min(m, h, 2)))) for m, h in zip(most, held, strict=True)])
        if least.sum() > budget:
            least[:] = 0
        if draw(st.booleans()):
            most = np.maximum(least, 1)
        quotas.append(Quota(by, group, [f"{by}{i}" for i in range(groups)], most, least))
    column = np.asarray(draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)), float)
    cost = Cost("c", column, draw(st.sampled_from([3.0, 6.0, 1e9])))
    given = np.asarray(draw(st.lists(st.integers(0, n - 1), max_size=1)), dtype=np.int64)
    return n, budget, quotas, cost, given


def meets(rows, quotas, cost, given):
    """Whether a batch meets all floors and goes beyond caps and money only as far as the given rows do."""
    for q in quotas:
        count, own = (np.bincount(q.group[some][q.group[some] >= 0], minlength=len(q.names)) for some in (rows, given))
        if (count < q.least).any() or (count > np.maximum(q.most, own)).any():
            return False
    return bool(cost.column[rows].sum() <= max(cost.budget * (1 + 1e-12), cost.column[given].sum()))


@settings(max_examples=400, deadline=None)
@given(together(), st.integers(0, 2**32 - 1))
def test_floors_by_several_columns_are_met_whenever_they_can_be(case, seed):
    """Brute force over all sets of rows agrees, whichever rows the strategy would like best, and whichever are candidates by score."""
    n, budget, quotas, cost, must = case
    possible = len(must) <= budget and any(
        meets(np.asarray([*must, *rest], dtype=np.int64), quotas, cost, must)
        and (not rest or cost.column[[*must, *rest]].sum() <= cost.budget * (1 + 1e-12))
        for size in range(budget - len(must) + 1)
        for rest in combinations([row for row in range(n) if row not in must], size)
    )
    score = np.random.default_rng(seed).permutation(n).astype(float)
    for candidates in (None, budget):
        try:
            rows = select(None, budget, strategy="top_k", score=score, quotas=quotas, cost=cost, must_include=must, candidates=candidates)
        except QueryError:
            assert not possible
        else:
            assert possible
            assert meets(rows, quotas, cost, must)


@settings(max_examples=200, deadline=None)
@given(together(), st.randoms(use_true_random=False))
def test_a_plan_leads_to_the_floors_whatever_is_taken(case, random):
    """With a plan, in any order that it allows: no row becomes free again, and the batch meets all floors in the end."""
    n, budget, quotas, cost, must = case
    plan = plan_floors(quotas, cost, budget, must)
    if plan is None:
        return
    constraints = Constraints(budget, quotas=quotas, cost=cost, plan=plan)
    for row in must:
        constraints.take(int(row))
    before, rows = np.zeros(n, dtype=bool), list(must)
    while not (blocked := constraints.blocked(np.arange(n))).all():
        assert (blocked | ~before).all()
        before = blocked
        rows.append(int(random.choice(np.flatnonzero(~blocked).tolist())))
        constraints.take(rows[-1])
    constraints.check_floors()
    assert meets(np.asarray(rows, dtype=np.int64), quotas, cost, must)


@pytest.mark.parametrize("paid", [False, True])
def test_floors_that_leave_one_way_are_met_past_a_block(paid):
    """Of 20,000 rows 150 must be of each of 150 groups and of each of 75 pairs in another column; the best rows lead astray."""
    rng = np.random.default_rng(3)
    n, groups = 20_000, 150
    a, b = rng.integers(0, groups, n).astype(np.int32), rng.integers(0, groups // 2, n).astype(np.int32)
    only = rng.random(n) < 0.98
    b[only] = a[only] % 7  # but for a few rows, a group of the first column meets few of the other
    rows = rng.choice(n, groups, replace=False)
    a[rows], b[rows] = np.arange(groups), rng.permutation(groups) // 2
    quotas = [quota(a, "a", least=[1] * groups, budget=groups), quota(b, "b", least=[2] * (groups // 2), budget=groups)]
    price = rng.integers(1, 9, n).astype(float)
    cost = Cost("c", price, price[rows].sum()) if paid else None
    found, score, x = [], rng.random(n), rng.standard_normal((n, 3)).astype(np.float32)
    for shards in (1, 7):
        candidates = Candidates(score=score, shards=LocalShards.of_array(x, shards=shards))
        found.append(choose(candidates, strategy="core_set", budget=groups, quotas=quotas, cost=cost))
    assert found[0].rows.tolist() == found[1].rows.tolist()
    assert sorted(a[found[0].rows]) == list(range(groups))
    assert sorted(b[found[0].rows]) == [g // 2 for g in range(groups)]
    assert cost is None or price[found[0].rows].sum() <= cost.budget
    assert set(found[0].why) <= {f"quota a a{g}: at least 1" for g in range(groups)}
    narrow = select(None, groups, strategy="top_k", score=score, quotas=quotas, cost=cost, candidates=groups)
    assert sorted(b[narrow]) == [g // 2 for g in range(groups)]


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - {"batch_bald"}))
def test_every_strategy_looks_ahead_to_the_floors_of_several_columns(strategy):
    """The one place of b0 has to go to a row of a0, of which only three are of b1, though there are better and more rows of a1 in b0."""
    a, b = np.asarray([1] * 30 + [0] * 30, dtype=np.int32), np.asarray([0] * 25 + [1] * 5 + [0] * 27 + [1] * 3, dtype=np.int32)
    rng = np.random.default_rng(5)
    x, logits = rng.standard_normal((60, 4)).astype(np.float32), rng.random((60, 3)).astype(np.float32)
    quotas = [quota(a, "a", least=[4, 0], budget=6), quota(b, "b", most=[1, 6], least=[0, 5], budget=6)]
    found = []
    for shards in (1, 3):
        candidates = Candidates(
            score=np.linspace(1, 0, 60).astype(np.float32), keys=row_hash(0, np.arange(60)),
            shards=LocalShards.of_array(x, shards=shards), probabilities=as_rows(logits / logits.sum(1, keepdims=True)), similar_to=x[:1],
        )  # fmt: skip
        found.append(choose(candidates, strategy=strategy, budget=6, quotas=quotas).rows.tolist())
    assert found[0] == found[1]
    assert len(found[0]) == 6
    assert (a[found[0]] == 0).sum() >= 4
    assert (b[found[0]] == 0).sum() <= 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cost": Cost("c", np.ones(20), 3.0)}, "but `cost.budget` 3 pays for 3 of them at most, 2 short"),
        (
            {"cost": Cost("c", np.ones(20), 6.0), "must_include": np.arange(3)},
            "pays for 3 of them at most beside the 3 that `must_include` costs, 2 short",
        ),
        ({"must_include": np.arange(6)}, "but `must_include` takes 6 of 10 places, which leaves 4 for the 5 rows"),
        ({"also": quota([0, 1] * 10, "h", most=[1, 2])}, "but the max by h lets in 3 of them at most, 2 short"),
        ({"near_duplicates": 0.9}, "but `near_duplicates` 0.9 leaves 2 of the 10 candidates that have it, 3 short"),
        ({"near_duplicates": 0.9, "more": True}, "or raise `near_duplicates`, or raise `candidates`$"),
        (
            {"also": quota([0] * 12 + [1] * 8, "h", most=[6, 3]), "must_include": np.arange(5)},
            r"4 could be .* all 6 others .* full \(h0, h1\), 1 s",
        ),
    ],
)
def test_the_error_names_the_constraint_that_binds(options, says):
    """Ten of twenty rows are in the group, of which five are asked for."""
    x = np.eye(20, dtype=np.float32)
    if options.get("near_duplicates"):
        x[11:19] = x[10]
    group, options = [0] * 10 + [1] * 10, dict(options)
    quotas = [quota(group, least=[0, 5]), *([options.pop("also")] if "also" in options else [])]
    candidates = Candidates(score=-np.arange(20.0), shards=LocalShards.of_array(x))
    with pytest.raises(QueryError, match=says):
        choose(candidates, strategy="top_k", budget=10, quotas=quotas, **options)

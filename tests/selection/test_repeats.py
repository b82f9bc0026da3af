"""Exact repeats: which rows have equals, which are passed over, and when they are chosen after all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import data

from raystream.errors import QueryError
from raystream.query.catalogue import TRAITS
from raystream.selection import Candidates, Constraints, Cost, LocalShards, Quota, choose, row_hash
from raystream.selection import repeats as module
from raystream.selection.prefilter import ahead
from raystream.selection.repeats import find_repeats, first_equal, not_alone, row_hashes
from raystream.selection.rows import ArrayPart, Rows
from raystream.selection.select import STRATEGIES


def groups_by_values(x, labelled=()):
    """Brute force: for each row the set of rows that equal it, and whether a labelled one does."""
    keys = [tuple(row) for row in (x.astype(np.float64) + 0.0).tolist()]
    known = {tuple(row) for row in (np.asarray(labelled, dtype=np.float64) + 0.0).tolist()} if len(labelled) else set()
    return keys, [key in known for key in keys]


def repeated(n, distinct, d, seed, dtype=np.float16):
    """n rows of so many different ones, some with zeros of either sign."""
    rng = np.random.default_rng(seed)
    few = rng.integers(-2, 3, (distinct, d)).astype(dtype)
    x = few[rng.integers(0, distinct, n)]
    return np.where((x == 0) & (rng.random(x.shape) < 0.5), -x, x)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("d", [1, 2, 3, 4, 7, 8, 33])
def test_hashes_of_equal_rows_are_equal_and_those_of_others_are_not(d, dtype):
    """Widths of whole and broken words; -0.0 is 0.0; rows that differ in signs alone are told apart."""
    x = repeated(300, 40, d, d, dtype)
    keys, _ = groups_by_values(x)
    hashes = row_hashes(x)
    assert len({(key, int(hashed)) for key, hashed in zip(keys, hashes, strict=True)}) == len(set(keys)) == len(set(hashes.tolist()))
    signs = np.where((np.arange(1 << min(d, 12))[:, None] >> np.arange(d)) & 1, 1, -1).astype(dtype)
    assert len(np.unique(row_hashes(signs))) == len(np.unique(signs, axis=0))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 10), st.integers(1, 5), st.integers(0, 99))
def test_repeats_are_those_of_brute_force(n, distinct, m, shards, seed):
    """Rows are passed over once an equal one is labelled or chosen, whatever the shards, the other rows never."""
    x = repeated(n + m, distinct, 3, seed)
    x, labelled = x[:n], x[n:].astype(np.float32)
    keys, covered = groups_by_values(x, labelled)
    found = find_repeats(LocalShards.of_array(x, shards=shards), labelled)
    if found is None:
        assert len(set(keys)) == n
        assert not any(covered)
        return
    everyone = np.arange(n)
    assert found.blocked(everyone).tolist() == covered
    chosen = [row for row in range(n) if row % 3 == 0]
    for row in chosen:
        found.take(row)
    taken = {keys[row] for row in chosen}
    several = {key for key in keys if keys.count(key) > 1}
    expected = [c or (key in taken and key in several) for key, c in zip(keys, covered, strict=True)]
    assert found.blocked(everyone).tolist() == expected
    found.passed_over = False
    assert not found.blocked(everyone).any()


def test_hashes_that_clash_decide_nothing(monkeypatch):
    """With one hash for all rows, equality is still that of the values, among candidates, labelled rows and in the pre-filter."""
    monkeypatch.setattr(module, "row_hashes", lambda x: np.zeros(len(x), dtype=np.uint64))
    x = repeated(200, 30, 2, 1)
    keys, covered = groups_by_values(x, x[:3])
    found = find_repeats(LocalShards.of_array(x, shards=3), x[:3])
    assert found.blocked(np.arange(200)).tolist() == covered
    through = ahead(lambda m: np.arange(m), 200, 10, opened=lambda rows: Rows([ArrayPart(x)], [rows]), covered=x[:3])
    first = [row for row in range(200) if keys.index(keys[row]) == row and not covered[row]]
    assert through.rows.tolist() == first[:10]


def test_past_every_block(monkeypatch):
    """100,000 rows in 7 shards, more than are hashed, sorted or compared at once."""
    monkeypatch.setattr(module, "_SORTED", 20_000)
    monkeypatch.setattr(module, "_TWIN_BYTES", 4 * 8 * 100)
    rng = np.random.default_rng(0)
    few = rng.standard_normal((30_000, 8)).astype(np.float16)
    of = rng.integers(0, 60_000, 100_000)
    x = np.where((of < 30_000)[:, None], few[of % 30_000], rng.standard_normal((100_000, 8)).astype(np.float16))
    found = find_repeats(LocalShards.of_array(x, shards=7), few[:100])
    _, number, count = np.unique(x, axis=0, return_inverse=True, return_counts=True)
    covered = np.isin(of, np.arange(100))
    np.testing.assert_array_equal(found.blocked(np.arange(len(x))), covered)
    found.take(50_000)
    alone = count[number[50_000]] == 1
    np.testing.assert_array_equal(found.blocked(np.arange(len(x))), covered | (number == number[50_000]) & ~alone)


def test_places_that_are_not_alone():
    """Sorted in parts or at once."""
    rng = np.random.default_rng(0)
    hashed = rng.integers(0, 2**64, 5000, dtype=np.uint64)
    hashed[rng.integers(0, 5000, 800)] = hashed[rng.integers(0, 5000, 800)]
    _, number, count = np.unique(hashed, return_inverse=True, return_counts=True)
    expected = np.flatnonzero(count[number] > 1)
    np.testing.assert_array_equal(not_alone(hashed), expected)
    before = module._SORTED
    try:
        module._SORTED = 300
        np.testing.assert_array_equal(not_alone(hashed), expected)
    finally:
        module._SORTED = before
    assert len(not_alone(hashed[:0])) == len(not_alone(hashed[:1])) == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=40))
def test_first_equal(pairs):
    """Places with equal hashes may be unequal."""
    hashed = np.asarray([h for h, _ in pairs], dtype=np.uint64)
    found = first_equal(hashed, lambda a, b: np.asarray([pairs[i] != pairs[j] for i, j in zip(a, b, strict=True)], dtype=bool))
    assert found.tolist() == [pairs.index(pair) for pair in pairs]


def brute_ahead(order, keys, limit, covered=()):
    """The first distinct rows; too few of them, all and their repeats."""
    seen, own = set(covered), []
    for row in order:
        if keys[row] not in seen:
            own.append(row)
            seen.add(keys[row])
    if len(own) >= limit:
        return own[:limit]
    return sorted({*own, *[row for row in order if row not in own][: limit - len(own)]}, key=list(order).index)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 300), st.integers(1, 60), st.integers(1, 80), st.integers(0, 3), st.integers(0, 99))
def test_rows_ahead_are_those_of_brute_force(n, distinct, limit, m, seed):
    """However much of the order has to be looked at."""
    x = repeated(n, distinct, 3, seed)
    order = np.random.default_rng(seed).permutation(n)
    keys, _ = groups_by_values(x)
    found = ahead(lambda count: order[:count], n, limit, opened=lambda rows: Rows([ArrayPart(x)], [rows]), covered=x[:m].astype(np.float64))
    assert found.rows.tolist() == brute_ahead(order.tolist(), keys, limit, keys[:m])


def test_few_rows_are_looked_at():
    """Of a million rows no more are opened than it takes, once and then some."""
    opened = []
    x = np.repeat(np.arange(5000, dtype=np.float16)[:, None] / 8, 3, axis=1)
    x[np.arange(5000) % 5 > 0] = x[[1, 2, 3]][np.arange(4000) % 3]

    def read(rows):
        opened.append(len(rows))
        return Rows([ArrayPart(x)], [rows % 5000])

    found = ahead(lambda count: np.arange(count), 1_000_000, 200, opened=read)
    assert len(found.rows) == 200
    assert found.others
    assert sum(opened) < 5000


def test_repeats_of_other_groups_stay_candidates():
    """Caps may keep the first of equal rows out: of each other group the first and the cheapest go through, uncounted."""
    x = np.zeros((8, 2), dtype=np.float16)
    x[5:] = [[1, 0], [2, 0], [3, 0]]
    groups, cost = np.array([0, 0, 1, 1, 1, 0, 0, 0]), np.array([5.0, 4, 3, 9, 1, 1, 1, 1])
    opened = {"opened": lambda rows: Rows([ArrayPart(x)], [rows])}
    plain = ahead(lambda m: np.arange(m), 8, 3, **opened)
    assert (plain.rows.tolist(), plain.passed) == ([0, 5, 6], 4)
    by_group = ahead(lambda m: np.arange(m), 8, 3, **opened, kinds=lambda rows: (groups[rows][:, None], None))
    assert by_group.rows.tolist() == [0, 2, 5, 6]
    by_cost = ahead(lambda m: np.arange(m), 8, 3, **opened, kinds=lambda rows: (groups[rows][:, None], cost[rows]))
    assert by_cost.rows.tolist() == [0, 1, 2, 4, 5, 6]


READERS = sorted(name for name, traits in TRAITS.items() if traits.embedding)


def asked(x, shards=1, labelled=None):
    """Candidates for any strategy."""
    n = len(x)
    rng = np.random.default_rng(5)
    p = rng.dirichlet(np.ones(3), n).astype(np.float32)
    return Candidates(
        score=rng.random(n).round(1),
        keys=row_hash(0, np.arange(n)),
        shards=LocalShards.of_array(x, shards=shards),
        labelled=labelled,
        probabilities=Rows([ArrayPart(p)]),
    )


@pytest.mark.parametrize("strategy", READERS)
def test_no_strategy_that_reads_embeddings_chooses_repeats_while_others_are_left(strategy):
    """With 80 % of the pool three rows: 20 picks are 20 different rows, none a labelled one; one more than there are is a repeat."""
    rng = np.random.default_rng(3)
    few = data("normal", 3, 4, 1).astype(np.float16)
    x = np.concatenate([few[rng.integers(0, 3, 120)], data("normal", 30, 4, 2).astype(np.float16)])[rng.permutation(150)]
    labelled = np.concatenate([few[:1], x[:1]])
    keys, _ = groups_by_values(x)
    known = {tuple(row) for row in labelled.astype(np.float64).tolist()}
    expected = {key for key in keys if key not in known}
    found = [choose(asked(x, shards, labelled), strategy=strategy, budget=20) for shards in (1, 3)]
    np.testing.assert_array_equal(found[0].rows, found[1].rows)
    chosen = [keys[row] for row in found[0].rows]
    assert len(set(chosen)) == 20
    assert set(chosen) <= expected
    equals = known | set(chosen)
    assert found[0].facts["exact_repeats"] == sum(key in equals for key in keys) - 20
    more = choose(asked(x, 1, labelled), strategy=strategy, budget=len(expected) + 5)
    assert len(more.rows) == len(expected) + 5
    assert {keys[row] for row in more.rows[: len(expected)]} == expected
    assert more.facts["exact_repeats_chosen"] == 5
    off = choose(asked(x, 1, labelled), strategy=strategy, budget=20, near_duplicates=False)
    assert not {"exact_repeats", "exact_repeats_chosen"} & set(off.facts)


def test_floors_that_only_repeats_can_meet():
    """A minimum is met by repeats where its group holds nothing else, also when the pool holds other rows."""
    x = np.concatenate([np.ones((10, 2)), data("normal", 20, 2, 0)]).astype(np.float32)
    group = (np.arange(30) >= 10).astype(np.int32)
    quota = Quota("g", group, ["same", "other"], np.array([30, 30]), np.array([4, 0]))
    for others in (False, True):
        found = choose(asked(x), strategy="core_set", budget=10, quotas=[quota], others=others)
        assert len(found.rows) == 10
        assert (found.rows < 10).sum() == 4
        assert found.facts["exact_repeats_chosen"] == 3
    capped = Quota("g", group, ["same", "other"], np.array([30, 2]), np.array([4, 0]))
    kept = choose(asked(x), strategy="core_set", budget=10, quotas=[capped], others=True)
    assert [int((kept.rows < 10).sum()), len(kept.rows)] == [4, 6]  # no more repeats than the minimum asks for
    assert choose(asked(x), strategy="core_set", budget=10, quotas=[capped]).rows.size == 10


def test_rows_that_had_to_be_in_the_batch_have_repeats_too():
    """A repeat of a row of `must_include` is passed over; both of two equal ones named are taken."""
    x = np.concatenate([np.ones((3, 2)), data("normal", 20, 2, 0)]).astype(np.float32)
    found = choose(asked(x), strategy="k_means", budget=8, must_include=np.array([0, 2]))
    assert found.rows[:2].tolist() == [0, 2]
    assert 1 not in found.rows
    assert found.facts["exact_repeats"] == 1


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - set(READERS) - {"batch_bald"}))
def test_others_have_no_such_rule(strategy):
    """What reads no embeddings chooses as if there were none."""
    x = np.ones((30, 2), dtype=np.float32)
    with_x = asked(x)
    without = Candidates(score=with_x.score, keys=with_x.keys)
    found = [choose(candidates, strategy=strategy, budget=7).rows for candidates in (with_x, without)]
    np.testing.assert_array_equal(*found)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_repeats_beside_every_constraint(draw):
    """Brute force over caps, floors, costs, labelled rows and rows that had to be in it: repeats come when nothing else can."""
    n, seed = draw.draw(st.integers(4, 40)), draw.draw(st.integers(0, 999))
    rng = np.random.default_rng(seed)
    x = repeated(n, draw.draw(st.integers(1, 12)), 2, seed, np.float32)
    labelled = x[: draw.draw(st.integers(0, 2))]
    group = rng.integers(-1, 2, n).astype(np.int32)
    held = np.bincount(group[group >= 0], minlength=2)
    most = np.array([draw.draw(st.integers(0, n)), n])
    budget = draw.draw(st.integers(1, n))
    least = np.array([0, min(draw.draw(st.integers(0, 3)), held[1], budget)])
    quotas = draw.draw(st.sampled_from([(), (Quota("g", group, ["a", "b"], most, least),)]))
    cost = draw.draw(st.sampled_from([None, Cost("c", np.round(rng.random(n) + 0.01, 2), 4.0)]))
    must = np.asarray(draw.draw(st.sampled_from([[], [n - 1]])), dtype=np.int64)
    options = {"strategy": draw.draw(st.sampled_from(["core_set", "k_means", "diverse", "k_center_two_round"])), "budget": budget,
               "quotas": quotas, "cost": cost, "must_include": must}  # fmt: skip
    try:
        found, again = (choose(asked(x, shards, labelled), **options) for shards in (1, 3))
    except QueryError:
        assert least.any() or len(must)  # floors that costs or rows that had to be in it leave nothing for
        return
    np.testing.assert_array_equal(found.rows, again.rows)
    keys, known = groups_by_values(x, labelled)
    constraints, seen, everyone = Constraints(budget, quotas=quotas, cost=cost), set(), np.arange(n)
    passing = True
    for rank, row in enumerate(map(int, found.rows)):
        if rank >= len(must):
            free = ~constraints.blocked(everyone)
            others = [i for i in everyone if free[i] and not known[i] and keys[i] not in seen]
            passing = passing and bool(others)
            assert free[row]
            assert not passing or row in others
        constraints.take(row)
        seen.add(keys[row])
    assert constraints.blocked(everyone).all()

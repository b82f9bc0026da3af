from __future__ import annotations

import itertools
import pickle
from dataclasses import replace

import numpy as np
import pytest

from raystream.errors import QueryError, StrategyContractError
from raystream.selection import Picked, check_strategy
from raystream.selection.select import STRATEGIES
from raystream.selection.strategies.ranking import random_order, walk


def sound(candidates, request):
    """Random rows, as a user might write it, without anything wrong."""
    rows = walk(random_order(candidates.keys, len(candidates)), request.budget, request.constraints, candidates.shards.gather)
    return Picked(rows, np.full(len(rows), np.nan))


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_our_own_strategies_keep_the_contract(strategy):
    """Every strategy that ships keeps every promise."""
    check_strategy(strategy)


def test_a_sound_strategy_passes():
    """A function as users write it, and the arguments reach it."""
    seen = []

    def strategy(candidates, request):
        seen.append(dict(request.args))
        return sound(candidates, request)

    check_strategy(strategy, args={"delta": 2})
    assert seen
    assert all(args == {"delta": 2} for args in seen)


def repeats(candidates, request):
    """The first row comes twice."""
    picked = sound(candidates, request)
    return replace(picked, rows=np.where(np.arange(len(picked.rows)) == 1, picked.rows[0], picked.rows))


def out_of_range(candidates, request):
    """Rows are counted after those of another array, as where labelled rows stand first."""
    picked = sound(candidates, request)
    return replace(picked, rows=picked.rows + len(candidates))


def too_many(candidates, request):
    """100 rows returned when 10 were asked for."""
    rows = walk(random_order(candidates.keys, len(candidates)), request.budget + 2, request.constraints, candidates.shards.gather)
    more = np.setdiff1d(np.arange(len(candidates)), rows)[:1]
    return Picked(np.concatenate([rows, more]), np.full(len(rows) + len(more), np.nan))


def too_few(candidates, request):
    """The last row is dropped, as `range(n // batch)` does."""
    budget = max(min(request.budget, len(candidates)) - 1, 1)
    return sound(candidates, replace(request, budget=budget))


def gives_up_on_alike(candidates, request):
    """Only one of several rows of one direction, which aren't equal as they are stored."""
    x = candidates.shards.gather(np.arange(len(candidates)))
    order = np.sort(np.unique(x, axis=0, return_index=True)[1])
    rows = walk(order, request.budget, request.constraints, candidates.shards.gather)
    return Picked(rows, np.full(len(rows), np.nan))


def asks_nobody(candidates, request):
    """Rows are taken without a question."""
    rows = np.setdiff1d(np.arange(len(candidates)), request.constraints.taken)[: request.budget]
    for row, x in zip(rows, candidates.shards.gather(rows), strict=True):
        request.constraints.take(int(row), x)
    return Picked(rows, np.full(len(rows), np.nan))


def takes_again(candidates, request):
    """What is in the batch already comes again."""
    taken = request.constraints.taken[: request.budget]
    picked = sound(candidates, replace(request, budget=request.budget - len(taken)))
    for row, x in zip(taken, candidates.shards.gather(taken), strict=True):
        request.constraints.take(int(row), x)
    rows = np.concatenate([taken, picked.rows])
    return Picked(rows, np.full(len(rows), np.nan))


def tells_nobody(candidates, request):
    """The constraints never hear of the rows."""
    rows = np.setdiff1d(np.arange(len(candidates)), request.constraints.taken)[: request.budget]
    return Picked(rows, np.full(len(rows), np.nan))


_calls = itertools.count()


def another_each_time(candidates, request):
    """A generator of its own, seeded by nothing."""
    order = np.roll(np.arange(len(candidates)), next(_calls))
    rows = walk(order, request.budget, request.constraints, candidates.shards.gather)
    return Picked(rows, np.full(len(rows), np.nan))


def another_gain_each_time(candidates, request):
    """The rows are right, what is said of them is noise."""
    picked = sound(candidates, request)
    return replace(picked, gain=np.full(len(picked.rows), float(next(_calls))))


def by_shard(candidates, request):
    """The order depends on how many pieces there are."""
    order = np.roll(np.arange(len(candidates)), candidates.shards.count)
    rows = walk(order, request.budget, request.constraints, candidates.shards.gather)
    return Picked(rows, np.full(len(rows), np.nan))


def writes_scores(candidates, request):
    """What is taken is marked in the caller's scores."""
    picked = sound(candidates, request)
    candidates.score[picked.rows] = -1
    return picked


def writes_embeddings(candidates, request):
    """The caller's embeddings are centred in place."""
    for block in candidates.shards.rows.blocks(0, len(candidates), 16):
        block.read()[:] += 1
    return sound(candidates, request)


def misshapen_gain(candidates, request):
    """Gains of all candidates, not of those chosen."""
    return replace(sound(candidates, request), gain=np.zeros(len(candidates) + 1))


def float32_gain(candidates, request):
    """Gains of too little precision."""
    picked = sound(candidates, request)
    return replace(picked, gain=picked.gain.astype(np.float32))


def squared_distance(candidates, request):
    """Distances that FAISS has left squared."""
    picked = STRATEGIES["core_set"](candidates, request)
    return replace(picked, distance=picked.distance**2)


def no_chance(candidates, request):
    """Rows that were drawn although they had no chance to be."""
    picked = sound(candidates, request)
    return replace(picked, probability=np.zeros(len(picked.rows)))


def float_rows(candidates, request):
    """Rows that are no integers."""
    picked = sound(candidates, request)
    return replace(picked, rows=picked.rows.astype(np.float64))


def a_list(candidates, request):
    """No Picked at all."""
    return sound(candidates, request).rows.tolist()


def fails_on_one_row(candidates, request):
    """A second neighbour is taken for granted."""
    np.ones(len(candidates))[1]
    return sound(candidates, request)


BROKEN = {
    repeats: r"must choose distinct rows, but chose \[\d+\] more than once",
    out_of_range: r"must choose rows in 0 \.\. \d+, but chose",
    too_many: r"must choose at most 1 rows here, but chose 4",
    too_few: r"must choose min\(budget, those not blocked\) rows or say in `note` why not, but chose 6 and left out",
    gives_up_on_alike: r"but chose 1 and left out .*on 12 one-dimensional rows .* metric cosine",
    asks_nobody: r"must not choose blocked rows, but chose \d+, which the constraints had blocked by then",
    takes_again: r"must not choose rows that are taken already, but chose \[ 4 11\] .*must_include",
    tells_nobody: r"must tell the constraints of each row it takes, but chose 1 and told of 0",
    another_each_time: r"must come to the same rows when asked again",
    another_gain_each_time: r"must come to the same gain when asked again",
    by_shard: r"must come to the same rows from 7 shards as from 1",
    writes_scores: r"must not write into what it is given, here candidates\.score",
    writes_embeddings: r"must not write into what it is given, here candidates\.shards",
    misshapen_gain: r"must return gain as a \(1,\) float64 array, but returned float64 of shape \(41,\)",
    float32_gain: r"must return gain as a \(1,\) float64 array, but returned float32 of shape \(1,\)",
    squared_distance: r"must report each row's distance to the nearest before it, but at rank 1 it is",
    no_chance: r"must return probabilities above 0 and at most 1, but returned \[0\.\]",
    float_rows: r"must return rows as a \(b,\) int64 array, but returned float64",
    a_list: r"must return a Picked, but returned a list",
    fails_on_one_row: r"must not fail, but raised IndexError: .*\(on 1 single rows of width 3, budget 1, 0 labelled\)",
}


@pytest.mark.parametrize("strategy", BROKEN, ids=lambda strategy: strategy.__name__)
def test_each_broken_promise_is_named(strategy):
    """A strategy that breaks one promise is caught by it, with its name and the data in one sentence."""
    with pytest.raises(StrategyContractError, match=BROKEN[strategy]) as caught:
        check_strategy(strategy)
    assert str(caught.value).startswith(f"{strategy.__name__} must ")
    assert "\n" not in str(caught.value)
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), AssertionError)


def test_an_unknown_name():
    """Names are looked up among ours."""
    with pytest.raises(QueryError, match="did you mean 'core_set'"):
        check_strategy("coreset")

"""The whole choice on arrays: what a query does, without one."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import data

from raystream.errors import DataError, QueryError
from raystream.query.catalogue import TRAITS
from raystream.selection import Cost, Quota, core_set, k_means, power, select, top_k

N, K = 60, 8


def everything(n: int = N) -> dict:
    """All that any strategy may ask for."""
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((n, 3, 4))
    log_probs = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
    return {
        "x": data("normal", n, 5, 0),
        "score": rng.random(n),
        "probabilities": np.exp(log_probs).mean(axis=1),
        "log_probs": log_probs,
        "ids": [f"row {i}" for i in range(n)],
    }


@pytest.mark.parametrize("strategy", sorted(TRAITS))
def test_every_strategy_gives_rows_of_the_whole_pool(strategy):
    """Distinct rows of the pool, with and without rows that are named, whatever the strategy."""
    given = everything()
    rows = select(**given, k=K, strategy=strategy)
    assert rows.dtype == np.int64
    assert len(set(rows.tolist())) == len(rows) == K
    named = select(**given, k=K, strategy=strategy, must_include=[50, 3], exclude=rows[:4])
    assert named[:2].tolist() == [50, 3]
    assert len(set(named.tolist())) == K
    assert not set(named.tolist()) & set(rows[:4].tolist()) - {50, 3}


def test_it_is_what_the_strategies_choose():
    """Over all rows it is the strategy itself; with candidates it is the strategy among the best by score."""
    x, score = data("normal", 200, 5, 0), np.random.default_rng(1).random(200)
    np.testing.assert_array_equal(select(x, K, score=score, candidates="all"), k_means(x, K, score=score))
    best = np.sort(top_k(score, 80))
    np.testing.assert_array_equal(select(x, K, score=score), best[k_means(x[best], K, score=score[best])])
    best = np.sort(top_k(score, 20))
    np.testing.assert_array_equal(select(x, K, strategy="core_set", score=score, candidates=20), best[core_set(x[best], K)])
    np.testing.assert_array_equal(select(x, K, strategy="core_set", labelled=x[:3]), core_set(x, K, labelled=x[:3]))
    ids = np.arange(200) * 7
    np.testing.assert_array_equal(
        select(None, K, strategy="power", score=score, ids=ids, seed=3, args={"beta": 2.0}), power(score, K, ids=ids, seed=3, beta=2.0)
    )


def test_constraints():
    """Caps, floors and costs hold for rows of the whole pool."""
    given = everything()
    country = ["DE" if i % 3 == 0 else None if i % 3 == 1 else "FR" for i in range(N)]
    rows = select(**given, k=K, quotas=[Quota.of(country, max=2), Quota.of(np.arange(N) % 2, value=1, min=6, by="odd")])
    assert [sum(country[row] == name for row in rows) <= 2 for name in ("DE", "FR")] == [True, True]
    assert sum(int(row) % 2 for row in rows) >= 6
    cost = Cost("minutes", np.arange(N) + 1.0, 30.0)
    rows = select(**given, k=K, strategy="random", cost=cost)
    assert 0 < len(rows) < K
    assert (rows + 1).sum() <= 30


def test_floors_reach_below_the_prefilter():
    """The best rows of a group with a floor are candidates whatever their scores, repeats passed over; or the cheapest."""
    x, score = data("normal", 200, 4, 0), np.linspace(1, 0, 200)
    group = np.where(np.arange(200) < 150, "ahead", "behind")
    x[150:160] = x[150]
    rows = select(x, 6, strategy="core_set", score=score, candidates=6, quotas=[Quota.of(group, value="behind", min=2)])
    behind = rows[rows >= 150]
    assert len(rows) == 6
    assert set(behind.tolist()) <= {150, 160, 161, 162}
    assert len(behind) == 2
    cost = Cost("minutes", np.where(np.arange(200) >= 190, 1.0, 50.0), 10.0)
    rows = select(x, 6, strategy="core_set", score=score, candidates=6, cost=cost, quotas=[Quota.of(group, value="behind", min=2)])
    assert len(rows) >= 2
    assert (rows >= 190).all()


def test_exact_repeats():
    """They are passed over before candidates are counted, in float64 that is stored as float32, too; unless they shall not be."""
    few = data("normal", 3, 4, 1).astype(np.float64) / 3
    x = np.concatenate([few[np.arange(160) % 3], data("normal", 40, 4, 2).astype(np.float64) / 3])
    score = np.linspace(1, 0, 200)
    for strategy in ("k_means", "core_set", "diverse", "typiclust"):
        rows = select(x, 20, strategy=strategy, score=score, candidates=30 if strategy != "typiclust" else None)
        assert len(np.unique(x[rows], axis=0)) == 20
        labelled = select(x, 20, strategy=strategy, score=score, labelled=x[[1, 170]], exclude=[1, 170])
        assert not (x[labelled][:, None] == x[[1, 170]][None]).all(axis=2).any()
        assert len(select(x, 60, strategy=strategy, score=score)) == 60
    assert len(np.unique(x[select(x, 20, score=score, candidates=30, near_duplicates=False)], axis=0)) == 3


def test_refusals():
    """What is wrong is named as the argument that it is."""
    x = data("normal", 10, 3, 0)
    with pytest.raises(QueryError, match="`strategy` is 'k_mean'; did you mean 'k_means'"):
        select(x, 2, strategy="k_mean")
    with pytest.raises(DataError, match="several lengths, `x` 10, `score` 9"):
        select(x, 2, score=np.ones(9))
    with pytest.raises(QueryError, match=r"`must_include` names row 10, expected rows in 0 \.\. 9"):
        select(x, 2, must_include=[10])
    with pytest.raises(QueryError, match="`candidates` is 1, expected at least `k` 2"):
        select(x, 2, candidates=1)
    with pytest.raises(QueryError, match="there are no rows to choose from"):
        select(None, 2)
    with pytest.raises(QueryError, match="`metric` is not used by strategy facility_location"):
        select(x, 2, strategy="facility_location", metric="cosine")
    with pytest.raises(QueryError, match="`weight` is not used by strategy k_means"):
        select(x, 2, weight=1.0)
    with pytest.raises(QueryError, match="k_center_two_round needs embeddings, but the candidates have none; give `x`"):
        select(None, 2, strategy="k_center_two_round", score=np.ones(10))
    with pytest.raises(QueryError, match="top_k needs a score, but the candidates have none; give `score`"):
        select(x, 2, strategy="top_k")
    with pytest.raises(QueryError, match="`min` 3 and `max` 2"):
        Quota.of([1, 2], min=3, max=2)
    with pytest.raises(QueryError, match="`args` iteration is not a parameter of k_means; did you mean 'iterations'"):
        select(x, 2, args={"iteration": 3})

"""Which rows enter the choice: those ahead by score, those the query names, those drawn at random, enough for every floor."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from raystream.engine.merge import ScoredPool
from raystream.engine.named import Named
from raystream.engine.pool_columns import read_cost, read_quotas
from raystream.engine.prepare import Prepared
from raystream.selection import Constraints, Quota, draw, random_order, row_hash, top_k, walk

_SPARE = 2
"""Candidates of a group with a floor, for each row that must come from it: near-duplicates and costs may block some."""


@dataclass(frozen=True)
class Entrants:
    """The candidates.

    Attributes:
        rows: (n,) int64 rows of the pool, ascending; None for all of them.
        must_include, drawn: int64 candidates that are in the batch already.
        eligible: how many rows of the pool might have been chosen.
    """

    rows: np.ndarray | None
    must_include: np.ndarray
    drawn: np.ndarray
    eligible: int


def enter(prepared: Prepared, pool: ScoredPool, labelled: np.ndarray, named: Named) -> Entrants:
    """Decide which rows of the pool are candidates.

    Args:
        prepared: the query.
        pool: its scored rows.
        labelled: (n,) bool, which of them are labelled.
        named: the rows that the query names.
    """
    free = ~labelled
    free[named.exclude] = False
    eligible = int(free.sum())
    must = named.must_include
    free[must] = False
    drawn = _drawn(prepared, pool, np.flatnonzero(free), must)
    free[drawn] = False
    kept = _ahead(prepared, pool, np.flatnonzero(free))
    if len(kept) + len(must) + len(drawn) == len(pool):
        return Entrants(None, must, drawn, eligible)
    rows = np.union1d(kept, np.concatenate([must, drawn]))
    return Entrants(rows, np.searchsorted(rows, must), np.searchsorted(rows, drawn), eligible)


def hashes(pool: ScoredPool, seed: int, rows: np.ndarray | None) -> np.ndarray:
    """(n,) uint64 hashes of the rows' ids."""
    ids = pool.ids if rows is None else pool.ids.take(pa.array(rows))
    return row_hash(seed, ids.to_numpy() if pa.types.is_integer(ids.type) else ids.to_pylist())


def _ahead(prepared: Prepared, pool: ScoredPool, free: np.ndarray) -> np.ndarray:
    """Those of the `free` rows that the pre-filter by score lets through, ascending, and the best of every group with a floor."""
    limit = prepared.query.select.candidate_limit
    if limit is None or limit >= len(free):
        return free
    assert pool.score is not None
    score = pool.score[free]
    kept = [free[top_k(score, limit)]]
    if any(quota.min is not None for quota in prepared.query.select.quotas):
        for quota in read_quotas(prepared, pool, free, prepared.query.select.budget):
            kept += _best_of_groups(quota, free, score)
    return np.unique(np.concatenate(kept))


def _best_of_groups(quota: Quota, rows: np.ndarray, score: np.ndarray) -> list[np.ndarray]:
    result = []
    for group in np.flatnonzero(quota.least):
        members = np.flatnonzero(quota.group == group)
        result.append(rows[members[top_k(score[members], _SPARE * int(quota.least[group]))]])
    return result


def _drawn(prepared: Prepared, pool: ScoredPool, free: np.ndarray, must: np.ndarray) -> np.ndarray:
    """The rows of `select.random_share`: the first by hash among `free`, which caps and costs may pass over."""
    select = prepared.query.select
    count = min(round(select.random_share * select.budget), select.budget - len(must), len(free))
    if count <= 0:
        return np.empty(0, dtype=np.int64)
    keys = draw(hashes(pool, prepared.query.seed, free), "random_share")
    if not select.quotas and select.cost is None:
        return np.asarray(free[random_order(keys, count)])
    order = free[random_order(keys, len(free))]
    some = _fitting(prepared, pool, must, order[: 4 * count + 64], count)
    return some if len(some) == count else _fitting(prepared, pool, must, order, count)


def _fitting(prepared: Prepared, pool: ScoredPool, must: np.ndarray, order: np.ndarray, count: int) -> np.ndarray:
    """The first `count` rows of `order` that fit the caps and the cost beside those of `must`."""
    rows = np.concatenate([must, order])
    quotas = read_quotas(prepared, pool, rows, prepared.query.select.budget)
    caps = [replace(quota, least=np.zeros_like(quota.least)) for quota in quotas]
    constraints = Constraints(len(rows), quotas=caps, cost=read_cost(prepared, pool, rows))
    for row in range(len(must)):
        constraints.take(row)
    return np.asarray(rows[walk(np.arange(len(must), len(rows)), count, constraints, None)])

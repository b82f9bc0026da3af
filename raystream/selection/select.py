"""The whole choice on arrays: any strategy, the pre-filter by score, and the constraints around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from raystream.arrays import plain
from raystream.errors import DataError, QueryError, did_you_mean
from raystream.query.catalogue import TRAITS, Traits
from raystream.selection.arguments import (
    Ids,
    checked_metric,
    checked_seed,
    column,
    count,
    embeddings,
    keys_of,
    optional,
    optional_column,
    positions,
)
from raystream.selection.choose import choose
from raystream.selection.limits import Cost, Quota
from raystream.selection.prefilter import Ahead, First, ahead, with_floors
from raystream.selection.rows import Array, ArrayPart, Metric, Rows, as_rows
from raystream.selection.shards import DEFAULT_MEMORY, LocalShards
from raystream.selection.strategies.ranking import best
from raystream.selection.strategy import Candidates

_NO_ROWS = np.empty(0, dtype=np.int64)


def select(
    x: ArrayLike | None,
    k: int,
    *,
    strategy: str = "k_means",
    score: ArrayLike | None = None,
    labelled: ArrayLike | None = None,
    metric: Metric = "euclidean",
    seed: int = 0,
    probabilities: ArrayLike | None = None,
    labelled_probabilities: ArrayLike | None = None,
    log_probs: ArrayLike | None = None,
    ids: Ids | None = None,
    candidates: int | str | None = None,
    near_duplicates: float | Literal[False] | None = None,
    quotas: Sequence[Quota] = (),
    cost: Cost | None = None,
    must_include: ArrayLike = (),
    exclude: ArrayLike = (),
    similar_to: ArrayLike | None = None,
    weight: float = 0.0,
    mix: float = 0.5,
    terms: Mapping[str, float] | None = None,
    memory: int | None = None,
    args: Mapping[str, Any] | None = None,
) -> Array:
    """Choose k rows of a pool by any strategy, under any constraints: what a query does, on arrays.

    Args:
        x: (n, d) embeddings; None for strategies that read none.
        k: how many rows.
        strategy: the name of one.
        score: (n,), higher = label sooner.
        labelled: (m, d) embeddings of labelled rows, which count as covered, and whose exact repeats are passed over. Name those of the
            pool in `exclude`, too.
        metric: of distances.
        seed: of every draw.
        probabilities: (n, c) of the classes, for `badge`.
        labelled_probabilities: (m, c), for `badge` with `args` covered.
        log_probs: (n, members, c) log-probabilities, for `batch_bald`.
        ids: (n,) integers, strings or bytes that decide each row's luck; left out, the row numbers.
        candidates: how many rows of the highest scores the strategy sees, or "all". Left out: 10 k where the strategy's traits say so
            and there is a score, else all.
        near_duplicates: the cosine from which only one of two rows is chosen. Left out: strategies that read embeddings pass over exact
            repeats of rows that are ahead, chosen or labelled, as long as there are others; False: neither.
        quotas: caps and floors; see `Quota.of`.
        cost: what each row costs, and what all may cost.
        must_include: rows that are in the batch, first.
        exclude: rows that are not.
        similar_to: (m, d), for `combine`.
        weight: for `core_set`; mix: for `diverse`; terms: for `combine`.
        memory: bytes of embeddings that may be gathered; left out, as many as it takes.
        args: the strategy's own parameters, as a query's `select.args`.

    Returns:
        (b,) int64 rows of the pool in rank order; b is below k where there are no more rows, or constraints leave no more.

    Raises:
        QueryError: an argument that is wrong or that the strategy doesn't take, or floors that can't be met.
        DataError: numbers that are not finite, or shapes that don't fit.
    """
    k, seed, metric = count(k), checked_seed(seed), checked_metric(metric)
    traits = _traits(strategy, args or {})
    keys = {"metric": metric != "euclidean", "weight": weight != 0, "mix": mix != 0.5, "terms": terms, "similar_to": similar_to is not None}
    _refuse_unused(strategy, traits, [name for name, given in keys.items() if given])
    array = None if x is None else embeddings(x)
    n = _rows({"x": array, "score": score, "probabilities": probabilities, "log_probs": log_probs, "ids": ids})
    scores = optional_column(score, n)
    must, out = positions(must_include, n, "must_include"), positions(exclude, n, "exclude")
    free = np.ones(n, dtype=bool)
    free[out] = free[must] = False
    known = None if labelled is None or not len(plain(labelled, "labelled")) else embeddings(labelled, "labelled")
    quotas = [replace(quota, group=column(quota.group, n, "quotas")) for quota in quotas]
    cost = None if cost is None else replace(cost, column=column(cost.column, n, "cost").astype(np.float64))
    limit = _limit(candidates, k, traits, scores is not None)
    kept = Ahead(np.flatnonzero(free), 0, False)
    if limit is not None and scores is not None and limit < len(kept.rows):
        passes = near_duplicates is not False and (traits.embedding or near_duplicates is not None)
        seen = [some for some in (known, array[must] if array is not None and len(must) else None) if some is not None and len(some)]
        kept = _ahead(kept.rows, scores, limit, _first(array if passes else None, seen, quotas, cost), quotas, cost, must, k)
    rows = np.union1d(kept.rows, must)
    p, samples = optional(probabilities, "probabilities"), optional(log_probs, "log_probs")
    room = max(DEFAULT_MEMORY, 0 if array is None else 4 * array.size) if memory is None else memory
    chosen = choose(
        Candidates(
            score=None if scores is None else scores[rows],
            keys=keys_of(ids, n, seed)[rows],
            shards=None if array is None else LocalShards(Rows(as_rows(array).parts).parts, [rows], metric=metric, memory=room),
            labelled=known,
            probabilities=None if p is None else Rows(as_rows(embeddings(p, "probabilities")).parts, [rows]),
            labelled_probabilities=optional(labelled_probabilities, "labelled_probabilities"),
            samples=None if samples is None else samples[rows],
            similar_to=optional(similar_to, "similar_to"),
        ),
        strategy=strategy,
        budget=k,
        seed=seed,
        metric=metric,
        weight=weight,
        mix=mix,
        terms=terms,
        near_duplicates=near_duplicates,
        quotas=[replace(quota, group=quota.group[rows]) for quota in quotas],
        cost=None if cost is None else replace(cost, column=cost.column[rows]),
        must_include=np.searchsorted(rows, must),
        more=len(rows) < int(free.sum()) + len(must),
        others=kept.others,
        memory=room,
        args=args,
    )
    result: Array = rows[chosen.rows]
    return result


def _refuse_unused(strategy: str, traits: Traits, given: Sequence[str]) -> None:
    """Refuse the first of the arguments given that the strategy has no use for."""
    for key in given:
        if key not in traits.keys:
            users = ", ".join(name for name, of in TRAITS.items() if key in of.keys)
            raise QueryError(f"`{key}` is not used by strategy {strategy} (only by {users}); leave it out")


def _traits(strategy: str, args: Mapping[str, Any]) -> Traits:
    if strategy not in TRAITS:
        raise QueryError(f"`strategy` is {strategy!r}{did_you_mean(strategy, TRAITS)}")
    traits = TRAITS[strategy]
    for name, value in args.items():
        if name not in traits.args:
            raise QueryError(f"`args` {name} is not a parameter of {strategy}{did_you_mean(name, traits.args)}")
        if not traits.args[name].accepts(value):
            raise QueryError(f"`args` {name} is {value!r}, expected {traits.args[name].expected}")
    return traits


def _rows(given: Mapping[str, Any]) -> int:
    """Count the rows of what is given, all of which must have as many."""
    sizes = {name: len(values) for name, values in given.items() if values is not None}
    if not sizes:
        raise QueryError("there are no rows to choose from; give `x`, `score`, `log_probs` or `ids`")
    if len(set(sizes.values())) > 1:
        raise DataError(f"arguments have several lengths, {', '.join(f'`{name}` {size}' for name, size in sizes.items())}; expected one")
    return next(iter(sizes.values()))


def _limit(candidates: int | str | None, k: int, traits: Traits, scored: bool) -> int | None:
    if candidates is None:
        return 10 * k if traits.tenfold and scored else None
    if candidates == "all":
        return None
    if isinstance(candidates, str) or (limit := count(candidates, "candidates")) < k:
        raise QueryError(f'`candidates` is {candidates!r}, expected at least `k` {k}, or "all"')
    if not scored:
        raise QueryError("`candidates` keeps the rows of the highest scores, which needs `score`")
    return limit


def _ahead(
    free: Array, score: Array, limit: int, first: First, quotas: Sequence[Quota], cost: Cost | None, must: Array, budget: int
) -> Ahead:  # fmt: skip
    """Return those of the `free` rows that the pre-filter by score lets through."""
    among = score[free]
    kept = first(lambda count: free[best(among, count)], len(free), limit)
    if not any(quota.least.any() for quota in quotas):
        return kept
    rows = np.concatenate([free, must])
    of_rows = [replace(quota, group=quota.group[rows]) for quota in quotas]
    paid = None if cost is None else replace(cost, column=cost.column[rows])
    return replace(kept, rows=with_floors(kept.rows, free, among, of_rows, paid, first, budget))


def _first(x: Array | None, covered: Sequence[Array], quotas: Sequence[Quota], cost: Cost | None) -> First:
    """Find the first rows of an order; exact repeats are passed over, given `x`."""
    if x is None:
        return lambda order, total, limit: Ahead(order(limit), 0, limit < total)
    part, known = ArrayPart(x), np.concatenate(covered) if covered else None
    groups = np.column_stack([quota.group for quota in quotas]) if quotas else np.empty((len(x), 0))

    def kinds(rows: Array) -> tuple[Array, Array | None]:
        return groups[rows], None if cost is None else cost.column[rows]

    told_apart = kinds if quotas or cost is not None else None
    return lambda order, total, limit: ahead(order, total, limit, opened=lambda rows: Rows([part], [rows]), covered=known, kinds=told_apart)

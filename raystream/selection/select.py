"""The whole choice: on arrays, and on scored candidates wherever they lie.

The whole choice on arrays: any strategy, the pre-filter by score, and the constraints around them.

From scored candidates to a ranked batch: any strategy, the constraints around it, and what is reported of the rows.

`STRATEGIES` has the strategies' functions by name, as the catalogue names their code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import ArrayLike

from raystream.arrays import plain
from raystream.errors import DataError, QueryError, did_you_mean
from raystream.query.catalogue import TRAITS, USERS_OWN, Traits
from raystream.selection.arguments import (
    Ids,
    check_candidates,
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
from raystream.selection.bounds import Encoding
from raystream.selection.constraints import Constraints
from raystream.selection.limits import Cost, Obstacle, Quota, in_words
from raystream.selection.nearest import Centres, nearest
from raystream.selection.prefilter import Ahead, First, ahead, with_floors
from raystream.selection.repeats import NearDuplicates, Repeats, count_alike, find_repeats
from raystream.selection.represents import Covering
from raystream.selection.rows import Array, ArrayPart, Metric, Rows, as_rows, squared_distances, vectors
from raystream.selection.set_aside import FloorPlan, plan_floors
from raystream.selection.shards import DEFAULT_MEMORY, LocalShards, Shards
from raystream.selection.strategies.ranking import best, walk
from raystream.selection.strategy import Candidates, Picked, Request, Strategy

STRATEGIES: dict[str, Strategy] = {name: traits.function for name, traits in TRAITS.items()}
"""What `select.strategy` may be."""


_NO_ROWS = np.empty(0, dtype=np.int64)


class CertificateFacts(TypedDict):
    """A measure of how well the batch covers the candidates.

    `radius` is the largest distance of a candidate to the chosen and labelled rows. No batch of this size has a
    radius below `lower_bound`; it is None unless that is proven, as it is for farthest-first by distance alone.
    """

    radius: float
    lower_bound: float | None


@dataclass(frozen=True)
class Chosen:
    """The batch in rank order: rows that had to be in it, the strategy's, exact repeats that had to be taken, those drawn at random.

    Attributes:
        rows: (b,) int64 numbers of the candidates.
        gain: (b,) float64, what the strategy maximised when it took the row; nan where it maximised nothing.
        distance: (b,) float64 to the nearest row chosen before or labelled, nan when there is none; None without embeddings.
        represents: (b,) int64, how many candidates are nearest to the row; those nearer to a labelled row count for none.
        why: the constraint or share that bound each row, else ''.
        turn: (b,) int64, when each row was drawn or taken, from 0: those drawn at random first, then in rank order.
        probability: (b,) float64, the chance that the row had to be drawn in its turn; nan where it wasn't drawn, or constraints may
            have left an eligible row no chance.
        certificate: None without embeddings.
        passes: how often the embeddings were read to choose.
        note: why fewer than min(budget, n) rows came back; None when there were no more candidates.
        facts: what else the strategy has to say, for the manifest; `near_duplicates` counts the candidates that these left out,
            `exact_repeats` those left out since they equal a chosen or labelled row, `exact_repeats_chosen` those that were taken.
        obstacles: what kept the rest out of a batch that is smaller than that.
    """

    rows: Array
    gain: Array
    distance: Array | None
    represents: Array | None
    why: list[str]
    turn: Array
    probability: Array
    certificate: CertificateFacts | None
    passes: int
    note: str | None
    facts: Mapping[str, float | int | str] = field(default_factory=dict)
    obstacles: tuple[Obstacle, ...] = ()


def choose(
    candidates: Candidates,
    *,
    strategy: str | Strategy,
    budget: int,
    seed: int = 0,
    metric: Metric = "euclidean",
    weight: float = 0.0,
    mix: float = 0.5,
    terms: Mapping[str, float] | None = None,
    near_duplicates: float | Literal[False] | None = None,
    quotas: Sequence[Quota] = (),
    cost: Cost | None = None,
    must_include: Array | None = None,
    drawn: Array | None = None,
    more: bool = False,
    eligible: int | None = None,
    others: bool = False,
    memory: int = DEFAULT_MEMORY,
    args: Mapping[str, Any] | None = None,
) -> Chosen:
    """Choose up to `budget` candidates.

    Args:
        candidates: the rows.
        strategy: the name of one, or a function like those of `registry`.
        budget: how many rows in all, those of `must_include` and `drawn` included.
        seed: of every draw.
        metric: of distances.
        weight: see `core_set`.
        mix: see `diverse`.
        terms: see `combine`.
        near_duplicates: the cosine from which only one of two rows is kept; None: strategies that read embeddings pass over exact
            repeats of chosen and labelled rows, as long as there is anything else; False: neither.
        quotas: caps and floors by columns.
        cost: costs and their budget.
        must_include: int64 candidates that are in the batch whatever the strategy says.
        drawn: int64 candidates that were drawn at random for the batch, in the order of drawing; some may be of `must_include`, too.
        more: whether higher `candidates` would let in more rows: those left out have no chance.
        eligible: of how many rows `drawn` were drawn; left out, of the candidates.
        others: whether the pool holds rows beyond the candidates that may be no repeats, so that no repeat is chosen but for floors.
        memory: bytes of embeddings that a process may hold.
        args: the strategy's own parameters.

    Raises:
        QueryError: an unknown strategy, or one that lacks its score or embeddings, weights that are negative, floors that can't be met.
        DataError: embeddings, scores or costs that are not numbers.
    """
    name, function = _strategy(strategy)
    budget, metric = count(budget), checked_metric(metric)
    check_candidates(candidates)
    shards = candidates.shards
    if shards is not None and shards.metric != metric:
        raise QueryError(f"the embeddings were opened for metric {shards.metric}, but `metric` is {metric}")
    labelled = None if shards is None else vectors(candidates.labelled if len(shards) else None, shards.width, metric)
    threshold = None if near_duplicates is False else near_duplicates
    if threshold is not None and shards is None:
        raise QueryError("`near_duplicates` compares embeddings, but the candidates have none; give `x`")
    traits = TRAITS.get(name, USERS_OWN)
    reads = near_duplicates is None and traits.embedding
    gather = None if shards is None else shards.gather
    must, last = (_NO_ROWS if rows is None else rows for rows in (must_include, drawn))
    first = must[~np.isin(must, last)]
    given = np.concatenate([first, last])
    x = shards.gather(given) if shards is not None and len(given) else None
    covered = labelled if x is None or labelled is None else np.concatenate([labelled, x])

    def attempt(plan: FloorPlan | None) -> tuple[Constraints, Repeats | None, Picked, Array]:
        """Let the strategy choose, and take exact repeats where nothing else is left."""
        alike = None if threshold is None or shards is None else NearDuplicates(threshold, shards.width, labelled)
        repeats = find_repeats(shards, candidates.labelled) if reads and shards is not None and len(shards) else None
        limits = Constraints(budget, near_duplicates=alike, quotas=quotas, cost=cost, repeats=repeats, gather=gather, more=more, plan=plan)
        for i, row in enumerate(given):
            limits.take(int(row), None if x is None else x[i], "must_include" if i < len(first) else "random_share")
        request = Request(budget - len(given), seed, covered, limits, weight, mix, memory, terms or {}, args or {})
        picked = function(candidates, request) if len(candidates) and request.budget > 0 else Picked(_NO_ROWS, np.empty(0))
        return limits, repeats, picked, _NO_ROWS if repeats is None else _fill(candidates, limits, repeats, others)

    constraints, repeats, picked, filled = attempt(None)
    try:
        constraints.check_floors()
    except QueryError:
        # floors by several columns may want other rows than those that a strategy takes first
        plan = plan_floors(quotas, cost, budget, given)
        if plan is None:
            raise
        constraints, repeats, picked, filled = attempt(plan)
        constraints.check_floors()
    rows = np.concatenate([first, picked.rows, filled, last])
    gain = np.concatenate([np.full(len(first), np.nan), picked.gain, np.full(len(filled) + len(last), np.nan)])
    turn = np.roll(np.arange(len(rows)), -len(last))
    chances = picked.probability if constraints.leaves_chances and not len(must) else None
    probability = _chances(len(rows), chances, len(last), len(candidates) if eligible is None else eligible)
    facts = dict(picked.facts) | _left_out(candidates, rows, labelled, threshold)
    if repeats is not None:
        facts |= _repeats_left_out(repeats, np.setdiff1d(np.arange(len(candidates)), rows), filled)
    distance = counts = certificate = None
    if shards is not None and labelled is not None:
        free = threshold is None and not quotas and cost is None and not len(given)
        proven = traits.proves_radius and weight == 0 and free and traits.leaves_defaults(args or {})
        distance, counts, certificate = _spread(shards, rows, labelled, picked, filled, proven=proven, given=len(given))
    short = len(rows) < min(budget, len(candidates))  # who gave fewer candidates than the budget knows why
    obstacles = tuple(constraints.obstacles(len(candidates))) if short and picked.note is None else ()
    note = (picked.note or _note(len(candidates) - len(rows), obstacles, more)) if short else None
    why = [constraints.why(int(row)) for row in rows]
    return Chosen(rows, gain, distance, counts, why, turn, probability, certificate, picked.passes, note, facts, obstacles)


def _chances(rows: int, strategys: Array | None, drawn: int, eligible: int) -> Array:
    """Return (rows,) float64: the strategy's chances, if it says them, of the first rows; of the last ones, drawn at random, theirs."""
    probability = np.full(rows, np.nan)
    if strategys is not None:
        probability[: len(strategys)] = strategys
    probability[rows - drawn :] = 1 / (eligible - np.arange(drawn, dtype=np.float64))
    return probability


def _spread(
    shards: Shards, rows: Array, labelled: Array, picked: Picked, filled: Array, *, proven: bool, given: int
) -> tuple[Array, Array, CertificateFacts]:
    """Compute each chosen row's distance to those before it and how many candidates it represents, and how far the farthest of all is."""
    x = shards.gather(rows)
    distance = _distances(x, labelled) if picked.distance is None or given else np.concatenate([picked.distance, np.zeros(len(filled))])
    covering = _covering(shards, x, labelled)
    radius = covering.radius if picked.radius is None else picked.radius
    return distance, covering.counts, {"radius": radius, "lower_bound": radius / 2 if proven else None}


def _covering(shards: Shards, x: Array, labelled: Array) -> Covering:
    """Find how the chosen rows `x`, before labelled ones, cover all candidates."""
    everything = np.concatenate([x, labelled])
    return shards.cover(everything, len(x)) if len(everything) else Covering(np.empty(0, dtype=np.int64), 0.0, -1)


def _left_out(candidates: Candidates, rows: Array, labelled: Array | None, threshold: float | None) -> dict[str, int]:
    """Count the candidates that are near-duplicates of the batch `rows` and of labelled rows; nothing where counting takes too long."""
    if threshold is None or candidates.shards is None or labelled is None:
        return {}
    out = count_alike(candidates.shards, threshold, np.concatenate([candidates.shards.gather(rows), labelled]))
    return {} if out is None else {"near_duplicates": out - len(rows)}


def _repeats_left_out(repeats: Repeats, left: Array, filled: Array) -> dict[str, int]:
    """Count the exact repeats among the candidates `left`, and those that were chosen."""
    counts = {"exact_repeats": int(repeats.covered(left).sum()), "exact_repeats_chosen": len(filled)}
    return {name: count for name, count in counts.items() if count}


def _strategy(strategy: str | Strategy) -> tuple[str, Strategy]:
    if not isinstance(strategy, str):
        return getattr(strategy, "__name__", "strategy"), strategy
    if strategy not in STRATEGIES:
        raise QueryError(f"`strategy` {strategy!r} is unknown{did_you_mean(strategy, STRATEGIES)}")
    return strategy, STRATEGIES[strategy]


def _fill(candidates: Candidates, constraints: Constraints, repeats: Repeats, others: bool) -> Array:
    """Choose exact repeats, the highest scores first, where nothing else is left to take; for floors alone if there are `others`."""
    everyone = np.arange(len(candidates))
    if constraints.left <= 0 or (not others and not constraints.blocked(everyone).all()):
        return _NO_ROWS
    order = everyone if candidates.score is None else best(candidates.score, len(everyone))
    order = order[repeats.covered(order)]
    repeats.passed_over = False
    if not others:
        return walk(order, constraints.left, constraints, None)
    rows: list[int] = []
    while len(order := order[~constraints.blocked(order)]) and len(needed := order[constraints.needed(order)]):
        rows.append(int(needed[0]))
        constraints.take(rows[-1])
    return np.asarray(rows, dtype=np.int64)


def _note(others: int, obstacles: Sequence[Obstacle], more: bool) -> str:
    # a higher limit brings in rows of lower score: others in kind, but no cheaper ones when the money is spent
    advice = "; raise `candidates`" if more and any(one.key != "cost" for one in obstacles) else ""
    return in_words(obstacles, f"{others} other candidates") + advice


def _distances(x: Array, labelled: Array) -> Array:
    """Compute (b,) float64 distances of each row to the nearest before it or labelled; nan when there is none."""
    before = np.concatenate([labelled, x])
    result = np.full(len(x), np.inf)
    if not len(x):
        return result
    encoding = Encoding.fit(before.mean(axis=0, dtype=np.float64), float(np.abs(before).max()), on_grid=False, precision="float32")
    step = 64
    for begin in range(0, len(x), step):
        block = x[begin : begin + step]
        end = len(labelled) + begin
        if end:
            for first in range(0, end, 8192):
                found = nearest(block, Centres.of(before[first : min(first + 8192, end)], encoding), exact_distance=True).upper
                np.minimum(result[begin : begin + step], found, out=result[begin : begin + step])
        for i in range(1, len(block)):
            result[begin + i] = min(result[begin + i], float(squared_distances(block[:i], block[i]).min()))
    return np.where(np.isinf(result), np.nan, np.sqrt(result))


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

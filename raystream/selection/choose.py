"""From scored candidates to a ranked batch: any strategy, the constraints around it, and what is reported of the rows.

`STRATEGIES` has the strategies' functions by name, as the catalogue names their code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import numpy as np

from raystream.errors import QueryError, did_you_mean
from raystream.query.catalogue import TRAITS, USERS_OWN
from raystream.selection.arguments import check_candidates, checked_metric, count
from raystream.selection.bounds import Encoding
from raystream.selection.constraints import Constraints
from raystream.selection.limits import Cost, Obstacle, Quota, in_words
from raystream.selection.near_duplicates import NearDuplicates, count_alike
from raystream.selection.nearest import Centres, nearest
from raystream.selection.repeats import Repeats, find_repeats
from raystream.selection.represents import Covering
from raystream.selection.rows import Array, Metric, squared_distances, vectors
from raystream.selection.set_aside import FloorPlan, plan_floors
from raystream.selection.shards import DEFAULT_MEMORY, Shards
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
        limits = Constraints(
            budget, near_duplicates=alike, quotas=quotas, cost=cost, repeats=repeats, gather=gather, more=more, plan=plan
        )  # fmt: skip
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
    probability = np.full(len(rows), np.nan)
    if picked.probability is not None and constraints.leaves_chances and not len(must):
        probability[: len(picked.rows)] = picked.probability
    left = (len(candidates) if eligible is None else eligible) - np.arange(len(last), dtype=np.float64)
    probability[len(rows) - len(last) :] = 1 / left
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

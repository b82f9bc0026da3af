"""Several things at once: a score and diversity in a sum, or any objectives in a product.

Score and diversity in one sum: rows that are worth a label, or far from those chosen, or some of both.

Carbonell and Goldstein, *The use of MMR, diversity-based reranking for reordering documents and producing
summaries*, 1998, with distances in place of similarities.

Several objectives at once, multiplied: a row is worth choosing if it is not worthless by any of them.

Each objective is a utility from 0 to 1, raised to the power of its strength. All but the distance stay as
they are while rows are chosen, so the order is that of weighted farthest-first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from raystream.errors import QueryError, did_you_mean
from raystream.query.catalogue import TERMS
from raystream.selection.arguments import column, count, labelled_of, optional, optional_column, shards_of
from raystream.selection.constraints import Constraints
from raystream.selection.hashing import checked_weights
from raystream.selection.kernels import similarity
from raystream.selection.lazy_bounds import Gain
from raystream.selection.neighbours import Facts
from raystream.selection.rows import Array, Metric, vectors
from raystream.selection.shards import DEFAULT_MEMORY, Shards
from raystream.selection.strategies.core_set import FarthestFirst, covering_radius, farthest_first
from raystream.selection.strategies.ranking import top_k, walk
from raystream.selection.strategies.typiclust import typicality
from raystream.selection.strategy import Candidates, Picked, Request, embeddings, gathered, scores


def diverse(
    x: ArrayLike, k: int, *, score: ArrayLike, labelled: ArrayLike | None = None, metric: Metric = "euclidean", mix: float = 0.5
) -> Array:
    """Choose k rows by (1 - mix) * score + mix * distance to the nearest row chosen before or labelled.

    Both are divided by their largest value at the start; with nothing labelled the first distance is to
    the mean of all rows. A part whose largest value is 0 counts for nothing. Ties go to the lower row.

    Args:
        x: (n, d) embeddings; taken as float32 unless float16.
        k: how many rows; all n when there are fewer.
        score: (n,), at least 0, higher = label sooner.
        labelled: (m, d) rows that count as chosen already.
        metric: `cosine` works on rows divided by their lengths.
        mix: from 0, the score alone, to 1, the distance alone.

    Returns:
        (min(k, n),) int64 rows in order of choice.

    Raises:
        DataError: embeddings that are not finite, or not as wide as the labelled ones.
        QueryError: a negative score, or a mix outside 0 .. 1.
    """
    shards = shards_of(x, metric)
    return _mixed(shards, count(k), column(score, len(shards)), mix, labelled_of(labelled, shards.width, metric), None).rows


def diverse_strategy(candidates: Candidates, request: Request) -> Picked:
    """Run `diverse` in a query."""
    shards, score = embeddings(candidates, "diverse"), scores(candidates, "diverse")
    found = _mixed(shards, request.budget, score, request.mix, request.labelled, request.constraints)
    return Picked(found.rows, found.gain, found.distance, found.passes + 1)


def _mixed(shards: Shards, k: int, score: Array, mix: float, labelled: Array | None, constraints: Constraints | None) -> FarthestFirst:
    if not 0 <= mix <= 1:
        raise QueryError(f"`mix` is {mix}, expected a number from 0 to 1")
    n = len(shards)
    checked = checked_weights(score, n)
    most = float(checked.max(initial=0.0))
    reach = covering_radius(shards, labelled)
    offset = (1 - mix) * (checked / most) if most > 0 else np.zeros(n)
    gain = Gain(np.full(n, mix / reach if reach > 0 else 0.0), offset)
    exclude = None if constraints is None else constraints.taken
    return farthest_first(shards, k, gain=gain, labelled=labelled, exclude=exclude, constraints=constraints)


def combine(
    x: ArrayLike,
    k: int,
    *,
    score: ArrayLike | None = None,
    labelled: ArrayLike | None = None,
    metric: Metric = "euclidean",
    terms: Mapping[str, float] | None = None,
    similar_to: ArrayLike | None = None,
    memory: int = DEFAULT_MEMORY,
) -> Array:
    """Choose k rows by the product of utilities, each to the power of its strength; greedy, exact, ties to the lower row.

    `score`: the score divided by the largest one. `distance`: to the nearest row chosen before or labelled,
    divided by the largest one at the start, which is to the mean if nothing is labelled. `typicality`:
    1 / (1 + mean distance to 20 neighbours). `similarity`: (1 + largest cosine with rows of `similar_to`) / 2.
    What is 0 for every row that may be chosen is left out of the product.

    Args:
        x: (n, d) embeddings; taken as float32 unless float16.
        k: how many rows; all n when there are fewer.
        score: (n,), at least 0, higher = label sooner.
        labelled: (m, d) rows that count as chosen already.
        metric: of distances; `cosine` works on rows divided by their lengths.
        terms: name -> strength, at least 0. Left out: score and distance, and similarity if there is
            something to be similar to, of strength 1 each.
        similar_to: (m, d) rows that the batch should resemble.
        memory: bytes that the rows may take as float32, for `typicality` alone.

    Returns:
        (min(k, n),) int64 rows in order of choice.

    Raises:
        DataError: embeddings that are not finite, or not of one width.
        QueryError: an unknown term, a negative strength, a term without what it needs, or `similar_to` without its term.
    """
    shards, k = shards_of(x, metric), count(k)
    candidates = Candidates(optional_column(score, len(shards)), shards=shards, similar_to=optional(similar_to, "similar_to"))
    constraints = Constraints(min(k, len(shards)))
    request = Request(k, 0, labelled_of(labelled, shards.width, metric), constraints, memory=memory, terms=terms or {})
    return combine_strategy(candidates, request).rows


def combine_strategy(candidates: Candidates, request: Request) -> Picked:
    """Run `combine` in a query."""
    shards = embeddings(candidates, "combine")
    similar = vectors(candidates.similar_to, shards.width, shards.metric, "similar_to")
    terms = checked_terms(request.terms, score=candidates.score is not None, similar_to=len(similar) > 0)
    free = np.ones(len(shards), dtype=bool)
    free[request.constraints.taken] = False
    if not free.any() or request.budget <= 0:
        return Picked(np.empty(0, dtype=np.int64), np.empty(0))
    worth = np.ones(len(shards))
    if "score" in terms:
        score = checked_weights(np.asarray(candidates.score), len(shards))
        worth *= _utility(score / max(score.max(), np.finfo(np.float64).tiny), terms["score"], free)
    facts: Facts = {}
    if "typicality" in terms:
        typical, facts = typicality(gathered(shards.rows, request.memory, "combine"))
        worth *= _utility(typical, terms["typicality"], free)
    if "similarity" in terms:
        worth *= _utility(similarity(shards.rows, similar), terms["similarity"], free)
    if not worth[free].any():
        worth = np.ones(len(shards))
    passes = len(terms.keys() & {"typicality", "similarity"})
    reach = covering_radius(shards, request.labelled) if "distance" in terms else 0.0
    if reach > 0:
        return replace(_spread(shards, request, worth, free, terms["distance"], reach, passes + 1), facts=facts)
    # distances that are all 0 tell no rows apart either
    limit = len(shards) if request.constraints.reach is None else request.constraints.reach
    rows = walk(top_k(worth, limit), request.budget, request.constraints, shards.gather)
    return Picked(rows, worth[rows], passes=passes, facts=facts)


def checked_terms(terms: Mapping[str, float], *, score: bool, similar_to: bool) -> dict[str, float]:
    """Return the strengths above 0 by name, those of the default where none are given."""
    for name, strength in terms.items():
        if name not in TERMS:
            raise QueryError(f"`terms.{name}` is unknown{did_you_mean(name, TERMS)}")
        if not 0 <= strength < math.inf:
            raise QueryError(f"`terms.{name}` is {strength}, expected a strength of at least 0")
    if not terms:
        terms = {"score": 1.0, "distance": 1.0} | ({"similarity": 1.0} if similar_to else {})
    used = {name: float(strength) for name, strength in terms.items() if strength > 0}
    if not used:
        raise QueryError("`terms` have no strength above 0, which would leave nothing to choose by; raise one")
    if "score" in used and not score:
        raise QueryError("`terms.score` needs a `score`, but the candidates have none; give one, or name other `terms`")
    if "similarity" in used and not similar_to:
        raise QueryError("`terms.similarity` needs rows to be similar to; give `similar_to`")
    if similar_to and "similarity" not in terms:
        raise QueryError("`similar_to` does nothing without `terms.similarity`; give it a strength or remove the rows")
    return used


def _utility(value: Array, strength: float, free: Array) -> Array:
    """Compute (n,) float64 value^strength; 1 where all rows that are free have 0, which tells none apart."""
    powered: Array = np.power(value, strength)
    return powered if powered[free].any() else np.ones(len(value))


def _spread(shards: Shards, request: Request, worth: Array, free: Array, strength: float, reach: float, passes: int) -> Picked:
    """Choose greedily on worth * (distance / reach)^strength, which orders rows as worth^(1 / strength) * distance does."""
    peak = float(worth[free].max())
    weight = np.zeros(len(worth))
    # divided by the largest first: a high power of small numbers is 0 for all rows
    weight[free] = np.power(worth[free] / peak, 1 / strength) / reach
    found = farthest_first(
        shards,
        request.budget,
        gain=Gain(weight),
        labelled=request.labelled,
        exclude=request.constraints.taken,
        constraints=request.constraints,
    )
    gain = peak * np.power(found.gain, strength)
    return Picked(found.rows, gain, found.distance, found.passes + passes)

"""Facility location: rows that together resemble a sample of the pool, each target counting its most similar row.

Wei, Iyer and Bilmes, *Submodularity in data subset selection and active learning*, 2015. Similarity is max(cos, 0):
the value stays monotone and submodular from 0, and what a row merely isn't opposed to it doesn't represent.
(1 + cos) / 2 would credit any row with half of everything, which empties the guarantee of 1 - 1/e of the optimum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from raystream.selection.arguments import checked_seed, count, labelled_of, shards_of
from raystream.selection.constraints import Constraints
from raystream.selection.coverage import Coverage
from raystream.selection.hashing import draw, row_hash
from raystream.selection.kernels import Cosine
from raystream.selection.lazy_greedy import LazyGreedy
from raystream.selection.rows import Array, normalised, not_finite
from raystream.selection.shards import DEFAULT_MEMORY, Shards
from raystream.selection.strategies.core_set import farthest_first
from raystream.selection.strategies.ranking import lowest
from raystream.selection.strategy import Candidates, Picked, Request, embeddings, row_keys

TARGETS = 20_000
_PAIRS = 1 << 32
_FEWEST = 2000


@dataclass(frozen=True)
class Representatives:
    """The result of the greedy choice.

    Attributes:
        rows: (b,) int64 in order of choice.
        gain: (b,) float64, what each added; 0 for those taken by distance.
        by_distance: how many of the last rows were taken farthest-first, as nothing added anything.
        passes: how often the candidates were read, in whole pools.
    """

    rows: Array
    gain: Array
    by_distance: int
    passes: int


def facility_location(
    x: ArrayLike, k: int, *, labelled: ArrayLike | None = None, seed: int = 0, targets: int | None = None, memory: int = DEFAULT_MEMORY
) -> Array:
    """Choose k rows that represent the pool: each next one adds most to sum over targets of the largest max(cos, 0).

    The order is that of plain greedy on float64 gains, ties to the lower row. Rows that add nothing any more, which are
    those of which every direction is taken, follow farthest-first. Rows of zeros resemble nothing.

    Args:
        x: (n, d) embeddings; taken as float32 unless float16.
        k: how many rows; all n when there are fewer.
        labelled: (m, d) rows that represent targets already.
        seed: of the draw.
        targets: how many rows to represent, drawn by hashes of (seed, row); see `target_count`.
        memory: bytes of working copies.

    Returns:
        (min(k, n),) int64 row numbers in order of choice.

    Raises:
        DataError: embeddings that are not finite, or not as wide as the labelled ones.
    """
    shards = shards_of(x, memory=memory)
    chosen = target_rows(row_hash(checked_seed(seed), np.arange(len(shards))), targets)
    coverage = Coverage(normalised(shards.gather(chosen)), np.ones(len(chosen)), Cosine())
    return represent(shards, coverage, count(k), labelled=labelled_of(labelled, shards.width, "euclidean")).rows


def target_count(n: int) -> int:
    """Choose how many of n rows are targets by default: 20,000, but at most 2^32 pairs with the candidates, and at least 2,000."""
    return min(n, TARGETS, max(_PAIRS // max(n, 1), _FEWEST))


def target_rows(keys: Array, count: int | None = None) -> Array:
    """Find (m,) int64 ascending: the rows whose draws from (n,) uint64 `keys` are the lowest."""
    rows = lowest(draw(keys, "targets"), target_count(len(keys)) if count is None else count)
    rows.sort()
    return rows


def represent(
    shards: Shards, coverage: Coverage, k: int, *, labelled: Array | None = None, constraints: Constraints | None = None
) -> Representatives:
    """Choose greedily on `coverage`, then farthest-first.

    Args:
        shards: the candidates.
        coverage: of the targets, by nothing yet.
        k: how many rows at most.
        labelled: (m, d) float32 in the metric's space.
        constraints: rows that they block are passed over; they are told of the chosen rows.
    """
    survey = shards.survey()
    if survey.bad:
        raise not_finite(survey.bad, survey.first_bad)
    limits = Constraints(k) if constraints is None else constraints
    covered = np.empty((0, shards.width), dtype=np.float32) if labelled is None else labelled
    coverage.cover(normalised(covered))
    greedy = LazyGreedy(shards, coverage, limits)
    greedy.run(k)
    rows, gain = np.asarray(greedy.rows, dtype=np.int64), np.asarray(greedy.gain, dtype=np.float64)
    passes = math.ceil(greedy.read / max(len(shards), 1))
    if len(rows) == min(k, len(shards)):
        return Representatives(rows, gain, 0, passes)
    covered = np.concatenate([covered, shards.gather(rows)])
    rest = farthest_first(shards, k - len(rows), labelled=covered, exclude=limits.taken, constraints=limits)
    rows = np.concatenate([rows, rest.rows])
    return Representatives(rows, np.concatenate([gain, np.zeros(len(rest.rows))]), len(rest.rows), passes + rest.passes)


def facility_location_strategy(candidates: Candidates, request: Request) -> Picked:
    """Run `facility_location` in a query."""
    shards = embeddings(candidates, "facility_location")
    chosen = target_rows(row_keys(candidates, "facility_location"), request.args.get("targets"))
    coverage = Coverage(normalised(shards.gather(chosen)), np.ones(len(chosen)), Cosine())
    found = represent(shards, coverage, request.budget, labelled=request.labelled, constraints=request.constraints)
    facts = {"targets": len(chosen), "by_distance": found.by_distance}
    return Picked(found.rows, found.gain, passes=found.passes, facts=facts)

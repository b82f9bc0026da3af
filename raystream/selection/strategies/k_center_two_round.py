"""Farthest-first for pools far beyond one machine: on each piece of the rows first, then on what the pieces chose.

Malkomes et al., *Fast distributed k-center clustering with outliers on massive data*, 2015; Ceccarello,
Pietracaprina and Pucci, *Solving k-center clustering (with outliers) in MapReduce and streaming, almost as
accurately as sequentially*, 2019. In many dimensions the cap on a piece's picks decides, not eps: what
was reached is `TwoRounds.within`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from raystream.errors import QueryError
from raystream.selection.arguments import count as checked_count
from raystream.selection.arguments import labelled_of, shards_of
from raystream.selection.constraints import Constraints
from raystream.selection.rows import Array, Metric
from raystream.selection.shards import DEFAULT_MEMORY, Shards
from raystream.selection.strategies.core_set import FarthestFirst, covered, covering_radius, farthest_first
from raystream.selection.strategy import Candidates, Picked, Request, embeddings

PIECE = 262_144
_NO_ROWS = np.empty(0, dtype=np.int64)
_CAP = 4
"""A piece keeps at most this many times as many rows as are asked for."""


@dataclass(frozen=True)
class TwoRounds:
    """The result of the two rounds.

    Attributes:
        rows: (b,) int64 in order of choice.
        gain: (b,) float64, the distance, the first one's to the mean of what the pieces chose if nothing is labelled.
        distance: (b,) float64 to the nearest row chosen before or labelled; nan for the first if nothing is labelled.
        passes: over the rows, one for the radius included.
        radius: the largest distance of a row to the chosen and labelled ones.
        within: radius / max(R / 2, d / 2), R and d the distances of the would-be pick k + 1 among the union and, the
            largest, within a piece: the radius is at most this many times the optimum's; 1 if both are 0.
        pieces: how many there were, and `kept` how many rows they handed on.
    """

    rows: Array
    gain: Array
    distance: Array
    passes: int
    radius: float
    within: float
    pieces: int
    kept: int


def k_center_two_round(
    x: ArrayLike, k: int, *, labelled: ArrayLike | None = None, metric: Metric = "euclidean", eps: float = 0.5, piece: int = PIECE
) -> Array:
    """Choose k rows so that every row is near a chosen one, in two rounds.

    Each piece of `piece` rows in a row runs farthest-first until its covering radius is at most eps / 2 of
    that after k picks, but for 4 k picks at most; farthest-first on what the pieces chose gives the rows.

    Args:
        x: (n, d) embeddings; taken as float32 unless float16.
        k: how many rows; all n when there are fewer.
        labelled: (m, d) rows that count as chosen already, in both rounds.
        metric: `cosine` works on rows divided by their lengths.
        eps: above 0; the smaller, the more rows a piece hands on.
        piece: rows of a piece, counted from the first row.

    Returns:
        (min(k, n),) int64 rows in order of choice.

    Raises:
        DataError: embeddings that are not finite, or not as wide as the labelled ones.
        QueryError: eps or piece out of range.
    """
    shards = shards_of(x, metric)
    return two_rounds(shards, checked_count(k), eps=eps, piece=piece, labelled=labelled_of(labelled, shards.width, metric)).rows


def two_rounds(
    shards: Shards,
    k: int,
    *,
    eps: float = 0.5,
    piece: int = PIECE,
    labelled: Array | None = None,
    constraints: Constraints | None = None,
    memory: int = DEFAULT_MEMORY,
) -> TwoRounds:
    """Run `k_center_two_round` over shards; if constraints leave too few of the kept rows, the rest comes from all rows.

    Args:
        shards: the candidates; how they are sharded has no influence on the result.
        k, eps, piece: see `k_center_two_round`.
        labelled: (m, d) float32 in the metric's space.
        constraints: rows that they block are passed over in the second round; `within` is not proven with them.
        memory: bytes for a piece's working copy.
    """
    if not 0 < eps < np.inf or piece < 1:
        raise QueryError(f"`eps` is {eps} and `piece` {piece}, expected a number above 0 and a whole number of at least 1")
    n = len(shards)
    if n == 0 or k <= 0:
        return TwoRounds(_NO_ROWS, np.empty(0), np.empty(0), 0, 0.0, 1.0, 0, 0)
    taken = np.empty(0, dtype=np.int64) if constraints is None else constraints.taken
    kept, widest, passes = [], 0.0, 1
    for begin in range(0, n, piece):
        rows = np.setdiff1d(np.arange(begin, min(begin + piece, n)), taken, assume_unique=True)
        if len(rows):
            found = farthest_first(shards.subset(rows, memory), _CAP * k + 1, labelled=labelled)
            count, reached = _enough(found.distance, k, eps)
            kept.append(rows[found.rows[:count]])
            widest, passes = max(widest, reached), max(passes, found.passes + 1)
    if not kept:
        return TwoRounds(_NO_ROWS, np.empty(0), np.empty(0), 0, 0.0, 1.0, 0, 0)
    union = np.sort(np.concatenate(kept))
    final, reached = _second_round(shards.subset(union, memory), union, k, labelled, constraints)
    if constraints is not None and not constraints.free and len(final.rows) < k:
        covers = covered(shards, labelled, final.rows)
        rest = farthest_first(shards, k - len(final.rows), labelled=covers, exclude=constraints.taken, constraints=constraints)
        final = _joined(final, rest)
    radius = covering_radius(shards, covered(shards, labelled, final.rows))
    proven = max(widest, reached) / 2
    within = radius / proven if proven > 0 else 1.0
    return TwoRounds(final.rows, final.gain, final.distance, passes, radius, within, len(kept), len(union))


def k_center_two_round_strategy(candidates: Candidates, request: Request) -> Picked:
    """Run `k_center_two_round` in a query."""
    found = two_rounds(
        embeddings(candidates, "k_center_two_round"),
        request.budget,
        labelled=request.labelled,
        constraints=request.constraints,
        memory=request.memory,
        **request.args,
    )
    facts: dict[str, float | int | str] = {"passes": found.passes, "pieces": found.pieces, "kept": found.kept}
    if request.constraints.free:
        facts["within"] = found.within
    return Picked(found.rows, found.gain, found.distance, found.passes, facts=facts)


def _enough(distance: Array, k: int, eps: float) -> tuple[int, float]:
    """Choose how many of a piece's picks to hand on; also d, the distance of its pick k + 1; that of pick j is the radius after j picks."""
    if len(distance) <= k:
        return len(distance), 0.0
    spread = float(distance[k])
    near = np.flatnonzero(distance[k:] <= eps / 2 * spread)
    return k + int(near[0]) if len(near) else min(len(distance), _CAP * k), spread


def _second_round(
    shards: Shards, union: Array, k: int, labelled: Array | None, constraints: Constraints | None
) -> tuple[FarthestFirst, float]:
    """Choose up to k rows of the union, and measure the distance of pick k + 1 of unconstrained farthest-first."""
    found = farthest_first(shards, k + 1, labelled=labelled)
    spread = float(found.distance[k]) if len(found.rows) > k else 0.0
    if constraints is not None and not constraints.free:
        found = farthest_first(shards, k, labelled=labelled, constraints=_Renumbered(constraints, union))
    elif constraints is not None:
        for row in found.rows[:k]:
            constraints.take(int(union[row]))
    return replace(found, rows=union[found.rows[:k]], gain=found.gain[:k], distance=found.distance[:k]), spread


def _joined(first: FarthestFirst, rest: FarthestFirst) -> FarthestFirst:
    rows, gain = np.concatenate([first.rows, rest.rows]), np.concatenate([first.gain, rest.gain])
    return replace(first, rows=rows, gain=gain, distance=np.concatenate([first.distance, rest.distance]), passes=first.passes + rest.passes)


class _Renumbered(Constraints):
    """Constraints on candidates, asked of a subset in which they are numbered from 0."""

    def __init__(self, constraints: Constraints, rows: Array) -> None:
        self._all, self._rows = constraints, rows

    @property
    def free(self) -> bool:
        return self._all.free

    def blocked(self, rows: Array, x: Array | None = None) -> Array:
        return self._all.blocked(self._rows[rows], x)

    def take(self, row: int, x: Array | None = None, why: str | None = None) -> None:
        self._all.take(int(self._rows[row]), x, why)

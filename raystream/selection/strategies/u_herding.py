"""Uncertainty herding: rows that resemble what the model is uncertain about.

Bae, Sutherland, Oliveira and Ren, *Uncertainty herding: one active learning method for all label budgets*, 2024.
It is facility location with a Gaussian kernel on unit rows, each target weighted by its score.

The weights are worth what the probabilities are, as in the paper, which calibrates them: an underfit model's margins all lie near 1, and
then density alone is left. Over 20 splits of WordNet's glosses, 12 classes and up to 240 labels, a logistic regression on MiniLM's rows
gained 4.2 points (.6) over chance with the margins as they are, and 6.4 (.5) with logits divided by .1; handwritten digits 4.5 (.3).

It is not for TF-IDF of short texts, where few rows have neighbours and those that do nearly repeat each other. On its singular vectors the
same classes gained 2.3 points (.8) at 90 labels and lost 2.4 (.7) at 240, with other widths and temperatures as well; `k_means` gained
1.0 at both.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike

from raystream.errors import QueryError
from raystream.selection.arguments import checked_seed, column, count, labelled_of, shards_of
from raystream.selection.bounds import Encoding
from raystream.selection.coverage import Coverage
from raystream.selection.hashing import checked_weights, row_hash
from raystream.selection.kernels import Gaussian
from raystream.selection.rows import Array, normalised, squared_distances
from raystream.selection.shards import DEFAULT_MEMORY, Shards
from raystream.selection.strategies.facility_location import represent, target_rows
from raystream.selection.strategy import Candidates, Picked, Request, embeddings, row_keys, scores

_NEIGHBOUR = 20
_ASKED = 1024
_AT_ONCE = 128


def u_herding(
    x: ArrayLike,
    k: int,
    *,
    score: ArrayLike,
    labelled: ArrayLike | None = None,
    seed: int = 0,
    delta: float | None = None,
    targets: int | None = None,
    memory: int = DEFAULT_MEMORY,
) -> Array:
    """Choose k rows, each of which adds most to sum over targets t of score_t * max over chosen c of exp(-|c - t|^2 / delta^2).

    Distances are those of rows of length one. The order is that of plain greedy on float64 gains, ties to the lower row; when
    nothing adds anything any more, farthest-first goes on. Rows of zeros resemble nothing.

    Args:
        x: (n, d) embeddings; taken as float32 unless float16.
        k: how many rows; all n when there are fewer.
        score: (n,), at least 0; all zero means uniform.
        labelled: (m, d) rows that represent targets already.
        seed: of the draw.
        delta: the kernel's width; left out, `default_delta`.
        targets: how many rows to represent, drawn by hashes of (seed, row); see `target_count`.
        memory: bytes of working copies.

    Returns:
        (min(k, n),) int64 row numbers in order of choice.

    Raises:
        DataError: embeddings that are not finite, or not as wide as the labelled ones.
        QueryError: a negative score, or a delta that is not above 0.
    """
    shards = shards_of(x, memory=memory)
    covered = labelled_of(labelled, shards.width, "euclidean")
    chosen = target_rows(row_hash(checked_seed(seed), np.arange(len(shards))), targets)
    coverage, _ = _coverage(shards, chosen, column(score, len(shards)), covered, delta)
    return represent(shards, coverage, count(k), labelled=covered).rows


def default_delta(targets: Array, labelled: Array) -> float:
    """Compute the median distance of targets to their 20th neighbour, or of labelled rows to their nearest labelled one where that is less.

    The more is labelled, the closer it lies, and the finer is what is left to explain. The paper takes the least distance of two
    labelled rows; among texts some pair is nearly equal, under whose distance every row resembles itself alone. Equal rows don't
    count: distances of 0 are left out. Up to 1,024 evenly spaced rows are asked.

    Args:
        targets: (m, d) float32 unit rows.
        labelled: (l, d) float32 unit rows.
    """
    delta = _typical(targets, _NEIGHBOUR)
    apart = _typical(np.unique(labelled, axis=0), 1)
    if delta is None:
        return 1.0 if apart is None else min(apart, 1.0)
    return delta if apart is None else min(delta, apart)


def _typical(x: Array, k: int) -> float | None:
    """Compute the median distance, above 0, of rows to their k-th neighbour, or to the last if there are fewer; None if all are equal."""
    if len(x) < 2:
        return None
    step = -(-len(x) // _ASKED)
    distance = np.sqrt(_neighbours(x[::step], x, min(k, len(x) - 1)))
    apart = distance[distance > 0]
    return float(np.median(apart)) if len(apart) else None


def _neighbours(asked: Array, x: Array, k: int) -> Array:
    """Measure (a,) the squared distance of each of `asked` to the k-th nearest of `x`, counted from 0, by the definition."""
    result = np.empty(len(asked))
    if not len(asked):
        return result
    encoding = Encoding.fit(x.mean(axis=0, dtype=np.float64), 1.0, on_grid=False, precision="float32")
    rows, _ = encoding.rows(x)
    largest = float(rows[:, -2].max())
    for begin in range(0, len(asked), _AT_ONCE):
        some = asked[begin : begin + _AT_ONCE]
        centres, _ = encoding.centres(some)
        above = torch.mm(centres, rows.T).numpy()
        width = encoding.width_of(centres[:, -1].double().numpy() + largest)
        last = np.partition(above, k, axis=1)[:, k] + width
        for i, row in enumerate(some):
            near = np.flatnonzero(above[i] <= last[i])
            result[begin + i] = np.partition(squared_distances(x[near], row), k)[k]
    return result


def _coverage(shards: Shards, chosen: Array, score: Array, labelled: Array, delta: float | None) -> tuple[Coverage, float]:
    """Make the coverage of the rows `chosen` as targets; returns it and the delta it was made with."""
    weight = checked_weights(score, len(shards))[chosen]
    x = normalised(shards.gather(chosen))
    width = default_delta(x, normalised(labelled)) if delta is None else delta
    if not width > 0:
        raise QueryError(f"`delta` is {width}, expected a number above 0")
    return Coverage(x, weight if weight.any() else np.ones(len(weight)), Gaussian(width)), width


def u_herding_strategy(candidates: Candidates, request: Request) -> Picked:
    """Run `u_herding` in a query."""
    shards = embeddings(candidates, "u_herding")
    chosen = target_rows(row_keys(candidates, "u_herding"), request.args.get("targets"))
    labelled = np.empty((0, shards.width), dtype=np.float32) if request.labelled is None else request.labelled
    coverage, delta = _coverage(shards, chosen, scores(candidates, "u_herding"), labelled, request.args.get("delta"))
    found = represent(shards, coverage, request.budget, labelled=labelled, constraints=request.constraints)
    facts = {"targets": len(chosen), "delta": delta, "by_distance": found.by_distance}
    return Picked(found.rows, found.gain, passes=found.passes, facts=facts)

"""Weighted k-means selection: one row for each part of the space, where the weights ask for many or few parts.

The weights are usually the acquisition score, as in Zhdanov, *Diverse mini-batch active learning*, 2019.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import faiss
import numpy as np
import torch
from numpy.typing import ArrayLike

from raystream.selection.arguments import checked_seed, count, optional_column, rows_of
from raystream.selection.bounds import Encoding
from raystream.selection.constraints import Constraints
from raystream.selection.represents import assign
from raystream.selection.rows import Array, Metric, Rows, as_rows, squared_distances
from raystream.selection.shards import DEFAULT_MEMORY
from raystream.selection.strategy import Candidates, Picked, Request, embeddings, gathered
from raystream.selection.weights import checked_weights

ONE_LEVEL = 20_000
"""Above this many centres, k-means runs on coarse clusters first and then within each."""
_PRODUCTS = 1 << 23


@dataclass(frozen=True)
class Clustered:
    """`rows` (b,) int64 in descending weight of their clusters; `gain` (b,) float64, those weights."""

    rows: Array
    gain: Array


def k_means(
    x: ArrayLike,
    k: int,
    *,
    score: ArrayLike | None = None,
    metric: Metric = "euclidean",
    seed: int = 0,
    iterations: int = 20,
    memory: int = DEFAULT_MEMORY,
) -> Array:
    """Choose the rows nearest to the centres of weighted k-means.

    To each centre, in descending weight of its cluster (ties to the lower centre), the nearest row that
    is not taken yet; distances in float64, ties to the lower row.

    Args:
        x: (n, d) embeddings; taken as float32 unless float16.
        k: how many rows; all n when there are fewer.
        score: (n,), at least 0, by which rows pull centres; left out or all zero, they do so equally.
        metric: `cosine` works on rows divided by their lengths.
        seed: of the first centres.
        iterations: of Lloyd's algorithm.
        memory: bytes that the rows may take as float32.

    Returns:
        (min(k, n),) int64 distinct rows, the heaviest cluster first.

    Raises:
        DataError: embeddings that are not finite.
        QueryError: a negative score, or rows that don't fit `memory`.
    """
    rows = rows_of(x, metric)
    weight = optional_column(score, len(rows))
    return cluster(rows, count(k), weight=weight, seed=checked_seed(seed), iterations=iterations, memory=memory).rows


def cluster(
    rows: Rows,
    k: int,
    *,
    weight: Array | None = None,
    seed: int = 0,
    iterations: int = 20,
    memory: int = DEFAULT_MEMORY,
    constraints: Constraints | None = None,
    one_level: int = ONE_LEVEL,
) -> Clustered:
    """`k_means` over rows wherever they are, passing over those that `constraints` block."""
    n = len(rows)
    k = min(k, n)
    checked = _weights(weight, n)
    if k <= 0:
        return Clustered(np.empty(0, dtype=np.int64), np.empty(0))
    x = gathered(rows, memory, "k_means")
    centres = x if k == n else fit_centres(x, checked, k, seed, iterations, one_level)
    heavy = np.bincount(assign(as_rows(x), centres).nearest, weights=checked, minlength=k)
    order = np.argsort(-heavy, kind="stable")
    return _nearest_unused(x, centres[order], heavy[order], constraints)


def _weights(weight: Array | None, n: int) -> Array:
    """(n,) float64, checked; uniform when there are none."""
    if weight is None:
        return np.ones(n)
    checked = checked_weights(weight, n)
    return checked if checked.any() else np.ones(n)


def fit_centres(x: Array, weight: Array, k: int, seed: int, iterations: int, one_level: int) -> Array:
    """(k, d) float32; k is below the number of rows."""
    if k <= one_level:
        return _faiss(x, weight, k, seed, iterations)
    coarse = _faiss(x, weight, min(int(np.ceil(np.sqrt(k))), one_level), seed, iterations)
    nearest = assign(as_rows(x), coarse).nearest
    share = _shares(np.bincount(nearest, weights=weight, minlength=len(coarse)), np.bincount(nearest, minlength=len(coarse)), k)
    found = []
    for part in np.flatnonzero(share):
        here = np.flatnonzero(nearest == part)
        inner = weight[here] if weight[here].any() else np.ones(len(here))
        count = int(share[part])
        found.append(x[here] if count == len(here) else fit_centres(x[here], inner, count, seed, iterations, one_level))
    return np.concatenate(found)


def _shares(weight: Array, room: Array, k: int) -> Array:
    """(c,) int64: k centres shared out in proportion to the weights, at most `room` each; k is at most the sum of room."""
    share = np.zeros(len(weight), dtype=np.int64)
    while share.sum() < k:
        open_ = share < room
        asked = np.where(open_, weight, 0.0)
        asked = asked if asked.any() else open_.astype(np.float64)
        left = int(k - share.sum())
        part = asked / asked.sum() * left
        more = np.minimum(np.floor(part).astype(np.int64), room - share)
        if not more.any():  # fewer left than parts: one each to the largest
            order = np.argsort(-part, kind="stable")
            order = order[open_[order]][:left]
            more[order] = 1
        share += more
    return share


def _faiss(x: Array, weight: Array, k: int, seed: int, iterations: int) -> Array:
    """FAISS subsamples to 256 points a centre unless told otherwise, and ends the process when float32 squares overflow."""
    power = scale_power(x)
    if power:
        scaled = np.ldexp(x, power)
        return np.ldexp(_faiss(scaled, weight, k, seed, iterations), -power)
    inner = faiss.Kmeans(x.shape[1], k, niter=iterations, seed=seed % 2**31, max_points_per_centroid=2**31 - 1, min_points_per_centroid=1)
    with one_faiss_thread():
        # a common factor doesn't move centres, and keeps large weights finite in float32
        inner.train(x, weights=np.ascontiguousarray(weight / weight.max(), dtype=np.float32))
    centres: Array = np.asarray(inner.centroids, dtype=np.float32).reshape(k, x.shape[1])
    return centres


def scale_power(x: Array) -> int:
    """p such that 2^p x has norms near one; 0 where the squares of x are far from float32's limits already."""
    exponent = math.frexp(max(float(x.max(initial=0.0)), -float(x.min(initial=0.0))) * math.sqrt(x.shape[1]))[1]
    return 0 if -30 <= exponent <= 60 else -exponent


@contextmanager
def one_faiss_thread() -> Iterator[None]:
    """How a matrix product is shared out among threads may change its last bits, and with them a selection."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _nearest_unused(x: Array, centres: Array, weight: Array, constraints: Constraints | None) -> Clustered:
    """To each centre in turn the nearest row that is neither used nor blocked."""
    largest = max(float(np.abs(x).max()), float(np.abs(centres).max()))
    encoding = Encoding.fit(x.mean(axis=0, dtype=np.float64), largest, on_grid=False, precision="float32")
    operand = encoding.rows(x)[0]
    largest_square = float(operand[:, -2].max())
    used = np.zeros(len(x), dtype=bool)
    rows: list[int] = []
    gain: list[float] = []
    step = max(_PRODUCTS // len(x), 1)
    for begin in range(0, len(centres), step):
        block = centres[begin : begin + step]
        centre_operand, _ = encoding.centres(block)
        products = torch.mm(centre_operand, operand.T).numpy()
        for i, centre in enumerate(block):
            width = float(encoding.width_of(np.asarray(largest_square + float(centre_operand[i, -1]))))
            row = _nearest_free(x, centre, products[i], width, used, constraints)
            if row is None:
                return Clustered(np.asarray(rows, dtype=np.int64), np.asarray(gain))
            rows.append(row)
            gain.append(float(weight[begin + i]))
    return Clustered(np.asarray(rows, dtype=np.int64), np.asarray(gain))


def _nearest_free(x: Array, centre: Array, product: Array, width: float, used: Array, constraints: Constraints | None) -> int | None:
    """The nearest free row, which is marked as used; so are the blocked ones met on the way."""
    while True:
        free = np.where(used, np.float32(np.inf), product)
        least = float(free.min())
        if least == np.inf:
            return None
        close = np.flatnonzero(free <= np.nextafter(np.float32(max(least, 0.0) + width), np.float32(np.inf)))
        row = int(close[np.argmin(squared_distances(x[close], centre))])
        used[row] = True
        if constraints is None:
            return row
        if not constraints.blocked(np.asarray([row]), x[row : row + 1])[0]:
            constraints.take(row, x[row])
            return row


def k_means_strategy(candidates: Candidates, request: Request) -> Picked:
    """`k_means` in a query, weighted by the score."""
    found = cluster(
        embeddings(candidates, "k_means").rows,
        request.budget,
        weight=candidates.score,
        seed=request.seed,
        memory=request.memory,
        constraints=request.constraints,
        **request.args,
    )
    return Picked(found.rows, found.gain, passes=1)

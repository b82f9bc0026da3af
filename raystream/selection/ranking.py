"""Strategies that rank rows by one number each: the highest scores, or chance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from raystream.errors import DataError
from raystream.selection.arguments import Ids, checked_seed, column, count, keys_of
from raystream.selection.constraints import Constraints
from raystream.selection.rows import Array
from raystream.selection.strategy import Candidates, Picked, Request, row_keys, scores

_AT_ONCE = 1 << 20
"""Keys among which the lowest are looked for at a time."""


def top_k(score: ArrayLike, k: int) -> Array:
    """The k rows of the highest scores, ties to the lower row.

    Args:
        score: (n,), higher = label sooner.
        k: how many; all n when there are fewer.

    Returns:
        (min(k, n),) int64, highest score first.

    Raises:
        DataError: a score is NaN.
    """
    return best(column(score), count(k))


def best(score: Array, k: int) -> Array:
    """`top_k` of a (n,) array."""
    bad = np.flatnonzero(np.isnan(score))
    if len(bad):
        raise DataError(f"{len(bad)} scores are NaN, first at row {bad[0]}; expected numbers")
    # complementing integers and negating floats turn "highest first" into "lowest first" without overflow
    return lowest(~score if score.dtype.kind in "iub" else -score, k)


def random(ids: Ids, k: int, *, seed: int = 0) -> Array:
    """k rows by chance: those of the lowest hashes of (seed, id), so that a row's luck doesn't depend on the other rows.

    Args:
        ids: (n,) integers, strings or bytes.
        k: how many; all n when there are fewer.
        seed: another seed draws other rows.

    Returns:
        (min(k, n),) int64, in the order of the draw.
    """
    return random_order(keys_of(ids, None, checked_seed(seed)), count(k))


def random_order(keys: Array, k: int) -> Array:
    """(min(k, n),) int64: the rows of the lowest of (n,) uint64 keys, ties to the lower row."""
    return lowest(np.asarray(keys, dtype=np.uint64), k)


def lowest(key: Array, k: int) -> Array:
    """(min(k, n),) int64: the rows of the k lowest keys, ascending, ties to the lower row; sorts no more than it returns."""
    n = len(key)
    k = min(max(k, 0), n)
    if k == 0:
        return np.empty(0, dtype=np.int64)
    rows = _among_lowest(key, k)
    result: Array = rows[np.argsort(key[rows], kind="stable")].astype(np.int64)
    return result


def _among_lowest(key: Array, k: int) -> Array:
    """The rows of `lowest`, ascending."""
    if k >= len(key):
        return np.arange(len(key))
    if len(key) > _AT_ONCE and 4 * k <= _AT_ONCE:  # block by block: a partition copies what it looks at
        rows = np.concatenate([start + _among_lowest(key[start : start + _AT_ONCE], k) for start in range(0, len(key), _AT_ONCE)])
        return np.asarray(rows[_among_lowest(key[rows], k)])
    last = np.partition(key, k - 1)[k - 1]
    below = np.flatnonzero(key < last)
    rows = np.concatenate([below, np.flatnonzero(key == last)[: k - len(below)]])
    rows.sort()
    return rows


def walk(order: Array, budget: int, constraints: Constraints, gather: Callable[[Array], Array] | None) -> Array:
    """The first `budget` rows of `order` (int64) that nothing blocks; the constraints are told of them.

    Args:
        order: candidates in the order in which they are wanted.
        budget: how many at most.
        constraints: of the batch.
        gather: rows (m,) int64 -> vectors (m, d) float32; needed if the constraints look at vectors.
    """
    taken: list[int] = []
    at, step = 0, max(min(budget, 1024), 16)
    while at < len(order) and len(taken) < budget:
        rows = order[at : at + step]
        x = gather(rows) if constraints.vectors and gather is not None else None
        free = np.flatnonzero(~constraints.blocked(rows, x))
        for i in free:
            if len(taken) == budget:
                break
            row, vector = int(rows[i]), None if x is None else x[i : i + 1]
            if constraints.free or not constraints.blocked(rows[i : i + 1], vector)[0]:
                constraints.take(row, None if vector is None else vector[0])
                taken.append(row)
        at += step
        step = min(2 * step, 16384)
    return np.asarray(taken, dtype=np.int64)


def top_k_strategy(candidates: Candidates, request: Request) -> Picked:
    """`top_k` in a query."""
    score = scores(candidates, "top_k")
    rows = _walked(best(score, _reach(request, len(score))), candidates, request)
    return Picked(rows, score[rows].astype(np.float64))


def random_strategy(candidates: Candidates, request: Request) -> Picked:
    """`random` in a query."""
    keys = row_keys(candidates, "random")
    rows = _walked(random_order(keys, _reach(request, len(keys))), candidates, request)
    return Picked(rows, np.full(len(rows), np.nan))


def _reach(request: Request, n: int) -> int:
    return n if request.constraints.reach is None else request.constraints.reach


def _walked(order: Array, candidates: Candidates, request: Request) -> Array:
    return walk(order, request.budget, request.constraints, None if candidates.shards is None else candidates.shards.gather)

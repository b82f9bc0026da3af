"""Strategies that rank rows by one number each: the highest scores, chance, or scores with a measured dose of chance.

The dose keeps a batch from being many copies of one uncertain row: Kirsch et al., *Stochastic batch acquisition: a simple baseline for
deep active learning*, 2021. Adding Gumbel noise to the logarithm of a weight and taking the k largest draws k rows without replacement
in proportion to their weights (Kool et al., 2019). A row's noise depends on the seed and its id alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from raystream.errors import DataError, QueryError
from raystream.selection.arguments import Ids, checked_seed, column, count, keys_of
from raystream.selection.constraints import Constraints
from raystream.selection.hashing import uniform
from raystream.selection.rows import Array
from raystream.selection.strategy import Candidates, Picked, Request, row_keys, scores
from raystream.selection.weights import checked_weights

_AT_ONCE = 1 << 20
"""Keys among which the lowest are looked for at a time."""


def top_k(score: ArrayLike, k: int) -> Array:
    """Choose the k rows of the highest scores, ties to the lower row.

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
    """Choose `top_k` of a (n,) array."""
    bad = np.flatnonzero(np.isnan(score))
    if len(bad):
        raise DataError(f"{len(bad)} scores are NaN, first at row {bad[0]}; expected numbers")
    # complementing integers and negating floats turn "highest first" into "lowest first" without overflow
    return lowest(~score if score.dtype.kind in "iub" else -score, k)


def random(ids: Ids, k: int, *, seed: int = 0) -> Array:
    """Choose k rows by chance: those of the lowest hashes of (seed, id), so that a row's luck doesn't depend on the other rows.

    Args:
        ids: (n,) integers, strings or bytes.
        k: how many; all n when there are fewer.
        seed: another seed draws other rows.

    Returns:
        (min(k, n),) int64, in the order of the draw.
    """
    return random_order(keys_of(ids, None, checked_seed(seed)), count(k))


def random_order(keys: Array, k: int) -> Array:
    """Return (min(k, n),) int64: the rows of the lowest of (n,) uint64 keys, ties to the lower row."""
    return lowest(np.asarray(keys, dtype=np.uint64), k)


def lowest(key: Array, k: int) -> Array:
    """Return (min(k, n),) int64: the rows of the k lowest keys, ascending, ties to the lower row; sorts no more than it returns."""
    n = len(key)
    k = min(max(k, 0), n)
    if k == 0:
        return np.empty(0, dtype=np.int64)
    rows = _among_lowest(key, k)
    result: Array = rows[np.argsort(key[rows], kind="stable")].astype(np.int64)
    return result


def _among_lowest(key: Array, k: int) -> Array:
    """Return the rows of `lowest`, ascending."""
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
    """Take the first `budget` rows of `order` (int64) that nothing blocks; the constraints are told of them.

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
    """Run `top_k` in a query."""
    score = scores(candidates, "top_k")
    rows = _walked(best(score, _reach(request, len(score))), candidates, request)
    return Picked(rows, score[rows].astype(np.float64))


def random_strategy(candidates: Candidates, request: Request) -> Picked:
    """Run `random` in a query."""
    keys = row_keys(candidates, "random")
    left = len(keys) - len(request.constraints.taken)
    rows = _walked(random_order(keys, _reach(request, len(keys))), candidates, request)
    chances = _even_chances(left, len(rows)) if request.constraints.leaves_chances else None
    return Picked(rows, np.full(len(rows), np.nan), probability=chances)


def _reach(request: Request, n: int) -> int:
    return n if request.constraints.reach is None else request.constraints.reach


def _walked(order: Array, candidates: Candidates, request: Request) -> Array:
    return walk(order, request.budget, request.constraints, None if candidates.shards is None else candidates.shards.gather)


def power(score: ArrayLike, k: int, *, seed: int = 0, ids: Ids | None = None, beta: float = 1.0) -> Array:
    """Draw k rows one after the other in proportion to score^beta.

    Args:
        score: (n,), at least 0, higher = label sooner; rows of score 0 come last, by chance alone.
        k: how many; all n when there are fewer.
        seed: another seed draws other rows.
        ids: (n,) integers, strings or bytes that decide each row's luck; left out, the row numbers.
        beta: above 0; near 0 it is chance, far above 1 it is `top_k`.

    Returns:
        (min(k, n),) int64, in the order of the draw.

    Raises:
        QueryError: scores that are negative, NaN or infinite, or a beta not above 0.
    """
    return _draw(_power_value, score, k, beta, ids, seed)


def softmax(score: ArrayLike, k: int, *, seed: int = 0, ids: Ids | None = None, beta: float = 1.0) -> Array:
    """Draw k rows one after the other in proportion to exp(beta * score); as `power`, but for scores of any sign.

    Raises:
        DataError: scores that are NaN or infinite.
        QueryError: a beta not above 0.
    """
    return _draw(_softmax_value, score, k, beta, ids, seed)


def softrank(score: ArrayLike, k: int, *, seed: int = 0, ids: Ids | None = None, beta: float = 1.0) -> Array:
    """Draw k rows one after the other in proportion to rank^-beta, rank 1 being the highest score, ties the lower row's.

    As `power`, but only the order of the scores matters, which may have any sign.

    Raises:
        DataError: scores that are NaN.
        QueryError: a beta not above 0.
    """
    return _draw(_softrank_value, score, k, beta, ids, seed)


def power_strategy(candidates: Candidates, request: Request) -> Picked:
    """Run `power` in a query."""
    return _drawn(_power_value, "power", candidates, request)


def softmax_strategy(candidates: Candidates, request: Request) -> Picked:
    """Run `softmax` in a query."""
    return _drawn(_softmax_value, "softmax", candidates, request)


def softrank_strategy(candidates: Candidates, request: Request) -> Picked:
    """Run `softrank` in a query."""
    return _drawn(_softrank_value, "softrank", candidates, request)


_NOISE_AT_ONCE = 1 << 16
"""Rows that are given noise at a time, so that what it is made of takes no memory a row."""

_Value = Callable[[Array, float], Array]
"""(n,) scores and beta -> (n,) float64 logarithms of the weights, -inf for a weight of 0."""


def _power_value(score: Array, beta: float) -> Array:
    weights = checked_weights(score, len(score))
    with np.errstate(divide="ignore"):
        result: Array = np.log(weights, out=None if np.may_share_memory(weights, score) else weights)
    result *= beta
    return result


def _softmax_value(score: Array, beta: float) -> Array:
    bad = np.flatnonzero(~np.isfinite(score))
    if len(bad):
        raise DataError(f"{len(bad)} scores are NaN or infinite, first at row {bad[0]}; expected finite numbers for softmax")
    return beta * score.astype(np.float64)


def _softrank_value(score: Array, beta: float) -> Array:
    bad = np.flatnonzero(np.isnan(score))
    if len(bad):
        raise DataError(f"{len(bad)} scores are NaN, first at row {bad[0]}; expected numbers")
    result = np.empty(len(score))
    order = np.argsort(~score if score.dtype.kind in "iu" else -score, kind="stable")
    result[order] = -beta * np.log(np.arange(1, len(score) + 1))
    return result


def _perturbed_order(value: Array, keys: Array, k: int) -> tuple[Array, Array]:
    """Order (min(k, n),) rows by value + Gumbel noise, ties to the lower row, then those of -inf by noise; and give (n,) sums, negated.

    `value` is written over with these.
    """
    for start in range(0, len(value), _NOISE_AT_ONCE):
        block = slice(start, start + _NOISE_AT_ONCE)
        np.negative(value[block] + _noise(keys[block]), out=value[block])
    order = lowest(value, k)
    order = order[value[order] < np.inf]
    if len(order) < min(k, len(value)):
        never = np.flatnonzero(value == np.inf)
        order = np.concatenate([order, never[lowest(-_noise(keys[never]), k - len(order))]])
    return order, value


def _noise(keys: Array) -> Array:
    """Draw (n,) Gumbel noise; one purpose for the three laws: with the same keys they differ by their weights, not by luck."""
    result: Array = -np.log(-np.log(uniform(keys, "power")))
    return result


def _checked_beta(beta: float) -> float:
    if not 0 < beta < np.inf:
        raise QueryError(f"`beta` is {beta}, expected a number above 0")
    return beta


def _draw(law: _Value, score: ArrayLike, k: int, beta: float, ids: Ids | None, seed: int) -> Array:
    values = column(score)
    keys = keys_of(ids, len(values), checked_seed(seed))
    return _perturbed_order(law(values, _checked_beta(beta)), keys, count(k))[0]


def _drawn(law: _Value, name: str, candidates: Candidates, request: Request) -> Picked:
    value, keys = law(scores(candidates, name), _checked_beta(float(request.args.get("beta", 1.0)))), row_keys(candidates, name)
    order, lowered = _perturbed_order(value, keys, _reach(request, len(value)))
    rows = _walked(order, candidates, request)
    chances = _chances(lowered, keys, rows, request.constraints.taken) if request.constraints.leaves_chances else None
    return Picked(rows, -lowered[rows], probability=chances)


def _chances(lowered: Array, keys: Array, rows: Array, taken: Array) -> Array | None:
    """Compute (b,) float64, each drawn row's weight over the sum of the weights left; None where weights of 0 leave some rows no chance.

    Sums are of logarithms, and go from what is left at the end back to the first draw: nothing is ever subtracted, so that the last
    draws are as exact as the first.

    Args:
        lowered: (n,) as `_perturbed_order` leaves it, from which the weights' logarithms come back by the noise.
        keys: (n,) of all rows.
        rows: (b,) int64, in the order of drawing.
        taken: these and the rows that were in the batch before.
    """
    finite = np.isfinite(lowered)
    if not finite.all():
        return None if finite.any() else _even_chances(len(lowered) - len(taken) + len(rows), len(rows))
    left = np.ones(len(lowered), dtype=bool)
    left[taken] = False
    sums = [-np.inf]
    for start in range(0, len(lowered), _NOISE_AT_ONCE):
        among = start + np.flatnonzero(left[start : start + _NOISE_AT_ONCE])
        if len(among):
            value = -lowered[among] - _noise(keys[among])
            sums.append(value.max() + np.log(np.exp(value - value.max()).sum()))
    value = -lowered[rows] - _noise(keys[rows])
    total = np.logaddexp.accumulate(np.append(np.logaddexp.reduce(sums), value[::-1]))
    chances: Array = np.exp(value - total[:0:-1])
    return chances


def _even_chances(n: int, count: int) -> Array:
    """Compute (count,) float64, 1 / rows left, where n are left before the first draw."""
    chances: Array = 1 / (n - np.arange(count, dtype=np.float64))
    return chances

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
from raystream.selection.hashing import check_weights, uniform
from raystream.selection.rows import Array
from raystream.selection.strategy import Candidates, Picked, Request, row_keys, scores
from raystream.threads import each

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
    rows = _ahead(score, k)
    return np.asarray(rows[lowest(_lowest_first(score[rows]), k)], dtype=np.int64)


def _ahead(score: Array, k: int) -> Array:
    """Return rows, ascending, among which the `best` are: of many, those of each block, so that not all of them are negated at once."""
    if len(score) <= _AT_ONCE or 4 * k > _AT_ONCE:
        return np.arange(len(score))
    blocks = range(0, len(score), _AT_ONCE)
    return np.concatenate([start + _among_lowest(_lowest_first(score[start : start + _AT_ONCE]), k) for start in blocks])


def _lowest_first(score: Array) -> Array:
    """Turn "highest first" into "lowest first" without overflow: integers are complemented, floats negated."""
    return ~score if score.dtype.kind in "iub" else -score


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
    if k >= len(key) or k <= 0:
        return np.arange(len(key) if k > 0 else 0)
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

_Value = Callable[[slice | Array], Array]
"""Some of the rows -> (m,) float64 logarithms of their weights, -inf for a weight of 0."""
_Law = Callable[[Array, float], _Value]
"""All (n,) scores, which are checked, and beta."""


def _power_value(score: Array, beta: float) -> _Value:
    check_weights(score, len(score))

    def value(at: slice | Array) -> Array:
        with np.errstate(divide="ignore"):
            return beta * np.log(score[at].astype(np.float64))

    return value


def _softmax_value(score: Array, beta: float) -> _Value:
    bad = np.flatnonzero(~np.isfinite(score))
    if len(bad):
        raise DataError(f"{len(bad)} scores are NaN or infinite, first at row {bad[0]}; expected finite numbers for softmax")
    return lambda at: beta * score[at].astype(np.float64)


def _softrank_value(score: Array, beta: float) -> _Value:
    bad = np.flatnonzero(np.isnan(score))
    if len(bad):
        raise DataError(f"{len(bad)} scores are NaN, first at row {bad[0]}; expected numbers")
    result = np.empty(len(score))
    order = np.argsort(~score if score.dtype.kind in "iu" else -score, kind="stable")
    result[order] = -beta * np.log(np.arange(1, len(score) + 1))
    return lambda at: result[at]


def _perturbed_order(value: _Value, keys: Array, k: int) -> tuple[Array, Array]:
    """Order rows by value + Gumbel noise, ties to the lower row, then those of -inf by noise.

    Returns:
        (min(k, n),) int64 rows, and their sums.
    """
    blocks = [slice(start, start + _NOISE_AT_ONCE) for start in range(0, len(keys), _NOISE_AT_ONCE)]

    def see(block: slice) -> tuple[Array, Array]:
        lowered = -(value(block) + _noise(keys[block]))
        rows = _among_lowest(lowered, k)
        return block.start + rows, lowered[rows]

    found = each(blocks, lambda: see)  # of each block those that may be ahead of all
    rows = np.concatenate([np.empty(0, np.int64), *(some for some, _ in found)])
    lowered = np.concatenate([np.empty(0), *(some for _, some in found)])
    order = lowest(lowered, k)
    order = order[lowered[order] < np.inf]
    rows, lowered = rows[order], lowered[order]
    if len(rows) < min(k, len(keys)):
        never = np.concatenate([block.start + np.flatnonzero(np.isneginf(value(block))) for block in blocks])
        never = never[lowest(-_noise(keys[never]), k - len(rows))]
        rows, lowered = np.concatenate([rows, never]), np.concatenate([lowered, np.full(len(never), np.inf)])
    return rows, -lowered


def _noise(keys: Array) -> Array:
    """Draw (n,) Gumbel noise; one purpose for the three laws: with the same keys they differ by their weights, not by luck."""
    result: Array = -np.log(-np.log(uniform(keys, "power")))
    return result


def _checked_beta(beta: float) -> float:
    if not 0 < beta < np.inf:
        raise QueryError(f"`beta` is {beta}, expected a number above 0")
    return beta


def _draw(law: _Law, score: ArrayLike, k: int, beta: float, ids: Ids | None, seed: int) -> Array:
    values = column(score)
    keys = keys_of(ids, len(values), checked_seed(seed))
    return _perturbed_order(law(values, _checked_beta(beta)), keys, count(k))[0]


def _drawn(law: _Law, name: str, candidates: Candidates, request: Request) -> Picked:
    keys = row_keys(candidates, name)
    value = law(scores(candidates, name), _checked_beta(float(request.args.get("beta", 1.0))))
    order, sums = _perturbed_order(value, keys, _reach(request, len(keys)))
    rows = _walked(order, candidates, request)
    ordered = np.argsort(order)
    gain = sums[ordered[np.searchsorted(order, rows, sorter=ordered)]]
    chances = _chances(value, len(keys), rows, request.constraints.taken) if request.constraints.leaves_chances else None
    return Picked(rows, gain, probability=chances)


def _chances(value: _Value, n: int, rows: Array, taken: Array) -> Array | None:
    """Compute (b,) float64, each drawn row's weight over the sum of the weights left; None where weights of 0 leave some rows no chance.

    Sums are of logarithms, and go from what is left at the end back to the first draw: nothing is ever subtracted, so that the last
    draws are as exact as the first.

    Args:
        value: the logarithms of the weights of n rows.
        n: see there.
        rows: (b,) int64, in the order of drawing.
        taken: these and the rows that were in the batch before.
    """
    left = np.ones(n, dtype=bool)
    left[taken] = False

    def see(block: slice) -> tuple[int, float]:
        among = value(block)
        some = among[left[block] & (among > -np.inf)]
        return int(np.count_nonzero(np.isneginf(among))), _log_of_sum(some)

    found = each([slice(start, start + _NOISE_AT_ONCE) for start in range(0, n, _NOISE_AT_ONCE)], lambda: see)
    without = sum(count for count, _ in found)
    if without:
        return _even_chances(n - len(taken) + len(rows), len(rows)) if without == n else None
    drawn = value(rows)
    total = np.logaddexp.accumulate(np.append(_log_of_sum(np.asarray([some for _, some in found])), drawn[::-1]))
    chances: Array = np.exp(drawn - total[:0:-1])
    return chances


def _log_of_sum(value: Array) -> float:
    """Compute the logarithm of the sum of exp(value), -inf if there is none."""
    largest = value.max(initial=-np.inf)
    return float(largest + np.log(np.exp(value - largest).sum())) if largest > -np.inf else -np.inf


def _even_chances(n: int, count: int) -> Array:
    """Compute (count,) float64, 1 / rows left, where n are left before the first draw."""
    chances: Array = 1 / (n - np.arange(count, dtype=np.float64))
    return chances

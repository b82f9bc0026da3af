"""Ranking by score with a measured dose of chance, so that a batch isn't many copies of one uncertain row.

Kirsch et al., *Stochastic batch acquisition: a simple baseline for deep active learning*, 2021. Adding Gumbel noise
to the logarithm of a weight and taking the k largest draws k rows without replacement in proportion to their weights
(Kool et al., 2019). A row's noise depends on the seed and its id alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from raystream.errors import DataError, QueryError
from raystream.selection.arguments import Ids, checked_seed, column, count, keys_of
from raystream.selection.hashing import uniform
from raystream.selection.ranking import lowest, walk
from raystream.selection.rows import Array
from raystream.selection.strategy import Candidates, Picked, Request, row_keys, scores
from raystream.selection.weights import checked_weights


def power(score: ArrayLike, k: int, *, seed: int = 0, ids: Ids | None = None, beta: float = 1.0) -> Array:
    """k rows drawn one after the other in proportion to score^beta.

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
    """k rows drawn one after the other in proportion to exp(beta * score); as `power`, but for scores of any sign.

    Raises:
        DataError: scores that are NaN or infinite.
        QueryError: a beta not above 0.
    """
    return _draw(_softmax_value, score, k, beta, ids, seed)


def softrank(score: ArrayLike, k: int, *, seed: int = 0, ids: Ids | None = None, beta: float = 1.0) -> Array:
    """k rows drawn one after the other in proportion to rank^-beta, rank 1 being the highest score, ties the lower row's.

    As `power`, but only the order of the scores matters, which may have any sign.

    Raises:
        DataError: scores that are NaN.
        QueryError: a beta not above 0.
    """
    return _draw(_softrank_value, score, k, beta, ids, seed)


def power_strategy(candidates: Candidates, request: Request) -> Picked:
    """`power` in a query."""
    return _drawn(_power_value, "power", candidates, request)


def softmax_strategy(candidates: Candidates, request: Request) -> Picked:
    """`softmax` in a query."""
    return _drawn(_softmax_value, "softmax", candidates, request)


def softrank_strategy(candidates: Candidates, request: Request) -> Picked:
    """`softrank` in a query."""
    return _drawn(_softrank_value, "softrank", candidates, request)


_AT_ONCE = 1 << 16
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
    """(min(k, n),) rows by value + Gumbel noise, ties to the lower row, then those of value -inf by noise alone; (n,) the sums, negated.

    `value` is written over with these.
    """
    for start in range(0, len(value), _AT_ONCE):
        block = slice(start, start + _AT_ONCE)
        np.negative(value[block] + _noise(keys[block]), out=value[block])
    order = lowest(value, k)
    order = order[value[order] < np.inf]
    if len(order) < min(k, len(value)):
        never = np.flatnonzero(value == np.inf)
        order = np.concatenate([order, never[lowest(-_noise(keys[never]), k - len(order))]])
    return order, value


def _noise(keys: Array) -> Array:
    """(n,) Gumbel noise; one purpose for the three laws: with the same keys they differ by their weights, not by luck."""
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
    value = law(scores(candidates, name), _checked_beta(float(request.args.get("beta", 1.0))))
    reach = len(value) if request.constraints.reach is None else request.constraints.reach
    order, lowered = _perturbed_order(value, row_keys(candidates, name), reach)
    rows = walk(order, request.budget, request.constraints, None if candidates.shards is None else candidates.shards.gather)
    return Picked(rows, -lowered[rows])

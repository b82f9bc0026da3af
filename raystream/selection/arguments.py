"""The public edge of everything that takes arrays: what callers give, checked once and turned into NumPy.

What is behind it assumes valid input: finite embeddings of width at least 1, whole numbers of rows, one score for each row.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike

from raystream.arrays import numbers, plain
from raystream.errors import DataError, QueryError, did_you_mean
from raystream.selection.hashing import row_hash
from raystream.selection.rows import Array, Metric, Rows, as_rows, not_finite, vectors
from raystream.selection.shards import DEFAULT_MEMORY, LocalShards
from raystream.selection.strategy import Candidates

_SUMMED = 1 << 22
"""Numbers that are looked through at a time."""
_SHOWN = 3

Ids = ArrayLike | Sequence[str] | Sequence[bytes]


def embeddings(x: ArrayLike, name: str = "x") -> Array:
    """Check (n, d) embeddings: float16 or float32, finite, d at least 1.

    Raises:
        DataError: another shape, or values that are NaN, infinite or beyond float32.
    """
    array = numbers(x, name)
    if array.ndim != 2 or not array.shape[1]:
        raise DataError(f"`{name}` has shape {array.shape}, expected (rows, width) with a width of at least 1")
    narrow = array
    if array.dtype != np.float16:
        with np.errstate(over="ignore"):
            narrow = array.astype(np.float32, copy=False)
    bad = _not_finite(narrow)
    if len(bad):
        if np.isfinite(array[bad]).all():
            raise DataError(f"`{name}` holds {array[bad[0]].max():g} in row {bad[0]}, beyond float32; scale it")
        first = ", ".join(str(row) for row in bad[:_SHOWN])
        raise DataError(f"{len(bad)} rows of `{name}` hold NaN or infinite values, first at rows {first}; expected finite numbers")
    return narrow


def _not_finite(x: Array) -> Array:
    """Find the rows of (n, d) that hold NaN or infinities, int64."""
    step = max(_SUMMED // x.shape[1], 1)
    found = []
    for begin in range(0, len(x), step):
        block = x[begin : begin + step]
        # a sum takes a quarter of the time of looking at each number; finite ones may add up to infinity, then look closer
        with np.errstate(over="ignore", invalid="ignore"):
            total = block.sum(dtype=np.float32)
        if not np.isfinite(total):
            found.append(np.flatnonzero(~np.isfinite(block).all(axis=1)) + begin)
    result: Array = np.concatenate(found) if found else np.empty(0, dtype=np.int64)
    return result


def rows_of(x: ArrayLike, metric: Metric = "euclidean") -> Rows:
    """Check `x`, and return it as rows in the metric's space."""
    return as_rows(embeddings(x), checked_metric(metric))


def shards_of(x: ArrayLike, metric: Metric = "euclidean", memory: int | None = None) -> LocalShards:
    """Check `x`, and return it as shards of this process; their working copies fit unless `memory` is given."""
    array = embeddings(x)
    room = max(DEFAULT_MEMORY, 2 * array.nbytes) if memory is None else memory
    return LocalShards.of_array(array, metric=checked_metric(metric), memory=room)


def labelled_of(labelled: ArrayLike | None, width: int, metric: Metric, name: str = "labelled") -> Array:
    """Return (m, d) float32 in the metric's space; None and no rows are no rows."""
    return vectors(optional(labelled, name), width, metric, name)


def optional(values: ArrayLike | None, name: str) -> Array | None:
    """Return `numbers`, or None."""
    return None if values is None else numbers(values, name)


def column(values: ArrayLike, n: int | None = None, name: str = "score") -> Array:
    """Check (n,) numbers, one for each row; as many as there are, without n."""
    array = numbers(values, name)
    if array.ndim != 1 or (n is not None and len(array) != n):
        expected = "one number for each row" if n is None else f"({n},), one for each row"
        raise DataError(f"`{name}` has shape {array.shape}, expected {expected}")
    return array


def optional_column(values: ArrayLike | None, n: int, name: str = "score") -> Array | None:
    """Check a `column`, or return None."""
    return None if values is None else column(values, n, name)


def count(k: int, name: str = "k") -> int:
    """Check a whole number of rows, at least 0."""
    whole = _whole(k)
    if whole is None or whole < 0:
        raise QueryError(f"`{name}` is {k!r}, expected a whole number of at least 0")
    return whole


def checked_seed(seed: int) -> int:
    """Check a whole number."""
    whole = _whole(seed)
    if whole is None:
        raise QueryError(f"`seed` is {seed!r}, expected a whole number")
    return whole


def _whole(value: int) -> int | None:
    """Return the number, of Python, NumPy or torch, as an int; None for any other."""
    try:
        return None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        return None


def checked_metric(metric: Metric) -> Metric:
    """Check that the metric is `euclidean` or `cosine`."""
    if metric not in get_args(Metric):
        raise QueryError(f"`metric` is {metric!r}{did_you_mean(str(metric), get_args(Metric))}")
    return metric


def keys_of(ids: Ids | None, n: int | None, seed: int) -> Array:
    """Return (n,) uint64 hashes of (seed, id); without ids, of the row numbers."""
    if ids is None:
        return row_hash(seed, np.arange(n or 0))
    array = plain(ids, "ids")
    if array.ndim != 1 or (n is not None and len(array) != n):
        raise DataError(f"`ids` has shape {array.shape}, expected ({'rows' if n is None else n},), one for each row")
    if array.dtype.kind in "iu":
        return row_hash(seed, array)
    # NumPy would cut zero bytes off the ends of strings, and turn numbers beside strings into strings
    return row_hash(seed, list(ids) if isinstance(ids, list | tuple) else array.tolist())


def positions(rows: ArrayLike, n: int, name: str) -> Array:
    """Check int64 numbers of distinct rows below n, in the order given.

    Raises:
        QueryError: a number that is no row.
    """
    array = numbers(rows, name)
    if not array.size:
        return np.empty(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise QueryError(f"`{name}` has shape {array.shape} and type {array.dtype}, expected a list of row numbers")
    outside = array[(array < 0) | (array >= n)]
    if len(outside):
        raise QueryError(f"`{name}` names row {outside[0]}, expected rows in 0 .. {n - 1}")
    return np.asarray(list(dict.fromkeys(array.tolist())), dtype=np.int64)


def check_candidates(candidates: Candidates) -> None:
    """Raise DataError for embeddings without width or that are not finite, and for columns of another length than the rest."""
    n, shards = len(candidates), candidates.shards
    beside = {"score": candidates.score, "keys": candidates.keys, "probabilities": candidates.probabilities}
    for name, values in (beside | {"log_probs": candidates.samples}).items():
        if values is not None and len(values) != n:
            raise DataError(f"`{name}` has {len(values)} values, expected {n}, one for each candidate")
    if shards is None or not n:
        return
    if not shards.width:
        raise DataError("the candidates' embeddings have width 0, expected at least 1")
    survey = shards.survey()
    if survey.bad:
        raise not_finite(survey.bad, survey.first_bad)

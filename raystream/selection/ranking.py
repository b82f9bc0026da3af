"""Strategies that rank rows by one number each: the highest scores, or chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raystream.errors import DataError
from raystream.selection.hashing import row_hash
from raystream.selection.rows import Array


def top_k(score: Array, k: int) -> Array:
    """The k rows of the highest scores, ties to the lower row.

    Args:
        score: (n,), higher = label sooner.
        k: how many; all n when there are fewer.

    Returns:
        (min(k, n),) int64, highest score first.

    Raises:
        DataError: a score is NaN.
    """
    array = np.asarray(score)
    bad = np.flatnonzero(np.isnan(array))
    if len(bad):
        raise DataError(f"{len(bad)} scores are NaN, first at row {bad[0]}; expected numbers")
    # complementing integers and negating floats turn "highest first" into "lowest first" without overflow
    return lowest(~array if array.dtype.kind in "iu" else -array, k)


def random(ids: Array | Sequence[str] | Sequence[bytes], k: int, seed: int = 0) -> Array:
    """k rows by chance: those of the lowest hashes of (seed, id), so that a row's luck doesn't depend on the other rows.

    Args:
        ids: (n,) integers, strings or bytes.
        k: how many; all n when there are fewer.
        seed: another seed draws other rows.

    Returns:
        (min(k, n),) int64, in the order of the draw.
    """
    return random_order(row_hash(seed, ids), k)


def random_order(keys: Array, k: int) -> Array:
    """(min(k, n),) int64: the rows of the lowest of (n,) uint64 keys, ties to the lower row."""
    return lowest(np.asarray(keys, dtype=np.uint64), k)


def lowest(key: Array, k: int) -> Array:
    """(min(k, n),) int64: the rows of the k lowest keys, ascending, ties to the lower row; sorts no more than it returns."""
    n = len(key)
    k = min(max(k, 0), n)
    if k == 0:
        return np.empty(0, dtype=np.int64)
    if k < n:
        last = np.partition(key, k - 1)[k - 1]
        below = np.flatnonzero(key < last)
        rows = np.concatenate([below, np.flatnonzero(key == last)[: k - len(below)]])
        rows.sort()
    else:
        rows = np.arange(n)
    result: Array = rows[np.argsort(key[rows], kind="stable")].astype(np.int64)
    return result

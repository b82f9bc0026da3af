"""Brute force in float64, and the data on which selections are compared with it."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st


def distances_to(x, point):
    """(n,) squared distances by the definition."""
    return np.square(x.astype(np.float64) - np.asarray(point, dtype=np.float64)).sum(axis=-1)


def greedy(x, k, *, weight=None, offset=None, labelled=None, blocks=None, exclude=(), outliers=0):
    """Sequential farthest-first that passes over the first `outliers` rows of each step: (rows, gains, distances)."""
    n = len(x)
    weight = np.ones(n) if weight is None else weight
    offset = np.zeros(n) if offset is None else offset
    alive = np.ones(n, dtype=bool)
    alive[list(exclude)] = False
    centres = [] if labelled is None else list(labelled)
    first = not centres
    starts = centres or [x.astype(np.float64).mean(axis=0)]
    squared = np.min([distances_to(x, c) for c in starts], axis=0)
    for centre in centres if blocks is not None else ():
        alive &= ~blocks(x, centre)
    rows, gains, reached = [], [], []
    while len(rows) < k and alive.any():
        gain = np.where(alive, np.sqrt(squared) * weight + offset, -np.inf)
        row = int(np.argsort(-gain, kind="stable")[: min(outliers + 1, alive.sum())][-1])
        alive[row] = False
        rows.append(row)
        gains.append(gain[row])
        reached.append(np.nan if first else np.sqrt(squared[row]))
        if blocks is not None:
            alive &= ~blocks(x, x[row])
        update = distances_to(x, x[row])
        squared = update if first else np.minimum(squared, update)
        first = False
    return np.array(rows, dtype=np.int64), np.array(gains), np.array(reached)


def unit(x):
    """Rows of length one, rounded to float32 as the package defines them."""
    wide = x.astype(np.float64)
    norm = np.sqrt(np.square(wide).sum(axis=1, keepdims=True))
    return (wide / np.where(norm > 0, norm, 1)).astype(np.float32)


KINDS = ("normal", "clustered", "duplicated", "equal", "binary", "one_hot", "counts", "unit", "offset", "tiny", "huge")


def data(kind, n, d, seed):
    """(n, d) float32 of one kind of data."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    if kind == "clustered":
        x = x * 0.01 + rng.standard_normal((4, d))[rng.integers(0, 4, n)]
    elif kind == "duplicated":
        x = x[rng.integers(0, max(n // 4, 1), n)]
    elif kind == "equal":
        x = np.repeat(x[:1], n, axis=0)
    elif kind == "binary":
        x = rng.integers(0, 2, (n, d))
    elif kind == "one_hot":
        x = np.eye(d)[rng.integers(0, d, n)] * 0.1
    elif kind == "counts":
        x = rng.poisson(3.0, (n, d))
    elif kind == "unit":
        return unit(x.astype(np.float32))
    elif kind == "offset":
        x = x * 1e-3 + 1000
    elif kind == "tiny":
        x = x * 1e-30
    elif kind == "huge":
        x = x * 1e30
    return x.astype(np.float32)


@st.composite
def pools(draw, most=60, widest=9, kinds=KINDS):
    """(x, k): rows of some kind and how many to choose, up to more than there are."""
    n, d = draw(st.integers(1, most)), draw(st.integers(1, widest))
    x = data(draw(st.sampled_from(kinds)), n, d, draw(st.integers(0, 10**6)))
    return x, draw(st.integers(1, n + 3))

"""The law of sequential D-squared sampling by enumeration, and when a statistic is too large to be chance."""

from __future__ import annotations

import math

import numpy as np


def sequences(squared, k, *, start=None, first=None, blocked=lambda row, chosen: False):
    """{sequence of k rows: probability} from (n, n) squared distances, every possible one.

    The first is `first`, or drawn in proportion to `start`, or uniformly.
    """
    n, law = len(squared), {}

    def follow(chosen, nearest, p):
        if len(chosen) == k:
            law[tuple(chosen)] = p
            return
        weight = np.array([0.0 if row in chosen or blocked(row, chosen) else nearest[row] for row in range(n)])
        if not weight.any():
            law[tuple(chosen)] = p
            return
        for row in np.flatnonzero(weight):
            after = squared[row] if not chosen and start is None else np.minimum(nearest, squared[row])
            follow([*chosen, int(row)], after, p * weight[row] / weight.sum())

    begin = np.ones(n) if start is None else start
    if first is not None:
        begin = np.eye(n)[first]
    follow([], begin, 1.0)
    return law


def chi_squared(found, law):
    """Pearson's statistic and its degrees of freedom; sequences of too small an expectation are put together."""
    total = sum(found.values())
    assert set(found) <= {sequence for sequence, p in law.items() if p > 0}
    usual = [sequence for sequence, p in law.items() if p * total >= 5]
    observed = [found.get(sequence, 0) for sequence in usual]
    expected = [law[sequence] * total for sequence in usual]
    rest = total - sum(expected)
    if rest >= 5:
        observed.append(total - sum(observed))
        expected.append(rest)
    observed, expected = np.array(observed), np.array(expected)
    return float((np.square(observed - expected) / expected).sum()), len(expected) - 1


def critical(freedom, sigmas=4.0):
    """What a chi-squared statistic exceeds once in 30,000 times (Wilson and Hilferty, 1931)."""
    return freedom * (1 - 2 / (9 * freedom) + sigmas * math.sqrt(2 / (9 * freedom))) ** 3

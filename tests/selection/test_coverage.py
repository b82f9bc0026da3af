from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import data, distances_to, pools, unit

from raystream.selection.coverage import Coverage
from raystream.selection.kernels import Cosine, Gaussian
from raystream.selection.lazy_greedy import measured
from raystream.selection.rows import ArrayPart, Rows, as_rows

KERNELS = [Cosine(), Gaussian(1.0), Gaussian(0.05), Gaussian(1e-7), Gaussian(1e-200), Gaussian(1e200)]


def value(kernel, squared):
    """Kappa as the docstrings define it."""
    if isinstance(kernel, Cosine):
        return np.maximum(1 - squared / 2, 0)
    with np.errstate(over="ignore"):
        exponent = squared / np.clip(kernel.delta, 1e-15, 1e15) ** 2
    return np.where(exponent <= 80, np.exp(-exponent), 0)


def bounds(coverage, rows, dtype, which=None):
    """Upper bounds of what each row adds."""
    pairs, aim = coverage.pairs(dtype), coverage.aim(dtype)[0]
    found = measured(rows, np.arange(len(rows)) if which is None else which, pairs, lambda some, room: pairs.above(some, aim, room))
    return np.ldexp(found, coverage.power)


def added(targets, weight, best, row, kernel):
    """What a row adds, by the definition."""
    alike = value(kernel, distances_to(targets, row)) * (row.any() & targets.any(axis=1))
    return float((np.maximum(alike - best, 0) * weight).sum()), np.maximum(best, alike)


@settings(max_examples=80, deadline=None)
@given(pools(), st.sampled_from(KERNELS), st.integers(0, 5), st.integers(0, 10**6))
def test_bounds_hold_and_gains_are_the_definition(pool, kernel, chosen, seed):
    """On any data, with zero weights and zero rows: the gain is exact, float32 and float64 bounds are never below it."""
    x, _ = pool
    rng = np.random.default_rng(seed)
    x = np.where(rng.random(len(x))[:, None] < 0.1, np.float32(0), x)
    weight = rng.integers(0, 3, len(x)) * rng.choice([1e-30, 0.3, 1e30])
    targets = unit(x)
    coverage, best = Coverage(targets, weight, kernel), np.zeros(len(x))
    rows = rng.integers(0, len(x), chosen)
    coverage.cover(targets[rows[:2]])
    for number, row in enumerate(targets[rows]):
        best = added(targets, weight, best, row, kernel)[1]
        if number >= 2:
            coverage.add(row)
    counts = (weight > 0) & targets.any(axis=1)
    np.testing.assert_array_equal(coverage.best[counts], best[counts])
    expected = np.array([added(targets, weight, best, row, kernel)[0] for row in targets])
    gain = np.array([coverage.gain(row) for row in targets])
    np.testing.assert_allclose(gain, expected, rtol=1e-13)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert (bounds(coverage, as_rows(x), dtype) >= gain).all()
    if coverage.complete:
        assert not gain.any()


@pytest.mark.parametrize("seed", range(8))
def test_similarities_that_nearly_vanish_are_bounded(seed):
    """Rows that are like no target but by 1e-17 to 1e-35: what bfloat16 does to such numbers, and their squares in float32, isn't lost."""
    rng, width = np.random.default_rng(seed), 2 + seed % 2
    targets = unit(rng.standard_normal((20, width)).astype(np.float32))
    aside = rng.uniform(0.3, 0.5, (400, 1)) * unit(rng.standard_normal((400, width)).astype(np.float32))
    x = unit((targets[rng.integers(0, 20, 400)] + aside).astype(np.float32))
    coverage = Coverage(targets, np.ones(20), Gaussian(0.05))
    gain = np.array([coverage.gain(row) for row in x])
    for dtype in (torch.bfloat16, torch.float32):
        assert (bounds(coverage, as_rows(x), dtype) >= gain).all()


@pytest.mark.parametrize("kernel", [Cosine(), Gaussian(0.8)])
def test_bounds_are_tight(kernel):
    """A float32 bound is within 0.2% of what a row adds, a float64 one within 1e-9: else all rows would be looked at."""
    x = data("normal", 700, 128, 0)
    coverage = Coverage(unit(x), np.random.default_rng(0).random(700), kernel)
    for row in unit(x)[:20]:
        coverage.add(row)
    gain = np.array([coverage.gain(row) for row in unit(x)])
    single = bounds(coverage, as_rows(x), torch.float32)
    double = bounds(coverage, as_rows(x), torch.float64)
    assert (single[20:] <= gain[20:] * 1.002).all()
    assert (double[20:] <= gain[20:] * (1 + 1e-9)).all()


def test_parts_and_subsets_are_read_in_order():
    """Bounds of some rows, spread over parts with positions, stand in the order of the rows."""
    x = data("normal", 90, 5, 0)
    parts = [ArrayPart(x[:40]), ArrayPart(x[40:41]), ArrayPart(x[41:])]
    rows = Rows(parts, [np.arange(0, 40, 2), np.array([0]), None])
    which = np.array([0, 3, 19, 20, 21, 60])
    coverage = Coverage(unit(x), np.ones(90), Cosine())
    found = bounds(coverage, rows, torch.float64, which=which)
    expected = [coverage.gain(row) for row in unit(rows.gather(which))]
    np.testing.assert_allclose(found, expected, rtol=1e-9)

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import data, distances_to, pools, unit

from raystream.selection.coverage import Pairs
from raystream.selection.kernels import Cosine, Gaussian

KERNELS = [Cosine(), Gaussian(1.0), Gaussian(0.3), Gaussian(0.05), Gaussian(1e-7)]
DTYPES = (torch.bfloat16, torch.float32, torch.float64)


def alike(kernel, rows, targets):
    """(r, m) by the definition."""
    return np.array([kernel.of(distances_to(targets, row)) for row in rows])


@settings(max_examples=30, deadline=None)
@given(pools(), st.sampled_from(KERNELS), st.sampled_from([0.05, 2.0]), st.integers(0, 10**6))
def test_bounds_hold(pool, kernel, typical, seed):
    """On any data and in each precision: what rows reach of any stretches is within the bounds, for all parts of the targets.

    In bfloat16 the bounds from below are so together with those from above alone.
    """
    x, _ = pool
    x, rng = unit(x), np.random.default_rng(seed)
    weight = rng.choice([0.0, 1e-3, 1.0], len(x))
    kappa = alike(kernel, x, x)
    low = np.where(rng.random(len(x)) < 0.3, 0.0, kappa[rng.integers(len(x))])
    high = np.maximum(low, kappa[rng.integers(len(x))])
    which = rng.permutation(len(x))[: rng.integers(1, len(x) + 1)]
    from_low = (np.maximum(kappa - low, 0) * weight)[:, which].sum(axis=1)
    between = (np.clip(kappa, low, high) - low)[:, which] * weight[which]
    for dtype in DTYPES:
        pairs = Pairs(x, weight, kernel, typical, dtype)
        rows, room = pairs.rows(x), pairs.room(len(x))
        aim = pairs.aim(which, low[which], None, up=True)
        above = pairs.above(rows, aim, room)
        assert (above >= from_low * (1 - 1e-13)).all()
        if dtype != torch.bfloat16:
            assert (pairs.reaches(rows, aim, room) >= ((kappa > low) & (weight > 0))[:, which]).all()
        aim = pairs.aim(which, low[which], high[which], up=False)
        below = pairs.below(rows, aim, room, len(aim.parts))
        if dtype != torch.bfloat16:
            assert (below <= between.sum(axis=1)[:, None] * (1 + 1e-13) + 1e-15).all()
        ends = [part.stop for part in aim.parts]
        left = from_low[:, None] - np.cumsum(between, axis=1)[:, [end - 1 for end in ends]]
        assert (above[:, None] - below >= left - 1e-13 * from_low[:, None] - 1e-15).all()


@pytest.mark.parametrize("kernel", [Cosine(), Gaussian(0.9)])
@pytest.mark.parametrize("width", [24, 600])
def test_parts_add_up(kernel, width):
    """Beyond one part, and beyond the width to which a quadratic form is kept: the bounds still hold, and are tight."""
    x = unit(data("clustered", 700, width, 0) + data("normal", 700, width, 1) / 4)
    rows, weight = x[:40], np.random.default_rng(0).random(700)
    kappa = alike(kernel, rows, x)
    low = alike(kernel, x[50:53], x).max(axis=0)
    high = np.maximum(low, alike(kernel, x[60:70], x).max(axis=0))
    gain = (np.maximum(kappa - low, 0) * weight).sum(axis=1)
    lost = (np.clip(kappa, low, high) - low) * weight
    for dtype, near in ((torch.bfloat16, 0.25), (torch.float32, 1e-3), (torch.float64, 1e-9)):
        pairs = Pairs(x, weight, kernel, 0.5, dtype)
        operand, room = pairs.rows(rows), pairs.room(len(rows))
        above = pairs.above(operand, pairs.aim(np.arange(700), low, None, up=True), room)
        assert (above >= gain).all()
        assert (above <= gain + near * gain.max()).all()
        order = np.argsort(low - high)
        aim = pairs.aim(order, low[order], high[order], up=False)
        below = pairs.below(operand, aim, room, len(aim.parts))
        ends = [part.stop for part in aim.parts]
        exact = np.cumsum(lost[:, order], axis=1)[:, [end - 1 for end in ends]]
        assert len(ends) > 1
        assert ends[-1] == 700
        assert (above[:, None] - below >= gain[:, None] - exact).all()
        assert (below <= exact + (0 if dtype != torch.bfloat16 else near * exact.max())).all()
        assert (below >= exact - near * exact.max()).all()


@pytest.mark.parametrize("kernel", [Cosine(), Gaussian(0.5)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_renewed_aim_is_a_new_one(kernel, dtype):
    """Stretches that are changed for some targets give the bounds of an aim made with them."""
    x = unit(data("normal", 300, 12, 0))
    pairs = Pairs(x, np.ones(300), kernel, 1.0, dtype)
    low = np.where(np.arange(300) < 100, 0.0, kernel.of(distances_to(x, x[0])))
    aim = pairs.aim(np.arange(300), low, None, up=True)
    after = np.maximum(low, kernel.of(distances_to(x, x[5])))
    changed = np.flatnonzero(after > low)
    pairs.renew(aim, changed, changed, after[changed], None)
    rows, room = pairs.rows(x), pairs.room(300)
    again = pairs.aim(np.arange(300), after, None, up=True)
    np.testing.assert_allclose(pairs.above(rows, aim, room), pairs.above(rows, again, room), rtol=1e-5)

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import KINDS, data, distances_to, pools

from raystream.selection import nearest as nearest_module
from raystream.selection.bounds import Encoding, grid_power, has_bfloat16_units, smallest_products
from raystream.selection.nearest import Centres, nearest

quick = settings(max_examples=100, deadline=None)


def encoding_of(x, precision, on_grid=False):
    return Encoding.fit(x.mean(axis=0, dtype=np.float64), float(np.abs(x).max()), on_grid=on_grid, precision=precision)


@quick
@given(pools(most=40, widest=70), st.sampled_from(["float32", "bfloat16"]), st.integers(0, 10**6))
def test_bounds_are_never_below_the_distance_and_close_to_it(pool, precision, seed):
    """Every bound is at least the float64 distance, for rows near the centre, far from it and equal to it."""
    x, k = pool
    encoding = encoding_of(x, precision)
    centres = x[np.random.default_rng(seed).integers(0, len(x), k)]
    operand, slack = encoding.rows(x)
    true = np.array([distances_to(x, c) for c in centres])
    reach = np.square(x - encoding.shift, dtype=np.float64).sum(axis=1)
    for i, centre in enumerate(centres):
        other, most = encoding.centres(centre[None])
        product = smallest_products(operand, other, torch.empty((len(x), 1), dtype=encoding.dtype))
        upper = encoding.upper(product, slack.double() + most)
        assert (upper >= true[i]).all()
        size = reach + reach[np.flatnonzero((x == centre).all(axis=1))[0]]
        loose = (0.04 if precision == "bfloat16" else 1e-4) * size + 1e-30 * (float(np.abs(x).max()) or 1.0) ** 2
        assert (upper <= true[i] + loose).all()


@pytest.mark.parametrize("kind", ["binary", "one_hot", "counts"])
def test_products_on_a_grid_are_the_distances(kind):
    """Counts and 0/1 data need no bound: the float32 product equals the float64 distance."""
    x = data(kind, 200, 33, 0) * (10 if kind == "one_hot" else 1)
    p = grid_power(33, float(x.max()))
    assert p >= 0
    encoding = encoding_of(x, "bfloat16", on_grid=True)
    assert not encoding.bfloat16
    operand, slack = encoding.rows(x)
    centre, most = encoding.centres(x[7:8])
    product = smallest_products(operand, centre, torch.empty((200, 1)))
    np.testing.assert_array_equal(encoding.upper(product, slack.double() + most), distances_to(x, x[7]))


@pytest.mark.parametrize(("width", "largest"), [(1, 1.0), (64, 1.0), (256, 3.0), (2048, 1e-20), (7, 5e30)])
def test_grid_is_coarse_enough_for_exact_sums(width, largest):
    """All 2^24 steps of float32 hold the largest sum that a product on the grid can make."""
    p = grid_power(width, largest)
    assert 4 * width * (largest * 2.0**p) ** 2 <= 2**24
    assert 4 * width * (largest * 2.0 ** (p + 1)) ** 2 > 2**22


@quick
@given(pools(most=40, widest=40), st.sampled_from(["float32", "bfloat16"]), st.booleans(), st.sampled_from([0, 7]), st.integers(0, 10**6))
def test_nearest_centre_is_that_of_float64(pool, precision, exact_distance, many, seed):
    """The nearest centre is the lowest one at the least float64 distance, repeated centres included, however many products leave open."""
    x, k = pool
    centres = x[np.random.default_rng(seed).integers(0, len(x), k)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest_module, "_MANY_LEFT", many)
        found = nearest(x, Centres.of(centres, encoding_of(x, precision)), exact_distance=exact_distance)
    true = np.array([distances_to(x, c) for c in centres])
    np.testing.assert_array_equal(found.index, true.argmin(axis=0))
    assert (found.upper >= true.min(axis=0)).all()
    if exact_distance:
        np.testing.assert_array_equal(found.upper, true.min(axis=0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_nearest_among_many_centres(kind, precision):
    """The same with hundreds of rows and centres."""
    x = data(kind, 700, 20, 5)
    centres = data(kind, 150, 20, 6)
    found = nearest(x, Centres.of(centres, encoding_of(x, precision)))
    np.testing.assert_array_equal(found.index, np.array([distances_to(x, c) for c in centres]).argmin(axis=0))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_one_distance_rules_out_most_of_what_products_leave_open(precision, monkeypatch):
    """Of centres that lie closer together than products can tell, the float32 distance to one leaves few to be looked at."""
    x, centres = data("normal", 500, 256, 0), np.float32(0.15) * data("normal", 400, 256, 1)
    asked = []
    real = nearest_module.float32_distances
    monkeypatch.setattr(nearest_module, "float32_distances", lambda *given: asked.append(len(given[2])) or real(*given))
    among = Centres.of(centres, encoding_of(x, precision))
    found = []
    for many in (7, 10**9):
        monkeypatch.setattr(nearest_module, "_MANY_LEFT", many)
        asked.append(0)
        found.append(nearest(x, among).index)
    np.testing.assert_array_equal(found[0], np.array([distances_to(x, c) for c in centres]).argmin(axis=0))
    np.testing.assert_array_equal(found[0], found[1])
    at = asked.index(0, 1)
    if precision == "bfloat16":
        assert sum(asked[:at]) < 0.7 * sum(asked[at:])


@pytest.mark.parametrize("units", ["amx_bf16", "avx512_bf16", None])
def test_units_are_looked_up(units, monkeypatch):
    """What the processor says of itself decides, not how long anything takes: draws must be the same in each run."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False} | ({units: True} if units else {}))
    has_bfloat16_units.cache_clear()
    try:
        assert has_bfloat16_units() is (units is not None)
    finally:
        has_bfloat16_units.cache_clear()

"""Bounds that are brought up to date late: never below the distances, exact where that is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import KINDS, data, distances_to, pools

from raystream.selection.bounds import AT_ONCE, CentreList, Encoding, Look, encode_rows
from raystream.selection.lazy_bounds import Gain, LazyBounds
from raystream.selection.rows import as_rows


def encoding_of(x, precision):
    return Encoding.fit(x.mean(axis=0, dtype=np.float64), float(np.abs(x).max()), on_grid=False, precision=precision)


@settings(max_examples=60, deadline=None)
@given(
    pools(), st.sampled_from(["float32", "bfloat16"]), st.booleans(), st.integers(1, 9), st.lists(st.integers(1, 4), max_size=5), st.data()
)
def test_the_first_rows_are_those_of_the_true_order(pool, precision, keep, count, steps, draw):
    """Whatever was put off, bounds are never below the distances, the first rows by bounds are known, and settled ones are exact."""
    x, _ = pool
    rows, encoding = as_rows(x), encoding_of(x, precision)
    encoded = encode_rows(rows, encoding, Look(encoding.shift, None), keep=keep, block=7)
    bounds = LazyBounds(rows, encoding, encoded, Gain())
    true, gone = np.full(len(x), np.inf), np.zeros(len(x), dtype=bool)
    for step in steps:
        centres = draw.draw(st.lists(st.integers(0, len(x) - 1), min_size=step, max_size=step))
        bounds.add(x[centres])
        bounds.drop(np.array(centres))
        gone[centres] = True
        true = np.min([true, *(distances_to(x, x[centre]) for centre in centres)], axis=0)
        bounds.catch_up(count)
        assert (bounds.squared >= true).all()
        assert (bounds.gain[gone] == -np.inf).all()
        first = np.sort(np.argsort(-bounds.gain, kind="stable")[: min(count, len(x) - gone.sum())])
        np.testing.assert_array_equal(bounds.settle(first), x[first])
        np.testing.assert_array_equal(bounds.squared[first], true[first])
        np.testing.assert_array_equal(bounds.gain[first], np.sqrt(true[first]))
        if len(first):
            level = float(np.sqrt(true[first].min()))
            bounds.settle_from(level)
            may = ~gone & (np.sqrt(true) >= level)
            np.testing.assert_array_equal(bounds.squared[may], true[may])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_smallest_product_is_that_of_all_centres(precision):
    """More centres than are multiplied at a time, however they came, from any number on: as the products one by one."""
    x = data("normal", AT_ONCE + 300, 6, 0)
    encoding = encoding_of(x, precision)
    centres, rows = CentreList(encoding), encoding.rows(x[:150])[0]
    for begin, end in [(0, 1), (1, 18), (18, 300), (300, len(x))]:
        centres.add(x[begin:end])
    every = torch.mm(rows, encoding.centres(x)[0].T).clamp(min=0)
    room = torch.empty(len(rows) * AT_ONCE, dtype=encoding.dtype)
    for since in (0, 17, 290, AT_ONCE + 5, len(x) - 1):
        found = centres.smallest_products(rows, since, room).clamp(min=0)
        torch.testing.assert_close(found, every[:, since:].amin(1), rtol=2.0**-7, atol=1e-6)
    first = centres.products(rows, AT_ONCE, room)
    torch.testing.assert_close(first.clamp(min=0), every[:, AT_ONCE:], rtol=2.0**-7, atol=1e-6)


@pytest.mark.parametrize("kind", [*KINDS, "zero"])
@pytest.mark.parametrize("keep", [True, False])
def test_one_look_sums_up_and_bounds(kind, keep):
    """The sum is that of whole multiples in any blocks, and no row is farther from a point than its bound says."""
    x = np.zeros((700, 5), np.float32) if kind == "zero" else data(kind, 700, 5, 3)
    largest = float(np.abs(x).max())
    power = 52 - 10 - int(np.frexp(largest)[1]) if largest else 0
    near = x[:9].mean(axis=0)
    for precision in ("float32", "bfloat16"):
        encoding = Encoding.fit(near, largest, on_grid=False, precision=precision)
        found = encode_rows(as_rows(x), encoding, Look(near, power), keep=keep, block=33)
        whole = [sum(int(np.rint(np.ldexp(float(v), power))) for v in column) for column in x.T]
        np.testing.assert_array_equal(found.total, np.ldexp(np.array(whole, dtype=np.float64), -power))
        assert (found.reach >= np.sqrt(distances_to(x, near))).all()
        assert (found.copy is not None) is keep

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raystream.model import dropout_mode as dropout_masks
from raystream.model.dropout_mode import Masks, keep_mask

CPU = torch.device("cpu")
WORD = (1 << 64) - 1


def splitmix(state, key):
    """One step in Python's own integers."""
    value = (state + (key + 1) * 0x9E3779B97F4A7C15) & WORD
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & WORD
    return value ^ (value >> 31)


def kept(seed, sample, call, place, p):
    state = 0
    for key in (seed, sample, call, *place):
        state = splitmix(state, key)
    return (state >> 32) / 2**32 >= p


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**63 - 1),
    st.integers(0, 99),
    st.integers(0, 99),
    st.lists(st.integers(0, 4), max_size=3),
    st.sampled_from([0.0, 0.25, 0.5, 0.875, 1.0]),
)
def test_a_mask_is_a_hash_of_where_its_numbers_stand(seed, sample, call, shape, p):
    """Each number follows from seed, sample, call and coordinates alone, as in plain integer arithmetic."""
    mask = keep_mask(seed, sample, call, shape, p)
    assert mask.shape == tuple(shape)
    for place in itertools.product(*map(range, shape)):
        assert mask[place] == kept(seed, sample, call, place, p)


def test_a_shorter_sequence_sees_the_first_part():
    """A mask of smaller shape is the corner of a larger one, on every axis."""
    large = keep_mask(3, 1, 2, (5, 7, 6), 0.4)
    assert np.array_equal(keep_mask(3, 1, 2, (4, 3, 6), 0.4), large[:4, :3])
    assert np.array_equal(keep_mask(3, 1, 2, (5, 7, 1), 0.4), large[:, :, :1])


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_that_is_dropped_and_its_independence(p):
    """A share p is dropped, within five standard errors; seeds, samples, calls and neighbouring places don't go together."""
    shape, count = (40, 250), 10_000
    masks = [keep_mask(*keys, shape, p).astype(float) for keys in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    pairs = [*itertools.combinations(masks, 2), (masks[0][1:], masks[0][:-1]), (masks[0][:, 1:], masks[0][:, :-1])]
    for mask in masks:
        assert abs(mask.mean() - (1 - p)) < 5 * (p * (1 - p) / count) ** 0.5
    for one, two in pairs:
        assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 5 / one.size**0.5


@pytest.mark.parametrize("cache", [0, 1 << 30])
def test_masks_of_all_samples(monkeypatch, cache):
    """Every sample has its mask, the last keeps all; other shapes and p in between, kept or drawn again, change nothing."""
    monkeypatch.setattr(dropout_masks, "_CACHE_BYTES", cache)
    masks = Masks(3, 5, CPU)
    for call, shape, p in [(0, (4, 2), 0.5), (1, (4,), 0.5), (0, (2, 3), 0.5), (0, (6, 1), 0.5), (0, (4, 3), 0.25), (0, (4, 2, 2), 0.25)]:
        found = masks.of_call(call, shape, p)
        assert found.shape == (4, *shape)
        assert found[3].all()
        for sample in range(3):
            assert np.array_equal(found[sample].numpy(), keep_mask(5, sample, call, shape, p))

"""Dropout masks that are a function of (seed, sample, call, coordinates) and of nothing else.

A mask is no stream of random numbers but a hash of where each of its numbers stands. So it is the same in every worker,
for every number of rows, on every device and whatever was drawn before, and a shorter sequence sees the first part of the
mask that a longer one sees: drawn for the longest length, and sliced.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_CACHE_BYTES = 1 << 30
"""Of masks kept for the next batch, one byte a number; beyond it they are drawn again each time."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_RESOLUTION = 1 << 32


def keep_mask(seed: int, sample: int, call: int, shape: Sequence[int], p: float) -> npt.NDArray[np.bool_]:
    """Which numbers a dropout call keeps, in one sample.

    Args:
        seed: of the query.
        sample: which of the sub-networks.
        call: the number of the dropout call in the forward pass.
        shape: of the mask; the value at a coordinate doesn't depend on it.
        p: probability of being dropped, to the nearest of 2^-32.

    Returns:
        bool, of that shape, True where kept.
    """
    state = np.zeros((), dtype=np.uint64)
    for key in (seed, sample, call):
        state = _mix(state, np.array(key, dtype=np.uint64))
    for size in shape:
        state = _mix(state[..., None], np.arange(size, dtype=np.uint64))
    return np.asarray((state >> np.uint64(32)) >= np.uint64(round(p * _RESOLUTION)))


def _mix(state: npt.NDArray[np.uint64], key: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """One step of splitmix64 (Steele, Lea and Flood, 2014) from each state by each key."""
    with np.errstate(over="ignore"):
        mixed = state + (key + np.uint64(1)) * _GOLDEN
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


class Masks:
    """The masks of all samples, and of one more, the last, that keeps everything: the deterministic network."""

    def __init__(self, samples: int, seed: int, device: torch.device) -> None:
        self._samples, self._seed, self._device = samples, seed, device
        self._drawn: dict[int, tuple[float, Tensor]] = {}
        self._bytes = 0

    def of_call(self, call: int, shape: Sequence[int], p: float) -> Tensor:
        """bool (samples + 1, *shape), on the device; not to be written to."""
        known = self._drawn.get(call)
        if known is not None and known[0] == p and known[1].ndim == len(shape) + 1:
            longest = tuple(known[1].shape[1:])
            if any(size > drawn for size, drawn in zip(shape, longest, strict=True)):
                longest = tuple(max(pair) for pair in zip(shape, longest, strict=True))
                known = self._keep(call, longest, p)
        else:
            known = self._keep(call, tuple(shape), p)
        return known[1][(slice(None), *(slice(size) for size in shape))]

    def _keep(self, call: int, shape: tuple[int, ...], p: float) -> tuple[float, Tensor]:
        keep = np.ones((self._samples + 1, *shape), dtype=np.bool_)
        for sample in range(self._samples):
            keep[sample] = keep_mask(self._seed, sample, call, shape, p)
        drawn = (p, torch.from_numpy(keep).to(self._device))
        before = self._drawn.pop(call, None)
        self._bytes -= before[1].numel() if before else 0
        if self._bytes + drawn[1].numel() <= _CACHE_BYTES:
            self._drawn[call] = drawn
            self._bytes += drawn[1].numel()
        return drawn

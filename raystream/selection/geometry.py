"""What D-squared sampling asks of a space: distances by their definition, estimates that rule most of them out, and cheap upper bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from raystream.selection.rows import Array

Vectors = tuple[Array, ...]
"""m rows as float32 arrays (m, w): the embedding, or probabilities and the embedding; the embedding is the last."""
Wide = tuple[Array, ...]
"""m rows in float64, with what else distances need of each: arrays whose first axis is m."""
Operands = tuple[torch.Tensor, ...]
"""m rows as the operands of bounds: tensors whose first axis is m."""
Bound = Callable[[Operands], Array]
"""(m,) float64, never below the squared distances of m rows to the nearest of the centres it was made for."""

_PAIR_BYTES = 1 << 20
"""Differences that are kept at a time, within the caches."""
CENTRES_AT_ONCE = 1024


class Geometry(Protocol):
    """Rows, and how far they are from each other; small, so that it can be sent to other processes."""

    @property
    def row_bytes(self) -> int:
        """Memory that the operands of one row take."""

    @property
    def exact(self) -> bool:
        """Whether bounds are the squared distances themselves."""

    def rows(self, x: Vectors) -> Operands:
        """The operands of rows."""

    def bounds(self, centres: Vectors) -> Callable[[], Bound]:
        """What makes a bound by these centres, at least one; each thread needs a bound of its own."""

    def wide(self, x: Vectors) -> Wide:
        """Rows for `estimate` and `squared`."""

    def estimate(self, x: Wide, y: Wide) -> tuple[Array, Array]:
        """(m, k) float64 near the squared distances of m rows to k centres, and (m,) how far from them at most."""

    def squared(self, x: Wide, y: Wide) -> Array:
        """(m,) float64 squared distances of each row to the centre in its place: the definition."""


def take(arrays: Wide, which: Array | slice | list[int]) -> Wide:
    """The rows `which` of each array."""
    return tuple(array[which] for array in arrays)


def joined(parts: Sequence[Wide]) -> Wide:
    """Rows of several as one."""
    return parts[0] if len(parts) == 1 else tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def nearest_squared(geometry: Geometry, x: Wide, centres: Sequence[Wide]) -> Array:
    """(m,) float64 squared distances to the nearest centre by the definition, in bounded memory; inf without centres."""
    best = np.full(len(x[0]), np.inf)
    for chunk in centres:
        estimate, error = geometry.estimate(x, chunk)
        reach = np.minimum((estimate.min(axis=1) + error), best) + error
        row, centre = np.nonzero(estimate <= reach[:, None])
        step = max(_PAIR_BYTES // (8 * sum(array[:1].size for array in x) or 1), 1)
        for begin in range(0, len(row), step):
            i, j = row[begin : begin + step], centre[begin : begin + step]
            np.minimum.at(best, i, geometry.squared(take(x, i), take(chunk, j)))
    return best

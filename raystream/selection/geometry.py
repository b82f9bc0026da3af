"""The space that D-squared sampling works in: distances by their definition, estimates that rule most of them out, cheap upper bounds.

Embeddings are points of such a space: bounds from one matrix product a pass, exact pairs in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from raystream.selection.bounds import Encoding, smallest_products
from raystream.selection.rows import Array, squared_distances

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
        """True if bounds are the squared distances themselves."""

    def rows(self, x: Vectors) -> Operands:
        """Return the operands of rows."""

    def bounds(self, centres: Vectors) -> Callable[[], Bound]:
        """Return a function that makes a bound by these centres, at least one; each thread needs a bound of its own."""

    def wide(self, x: Vectors) -> Wide:
        """Return rows for `estimate` and `squared`."""

    def estimate(self, x: Wide, y: Wide) -> tuple[Array, Array]:
        """Return (m, k) float64 near the squared distances of m rows to k centres, and (m,) how far from them at most."""

    def squared(self, x: Wide, y: Wide) -> Array:
        """Return (m,) float64 squared distances of each row to the centre in its place: the definition."""


def take(arrays: Wide, which: Array | slice | list[int]) -> Wide:
    """Take the rows `which` of each array."""
    return tuple(array[which] for array in arrays)


def joined(parts: Sequence[Wide]) -> Wide:
    """Join the rows of several."""
    return parts[0] if len(parts) == 1 else tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def nearest_squared(geometry: Geometry, x: Wide, centres: Sequence[Wide]) -> Array:
    """Return (m,) float64 squared distances to the nearest centre by the definition, in bounded memory; inf without centres."""
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


_PRODUCTS = 1 << 21
_FEWEST_CENTRES = 32
"""A narrower product takes as long; centres are repeated up to this number."""


@dataclass(frozen=True)
class Euclidean:
    """Squared Euclidean distances; vectors are one array (m, d), operands what `encoding` makes of it.

    With float64 products, |x|^2 + |y|^2 - 2 x.y errs by at most (d + 8) 2^-52 (|x|^2 + |y|^2), and the
    definition by less.
    """

    encoding: Encoding

    @property
    def row_bytes(self) -> int:
        """See `Geometry`."""
        return self.encoding.row_bytes

    @property
    def exact(self) -> bool:
        """See `Geometry`."""
        return self.encoding.exact

    def rows(self, x: Vectors) -> Operands:
        """See `Geometry`: (m, width) products' operands and (m,) their slack."""
        return self.encoding.rows(x[0])

    def bounds(self, centres: Vectors) -> Callable[[], Bound]:
        """See `Geometry`."""
        chunks = [self._centres(centres[0][i : i + CENTRES_AT_ONCE]) for i in range(0, len(centres[0]), CENTRES_AT_ONCE)]
        widest = max(len(operand) for operand, _ in chunks)
        step = max(_PRODUCTS // widest, 256)

        def start() -> Bound:
            room = torch.empty(step * widest, dtype=self.encoding.dtype)

            def bound(rows: Operands) -> Array:
                result = np.full(len(rows[0]), np.inf)
                for begin in range(0, len(result), step):
                    at = slice(begin, begin + step)
                    operand, slack = rows[0][at], rows[1][at].double()
                    for centre, centre_slack in chunks:
                        out = room[: len(operand) * len(centre)].view(len(operand), len(centre))
                        smallest = smallest_products(operand, centre, out)
                        np.minimum(result[at], self.encoding.upper(smallest, slack + centre_slack), out=result[at])
                return result

            return bound

        return start

    def _centres(self, x: Array) -> tuple[torch.Tensor, float]:
        operand, slack = self.encoding.centres(x)
        if len(operand) < _FEWEST_CENTRES and self.encoding.bfloat16:
            operand = operand.repeat(-(-_FEWEST_CENTRES // len(operand)), 1)
        return operand, slack

    def wide(self, x: Vectors) -> Wide:
        """See `Geometry`: the rows less the shift, in float64, and their squares."""
        moved = np.subtract(x[0], self.encoding.shift, dtype=np.float64)
        return x[0], moved, np.square(moved).sum(axis=1)

    def estimate(self, x: Wide, y: Wide) -> tuple[Array, Array]:
        """See `Geometry`."""
        product = torch.mm(torch.from_numpy(x[1]), torch.from_numpy(y[1]).T).numpy()
        product *= -2.0
        product += x[2][:, None]
        product += y[2]
        return product, (x[1].shape[1] + 16) * 2.0**-51 * (x[2] + y[2].max(initial=0.0))

    def squared(self, x: Wide, y: Wide) -> Array:
        """See `Geometry`."""
        return squared_distances(x[0], y[0])

"""Similarities of a candidate to a target: functions of the squared distance D of two unit rows, in [0, 1], and 1 where D is 0.

Each is defined in float64 by `of`. For bounds from matrix products it is written as

    kappa = scale * (form(v) - level(0)),   v = origin - D

with an origin for each target, near the distances that decide: what rounding does to v is then small where it matters.

`similarity` says how like each row is to the most similar of a few given ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from raystream.selection.bounds import Encoding
from raystream.selection.nearest import CENTRES_AT_ONCE, Centres, block_rows, nearest
from raystream.selection.rows import Array, Block, Rows, normalised, not_finite
from raystream.threads import each

_FAR = 80.0


class Kernel(Protocol):
    """Falls with D."""

    @property
    def growth(self) -> float:
        """`slope` grows by at most this much for each unit that kappa is above."""

    def of(self, squared: Array) -> Array:
        """Turn float64 D into float64 kappa: the definition."""

    def reach(self, kappa: Array) -> Array:
        """Return the D at which kappa is reached."""

    def origin(self, reach: Array, typical: float) -> Array:
        """Return `reach`, but none far above `typical`, which is the same for all targets."""

    def scale(self, origin: Array) -> Array:
        """Return the scale of each target, float64."""

    def level(self, kappa: Array, origin: Array) -> Array:
        """Return the value of `form` where kappa is reached."""

    def slope(self, kappa: Array) -> Array:
        """Return the largest |d kappa / d D| of similarities up to kappa."""

    def form(self, v: torch.Tensor, typical: float, faint: float) -> torch.Tensor:
        """Overwrite v with its form; off by no more than v (1 + 4 eps) and then a factor of 1 + 8 eps would be, eps that of the dtype.

        Where similarities below a least one are 0, those below `faint` times that become so.
        """


@dataclass(frozen=True)
class Gaussian:
    """exp(-D / delta^2), and 0 where D > 80 delta^2, so that what is far away adds nothing at all."""

    delta: float

    @property
    def _square(self) -> float:
        # float32 resolves nothing below 1e-15 on unit rows, nor does float64 above 1e15: no other widths than these
        return float(min(max(self.delta, 1e-15), 1e15) ** 2)

    @property
    def growth(self) -> float:
        """See `Kernel`."""
        return 1 / self._square

    def of(self, squared: Array) -> Array:
        """See `Kernel`."""
        exponent = squared / self._square
        result: Array = np.where(exponent <= _FAR, np.exp(-exponent), 0.0)
        return result

    def reach(self, kappa: Array) -> Array:
        """See `Kernel`."""
        with np.errstate(divide="ignore"):
            return -np.log(kappa) * self._square

    def origin(self, reach: Array, typical: float) -> Array:
        """See `Kernel`."""
        # rounding moves exponents in proportion to their sizes
        return np.where(reach > typical + 4 * self._square, self._middle(typical), reach)

    def _middle(self, typical: float) -> float:
        return min(typical, _FAR / 2 * self._square)

    def scale(self, origin: Array) -> Array:
        """See `Kernel`."""
        result: Array = np.exp(-origin / self._square)
        return result

    def level(self, kappa: Array, origin: Array) -> Array:
        """See `Kernel`."""
        return kappa / self.scale(origin)

    def slope(self, kappa: Array) -> Array:
        """See `Kernel`."""
        return kappa / self._square

    def form(self, v: torch.Tensor, typical: float, faint: float) -> torch.Tensor:
        """See `Kernel`."""
        v.mul_(1 / self._square).exp_()
        if self._square * _FAR > 5:  # than which no two unit rows are farther apart
            return v
        least = math.exp(self._middle(typical) / self._square - _FAR) * faint
        # targets measured from below the middle have levels far above this
        return torch.threshold_(v, least, 0.0)


@dataclass(frozen=True)
class Cosine:
    """max(cos, 0) = max(1 - D / 2, 0)."""

    @property
    def growth(self) -> float:
        """See `Kernel`."""
        return 0.0

    def of(self, squared: Array) -> Array:
        """See `Kernel`."""
        result: Array = np.maximum(1 - squared / 2, 0.0)
        return result

    def reach(self, kappa: Array) -> Array:
        """See `Kernel`."""
        result: Array = 2 - 2 * kappa
        return result

    def origin(self, reach: Array, typical: float) -> Array:
        """See `Kernel`."""
        return np.where(reach > 2 * typical, typical, reach)

    def scale(self, origin: Array) -> Array:
        """See `Kernel`."""
        return np.full(len(origin), 0.5)

    def level(self, kappa: Array, origin: Array) -> Array:
        """See `Kernel`."""
        result: Array = origin - (2 - 2 * kappa)
        return result

    def slope(self, kappa: Array) -> Array:
        """See `Kernel`."""
        return np.full(len(kappa), 0.5)

    def form(self, v: torch.Tensor, typical: float, faint: float) -> torch.Tensor:
        """See `Kernel`."""
        return v


def similarity(rows: Rows, similar: Array) -> Array:
    """Return (n,) float64: (1 + the largest cosine with a row of `similar`) / 2, from 0 to 1.

    The cosine is 1 - D / 2, D the exact float64 squared distance of the two rows divided by their lengths,
    so that it depends on the two alone. Rows of zeros have a cosine of 1 with each other and of 0 with all else.

    Args:
        rows: the candidates, read once.
        similar: (m, d) float32, m at least 1.

    Raises:
        DataError: rows that are not finite.
    """
    result = np.empty(len(rows))
    unit = normalised(similar)
    zeros = ~unit.any(axis=1)
    unit = unit[~zeros]
    chunks = []
    if len(unit):
        encoding = Encoding.fit(unit.mean(axis=0, dtype=np.float64), 1.0, on_grid=False, precision="auto")
        chunks = [Centres.of(unit[i : i + CENTRES_AT_ONCE], encoding) for i in range(0, len(unit), CENTRES_AT_ONCE)]

    def see(block: Block) -> Array:
        x = block.read()
        bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
        if not len(bad):
            x = normalised(x)
            cosine = np.full(len(x), 0.0 if zeros.any() else -1.0)
            for chunk in chunks:
                np.maximum(cosine, 1 - nearest(x, chunk, exact_distance=True).upper / 2, out=cosine)
            cosine[~x.any(axis=1)] = float(zeros.any())
            result[block.start : block.stop] = (1 + cosine) / 2
        return bad + block.start

    size = block_rows(min(max(len(unit), 1), CENTRES_AT_ONCE))
    bad = [found for found in each(rows.blocks(0, len(rows), size), lambda: see) if len(found)]
    if bad:
        every = np.concatenate(bad)
        raise not_finite(len(every), [int(row) for row in every[:3]])
    return np.clip(result, 0.0, 1.0)

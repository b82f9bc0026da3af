"""How well the rows chosen so far represent a set of targets, and what one more row would add.

The value of a batch S is sum over targets t of w_t max over c in S of kappa(c, t), monotone and submodular as
kappa >= 0: what a row adds only shrinks as others are chosen. What a row adds is *defined* by float64 sums of
squared differences, target by target in row order, so that it depends on the row and the targets alone. Matrix
products give bounds of it which are rigorous in any order of summation. With u the unit roundoff, y = x - shift
rounded and q = |y|^2,

    |x_c - x_t|^2 >= (q_c + q_t) (1 - m) - 2 y_c.y_t        m = (d + 32) u + 4 (d + 32) 2^-53

as the product errs by at most d u |y_c||y_t|, rounding y by 5 u (q_c + q_t), the sums by 6 u (q_c + q_t), and the
definition itself by the last term.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from raystream.selection.bounds import Encoding
from raystream.selection.nearest import Centres, nearest
from raystream.selection.rows import Array, Block, Rows, normalised, squared_distances
from raystream.selection.threads import each

_TILE = 512
"""Rows and targets that are multiplied at a time: what is made of the products stays in the second-level cache."""
_FAR = 80.0
_COVERED_ROWS = 2048


class Similarity(Protocol):
    """kappa in [0, 1], which falls with the squared distance of two unit rows and is 1 where that is 0."""

    def of(self, squared: Array) -> Array:
        """float64 squared distances -> float64 similarities: the definition."""

    def bound(self, below: torch.Tensor) -> torch.Tensor:
        """Minus lower bounds of squared distances, overwritten by upper bounds of kappa, but for a factor of 1 + `_roundoff`."""


@dataclass(frozen=True)
class Gaussian:
    """exp(-D / delta^2), and 0 where D > 80 delta^2, so that what is far away adds nothing at all."""

    delta: float

    @property
    def _square(self) -> float:
        # float32 resolves nothing below 1e-15 on unit rows, nor does float64 above 1e15: no other widths than these
        return float(min(max(self.delta, 1e-15), 1e15) ** 2)

    def of(self, squared: Array) -> Array:
        """See `Similarity`."""
        exponent = squared / self._square
        result: Array = np.where(exponent <= _FAR, np.exp(-exponent), 0.0)
        return result

    def bound(self, below: torch.Tensor) -> torch.Tensor:
        """See `Similarity`."""
        below.mul_((1 - 4 * torch.finfo(below.dtype).eps) / self._square).exp_()
        return torch.threshold_(below, math.exp(-_FAR) * (1 - 2.0**-10), 0.0)


@dataclass(frozen=True)
class Cosine:
    """max(cos, 0) = max(1 - D / 2, 0)."""

    def of(self, squared: Array) -> Array:
        """See `Similarity`."""
        result: Array = np.maximum(1 - squared / 2, 0.0)
        return result

    def bound(self, below: torch.Tensor) -> torch.Tensor:
        """See `Similarity`."""
        return below.mul_(0.5).add_(1 + 4 * torch.finfo(below.dtype).eps)


def _roundoff(dtype: torch.dtype) -> float:
    """What `exp` and the sums around it may err by, relatively; far above what any library's does."""
    return torch.finfo(dtype).eps * 32


@dataclass(frozen=True)
class _Operand:
    """(m, d) rows of a product, and `square` (m,), lower bounds of (1 - m) q."""

    y: torch.Tensor
    square: torch.Tensor

    @classmethod
    def of(cls, x: Array, shift: Array, dtype: torch.dtype) -> _Operand:
        y = torch.from_numpy(x).to(dtype) - torch.from_numpy(shift).to(dtype)
        terms = x.shape[1] + 32
        unit = terms * torch.finfo(dtype).eps / 2
        margin = unit / (1 - unit) + 4 * terms * 2.0**-53
        exact = y.double().square().sum(1) * (1 - margin) - 2.0**-100
        square = exact.to(dtype)
        lower = torch.nextafter(square, torch.full_like(square, -math.inf))
        return cls(y, torch.where(square.double() > exact, lower, square))


class Coverage:
    """Weighted targets and how well each is represented.

    Args:
        targets: (m, d) float32 unit rows, in the order in which gains are summed.
        weight: (m,) float64, at least 0.
        similarity: kappa.

    Attributes:
        best: (m,) float64, the largest kappa of each target with a covered row, 0 before there is one; of no account where the weight is 0.
    """

    def __init__(self, targets: Array, weight: Array, similarity: Similarity) -> None:
        self.targets, self.similarity = targets, similarity
        self.best = np.zeros(len(targets))
        # a row of zeros has no direction: it resembles nothing
        weight = np.where(targets.any(axis=1), weight, 0.0)
        # a power of two, so that gains are scaled back without rounding
        self._power = math.frexp(float(weight.max(initial=0.0)))[1]
        self._weight = np.ldexp(weight, -self._power)
        self._shift = targets.mean(axis=0, dtype=np.float64).astype(np.float32) if len(targets) else np.zeros(targets.shape[1], np.float32)
        self._operands = {dtype: _Operand.of(targets, self._shift, dtype) for dtype in (torch.float32, torch.float64)}

    @property
    def complete(self) -> bool:
        """Whether no row can add anything."""
        return bool(((self._weight == 0) | (self.best >= 1)).all())

    def cover(self, x: Array) -> None:
        """Rows (r, d) float32, of length one or zero, are labelled."""
        x = x[x.any(axis=1)]
        if not len(x) or not len(self.targets):
            return
        encoding = Encoding.fit(self._shift.astype(np.float64), 1.0, on_grid=False, precision="float32")
        for begin in range(0, len(x), _COVERED_ROWS):
            centres = Centres.of(x[begin : begin + _COVERED_ROWS], encoding)
            for first in range(0, len(self.targets), _COVERED_ROWS):
                at = slice(first, first + _COVERED_ROWS)
                squared = nearest(self.targets[at], centres, exact_distance=True).upper
                np.maximum(self.best[at], self.similarity.of(squared), out=self.best[at])

    def add(self, x: Array) -> None:
        """The unit row `x` (d,) float32 is chosen."""
        which, kappa = self._near(x)
        self.best[which] = np.maximum(self.best[which], kappa)

    def gain(self, x: Array) -> float:
        """What the unit row `x` (d,) float32 adds, by the definition."""
        which, kappa = self._near(x)
        added = np.zeros(len(self.targets))
        added[which] = np.maximum(kappa - self.best[which], 0.0) * self._weight[which]
        # the zeros stand in their places, so that the order of summing is that of all targets
        return math.ldexp(float(added.sum()), self._power)

    def _near(self, x: Array) -> tuple[Array, Array]:
        """(targets, kappa): the targets that `x` may represent better than the rows before it, and kappa by the definition."""
        if not x.any():
            return np.empty(0, dtype=np.int64), np.empty(0)
        operand = _Operand.of(x[None], self._shift, torch.float32)
        which = np.flatnonzero(self._above(operand, self._least(torch.float32))[0].numpy())
        parts = [which[begin : begin + _COVERED_ROWS] for begin in range(0, len(which), _COVERED_ROWS)]
        kappa = [self.similarity.of(squared_distances(self.targets[part], x)) for part in parts]
        return which, np.concatenate(kappa) if kappa else np.empty(0)

    def bounds(self, rows: Rows, which: Array, dtype: torch.dtype) -> Array:
        """(r,) float64 upper bounds of `gain` for the candidates `which` (int64, ascending), from products in `dtype`."""
        least, weight = self._least(dtype), torch.from_numpy(self._weight).to(dtype)
        weight = torch.where(weight.double() < torch.from_numpy(self._weight), torch.nextafter(weight, torch.ones_like(weight)), weight)
        inflation = 1 + (_TILE + 64) * torch.finfo(dtype).eps + 2 * _roundoff(dtype) + len(self.targets) * 2.0**-52

        def start() -> Callable[[Block], Array]:
            room = torch.empty(_TILE * _TILE, dtype=dtype)

            def work(block: Block) -> Array:
                x = normalised(block.read())
                operand = _Operand.of(x, self._shift, dtype)
                total = torch.zeros(len(x), dtype=torch.float64)
                for first in range(0, len(self.targets), _TILE):
                    at = slice(first, min(first + _TILE, len(self.targets)))
                    out = room[: len(x) * (at.stop - first)].view(len(x), at.stop - first)
                    total += torch.mv(self._above(operand, least, at, out), weight[at]).double()
                total[torch.from_numpy(~x.any(axis=1))] = 0.0
                return total.mul_(inflation).numpy()

            return work

        if not len(which):
            return np.empty(0)
        share, chosen = -(-len(which) // torch.get_num_threads()), rows.subset(which)
        found = each(chosen.blocks(0, len(chosen), min(max(share, 1), _TILE)), start)
        result: Array = np.ldexp(np.concatenate(found), self._power)
        return result

    def _least(self, dtype: torch.dtype) -> torch.Tensor:
        """(m,) what a bound of kappa must exceed to add anything: below `best`, and infinite where nothing can be added."""
        exact = torch.from_numpy(np.where((self._weight > 0) & (self.best < 1), self.best * (1 - 2 * _roundoff(dtype)), np.inf))
        least = exact.to(dtype)
        return torch.where(least.double() > exact, torch.nextafter(least, torch.full_like(least, -math.inf)), least)

    def _above(self, operand: _Operand, least: torch.Tensor, at: slice = slice(None), out: torch.Tensor | None = None) -> torch.Tensor:
        """(r, targets `at`) by how much the bounds of kappa exceed `least`; exactly 0 where kappa can't exceed `best`."""
        held = self._operands[operand.y.dtype]
        below = torch.mm(operand.y, held.y[at].T, out=out).mul_(2).sub_(operand.square[:, None]).sub_(held.square[at]).clamp_(max=0)
        return self.similarity.bound(below).sub_(least[at]).relu_()

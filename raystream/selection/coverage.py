"""Measure how well the rows chosen so far represent a set of targets, and what one more row would add.

The value of a batch S is sum over targets t of w_t max over c in S of kappa(c, t), monotone and submodular as
kappa >= 0: what a row adds only shrinks as others are chosen. What a row adds is *defined* by float64 sums of
squared differences, target by target in row order, so that it depends on the row and the targets alone.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from raystream.selection.bounds import Encoding
from raystream.selection.kernels import Kernel
from raystream.selection.nearest import Centres, nearest
from raystream.selection.pairs import Aim, Pairs, PairsRoom
from raystream.selection.rows import Array, squared_distances
from raystream.threads import one_thread

_AT_ONCE = 2048
_SAMPLE, _EVERY = 1024, 16


class Coverage:
    """Weighted targets and how well each is represented.

    Args:
        targets: (m, d) float32 unit rows, in the order in which gains are summed.
        weight: (m,) float64, at least 0.
        kernel: kappa.

    Attributes:
        best: (m,) float64, the largest kappa of each target with a covered row, 0 before there is one; of no account where the weight is 0.
        power: gains are computed in units of 2^power.
    """

    def __init__(self, targets: Array, weight: Array, kernel: Kernel) -> None:
        self.targets, self.kernel = targets, kernel
        self.best = np.zeros(len(targets))
        # a row of zeros has no direction: it resembles nothing
        weight = np.where(targets.any(axis=1), weight, 0.0)
        # a power of two, so that gains are scaled back without rounding
        self.power = math.frexp(float(weight.max(initial=0.0)))[1]
        self.weight = np.ldexp(weight, -self.power)
        self._typical = _typical(targets, self.weight, kernel)
        self._pairs: dict[torch.dtype, Pairs] = {}
        self._aims: dict[torch.dtype, tuple[Aim, Array]] = {}
        self._changed: dict[torch.dtype, list[Array]] = {}
        self._last: tuple[Array, Array, Array] | None = None
        self._room: PairsRoom | None = None

    def pairs(self, dtype: torch.dtype) -> Pairs:
        """Return the `Pairs` that bound similarities to the targets in a precision."""
        if dtype not in self._pairs:
            self._pairs[dtype] = Pairs(self.targets, self.weight, self.kernel, self._typical, dtype)
        return self._pairs[dtype]

    @property
    def open(self) -> Array:
        """int64 targets that a row may add to."""
        return np.flatnonzero((self.weight > 0) & (self.best < 1))

    @property
    def complete(self) -> bool:
        """True if no row can add anything."""
        return not len(self.open)

    def aim(self, dtype: torch.dtype) -> tuple[Aim, Array]:
        """Aim at upper bounds of what rows add now, but for the `power`, and the targets (m,) int64 that it is at."""
        if dtype in self._aims:
            aim, which = self._aims[dtype]
            if 2 * len(self.open) >= len(which):
                self._renew(dtype, aim, which, self._changed[dtype])
                self._changed[dtype] = []
                return aim, which
        which = self.open
        self._aims[dtype] = self.pairs(dtype).aim(which, self.best[which], None, up=True), which
        self._changed[dtype] = []
        return self._aims[dtype]

    def _renew(self, dtype: torch.dtype, aim: Aim, which: Array, changed: list[Array]) -> None:
        if changed:
            every = np.unique(np.concatenate(changed))
            at = np.searchsorted(which, every)
            at = at[which[np.minimum(at, len(which) - 1)] == every]
            self.pairs(dtype).renew(aim, at, which[at], self.best[which[at]], None)

    def cover(self, x: Array) -> None:
        """Count rows (r, d) float32, of length one or zero, as labelled."""
        x = x[x.any(axis=1)]
        if not len(x) or not len(self.targets):
            return
        encoding = Encoding.fit(self.targets.mean(axis=0, dtype=np.float64), 1.0, on_grid=False, precision="float32")
        for begin in range(0, len(x), _AT_ONCE):
            centres = Centres.of(x[begin : begin + _AT_ONCE], encoding)
            for first in range(0, len(self.targets), _AT_ONCE):
                at = slice(first, first + _AT_ONCE)
                squared = nearest(self.targets[at], centres, exact_distance=True).upper
                np.maximum(self.best[at], self.kernel.of(squared), out=self.best[at])
        self._aims.clear()
        self._changed.clear()

    def add(self, x: Array) -> None:
        """Count the unit row `x` (d,) float32 as chosen."""
        which, kappa = self._near(x)
        better = kappa > self.best[which]
        self.best[which[better]] = kappa[better]
        for changed in self._changed.values():
            changed.append(which[better])
        self._last = None

    def gain(self, x: Array) -> float:
        """Compute what the unit row `x` (d,) float32 adds, by the definition."""
        which, kappa = self._near(x)
        added = np.zeros(len(self.targets))
        added[which] = np.maximum(kappa - self.best[which], 0.0) * self.weight[which]
        # the zeros stand in their places, so that the order of summing is that of all targets
        return math.ldexp(float(added.sum()), self.power)

    def _near(self, x: Array) -> tuple[Array, Array]:
        """Find the targets that `x` may represent better than the rows before it, and kappa by the definition."""
        if self._last is not None and np.array_equal(self._last[0], x):
            return self._last[1:]
        which = self._better(x) if x.any() else np.empty(0, dtype=np.int64)
        parts = [which[begin : begin + _AT_ONCE] for begin in range(0, len(which), _AT_ONCE)]
        kappa = [self.kernel.of(squared_distances(self.targets[part], x)) for part in parts]
        self._last = x.copy(), which, np.concatenate(kappa) if kappa else np.empty(0)
        return self._last[1:]

    def _better(self, x: Array) -> Array:
        """Find int64 targets that `x` may represent better, by float32."""
        pairs, (aim, which) = self.pairs(torch.float32), self.aim(torch.float32)
        self._room = pairs.room(1, len(self.targets)) if self._room is None else self._room
        with one_thread():
            result: Array = which[pairs.reaches(pairs.rows(x[None]), aim, self._room)[0]]
        return result


def _typical(targets: Array, weight: Array, kernel: Kernel) -> float:
    """Compute the mean squared distance of targets, each pair weighted by its similarity: those far from each other decide little."""
    some = np.unique(np.linspace(0, max(len(targets) - 1, 0), _SAMPLE).astype(np.int64))[: len(targets)]
    x, weight, sums = targets[some], weight[some], np.zeros(2)
    for row in range(0, len(some), _EVERY):
        squared = squared_distances(x, x[row])
        kappa = kernel.of(squared) * weight
        kappa[row] = 0.0
        sums += (kappa * squared).sum(), kappa.sum()
    return float(sums[0] / sums[1]) if sums.all() else 2.0

"""Bounds of the similarities of many candidates to many targets, from matrix products, rigorous in any order of summation.

With y = x - shift, q = |y|^2 and a constant c near the mean of q, one product of operands gives

    v = origin - D = 2 y_r.y_t - (q_r - c) + (origin_t - q_t - c)

for a row r and a target t, in the units of squared distances. What it may err by is added (or subtracted, for bounds from below) in
the same product: `m` = gamma (q_r + q_t + |q_r - c| + |origin_t - q_t - c|), gamma for the columns that are summed, as the product
errs by at most gamma |y_r||y_t|, plus 5 u (q_r + q_t) for rounding y and 4 (d + 32) 2^-53 (q_r + q_t) for the definition itself.

In bfloat16 rounding moves y by up to 2^-8 of its length, to yb: e = y_r.y_t - yb_r.yb_t = (y_r - yb_r).y_t + yb_r.(y_t - yb_t).
There are two ways to reckon with it, and either may be the tighter one:

* pair by pair: 2 |e| <= |y_r - yb_r|^2 / tau + tau q_r + the same of t, for any tau, here a typical |y - yb| / |y|;
* as a sum: sum_t w_t |e_t| <= sqrt(sum_t w_t) sqrt(sum_t w_t e_t^2), and the last is a quadratic form of y_r - yb_r with the
  targets' matrix of second moments, plus one of yb_r with that of what rounding moved the targets. It is a small part of the first
  where the targets lie in many directions.

The product also comes back rounded to bfloat16, by at most 2^-8 of v: origins stand near the distances that decide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from raystream.selection.kernels import Kernel
from raystream.selection.rows import Array

_TAU = 1.65 * 2.0**-10
_WIDEST_FORM = 512
"""Beyond this width the sum's quadratic form costs as much as the products, and errors are reckoned pair by pair."""
_UP = 1 + 2.0**-7
_PART = 512
"""Targets that are multiplied at a time, at most: with their rows they stay in the second-level cache."""


@dataclass(frozen=True)
class Operand:
    """Rows as the product takes them.

    Attributes:
        y: (r, columns).
        spread: (r,) float64, at least sqrt(sum_t w_t e_t^2); infinite where that isn't known.
        moved: (r,) float64, the rows' share of 2 |e|, pair by pair.
    """

    y: torch.Tensor
    spread: Array
    moved: Array


@dataclass(frozen=True)
class Aim:
    """Targets, and the stretch of similarity that is measured on each, of which a row gets what it reaches.

    Attributes:
        up: whether the bounds are from above.
        together: whether bfloat16's error is reckoned as a sum, not pair by pair.
        y: (m, columns), the targets' operands.
        low: (m,) where the stretch begins, in the units of `Kernel.form`; None if all are 0.
        span: (m,) how long it is.
        weight: (m,) of what a row reaches, times 2^power.
        square: (m,) of the square of that, times 4^power; None if the slope doesn't grow.
        power: see there.
        nudge: by how much v may err, relatively, unless `inflation` holds that.
        inflation: by how much a sum may err, relatively.
        parts: stretches of targets that are summed by themselves.
        slope: (parts,) float64, what a spread of 1 makes of the sum up to the end of each part.
        moved: the targets' share of 2 |e|, the largest.
    """

    up: bool
    together: bool
    y: torch.Tensor
    low: torch.Tensor | None
    span: torch.Tensor
    weight: torch.Tensor
    square: torch.Tensor | None
    power: int
    nudge: float
    inflation: float
    parts: list[slice]
    slope: Array
    moved: float


class Pairs:
    """Bounds in one precision.

    Args:
        x: (m, d) float32 unit rows, the targets.
        weight: (m,) float64 in [0, 1].
        kernel: kappa.
        typical: a squared distance near which similarities decide.
        dtype: of the products' operands.
    """

    def __init__(self, x: Array, weight: Array, kernel: Kernel, typical: float, dtype: torch.dtype) -> None:
        self._kernel, self._weight, self._typical, self.dtype = kernel, weight, typical, dtype
        self._wide = torch.float32 if dtype == torch.bfloat16 else dtype
        self._pieces = 3 if dtype == torch.bfloat16 else 1
        self._width = x.shape[1]
        columns = self._width + 2 * self._pieces + 2
        self.columns = -(-columns // 32) * 32 if dtype == torch.bfloat16 else columns
        eps = torch.finfo(self._wide).eps
        unit = (self.columns + 16) * eps / 2
        self._gamma = unit / (1 - unit)
        self._own = 2.5 * eps + 4 * (self._width + 32) * 2.0**-53 + self._gamma
        self._shift = torch.from_numpy(x.mean(axis=0, dtype=np.float64).astype(np.float32) if len(x) else np.zeros(self._width, np.float32))
        y, stored, rest, self._q = self._moved(x)
        self._centre = float(self._q.mean()) if len(x) else 0.0
        self._stored = stored.mul(2)
        self._share = self._shares(rest, self._q)
        self._forms = self._moments(y, rest)

    def _moved(self, x: Array) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Array]:
        """(y, y as stored, what that moved it by, q in float64)."""
        y = torch.from_numpy(x).to(self._wide) - self._shift.to(self._wide)
        stored = y.to(self.dtype)
        return y, stored, y - stored.to(self._wide), y.double().square().sum(1).numpy()

    def _shares(self, rest: torch.Tensor, q: Array) -> Array:
        """(m,) float64: 2 |e| of a pair is at most the sum of its two."""
        if self.dtype != torch.bfloat16:
            return np.zeros(len(q))
        return (rest.double().square_().sum(1).numpy() / _TAU + _TAU * q) * _UP

    def _moments(self, y: torch.Tensor, rest: torch.Tensor) -> tuple[torch.Tensor, float] | None:
        """The second moments of the targets, (d, d), and the largest eigenvalue of those of what rounding moved them by."""
        if self.dtype != torch.bfloat16 or self._width > _WIDEST_FORM or not len(y):
            return None
        root = torch.from_numpy(np.sqrt(self._weight))[:, None]
        of_rest, of_all = root * rest, root * y
        largest = torch.linalg.eigvalsh(torch.mm(of_rest.T, of_rest))[-1]
        return torch.mm(of_all.T, of_all).float(), float(largest)

    @property
    def ways(self) -> list[bool]:
        """Values of `together` that are worth trying."""
        if self.dtype != torch.bfloat16:
            return [False]
        return [False] if self._forms is None else [True, False]

    @property
    def coarse(self) -> float:
        """By how much rounding may change the similarity of a typical pair, relatively, if that depends on it."""
        return self._kernel.growth * 2 * float(self._share.mean()) if len(self._share) else 0.0

    def rows(self, x: Array, out: torch.Tensor | None = None) -> Operand:
        """(r, d) float32 unit rows as operands, into `out` (r, columns)."""
        out = torch.empty((len(x), self.columns), dtype=self.dtype) if out is None else out
        y, stored, rest, q = self._moved(x)
        d, p = self._width, self._pieces
        moved = self._shares(rest, q)
        out[:, :d] = stored
        out[:, d : d + p] = self._split(torch.from_numpy(q - self._centre).to(self._wide))
        # the piece itself is rounded to nearest
        own = self._own * q + (self._gamma + torch.finfo(self._wide).eps) * np.abs(q - self._centre)
        out[:, d + p] = torch.from_numpy(own * _UP * _UP)
        out[:, d + p + 1] = torch.from_numpy(moved * _UP)
        out[:, d + p + 2 : d + 2 * p + 2] = 1.0
        out[:, d + 2 * p + 2 :] = 0.0
        return Operand(out, self._spread(rest, q), moved)

    def _spread(self, rest: torch.Tensor, q: Array) -> Array:
        if self.dtype != torch.bfloat16:
            return np.zeros(len(q))
        if self._forms is None:
            return np.full(len(q), np.inf)
        moments, largest = self._forms
        form = torch.mm(rest, moments).mul_(rest).sum(1).double().numpy()
        square = rest.double().square_().sum(1).numpy()
        # in float32 the form errs in proportion to its terms' sizes, which the trace bounds
        slack = float(moments.diagonal().sum()) * self._width * 2.0**-22
        result: Array = (np.sqrt(np.maximum(form, 0.0) + slack * square) + np.sqrt(largest * q * _UP)) * _UP
        return result

    def _split(self, value: torch.Tensor) -> torch.Tensor:
        """(m, pieces): float32 as three exact bfloat16 numbers, or as it is."""
        if self._pieces == 1:
            return value[:, None]
        parts = []
        for _ in range(self._pieces):
            parts.append(value.view(torch.int32).bitwise_and(-65536).view(torch.float32))
            value = value - parts[-1]
        return torch.stack(parts, dim=1)

    def aim(self, which: Array, low: Array, high: Array | None, *, up: bool, together: bool) -> Aim:
        """At targets `which` (m,) int64, from similarity `low` (m,) to `high`, or to 1."""
        kernel, d, p = self._kernel, self._width, self._pieces
        sign = 1 if up else -1
        origin = kernel.origin(low, self._typical)
        scale = kernel.scale(origin)
        piece = origin - self._q[which] - self._centre
        own = self._own * self._q[which] + self._gamma * np.abs(piece) + 2.0**-100
        moved = np.zeros(len(which)) if together else self._share[which] * _UP
        y = torch.zeros((len(which), self.columns), dtype=self.dtype)
        y[:, :d] = self._stored[torch.from_numpy(which)]
        y[:, d : d + p] = -1.0
        y[:, d + p] = sign
        y[:, d + p + 1] = 0 if together else sign
        y[:, d + p + 2 : d + 2 * p + 2] = self._split(self._rounded(piece + sign * _UP * (own + moved), up))
        eps = torch.finfo(self._wide).eps
        roundoff = 32 * eps * sign
        start = kernel.level(low, origin)
        end = kernel.level(np.ones(len(which)) if high is None else high, origin)
        begin = start * (1 - roundoff) if kernel.growth else start
        nudge = (2.0**-8 * 1.01 if self.dtype == torch.bfloat16 else 0.0) + (4 * eps if kernel.growth else 0.0)
        flat, count = not start.any(), len(which)
        linear = flat and not kernel.growth  # what v errs by, relatively, the sum errs by
        size = min(max(-(-len(self._q) // 16), 128), _PART)
        parts = [slice(first, min(first + size, count)) for first in range(0, count, size)]
        weight = self._weight[which] * scale
        power = -math.frexp(float(weight.max(initial=0.0)))[1]
        grows = up and together and kernel.growth > 0
        slopes = kernel.slope(low if up or high is None else high)
        ends = [part.stop - 1 for part in parts]
        return Aim(
            up,
            together,
            y,
            None if flat else self._rounded(begin, not up),
            self._rounded(end - begin, up),
            self._rounded(np.ldexp(weight, power), up),
            self._rounded(np.ldexp(weight * scale, 2 * power), up) if grows else None,
            power,
            0.0 if linear else nudge,
            (_PART + 64) * eps + 2 * abs(roundoff) + count * 2.0**-52 + (nudge if linear else 0.0),
            parts,
            2 * np.sqrt(np.cumsum(self._weight[which] * np.square(slopes)))[ends] * _UP,
            float(self._share[which].max(initial=0.0)) * _UP,
        )

    def _rounded(self, value: Array, up: bool) -> torch.Tensor:
        """float64 -> the wide dtype, never below, or never above."""
        exact = torch.from_numpy(value)
        near = exact.to(self._wide)
        wrong = near.double() < exact if up else near.double() > exact
        return torch.where(wrong, torch.nextafter(near, torch.full_like(near, math.inf if up else -math.inf)), near)

    def room(self, rows: int) -> Room:
        """Memory for `rows` rows at a time."""
        return Room(
            torch.empty(rows * _PART, dtype=self.dtype),
            torch.empty(rows * _PART, dtype=self._wide),
            torch.empty(rows * _PART, dtype=self._wide),
        )

    def above(self, rows: Operand, aim: Aim, room: Room) -> Array:
        """(r,) float64 upper bounds of the weighted sums of what the rows reach."""
        total, squares = np.zeros(len(rows.y)), np.zeros(len(rows.y))
        for part, reached in self.reached(rows, aim, room):
            total += torch.mv(reached, aim.weight[part]).double().numpy()
            if aim.square is not None:
                squares += torch.mv(reached.square_(), aim.square[part]).double().numpy()
        total *= 1 + aim.inflation
        if aim.together and len(aim.parts):
            growth = self._kernel.growth
            with np.errstate(over="ignore", invalid="ignore"):
                slope = np.ldexp(aim.slope[-1], aim.power) + 2 * growth * _UP * np.sqrt(squares)
                total += slope * rows.spread * np.exp(growth * (rows.moved + aim.moved))
        return np.ldexp(np.nan_to_num(total, nan=np.inf, posinf=np.inf), -aim.power)

    def below(self, rows: Operand, aim: Aim, room: Room) -> Array:
        """(r, parts) float64 lower bounds of the weighted sums up to the end of each part."""
        result = np.empty((len(rows.y), len(aim.parts)))
        for number, (part, reached) in enumerate(self.reached(rows, aim, room)):
            result[:, number] = torch.mv(reached, aim.weight[part]).numpy()
        np.cumsum(result, axis=1, out=result)
        result *= 1 - aim.inflation
        if aim.together:
            result -= np.ldexp(aim.slope, aim.power) * rows.spread[:, None]
        return np.ldexp(result, -aim.power)

    def reached(self, rows: Operand, aim: Aim, room: Room) -> Iterator[tuple[slice, torch.Tensor]]:
        """For each part (r, its targets) how much of the stretch the rows reach; overwritten by the next."""
        count, sign = len(rows.y), 1 if aim.up else -1
        for part in aim.parts:
            size = count * (part.stop - part.start)
            out = room.product[:size].view(count, -1)
            torch.mm(rows.y, aim.y[part].T, out=out)
            v = room.wide[:size].view(count, -1).copy_(out) if self.dtype == torch.bfloat16 else out
            if aim.nudge:
                v.add_(torch.abs(v, out=room.sizes[:size].view(count, -1)), alpha=sign * aim.nudge)
            v = self._kernel.form(v, self._typical)
            if aim.low is not None:
                v.sub_(aim.low[part])
            yield part, torch.minimum(v.relu_(), aim.span[part], out=v)


@dataclass(frozen=True)
class Room:
    """What one thread works in."""

    product: torch.Tensor
    wide: torch.Tensor
    sizes: torch.Tensor

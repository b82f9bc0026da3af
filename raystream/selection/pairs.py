"""Bounds of the similarities of many candidates to many targets, from matrix products, rigorous in any order of summation.

With y = x - shift, q = |y|^2 and a constant c near the mean of q, one product of operands gives

    v = origin - D = 2 y_r.y_t - (q_r - c) + (origin_t - q_t - c)

for a row r and a target t, in the units of squared distances. What it may err by is added (or subtracted, for bounds from below) in
the same product: `m` = gamma (q_r + q_t + |q_r - c| + |origin_t - q_t - c|), gamma for the columns that are summed, as the product
errs by at most gamma |y_r||y_t|, plus 5 u (q_r + q_t) for rounding y and 4 (d + 32) 2^-53 (q_r + q_t) for the definition itself.

In bfloat16 rounding moves y by up to 2^-8 of its length, to yb: e = y_r.y_t - yb_r.yb_t = (y_r - yb_r).y_t + yb_r.(y_t - yb_t).
Of one pair nothing better is known than 2 |e| <= |y_r - yb_r|^2 / tau + tau q_r + the same of t, for any tau. But of all,
sum_t w_t e_t^2 is a quadratic form of y_r - yb_r with the targets' matrix of second moments, plus one of yb_r with that of what rounding
moved the targets: where these lie in many directions, the errors of a row's pairs are small together. They count only for the
targets of which the row reaches something, or might, S: sum_S w_t |e_t| <= sqrt(sum_S w_t) sqrt(sum_t w_t e_t^2).

The product also comes back rounded to bfloat16, by at most 2^-8 of v: origins stand near the distances that decide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from raystream.selection.kernels import Kernel
from raystream.selection.rows import Array
from raystream.threads import one_thread

_TAU = 1.65 * 2.0**-10
_WIDEST_FORM = 512
"""Beyond this width the first form costs too much, and its largest value takes its place."""
_UP = 1 + 2.0**-7
_PART = 512
"""Targets that are multiplied at a time, at most: with their rows they stay in the second-level cache."""
_PARTS = 16
TARGETS_UNIT = 64
"""Parts are multiples of this many targets, so that there are few shapes of products."""


@dataclass(frozen=True)
class Operand:
    """Rows as the product takes them.

    Attributes:
        y: (r, columns).
        spread: (r,) float64, at least sqrt(sum_t w_t e_t^2).
        moved: (r,) float64, the rows' share of 2 |e|, pair by pair.
    """

    y: torch.Tensor
    spread: Array
    moved: Array


class Aim:
    """Targets, and a stretch of similarity on each, of which a row gets what it reaches; made by `Pairs`.

    Attributes:
        up: whether the bounds are from above.
        y: (m, columns), the targets' operands.
        low: (m,) where the stretch begins, in the units of `Kernel.form`.
        flat: whether all begin at 0.
        span: (m,) how long it is.
        weight: (m,) of what a row reaches, times 2^power.
        square: (m,) of the square of that, times 4^power.
        steep: (m,) the weight times the square of the largest slope in the stretch, or at its low end if the slope grows; times 4^power;
            0 where the stretch doesn't begin at the origin, so that v doesn't tell whether something is reached.
        open: (m,) float64, the same of those.
        power: see there.
        parts: stretches of targets that are summed by themselves.
        moved: the targets' share of 2 |e|, the largest.
    """

    def __init__(self, count: int, pairs: Pairs, part: int, *, up: bool) -> None:
        wide = pairs.wide
        self.up = up
        self.y = torch.zeros((count, pairs.columns), dtype=pairs.dtype)
        self.low, self.span, self.weight, self.square, self.steep = (torch.zeros(count, dtype=wide) for _ in range(5))
        self.open = np.zeros(count)
        self.flat, self.power, self.moved = True, 0, 0.0
        self.parts = [slice(first, min(first + part, count)) for first in range(0, count, part)]


class Pairs:
    """Bounds in one precision.

    Args:
        x: (m, d) float32 unit rows, the targets.
        weight: (m,) float64 in [0, 1].
        kernel: kappa.
        typical: a squared distance near which similarities decide.
        dtype: of the products' operands.
    """

    @one_thread()
    def __init__(self, x: Array, weight: Array, kernel: Kernel, typical: float, dtype: torch.dtype) -> None:
        self._kernel, self._weight, self._typical, self.dtype = kernel, weight, typical, dtype
        self.wide = torch.float32 if dtype == torch.bfloat16 else dtype
        self._pieces = 3 if dtype == torch.bfloat16 else 1
        self._width = x.shape[1]
        columns = self._width + 2 * self._pieces + 1
        self.columns = -(-columns // 8) * 8 if self.coarse else columns
        eps = torch.finfo(self.wide).eps
        unit = (self.columns + 16) * eps / 2
        self._gamma = unit / (1 - unit)
        self._own = 2.5 * eps + 4 * (self._width + 32) * 2.0**-53 + self._gamma
        self._shift = torch.from_numpy(x.mean(axis=0, dtype=np.float64).astype(np.float32) if len(x) else np.zeros(self._width, np.float32))
        y, stored, rest, self._q, lost = self._moved(x)
        self._centre = float(self._q.mean()) if len(x) else 0.0
        self._stored = stored.mul(2)
        self._share = self._shares(lost, self._q)
        self._forms = self._moments(y, rest)

    def _moved(self, x: Array) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Array, Array]:
        """Return (y, y as stored, what that moved it by, and the squared lengths of the first and the last in float64)."""
        y = torch.from_numpy(x).to(self.wide) - self._shift.to(self.wide)
        stored = y.to(self.dtype)
        rest, q = y - stored.to(self.wide), y.double().square().sum(1).numpy()
        return y, stored, rest, q, rest.double().square_().sum(1).numpy() if self.coarse else np.zeros(len(q))

    def _shares(self, lost: Array, q: Array) -> Array:
        """Return (m,) float64 shares: 2 |e| of a pair is at most the sum of its two."""
        return (lost / _TAU + _TAU * q) * _UP if self.coarse else lost

    def _moments(self, y: torch.Tensor, rest: torch.Tensor) -> tuple[torch.Tensor | float, float]:
        """Compute the second moments of the targets, (d, d), or at least their largest eigenvalue; that of those of what rounding moved."""
        if not self.coarse or not len(y):
            return 0.0, 0.0
        root = torch.from_numpy(np.sqrt(self._weight))[:, None]
        if self._width > _WIDEST_FORM:
            return _largest((root * y).float()), _largest((root * rest).float())
        weighted = root * y
        return torch.mm(weighted.T, weighted).float(), _largest((root * rest).float())

    @property
    def coarse(self) -> bool:
        """True if operands are bfloat16."""
        return self.dtype == torch.bfloat16

    @property
    def blur(self) -> float:
        """By how much rounding may change a similarity, relatively, where that depends on it."""
        return self._kernel.growth * 2 * float(self._share.mean()) if len(self._share) else 0.0

    def room(self, rows: int, targets: int = _PART) -> PairsRoom:
        """Make memory for so many rows and targets at a time."""
        return PairsRoom(rows * targets, self)

    def rows(self, x: Array, out: torch.Tensor | None = None) -> Operand:
        """Return (r, d) float32 unit rows as operands, into `out` (r, columns)."""
        out = torch.empty((len(x), self.columns), dtype=self.dtype) if out is None else out
        _, stored, rest, q, lost = self._moved(x)
        d, p = self._width, self._pieces
        moved = self._shares(lost, q)
        out[:, :d] = stored
        out[:, d : d + p] = self._split(torch.from_numpy(q - self._centre).to(self.wide))
        # the piece itself is rounded to nearest
        own = self._own * q + (self._gamma + torch.finfo(self.wide).eps) * np.abs(q - self._centre)
        out[:, d + p] = torch.from_numpy(own * _UP * _UP)
        out[:, d + p + 1 : d + 2 * p + 1] = 1.0
        out[:, d + 2 * p + 1 :] = 0.0
        return Operand(out, self._spread(rest, q, lost), moved)

    def _spread(self, rest: torch.Tensor, q: Array, lost: Array) -> Array:
        if not self.coarse:
            return np.zeros(len(q))
        moments, largest = self._forms
        if isinstance(moments, float):
            form = moments * lost
        else:
            # in float32 the form errs in proportion to its terms' sizes, which the trace bounds
            slack = float(moments.diagonal().sum()) * self._width * 2.0**-22
            form = np.maximum(torch.mm(rest, moments).mul_(rest).sum(1).double().numpy(), 0.0) + slack * lost
        result: Array = (np.sqrt(form) + np.sqrt(largest * q * _UP)) * _UP
        return result

    def _split(self, value: torch.Tensor) -> torch.Tensor:
        """Split float32 into three exact bfloat16 numbers, (m, pieces), or return it as it is."""
        if self._pieces == 1:
            return value[:, None]
        parts = []
        for _ in range(self._pieces):
            parts.append(value.view(torch.int32).bitwise_and(-65536).view(torch.float32))
            value = value - parts[-1]
        return torch.stack(parts, dim=1)

    @one_thread()
    def aim(self, which: Array, low: Array, high: Array | None, *, up: bool) -> Aim:
        """Aim at targets `which` (m,) int64, from similarity `low` (m,) to `high`, or to 1."""
        part = -(-len(self._q) // (_PARTS * TARGETS_UNIT)) * TARGETS_UNIT
        aim = Aim(len(which), self, min(max(part, 2 * TARGETS_UNIT), _PART), up=up)
        scale = self._kernel.scale(self._kernel.origin(self._kernel.reach(low), self._typical))
        aim.power = -math.frexp(float((self._weight[which] * scale).max(initial=0.0)))[1]
        aim.moved = float(self._share[which].max(initial=0.0)) * _UP
        d, p = self._width, self._pieces
        torch.index_select(self._stored, 0, torch.from_numpy(which), out=aim.y[:, :d])
        aim.y[:, d : d + p] = -1.0
        aim.y[:, d + p] = 1 if up else -1
        self.renew(aim, np.arange(len(which)), which, low, high)
        return aim

    @one_thread()
    def renew(self, aim: Aim, at: Array, which: Array, low: Array, high: Array | None) -> None:
        """Set other stretches of similarity for the targets `which` (r,), which stand at the places `at` (r,)."""
        kernel, d, p, up = self._kernel, self._width, self._pieces, aim.up
        sign = 1 if up else -1
        reach = kernel.reach(low)
        origin = kernel.origin(reach, self._typical)
        scale = kernel.scale(origin)
        piece = origin - self._q[which] - self._centre
        margin = _UP * (self._own * self._q[which] + self._gamma * np.abs(piece) + 2.0**-100)
        place = torch.from_numpy(at)
        aim.y[place, d + p + 1 : d + 2 * p + 1] = self._split(self._rounded(piece + sign * margin, up)).to(self.dtype)
        start = kernel.level(low, origin)
        end = kernel.level(np.ones(len(which)) if high is None else high, origin)
        # what forms err by, relatively, may as well be taken from the level that they are compared with
        begin = start * (1 - sign * self._roundoff) if kernel.growth else start
        weight = self._weight[which]
        aim.low[place] = self._rounded(begin, not up)
        aim.span[place] = self._rounded(end - begin, up)
        aim.weight[place] = self._rounded(np.ldexp(weight * scale, aim.power), up)
        aim.square[place] = self._rounded(np.ldexp(weight * scale * scale, 2 * aim.power), True)
        steep = np.ldexp(weight * np.square(kernel.slope(low if up or high is None else high)), 2 * aim.power)
        aim.steep[place] = self._rounded(np.where(origin == reach, steep, 0.0), True)
        aim.open[at] = np.where(origin == reach, 0.0, steep)
        aim.flat = not start.any() and (aim.flat or not aim.low.any())

    @property
    def _roundoff(self) -> float:
        return 32 * torch.finfo(self.wide).eps

    def _errors(self, aim: Aim) -> tuple[float, float]:
        """Return by how much v may err, relatively, and by how much a sum of what is made of it may."""
        eps = torch.finfo(self.wide).eps
        nudge = (2.0**-8 * 1.01 if self.coarse else 0.0) + (4 * eps if self._kernel.growth else 0.0)
        sums = (_PART + 64) * eps + 2 * self._roundoff + len(aim.low) * 2.0**-52
        linear = aim.flat and not self._kernel.growth
        return (0.0, sums + nudge) if linear else (nudge, sums)

    def _rounded(self, value: Array, up: bool) -> torch.Tensor:
        """Round float64 to the wide dtype, never below, or never above."""
        exact = torch.from_numpy(value)
        near = exact.to(self.wide)
        wrong = near.double() < exact if up else near.double() > exact
        return torch.where(wrong, torch.nextafter(near, torch.full_like(near, math.inf if up else -math.inf)), near)

    def above(self, rows: Operand, aim: Aim, room: PairsRoom) -> Array:
        """Return (r,) float64 upper bounds of the weighted sums of what the rows reach."""
        total, near, squares = np.zeros((3, len(rows.y)))
        growth, (nudge, sums) = self._kernel.growth, self._errors(aim)
        for part in aim.parts:
            v = self._product(rows, aim, room, part)
            near += self._near(rows, v, aim, room, part)
            reached = self._reached(v, aim, room, part, nudge)
            total += torch.mv(reached, aim.weight[part]).double().numpy()
            if growth and self.coarse:
                squares += torch.mv(reached.square_(), aim.square[part]).double().numpy()
        total *= 1 + sums
        if self.coarse:
            with np.errstate(over="ignore", invalid="ignore"):
                slope = 2 * _UP * (np.sqrt(near) + growth * np.sqrt(squares))
                total += slope * rows.spread * np.exp(growth * (rows.moved + aim.moved))
            total[np.isnan(total)] = np.inf
        return np.ldexp(total, -aim.power)

    def below(self, rows: Operand, aim: Aim, room: PairsRoom, parts: int) -> Array:
        """Return (r, parts) float64 lower bounds of the weighted sums up to the end of each of the first parts."""
        result, near = np.zeros((2, len(rows.y), parts))
        nudge, sums = self._errors(aim)
        for number, part in enumerate(aim.parts[:parts]):
            v = self._product(rows, aim, room, part)
            near[:, number] = self._near(rows, v, aim, room, part)
            result[:, number] = torch.mv(self._reached(v, aim, room, part, nudge), aim.weight[part]).numpy()
        result = np.cumsum(result, axis=1) * (1 - sums)
        if self.coarse:
            with np.errstate(invalid="ignore"):
                result -= 2 * _UP * np.sqrt(np.cumsum(near, axis=1)) * rows.spread[:, None]
            result[np.isnan(result)] = -np.inf
        return np.ldexp(result, -aim.power)

    def reaches(self, rows: Operand, aim: Aim, room: PairsRoom) -> Array:
        """Tell (r, m) bool of which targets the rows reach something, at least; not in bfloat16, of which pairs don't tell alone."""
        every = slice(0, len(aim.low))
        nudge, _ = self._errors(aim)
        result: Array = self._reached(self._product(rows, aim, room, every), aim, room, every, nudge).numpy() > 0
        return result

    def _product(self, rows: Operand, aim: Aim, room: PairsRoom, part: slice) -> torch.Tensor:
        """Compute v, (r, targets `part`)."""
        size = len(rows.y) * (part.stop - part.start)
        out = room.product[:size].view(len(rows.y), -1)
        torch.mm(rows.y, aim.y[part].T, out=out)
        return room.wide[:size].view(len(out), -1).copy_(out) if self.coarse else out

    def _near(self, rows: Operand, v: torch.Tensor, aim: Aim, room: PairsRoom, part: slice) -> Array | float:
        """Return (r,) the sum of `steep` over the targets of which something may be reached, for all that bfloat16 leaves open."""
        if not self.coarse:
            return 0.0
        reach = float(rows.moved.max()) + aim.moved + 1e-30
        # from 1 wherever v is at least -reach, its rounding included, down to 0: a share of (steps + 2.02 reach) / reach
        steps = torch.clamp(v, -2.02 * reach, -1.02 * reach, out=room.sizes[: v.numel()].view(v.shape))
        steep = aim.steep[part]
        every = float(steep.double().sum()) * (2.02 + 8 * (_PART + 64) * torch.finfo(self.wide).eps)
        result: Array = torch.mv(steps, steep).double().numpy() / reach + every + aim.open[part].sum()
        return result

    def _reached(self, v: torch.Tensor, aim: Aim, room: PairsRoom, part: slice, nudge: float) -> torch.Tensor:
        """Compute how much of the stretches is reached; overwrites v, which may err by a share of `nudge`."""
        if nudge:
            v.add_(torch.abs(v, out=room.sizes[: v.numel()].view(v.shape)), alpha=nudge if aim.up else -nudge)
        v = self._kernel.form(v, self._typical)
        if not aim.flat:
            v.sub_(aim.low[part])
        v.relu_()
        # no cosine is above 1 but by rounding, and a bound from above may be
        return v if aim.up and not self._kernel.growth else torch.minimum(v, aim.span[part], out=v)


class PairsRoom:
    """The memory that one thread works in."""

    def __init__(self, size: int, pairs: Pairs) -> None:
        self.product = torch.empty(size, dtype=pairs.dtype)
        self.wide, self.sizes = (torch.empty(size, dtype=pairs.wide) for _ in range(2))


def _largest(x: torch.Tensor) -> float:
    """Bound from above the largest eigenvalue of the second moments of the (m, d) float32 rows."""
    moments = torch.mm(x.T, x)
    slack = float(moments.diagonal().sum()) * len(x) * 2.0**-23
    if len(moments) <= _WIDEST_FORM:
        return float(torch.linalg.eigvalsh(moments.double())[-1]) + slack
    largest: float = math.sqrt(float(torch.linalg.matrix_norm(torch.mm(moments, moments)))) * (1 + len(moments) ** 1.5 * 2.0**-23)
    return largest + slack

"""How well chosen rows represent targets, exactly and by bounds.

Measure how well the rows chosen so far represent a set of targets, and what one more row would add.

The value of a batch S is sum over targets t of w_t max over c in S of kappa(c, t), monotone and submodular as
kappa >= 0: what a row adds only shrinks as others are chosen. What a row adds is *defined* by float64 sums of
squared differences, target by target in row order, so that it depends on the row and the targets alone.

Bounds of the similarities of many candidates to many targets, from matrix products, rigorous in any order of summation.

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

from raystream.selection.bounds import Encoding
from raystream.selection.kernels import Kernel
from raystream.selection.nearest import Centres, nearest
from raystream.selection.rows import Array, squared_distances
from raystream.threads import one_thread

_TAU = 1.65 * 2.0**-10
_WIDEST_FORM = 512
"""Beyond this width the first form costs too much, and its largest value takes its place."""
_UP = 1 + 2.0**-7
_PART = 1024
"""Targets that are multiplied at a time, at most: with fewer, threads wait for each other more often."""
_PARTS = 8
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
        sums: (parts, 2) float64, the sum of `steep` and that of `open` in each.
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
        self.sums = np.zeros((len(self.parts), 2))


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
        begins = [part.start for part in aim.parts]
        if begins:
            aim.sums[:, 0] = np.add.reduceat(aim.steep.double().numpy(), begins)
            aim.sums[:, 1] = np.add.reduceat(aim.open, begins)
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
        for number, part in enumerate(aim.parts):
            v = self._product(rows, aim, room, part)
            near += self._near(rows, v, aim, room, number)
            reached = self._reached(rows, v, aim, room, part, nudge)
            total += torch.mv(reached, aim.weight[part]).double().numpy()
            if growth and self.coarse:
                squares += torch.mv(reached.square_(), aim.square[part]).double().numpy()
        total *= 1 + sums
        if self.coarse:
            squares += float(aim.square.double().sum()) * torch.finfo(self.wide).tiny  # squares that are too small for float32
            with np.errstate(over="ignore", invalid="ignore"):
                apart = np.exp(growth * (rows.moved + aim.moved))
                together = growth * np.sqrt(squares) * 2 * _UP * rows.spread * apart
                # where similarities are that small, what is known of each pair alone is the better bound
                total = np.fmin(total + together, total * apart) + 2 * _UP * np.sqrt(near) * rows.spread * apart
            total[np.isnan(total)] = np.inf
        return np.ldexp(total, -aim.power)

    def below(self, rows: Operand, aim: Aim, room: PairsRoom, parts: int) -> Array:
        """Return (r, parts) float64 lower bounds of the weighted sums up to the end of each of the first parts.

        In bfloat16 they are of what the operands say, which is what `above` says, too, but for what it adds for their rounding.
        """
        result = np.zeros((len(rows.y), parts))
        nudge, sums = self._errors(aim)
        for number, part in enumerate(aim.parts[:parts]):
            v = self._product(rows, aim, room, part)
            result[:, number] = torch.mv(self._reached(rows, v, aim, room, part, nudge), aim.weight[part]).numpy()
        result = np.cumsum(result, axis=1) * (1 - sums)
        result[np.isnan(result)] = -np.inf
        return np.ldexp(result, -aim.power)

    def reaches(self, rows: Operand, aim: Aim, room: PairsRoom) -> Array:
        """Tell (r, m) bool of which targets the rows reach something, at least; not in bfloat16, of which pairs don't tell alone."""
        every = slice(0, len(aim.low))
        nudge, _ = self._errors(aim)
        result: Array = self._reached(rows, self._product(rows, aim, room, every), aim, room, every, nudge).numpy() > 0
        return result

    def _product(self, rows: Operand, aim: Aim, room: PairsRoom, part: slice) -> torch.Tensor:
        """Compute v, (r, targets `part`)."""
        size = len(rows.y) * (part.stop - part.start)
        out = room.product[:size].view(len(rows.y), -1)
        torch.mm(rows.y, aim.y[part].T, out=out)
        return room.wide[:size].view(len(out), -1).copy_(out) if self.coarse else out

    def _near(self, rows: Operand, v: torch.Tensor, aim: Aim, room: PairsRoom, number: int) -> Array | float:
        """Return (r,) the sum of `steep` over the targets of a part of which something may be reached, as far as bfloat16 tells."""
        if not self.coarse:
            return 0.0
        reach = float(rows.moved.max()) + aim.moved + 1e-30
        # from 1 wherever v is at least -reach, its rounding included, down to 0: a share of (steps + 2.02 reach) / reach
        steps = torch.clamp(v, -2.02 * reach, -1.02 * reach, out=room.sizes[: v.numel()].view(v.shape))
        steep, open_ = aim.sums[number].tolist()
        every = steep * (2.02 + 8 * (_PART + 64) * torch.finfo(self.wide).eps) + open_
        result: Array = torch.mv(steps, aim.steep[aim.parts[number]]).double().numpy() / reach + every
        return result

    def _reached(self, rows: Operand, v: torch.Tensor, aim: Aim, room: PairsRoom, part: slice, nudge: float) -> torch.Tensor:
        """Compute how much of the stretches is reached; overwrites v, which may err by a share of `nudge`."""
        if nudge:
            v.add_(torch.abs(v, out=room.sizes[: v.numel()].view(v.shape)), alpha=nudge if aim.up else -nudge)
        # from above, whatever may be above the kernel's least similarity counts, from below what is
        up = math.exp(-self._kernel.growth * (float(rows.moved.max(initial=0.0)) + aim.moved)) * (1 - 2.0**-10)
        v = self._kernel.form(v, self._typical, up if aim.up else 1 + 2.0**-10)
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

"""BADGE: D-squared sampling of the gradients that labels would give the last layer, so that a batch is uncertain and diverse.

Ash, Zhang, Krishnamurthy, Langford and Agarwal, *Deep batch active learning by diverse, uncertain gradient
lower bounds*, 2020. The gradients are never formed, since their distances factorise.

The gradient of the cross-entropy of the likeliest class, by the weights of the last layer, is
g = a (x) h~ with a = p - e_top, p the class probabilities and h~ = [h; 1] the embedding, 1 for the layer's
bias. Squared distances are defined, in float64, as

    D = |a_i|^2 |h_i - h_j|^2 + |a_i - a_j|^2 |h_j|^2 + 2 (a_i.(a_i - a_j)) ((h_i - h_j).h_j)

which is exactly 0 for equal rows. Rows with a = 0 are one point: their h~ is taken as 0. The middle steps
of D are at most 4 R, R = |a_i|^2 |h_i|^2 + |a_j|^2 |h_j|^2 + 2 |a_i|^2 |h_j|^2, and its rounding below
(c + d + 32) 2^-50 R.

Upper bounds come from any centre, and the nearer the better, so two products in bfloat16 only *find* a
near one, and one pair a row is bounded with care. With l near |h~|, scaled by 2^s to at most about 1, a
row is kept as b = l a and v = h~ / l, so that g = b (x) v whatever l is. With Y = |b_i - b_j|^2, C = 2 b_i.b_j and
X = 1 - v_i.v_j (all three products, whose rounding is relative to themselves), D is near Y + C X.

For the pair (i, j): let b', v' be b and v as stored, t = |b'|^2 |v'|^2 and
r >= |g - b' (x) v'|, summed up from |b - b'| |v| + |b'| |v - v'| and 2^-21 |b| |v| for what computing b and v
in float32 has rounded (four operations at 2^-24 each). Then |g_i - g_j| <= sqrt(E) + r_i + r_j with

    E = t_i + t_j - 2 (b'_i.b'_j) (v'_i.v'_j)

and the two dot products, summed in float32 in any order, move E by at most 2.1 (gamma_c + gamma_d) sqrt(t_i t_j)
and (c + d + 32) 2^-120 for what underflows. The square of that sum, plus the rounding of D, is the bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from raystream.errors import DataError, QueryError
from raystream.selection.arguments import checked_seed, count, optional, shards_of
from raystream.selection.arguments import embeddings as checked
from raystream.selection.bounds import Precision, has_bfloat16_units
from raystream.selection.constraints import Constraints
from raystream.selection.d_squared import BLOCK, DSquared, DSquaredPiece, d_squared
from raystream.selection.geometry import CENTRES_AT_ONCE, Bound, Operands, Vectors, Wide, joined
from raystream.selection.rows import Array, Rows, as_rows, not_finite, tensor, vectors
from raystream.selection.shards import Shards
from raystream.selection.strategies.k_means_pp import picked
from raystream.selection.strategy import Candidates, Picked, Request, embeddings

_PRODUCTS = 1 << 20
_FEWEST_CENTRES = 32
_LEAST_LENGTH = 2.0**-60
_ROWS = 512
"""Rows gone over at a time, to stay in the nearest caches."""


@dataclass(frozen=True)
class Gradients:
    """Squared distances of gradients; vectors are class probabilities (m, c) and embeddings (m, d).

    Attributes:
        classes: c.
        width: d.
        power: embeddings are multiplied by 2^power, which makes the largest norm at most about 1.
        bias: whether the last layer has one.
        bfloat16: operands in bfloat16 instead of float32.
    """

    classes: int
    width: int
    power: int
    bias: bool
    bfloat16: bool

    @classmethod
    def fit(cls, classes: int, width: int, largest: float, *, bias: bool, bfloat16: bool) -> Gradients:
        """Fit it to embeddings whose largest absolute value is `largest`."""
        reach = math.hypot(largest * math.sqrt(max(width, 1)), 1.0 if bias else 0.0)
        return cls(classes, width, 0 if reach == 0 else min(-math.frexp(reach)[1], 126), bias, bfloat16)

    @property
    def exact(self) -> bool:
        """See `Geometry`."""
        return False

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the operands."""
        return torch.bfloat16 if self.bfloat16 else torch.float32

    def _padded(self, columns: int) -> int:
        return -(-columns // 32) * 32 if self.bfloat16 else columns

    @property
    def _pieces(self) -> int:
        """The number of columns that hold |b|^2: bfloat16 has eight bits, float32 has all."""
        return 3 if self.bfloat16 else 1

    @property
    def row_bytes(self) -> int:
        """See `Geometry`."""
        columns = self._padded(self.width + self.bias + 1) + self._padded(self.classes + 2 * self._pieces)
        return columns * self.dtype.itemsize + 24

    @property
    def _terms(self) -> int:
        return self.classes + self.width + 32

    def rows(self, x: Vectors) -> Operands:
        """See `Geometry`: v and 1, (m, d + ..); b, |b|^2 and 1, (m, c + ..); and (m, 3) float64 t, r and |a|^2."""
        m, c, d, pieces = len(x[0]), self.classes, self.width + self.bias, self._pieces
        v, length, v_norm, v_moved = self._directions(tensor(x[1]))
        v[:, d] = 1.0
        exact = torch.zeros((m, self._padded(c + 2 * pieces)))
        a = exact[:, :c].copy_(tensor(x[0]))
        a[torch.arange(m), torch.from_numpy(x[0].argmax(axis=1))] -= 1.0
        a_square = exact.square().sum(1)
        square = exact.mul_(length[:, None]).square().sum(1)
        b = exact.to(self.dtype, copy=True)
        b_norm, b_moved = self._norms(b.float(), exact)
        for piece in range(pieces):
            b[:, c + piece] = square
            square = square - b[:, c + piece].float()
        b[:, c + pieces : c + 2 * pieces] = 1.0
        r = (b_moved * 1.01 + b_norm * v_moved + 2.0**-21 * (b_norm + b_moved) * 1.01 + 2.0**-60) * (1 + 2.0**-20)
        return v, b, torch.stack(((b_norm * v_norm).square(), r, a_square.double()), dim=1)

    def _directions(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return v as stored, with room for its 1, (m,) float32 l, and what `_norms` says of v."""
        m, columns = len(h), self._padded(self.width + self.bias + 1)
        v, length = torch.empty((m, columns), dtype=self.dtype), torch.empty(m)
        norms = torch.empty((2, m), dtype=torch.float64)
        room = torch.zeros((2, min(m, _ROWS), columns))
        for begin in range(0, m, _ROWS):
            at = slice(begin, begin + _ROWS)
            exact, wide = room[:, : len(h[at])]
            torch.mul(h[at], 2.0**self.power, out=exact[:, : self.width])
            if self.bias:
                exact[:, self.width] = 2.0**self.power
            torch.linalg.vector_norm(exact, dim=1, out=length[at]).clamp_(min=_LEAST_LENGTH)
            exact.mul_(length[at].reciprocal()[:, None])
            norms[0, at], norms[1, at] = self._norms(wide.copy_(v[at].copy_(exact)), exact)
        return v, length, norms[0], norms[1]

    def _norms(self, stored: torch.Tensor, exact: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (m,) float64 above the norms of what is stored, (m, k) float32, and how far that lies from `exact`; uses up `stored`."""
        widen = 1 + (exact.shape[1] + 32) * 2.0**-24
        norm = torch.linalg.vector_norm(stored, dim=1).double().mul_(widen).add_(2.0**-60)
        if not self.bfloat16:
            return norm, torch.zeros(len(exact), dtype=torch.float64)
        return norm, torch.linalg.vector_norm(stored.sub_(exact), dim=1).double().mul_(widen).add_(2.0**-60)

    def bounds(self, centres: Vectors) -> Callable[[], Bound]:
        """See `Geometry`."""
        starts = range(0, len(centres[0]), CENTRES_AT_ONCE)
        chunks = [_CentreOperands(self, (centres[0][i : i + CENTRES_AT_ONCE], centres[1][i : i + CENTRES_AT_ONCE])) for i in starts]
        widest = max(len(chunk.v_operand) for chunk in chunks)
        step = max(_PRODUCTS // widest // 256, 1) * 256

        def start() -> Bound:
            products = torch.empty(3 * step * widest, dtype=self.dtype)
            dots = _Dots(max(chunks[0].v.shape[1], chunks[0].b.shape[1]))

            def bound(rows: Operands) -> Array:
                v, b, facts = rows
                result = np.full(len(v), np.inf)
                for chunk in chunks:
                    near = torch.cat([chunk.near(v[i : i + step], b[i : i + step], products) for i in range(0, len(v), step)])
                    squared = self._pairs(dots(v, chunk.v, near), dots(b, chunk.b, near), facts, chunk.facts[near])
                    np.minimum(result, squared, out=result)
                return result

            return bound

        return start

    def _pairs(self, v: torch.Tensor, b: torch.Tensor, row: torch.Tensor, centre: torch.Tensor) -> Array:
        """Return (m,) upper bounds of the squared distances of m pairs from v'.v', b'.b' and the facts of both."""
        t_i, r_i, a_i = row.unbind(1)
        t_j, r_j, h_j = centre.unbind(1)
        gamma = self._terms * 2.0**-24
        error = 2.2 * gamma / (1 - gamma) * (t_i * t_j).sqrt_() + self._terms * 2.0**-120
        total = t_i + t_j
        squared = (total - 2 * b * v + error).clamp_(min=0.0).sqrt_().add_(r_i + r_j).square_()
        rounding = total.addcmul_(a_i, h_j, value=2.0).mul_(self._terms * 2.0**-50)
        result: Array = (squared.mul_(1 + 2.0**-40).add_(rounding) * 4.0**-self.power).numpy()
        return result

    def wide(self, x: Vectors) -> Wide:
        """See `Geometry`: a, h~, |a|^2 and |h~|^2."""
        a = x[0].astype(np.float64)
        a[np.arange(len(a)), x[0].argmax(axis=1)] -= 1.0
        h = np.ones((len(a), self.width + self.bias))
        h[:, : self.width] = x[1]
        h[~a.any(axis=1)] = 0.0
        return a, h, _dot(a, a), _dot(h, h)

    def estimate(self, x: Wide, y: Wide) -> tuple[Array, Array]:
        """See `Geometry`."""
        product = torch.mm(torch.from_numpy(x[0]), torch.from_numpy(y[0]).T)
        product.mul_(torch.mm(torch.from_numpy(x[1]), torch.from_numpy(y[1]).T)).mul_(-2.0)
        own, other = x[2] * x[3], y[2] * y[3]
        product.add_(torch.from_numpy(own)[:, None]).add_(torch.from_numpy(other))
        reach = own + other.max(initial=0.0) + 2 * x[2] * y[3].max(initial=0.0)
        return product.numpy(), self._terms * 2.0**-48 * reach

    def squared(self, x: Wide, y: Wide) -> Array:
        """See `Geometry`: D as above, and 0 where rounding made it negative."""
        a, h = x[0] - y[0], x[1] - y[1]
        result: Array = x[2] * _dot(h, h) + _dot(a, a) * y[3] + 2.0 * _dot(x[0], a) * _dot(h, y[1])
        return np.maximum(result, 0.0, out=result)

    @property
    def origin(self) -> Vectors:
        """One row whose gradient is zero: its distances are the norms."""
        p = np.zeros((1, self.classes), dtype=np.float32)
        p[:, :1] = 1.0
        return p, np.zeros((1, self.width), dtype=np.float32)


def _dot(x: Array, y: Array) -> Array:
    """Multiply each row of `x` with that of `y`: (m,), each by itself, over the contiguous last axis."""
    result: Array = (x * y).sum(axis=-1)
    return result


class _Dots:
    """Dot products of each row with its own centre, in float32."""

    def __init__(self, widest: int) -> None:
        self._room = torch.empty((2, _ROWS * widest))

    def __call__(self, rows: torch.Tensor, centres: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
        """Return (m,) float64 from operands (m, w), of either type, and float32 centres (k, w), by their numbers (m,) int64."""
        result, w = torch.zeros(len(rows), dtype=torch.float64), rows.shape[1]
        if not centres.any():  # the origin
            return result
        for begin in range(0, len(rows), _ROWS):
            at = slice(begin, begin + _ROWS)
            count = len(rows[at])
            x, y = (room[: count * w].view(count, w) for room in self._room)
            torch.index_select(centres, 0, near[at], out=y)
            result[at] = x.copy_(rows[at]).mul_(y).sum(1)
        return result


class _CentreOperands:
    """Centres as operands of the three products, and what bounding a pair needs of each."""

    def __init__(self, geometry: Gradients, x: Vectors) -> None:
        c, d, pieces = geometry.classes, geometry.width + geometry.bias, geometry._pieces
        v, b, facts = geometry.rows(x)
        self.v, self.b = (operand.to(torch.float32, copy=True) for operand in (v, b))
        self.v[:, d:] = self.b[:, c:] = 0.0
        length = np.square(x[1].astype(np.float64) * 2.0**geometry.power).sum(axis=1) + geometry.bias * 4.0**geometry.power
        self.facts = torch.stack((facts[:, 0], facts[:, 1], torch.from_numpy(length)), dim=1)
        self.count = len(v)
        if self.count < _FEWEST_CENTRES:  # a narrower product takes as long
            repeats = -(-_FEWEST_CENTRES // max(self.count, 1))
            v, b = v.repeat(repeats, 1), b.repeat(repeats, 1)
        self.v_operand = -v
        self.v_operand[:, d:] = v[:, d:]
        squares = b.clone()
        squares[:, :c] *= -2
        squares[:, c : c + pieces], squares[:, c + pieces : c + 2 * pieces] = b[:, c + pieces : c + 2 * pieces], b[:, c : c + pieces]
        doubled = 2 * b
        doubled[:, c:] = 0.0
        self.b_operands = torch.cat((squares, doubled))

    def near(self, v: torch.Tensor, b: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
        """Find (m,) int64, a centre near each row; which one has no influence on whether bounds hold."""
        m, k = len(v), len(self.v_operand)
        if self.count == 1:
            return torch.zeros(m, dtype=torch.int64)
        x, both = room[: m * k].view(m, k), room[m * k : 3 * m * k].view(m, 2 * k)
        torch.mm(v, self.v_operand.T, out=x)
        torch.mm(b, self.b_operands.T, out=both)
        torch.addcmul(both[:, :k], both[:, k:], x, out=x)
        # floats that are not negative are in order as integers, and NumPy finds the least of those ten times as fast as torch
        bits = x.view(torch.int16 if x.dtype == torch.bfloat16 else torch.int32).numpy()
        return torch.from_numpy(bits.argmin(axis=1) % self.count)


def badge(
    x: ArrayLike,
    k: int,
    *,
    probabilities: ArrayLike,
    labelled: ArrayLike | None = None,
    labelled_probabilities: ArrayLike | None = None,
    seed: int = 0,
    bias: bool = True,
) -> Array:
    """Draw k rows, each with probability proportional to the squared distance of its gradient to those drawn before.

    The first is the row with the largest gradient, the lowest at a tie, unless there are labelled rows.

    Args:
        x: (n, d) input of the last layer; taken as float32 unless float16.
        k: how many rows.
        probabilities: (n, c) of the classes.
        labelled: (m, d) of labelled rows, if these count as drawn already; they don't in the paper.
        labelled_probabilities: (m, c), theirs.
        seed: another seed draws other rows.
        bias: the last layer has a bias, which is part of the gradient.

    Returns:
        (b,) int64 row numbers in order of choice; b < min(k, n) only when the gradients of the rest are equal to chosen ones.

    Raises:
        DataError: numbers that are not finite, or probabilities above 1, or shapes that don't fit.
    """
    shards, p = shards_of(x), as_rows(checked(probabilities, "probabilities"))
    fixed = optional(labelled_probabilities, "labelled_probabilities"), optional(labelled, "labelled")
    centres = _vectors(*fixed, p.width, shards)
    return sample(shards, p, count(k), centres=centres, bias=bias, seed=checked_seed(seed)).rows


def _vectors(p: Array | None, h: Array | None, classes: int, shards: Shards) -> Vectors:
    """Check labelled rows."""
    found = vectors(p, classes, "euclidean", "labelled probabilities'"), vectors(h, shards.width, shards.metric)
    if len(found[0]) != len(found[1]):
        raise DataError(f"{len(found[0])} labelled rows have probabilities and {len(found[1])} have embeddings; expected both of each")
    return found


def sample(
    shards: Shards,
    probabilities: Rows,
    k: int,
    *,
    centres: Vectors,
    bias: bool = True,
    seed: int = 0,
    constraints: Constraints | None = None,
    precision: Precision = "auto",
    block: int = BLOCK,
) -> DSquared:
    """Run `badge` over shards; `centres` are probabilities (m, c) and embeddings (m, d), float32, that are covered."""
    n = len(shards)
    if len(probabilities) != n:
        raise DataError(f"{len(probabilities)} candidates have probabilities and {n} have embeddings; expected both of each")
    if n == 0 or k <= 0:
        return DSquared(np.empty(0, dtype=np.int64), np.empty(0), 0, 0, 0, False)
    pieces = shards.pieces(DSquaredPiece, beside=[probabilities], block=block)
    largest = _survey(pieces.call("survey"))
    if len(centres[1]):
        largest = max(largest, float(np.abs(centres[1]).max(initial=0.0)))
    bfloat16 = has_bfloat16_units() if precision == "auto" else precision == "bfloat16"
    geometry = Gradients.fit(probabilities.width, shards.width, largest, bias=bias, bfloat16=bfloat16)
    return d_squared(
        pieces,
        n,
        k,
        geometry,
        memory=shards.memory,
        block=block,
        seed=seed,
        centres=centres,
        origin=geometry.origin,
        constraints=constraints,
    )


def _survey(found: list[list[tuple[float, Array]]]) -> float:
    """Find the largest absolute value of the embeddings; everything is checked."""
    bad_p, bad_h = (np.concatenate([source[number][1] for source in found]) for number in range(2))
    if len(bad_p):
        raise DataError(
            f"{len(bad_p)} candidates have probabilities that are NaN or infinite, first at row {bad_p[0]}; expected numbers from 0 to 1"
        )
    if len(bad_h):
        raise not_finite(len(bad_h), [int(row) for row in bad_h[:3]])
    highest = max(source[0][0] for source in found)
    if highest > 1.01:
        raise DataError(f"badge got probabilities up to {highest:g}, expected numbers from 0 to 1; are they logits?")
    return max(source[1][0] for source in found)


def badge_strategy(candidates: Candidates, request: Request) -> Picked:
    """Run `badge` in a query; the gain is the squared distance of gradients, that of the first pick the squared norm."""
    shards = embeddings(candidates, "badge")
    p = candidates.probabilities
    if p is None:
        raise QueryError("badge needs class `probabilities`, but the candidates have none")
    args = dict(request.args)
    covered = args.pop("covered", False)
    taken = request.constraints.taken  # they are part of this batch
    centres: Vectors = p.gather(taken), shards.gather(taken)
    labelled = 0 if candidates.labelled is None else len(candidates.labelled)
    if covered and labelled:
        if candidates.labelled_probabilities is None:
            raise QueryError("`covered` is true, which needs `labelled_probabilities`, but there are none")
        fixed = _vectors(candidates.labelled_probabilities, candidates.labelled, p.width, shards)
        centres = joined([fixed, centres])
    found = sample(shards, p, request.budget, centres=centres, seed=request.seed, constraints=request.constraints, **args)
    return picked(found, None)

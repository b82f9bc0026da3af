"""Where k-means begins: greedy k-means++ over weighted rows.

Arthur and Vassilvitskii, *k-means++: the advantages of careful seeding*, 2007, section 5: of several rows drawn with
probability proportional to their weighted squared distance D to the seeds so far, the one that leaves the least sum.

Rows are proposed many at a time in proportion to a D computed some seeds ago, an upper bound, and accepted with probability D now / D then:
those accepted follow the law of drawing one after another, and one product gives the distances to all that are proposed.
"""

from __future__ import annotations

import numpy as np
import torch

from raystream.selection.hashing import philox
from raystream.selection.nearest import float32_distances
from raystream.selection.points import by_blocks, slices
from raystream.selection.rows import Array, tensor
from raystream.selection.threads import one_thread

_PROPOSALS = 64
_BLOCK = 4096
_DOUBTFUL = 2.0**-17
"""Products this small, beside the squares that they are the difference of, may be little but rounding."""


def greedy_seeds(x: Array, weight: Array, k: int, trials: int, shift: Array, seed: int, start: int = 0) -> Array:
    """(k,) int64 distinct rows.

    Once every row that has a weight is equal to a seed, the lowest of the rest follow, those with a weight first.

    Args:
        x: (n, d) float32, at least k rows, whose squares are far from float32's limits.
        weight: (n,) float64, at least 0, some above.
        k: how many seeds.
        trials: among how many rows each seed is the best; at most 64.
        shift: (d,) float32, a point among the rows.
        seed: of every draw.
        start: another draws others.
    """
    seeding = _Seeding(x, weight, trials, shift, seed, f"k-means++ {start}")
    rows = [seeding.first()]
    while len(rows) < k and (proposed := seeding.propose()) is not None:
        with one_thread():  # a few million operations: threads would take longer to meet
            while len(rows) < k and (row := seeding.next(proposed)) is not None:
                rows.append(row)
    chosen = np.asarray(rows, dtype=np.int64)
    if len(chosen) == k:
        return chosen
    left = np.setdiff1d(np.arange(len(x)), chosen)
    left = left[np.argsort(weight[left] == 0, kind="stable")]
    return np.concatenate([chosen, left[: k - len(chosen)]])


class _Proposed:
    """Rows that were drawn together, and what has become of them."""

    def __init__(self, rows: Array, luck: Array, then: Array) -> None:
        self.rows = rows  # (p,) int64
        self.limit = luck * then  # accepted while D is above; (p,) float64
        self.at = 0  # those before it have been used


class _Seeding:
    """D of every row, and the distances to the rows proposed."""

    def __init__(self, x: Array, weight: Array, trials: int, shift: Array, seed: int, purpose: str) -> None:
        self._x, self._trials = x, trials
        self._seed, self._purpose, self._drawn = seed, purpose, 0
        self._mass = weight  # what the next rows are drawn in proportion to
        self._weight = torch.from_numpy((weight / weight.max()).astype(np.float32))
        self._squared = torch.empty((_PROPOSALS, len(x)))
        self._nearest, self._room = torch.empty(0), torch.empty(len(x))
        # [y, |y|^2, 1], of which the product with [-2 z, 1, |z|^2] is |y - z|^2
        self._operand = torch.empty((len(x), x.shape[1] + 2))

        def encode(at: slice) -> None:
            y = torch.sub(tensor(x[at]), tensor(shift), out=self._operand[at, :-2])
            torch.sum(y.square(), 1, out=self._operand[at, -2])
            self._operand[at, -1] = 1.0

        by_blocks(slices(len(x), _BLOCK), lambda: encode)

    def first(self) -> int:
        """A row drawn by weight alone."""
        row = int(self._draw(1)[0][0])
        self._measure(np.asarray([row]))
        self._nearest = self._squared[0].clone()
        return row

    def _draw(self, count: int) -> tuple[Array, Array]:
        """`count` rows by prefix sums of the mass, and another uniform number for each."""
        words = philox(self._seed, self._purpose, self._drawn, count)
        self._drawn += count
        u, v = ((words >> np.uint64(11)) * 2.0**-53).T
        sums = np.cumsum(self._mass, dtype=np.float64)
        # u is below 1 by at least as much as its product with the whole sum may be rounded up: a row without mass is never met
        return np.searchsorted(sums, u * sums[-1], side="right"), v

    def propose(self) -> _Proposed | None:
        """Rows in proportion to D as it is; None when it is zero throughout."""
        self._mass = (self._nearest * self._weight).numpy()
        if not self._mass.any():
            return None
        rows, luck = self._draw(_PROPOSALS)
        self._measure(rows)
        return _Proposed(rows, luck, self._nearest.numpy()[rows].astype(np.float64))

    def _measure(self, rows: Array) -> None:
        """Squared distances of all rows to some."""
        d = self._x.shape[1]
        with one_thread():
            chosen = self._operand[torch.from_numpy(rows)]
            centres = torch.cat([chosen[:, :d] * -2, chosen[:, d + 1 :], chosen[:, d : d + 1]], dim=1)
        square = chosen[:, d]

        def multiply(at: slice) -> None:
            products = torch.mm(centres, self._operand[at].T, out=self._squared[: len(rows), at])
            least = (square + self._operand[at, d].max()) * _DOUBTFUL
            some = torch.nonzero(products.amin(1) <= least)[:, 0]
            doubt = products[some] <= (square[some, None] + self._operand[at, d]) * _DOUBTFUL
            which, row = torch.nonzero(doubt, as_tuple=True)
            exact = float32_distances(self._x, self._x, at.start + row.numpy(), rows[some[which].numpy()])
            products[some[which], row] = torch.from_numpy(exact).float()

        by_blocks(slices(len(self._x), _BLOCK), lambda: multiply)

    def next(self, proposed: _Proposed) -> int | None:
        """The best of the next rows accepted, from now on a seed; None when too few are left."""
        accepted = proposed.at + np.flatnonzero(proposed.limit[proposed.at :] < self._nearest.numpy()[proposed.rows[proposed.at :]])
        if len(accepted) < self._trials:
            return None
        tried = accepted[: self._trials]
        proposed.at = int(tried[-1]) + 1
        sums = [float(torch.dot(torch.minimum(self._squared[i], self._nearest, out=self._room), self._weight)) for i in tried]
        best = int(tried[np.argmin(sums)])
        torch.minimum(self._squared[best], self._nearest, out=self._nearest)
        return int(proposed.rows[best])

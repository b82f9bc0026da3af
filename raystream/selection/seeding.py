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
from raystream.selection.nearest import Centres
from raystream.selection.points import Points, by_blocks, slices
from raystream.selection.rows import Array
from raystream.selection.threads import one_thread

_PROPOSALS = 64
_BLOCK = 4096


def greedy_seeds(points: Points, k: int, trials: int, seed: int, start: int = 0) -> Array:
    """(k,) int64 distinct rows.

    Once every row that has a weight is at no distance from a seed, the lowest of the rest follow, those with a weight first.

    Args:
        points: the rows, at least k of them.
        k: how many seeds.
        trials: among how many rows each seed is the best; at most 64.
        seed: of every draw.
        start: another draws others.
    """
    seeding = _Seeding(points, trials, seed, f"k-means++ {start}")
    with one_thread():
        rows = [seeding.first()]
    while len(rows) < k and (proposed := seeding.propose()) is not None:
        with one_thread():  # a few million operations: threads would take longer to meet
            while len(rows) < k and (row := seeding.next(proposed)) is not None:
                rows.append(row)
    chosen = np.asarray(rows, dtype=np.int64)
    if len(chosen) == k:
        return chosen
    left = np.setdiff1d(np.arange(len(points)), chosen)
    left = left[np.argsort(points.weight[left] == 0, kind="stable")]
    return np.concatenate([chosen, left[: k - len(chosen)]])


class _Proposed:
    """Rows that were drawn together, and what has become of them."""

    def __init__(self, rows: Array, luck: Array, then: Array) -> None:
        self.rows = rows  # (p,) int64
        self.limit = luck * then  # accepted while D is above; (p,) float64
        self.at = 0  # those before it have been used


class _Seeding:
    """D of every row, and the distances to the rows proposed."""

    def __init__(self, points: Points, trials: int, seed: int, purpose: str) -> None:
        self._points, self._trials = points, trials
        self._seed, self._purpose, self._drawn = seed, purpose, 0
        self._weight = torch.from_numpy((points.weight / points.weight.max()).astype(np.float32))
        self._squared = torch.empty((_PROPOSALS, len(points)))
        self._nearest, self._room = torch.empty(0), torch.empty(len(points))

    def first(self) -> int:
        """A row drawn by weight alone."""
        row = int(self._draw(np.cumsum(self._points.weight), 1)[0][0])
        self._measure(np.asarray([row]))
        self._nearest = self._squared[0].clone()
        self._nearest[row] = 0
        return row

    def _draw(self, mass: Array, count: int) -> tuple[Array, Array]:
        """`count` rows by prefix sums, and another uniform number for each."""
        words = philox(self._seed, self._purpose, self._drawn, count)
        self._drawn += count
        u, v = ((words >> np.uint64(11)) * 2.0**-53).T
        # u is below 1 by at least as much as its product with the whole sum may be rounded up: a row without mass is never met
        return np.searchsorted(mass, u * mass[-1], side="right"), v

    def propose(self) -> _Proposed | None:
        """Rows in proportion to D as it is; None when it is zero throughout."""
        mass = np.cumsum((self._nearest * self._weight).numpy(), dtype=np.float64)
        if not mass[-1] > 0:
            return None
        rows, luck = self._draw(mass, _PROPOSALS)
        self._measure(rows)
        return _Proposed(rows, luck, self._nearest[torch.from_numpy(rows)].double().numpy())

    def _measure(self, rows: Array) -> None:
        """Squared distances of all rows to some."""
        centres = Centres.of(self._points.x[rows], self._points.encoding).operand

        def multiply(at: slice) -> None:
            self._squared[: len(rows), at] = torch.mm(centres, self._points.encoded(at)[0].T).clamp_(min=0)

        by_blocks(slices(len(self._points), _BLOCK), lambda: multiply)

    def next(self, proposed: _Proposed) -> int | None:
        """The best of the next rows accepted, from now on a seed; None when too few are left."""
        left = slice(proposed.at, None)
        accepted = np.flatnonzero(proposed.limit[left] < self._nearest[torch.from_numpy(proposed.rows[left])].double().numpy())
        if len(accepted) < self._trials:
            return None
        tried = proposed.at + accepted[: self._trials]
        proposed.at += int(accepted[self._trials - 1]) + 1
        left_over = [float(torch.dot(torch.minimum(self._squared[i], self._nearest, out=self._room), self._weight)) for i in tried]
        best = int(tried[np.argmin(left_over)])
        row = int(proposed.rows[best])
        torch.minimum(self._squared[best], self._nearest, out=self._nearest)
        self._nearest[row] = 0  # which rounding may not make it
        return row

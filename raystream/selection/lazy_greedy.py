"""Greedy maximisation of a submodular value, exact, with few gains computed.

Minoux, *Accelerated greedy algorithms for maximizing submodular set functions*, 1978: gains only shrink, so one
computed some picks ago bounds today's. A few rows that lead by such bounds show what is to be beaten, the floor. The bounds of
all that lie above it are lowered, first by coarse products, then by float32 and float64 ones, and by the definition
when they still lead: the order is that of plain greedy.
"""

from __future__ import annotations

import numpy as np
import torch

from raystream.selection.cohorts import Cohorts, measured
from raystream.selection.constraints import Constraints
from raystream.selection.coverage import Coverage
from raystream.selection.rows import Array, normalised
from raystream.selection.shards import Shards

_STALE, _COARSE, _SINGLE, _DOUBLE, _EXACT = range(5)
_LEVELS = 8
_FEW = 64
_FEWEST = 4
_MANY = 256
_LEAST = 5e-324
_BACK = 4
_FRONT = 16384


class LazyGreedy:
    """One run over the candidates of `shards`, which adds to `coverage` and tells `constraints` what it takes.

    Attributes:
        rows: in order of choice.
        gain: what each added.
        read: how many rows' embeddings were read.
        defined: how many gains were computed by the definition.
    """

    def __init__(self, shards: Shards, coverage: Coverage, constraints: Constraints) -> None:
        self._shards, self._coverage, self._constraints = shards, coverage, constraints
        self.rows: list[int] = []
        self.gain: list[float] = []
        self.read = self.defined = 0
        # invariant: no row can add more than its bound, -inf for one that is gone
        self._bound = np.full(len(shards), np.inf)
        self._bound[constraints.taken] = -np.inf
        # _LEVELS * picks + level at which the bound was found
        self._found = np.full(len(shards), -1, dtype=np.int64)
        # invariant: no row outside _front has a bound above _outside
        self._front, self._outside = np.empty(0, dtype=np.int64), np.inf

    def run(self, budget: int) -> None:
        """Choose up to `budget` rows; fewer when no row that is left adds anything."""
        if budget <= 0 or self._coverage.complete:
            return
        self._cohorts = Cohorts(self._shards.rows, self._coverage, self._shards.memory)
        self._coarsen(np.flatnonzero(self._bound > -np.inf))
        while len(self.rows) < budget and not self._coverage.complete:
            row = self._head()
            if row is None:
                break
            at = np.asarray([row])
            x = self._shards.gather(at)
            self.rows.append(row)
            self.gain.append(float(self._bound[row]))
            self._bound[row] = -np.inf
            self._coverage.add(normalised(x)[0])
            self._constraints.take(row, x[0])
        self.read += self._cohorts.read

    def _head(self) -> int | None:
        """The row that adds most, the lowest of several; None when none adds anything."""
        floor, size = 0.0, _FEW
        while True:
            lead = self._lead()
            if not self._bound[lead] > 0:
                return None
            level = int(self._level(np.asarray([lead]))[0])
            if level == _EXACT:
                return lead
            if level >= _SINGLE:
                floor = max(floor, self._refine(lead, level, floor))
                continue
            loose = self._above(floor)
            stale = loose[self._level(loose) == _STALE]
            if size > _FEW and len(stale) > _MANY:
                self._lower(stale, floor)
                continue
            rows = self._first(loose, self._expected(loose), size)
            self._sharpen(rows, _SINGLE)
            best = rows[np.argmax(self._bound[rows])]
            if self._bound[best] > floor:
                self._sharpen(best[None], _EXACT)
                floor = max(floor, float(self._bound[best]))
            size *= 4

    def _level(self, rows: Array) -> Array:
        result: Array = np.maximum(self._found[rows] - _LEVELS * len(self.rows), _STALE)
        return result

    def _lead(self) -> int:
        """The row of the largest bound, the lowest of several."""
        if len(self._front):
            lead = int(self._front[np.argmax(self._bound[self._front])])
            if self._bound[lead] > self._outside:
                return lead
        n = len(self._bound)
        value = np.sort(self._bound)[max(n - max(_FRONT, n // 64), 0)]  # numpy's partition is slow on ties, its sort is not
        inside = self._bound >= value
        self._front = np.flatnonzero(inside)
        self._outside = float(np.max(self._bound, where=~inside, initial=-np.inf))
        return int(np.argmax(self._bound))

    def _above(self, floor: float) -> Array:
        """Rows, ascending, whose bounds are at least `floor` and no better than coarse; those in front while there is no floor."""
        if floor > self._outside or floor <= 0:
            rows = self._front[self._bound[self._front] >= max(floor, _LEAST)]
        else:
            rows = np.flatnonzero(self._bound >= floor)
        return rows[self._level(rows) < _SINGLE]

    def _expected(self, rows: Array) -> Array:
        """(r,) about what the rows add: their bounds, less for each pick since as the largest gains have become less."""
        back = min(len(self.gain) - 1, _BACK)
        if back < 1:
            return self._bound[rows]
        age = len(self.rows) - self._found[rows] // _LEVELS
        result: Array = self._bound[rows] * (self.gain[-1] / self.gain[-1 - back]) ** (age / back)
        return result

    def _first(self, rows: Array, value: Array, size: int) -> Array:
        """About `size` of `rows`, those with the largest values, ascending."""
        if len(rows) <= size:
            return rows
        result: Array = rows[value >= np.sort(value)[len(value) - size]]
        return result

    def _refine(self, lead: int, level: int, floor: float) -> float:
        """Bring `lead`, and others of its level that are worth looking at with it, to the next one; the largest gain that is exact now."""
        rows = self._front[self._bound[self._front] >= max(floor, _LEAST)]
        rows = rows[self._level(rows) == level]
        if level == _SINGLE and len(rows) > _FEWEST:
            self._sharpen(self._first(rows, self._bound[rows], _FEW // 4), _DOUBLE)
            return 0.0
        if level == _DOUBLE:
            rows = rows[self._bound[rows] >= self._bound[lead] * (1 - 2.0**-30)]  # all that may be equal
        self._sharpen(rows, _EXACT)
        return float(self._bound[rows].max())

    def _sharpen(self, rows: Array, level: int) -> None:
        """Bring the bounds of `rows` to a level, or drop those that are blocked."""
        if level == _SINGLE:
            rows = self._unblocked(rows)
        if level == _EXACT:
            self._bound[rows] = self._defined(rows)
        elif len(rows):
            dtype = torch.float32 if level == _SINGLE else torch.float64
            pairs, aim = self._coverage.pairs(dtype), self._coverage.aim(dtype)[0]
            above = measured(self._shards.rows, rows, pairs, lambda some, room: pairs.above(some, aim, room))
            self._bound[rows] = np.minimum(self._bound[rows], np.ldexp(above, self._coverage.power))
            self._cohorts.now(rows)
        self._found[rows] = _LEVELS * len(self.rows) + level
        self.read += len(rows)

    def _coarsen(self, rows: Array) -> None:
        """Give rows their first bounds."""
        self._bound[rows] = self._cohorts.bounds(rows)
        self._found[rows] = _LEVELS * len(self.rows) + _COARSE

    def _lower(self, rows: Array, floor: float) -> None:
        """Lower the bounds of `rows` below the floor, or at least to what coarse products give."""
        self._bound[rows], fresh = self._cohorts.lower(rows, self._bound[rows], float(np.nextafter(floor, 0)))
        self._found[rows[fresh]] = _LEVELS * len(self.rows) + _COARSE

    def _unblocked(self, rows: Array) -> Array:
        if self._constraints.free:
            return rows
        left = [np.empty(0, dtype=np.int64)]
        for begin in range(0, len(rows), _FRONT):
            some = rows[begin : begin + _FRONT]
            blocked = self._constraints.blocked(some, self._shards.gather(some) if self._constraints.vectors else None)
            self._bound[some[blocked]] = -np.inf
            left.append(some[~blocked])
        return np.concatenate(left)

    def _defined(self, rows: Array) -> Array:
        """(r,) the gains of `rows` by the definition, once for rows that are equal."""
        x = normalised(self._shards.gather(rows))
        _, first, same = np.unique(x.view(np.dtype((np.void, x.shape[1] * 4))).ravel(), return_index=True, return_inverse=True)
        self.defined += len(first)
        result: Array = np.asarray([self._coverage.gain(x[i]) for i in first])[same]
        return result

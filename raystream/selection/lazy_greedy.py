"""Greedy maximisation of a submodular value, exact, with few gains computed.

Minoux, *Accelerated greedy algorithms for maximizing submodular set functions*, 1978: gains only shrink, so one
computed some picks ago bounds today's. A row is looked at again only when its bound leads, first by a float32
product, then by a float64 one, and by the definition when it still leads: the order is that of plain greedy.
"""

from __future__ import annotations

import numpy as np
import torch

from raystream.selection.constraints import Constraints
from raystream.selection.coverage import Coverage
from raystream.selection.rows import Array, normalised
from raystream.selection.shards import Shards

_STALE, _SINGLE, _DOUBLE, _EXACT = range(4)
_FEW = 64
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
        # 4 * picks + level at which the bound was found
        self._found = np.full(len(shards), -1, dtype=np.int64)
        # invariant: no row outside _front has a bound above _floor
        self._front, self._floor = np.empty(0, dtype=np.int64), np.inf

    def run(self, budget: int) -> None:
        """Choose up to `budget` rows; fewer when no row that is left adds anything."""
        if budget > 0 and not self._coverage.complete:
            self._sharpen(np.flatnonzero(self._bound > -np.inf), _SINGLE)
        while len(self.rows) < budget and not self._coverage.complete:
            row = self._head()
            if row is None:
                return
            at = np.asarray([row])
            x = self._shards.gather(at)
            self.rows.append(row)
            self.gain.append(float(self._bound[row]))
            self._bound[row] = -np.inf
            self._coverage.add(normalised(x)[0])
            self._constraints.take(row, x[0])

    def _head(self) -> int | None:
        """The row that adds most, the lowest of several; None when none adds anything."""
        size = _FEW
        while True:
            lead = self._lead()
            if not self._bound[lead] > 0:
                return None
            level = int(self._level(np.asarray([lead]))[0])
            if level == _EXACT:
                return lead
            self._sharpen(self._peers(lead, level, size), level + 1)
            if level == _STALE:
                size *= 4

    def _level(self, rows: Array) -> Array:
        result: Array = np.maximum(self._found[rows] - 4 * len(self.rows), _STALE)
        return result

    def _lead(self) -> int:
        """The row of the largest bound, the lowest of several."""
        if len(self._front):
            lead = int(self._front[np.argmax(self._bound[self._front])])
            if self._bound[lead] > self._floor:
                return lead
        n = len(self._bound)
        value = np.sort(self._bound)[max(n - max(_FRONT, n // 16), 0)]  # numpy's partition is slow on ties, its sort is not
        inside = self._bound >= value
        self._front = np.flatnonzero(inside)
        self._floor = float(np.max(self._bound, where=~inside, initial=-np.inf))
        return int(np.argmax(self._bound))

    def _peers(self, lead: int, level: int, size: int) -> Array:
        """Rows of the lead's level, ascending, that are worth looking at with it."""
        bound = self._bound[self._front]
        if level == _DOUBLE:
            least = float(self._bound[lead]) * (1 - 2.0**-30)  # all that may be equal
        else:
            size = min(size if level == _STALE else _FEW // 4, len(bound))
            least = float(np.sort(bound)[len(bound) - size])
        peers = self._front[(bound >= least) & (bound > 0)]
        peers = peers[self._level(peers) == level]
        return peers if lead in peers else np.sort(np.append(peers, lead))

    def _sharpen(self, rows: Array, level: int) -> None:
        """Bring the bounds of `rows` to a level, or drop those that are blocked."""
        if level == _SINGLE and not self._constraints.free:
            rows = self._unblocked(rows)
        if level == _EXACT:
            self._bound[rows] = self._defined(rows)
        else:
            dtype = torch.float32 if level == _SINGLE else torch.float64
            self._bound[rows] = np.minimum(self._bound[rows], self._coverage.bounds(self._shards.rows, rows, dtype))
        self._found[rows] = 4 * len(self.rows) + level
        self.read += len(rows)

    def _unblocked(self, rows: Array) -> Array:
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

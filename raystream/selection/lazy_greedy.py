"""Greedy maximisation of a submodular value, exact, with few gains computed.

Minoux, *Accelerated greedy algorithms for maximizing submodular set functions*, 1978: gains only shrink, so one
computed some picks ago bounds today's. A few rows that lead by such bounds show what is to be beaten, the floor. The bounds of
all that lie above it are lowered, first by coarse products, then by float32 and float64 ones, and by the definition
when they still lead: the order is that of plain greedy.

Candidates whose bounds were made at one time form a cohort: the bounds hold with the similarities that the targets were
represented with then, `since`. As targets come to be represented better, a bound may be lowered by what is lost on *any* of
them, sum over t of w_t (clamp(kappa, since_t, best_t) - since_t). So the targets that changed most are multiplied first, as many as
some of the candidates show to be enough to bring nearly all of them below a floor, and only the rest are multiplied with all targets.
Those that were lowered are a cohort again: their bounds hold with `best` on the targets that were multiplied and `since` on the
others, and, as bounds hold all the more with greater similarities, with the largest `since` of several cohorts together.

What rounding the operands may hide is in the first bound, for all targets that a candidate reaches: what is lost is then subtracted as the
operands say it, since a target that is reached no more hides nothing any more. A bound that was made more exactly is not lowered so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from raystream.selection.bounds import has_bfloat16_units
from raystream.selection.constraints import Constraints
from raystream.selection.coverage import TARGETS_UNIT, Aim, Coverage, Operand, Pairs, PairsRoom
from raystream.selection.rows import Array, Block, Rows, normalised
from raystream.selection.shards import Shards
from raystream.threads import each, one_thread

_ROWS = 2048
_FEWEST_ROWS = 256
_BLOCKS = 4
_UNIT = 128
"""Candidates are multiplied in multiples of this many: each shape of bfloat16 products needs code of its own, 0.4 ms to make."""
_FEWEST = 512
"""Of fewer candidates, all are multiplied with all targets."""
_PILOT = 512
_TRIED = 3
"""Parts that the pilot is multiplied with at first, and so many more each time."""
_DEAREST = 0.9
_COHORT = 4096
_MOST = 16
_SAMPLE = 512
_COARSEST = 0.25
"""Bfloat16 is of no use where it may change a similarity by more."""

Item = TypeVar("Item")
Measure = Callable[[Operand, PairsRoom], Array]


def _block(count: int) -> int:
    """Choose how many of so many candidates a thread takes at a time: large blocks pay, but threads are to end together."""
    blocks = max(-(-count // (_BLOCKS * _ROWS)), 1) * _BLOCKS
    return max(-(-count // (blocks * _UNIT)) * _UNIT, _FEWEST_ROWS)


def measured(rows: Rows, which: Array, pairs: Pairs, measure: Measure) -> Array:
    """Apply `measure` to the candidates `which`, int64 and ascending, read from `rows`; 0 for rows of zeros."""
    size = _block(len(which))

    def start() -> Callable[[Block], Array]:
        room = pairs.room(size)

        def work(block: Block) -> Array:
            x = normalised(block.read())
            result = measure(pairs.rows(x), room)
            result[~x.any(axis=1)] = 0.0
            return result

        return work

    return _each(rows.subset(which).blocks(0, len(which), size), start, len(which) <= size)


def _each(items: Iterable[Item], start: Callable[[], Callable[[Item], Array]], alone: bool) -> Array:
    if alone:  # torch's own threads are of no use, and to be woken takes them long where others use the processor
        with one_thread():
            return np.concatenate(each(items, start))
    return np.concatenate(each(items, start))


@dataclass(frozen=True)
class _CandidateOperands:
    """The operands of all candidates; `zero` (n,) bool are rows of zeros."""

    y: torch.Tensor
    spread: Array
    moved: Array
    zero: Array


class Cohorts:
    """The candidates of `rows`, of which none has a bound yet.

    Args:
        rows: the candidates.
        coverage: of the targets.
        memory: bytes that operands may take; when they don't fit, rows are read again and again.

    Attributes:
        pairs: what bounds in the precision of the operands.
        read: how many rows' embeddings were read.
    """

    def __init__(self, rows: Rows, coverage: Coverage, memory: float) -> None:
        self._rows, self._coverage = rows, coverage
        self.pairs = coverage.pairs(torch.bfloat16 if has_bfloat16_units() else torch.float32)
        if self.pairs.blur > _COARSEST:
            self.pairs = coverage.pairs(torch.float32)
        self.read = 0
        # invariant: the bound of a candidate of cohort i holds with the similarities _since[i]
        self._cohort = np.zeros(len(rows), dtype=np.int32)
        self._since: list[Array] = [coverage.best.copy()]
        # invariant: where True, the bound is at least what the operands say with those, and all that their rounding may hide
        self._of_operands = np.zeros(len(rows), dtype=bool)
        fits = len(rows) * (self.pairs.columns * self.pairs.dtype.itemsize + 17) <= memory
        self._held = self._hold() if fits and len(rows) else None

    def _hold(self) -> _CandidateOperands:
        n, pairs = len(self._rows), self.pairs
        held = _CandidateOperands(torch.empty((n, pairs.columns), dtype=pairs.dtype), np.empty(n), np.empty(n), np.empty(n, dtype=bool))

        def see(block: Block) -> None:
            x, at = normalised(block.read()), slice(block.start, block.stop)
            operand = pairs.rows(x, held.y[at])
            held.spread[at], held.moved[at], held.zero[at] = operand.spread, operand.moved, ~x.any(axis=1)

        each(self._rows.blocks(0, n, _ROWS), lambda: see)
        self.read += n
        return held

    def bounds(self, which: Array) -> Array:
        """Return (r,) float64 upper bounds of what the candidates `which` (int64, ascending) add now; 0 for rows of zeros."""
        aim, _ = self._coverage.aim(self.pairs.dtype)
        self.now(which)
        self._of_operands[which] = True
        return np.ldexp(self._measured(which, lambda rows, room: self.pairs.above(rows, aim, room)), self._coverage.power)

    def now(self, which: Array) -> None:
        """Note that bounds of `which` were made with all targets as they are represented now, not by what the operands say."""
        if not np.array_equal(self._since[-1], self._coverage.best):
            if len(self._since) > 4 * _MOST:
                self._merge()
            self._since.append(self._coverage.best.copy())
        self._cohort[which] = len(self._since) - 1
        self._of_operands[which] = False

    def lower(self, which: Array, bound: Array, floor: float) -> tuple[Array, Array]:
        """Lower the bounds of `which` (int64, ascending) until they are at most `floor`, if they can be.

        Returns:
            (r,) float64 bounds, and (r,) bool, those that were made with all targets as they are represented now.
        """
        self._merge()
        bound, fresh = bound.copy(), np.zeros(len(which), dtype=bool)
        lowered = np.flatnonzero(self._of_operands[which])
        cohort = self._cohort[which[lowered]].astype(np.int16)  # few, and sixteen bits are sorted by their digits
        order = np.argsort(cohort, kind="stable")
        for some in np.split(order, np.flatnonzero(np.diff(cohort[order])) + 1):
            at = lowered[some]
            found = self._lower(which[at], bound[at], floor, self._since[cohort[some[0]]]) if len(at) >= _FEWEST else None
            if found is not None:
                bound[at] = found[0]
                self._cohort[which[at]] = len(self._since)
                self._since.append(found[1])
        left = np.flatnonzero(bound > floor)
        if len(left):
            before = bound[left], self._of_operands[which[left]]
            now = self.bounds(which[left])
            bound[left], fresh[left] = np.fmin(before[0], now), True
            self._of_operands[which[left]] = before[1] | (now <= before[0])
        return bound, fresh

    def _lower(self, which: Array, bound: Array, floor: float, since: Array) -> tuple[Array, Array] | None:
        """Lower bounds of one cohort, and with what they hold now; None if all targets are better multiplied at once."""
        best, weight = self._coverage.best, self._coverage.weight
        change = weight * (best - since)
        changed = np.count_nonzero(change > 0)
        if not changed:
            return None
        # whole units, also of targets: those that didn't change add nothing
        targets = np.argsort(-change, kind="stable")[: -(-changed // TARGETS_UNIT) * TARGETS_UNIT]
        pilot = np.zeros(len(which), dtype=bool)
        pilot[:: max(len(which) // _PILOT, 8)] = True
        aim = self.pairs.aim(targets, since[targets], best[targets], up=False)
        lost = np.empty(len(which))
        share = np.asarray([part.stop for part in aim.parts]) / len(self._coverage.open)
        tried, cost = 0, np.empty(0)
        while tried < len(share) and share[tried] < cost.min(initial=np.inf):  # else further parts would cost more than the best so far
            tried = min(tried + _TRIED, len(share))
            known = self._lost(which[pilot], aim, tried)
            cost = share[:tried] + (bound[pilot, None] - known > floor).mean(axis=0)
        parts = int(np.argmin(cost)) + 1
        if cost[parts - 1] > _DEAREST:
            return None
        lost[pilot], lost[~pilot] = known[:, parts - 1], self._lost(which[~pilot], aim, parts)[:, -1]
        since, done = since.copy(), targets[: aim.parts[parts - 1].stop]
        since[done] = best[done]
        return bound - np.maximum(lost, 0.0), since

    def _lost(self, which: Array, aim: Aim, parts: int) -> Array:
        """Return (r, parts) by how much less the candidates `which` add, at least, up to the end of each of the first parts."""
        lost = self._measured(which, lambda rows, room: self.pairs.below(rows, aim, room, parts))
        return np.ldexp(lost, self._coverage.power)

    def _measured(self, which: Array, measure: Measure) -> Array:
        held = self._held
        if held is None:
            self.read += len(which)
            return measured(self._rows, which, self.pairs, measure)

        size = _block(len(which))

        def start() -> Callable[[Array], Array]:
            room, y = self.pairs.room(size), torch.empty((size, self.pairs.columns), dtype=self.pairs.dtype)

            def work(some: Array) -> Array:
                whole = np.pad(some, (0, -len(some) % _UNIT), mode="edge")
                torch.index_select(held.y, 0, torch.from_numpy(whole), out=y[: len(whole)])
                result = measure(Operand(y[: len(whole)], held.spread[whole], held.moved[whole]), room)[: len(some)]
                result[held.zero[some]] = 0.0
                return result

            return work

        return _each((which[begin : begin + size] for begin in range(0, len(which), size)), start, len(which) <= size)

    def _merge(self) -> None:
        """Keep cohorts few: those go together that lose least by it."""
        most = min(max(len(self._cohort) // _COHORT, 4), _MOST)
        if len(self._since) <= most + most // 2:  # it looks at all candidates
            return
        size = np.bincount(self._cohort, minlength=len(self._since)).astype(np.float64)
        groups = [[int(i)] for i in np.flatnonzero(size)]
        size = size[size > 0]
        some = slice(None, None, max(len(self._coverage.targets) // _SAMPLE, 1))
        since = np.stack([self._since[i][some] for [i] in groups]) * self._coverage.weight[some]
        lost = np.stack([_loss(since, size, i) for i in range(len(groups))])
        while len(groups) > most:
            i, j = sorted(divmod(int(np.argmin(lost)), len(groups)))
            groups[i] += groups.pop(j)
            since[i], size[i] = np.maximum(since[i], since[j]), size[i] + size[j]
            since, size = np.delete(since, j, axis=0), np.delete(size, j)
            lost = np.delete(np.delete(lost, j, axis=0), j, axis=1)
            lost[i] = lost[:, i] = _loss(since, size, i)
        place = np.zeros(len(self._since), dtype=np.int32)
        for number, group in enumerate(groups):
            place[group] = number
        self._since = [np.maximum.reduce([self._since[i] for i in group]) for group in groups]
        self._cohort = place[self._cohort]


def _loss(since: Array, size: Array, i: int) -> Array:
    """Return (c,) by how much bounds can be lowered less when a cohort and the i-th become one; infinite for itself."""
    both = np.maximum(since, since[i]).sum(axis=1)
    loss: Array = size * (both - since.sum(axis=1)) + size[i] * (both - since[i].sum())
    loss[i] = np.inf
    return loss


_STALE, _COARSE, _SINGLE, _DOUBLE, _EXACT = range(5)
_LEVELS = 8
_FEW = 64
_FEWEST_SINGLE = 4
_MANY = 256
_PROBED = 64
"""Of many rows that are to be lowered, one in so many shows below what."""
_LEAST = 5e-324
_BACK = 4
_FRONT = 16384
_SEEN = 1 << 16
"""Bounds that tell where the front is to end."""


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
        """Find the row that adds most, the lowest of several; None when none adds anything."""
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
                floor = self._probe(stale, floor)
                self._lower(stale[self._bound[stale] >= floor], floor)
                continue
            floor = self._try(self._first(loose, self._expected(loose), size), floor)
            size *= 4

    def _try(self, rows: Array, floor: float) -> float:
        """Find the best of `rows`, and return what it adds if that is more than `floor`."""
        self._sharpen(rows, _SINGLE)
        best = rows[np.argmax(self._bound[rows])]
        if self._bound[best] <= floor:
            return floor
        self._sharpen(best[None], _EXACT)
        return max(floor, float(self._bound[best]))

    def _probe(self, stale: Array, floor: float) -> float:
        """Return a higher floor, if some of the `stale` rows show one: those that lead by old bounds may all be near the last picks."""
        if len(stale) < max(_PROBED * _FEW, len(self._bound) // 16):
            return floor
        some = stale[::_PROBED]
        self._coarsen(some)
        return self._try(self._first(some, self._bound[some], _FEW), floor)

    def _level(self, rows: Array) -> Array:
        result: Array = np.maximum(self._found[rows] - _LEVELS * len(self.rows), _STALE)
        return result

    def _lead(self) -> int:
        """Find the row of the largest bound, the lowest of several."""
        if len(self._front):
            lead = int(self._front[np.argmax(self._bound[self._front])])
            if self._bound[lead] > self._outside:
                return lead
        n = len(self._bound)
        some = np.sort(self._bound[:: max(n // _SEEN, 1)])  # numpy's partition is slow on ties, its sort is not
        value = some[int(len(some) * max(1 - max(_FRONT / n, 1 / 64), 0))]
        inside = self._bound >= value
        self._front = np.flatnonzero(inside)
        self._outside = float(np.max(self._bound, where=~inside, initial=-np.inf))
        return int(np.argmax(self._bound))

    def _above(self, floor: float) -> Array:
        """Find rows, ascending, whose bounds are at least `floor` and no better than coarse; those in front while there is no floor."""
        if floor > self._outside or floor <= 0:
            rows = self._front[self._bound[self._front] >= max(floor, _LEAST)]
        else:
            rows = np.flatnonzero(self._bound >= floor)
        return rows[self._level(rows) < _SINGLE]

    def _expected(self, rows: Array) -> Array:
        """Estimate (r,) what the rows add: their bounds, less for each pick since as the largest gains have become less."""
        back = min(len(self.gain) - 1, _BACK)
        if back < 1:
            return self._bound[rows]
        age = len(self.rows) - self._found[rows] // _LEVELS
        result: Array = self._bound[rows] * (self.gain[-1] / self.gain[-1 - back]) ** (age / back)
        return result

    def _first(self, rows: Array, value: Array, size: int) -> Array:
        """Find about `size` of `rows`, those with the largest values, ascending."""
        if len(rows) <= size:
            return rows
        result: Array = rows[value >= np.sort(value)[len(value) - size]]
        return result

    def _refine(self, lead: int, level: int, floor: float) -> float:
        """Bring `lead`, and others of its level that are worth looking at with it, to the next one; the largest gain that is exact now."""
        rows = self._front[self._bound[self._front] >= max(floor, _LEAST)]
        rows = rows[self._level(rows) == level]
        if level == _SINGLE and len(rows) > _FEWEST_SINGLE:
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
        """Compute (r,) the gains of `rows` by the definition, once for rows that are equal."""
        x = normalised(self._shards.gather(rows))
        _, first, same = np.unique(x.view(np.dtype((np.void, x.shape[1] * 4))).ravel(), return_index=True, return_inverse=True)
        self.defined += len(first)
        result: Array = np.asarray([self._coverage.gain(x[i]) for i in first])[same]
        return result

"""Which rows of a stream are labelled within a budget: a rule a manager, each a function of what was kept, the row's score and its number.

Nothing here depends on how many rows arrive at once. Chance is drawn by the number of the row, so that a stream that goes on anywhere
decides as one that was never stopped. `fixed`, `variable`, `random_variable` and `split` follow Zliobaite et al. (2014), with the
estimate of what was spent that they share; `density` follows Ienco et al. (2014). `quantile` compares ranks, not values: it holds its
share for tied, jumping and heavy-tailed scores, too.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from raystream.selection.hashing import philox

Vector = npt.NDArray[np.float64]
Barred = Callable[[], bool]
"""Whether a row that would be labelled must not be; asked of no other."""

EXPLORED = 0.1
"""The chance of a row to be left to chance by `split`."""
_HORIZON = 50
"""Rows within which `quantile` and `density` make up for what was labelled too much or too little."""
_RESERVE = 3
"""Labels that they keep back where the budget is strict, so that good rows are not met by an empty purse."""
_DRAWN = 512
"""Draws made at once."""


@dataclass(frozen=True)
class StreamRule:
    """What a stream was begun with.

    Attributes:
        manager: one of `MANAGERS`.
        budget: the share of rows that may be labelled.
        strict: whether the share may exceed the budget by less than one row alone, whatever the number of rows.
        seed: of every draw.
        classes: of the model, which `fixed` needs.
        window: rows that scores are compared with, and over which the estimate forgets what was spent.
        step: by which share `variable` moves its threshold.
    """

    manager: str
    budget: Fraction
    strict: bool
    seed: int
    classes: int | None
    window: int
    step: float

    def leaves_room(self, seen: int, labelled: int) -> bool:
        """Tell whether one more label keeps to a strict budget, `seen` rows with this one."""
        return not self.strict or labelled + 1 <= -(-self.budget.numerator * seen // self.budget.denominator)


class Ranks:
    """The last few scores, in the order of arrival and sorted."""

    def __init__(self, size: int, scores: Iterable[float] = ()) -> None:
        self._size = size
        self.scores: deque[float] = deque(scores)
        self._sorted = sorted(self.scores)

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, score: float) -> int:
        """Take a score in, and the oldest out if there are too many; count those that are left above it."""
        if len(self.scores) == self._size:
            del self._sorted[bisect_left(self._sorted, self.scores.popleft())]
        self.scores.append(score)
        insort(self._sorted, score)
        return len(self._sorted) - bisect_right(self._sorted, score)


class RecentRows:
    """What `density` knows of the last rows: `window` - 1 of them at most, to which comes the one that arrives.

    Args:
        window: see `StreamRule`.
        vectors: (m, d) of those that were there before, the oldest first.
        nearest: (m,) the least squared distance of each to rows that arrived while it was among them, or just before.
        typical: whether each of the last `window` rows was typical.
    """

    def __init__(self, window: int, vectors: Vector | None = None, nearest: Vector | None = None, typical: Iterable[bool] = ()) -> None:
        self._size = window - 1
        self._vectors = self._apart = np.empty((0, 0))
        self._nearest = np.full(self._size, math.inf)
        self._count = self._next = 0
        self.typical: deque[bool] = deque(typical, window)
        if vectors is not None and nearest is not None and len(nearest):
            self._make_room(vectors.shape[1])
            self._vectors[: len(vectors)], self._nearest[: len(nearest)] = vectors, nearest
            self._count, self._next = len(vectors), len(vectors) % self._size

    @property
    def width(self) -> int | None:
        """Of the vectors; None before the first."""
        return self._vectors.shape[1] if self._count else None

    @property
    def vectors(self) -> Vector:
        """As given."""
        found: Vector = self._vectors[self._order]
        return found

    @property
    def nearest(self) -> Vector:
        """As given."""
        found: Vector = self._nearest[self._order]
        return found

    def add(self, vector: Vector) -> bool:
        """Take a row in, and the oldest out if there are too many; tell whether it is typical, nearer to some row than any other was."""
        if not self._count:
            self._make_room(len(vector))
        apart, nearest = self._apart[: self._count], self._nearest[: self._count]
        np.subtract(self._vectors[: self._count], vector, out=apart)
        distances = np.square(apart, out=apart).sum(axis=1)
        typical = bool((distances < nearest).any())
        np.minimum(nearest, distances, out=nearest)
        self._vectors[self._next], self._nearest[self._next] = vector, distances.min(initial=math.inf)
        self._count, self._next = min(self._count + 1, self._size), (self._next + 1) % self._size
        self.typical.append(typical)
        return typical

    @property
    def _order(self) -> npt.NDArray[np.int64]:
        """Where the rows stand, the oldest first."""
        return (np.arange(self._count) + (self._next if self._count == self._size else 0)) % self._size

    def _make_room(self, width: int) -> None:
        self._vectors, self._apart = np.empty((self._size, width)), np.empty((self._size, width))


@dataclass
class Memory:
    """What a manager keeps between rows.

    Attributes:
        ranks: scores that the next ones are compared with.
        rows: of `density`.
        seen: rows so far.
        labelled: of them.
        spent: the estimate of how many of the last `window` were labelled.
        threshold: of `variable` and its kin.
    """

    ranks: Ranks
    rows: RecentRows
    seen: int = 0
    labelled: int = 0
    spent: float = 0.0
    threshold: float = 1.0


@dataclass(frozen=True)
class Decision:
    """Whether a row is labelled, and what its uncertainty had to reach; None where the manager compares with nothing of the kind."""

    chosen: bool
    threshold: float | None = None


class Draws:
    """Two numbers in [0, 1) for each row, by the seed, the manager and the row's number."""

    def __init__(self, seed: int, manager: str) -> None:
        self._seed, self._purpose = seed, f"stream {manager}"
        self._start = -1
        self._numbers: Vector = np.empty((0, 2))

    def at(self, number: int) -> tuple[float, float]:
        """Return those of one row."""
        start = number - number % _DRAWN
        if start != self._start:
            words = philox(self._seed, self._purpose, start, _DRAWN)
            self._start, self._numbers = start, (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
        first, second = self._numbers[number - start].tolist()
        return first, second


def decide(rule: StreamRule, memory: Memory, draws: Draws, score: float, vector: Vector | None, barred: Barred) -> Decision:
    """Decide on the next row, and note it.

    Args:
        rule: what the stream was begun with.
        memory: what is kept; changed.
        draws: of the rule's seed and manager.
        score: finite; higher is labelled sooner.
        vector: (d,) float64, the row's embedding, which `density` needs.
        barred: see there.
    """
    memory.seen += 1
    decision = MANAGERS[rule.manager](rule, memory, draws, score, vector, barred)
    memory.labelled += decision.chosen
    memory.spent = memory.spent * (rule.window - 1) / rule.window + decision.chosen
    return decision


def _fixed(rule: StreamRule, memory: Memory, draws: Draws, score: float, vector: Vector | None, barred: Barred) -> Decision:
    assert rule.classes is not None
    budget = float(rule.budget)
    threshold = 1 / rule.classes + budget * (1 - 1 / rule.classes)
    return Decision(1 - score <= threshold and _may_spend(rule, memory) and not barred(), threshold)


def _variable(rule: StreamRule, memory: Memory, draws: Draws, score: float, vector: Vector | None, barred: Barred) -> Decision:
    return _compared(rule, memory, score, memory.threshold, barred)


def _random_variable(rule: StreamRule, memory: Memory, draws: Draws, score: float, vector: Vector | None, barred: Barred) -> Decision:
    first, second = draws.at(memory.seen)
    normal = math.sqrt(-2 * math.log1p(-first)) * math.cos(2 * math.pi * second)  # Box and Muller, 1958
    return _compared(rule, memory, score, memory.threshold * (1 + normal), barred)


def _split(rule: StreamRule, memory: Memory, draws: Draws, score: float, vector: Vector | None, barred: Barred) -> Decision:
    first, second = draws.at(memory.seen)
    if first >= EXPLORED:
        return _compared(rule, memory, score, memory.threshold, barred)
    return Decision(second < float(rule.budget) and _may_spend(rule, memory) and not barred())


def _random(rule: StreamRule, memory: Memory, draws: Draws, score: float, vector: Vector | None, barred: Barred) -> Decision:
    wanted = draws.at(memory.seen)[0] < float(rule.budget)
    return Decision(wanted and rule.leaves_room(memory.seen, memory.labelled) and not barred())


def _quantile(rule: StreamRule, memory: Memory, draws: Draws, score: float, vector: Vector | None, barred: Barred) -> Decision:
    above = memory.ranks.add(score)
    part, whole = rule.budget.numerator, rule.budget.denominator
    wanted = _HORIZON * whole * above < (_HORIZON * part + _owed(rule, memory)) * len(memory.ranks)
    return Decision(wanted and rule.leaves_room(memory.seen, memory.labelled) and not barred())


def _density(rule: StreamRule, memory: Memory, draws: Draws, score: float, vector: Vector | None, barred: Barred) -> Decision:
    assert vector is not None
    rows = memory.rows
    if not rows.add(vector):
        return Decision(False)
    above = memory.ranks.add(score)
    part, whole = rule.budget.numerator, rule.budget.denominator
    typical = sum(rows.typical)
    allowed = _HORIZON * part * len(rows.typical) + typical * _owed(rule, memory)
    wanted = _HORIZON * whole * typical * above < allowed * len(memory.ranks)
    return Decision(wanted and rule.leaves_room(memory.seen, memory.labelled) and not barred())


MANAGERS: dict[str, Callable[[StreamRule, Memory, Draws, float, Vector | None, Barred], Decision]] = {
    "fixed": _fixed,
    "variable": _variable,
    "random_variable": _random_variable,
    "split": _split,
    "random": _random,
    "quantile": _quantile,
    "density": _density,
}


def _may_spend(rule: StreamRule, memory: Memory) -> bool:
    """Tell whether neither the estimate nor a strict budget forbids a label."""
    return memory.spent / rule.window < float(rule.budget) and rule.leaves_room(memory.seen, memory.labelled)


def _compared(rule: StreamRule, memory: Memory, score: float, threshold: float, barred: Barred) -> Decision:
    """Label what the model is less sure of than the threshold, which moves, unless nothing may be labelled anyway."""
    if not _may_spend(rule, memory):
        return Decision(False, threshold)
    wanted = 1 - score < threshold
    if wanted and barred():
        return Decision(False, threshold)
    memory.threshold *= 1 - rule.step if wanted else 1 + rule.step
    return Decision(wanted, threshold)


def _owed(rule: StreamRule, memory: Memory) -> int:
    """Return the labels that the budget leaves, times its denominator; negative if more were spent."""
    reserve = _RESERVE if rule.strict else 0
    return rule.budget.numerator * memory.seen - rule.budget.denominator * (reserve + memory.labelled)

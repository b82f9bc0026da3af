"""Who decides which rows of a stream are worth a label: the managers, and the sampler that asks one of them.

Which rows of a stream are labelled within a budget: a rule a manager, each a function of what was kept, the row's score and its number.

Nothing here depends on how many rows arrive at once. Chance is drawn by the number of the row, so that a stream that goes on anywhere
decides as one that was never stopped. `fixed`, `variable`, `random_variable` and `split` follow Zliobaite et al. (2014), with the
estimate of what was spent that they share; `density` follows Ienco et al. (2014). `quantile` compares ranks, not values: it holds its
share for tied, jumping and heavy-tailed scores, too.

Decides on the rows of a stream as they arrive: which of them are worth a label, within a budget.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from raystream.errors import QueryError, did_you_mean
from raystream.query.simulate import BY_UNCERTAINTY
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


Bar = Callable[[int], bool]
"""Whether a row, by its number among those given, must not be labelled; asked of those that would be."""


class StreamSampler:
    """Decides row by row; the same rows give the same decisions however many are given at once, and after any resume.

    Args:
        manager: `quantile`, `density`, `fixed`, `variable`, `random_variable`, `split` or `random`; see docs/streams.md.
        budget: the share of rows that may be labelled, above 0 and at most 1; as the decimal that it is written as, or a Fraction.
        strict: keep to it at any time: of n rows at most budget x n are labelled, rounded up.
        seed: of every draw.
        classes: of the model; `fixed` needs it.
        window: rows that scores are compared with.
        step: by which share `variable`, `random_variable` and `split` move their threshold.
        state: of a sampler that was made with the same arguments, to go on from.

    Raises:
        QueryError: an argument is wrong, or the state is another sampler's.
    """

    def __init__(
        self,
        manager: str = "quantile",
        budget: float | str | Fraction = 0.05,
        strict: bool = True,
        seed: int = 0,
        classes: int | None = None,
        window: int = 100,
        step: float = 0.01,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.rule = StreamRule(manager, _fraction(budget), bool(strict), int(seed), classes, window, step)
        _check(self.rule)
        self._draws = Draws(self.rule.seed, manager)
        self._memory = Memory(Ranks(window), RecentRows(window)) if state is None else _memory(self.rule, state)

    @property
    def seen(self) -> int:
        """Rows so far, without those whose score or embedding isn't finite."""
        return self._memory.seen

    @property
    def labelled(self) -> int:
        """Rows chosen so far."""
        return self._memory.labelled

    @property
    def state(self) -> dict[str, Any]:
        """All that the next decision depends on, as JSON takes it."""
        memory = self._memory
        rows = memory.rows
        return {
            "of": _settings(self.rule),
            "seen": memory.seen,
            "labelled": memory.labelled,
            "spent": memory.spent,
            "threshold": memory.threshold,
            "scores": list(memory.ranks.scores),
            "vectors": rows.vectors.tolist(),
            "nearest": [None if math.isinf(distance) else distance for distance in rows.nearest.tolist()],
            "typical": list(rows.typical),
        }

    def decide(self, scores: npt.ArrayLike, embeddings: npt.ArrayLike | None = None) -> npt.NDArray[np.bool_]:
        """Decide which of the next rows are to be labelled.

        Args:
            scores: (n,) in the order of arrival, higher is labelled sooner. A row whose score isn't finite is not labelled, and counts
                for nothing. Managers with a threshold (`fixed`, `variable`, `random_variable`, `split`) take `least_confidence`, from 0
                to 1.
            embeddings: (n, d), which `density` needs; a row whose embedding isn't finite is taken as one without a score.

        Returns:
            (n,) bool.

        Raises:
            QueryError: the shapes don't fit, a score is out of range, or embeddings are missing; then nothing was decided.
        """
        return np.array([decision is not None and decision.chosen for decision in self.decide_all(scores, embeddings)], dtype=np.bool_)

    def decide_all(
        self, scores: npt.ArrayLike, embeddings: npt.ArrayLike | None = None, barred: Bar | None = None
    ) -> list[Decision | None]:
        """Decide as `decide` does, with the thresholds; None for rows that count for nothing.

        Args:
            scores: see there.
            embeddings: see there.
            barred: see `Bar`; such a row counts as seen and isn't labelled.
        """
        values, vectors = self._checked(scores, embeddings)
        usable = np.isfinite(values)
        if vectors is not None:
            usable &= np.isfinite(vectors).all(axis=1)
        found: list[Decision | None] = []
        for row, (score, ok) in enumerate(zip(values.tolist(), usable.tolist(), strict=True)):
            vector = None if vectors is None else vectors[row]
            found.append(self._decide(row, score, vector, barred) if ok else None)
        return found

    def _decide(self, row: int, score: float, vector: Vector | None, barred: Bar | None) -> Decision:
        return decide(self.rule, self._memory, self._draws, score, vector, lambda: barred is not None and barred(row))

    def forget_scores(self) -> None:
        """Go on with a new model: what its scores can't be compared with is forgotten, what was seen and spent is not."""
        self._memory.ranks = Ranks(self.rule.window)
        self._memory.rows = RecentRows(self.rule.window)

    def _checked(self, scores: npt.ArrayLike, embeddings: npt.ArrayLike | None) -> tuple[Vector, Vector | None]:
        try:
            values = np.asarray(scores, dtype=np.float64)
        except (TypeError, ValueError):
            raise QueryError("scores hold what is no number; expected (n,) numbers") from None
        if values.ndim != 1:
            raise QueryError(f"scores have shape {values.shape}; expected (n,), one a row")
        if self.rule.manager in BY_UNCERTAINTY:
            outside = np.flatnonzero((values < 0) | (values > 1))
            if len(outside):
                raise QueryError(
                    f"the score of row {outside[0]} is {values[outside[0]]:.6g}; manager {self.rule.manager} compares least_confidence, "
                    "which lies between 0 and 1; give that, or use quantile, which takes any score"
                )
        if self.rule.manager != "density":
            return values, None
        if embeddings is None:
            raise QueryError("manager density needs the rows' embeddings; give them, or use quantile")
        vectors = np.asarray(embeddings, dtype=np.float64)
        if vectors.ndim != 2 or len(vectors) != len(values):
            raise QueryError(f"embeddings have shape {vectors.shape}; expected ({len(values)}, d), a row for each score")
        width = self._memory.rows.width
        if width is not None and vectors.shape[1] != width:
            raise QueryError(f"embeddings have {vectors.shape[1]} columns, those before had {width}; expected the same model's")
        return values, vectors


def _fraction(budget: float | str | Fraction) -> Fraction:
    try:
        found = Fraction(str(budget))
    except (ValueError, ZeroDivisionError):
        found = Fraction(0)
    if not 0 < found <= 1:
        raise QueryError(f"budget is {budget!r}; expected the share of rows that may be labelled, above 0 and at most 1, such as 0.05")
    return found


def _check(rule: StreamRule) -> None:
    if rule.manager not in MANAGERS:
        raise QueryError(f"manager is {rule.manager!r}, expected {', '.join(MANAGERS)}{did_you_mean(str(rule.manager), MANAGERS)}")
    if rule.manager == "fixed" and (not isinstance(rule.classes, int) or rule.classes < 2):
        raise QueryError(f"classes is {rule.classes!r}; manager fixed needs the number of classes, at least 2")
    if not isinstance(rule.window, int) or rule.window < 2:
        raise QueryError(f"window is {rule.window!r}; expected a number of rows, at least 2")
    if not 0 < rule.step < 1:
        raise QueryError(f"step is {rule.step!r}; expected a share above 0 and below 1")


def _settings(rule: StreamRule) -> dict[str, Any]:
    """Return what a state's sampler was made with."""
    found = {"manager": rule.manager, "budget": str(rule.budget), "strict": rule.strict, "seed": rule.seed}
    return found | {"classes": rule.classes, "window": rule.window, "step": rule.step}


def _memory(rule: StreamRule, state: Mapping[str, Any]) -> Memory:
    """Return what a state holds.

    Raises:
        QueryError: it is none, or another sampler's.
    """
    try:
        before, now = dict(state["of"]), _settings(rule)
        changed = [f"{key} ({before.get(key)} then, {now[key]} now)" for key in now if before.get(key) != now[key]]
        if changed:
            raise QueryError(f"state is that of another sampler; it differs in {', '.join(changed)}; make the sampler as that one was")
        nearest = np.array([math.inf if distance is None else distance for distance in state["nearest"]], dtype=np.float64)
        rows = RecentRows(rule.window, np.array(state["vectors"], dtype=np.float64), nearest, map(bool, state["typical"]))
        ranks = Ranks(rule.window, map(float, state["scores"]))
        return Memory(ranks, rows, int(state["seen"]), int(state["labelled"]), float(state["spent"]), float(state["threshold"]))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, QueryError):
            raise
        raise QueryError(f"state is none of a StreamSampler's ({type(error).__name__}: {error}); give what .state was") from None

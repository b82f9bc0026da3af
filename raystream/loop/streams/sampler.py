"""Decides on the rows of a stream as they arrive: which of them are worth a label, within a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from raystream.errors import QueryError, did_you_mean
from raystream.loop.streams.managers import MANAGERS, Decision, Draws, Memory, Ranks, RecentRows, StreamRule, Vector, decide
from raystream.query.stream import BY_UNCERTAINTY

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

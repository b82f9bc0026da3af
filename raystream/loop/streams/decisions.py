"""A stream's decisions, and whether what arrives is still what it was.

What a stream goes on from, and its decisions on the next rows: a function of the state, the rows' scores and their embeddings.

Whether the scores of a stream are still those that they were: two tests, said with numbers and never acted on.

Page-Hinkley (Page, 1954) sums how far scores lie from their mean so far: it finds a mean that moves, however slowly. The two-sample test
of Kolmogorov and Smirnov compares the first scores with the latest: it finds any other change of their distribution, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from raystream.loop.streams.managers import Decision, StreamSampler
from raystream.query.simulate import Stream

WINDOW = 500
"""Scores that are compared with as many."""
TOLERATED = 0.2
"""Of the mean, in standard deviations of the first window: it is known to 0.05 of one."""
LIMIT = 50.0
"""Of Page-Hinkley, in the same unit: without drift it is passed once in some hundred million rows."""
UNLIKELY = 1e-4
"""Of Kolmogorov and Smirnov's p: below it, drift is spoken of."""


@dataclass
class Drift:
    """What is kept of the scores of one model.

    Attributes:
        rows: so far.
        mean: of all of them.
        first: the first window, by order of arrival.
        latest: the window that fills.
        up, down: Page-Hinkley's sums for a mean that rises and one that falls, above their least value.
        distance, p_value: of the last full window to the first; None before there are two.
        since: the row at which Page-Hinkley first passed its limit.
    """

    rows: int = 0
    mean: float = 0.0
    first: list[float] = field(default_factory=list)
    latest: list[float] = field(default_factory=list)
    up: float = 0.0
    down: float = 0.0
    distance: float | None = None
    p_value: float | None = None
    since: int | None = None

    def add(self, scores: Sequence[float]) -> None:
        """Take in the next scores, which are finite."""
        deviation = self._deviation
        for score in scores:
            self.rows += 1
            self.mean += (score - self.mean) / self.rows
            if len(self.first) < WINDOW:
                self.first.append(score)
                deviation = self._deviation
                continue
            moved = (score - self.mean) / deviation
            self.up = max(0.0, self.up + moved - TOLERATED)
            self.down = max(0.0, self.down - moved - TOLERATED)
            if self.since is None and max(self.up, self.down) > LIMIT:
                self.since = self.rows
            self.latest.append(score)
            if len(self.latest) == WINDOW:
                self.distance, self.p_value = kolmogorov_smirnov(np.array(self.first), np.array(self.latest))
                self.latest = []

    @property
    def figures(self) -> dict[str, Any]:
        """What `--json` prints; None for what too few rows tell nothing of."""
        whole = len(self.first) == WINDOW
        return {
            "page_hinkley": max(self.up, self.down) if whole else None,
            "page_hinkley_limit": LIMIT,
            "since": self.since,
            "kolmogorov_smirnov": self.distance,
            "p_value": self.p_value,
            "window": WINDOW,
        }

    @property
    def warnings(self) -> list[str]:
        """Sentences for the user where there is drift."""
        found = []
        if self.since is not None:
            found.append(
                f"the mean score has moved: Page-Hinkley passed {LIMIT:g} at row {self.since:,} of this model's and is "
                f"{max(self.up, self.down):.3g} now; look at what arrives, or train anew"
            )
        if self.p_value is not None and self.p_value < UNLIKELY:
            found.append(
                f"scores are no longer distributed as they were: between the first and the last full {WINDOW} the distance of Kolmogorov "
                f"and Smirnov is {self.distance:.3f} (p {self.p_value:.1e}); look at what arrives, or train anew"
            )
        return found

    @property
    def state(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        return asdict(self)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Drift:
        """Make it again of its `state`."""
        return cls(**state)

    def __post_init__(self) -> None:
        self._known: float | None = None

    @property
    def _deviation(self) -> float:
        """Of the first window, once it is full, after which it doesn't change; 1 where all its scores are equal."""
        if len(self.first) < WINDOW:
            return 1.0
        if self._known is None:
            self._known = float(np.std(self.first)) or 1.0
        return self._known


def kolmogorov_smirnov(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Find the largest distance between two samples' distribution functions, and how likely one as large is by chance.

    The latter is the limit for large samples (Smirnov, 1948); with ties it is on the safe side.
    """
    both = np.sort(np.concatenate([first, second]))
    below = [np.searchsorted(np.sort(sample), both, "right") / len(sample) for sample in (first, second)]
    distance = float(np.abs(below[0] - below[1]).max())
    scaled = distance * math.sqrt(len(first) * len(second) / (len(first) + len(second)))
    if scaled < 0.2:  # the series below converges slowly there, to 1 in twelve digits
        return distance, 1.0
    total = 0.0
    for k in range(1, 101):
        before, total = total, total - (-1) ** k * math.exp(-2 * (k * scaled) ** 2)
        if total == before:
            break  # what follows is smaller still
    return distance, min(1.0, max(0.0, 2 * total))


RECENT = 100
"""Rows within which scores are compared, and near-duplicates of chosen rows are not chosen again."""
Vector = npt.NDArray[np.float64]


@dataclass
class ChosenLately:
    """The rows that were chosen within the last `RECENT`.

    Attributes:
        near: the cosine from which on a row repeats one of them; None: exact repeats alone, False: none.
        rows: the number and the embedding of each.
    """

    near: float | Literal[False] | None
    rows: list[tuple[int, Vector]] = field(default_factory=list)

    def repeats(self, number: int, vector: Vector) -> bool:
        """Tell whether a row is one of them again; if not, it is chosen, and so one of them."""
        self.rows = [(when, row) for when, row in self.rows if when > number - RECENT]
        if self.near is not False and any(self._same(row, vector) for _, row in self.rows):
            return True
        self.rows.append((number, vector))
        return False

    def _same(self, row: Vector, vector: Vector) -> bool:
        if np.array_equal(row, vector):
            return True
        norms = float(np.square(row).sum()) * float(np.square(vector).sum())
        return bool(self.near) and norms > 0 and float((row * vector).sum()) >= self.near * norms**0.5


@dataclass
class StreamState:
    """All that further decisions depend on.

    Attributes:
        sampler: within the budget.
        chosen: lately.
        drift: of the model's scores.
    """

    sampler: StreamSampler
    chosen: ChosenLately
    drift: Drift

    @classmethod
    def of(cls, stream: Stream, classes: int | None, state: Mapping[str, Any], new_epoch: bool) -> StreamState:
        """Find where a stream goes on.

        Args:
            stream: what was asked.
            classes: of the model.
            state: as `saved` gave it; empty at first.
            new_epoch: another model scores from here on: its scores and embeddings can't be compared with those before.
        """
        settings = stream.stream
        sampler = StreamSampler(
            settings.manager,
            str(settings.budget),
            settings.strict,
            stream.seed,
            classes if settings.manager == "fixed" else None,
            RECENT,
            state=state.get("sampler"),
        )
        chosen, drift = ChosenLately(stream.near_duplicates), Drift()
        if new_epoch:
            sampler.forget_scores()
        elif state:
            chosen.rows = [(number, np.array(row, dtype=np.float64)) for number, row in state["chosen"]]
            drift = Drift.of(state["drift"])
        return cls(sampler, chosen, drift)

    @property
    def saved(self) -> dict[str, Any]:
        """The state as JSON takes it."""
        chosen = [[number, row.tolist()] for number, row in self.chosen.rows]
        return {"sampler": self.sampler.state, "chosen": chosen, "drift": self.drift.state}

    def decide(self, scores: Vector, vectors: Vector | None, known: npt.NDArray[np.bool_] | None) -> list[Decision | None]:
        """Decide on the next rows; None for those that count for nothing.

        Args:
            scores: (n,).
            vectors: (n, d) embeddings, where rows have some.
            known: (n,) which rows have a label already.
        """

        def barred(row: int) -> bool:
            if known is not None and known[row]:
                return True
            return vectors is not None and self.chosen.repeats(self.sampler.seen, vectors[row])

        found = self.sampler.decide_all(scores, vectors, barred)
        self.drift.add([score for score, decision in zip(scores.tolist(), found, strict=True) if decision is not None])
        return found

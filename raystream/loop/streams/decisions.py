"""What a stream goes on from, and its decisions on the next rows: a function of the state, the rows' scores and their embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from raystream.loop.streams.drift import Drift
from raystream.loop.streams.managers import Decision
from raystream.loop.streams.sampler import StreamSampler
from raystream.query.stream import Stream

WINDOW = 100
"""Rows within which scores are compared, and near-duplicates of chosen rows are not chosen again."""
Vector = npt.NDArray[np.float64]


@dataclass
class ChosenLately:
    """The rows that were chosen within the last `WINDOW`.

    Attributes:
        near: the cosine from which on a row repeats one of them; None: exact repeats alone, False: none.
        rows: the number and the embedding of each.
    """

    near: float | Literal[False] | None
    rows: list[tuple[int, Vector]] = field(default_factory=list)

    def repeats(self, number: int, vector: Vector) -> bool:
        """Tell whether a row is one of them again; if not, it is chosen, and so one of them."""
        self.rows = [(when, row) for when, row in self.rows if when > number - WINDOW]
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
            WINDOW,
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

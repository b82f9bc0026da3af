"""What a session tells while it brings up workers and scores."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import raystream as rs
from raystream.scoring import session
from raystream.scoring.executor import UnitEnded, WorkerReady
from raystream.store.protocol import StoredFile
from raystream.store.receipts import Receipt, UnitOutputs

MakeQuery = Callable[..., rs.Query]


class Heard:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.scored: list[tuple[int, int, int, float]] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def units(self, done: int, total: int, rows: int, seconds: float) -> None:
        self.scored.append((done, total, rows, seconds))


@pytest.mark.slow
@pytest.mark.usefixtures("own_ray")
def test_few_units_are_told_that_they_need_no_ray(make_query: MakeQuery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting a Ray takes longer than they do; many units, or those on a cluster of the user's, are told nothing of it."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    few, many, elsewhere = Heard(), Heard(), Heard()
    rs.run(make_query(store__uri="few", pool__uri="pool/year=2020", cluster={"workers": 1}), reporter=few)
    rs.run(make_query(store__uri="many", cluster={"workers": 1}), reporter=many)
    monkeypatch.setenv("RAY_ADDRESS", "local")  # the one that runs already
    rs.run(make_query(store__uri="elsewhere", pool__uri="pool/year=2020", cluster={"workers": 1}), reporter=elsewhere)
    assert few.stages[1:3] == ["Starting Ray workers; cluster.address: in_process needs none", "Scoring 1 unit"]
    assert many.stages[1:3] == ["Starting Ray workers", "Scoring 4 units"]
    assert elsewhere.stages[1:3] == ["Starting Ray workers", "Scoring 1 unit"]


def test_time_in_which_nothing_is_scored_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second set of units comes after other work: the pace, and the time left, are those of the scoring alone."""
    heard, clock = Heard(), iter([0.0, 10.0, 14.0, 100.0, 103.0])
    monkeypatch.setattr(session.time, "perf_counter", lambda: next(clock))
    store: Any = SimpleNamespace(append=lambda *_: None)
    progress = session._Progress(store, heard, "queries/q")
    receipt = Receipt(
        key="k", output="scores-0", unit="a#rg0", rows=50, positions="0", file=StoredFile("scores.parquet", 1, "0"), columns=("id",),
        width=None, members=None, classes=4, batch_size=32, state_hash="0", quarantined=0, quarantine_reasons=(), bytes_read=1, seconds=1.0,
    )  # fmt: skip
    unit = UnitOutputs((receipt,))
    progress.begin(1)
    progress.on_event(WorkerReady(0))
    progress.on_event(UnitEnded(0, 0, unit))
    progress.begin(1)
    progress.on_event(UnitEnded(0, 1, unit))
    assert heard.scored == [(0, 1, 0, 0.0), (1, 1, 50, 4.0), (2, 2, 100, 7.0)]

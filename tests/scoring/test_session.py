"""What a session tells while it brings up workers and scores."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import raystream as rs
from raystream.scoring import session
from raystream.scoring.executor import Event, UnitEnded, UnitGoesOn, WorkerReady
from raystream.scoring.progress import ScoringProgress
from raystream.store.protocol import StoredFile
from raystream.store.receipts import Receipt, UnitOutputs


class Heard:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.scored: list[ScoringProgress] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def units(self, progress: ScoringProgress) -> None:
        self.scored.append(progress)


class Followed:
    """The progress of a run, by events that are told at given seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.heard, self.now = Heard(), 0.0
        monkeypatch.setattr(session.time, "perf_counter", lambda: self.now)
        store: Any = SimpleNamespace(append=lambda *_: None)
        self.progress = session._ProgressLog(store, self.heard, "queries/q")

    def begin(self, seconds: float, *rows: int) -> None:
        """Further units, of so many rows."""
        self.now = 50.0 + seconds
        self.progress.begin(np.array(rows, np.int64))

    def at(self, seconds: float, event: Event | None = None) -> ScoringProgress:
        """What is told then."""
        self.now = 50.0 + seconds
        self.progress.on_event(event)
        return self.heard.scored[-1]

    def ended(self, unit: int) -> UnitEnded:
        """A unit is scored."""
        receipt = Receipt(
            key="k", output="scores-0", unit="a#rg0", rows=1, positions="0", file=StoredFile("scores.parquet", 1, "0"), columns=("id",),
            width=None, members=None, classes=4, batch_size=32, state_hash="0", quarantined=0, quarantine_reasons=(), bytes_read=1,
            seconds=1.0,
        )  # fmt: skip
        return UnitEnded(0, unit, UnitOutputs((receipt,)))


def test_time_in_which_nothing_is_scored_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second set of units comes after other work: the pace, and the time left, go on as if there had been none."""
    run = Followed(monkeypatch)
    run.begin(0.0, 50)
    assert run.at(10.0, WorkerReady(0)) == ScoringProgress(0, 1, 0, 50, None, None, 1)
    assert run.at(14.0, run.ended(0)) == ScoringProgress(1, 1, 50, 50, 12.5, None, 1)
    run.begin(100.0, 30, 70)
    assert run.at(104.0, run.ended(1)) == ScoringProgress(2, 3, 80, 150, 10.0, 7.0, 1)
    assert run.heard.stages == ["Scoring 50 rows in 1 unit"]


def test_many_small_units_are_told_of_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends within a twentieth of a second of the last word is part of the next one, and all of it of the last."""
    run = Followed(monkeypatch)
    run.begin(0.0, *[10] * 100)
    run.at(0.0, WorkerReady(0))
    for unit in range(99):
        run.at(0.01 * unit, run.ended(unit))
    told = [far.units for far in run.heard.scored]
    assert told == sorted(told)
    assert 18 <= len(told) <= 22
    run.progress.tell()  # as where all are over, though the last unit was given up
    assert run.heard.scored[-1] == ScoringProgress(99, 100, 990, 1000, pytest.approx(990 / 0.98), pytest.approx(0.98 / 99), 1)


def test_rows_within_a_unit_move_the_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """One unit that takes long: rows so far and the time left are told while it is scored, and a unit that begins again counts anew."""
    run = Followed(monkeypatch)
    run.begin(0.0, 1000, 1000)
    run.at(0.0, WorkerReady(0))
    assert run.at(1.0, UnitGoesOn(0, 0, 100)) == ScoringProgress(0, 2, 100, 2000, 100.0, 19.0, 1)
    assert run.at(2.0, UnitGoesOn(0, 1, 300)) == ScoringProgress(0, 2, 400, 2000, 200.0, 8.0, 1)
    assert run.at(3.0, UnitGoesOn(0, 0, 50)).rows == 350
    assert run.at(4.0, run.ended(0)).rows == 1300
    assert run.at(4.5, UnitGoesOn(0, 0, 900)).rows == 1300  # a word that comes late
    assert run.at(5.0, run.ended(1)) == ScoringProgress(2, 2, 2000, 2000, 400.0, None, 1)


def test_the_time_left_neither_runs_out_nor_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It follows the pace of the last half minute; where nothing comes for longer than that, it grows, and is never nothing or gone."""
    run = Followed(monkeypatch)
    run.begin(0.0, 10_000)
    run.at(0.0, WorkerReady(0))
    for second in range(1, 101):
        assert run.at(float(second), UnitGoesOn(0, 0, 10 * second)).rate == 10.0
    left = run.at(200.0).left
    assert left is not None
    assert left > 900
    faster = [run.at(200.0 + second, UnitGoesOn(0, 0, 1000 + 100 * second)).rate for second in range(1, 41)]
    assert faster[-1] == pytest.approx(100.0, rel=0.05)


@pytest.mark.parametrize(("most", "noted"), [(8, 8), (7, 0)])
def test_files_are_remembered_unless_the_first_would_be_forgotten(
    make_query: Callable[..., rs.Query], monkeypatch: pytest.MonkeyPatch, most: int, noted: int
) -> None:
    """Four units of two outputs: all are noted as just written, or, where that is more than are kept in mind, none."""
    found: list[StoredFile] = []
    monkeypatch.setattr(session, "MOST_KNOWN", most)
    monkeypatch.setattr(session, "just_written", lambda store, files: found.extend(files))
    assert rs.run(make_query()).manifest.units_scored == 4
    assert len(found) == len(set(found)) == noted

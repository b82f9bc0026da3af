"""Runs under faults that seeds tell; and that the simulation would find what it looks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from raystream.scoring import executor
from raystream.scoring.scheduler import Scheduler
from raystream.scoring.worker import Worker
from raystream.store import packs
from raystream.store.bucket import ObjectStore
from raystream.store.events import EventLog
from simulation.bucket import Broken
from simulation.trial import Trial, tried

SEEDS = 120
"""Of the quick test: two seconds."""


def test_every_promise_holds_whatever_goes_wrong() -> None:
    """The same rows, nothing committed replaced or scored again, each event once, no more repeated than was in flight, right refusals."""
    seen: set[str] = set()
    for seed in range(SEEDS):
        seen |= tried(seed).faults.keys()
    assert len(seen) >= 18, seen


@pytest.mark.parametrize("seed", [3448])
def test_seeds_that_found_something(seed: int) -> None:
    """3448: three workers were killed at once, and a unit that was handed to two of them was charged for each, and left out."""
    tried(seed)


@pytest.mark.slow
def test_of_many_seeds() -> None:
    """As above, of others."""
    for seed in range(SEEDS, 4000):
        tried(seed)


def test_a_seed_tells_all() -> None:
    """The same seed takes the same steps, to the last."""
    said: list[list[str]] = [[], []]
    for lines in said:
        Trial(7, lines.append).go()
    assert said[0] == said[1]
    assert len(said[0]) > 50


def _overwrites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ObjectStore, "put_if_absent", lambda self, name, data, wait=True: self.put(name, data) or True)


def _takes_conflicts_for_defeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ObjectStore, "_refuse_nothing", lambda self, name: None)


def _forgets_receipts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs._Lookup, "_read", lambda self, place, listed=None: None)


def _loses_units(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Scheduler.worker_lost

    def lost(self: Scheduler, worker: int, cause: BaseException) -> Any:
        for units in (self.held.get(worker, [])[1:],):
            self.done.update(units)
        return real(self, worker, cause)

    monkeypatch.setattr(Scheduler, "worker_lost", lost)


def _keeps_own_receipt(monkeypatch: pytest.MonkeyPatch) -> None:
    def committed(self: Worker, receipt: Any) -> Any:
        self._store.put(f"units/{receipt.key[:2]}/{receipt.key}/{receipt.output}.receipt.json", receipt.to_json())
        return receipt

    monkeypatch.setattr(Worker, "_committed", committed)


def _leaves_numbers_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = EventLog._append_object

    def append(self: EventLog, line: Callable[[int], bytes]) -> int:
        found = real(self, line)
        self._last = found + (found == 2)
        return found

    monkeypatch.setattr(EventLog, "_append_object", append)


def _blames_itself_for_deaths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_by_deaths", lambda instruction: instruction)


@pytest.mark.parametrize(
    "fault",
    [
        _overwrites,
        _takes_conflicts_for_defeat,
        _forgets_receipts,
        _loses_units,
        _keeps_own_receipt,
        _leaves_numbers_out,
        pytest.param(_blames_itself_for_deaths, marks=pytest.mark.slow),
    ],
)
def test_what_is_wrong_is_found(fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """With any of these defects in raystream, one of the first seeds fails."""
    fault(monkeypatch)

    def seeds() -> None:
        for seed in range(400):
            tried(seed)

    with pytest.raises((Broken, TimeoutError, AssertionError, RuntimeError, OSError, KeyError, AttributeError)):
        seeds()

"""The queue: in turns between owners, within limits; what a server left when it died is gone on with."""

from __future__ import annotations

import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystream.service.config import Config, Limits
from raystream.service.edge import Metrics
from raystream.service.policy import Checked
from raystream.service.process import ProcessTask
from raystream.service.runs import QueueEntry, Runs
from raystream.service.scheduler import RunScheduler, next_run
from raystream.store.opening import open_store


class Child:
    """A process as the scheduler sees it."""

    def __init__(self) -> None:
        self.code: int | None = None

    def poll(self) -> int | None:
        return self.code


class Machine:
    """Processes that end when the test says so."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.children: dict[str, Child] = {}

    def spawn(self, task: ProcessTask) -> Any:
        self.started.append(task.run)
        self.children[task.run] = Child()
        return self.children[task.run]

    def end(self, runs: Runs, run: str, code: int = 0, state: str | None = "committed") -> None:
        if state is not None:
            runs.end(run, state)
        self.children[run].code = code


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., tuple[Runs, RunScheduler, Machine]]:
    def made(**limits: int) -> tuple[Runs, RunScheduler, Machine]:
        config = Config(store={"uri": str(tmp_path / "runs")}, limits=limits)
        runs = Runs(open_store(config.store.uri), config.limits, Clock())
        machine = Machine()
        return runs, RunScheduler(runs, config, Metrics(), machine.spawn), machine

    return made


def ask(runs: Runs, owner: str, what: str) -> str:
    return runs.submit(owner, Checked({}, what.ljust(64, "0")))


def test_owners_take_turns_whoever_asked_first(make: Callable[..., Any]) -> None:
    """A hundred queries of one don't hold up the only one of another; nobody has more than the limit at a time."""
    runs, scheduler, machine = make(running=2, processes=3)
    many = [ask(runs, "a", f"a{i:02d}") for i in range(6)]
    one = ask(runs, "b", "b")
    scheduler.step()
    assert machine.started == [many[0], one, many[1]]
    machine.end(runs, one)
    scheduler.step()
    assert machine.started == [many[0], one, many[1]]  # a has two
    late = ask(runs, "b", "c")
    machine.end(runs, many[0])
    scheduler.step()
    assert machine.started[3:] == [late, many[2]]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), max_size=30), st.integers(1, 3), st.integers(1, 5))
def test_turns_are_fair_and_within_limits(asked: list[tuple[str, int]], each: int, most: int) -> None:
    """Played to the end: all are started once, never too many at a time, and no owner waits for another one's second turn."""
    queue = [QueueEntry(f"{i:03d}", owner, f"r{i}") for i, (owner, _) in enumerate(asked)]
    left = {f"r{i}": length for i, (_, length) in enumerate(asked)}
    running: dict[str, set[str]] = {}
    turns: dict[str, int] = {}
    started: list[str] = []
    while queue:
        while (entry := next_run(queue, running, turns, each, most)) is not None:
            owners = [owner for some in running.values() for owner in some]
            waits = {other.owner for other in queue if other.run not in running and owners.count(other.owner) < each}
            assert owners.count(entry.owner) == min(owners.count(owner) for owner in waits)
            turns[entry.owner] = len(started) + 1
            running[entry.run] = {entry.owner}
            started.append(entry.run)
        assert running
        assert len(running) <= most
        for run in list(running):
            left[run] -= 1
            if not left[run]:
                del running[run]
                queue = [entry for entry in queue if entry.run != run]
    assert sorted(started) == sorted(left)


def test_what_a_dead_server_left_is_gone_on_with(make: Callable[..., Any]) -> None:
    """Runs that a process still holds are waited for; those that nobody holds are started again, by whichever server comes."""
    runs, scheduler, machine = make(running=2, processes=2)
    first, second = ask(runs, "a", "1"), ask(runs, "a", "2")
    scheduler.step()
    runs, scheduler, machine = make(running=2, processes=2)  # another server, over the same store
    with runs.lease(first):
        scheduler.step()
        assert machine.started == [second]
        runs.end(first, "committed")
    scheduler.step()
    assert machine.started == [second]
    assert {entry.run for entry in runs.queue()} == {second}


def test_a_process_that_keeps_dying_has_failed(make: Callable[..., Any]) -> None:
    """After three times; one that was asked to end, as when a machine shuts down, isn't counted."""
    runs, scheduler, machine = make()
    run = ask(runs, "a", "1")
    for code in (-signal.SIGKILL, 143, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGSEGV):
        scheduler.step()
        assert runs.ended(run) is None
        machine.end(runs, run, code, None)
    scheduler.step()
    ended = runs.ended(run)
    assert ended is not None
    assert (ended.state, len(machine.started)) == ("failed", 5)
    assert "signal 11" in str(ended.error)
    assert runs.queue() == []


def test_what_nobody_wants_is_not_started(make: Callable[..., Any]) -> None:
    """It is noted as stopped, and asked again it is another run."""
    runs, scheduler, machine = make()
    run = ask(runs, "a", "1")
    runs.withdraw(run, "a")
    scheduler.step()
    assert (machine.started, runs.state(run)) == ([], "stopped")
    assert ask(runs, "a", "1") != run


def test_limits_count_what_is_queued_and_runs(tmp_path: Path) -> None:
    """One more than both together is refused, and taken once one has ended."""
    runs = Runs(open_store(str(tmp_path / "runs")), Limits(queued=1, running=1), Clock())
    first = ask(runs, "a", "1")
    ask(runs, "a", "2")
    with pytest.raises(Exception, match="as many as may"):
        ask(runs, "a", "3")
    runs.end(first, "failed")
    assert ask(runs, "a", "3")

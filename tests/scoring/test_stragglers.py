"""Units that take far longer than others did, memory that runs out: what the run makes of them, by a clock that the tests move."""

from __future__ import annotations

import logging
import subprocess
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any

import pytest

from raystream.errors import ClusterError, RaystreamError
from raystream.scoring import child
from raystream.scoring.executor import Event, Scoring, UnitEnded, WorkerLost, WorkerReady
from raystream.scoring.scheduler import LEAST_SECONDS, TIMES_THE_MEDIAN, Stragglers
from raystream.scoring.worker import Failure
from raystream.store.receipts import UnitOutputs


def test_late_is_what_takes_some_times_the_median_of_those_before() -> None:
    """Of units of 10 s each, one is late after 30 s and not a moment before; without one that ended, nobody can tell."""
    now = [0.0]
    followed = Stragglers(lambda: now[0])
    for unit in range(3):
        followed.began(unit)
    now[0] = 10.0
    assert followed.late() == []
    followed.ended(0, well=True)
    now[0] = 10.0 * TIMES_THE_MEDIAN
    assert followed.late() == []
    now[0] += 2.0
    assert followed.late() == [1, 2]
    assert followed.late() == []  # asked again at once
    followed.ended(1, well=False)
    now[0] += 2.0
    assert followed.late() == [2]


def test_short_units_are_not_worth_it() -> None:
    """A unit of a hundredth of a second that takes a hundred times as long is done before another worker had begun it."""
    now = [0.0]
    followed = Stragglers(lambda: now[0])
    followed.began(0)
    followed.began(1)
    now[0] = 0.01
    followed.ended(0, well=True)
    now[0] = LEAST_SECONDS
    assert followed.late() == []


class Scripted:
    """An executor whose events are written down, one list for each time it is asked; it notes what it is told."""

    def __init__(self, *script: list[Event] | float, now: list[float] | None = None) -> None:
        self._script, self._now = list(script), now or [0.0]
        self.assigned: list[tuple[int, int]] = []

    def start_worker(self, worker: int) -> None: ...

    def assign(self, worker: int, unit: int, task: Any) -> None:
        self.assigned.append((worker, unit))

    def wait(self, timeout: float) -> list[Event]:
        said = self._script.pop(0)
        if isinstance(said, float):
            self._now[0] += said
            return []
        return said

    def close(self) -> None: ...


def outputs() -> UnitOutputs:
    return UnitOutputs(())


def test_the_last_unit_goes_to_a_second_worker_when_the_first_hangs() -> None:
    """Worker 1 is through; unit 0 of worker 0 is late after three times what the others took, and worker 1 ends it."""
    now = [0.0]
    executor = Scripted(
        [WorkerReady(0), WorkerReady(1)], 20.0, [UnitEnded(0, 1, outputs()), UnitEnded(1, 2, outputs()), UnitEnded(1, 3, outputs())],
        30.0, 40.0, [UnitEnded(1, 0, outputs())], now=now,
    )  # fmt: skip
    scoring = Scoring(executor, 2, keep_going=False, on_event=lambda event: None, clock=lambda: now[0])
    kept: list[int] = []
    tasks: Any = [None] * 4
    assert scoring.score(tasks, lambda unit, found: kept.append(unit)) == {}
    assert executor.assigned == [(0, 0), (0, 1), (1, 2), (1, 3), (1, 0)]
    assert sorted(kept) == [0, 1, 2, 3]


@pytest.mark.parametrize("how", ["an error", "a death"])
def test_without_memory_units_are_handed_out_one_by_one_which_is_said_once(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whether Python or the machine says so, and how often; no unit is lost."""

    def ran_out(worker: int, unit: int) -> list[Event]:
        error = RaystreamError("no memory")
        if how == "an error":
            return [UnitEnded(worker, unit, Failure(error, retry=True, memory=True))]
        return [WorkerLost(worker, error, memory=True), WorkerReady(worker + 1)]

    executor = Scripted(
        [WorkerReady(0)], ran_out(0, 0), *([UnitEnded(0 if how == "an error" else 1, unit, outputs())] for unit in (1, 2, 3, 0)),
    )  # fmt: skip
    scoring = Scoring(executor, 1, keep_going=False, on_event=lambda event: None)
    tasks: Any = [None] * 4
    with caplog.at_level(logging.WARNING, "raystream"):
        assert scoring.score(tasks, lambda unit, found: None) == {}
    assert [unit for _, unit in executor.assigned[2:]] == ([2, 3, 0] if how == "an error" else [1, 2, 3, 0])
    assert [message for message in caplog.messages if "ran out of memory" in message] == [
        "a worker ran out of memory; from now on each holds one unit at a time and reads no other one ahead"
    ]


def test_all_causes_of_a_poisoned_unit_come_back() -> None:
    """Three attempts that failed in three ways: each is told, in order."""
    failures = [[UnitEnded(0, 0, Failure(RaystreamError(word), retry=True))] for word in ("one", "two", "three")]
    scoring = Scoring(Scripted([WorkerReady(0)], *failures), 1, keep_going=False, on_event=lambda event: None)
    tasks: Any = [None]
    [causes] = scoring.score(tasks, lambda unit, found: None).values()
    assert [str(cause) for cause in causes] == ["one", "two", "three"]


@pytest.mark.parametrize("kills", [0, 1])
def test_a_child_that_the_kernel_ended_for_its_memory_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int) -> None:
    """SIGKILL alone says nothing; that the kernel counts one more such end does."""
    events = tmp_path / "memory.events"
    events.write_text("low 0\nhigh 7\nmax 3\noom 1\noom_kill 4\n")
    monkeypatch.setattr(child, "_MEMORY_EVENTS", events)
    job: Any = None
    workers = child.InChild(job)
    process = subprocess.Popen(["sleep", "600"])
    here, there = Pipe()
    process.kill()
    events.write_text(f"low 0\nhigh 7\nmax 3\noom 1\noom_kill {4 + kills}\n")
    there.close()
    workers._listen(0, process, here)
    [lost] = workers.wait(0.0)
    assert isinstance(lost, WorkerLost)
    assert lost.memory == bool(kills)


def test_workers_that_die_before_they_are_ready_are_the_clusters_fault() -> None:
    """Three in a row: exit code 5, what became of the last, and what to do; no defect of ours."""
    deaths: list[list[Event]] = [[WorkerLost(worker, RaystreamError(f"the worker died: {worker}"))] for worker in range(3)]
    scoring = Scoring(Scripted(*deaths), 1, keep_going=False, on_event=lambda event: None)
    tasks: Any = [None]
    with pytest.raises(
        ClusterError, match=r"3 workers in a row could not start, .*: the worker died: 2; .* run again"
    ) as ended:
        scoring.score(tasks, lambda unit, found: None)
    assert ended.value.exit_code == 5

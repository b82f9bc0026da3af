"""Workers that become more where that pays: what is decided, by executors that only note what they are asked, and what comes of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import raystream as rs
from raystream.cluster import growing
from raystream.cluster import growing as processes
from raystream.cluster.growing import Growing
from raystream.errors import ModelError, RaystreamError
from raystream.pool import File, Unit
from raystream.query import Cluster
from raystream.scoring.executor import Event, StartFailed, UnitEnded, UnitGoesOn, WorkerLost, WorkerReady
from raystream.scoring.job import UnitTask
from raystream.scoring.worker import Failure

MakeQuery = Callable[..., rs.Query]
ROWS = 1000
ENDED: Any = Failure(RaystreamError("any"), retry=True)
"""Whether it went well is the scheduler's business."""


class Noted:
    """Does nothing but note what it is asked, and says what it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.events: list[Event] = []

    def start_worker(self, worker: int) -> None:
        self.asked.append(("start", worker))

    def assign(self, worker: int, unit: int, task: UnitTask) -> None:
        self.asked.append(("assign", worker, unit))

    def wait(self, timeout: float) -> list[Event]:
        told, self.events = self.events, []
        return told

    def drop(self, unit: int) -> None:
        self.asked.append(("drop", unit))

    def leave(self) -> None:
        self.asked.append(("leave",))

    def close(self) -> None:
        self.asked.append(("close",))


class Machine:
    """A growing set of workers, with a clock that is set and a Ray that comes up when it is told to."""

    def __init__(self, units: int = 4, size: int = 0) -> None:
        self.home, self.child, self.ray = Noted(), Noted(), Noted()
        self.now, self.up, self.begun = 0.0, False, 0
        self.made: list[str] = []
        self.workers = Growing(units * ROWS, size, lambda: self._make("home"), lambda: self._make("child"), self._begin, lambda: self.now)
        self.units = units

    def _make(self, name: str) -> Noted:
        self.made.append(name)
        found: Noted = getattr(self, name)
        return found

    def _begin(self) -> Callable[[], Noted | None]:
        self.begun += 1
        return lambda: self.ray if self.up else None

    def start(self, workers: int = 2) -> None:
        """As the scheduler does: all workers are asked for, the first is ready and is given two units."""
        for worker in range(workers):
            self.workers.start_worker(worker)
        (self.home if "home" in self.made else self.child).events = [WorkerReady(0)]
        assert self.workers.wait(1.0) == [WorkerReady(0)]
        for unit in (0, 1):
            self.assign(0, unit)

    def assign(self, worker: int, unit: int) -> None:
        self.workers.assign(worker, unit, UnitTask(Unit(File("/a.parquet", 1, "1"), (unit,), ROWS * unit, ROWS, 10), f"{unit}", ()))

    def at(self, seconds: float, *events: Event) -> list[Event]:
        """What is told at this time, where the worker here has this to say."""
        self.now, self.home.events = seconds, list(events)
        return self.workers.wait(1.0)


def test_what_is_soon_done_stays_in_this_process() -> None:
    """Half of the rows in three seconds: the rest takes as long, and no child and no Ray is started."""
    machine = Machine()
    machine.start()
    assert machine.at(0.5, UnitGoesOn(0, 0, 10)) == [UnitGoesOn(0, 0, 10)]  # too early to judge
    assert machine.at(3.0, UnitEnded(0, 0, ENDED), UnitEnded(0, 1, ENDED)) == [UnitEnded(0, 0, ENDED), UnitEnded(0, 1, ENDED)]
    machine.workers.close()
    assert (machine.made, machine.begun) == (["home"], 0)
    assert machine.home.asked == [("start", 0), ("assign", 0, 0), ("assign", 0, 1), ("close",)]


def test_what_takes_long_goes_on_in_a_child_while_a_ray_starts() -> None:
    """The worker here goes on until the child is ready, and ends its unit; the rest is the child's, and the scheduler isn't told."""
    machine = Machine()
    machine.start(workers=3)
    assert machine.at(1.0, UnitGoesOn(0, 0, 100)) == [UnitGoesOn(0, 0, 100)]
    assert (machine.made, machine.begun) == (["home", "child"], 1)
    assert machine.at(2.0, UnitEnded(0, 0, ENDED)) == [UnitEnded(0, 0, ENDED)]
    machine.assign(0, 2)
    assert machine.home.asked[-1] == ("assign", 0, 2)
    machine.child.events = [WorkerReady(0)]
    assert machine.at(3.0, UnitGoesOn(0, 1, 10)) == [UnitGoesOn(0, 1, 10)]
    assert machine.home.asked[-1] == ("drop", 2)
    machine.assign(0, 3)
    assert machine.child.asked == [("start", 0), ("assign", 0, 2), ("assign", 0, 3)]
    machine.child.events = [UnitEnded(0, 2, ENDED)]
    assert machine.at(4.0, UnitEnded(0, 1, ENDED)) == [UnitEnded(0, 2, ENDED), UnitEnded(0, 1, ENDED)]
    assert machine.home.asked[-1] == ("leave",)
    assert machine.ray.asked == []
    machine.up = True
    machine.ray.events = [WorkerReady(1), WorkerReady(2)]
    machine.child.events = [UnitEnded(0, 3, ENDED)]
    assert machine.workers.wait(1.0) == [UnitEnded(0, 3, ENDED), WorkerReady(1), WorkerReady(2)]
    machine.assign(2, 4)
    machine.workers.close()
    assert machine.ray.asked == [("start", 1), ("start", 2), ("assign", 2, 4), ("close",)]
    assert machine.home.asked[-1] == ("close",)  # which gives the process back as it was
    assert machine.begun == 1


def test_a_last_unit_is_nobody_elses() -> None:
    """However long it takes: no other worker could take it, and what is done of it would be lost."""
    machine = Machine(units=2)
    machine.start()
    machine.at(1.0, UnitEnded(0, 0, ENDED), UnitGoesOn(0, 1, 1))
    machine.at(100.0, UnitGoesOn(0, 1, 2))
    assert machine.made == ["home"]


def test_a_ray_that_is_up_before_the_child_scores_beside_this_process() -> None:
    """What all of them say is heard."""
    machine = Machine()
    machine.start()
    machine.at(1.0, UnitGoesOn(0, 0, 1))
    machine.up = True
    machine.ray.events = [WorkerReady(1)]
    assert machine.at(2.0, UnitEnded(0, 0, ENDED)) == [UnitEnded(0, 0, ENDED), WorkerReady(1)]


def test_a_unit_that_ends_as_the_child_takes_over_is_not_scored_again() -> None:
    """Its end is told, and the worker here ends the other one, at which it is."""
    machine = Machine()
    machine.start()
    machine.at(1.0, UnitGoesOn(0, 0, 1))
    machine.child.events = [WorkerReady(0)]
    heard = iter([[], [UnitEnded(0, 0, ENDED)]])
    machine.home.wait = lambda timeout: next(heard)  # type: ignore[method-assign]
    assert machine.workers.wait(1.0) == [UnitEnded(0, 0, ENDED)]
    assert machine.child.asked == [("start", 0)]
    assert machine.home.asked == [("start", 0), ("assign", 0, 0), ("assign", 0, 1)]


def test_one_worker_needs_no_ray_however_long_it_takes() -> None:
    """It goes on in a child, whose crash is charged to its unit, and is replaced by another child."""
    machine = Machine()
    machine.start(workers=1)
    machine.at(1.0, UnitGoesOn(0, 0, 1))
    lost = WorkerLost(0, RaystreamError("the worker died"))
    machine.child.events = [WorkerReady(0)]
    assert machine.workers.wait(1.0) == []
    machine.child.events = [UnitEnded(0, 2, ENDED), lost]
    assert machine.workers.wait(1.0) == [UnitEnded(0, 2, ENDED), lost]
    machine.assign(0, 3)  # as the scheduler does on hearing of the unit, before it hears of the loss
    machine.workers.start_worker(1)
    machine.child.events = [WorkerReady(1)]
    assert machine.workers.wait(1.0) == [WorkerReady(1)]
    assert machine.child.asked[-1] == ("start", 1)
    assert machine.begun == 0


def test_a_first_batch_that_takes_long_says_that_all_does() -> None:
    """Nothing is known of the pace before it is done; after three seconds, enough is."""
    machine = Machine()
    machine.start()
    machine.at(2.0)
    assert machine.made == ["home"]
    machine.at(4.0)
    assert machine.made == ["home", "child"]


def test_a_large_pool_is_not_tried_here() -> None:
    """Its first worker is a child, so that no crash ends the program."""
    machine = Machine(size=2 << 30)
    machine.start()
    assert (machine.made, machine.begun) == (["child"], 1)


def test_units_that_nobody_announced_count_by_the_time_that_they_take() -> None:
    """Labelled rows come after the pool's: what they take shows as they are scored."""
    machine = Machine(units=2)
    machine.start()
    machine.at(1.0, UnitEnded(0, 0, ENDED), UnitEnded(0, 1, ENDED))
    for unit in (2, 3):
        machine.assign(0, unit)
    machine.at(5.0)
    assert machine.made == ["home"]
    machine.at(14.0)
    assert machine.made == ["home", "child"]


def test_a_child_that_cannot_start_is_done_without() -> None:
    """The worker here goes on, and no other child is tried."""
    for failed in (StartFailed(0, ModelError("no room"), False), WorkerLost(0, RaystreamError("it died"))):
        machine = Machine()
        machine.start()
        machine.at(1.0, UnitGoesOn(0, 0, 1))
        machine.child.events = [failed]
        assert machine.at(2.0) == []
        assert machine.at(60.0, UnitEnded(0, 0, ENDED)) == [UnitEnded(0, 0, ENDED)]
        machine.assign(0, 2)
        assert machine.home.asked[-1] == ("assign", 0, 2)
        assert machine.child.asked == [("start", 0), ("close",)]


@pytest.fixture
def no_ray_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no test had started a Ray, and none were in the environment."""
    monkeypatch.setattr(processes, "ray_is_here", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.usefixtures("no_ray_yet")
def test_a_small_pool_needs_neither_ray_nor_child(make_query: MakeQuery, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cluster.address: auto` chooses what `in_process` does, and no process is started."""
    monkeypatch.setattr(processes, "OwnRay", None)
    monkeypatch.setattr(processes, "InChild", None)
    alone = rs.run(make_query(store__uri="alone"))
    small = rs.run(make_query(store__uri="small", cluster={"address": "auto"}))
    assert small.selection.equals(alone.selection)
    assert small.query == alone.query


@pytest.fixture
def impatient(no_ray_yet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything takes longer than a Ray to start; one that is started is there at once, where tests have one."""
    monkeypatch.setattr(growing, "_LARGE_BYTES", 0)


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_child_chooses_what_this_process_chooses(make_query: MakeQuery, workplace: Path) -> None:
    """The same rows in the same order; the model's module is found there as here, and ray is not imported for one worker."""
    alone = rs.run(make_query(store__uri="alone"))
    child = rs.run(make_query(store__uri="child", cluster=Cluster(workers=1).model_dump()))
    assert child.selection.equals(alone.selection)
    assert child.manifest.units_scored == 4


@pytest.mark.slow
@pytest.mark.usefixtures("impatient", "own_ray")
def test_a_child_and_actors_choose_what_one_process_chooses(make_query: MakeQuery) -> None:
    """The first worker is a child, the second an actor."""
    alone = rs.run(make_query(store__uri="alone"))
    both = rs.run(make_query(store__uri="both", cluster={"workers": 2}))
    assert both.selection.equals(alone.selection)


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_unit_that_kills_the_child_is_charged(make_query: MakeQuery, workplace: Path) -> None:
    """It is scored by the next child, and the selection is the same."""
    alone = rs.run(make_query(store__uri="alone"))
    with (workplace / "user_nets.py").open("a") as source:
        source.write(
            "\n\nclass Dying(nn.Sequential):\n"
            "    def forward(self, x):\n"
            "        import os, pathlib, signal\n"
            f"        flag = pathlib.Path({str(workplace / 'died')!r})\n"
            "        if len(x) > 16 and not flag.exists():\n"  # not while it is probed
            "            flag.touch()\n"
            "            os.kill(os.getpid(), signal.SIGKILL)\n"
            "        return super().forward(x)\n\n\n"
            "def dying():\n"
            "    return Dying(*net())\n"
        )
    result = rs.run(make_query(store__uri="child", model__source="user_nets:dying", cluster={"workers": 1}))
    assert result.selection.equals(alone.selection)
    events = [json.loads(line) for line in (result.folder / "workers.jsonl").read_text().splitlines()]
    lost = [event["error"] for event in events if event["event"] == "WorkerLost"]
    assert lost == ["the worker died: it was ended by SIGKILL"]


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_childs_errors_are_those_of_any_worker(make_query: MakeQuery) -> None:
    """The model's own error comes back by the pipe."""
    with pytest.raises(ModelError, match="did you mean 'net'"):
        rs.run(make_query(model__source="user_nets:nett", cluster={"workers": 1}))
    assert "raystream.scoring.child" in sys.modules

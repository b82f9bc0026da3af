"""The processes of a run, and how they come to be more.

Workers on this machine: one in this process, as long as that is quicker than to start a Ray; then a child process, and the Ray's.

How long a model takes shows only when it runs. So the first units are scored here, and after a second it is known about how long the
rest takes one worker. If that is longer than a Ray and its workers take to start, a child process is made meanwhile. As soon as it is
ready it takes the place of the worker here, which ends the unit that it is at and no other: from then on a crash ends the child alone
and is charged to its unit. The child stays one of the workers; the others come up on a Ray.

The processes of one run: workers that score, actors that hold candidates; in this process, its children, or on a Ray that is left
when the run ends.

Ray is imported when it is first needed: a query with little to score starts none.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol

from raystream.choosing.holding import ProcessRounds
from raystream.cluster.address import own_ray_wanted, ray_is_here
from raystream.cluster.own_ray import OwnRay
from raystream.model import runs_on_gpu
from raystream.query import Cluster
from raystream.scoring.child import InChild
from raystream.scoring.executor import (
    RAY_PAYS_SECONDS,
    RAY_SECONDS,
    Event,
    Executor,
    InProcess,
    StartFailed,
    UnitEnded,
    UnitGoesOn,
    WorkerLost,
    WorkerReady,
)
from raystream.scoring.job import ScoringJob, UnitTask
from raystream.scoring.progress import Reporter

_TRIAL_SECONDS = 1.0
"""After so long the pace of a model shows: what comes first is the slowest."""
_LARGE_BYTES = 1 << 30
"""What no process reads, scores and writes while a Ray starts, whatever the model."""
_LISTEN_SECONDS = 0.1


class Home(Executor, Protocol):
    """Workers of this process."""

    def drop(self, unit: int) -> None:
        """Abandon a unit that was assigned, unless it has ended."""

    def leave(self) -> None:
        """End without waiting for the batch on the way; `close` still follows."""


class Growing:
    """Workers that become more where that pays; see the module.

    Args:
        rows: to be scored, and `size` their bytes.
        home: makes the worker of this process.
        child: makes those of child processes.
        ray: begins to start a Ray.
        clock: seconds.
    """

    def __init__(
        self,
        rows: int,
        size: int,
        home: Callable[[], Home],
        child: Callable[[], Executor],
        ray: Callable[[], Callable[[], Executor | None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rows, self._clock = rows, clock
        self._make_child, self._make_ray = child, ray
        self._home: Home | None = home() if size < _LARGE_BYTES else None
        # the worker that was here, while it ends its last unit, and after that
        self._left: Home | None = None
        self._last: int | None = None
        self._child: Executor | None = None
        self._ray_when_up: Callable[[], Executor | None] | None = None
        self._ray: Executor | None = None
        # invariant: the worker that is here or in the child, None while there is none
        self._near: int | None = None
        # invariant: what the near worker holds, oldest first
        self._held: dict[int, UnitTask] = {}
        # whether the child is to take over once it is ready; None where it could not
        self._taking_over: bool | None = False
        # invariant: those that were asked for and wait for the Ray
        self._asked: list[int] = []
        self._far: set[int] = set()
        self._since: float | None = None
        self._done: dict[int, int] = {}

    def start_worker(self, worker: int) -> None:
        if self._near is None:
            self._near = worker
            self._nearest.start_worker(worker)
            return
        self._asked.append(worker)
        if self._home is None or self._taking_over:
            self._begin_ray()

    def assign(self, worker: int, unit: int, task: UnitTask) -> None:
        if worker == self._near:
            self._held[unit] = task
            self._nearest.assign(worker, unit, task)
        elif worker in self._far and self._ray is not None:
            self._ray.assign(worker, unit, task)
        # Else it ended a unit and died before it was heard of: its loss comes behind the unit in the same events.

    def wait(self, timeout: float) -> list[Event]:
        self._look_for_ray()
        others = self._home is not None or self._asked or self._far or self._last is not None
        events = self._heard(self._nearest.wait(0.0 if self._far else min(timeout, _LISTEN_SECONDS) if others else timeout))
        if self._far:
            assert self._ray is not None
            events += self._ray.wait(0.0 if events else min(timeout, _LISTEN_SECONDS))
        if self._left is not None and self._last is not None:
            events += self._heard(self._left.wait(0.0))
        if self._home is not None and self._taking_over:
            events += self._hear_child()
        elif self._home is not None and self._taking_over is False and self._pays():
            self._grow()
        return events

    def close(self) -> None:
        for executor in (self._child, self._ray, self._home, self._left):
            if executor is not None:
                executor.close()
        self._home = self._left = self._child = self._ray = None

    @property
    def _nearest(self) -> Executor:
        """Where the near worker is, or will be."""
        return self._home or self._in_child()

    def _heard(self, events: list[Event]) -> list[Event]:
        """Follow what the near worker has to say."""
        for event in events:
            if isinstance(event, UnitEnded):
                task = self._held.pop(event.unit, None)
                self._done[event.unit] = self._done.get(event.unit, 0) if task is None else task.unit.rows
                if event.unit == self._last and self._left is not None:
                    self._last = None
                    self._left.leave()
            elif isinstance(event, UnitGoesOn):
                self._done[event.unit] = event.rows
            elif isinstance(event, WorkerReady) and self._since is None:
                self._since = self._clock()
            elif isinstance(event, StartFailed | WorkerLost):
                self._near = None  # the next one that is started takes its place
                self._held.clear()
        return events

    def _pays(self) -> bool:
        """Tell whether the rest takes the worker here longer than a Ray to start."""
        if self._since is None:
            return False
        behind, seconds = sum(self._done.values()), self._clock() - self._since
        if seconds < _TRIAL_SECONDS:
            return False
        if not behind:  # the first batch is on the way
            return seconds > RAY_SECONDS / 2 and len(self._held) > 1
        if behind >= self._rows:  # rows that nobody had announced
            return len(self._held) > 1 and seconds > 2 * RAY_SECONDS
        rest = self._rows - behind - self._left_of_running
        return rest * seconds > RAY_PAYS_SECONDS * behind

    @property
    def _running(self) -> int | None:
        """The unit that the worker is at: of those that it holds, the one that is furthest, else the oldest."""
        return max(self._held, key=lambda unit: self._done.get(unit, 0), default=None)

    @property
    def _left_of_running(self) -> int:
        """The rows of that unit that are to be scored; no other worker takes them."""
        unit = self._running
        return 0 if unit is None else self._held[unit].unit.rows - self._done.get(unit, 0)

    def _grow(self) -> None:
        """Make a child process, and have a Ray started if there are workers that wait for one."""
        assert self._near is not None
        self._taking_over = True
        self._in_child().start_worker(self._near)
        self._begin_ray()

    def _hear_child(self) -> list[Event]:
        """Hand over to the child if it is ready; one that can't start is given up, since the worker here goes on."""
        child, told = self._in_child(), []
        for event in child.wait(0.0):
            if isinstance(event, StartFailed | WorkerLost):
                child.close()
                self._child, self._taking_over = None, None
            elif isinstance(event, WorkerReady):
                told += self._hand_over(child)
            else:
                told.append(event)
        return told

    def _hand_over(self, child: Executor) -> list[Event]:
        """Give the child what the worker here holds but for the unit that it is at; what that one had to say so far."""
        assert self._home is not None
        home, self._home, self._left = self._home, None, self._home
        ended = self._heard(home.wait(0.0))
        self._last = self._running
        for unit, task in self._held.items():
            if unit != self._last and self._near is not None:
                home.drop(unit)
                child.assign(self._near, unit, task)
        if self._last is None:
            home.leave()
        return ended

    def _in_child(self) -> Executor:
        if self._child is None:
            self._child = self._make_child()
        return self._child

    def _begin_ray(self) -> None:
        if self._asked and self._ray_when_up is None:
            self._ray_when_up = self._make_ray()

    def _look_for_ray(self) -> None:
        if self._ray is None and self._ray_when_up is not None:
            self._ray = self._ray_when_up()
        if self._ray is not None:
            for worker in self._asked:
                self._ray.start_worker(worker)
            self._far.update(self._asked)
            self._asked.clear()


class Processes:
    """Brings up workers and selection actors where `cluster.address` says; a connection to Ray lasts until the block ends.

    Args:
        cluster: of the query.
        reporter: told what is waited for.
    """

    def __init__(self, cluster: Cluster, reporter: Reporter) -> None:
        self._cluster, self._reporter = cluster, reporter
        self._own: OwnRay | None = None
        self._connected = False

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._own is not None:
            self._own.end(at_once=kind is not None)
        if self._connected:
            from raystream.cluster.connection import disconnect

            disconnect()

    def workers(self, job: ScoringJob, rows: int, size: int) -> tuple[Executor, int]:
        """Make an executor for so many rows and bytes, and say how many workers to keep alive in it."""
        cluster = self._cluster
        if cluster.address == "in_process":
            self._reporter.stage("Loading the model")
            return InProcess(job), 1 if cluster.workers == "auto" else cluster.workers
        own = own_ray_wanted(cluster.address)
        # What scores on a GPU has it to itself, and what a first worker here takes of it would be missing there.
        count = own_workers(cluster) if cluster.address == "auto" and own and not ray_is_here() and not runs_on_gpu(job.model) else 0
        if count:
            self._reporter.stage("Loading the model")
            return Growing(rows, size, lambda: InProcess(job), lambda: InChild(job), lambda: self._begin_ray(job)), count
        self._reporter.stage("Starting Ray workers")
        self._connect()
        from raystream.cluster.actor_pool import ActorPool
        from raystream.cluster.connection import worker_count

        return ActorPool(job, cluster), worker_count(cluster, grows=not own)

    def selection_actors(self, most: int) -> AbstractContextManager[ProcessRounds]:
        """Bring up to so many selection actors, which end with the block.

        Raises:
            ClusterError: there is no cluster, or it has no room for a single actor.
        """
        self._connect()
        from raystream.cluster.connection import worker_count
        from raystream.cluster.selection_actors import selection_actors

        return selection_actors(self._cluster, min(most, worker_count(self._cluster, on_cpu=True)))

    def _connect(self) -> None:
        """Be connected to the query's Ray; it may be a Ray of our own that starts now."""
        if own_ray_wanted(self._cluster.address):
            if self._own is None:
                self._own = OwnRay(self._cluster)
            self._own.up()
            return
        from raystream.cluster.connection import connect

        self._connected = connect(self._cluster) or self._connected

    def _begin_ray(self, job: ScoringJob) -> Callable[[], Executor | None]:
        """Begin to start a Ray of our own; what is returned gives its workers once it is up."""
        if self._own is None:
            self._own = OwnRay(self._cluster)
        own = self._own

        def when_up() -> Executor | None:
            if not own.up(0.0):
                return None
            from raystream.cluster.actor_pool import ActorPool

            return ActorPool(job, self._cluster)

        return when_up


def own_workers(cluster: Cluster) -> int:
    """Count the workers of a Ray of our own: as the query says, or as many as this machine has room for; 0: none."""
    fits = (os.cpu_count() or 1) // cluster.cpus_per_worker
    return fits if cluster.workers == "auto" else cluster.workers

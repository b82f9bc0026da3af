"""Workers as Ray actors, and the Ray that they run on.

A cluster may have no room for some of them yet: what is said then, and when they are given up.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from raystream.cluster.connection import cluster_now, draining_nodes, first_line, gpus_per_worker
from raystream.errors import ClusterError, RaystreamError
from raystream.figures import number_of
from raystream.lake.retry import in_words
from raystream.model import is_device_failure
from raystream.query import Cluster
from raystream.scoring.executor import (
    FAR_SECONDS,
    Event,
    StartFailed,
    Told,
    UnitEnded,
    UnitGoesOn,
    WorkerLeaving,
    WorkerLost,
    WorkerReady,
    now_and_then,
)
from raystream.scoring.job import ScoringJob, UnitTask
from raystream.scoring.scheduler import IN_FLIGHT
from raystream.scoring.worker import Failure, Worker, started
from raystream.store.receipts import UnitOutputs

SAY_SECONDS = 60.0
PLACING_SECONDS = 900.0
"""How long a cluster may take to find room for a first worker: one that grows by itself takes minutes to add a machine."""
ADVICE = "lower cluster.cpus_per_worker or cluster.gpus_per_worker, free some or add machines"

_log = logging.getLogger("raystream")


class Placing:
    """Follows which workers have a place.

    Args:
        needed: resource -> how much of it a worker takes.
        cluster: the nodes, as `ray.nodes()` lists them, and what of them is free, as `ray.available_resources()` has it.
        clock: seconds.
        limit: seconds for which no worker at all may have a place.
        noun: what they are called.
        advice: what may help.
    """

    def __init__(
        self,
        needed: Mapping[str, float],
        cluster: Callable[[], tuple[Sequence[Mapping[str, Any]], Mapping[str, float]]],
        clock: Callable[[], float] = time.monotonic,
        *,
        limit: float = PLACING_SECONDS,
        noun: str = "worker",
        advice: str = ADVICE,
    ) -> None:
        self._needed = {name: amount for name, amount in needed.items() if amount}
        self._cluster, self._clock, self._limit, self._noun, self._advice = cluster, clock, limit, noun, advice
        # invariant: worker -> since when it waits for a place
        self._waiting: dict[int, float] = {}
        self._placed: set[int] = set()
        self._none_since = clock()
        self._said = False

    def asked(self, worker: int) -> None:
        """Note that a worker is to be placed."""
        self._waiting[worker] = self._clock()

    def placed(self, worker: int) -> None:
        """Note that it has its place."""
        if self._waiting.pop(worker, None) is not None:
            self._placed.add(worker)
        self._said = self._said and bool(self._waiting)

    def gone(self, worker: int) -> None:
        """Note that it is lost or was ended."""
        self._waiting.pop(worker, None)
        if worker in self._placed:
            self._placed.discard(worker)
            self._none_since = self._clock()

    def check(self) -> None:
        """Say after a minute what is missing.

        Raises:
            ClusterError: no worker has a place, for longer than a cluster takes to grow.
        """
        if not self._waiting:
            return
        now, first = self._clock(), min(self._waiting.values())
        if not self._placed and now - max(first, self._none_since) >= self._limit:
            raise ClusterError(
                f"the cluster found no room for a {self._noun} of {self._size} within {in_words(self._limit)}: {self._lacking}; "
                f"{self._advice}, and run again to resume"
            )
        if not self._said and now - first >= SAY_SECONDS:
            self._said = True
            up = len(self._placed)
            rest = f"going on with {up}" if up else f"waiting, for up to {in_words(self._limit)}"
            _log.warning("the cluster has no room for %s yet: %s; %s", number_of(len(self._waiting), self._noun), self._lacking, rest)

    @property
    def _size(self) -> str:
        return " and ".join(f"{amount:g} {name}{'' if amount == 1 else 's'}" for name, amount in self._needed.items())

    @property
    def _lacking(self) -> str:
        """The resources that the cluster lacks or others hold, in words."""
        nodes, free = self._cluster()
        machines = [node["Resources"] for node in nodes if node["Alive"]]
        total = {name: sum(resources.get(name, 0.0) for resources in machines) for name in self._needed}
        short = [name for name, amount in self._needed.items() if total[name] < amount]
        if short:
            each = (f"{name}: {self._needed[name]:g} a {self._noun}, the cluster has {total[name]:g}" for name in short)
            return f"needed {'; '.join(each)}"
        if not any(all(resources.get(name, 0.0) >= amount for name, amount in self._needed.items()) for resources in machines):
            return f"none of its {number_of(len(machines), 'node')} has {self._size}"
        return f"others hold it, free are {', '.join(f'{name}: {free.get(name, 0.0):g} of {total[name]:g}' for name in self._needed)}"


_HEAR_SECONDS = 0.2
"""How long Ray may wait at a time: it looks for signals once a second, Python between its own instructions."""
_DRAINING_SECONDS = 5.0
"""Between two looks for nodes that are about to be taken away: a spot machine is told two minutes before, or half of one."""
_OUT_OF_MEMORY = ("running low on memory", "OOM kill reason")
"""What Ray says of an actor that it ended for its memory; of any that was killed it says that this may be why."""


_TELLING = "telling"
"""The concurrency group of calls that end when the actor has something to say, so that no unit waits for them."""


class _ScoringActor:
    """A worker in a process of its own."""

    def __init__(self, job: ScoringJob) -> None:
        import pyarrow as pa

        pa.set_cpu_count(job.threads)
        self._job = job
        self._worker: Worker | None = None
        self._told: queue.SimpleQueue[Any] = queue.SimpleQueue()
        logging.getLogger("raystream").addHandler(logging.handlers.QueueHandler(self._told))

    @ray.method(concurrency_group=_TELLING)  # type: ignore[untyped-decorator]
    def placed(self) -> str:
        """Name the node that the actor has a place on, once it has one."""
        node: str = ray.get_runtime_context().get_node_id()
        return node

    @ray.method(concurrency_group=_TELLING)  # type: ignore[untyped-decorator]
    def told(self) -> str | tuple[int, int]:
        """Wait for what the worker has to say to people, or how many rows of a unit are behind, once there is something.

        Ray's own logs go nowhere that people would look.
        """
        word = self._told.get()
        return word if isinstance(word, tuple) else str(word.getMessage())

    def load(self) -> RaystreamError | None:
        """Load the model; the model's own error comes back as a value."""
        try:
            self._worker = started(self._job)
        except RaystreamError as error:
            return error
        except BaseException as error:
            _end_if_device_is_lost(error)
            raise
        return None

    def score(self, unit: int, task: UnitTask) -> UnitOutputs | Failure:
        import pyarrow as pa

        assert self._worker is not None
        try:
            return self._worker.attempt(task, now_and_then(lambda rows: self._told.put((unit, rows)), FAR_SECONDS))
        except BaseException as error:
            _end_if_device_is_lost(error)
            raise
        finally:
            pa.default_memory_pool().release_unused()


def _end_if_device_is_lost(error: BaseException) -> None:
    """End a process whose device is lost, since it can't be used again: Ray starts another one in its place."""
    if is_device_failure(error):
        os._exit(70)


class ActorPool:
    """Ray actors as workers.

    Args:
        job: what they are told.
        cluster: how large each of them is.
        clock: seconds.
    """

    def __init__(self, job: ScoringJob, cluster: Cluster, clock: Callable[[], float] = time.monotonic) -> None:
        gpus = gpus_per_worker(cluster)
        needed = {"CPU": float(cluster.cpus_per_worker), "GPU": gpus}
        self._placing = Placing(needed, cluster_now, clock)
        self._job = ray.put(job)
        self._actor_class = ray.remote(concurrency_groups={_TELLING: 1})(_ScoringActor).options(
            num_cpus=cluster.cpus_per_worker,
            num_gpus=gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=IN_FLIGHT,
        )
        self._actors: dict[int, Any] = {}
        self._refs: dict[Any, tuple[int, int | None]] = {}
        # invariant: a call that says of a worker that it has its place, or what it has to tell -> the worker
        self._ears: dict[Any, int] = {}
        # invariant: those of them that wait for a place
        self._unplaced: set[Any] = set()
        self._lost: set[int] = set()
        # invariant: worker -> the node that it has its place on
        self._nodes: dict[int, str] = {}
        self._looked = clock()
        self._clock = clock

    def start_worker(self, worker: int) -> None:
        actor = self._actor_class.remote(self._job)
        self._actors[worker] = actor
        self._placing.asked(worker)
        placed = actor.placed.remote()
        self._ears[placed] = worker
        self._unplaced.add(placed)
        self._refs[actor.load.remote()] = (worker, None)

    def assign(self, worker: int, unit: int, task: UnitTask) -> None:
        actor = self._actors.get(worker)
        # A worker may end a unit and die before it is heard of: its loss comes behind the unit in the same events.
        if actor is not None:
            self._refs[actor.score.remote(unit, task)] = (worker, unit)

    def wait(self, timeout: float) -> list[Event]:
        until = time.monotonic() + timeout
        first: list[Any] = []
        try:
            while not first and (left := until - time.monotonic()) > 0:
                first, _ = ray.wait([*self._refs, *self._ears], num_returns=1, timeout=min(left, _HEAR_SECONDS))
            every = [*self._refs, *self._ears]
            ready, _ = ray.wait(every, num_returns=len(every), timeout=0) if first else ([], [])
        except RayError as error:
            raise ClusterError(f"the connection to the Ray cluster broke: {first_line(error)}; run again to resume") from error
        # Results before losses: what a worker finished before it died counts.
        events = [event for ref in ready if (event := self._event(ref) if ref in self._refs else self._heard(ref)) is not None]
        self._placing.check()
        events += self._leaving()
        return sorted(events, key=lambda event: isinstance(event, WorkerLost))

    def close(self) -> None:
        for actor in self._actors.values():
            ray.kill(actor, no_restart=True)
        self._actors.clear()
        self._refs.clear()
        self._ears.clear()
        self._unplaced.clear()

    def _leaving(self) -> list[Event]:
        """List the workers on nodes that are about to be taken away, each once."""
        if self._clock() - self._looked < _DRAINING_SECONDS or not self._nodes:
            return []
        self._looked = self._clock()
        nodes = draining_nodes()
        gone = [worker for worker, node in self._nodes.items() if node in nodes]
        for worker in gone:
            del self._nodes[worker]
        return [WorkerLeaving(worker) for worker in gone]

    def _event(self, ref: Any) -> Event | None:
        worker, unit = self._refs.pop(ref)
        try:
            outcome = ray.get(ref)
        except RayActorError as error:
            return self._died(worker, error)
        except RayError as error:
            if unit is None:
                self._end(worker)
                return StartFailed(worker, RaystreamError(first_line(error)), retry=True)
            return UnitEnded(worker, unit, Failure(RaystreamError(first_line(error)), retry=True))
        if unit is not None:
            return UnitEnded(worker, unit, outcome)
        if outcome is None:
            return WorkerReady(worker)
        return StartFailed(worker, outcome, retry=False)

    def _heard(self, ref: Any) -> Event | None:
        """Take in what a worker says beside its work: that it has a place, and now and then a sentence."""
        worker, first = self._ears.pop(ref), ref in self._unplaced
        self._unplaced.discard(ref)
        try:
            word = ray.get(ref)
        except RayError as error:
            return self._died(worker, error)
        actor = self._actors.get(worker)
        if actor is not None:
            self._ears[actor.told.remote()] = worker
        if first:
            self._placing.placed(worker)
            self._nodes[worker] = word
            return None
        return UnitGoesOn(worker, *word) if isinstance(word, tuple) else Told(worker, word)

    def _died(self, worker: int, error: Exception) -> Event | None:
        if worker in self._lost:
            return None
        self._end(worker)
        cause = RaystreamError(f"the worker died: {first_line(error)}")
        if getattr(error, "preempted", False):
            return WorkerLost(worker, cause, preempted=True)
        return WorkerLost(worker, cause, memory=any(words in str(error) for words in _OUT_OF_MEMORY))

    def _end(self, worker: int) -> None:
        """End an actor: unavailable is not dead, and one without a model still holds the device that its successor needs."""
        actor = self._actors.pop(worker, None)
        self._lost.add(worker)
        self._nodes.pop(worker, None)
        self._placing.gone(worker)
        if actor is not None:
            ray.kill(actor, no_restart=True)

"""Workers as Ray actors, and the Ray that they run on."""

from __future__ import annotations

import logging
import logging.handlers
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from raystream.engine.executor import Event, StartFailed, Told, UnitEnded, WorkerLost, WorkerReady
from raystream.engine.job import Job, Task
from raystream.engine.ray_address import check_answers
from raystream.engine.ray_placing import Placing
from raystream.engine.ray_token import own_ray_wanted
from raystream.engine.receipt import Receipt
from raystream.engine.scheduler import IN_FLIGHT
from raystream.engine.worker import Failure, Worker, started
from raystream.errors import ClusterError, RaystreamError
from raystream.model import is_device_failure
from raystream.query import Cluster

_OBJECT_STORE_BYTES = 100 << 20
"""Of a Ray of our own: nothing but receipts travels through it."""

_HEAR_SECONDS = 0.2
"""How long Ray may wait at a time: it looks for signals once a second, Python between its own instructions."""


_TELLING = "telling"
"""The concurrency group of calls that end when the actor has something to say, so that no unit waits for them."""


class _Actor:
    """A worker in a process of its own."""

    def __init__(self, job: Job) -> None:
        import pyarrow as pa

        pa.set_cpu_count(job.threads)
        self._job = job
        self._worker: Worker | None = None
        self._told: queue.SimpleQueue[Any] = queue.SimpleQueue()
        logging.getLogger("raystream").addHandler(logging.handlers.QueueHandler(self._told))

    @ray.method(concurrency_group=_TELLING)  # type: ignore[untyped-decorator]
    def placed(self) -> None:
        """Answers once the actor has a place."""

    @ray.method(concurrency_group=_TELLING)  # type: ignore[untyped-decorator]
    def told(self) -> str:
        """What the worker has to say to people, once there is something: Ray's own logs go nowhere that they would look."""
        message: str = self._told.get().getMessage()
        return message

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

    def score(self, task: Task) -> Receipt | Failure:
        import pyarrow as pa

        assert self._worker is not None
        try:
            return self._worker.attempt(task)
        except BaseException as error:
            _end_if_device_is_lost(error)
            raise
        finally:
            pa.default_memory_pool().release_unused()


def _end_if_device_is_lost(error: BaseException) -> None:
    """A process whose device is lost can't be used again: Ray starts another one in its place."""
    if is_device_failure(error):
        os._exit(70)


class OnRay:
    """Ray actors as workers.

    Args:
        job: what they are told.
        cluster: how large each of them is.
        clock: seconds.
    """

    def __init__(self, job: Job, cluster: Cluster, clock: Callable[[], float] = time.monotonic) -> None:
        gpus = _gpus_per_worker(cluster)
        needed = {"CPU": float(cluster.cpus_per_worker), "GPU": gpus}
        self._placing = Placing(needed, cluster_now, clock)
        self._job = ray.put(job)
        self._actor_class = ray.remote(concurrency_groups={_TELLING: 1})(_Actor).options(
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
        self._lost: set[int] = set()

    def start_worker(self, worker: int) -> None:
        actor = self._actor_class.remote(self._job)
        self._actors[worker] = actor
        self._placing.asked(worker)
        self._ears[actor.placed.remote()] = worker
        self._refs[actor.load.remote()] = (worker, None)

    def assign(self, worker: int, unit: int, task: Task) -> None:
        actor = self._actors.get(worker)
        # A worker may end a unit and die before it is heard of: its loss comes behind the unit in the same events.
        if actor is not None:
            self._refs[actor.score.remote(task)] = (worker, unit)

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
        return sorted(events, key=lambda event: isinstance(event, WorkerLost))

    def close(self) -> None:
        for actor in self._actors.values():
            ray.kill(actor, no_restart=True)
        self._actors.clear()
        self._refs.clear()
        self._ears.clear()

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
        """What a worker says beside its work: that it has a place, and now and then a sentence."""
        worker = self._ears.pop(ref)
        try:
            text = ray.get(ref)
        except RayError as error:
            return self._died(worker, error)
        self._placing.placed(worker)
        actor = self._actors.get(worker)
        if actor is not None:
            self._ears[actor.told.remote()] = worker
        return None if text is None else Told(worker, text)

    def _died(self, worker: int, error: Exception) -> Event | None:
        if worker in self._lost:
            return None
        self._end(worker)
        return WorkerLost(worker, RaystreamError(f"the worker died: {first_line(error)}"))

    def _end(self, worker: int) -> None:
        """Unavailable is not dead, and an actor without a model still holds the device that its successor needs."""
        actor = self._actors.pop(worker, None)
        self._lost.add(worker)
        self._placing.gone(worker)
        if actor is not None:
            ray.kill(actor, no_restart=True)


def connect(cluster: Cluster) -> bool:
    """Connect to the query's cluster, or start a Ray of our own on this machine.

    Returns:
        Whether the connection was made here, and is to be ended with `disconnect`.

    Raises:
        ClusterError: there is no cluster at the address, or it has no room for a worker.
    """
    if ray.is_initialized():
        return False
    own = own_ray_wanted(cluster.address)
    if not own:
        check_answers(cluster.address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if own:
            _start_own(cluster)
        else:
            # `auto` takes RAY_ADDRESS, which is how `ray job submit` tells a job its cluster.
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, OSError, RayError) as error:
        where = "this machine" if own else cluster.address
        raise ClusterError(
            f"no Ray cluster answers at {where}: {first_line(error)}; check cluster.address or set it to in_process"
        ) from error
    except BaseException as error:
        ray.shutdown()  # of what was begun
        if isinstance(error, SystemExit) and callable(on_sigterm):
            on_sigterm(signal.SIGTERM, None)
        raise
    finally:
        # Ray puts a handler of its own in its place, which exits without a word of ours.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)
    return True


def disconnect() -> None:
    """Leave the cluster; a Ray of our own ends with it."""
    ray.shutdown()


def worker_count(cluster: Cluster, *, on_cpu: bool = False, grows: bool = True) -> int:
    """How many workers to keep alive: as the query says, or as many as the cluster has room for now.

    A number in the query is taken at its word: a cluster that grows by itself may have no room yet.

    Args:
        cluster: how large a worker is.
        on_cpu: they use no GPU, whatever the query gives those that score.
        grows: whether the cluster may; a Ray of our own doesn't.

    Raises:
        ClusterError: not even one fits on any node.
    """
    cpus, gpus = cluster.cpus_per_worker, 0.0 if on_cpu else _gpus_per_worker(cluster)
    fits = 0
    for node in ray.nodes():
        if node["Alive"]:
            resources = node["Resources"]
            by_cpu = int(resources.get("CPU", 0) // cpus)
            fits += min(by_cpu, int(resources.get("GPU", 0) // gpus)) if gpus else by_cpu
    if not fits and (cluster.workers == "auto" or not grows):
        raise ClusterError(_no_room(cpus, gpus))
    return fits if cluster.workers == "auto" else cluster.workers


def _no_room(cpus: int, gpus: float) -> str:
    total = ray.cluster_resources()
    return (
        f"no node of the cluster has room for one worker of {cpus} CPUs and {gpus:g} GPUs "
        f"(all nodes together: {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs); "
        "lower cluster.cpus_per_worker or gpus_per_worker, or set cluster.workers if the cluster adds nodes by itself"
    )


def cluster_now() -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The nodes of the cluster that this process is connected to, and what of their resources is free."""
    return ray.nodes(), ray.available_resources()


def _gpus_per_worker(cluster: Cluster) -> float:
    if cluster.gpus_per_worker != "auto":
        return cluster.gpus_per_worker
    return 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0


def _start_own(cluster: Cluster) -> None:
    cpus = os.cpu_count() or 1
    if cluster.workers != "auto":
        cpus = max(cpus, cluster.workers * cluster.cpus_per_worker)
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=_OBJECT_STORE_BYTES,
    )


def first_line(error: BaseException) -> str:
    """What an error of Ray's says, without its stack."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

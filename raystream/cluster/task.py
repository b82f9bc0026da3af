"""Single functions as Ray tasks: one at a time, or many independent ones.

A function run once on a cluster, such as a training; where there is none, whoever asks runs it in process.

Independent pieces of work as Ray tasks: what `raystream.loop.simulation.run` does by processes of one machine.
"""

from __future__ import annotations

import pickle
import sys
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from raystream.cluster.actor_pool import PLACING_SECONDS, Placing
from raystream.cluster.address import own_ray_wanted
from raystream.cluster.connection import cluster_now, connect, disconnect, first_line, gpus_per_worker
from raystream.errors import ClusterError, RaystreamError
from raystream.query import Cluster
from raystream.scoring.job import importable_folders

_Result = TypeVar("_Result")
_RETRIES = 3
"""A machine that is taken away costs what it did; a training begins anew."""


def has_cluster(cluster: Cluster) -> bool:
    """Tell whether the query names a cluster: a Ray of its own, on this machine, has nothing that this process lacks."""
    return cluster.address != "in_process" and not own_ray_wanted(cluster.address)


def run_on_cluster(cluster: Cluster, function: Callable[..., _Result], *arguments: Any) -> _Result:
    """Run a function of a module as a task, on a GPU where the cluster has one.

    Args:
        cluster: where, and how large a worker is.
        function: of a module that the cluster's processes can import.
        arguments: travel there.

    Raises:
        RaystreamError: what the function raises.
        ClusterError: the cluster can't run it.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    from raystream.cluster.connection import connect, disconnect, first_line, gpus_per_worker

    connected = connect(cluster)
    try:
        task = ray.remote(_run).options(
            num_cpus=cluster.cpus_per_worker, num_gpus=min(1.0, gpus_per_worker(cluster)), max_retries=_RETRIES, retry_exceptions=False
        )
        result: _Result = ray.get(task.remote(importable_folders(), function, *arguments))
        return result
    except RayTaskError as error:
        if isinstance(error.cause, RaystreamError):
            raise error.cause from None
        raise ClusterError(f"a task on the cluster raised {first_line(error.cause)}; --debug shows where") from error
    except RayError as error:
        raise ClusterError(f"the cluster could not run a task: {first_line(error)}; run the same again to go on") from error
    finally:
        if connected:
            disconnect()


def _run(folders: Sequence[str], function: Callable[..., _Result], *arguments: Any) -> _Result:
    """Run it in the task: what can be imported here can be imported there, too."""
    sys.path.extend(folder for folder in folders if folder not in sys.path)
    return function(*arguments)


Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")

_LOSSES = 2
"""How often a piece is begun anew whose process was lost."""
_AHEAD = 2
"""Pieces handed out for each that the cluster has room for."""
_HEAR_SECONDS = 1.0
_ADVICE = "free some, or lower cluster.cpus_per_worker"


def each_on_cluster(
    cluster: Cluster, work: Callable[[Shared, Item], Result], shared: Shared, items: Sequence[Item], *, on_cpu: bool
) -> Iterator[tuple[Item, Result]]:
    """Yield every item with what the work makes of it, as they are done, in no particular order.

    Args:
        cluster: where, and how many processors a piece has.
        work: a function of a module.
        shared: the same for every item; each node gets it once.
        items: pieces of work.
        on_cpu: they use no GPU, whatever the cluster has.

    Raises:
        ClusterError: there is no cluster, it has no room for a piece, or one was lost three times.
        RaystreamError: what a piece raised, the first of it; nothing more is begun then.
    """
    connected = connect(cluster)
    given: dict[Any, Item] = {}
    try:
        cpus, gpus = float(cluster.cpus_per_worker), 0.0 if on_cpu else gpus_per_worker(cluster)
        needed = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
        piece = ray.remote(_piece).options(num_cpus=cpus, num_gpus=gpus, max_retries=_LOSSES, scheduling_strategy="SPREAD")
        name, given_to_all = uuid.uuid4().hex, ray.put(pickle.dumps((work, shared), protocol=5))
        placing = Placing(
            needed, cluster_now, limit=PLACING_SECONDS, noun="piece of work", advice="free some, or lower cluster.cpus_per_worker"
        )
        placing.asked(0)
        waiting, began = deque(items), False
        while waiting or given:
            while waiting and len(given) < _room(cluster):
                item = waiting.popleft()
                given[piece.remote(name, given_to_all, item, importable_folders())] = item
            done, _ = ray.wait(list(given), num_returns=1, timeout=_HEAR_SECONDS)
            for ref in done:
                yield given.pop(ref), _answer(ref)
            began = began or bool(done)
            if not began:
                placing.check()
    finally:
        for ref in given:
            ray.cancel(ref, force=True)
        if connected:
            disconnect()


def _room(cluster: Cluster) -> int:
    """Return how many pieces to hand out at a time: a cluster that grows has more room later."""
    if cluster.workers != "auto":
        return cluster.workers
    cpus = sum(node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"])
    return max(1, _AHEAD * int(cpus // cluster.cpus_per_worker))


_held: dict[str, tuple[Callable[[Any, Any], Any], Any]] = {}
"""In a process of the cluster: the last work, and what is shared, by its name."""


def _piece(name: str, given_to_all: bytes, item: Any, folders: Sequence[str]) -> Any:
    """Do a piece of the work, in a process of the cluster."""
    if name not in _held:
        sys.path.extend(folder for folder in folders if folder not in sys.path and Path(folder).exists())
        _held.clear()
        _held[name] = pickle.loads(given_to_all)
    work, shared = _held[name]
    return work(shared, item)


def _answer(ref: Any) -> Any:
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, RaystreamError):
            raise error.cause from None
        raise
    except RayError as error:
        raise ClusterError(
            f"a piece of work was lost {_LOSSES + 1} times: {first_line(error)}; run the command again to go on, or raise "
            "cluster.cpus_per_worker"
        ) from error

"""Selection actors: Ray actors that each hold a stretch of the candidates' embeddings while a batch is chosen."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from raystream.choosing.holding import Host, Lost, ProcessRounds, Step
from raystream.cluster.actor_pool import PLACING_SECONDS, Placing
from raystream.cluster.connection import cluster_now, first_line
from raystream.errors import RaystreamError
from raystream.query import Cluster

_PLACING_SECONDS = PLACING_SECONDS
_ADVICE = "free some, lower cluster.cpus_per_worker or raise select.memory"
_HEAR_SECONDS = 1.0
_GATHERING_SECONDS = 30
"""How long to wait for all actors to be placed; the choice then goes on with those that are."""


class _SelectionActor:
    """Pieces in a process of its own."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._host = Host()

    def ready(self) -> None:
        """Answer once the actor is placed."""

    def pid(self) -> int:
        """Return the id of the actor's process, for those who want to end it."""
        return os.getpid()

    def run(self, steps: Sequence[Step], *common: bytes) -> bytes:
        """Call `Host.run`; the common arguments come by themselves, for Ray looks for its objects in no list."""
        torch.set_num_threads(self._threads)
        return self._host.run([Step(step.pieces, step.method, data, step.apart) for step, data in zip(steps, common, strict=True)])


class _ActorHosts:
    """Actors as `Hosts`, spread over the nodes."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._class = ray.remote(_SelectionActor).options(
            num_cpus=cluster.cpus_per_worker, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD"
        )
        self._actors: list[Any] = []

    def __len__(self) -> int:
        return len(self._actors)

    def start(self, count: int) -> None:
        """Bring up `count` actors, or as many as find a place within half a minute.

        Raises:
            ClusterError: not even one does, for as long as a cluster takes to grow.
        """
        for _ in range(count):
            self._actors.append(self._class.remote(self._cluster.cpus_per_worker))
        refs = [actor.ready.remote() for actor in self._actors]
        placed, _ = ray.wait(refs, num_returns=count, timeout=_GATHERING_SECONDS)
        if not placed:
            placed = self._wait(refs)
        actors = dict(zip(refs, self._actors, strict=True))
        self._actors = [actor for ref, actor in actors.items() if ref in placed]
        for ref, actor in actors.items():
            if ref not in placed:
                ray.kill(actor, no_restart=True)

    def share(self, data: bytes) -> Any:
        return ray.put(data)

    def run(self, scripts: Mapping[int, Sequence[Step]]) -> dict[int, bytes | Lost]:
        refs = {place: self._submit(place, steps) for place, steps in scripts.items()}
        return {place: _outcome(ref) for place, ref in refs.items()}

    def renew(self, place: int) -> None:
        # Unavailable is not dead: a process that comes back later must not hold its memory for nobody.
        ray.kill(self._actors[place], no_restart=True)
        self._actors[place] = self._class.remote(self._cluster.cpus_per_worker)
        self._wait([self._actors[place].ready.remote()])

    def close(self) -> None:
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        self._actors.clear()

    def _submit(self, place: int, steps: Sequence[Step]) -> Any:
        told = [Step(step.pieces, step.method, None, step.apart) for step in steps]
        return self._actors[place].run.remote(told, *(step.common for step in steps))

    def _wait(self, refs: list[Any]) -> list[Any]:
        """Wait until one of the `refs` has a place, and return those that have one."""
        needed = {"CPU": float(self._cluster.cpus_per_worker)}
        placing = Placing(needed, cluster_now, limit=_PLACING_SECONDS, noun="selection actor", advice=_ADVICE)
        placing.asked(0)
        placed: list[Any] = []
        while not placed:
            placed, _ = ray.wait(refs, num_returns=1, timeout=min(_HEAR_SECONDS, _PLACING_SECONDS))
            placing.check()
        return placed


def _outcome(ref: Any) -> bytes | Lost:
    try:
        answer: bytes = ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, RaystreamError):
            raise error.cause from None
        raise
    except RayError as error:
        return Lost(first_line(error))
    return answer


@contextmanager
def selection_actors(cluster: Cluster, count: int) -> Iterator[ProcessRounds]:
    """Bring up to `count` selection actors on the Ray that this process is connected to; they end with the block."""
    places = _ActorHosts(cluster)
    try:
        places.start(count)
        yield ProcessRounds(places)
    finally:
        places.close()

"""Workers that a cluster has no room for yet: what is said of them, and when they are given up. Imports no ray."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raystream.errors import ClusterError
from raystream.figures import number_of
from raystream.lake.retry import in_words

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
        """A worker is to be placed."""
        self._waiting[worker] = self._clock()

    def placed(self, worker: int) -> None:
        """It has its place."""
        if self._waiting.pop(worker, None) is not None:
            self._placed.add(worker)
        self._said = self._said and bool(self._waiting)

    def gone(self, worker: int) -> None:
        """It is lost or was ended."""
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
        """What the cluster lacks."""
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

"""The processes of one run: workers that score, actors that hold candidates; in this process, its children, or on a Ray that is left
when the run ends.

Ray is imported when it is first needed: a query with little to score starts none.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType

from raystream.choosing.holding import ProcessRounds
from raystream.cluster.address import own_ray_wanted, ray_is_here
from raystream.cluster.growing import Growing
from raystream.cluster.own_ray import OwnRay
from raystream.model import runs_on_gpu
from raystream.query import Cluster
from raystream.scoring.child import InChild
from raystream.scoring.executor import Executor, InProcess
from raystream.scoring.job import ScoringJob
from raystream.scoring.progress import Reporter


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

"""The processes of one run: workers that score, actors that hold candidates; in this process, or on a Ray that is left when the run ends.

Ray is imported when it is first needed: a query with nothing to score starts none.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType

from raystream.choosing.holding import Rounds
from raystream.cluster.connection import own_ray_wanted, protect_own_ray
from raystream.query import Cluster
from raystream.scoring.executor import Executor, InProcess
from raystream.scoring.job import Job
from raystream.scoring.progress import Reporter

_FEW_UNITS = 2
"""Up to so many, starting a Ray takes longer than scoring them, if they aren't large."""


class Processes:
    """Brings up workers and selection actors where `cluster.address` says; a connection to Ray lasts until the block ends.

    Args:
        cluster: of the query.
        reporter: told what is waited for.
    """

    def __init__(self, cluster: Cluster, reporter: Reporter) -> None:
        self._cluster, self._reporter = cluster, reporter
        self._connected = False

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._connected:
            from raystream.cluster.connection import disconnect

            disconnect()

    def workers(self, job: Job, units: int) -> tuple[Executor, int]:
        """An executor for so many units, and how many workers to keep alive in it."""
        cluster = self._cluster
        if cluster.address == "in_process":
            self._reporter.stage("Loading the model")
            return InProcess(job), 1 if cluster.workers == "auto" else cluster.workers
        own = own_ray_wanted(cluster.address)
        hint = "; cluster.address: in_process needs none" if units <= _FEW_UNITS and own and not self._connected else ""
        self._reporter.stage(f"Starting Ray workers{hint}")
        self._connect()
        from raystream.cluster.actor_pool import ActorPool
        from raystream.cluster.connection import worker_count

        return ActorPool(job, cluster), worker_count(cluster, grows=not (self._connected and own))

    def selection_actors(self, most: int) -> AbstractContextManager[Rounds]:
        """Up to so many selection actors, which end with the block.

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
            protect_own_ray()
        from raystream.cluster.connection import connect

        self._connected = connect(self._cluster) or self._connected

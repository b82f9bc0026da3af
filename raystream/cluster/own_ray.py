"""A Ray of our own on this machine, which comes up while other work goes on."""

from __future__ import annotations

import threading

from raystream.cluster.address import protect_own_ray
from raystream.query import Cluster

_LEAVING_SECONDS = 1.0


class OwnRay:
    """Starts a Ray in a thread, and ends it there: its processes end with the thread that made them, by the kernel's hand.

    Args:
        cluster: of the query.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._settled, self._over = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        protect_own_ray()
        self._thread = threading.Thread(target=self._live, name="raystream-ray", daemon=True)
        self._thread.start()

    def up(self, timeout: float | None = None) -> bool:
        """Tell whether it is up, after so many seconds at most.

        Raises:
            ClusterError: it can't be started.
        """
        settled = self._settled.wait(timeout)
        if self._error is not None:
            raise self._error
        return settled

    def end(self, *, at_once: bool = False) -> None:
        """End it; `at_once` waits no longer than is polite, for one that is about to start and then ends by itself."""
        self._over.set()
        self._thread.join(_LEAVING_SECONDS if at_once else None)

    def _live(self) -> None:
        from raystream.cluster.connection import connect, disconnect

        made = False
        try:
            made = connect(self._cluster)
        except BaseException as error:
            self._error = error
        self._settled.set()
        self._over.wait()
        if made:
            disconnect()

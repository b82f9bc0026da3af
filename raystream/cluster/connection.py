"""The Ray that a query runs on: a cluster that is there, or one of our own on this machine.

Ray itself asks an address for over ten minutes, so whether anybody answers there is found out first.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.exceptions import RayError

from raystream.cluster.address import own_ray_wanted
from raystream.errors import ClusterError
from raystream.query import Cluster

_ANSWER_SECONDS = 10.0
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How HTTP/2 begins, which Ray speaks: the preface and an empty frame of settings, the kind of frame that also has to come back first."""
_SETTINGS = 4


def check_answers(address: str) -> None:
    """See that the cluster's port takes connections and speaks what Ray speaks; an address that names no host and port is Ray's to judge.

    Args:
        address: `cluster.address`; for `auto`, that of `RAY_ADDRESS`.

    Raises:
        ClusterError: it doesn't.
    """
    named, remedy = address, "correct cluster.address or set it to in_process"
    if address == "auto":
        named, remedy = os.environ.get("RAY_ADDRESS", ""), "correct or unset RAY_ADDRESS, or set cluster.address to in_process"
    place = _host_and_port(named)
    if place is None:
        return
    try:
        _greet(place)
    except OSError as error:
        reason = f"nothing within {_ANSWER_SECONDS:.0f} s" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise ClusterError(f"no Ray cluster answers at {named}: {reason}; see that it runs and lets this machine in, {remedy}") from error


def _greet(place: tuple[str, int]) -> None:
    with socket.create_connection(place, timeout=_ANSWER_SECONDS) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return  # what is behind it, its certificates decide
        connection.sendall(_GREETING)
        frame = b""
        while len(frame) < 4 and (more := connection.recv(4 - len(frame))):
            frame += more
    if len(frame) < 4 or frame[3] != _SETTINGS:
        raise ConnectionError("what listens there is not Ray (its dashboard has a port of its own)")


def _host_and_port(address: str) -> tuple[str, int] | None:
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    return None if parts.scheme != "ray" or host is None or port is None else (host, port)


_OBJECT_STORE_BYTES = 100 << 20
"""Of a Ray of our own: nothing but receipts travels through it."""


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
    """Count the workers to keep alive: as many as the query says, or as the cluster has room for now.

    A number in the query is taken at its word: a cluster that grows by itself may have no room yet.

    Args:
        cluster: how large a worker is.
        on_cpu: they use no GPU, whatever the query gives those that score.
        grows: whether the cluster may; a Ray of our own doesn't.

    Raises:
        ClusterError: not even one fits on any node.
    """
    cpus, gpus = cluster.cpus_per_worker, 0.0 if on_cpu else gpus_per_worker(cluster)
    fits = 0
    for node in ray.nodes():
        if node["Alive"]:
            resources = node["Resources"]
            by_cpu = _times(resources.get("CPU", 0), cpus)
            fits += min(by_cpu, _times(resources.get("GPU", 0), gpus)) if gpus else by_cpu
    if not fits and (cluster.workers == "auto" or not grows):
        raise ClusterError(_no_room(cpus, gpus))
    return fits if cluster.workers == "auto" else cluster.workers


def _times(there: float, each: float) -> int:
    """Count how often a share goes into what is there: a tenth ten times into one, whatever binary fractions say."""
    return int(there / each + 1e-9)


def _no_room(cpus: int, gpus: float) -> str:
    total = ray.cluster_resources()
    return (
        f"no node of the cluster has room for one worker of {cpus} CPUs and {gpus:g} GPUs "
        f"(all nodes together: {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs); "
        "lower cluster.cpus_per_worker or gpus_per_worker, or set cluster.workers if the cluster adds nodes by itself"
    )


def cluster_now() -> tuple[list[dict[str, Any]], dict[str, float]]:
    """List the nodes of the cluster that this process is connected to, and what of their resources is free."""
    return ray.nodes(), ray.available_resources()


def draining_nodes() -> set[str]:
    """Return the ids of the nodes that are about to be taken away; none where the cluster doesn't say."""
    from ray._private.state import state

    try:
        return set(state.get_draining_nodes())
    except Exception:  # Ray's own interior, and a head that is away: what is lost then is a warning
        return set()


def gpus_per_worker(cluster: Cluster) -> float:
    """Return the GPUs of a worker, or the share of one: as the query says, or one where the cluster has any."""
    if cluster.gpus_per_worker != "auto":
        return cluster.gpus_per_worker
    return 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0


def _start_own(cluster: Cluster) -> None:
    cpus = os.cpu_count() or 1
    if cluster.workers != "auto":
        cpus = max(cpus, cluster.workers * cluster.cpus_per_worker)
    logging.getLogger("ray").setLevel(logging.ERROR)  # as `logging_level`, which comes too late for what is said of threads
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=_OBJECT_STORE_BYTES,
    )


def first_line(error: BaseException) -> str:
    """Return what an error of Ray's says, without its stack."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

"""A function run once on a cluster, such as a training; where there is none, whoever asks runs it in process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from raystream.cluster.address import own_ray_wanted
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

"""Workers on machines that are about to be taken away, and what Ray says of those that it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import ray
from scored import planned

import raystream as rs
from raystream.cluster.actor_pool import ActorPool
from raystream.query import Cluster
from raystream.scoring.executor import WorkerReady

MakeQuery = Callable[..., rs.Query]


@pytest.mark.usefixtures("own_ray")
def test_workers_on_a_node_that_is_drained_are_told_of_once(make_query: MakeQuery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes are looked at every few seconds by the clock that is given; a worker of another node stays."""
    from raystream.cluster import actor_pool
    from raystream.scoring.executor import WorkerLeaving

    asked, _ = planned(make_query())
    asked.store.put("token", b"")
    now, draining = [0.0], set[str]()
    monkeypatch.setattr(actor_pool, "draining_nodes", lambda: draining)
    executor = ActorPool(replace(asked.job, token="token"), Cluster(), lambda: now[0])
    try:
        executor.start_worker(0)
        while executor.wait(1.0) != [WorkerReady(0)]:
            pass
        draining.add("another")
        now[0] += 10.0
        assert executor.wait(0.01) == []
        draining.add(ray.get_runtime_context().get_node_id())
        assert executor.wait(0.01) == []  # too early to look again
        now[0] += 10.0
        assert executor.wait(0.01) == [WorkerLeaving(0)]
        now[0] += 10.0
        assert executor.wait(0.01) == []
    finally:
        executor.close()


@pytest.mark.usefixtures("own_ray")
def test_no_node_of_this_ray_is_drained() -> None:
    """What Ray's own interior says of it is understood."""
    from ray._private.state import state

    from raystream.cluster.connection import draining_nodes

    assert state.get_draining_nodes() == {}
    assert draining_nodes() == set()


def test_what_ray_says_of_memory_and_of_machines_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """An actor that Ray ended for its memory; one that died anyhow, of which Ray says that memory may be why; one on a spot machine."""
    from ray.exceptions import ActorDiedError

    from raystream.cluster import actor_pool

    def event(text: str, preempted: bool = False) -> object:
        pool = ActorPool.__new__(ActorPool)
        pool._lost = set()
        monkeypatch.setattr(pool, "_end", lambda worker: None)
        error = ActorDiedError()
        error.error_msg, error._preempted = text, preempted
        return pool._died(0, error)

    maybe = "Some common causes include: (1) the process was killed by the OOM killer due to high memory usage, (2) ray stop --force"
    ended = "Memory on the node was 31.2GB / 32GB; 1 worker(s) were killed due to the node running low on memory."
    for text, preempted, memory in ((maybe, False, False), (ended, False, True), (maybe, True, False)):
        lost = event(text, preempted)
        assert isinstance(lost, actor_pool.WorkerLost)
        assert (lost.memory, lost.preempted) == (memory, preempted)

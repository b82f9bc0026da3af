"""Functions run once on a cluster: trainings."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
from campaigns import history, simulated, write_pool

from raystream import ActiveLearningLoop
from raystream.cluster.task import has_cluster, run_on_cluster
from raystream.errors import ClusterError, ModelError
from raystream.model.source import find
from raystream.query import Cluster

pytestmark = pytest.mark.slow


def test_which_query_names_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address, or `auto` with one in the environment; in process, or a Ray of this machine's own, is none."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert not has_cluster(Cluster(address="in_process"))
    assert not has_cluster(Cluster())
    assert has_cluster(Cluster(address="10.0.0.1:6379"))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert has_cluster(Cluster())


@pytest.mark.usefixtures("own_ray")
def test_errors_come_back_as_they_are() -> None:
    """Errors of ours with their kind; others as the cluster's, with what they said."""
    with pytest.raises(ModelError, match="there is no module 'nowhere'"):
        run_on_cluster(Cluster(), find, "nowhere:net", "model.source")
    with pytest.raises(ClusterError, match="invalid literal for int"):
        run_on_cluster(Cluster(), int, "seven")


@pytest.mark.usefixtures("own_ray")
def test_a_loop_trained_on_a_cluster_is_that_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same history, warm starts and committees included."""
    write_pool(tmp_path)
    asked = {"loop__rounds": 2, "loop__warm_start": True, "loop__committee": 2}
    alone = simulated(tmp_path, **asked)
    ActiveLearningLoop(alone).step()
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    there = simulated(tmp_path, store__uri=str(tmp_path / "there"), cluster={"address": "auto", "workers": 1}, **asked)
    assert ActiveLearningLoop(there).step().state == "finished"
    assert history(there) == history(alone)

"""Ray: the same selection as in process, workers that die, a query that is killed and run again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from commands import Command
from pools import logits_and_embeddings, pool_table
from ray_head import BIN, RayHead
from scored import planned

import raystream as rs
from raystream.cluster.actor_pool import ActorPool
from raystream.errors import ClusterError
from raystream.query import Cluster
from raystream.scoring.executor import WorkerReady

MakeQuery = Callable[..., rs.Query]


@pytest.mark.usefixtures("own_ray")
@pytest.mark.parametrize("workers", [1, 2])
def test_ray_chooses_what_one_process_chooses(make_query: MakeQuery, workers: int) -> None:
    """The same rows in the same order, in process and on 1 or 2 actors."""
    alone = rs.run(make_query(store__uri="alone"))
    on_ray = rs.run(make_query(store__uri="ray", cluster={"workers": workers}))
    assert on_ray.manifest.units_scored == 4
    assert on_ray.selection.equals(alone.selection)
    assert on_ray.query == alone.query


@pytest.mark.usefixtures("own_ray")
def test_a_temperature_is_fitted_on_actors(make_query: MakeQuery, workplace: Path) -> None:
    """The calibration rows are scored by the query's own kind of workers: the same fit and the same rows as in process."""
    table = pool_table(300, start=5000)
    labels = logits_and_embeddings(table)[0].argmax(1).numpy().copy()
    labels[::3] = 0  # not all right, or there is no best temperature
    pq.write_table(table.append_column("y", pa.array(labels)), workplace / "labels.parquet")
    asked = {"model__temperature": "labels.parquet", "pool__label": "y"}
    alone = rs.run(make_query(store__uri="alone", **asked))
    on_ray = rs.run(make_query(store__uri="ray", cluster={"workers": 2}, **asked))
    assert on_ray.query == alone.query
    assert on_ray.selection.equals(alone.selection)
    assert on_ray.manifest.calibration is not None
    assert alone.manifest.calibration is not None
    assert on_ray.manifest.calibration.temperature == alone.manifest.calibration.temperature


@pytest.mark.usefixtures("own_ray")
def test_a_worker_that_dies_costs_only_its_units(make_query: MakeQuery, workplace: Path) -> None:
    """A worker that kills itself once is replaced, the unit is scored again, and the selection is the same."""
    alone = rs.run(make_query(store__uri="alone"))
    with (workplace / "user_nets.py").open("a") as source:
        source.write(
            "\n\nclass Dying(nn.Sequential):\n"
            "    def forward(self, x):\n"
            "        import os, pathlib\n"
            f"        flag = pathlib.Path({str(workplace / 'died')!r})\n"
            "        if not flag.exists():\n"
            "            flag.touch()\n"
            "            os._exit(1)\n"
            "        return super().forward(x)\n\n\n"
            "def dying():\n"
            "    return Dying(*net())\n"
        )
    result = rs.run(make_query(store__uri="ray", model__source="user_nets:dying", cluster={"workers": 1}))
    assert result.selection.equals(alone.selection)
    events = [json.loads(line) for line in (result.folder / "workers.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events].count("WorkerLost") == 1


@pytest.mark.usefixtures("own_ray")
def test_a_unit_that_kills_its_worker_three_times_is_poison(make_query: MakeQuery, workplace: Path) -> None:
    """The rest is scored and kept, and the error names the unit; under `skip` the rest is chosen from."""
    with (workplace / "user_nets.py").open("a") as source:
        source.write(
            "\n\nclass Deadly(nn.Sequential):\n"
            "    def forward(self, x):\n"
            "        if (x[:, 0] == 99).any():\n"
            "            import os\n"
            "            os._exit(1)\n"
            "        return super().forward(x)\n\n\n"
            "def deadly():\n"
            "    return Deadly(*net())\n"
        )
    import numpy as np
    import pyarrow.parquet as pq
    from pools import vectors

    path = workplace / "pool" / "year=2021" / "part.parquet"
    table = pq.read_table(path, partitioning=None)
    x = np.stack(table.column("x").to_pylist())
    x[5, 0] = 99
    pq.write_table(table.set_column(1, "x", vectors(x)), path, row_group_size=64)
    query = make_query(model__source="user_nets:deadly", cluster={"workers": 2})
    with pytest.raises(rs.errors.UnitsFailed, match=r"1 of 4 units failed three times: .*year=2021/part.parquet#rg0-4") as failed:
        rs.run(query)
    assert failed.value.exit_code == 4
    assert len(list((workplace / "runs").rglob("scores-*.receipt.json"))) == 3
    skipped = rs.run(make_query(model__source="user_nets:deadly", cluster={"workers": 2}, on_error="skip", max_quarantined=0.25))
    assert skipped.manifest.counts.scored == 900
    assert skipped.manifest.units_reused == 3


@pytest.mark.usefixtures("own_ray")
def test_a_unit_for_a_worker_that_has_just_died_waits_for_its_loss(make_query: MakeQuery) -> None:
    """A worker ends a unit and dies at once: the next unit may be assigned to it before its loss is told, and nothing breaks."""
    asked, plan = planned(make_query())
    asked.store.put("token", b"")
    job = replace(asked.job, token="token")
    executor = ActorPool(job, Cluster())
    executor.start_worker(0)
    while not (events := executor.wait(1.0)):
        pass
    assert events == [WorkerReady(0)]
    executor._end(0)
    executor.assign(0, 0, plan.missing[0])
    assert executor._refs == {}
    executor.close()


@pytest.mark.usefixtures("own_ray")
def test_a_model_that_cannot_load_says_so_once(make_query: MakeQuery) -> None:
    """The model's own error comes back from the actor, not Ray's."""
    with pytest.raises(rs.errors.ModelError, match="did you mean 'net'"):
        rs.run(make_query(model__source="user_nets:nett", cluster={"workers": 1}))


@pytest.mark.usefixtures("own_ray")
def test_a_cluster_without_room_is_an_error(make_query: MakeQuery) -> None:
    """More CPUs a worker than any node has: exit 5 and what to change."""
    with pytest.raises(ClusterError, match=r"no node of the cluster has room for one worker of 512 CPUs.*cluster.cpus_per_worker"):
        rs.run(make_query(cluster={"cpus_per_worker": 512}))


@pytest.mark.usefixtures("own_ray")
def test_actors_are_gone_after_a_query(make_query: MakeQuery) -> None:
    """A query on somebody's Ray leaves no actor behind."""
    rs.run(make_query(cluster={"workers": 2}))
    assert ray.is_initialized()
    assert all(actor["state"] == "DEAD" for actor in ray.util.state.list_actors()) if hasattr(ray.util, "state") else True


def slow_query(folder: Path, store: str, address: str) -> Path:
    """A query whose model takes a moment for each batch, so that there is something to interrupt."""
    with (folder / "user_nets.py").open("a") as source:
        source.write(
            "\n\nclass Slow(nn.Sequential):\n"
            "    def forward(self, x):\n"
            "        import time\n"
            "        time.sleep(0.02)\n"
            "        return super().forward(x)\n\n\n"
            "def slow():\n"
            "    return Slow(*net())\n"
        )
    spec = {
        "pool": {"uri": "pool", "id": "rid", "inputs": ["x"]},
        "model": {"source": "user_nets:slow", "batch_size": 32},
        "select": {"budget": 12},
        "cluster": {"address": address, "workers": 1},
        "store": {"uri": store},
    }
    path = folder / f"{store}.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("address", ["auto", "in_process"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_query_goes_on_where_it_stopped(workplace: Path, make_query: MakeQuery, how: signal.Signals, address: str) -> None:
    """Killed after the first units, run again: the same selection as undisturbed, and no unit scored twice but those in flight."""
    undisturbed = rs.run(make_query(store__uri="undisturbed"))
    spec = slow_query(workplace, "killed", address)
    command = Command(workplace, "query", str(spec), "--no-report")
    command.wait_for_receipts(workplace / "killed", 1)
    command.process.send_signal(how)
    code, _, error = command.wait()
    assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[how], error
    assert "Traceback" not in error
    if how != signal.SIGKILL:
        assert "run the same command again" in error
    scored = len(list((workplace / "killed").rglob("embeddings-*.receipt.json")))
    assert 1 <= scored < 4
    assert not list((workplace / "killed").rglob("manifest.json"))
    code, output, error = Command(workplace, "query", str(spec), "--no-report", "--json").wait()
    assert code == 0, error
    summary = json.loads(output)
    assert summary["units_reused"] >= scored
    assert summary["units_scored"] == 4 - summary["units_reused"]
    import pyarrow.parquet as pq

    assert pq.read_table(summary["selection"]).equals(undisturbed.selection)


@pytest.mark.slow
def test_a_submitted_job_chooses_the_same(workplace: Path, make_query: MakeQuery) -> None:
    """`ray job submit` runs a query on a head that the test started, and stops by its process id.

    As jobs/query.py and as the README's line; submitted again, it scores nothing; with a store that would go with the job, it fails.
    """
    root = Path(__file__).parents[2]
    alone = rs.run(make_query(store__uri="alone"))
    spec = yaml.safe_load(make_query(store__uri=str(workplace / "job-store")).to_yaml())
    spec["cluster"] = {"workers": 1}
    spec["pool"]["uri"] = str(workplace / "pool")
    (workplace / "query.yaml").write_text(yaml.safe_dump(spec))
    (workplace / "job.py").write_text((root / "jobs" / "query.py").read_text())
    with RayHead(26379, cpus=2) as head:

        def submit(*command: str) -> subprocess.CompletedProcess[str]:
            line = [BIN / "ray", "job", "submit", "--address", head.address, "--working-dir", ".", "--", *command]
            for _ in range(10):
                done = subprocess.run(line, cwd=workplace, env=head.environment, capture_output=True, text=True, timeout=180)
                # The head hears of its own agent a moment after the agent answers.
                if "No available agent" not in done.stderr:
                    break
                psutil.Process().cpu_percent(interval=1)
            return done

        def summary(*command: str) -> dict[str, object]:
            done = submit(*command, "query.yaml", "--json", "--no-report")
            assert done.returncode == 0, done.stdout + done.stderr
            [line] = [line for line in done.stdout.splitlines() if line.startswith("{")]
            found: dict[str, object] = json.loads(line)
            return found

        first = summary(sys.executable, "job.py")
        assert pq.read_table(first["selection"]).equals(alone.selection)
        assert first["units_scored"] == 4
        again = summary("raystream", "query")
        assert (again["new"], again["units_scored"], again["selection"]) == (False, 0, first["selection"])
        failed = submit("raystream", "query", "query.yaml", "--store", "runs")
        assert failed.returncode == 1  # Ray's own, for a command that ended with 2
        assert "store.uri runs is relative, but in a job of a cluster" in failed.stdout
        assert "exit code 2" in failed.stdout

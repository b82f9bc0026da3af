"""Jobs on heads that the test starts: once however often they are submitted, a lost node, a head that is started anew."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from ray_head import RayHead, can_be_apart

import raystream as rs

MakeQuery = Callable[..., rs.Query]


@pytest.fixture
def gate(workplace: Path) -> Path:
    """A pipe at which each worker waits in its second unit while nobody holds the other end."""
    path = workplace / "gate"
    os.mkfifo(path)
    with (workplace / "user_nets.py").open("a") as source:
        source.write(
            "\n\nclass Gated(nn.Sequential):\n"
            "    batches = 0\n"
            "    def forward(self, x):\n"
            "        self.batches += 1\n"
            "        if self.batches > 15:\n"
            f"            open({str(path)!r}).close()\n"
            "        return super().forward(x)\n\n\n"
            "def gated():\n"
            "    return Gated(*net())\n"
        )
    return path


@contextmanager
def opened(gate: Path) -> Iterator[None]:
    """Whoever waits at the gate, or comes to it, goes on."""
    descriptor = os.open(gate, os.O_RDWR)
    try:
        yield
    finally:
        os.close(descriptor)


class Commands:
    """`raystream` beside a cluster."""

    def __init__(self, folder: Path, head: RayHead) -> None:
        self._folder, self._head = folder, head

    def __call__(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "raystream.cli", *arguments],
            cwd=self._folder, env=self._head.environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout, done.stderr

    def json(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self(*arguments, "--json", code=code)[0])
        return found

    def job(self, command: str, *arguments: str, code: int = 0) -> dict[str, Any]:
        return self.json(command, *arguments, "--address", self._head.address, code=code)

    def until(self, what: Callable[[], bool]) -> None:
        for _ in range(600):
            if what():
                return
            psutil.Process().cpu_percent(interval=0.5)
        raise AssertionError("it did not come to pass")


@pytest.mark.slow
def test_jobs_on_a_cluster_of_three_nodes(
    workplace: Path, make_query: MakeQuery, gate: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Submitted twice, it is one job; its node is lost in the middle, and it chooses the same rows.

    Then another one is stopped, goes on, and is fetched; and the head is started anew, while the store knows what was.
    """
    alone = rs.run(make_query(store__uri="alone"))
    out = tmp_path_factory.mktemp("out")  # what lay in the working directory would make another job of it
    store = workplace / "lake-store"
    spec = yaml.safe_load(make_query(store__uri=str(store), model__source="user_nets:gated").to_yaml())
    spec |= {"cluster": {"workers": 2}, "pool": spec["pool"] | {"uri": str(workplace / "pool")}}
    (workplace / "query.yaml").write_text(yaml.safe_dump(spec))

    def scored() -> int:
        return len(list(store.rglob("embeddings-*.receipt.json")))

    with RayHead(27379, cpus=0) as head:
        run = Commands(workplace, head)
        nodes = [head.add_node(1), head.add_node(1)]
        message = run("submit", "query.yaml", "--address", head.address, "--set", "cluster.workers=auto", "--cpus", "2", code=5)[1]
        assert "room for the job's driver, which needs 2 CPUs" in message
        assert "with 1 CPUs, 0 GPUs" in message

        first = run.job("submit", "query.yaml", "--cpus", "0")
        again = run.job("submit", "query.yaml", "--cpus", "0")
        assert (first["new"], again["new"], again["job"]) == (True, False, first["job"])
        run.until(lambda: scored() >= 2)
        run.until(lambda: (run.job("status", first["job"])["run"] or {}).get("units_done") is not None)
        told = run.job("status", first["job"])
        assert (told["state"], told["run"]["state"], told["run"]["units"], told["run"]["rows"]) == ("running", "running", 4, 1200)
        assert "there is nothing to fetch yet" in run("fetch", first["job"], "--out", "out", "--address", head.address, code=5)[1]
        head.end(nodes[0])
        again = run.job("submit", "query.yaml", "--cpus", "0")
        assert (again["new"], again["job"]) == (False, first["job"])
        with opened(gate):
            run("logs", first["job"], "--follow", "--address", head.address)
        assert run.job("status", first["job"])["state"] == "done"
        fetched = run.job("fetch", first["job"], "--out", str(out))
        assert {Path(file).name for file in fetched["files"]} >= {"selection.parquet", "manifest.json", "report.html"}
        assert pq.read_table(out / "selection.parquet").equals(alone.selection)
        assert '"selection"' in run("logs", first["job"], "--address", head.address)[0]

        other = ["query.yaml", "--cpus", "0", "--set", "model.batch_size=30", "--set", "cluster.workers=1"]
        second = run.job("submit", *other)
        run.until(lambda: scored() >= 5)
        assert run.job("stop", second["job"])["state"] == "stopped"
        message = run("fetch", second["job"], "--out", "out", "--address", head.address, code=5)[1]
        assert "was stopped, so there is nothing to fetch" in message
        state = run.json("status", second["job"], "--store", str(store))
        assert (state["run"]["state"], state["run"]["exit_code"]) == ("stopped", None)
        with opened(gate):
            third = run.job("submit", *other, "--wait")
        assert third["job"] == second["job"].removesuffix("-0") + "-1"
        assert third["result"]["units_reused"] >= 1

        head.end_all()
        assert "no job server answers" in run("status", first["job"], "--address", head.address, code=5)[1]
        assert run.json("status", first["job"], "--store", str(store))["run"]["state"] == "committed"
        head.start()
        assert "knows no job" in run("logs", first["job"], "--address", head.address, code=2)[1]
        again = run.job("submit", "query.yaml", "--cpus", "0", "--wait")
        assert (again["job"], again["new"], again["result"]["new"]) == (first["job"], True, False)
        assert pq.read_table(again["result"]["selection"]).equals(alone.selection)


def submittable(place: Path, workplace: Path, make_query: MakeQuery) -> Callable[[], dict[str, bytes]]:
    """What is to be submitted lies in this folder; the receipts of its store, by path."""
    store = workplace / "lake-store"
    spec = yaml.safe_load(make_query(store__uri=str(store), model__source="user_nets:gated").to_yaml())
    spec |= {"cluster": {"workers": 2}, "pool": spec["pool"] | {"uri": str(workplace / "pool")}}
    (place / "query.yaml").write_text(yaml.safe_dump(spec))
    (place / "user_nets.py").write_text((workplace / "user_nets.py").read_text())
    return lambda: {str(path): path.read_bytes() for path in store.rglob("*.receipt.json")}


@pytest.mark.slow
@pytest.mark.parametrize("kept", [False, True], ids=["in memory", "on disk"])
def test_a_head_that_is_started_anew_under_a_job(
    workplace: Path, make_query: MakeQuery, gate: Path, tmp_path_factory: pytest.TempPathFactory, kept: bool
) -> None:
    """It is gone in the middle, with the job, whatever it keeps; the same command goes on: the same rows, and nothing twice."""
    alone = rs.run(make_query(store__uri="alone"))
    place = tmp_path_factory.mktemp("work")
    receipts = submittable(place, workplace, make_query)

    with RayHead(27479, cpus=2, keeps="disk" if kept else None) as head:
        run = Commands(place, head)
        first = run.job("submit", "query.yaml", "--cpus", "0")
        run.until(lambda: len(receipts()) >= 4)  # two units, each with its scores and embeddings
        run.until(lambda: (run.job("status", first["job"])["run"] or {}).get("units_done") == 2)
        before = receipts()
        head.end_all()
        assert "no job server answers" in run("status", first["job"], "--address", head.address, code=5)[1]
        head.start()
        if kept:  # such a head may take the job that it lost for one that still runs
            assert run.job("stop", first["job"])["state"] in ("stopped", "failed")
        with opened(gate):
            again = run.job("submit", "query.yaml", "--cpus", "0", "--wait")
    assert again["new"]
    assert again["job"] == (first["job"].removesuffix("-0") + "-1" if kept else first["job"])
    assert (again["result"]["units_scored"], again["result"]["units_reused"]) == (2, 2)
    assert pq.read_table(again["result"]["selection"]).equals(alone.selection)
    assert before.items() <= receipts().items()


@pytest.mark.slow
@pytest.mark.skipif(not can_be_apart(), reason="needs unshare, and to be allowed it")
@pytest.mark.parametrize(
    "keeps", ["disk", pytest.param("redis", marks=pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server"))]
)
def test_a_job_outlives_a_head_that_keeps_its_state(
    workplace: Path, make_query: MakeQuery, gate: Path, tmp_path_factory: pytest.TempPathFactory, keeps: Literal["disk", "redis"]
) -> None:
    """Its driver and its workers, on another node, wait for the new head and go on: the same rows, and no unit again."""
    alone = rs.run(make_query(store__uri="alone"))
    place = tmp_path_factory.mktemp("work")
    receipts = submittable(place, workplace, make_query)

    with RayHead(27519, cpus=0, keeps=keeps) as head:
        head.add_node(cpus=3, apart=True)
        run = Commands(place, head)
        job = run.job("submit", "query.yaml")["job"]
        run.until(lambda: len(receipts()) >= 4)
        before = receipts()
        head.end_head()
        assert "no job server answers" in run("status", job, "--address", head.address, code=5)[1]
        head.start()
        assert run.job("status", job)["state"] == "running"
        assert run.job("submit", "query.yaml") == run.job("submit", "query.yaml")
        with opened(gate):
            run.until(lambda: run.job("status", job)["state"] != "running")
        state = run.job("status", job)
        fetched = run.job("fetch", job, "--out", str(place / "out"))
    assert state["state"] == "done", state
    assert pq.read_table(place / "out" / "selection.parquet").equals(alone.selection), fetched
    assert before.items() <= receipts().items()

"""The service on Ray Serve: what `raystream serve` answers, by a replica that may be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from pools import pool_table
from ray_head import RayHead, wait_for
from served import query
from streams import arrive
from streams import run as look

import raystream
import raystream as rs
from raystream.service.client import ServiceError
from raystream.service.tokens import new_token

pytestmark = pytest.mark.usefixtures("workplace")
ROOT = Path(raystream.__file__).parents[1]
PORT = 25379


def replicas(head: RayHead) -> list[psutil.Process]:
    """The processes in which the application runs."""
    return [process for process in head.processes if " ".join(process.cmdline()).startswith("ray::ServeReplica")]


@pytest.mark.slow
def test_the_service_on_ray_serve() -> None:
    """A query by the client with its events, which runs on the same cluster; decisions; a replica killed while another query runs: the
    batches of a local run, the decisions that were given; nobody gets in without a token."""
    pytest.importorskip("ray.serve", reason="ray[serve] is not installed", exc_type=ImportError)
    arrive("a.parquet", pool_table(50))
    look()
    token, line = new_token("a", "submit", None)
    Path("tokens.txt").write_text(line)
    allowed = {"allow": ["pool"], "imports": ["user_nets:net"], "streams": ["s"]}
    Path("mine.yaml").write_text(json.dumps({"tokens": "tokens.txt", "cluster": {"workers": 1}, **allowed}))
    url = f"http://127.0.0.1:{PORT + 20}"
    with RayHead(PORT, cpus=2) as head:
        environment = head.environment | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "RAY_ADDRESS": f"127.0.0.1:{PORT}",
            "RAYSTREAM_SERVE": "mine.yaml",
        }
        for arguments in (
            ["start", f"--http-port={PORT + 20}", "--http-host=127.0.0.1"],
            ["run", "jobs.serve:app", "--non-blocking", f"--app-dir={ROOT}"],
        ):
            command = [sys.executable, "-c", "from ray.serve.scripts import cli; cli()", *arguments]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stdout + done.stderr
        wait_for(f"{url}/healthz")
        client = rs.Client(url, token)
        with pytest.raises(ServiceError, match="token"):
            rs.Client(url).submit(query())
        run = client.submit(query())
        kinds = [event["kind"] for event in client.events(run)]
        assert kinds[:3] == ["queued", "started", "named"]
        assert kinds[-1] == "committed"
        rows = [{"rid": row["rid"], "x": row["x"]} for row in pool_table(3, 500).to_pylist()]
        decided = client.decide("s", rows, "r")
        second = client.submit(query(select__budget=13))
        [replica] = replicas(head)
        replica.kill()
        replica.wait()
        results = [client.result(asked) for asked in (run, second)]
        assert client.decide("s", rows, "r") == decided
        assert [process.pid for process in replicas(head)] != [replica.pid]
    for result, budget in zip(results, (12, 13), strict=True):
        local = rs.run(rs.Query(**query(select__budget=budget), cluster={"address": "in_process"}, store={"uri": "elsewhere"}))
        assert result.selection.replace_schema_metadata(None).equals(local.selection.replace_schema_metadata(None))

"""The server as a process: begun by its command, killed, begun again; its description, kept to under fuzzing; the docs' own lines."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvicorn
from pools import pool_table
from served import Served, Server, query
from streams import arrive
from streams import run as look

import raystream
import raystream as rs
from raystream.service import edge

pytestmark = pytest.mark.usefixtures("workplace")
DOCS = Path(raystream.__file__).parents[1] / "docs" / "service.md"


@pytest.fixture
def begun() -> Iterator[Callable[[dict[str, Any]], Server]]:
    servers: list[Server] = []

    def begin(config: dict[str, Any]) -> Server:
        servers.append(Server(config))
        servers[-1].start()
        return servers[-1]

    yield begin
    for server in servers:
        server.kill()
    kill_runs()


def kill_runs() -> None:
    """End the runs that servers of this test left, and nothing else: children of this process are Ray's as well, without which it ends."""
    for process in psutil.process_iter(["cmdline", "cwd"]):
        if "raystream.service.process" in (process.info["cmdline"] or []) and process.info["cwd"] == os.getcwd():
            with suppress(psutil.NoSuchProcess):
                process.kill()


def test_what_is_no_run_is_left_alone() -> None:
    """Beside others, a Ray that other tests started: whoever is connected to one that was killed is ended a minute later."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        kill_runs()
        assert other.poll() is None
        other.communicate(b"\n")


OPEN = {"allow": ["pool"], "imports": ["user_nets:net"], "cluster": {"address": "in_process"}}


@pytest.mark.slow
def test_a_killed_server_loses_and_doubles_nothing(begun: Callable[[dict[str, Any]], Server]) -> None:
    """Six queries, the server killed twice in between, its runs left alone once and killed once: all end, each with one batch, as here."""
    server = begun({**OPEN, "limits": {"running": 2, "processes": 2}})
    client = rs.Client(server.url)
    runs = [client.submit(query(select__budget=budget)) for budget in range(2, 8)]
    while not list(Path("runs/service/runs").glob("*/query.json")):
        psutil.Process().cpu_percent(interval=0.05)
    server.kill()
    server.start()
    while len(list(Path("runs/service/runs").glob("*/ended.json"))) < 2:
        psutil.Process().cpu_percent(interval=0.05)
    kill_runs()
    server.kill()
    server.start()
    for budget, run in zip(range(2, 8), runs, strict=True):
        result = client.result(run)
        local = rs.run(rs.Query(**query(select__budget=budget), cluster={"address": "in_process"}, store={"uri": "elsewhere"}))
        assert result.selection.replace_schema_metadata(None).equals(local.selection.replace_schema_metadata(None))
    assert len(list(Path("runs/queries").glob("*/manifest.json"))) == 6
    assert not os.listdir("runs/service/open")


@pytest.mark.slow
def test_the_lines_of_the_docs_do_what_they_say(begun: Callable[[dict[str, Any]], Server]) -> None:
    """Each curl line of docs/service.md, in order, against a server of the tests' pool; the plan, too."""
    arrive("a.parquet", pool_table(50))
    look()
    server = begun({**OPEN, "streams": ["s"]})
    client = rs.Client(server.url)
    lines = [line for block in re.findall(r"```bash\n(.*?)```", DOCS.read_text(), re.DOTALL)
             for line in re.split(r"\n(?=curl)", block.replace("\\\n", " ").strip())]  # fmt: skip
    assert len(lines) == 9
    environment = {**os.environ, "URL": server.url, "TOKEN": "none"}
    for line in lines:
        if "/decide" in line:
            while client.decide("s", [{"rid": "warm", "x": [0.0] * 8}], "warm") == []:
                time.sleep(0)
        done = subprocess.run(["bash", "-c", f"set -e; {line} --fail-with-body"], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        if "Idempotency-Key" in line:
            environment["ID"] = json.loads(done.stdout)["id"]
            client.result(environment["ID"])
    assert client.plan(query())["rows"] == 1200


@pytest.mark.slow
@pytest.mark.parametrize("owner", [None, "root"])
def test_the_description_is_kept_to(owner: str | None) -> None:
    """Schemathesis over the whole of it, with and without a token: no 5xx, no answer that isn't described."""
    import schemathesis
    from hypothesis import HealthCheck, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

    served = Served()
    headers = {"authorization": f"Bearer {served.token('root')}", "host": "127.0.0.1"}
    schema = schemathesis.openapi.from_asgi("/openapi.json", served.client.app, headers=headers)
    sent = headers if owner else {"host": "127.0.0.1"}
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    count = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        count += 1
        if operation.path == "/v1/plan" and owner:
            continue  # each is a process

        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy())
        def asked(case: Any) -> None:
            case.call_and_validate(headers=sent, checks=checks)

        asked()
    assert count >= 18


def test_without_the_extra_the_command_says_what_to_install(
    cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 2, one sentence."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "uvicorn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, _, error = cli("serve")
    assert code == 2
    assert "pip install '.[service]'" in error


def test_heads_of_requests_are_bounded_whatever_else_is_installed(
    workplace: Path, cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """httptools, which uvicorn would take where it is there, has no bound."""
    found: list[uvicorn.Config] = []

    class Told:
        started = True

        def __init__(self, config: uvicorn.Config) -> None:
            found.append(config)

        def run(self) -> None:
            """Serve nothing."""

    monkeypatch.setattr(uvicorn, "Server", Told)
    monkeypatch.setattr(edge, "log_to_stderr", lambda: None)
    assert cli("serve", "--store", "runs")[0] == 0
    assert (found[0].http, found[0].h11_max_incomplete_event_size) == (edge.HttpProtocol, 64 << 10)


def test_help_imports_no_server() -> None:
    """`raystream --help` and a described query are quick."""
    code = "import sys, raystream.cli; print([name for name in ('fastapi', 'uvicorn', 'starlette', 'torch') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

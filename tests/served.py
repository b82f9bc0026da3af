"""Servers that tests ask: the application in this process, and runs that are played here, one after another."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from fastapi.testclient import TestClient

from raystream.cli.terminal import Interruption
from raystream.lake import reach
from raystream.service.app import create_app
from raystream.service.config import Config
from raystream.service.policy import Policy
from raystream.service.process import _Run
from raystream.service.runs import Runs
from raystream.service.tokens import Scope, new_token
from raystream.store.opening import open_store

HOST = "http://127.0.0.1:8700"


class Served:
    """A server with its callers.

    Attributes:
        config: what it was told.
        runs: what its store knows.
    """

    def __init__(self, **config: Any) -> None:
        self._tokens: dict[str, str] = {}
        lines = []
        owners: list[tuple[str, Scope]] = [("a", "submit"), ("b", "submit"), ("reader", "read"), ("root", "admin")]
        for owner, scope in owners:
            self._tokens[owner], line = new_token(owner, scope, None)
            lines.append(line)
        file = Path(f"tokens-{len(list(Path().glob('tokens-*')))}.txt")
        file.write_text("\n".join(lines))
        given = {"tokens": str(file), "allow": ["pool"], "imports": ["user_nets:net"], "cluster": {"address": "in_process"}}
        self.config = Config(**given | config)
        self.client = TestClient(create_app(self.config, schedules=False), base_url=HOST, raise_server_exceptions=False)
        self.runs = Runs(open_store(self.config.store.uri, self.config.store.options), self.config.limits)

    def token(self, owner: str) -> str:
        return self._tokens[owner]

    def ask(self, method: str, path: str, owner: str | None = "a", **more: Any) -> Any:
        """One request."""
        headers = {**({"authorization": f"Bearer {self._tokens[owner]}"} if owner else {}), **more.pop("headers", {})}
        return self.client.request(method, path, headers=headers, **more)

    def submit(self, owner: str = "a", **sections: Any) -> str:
        """A query, which is taken; the run's id."""
        answer = self.ask("POST", "/v1/queries", owner, json=query(**sections))
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def play(self, run: str) -> int:
        """Do what the run's own process does; its exit code."""
        with confinement():
            return _Run(run, self.config, Policy(self.config), self.runs, Interruption()).go()


class Server:
    """`raystream serve` in a process of its own, on a port of its own."""

    def __init__(self, config: dict[str, Any]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        Path("serve.yaml").write_text(json.dumps({**config, "port": self.port}))
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "raystream.cli", "serve", "--config", "serve.yaml"]
        with open("server.log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        while not self._answers():
            assert self.process.poll() is None, Path("server.log").read_text()
            psutil.Process().cpu_percent(interval=0.05)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False


@contextmanager
def confinement() -> Iterator[None]:
    """What is confined within it isn't any more behind it: real processes end instead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reach, "_places", None)
        yield


def query(**sections: Any) -> dict[str, Any]:
    """A query as a body; `section__key=value` replaces a key, None removes it."""
    spec: dict[str, Any] = {
        "pool": {"uri": "pool", "id": "rid", "inputs": ["x"]},
        "model": {"source": "user_nets:net", "batch_size": 32},
        "select": {"budget": 12},
    }
    for key, value in sections.items():
        section, _, name = key.partition("__")
        target = spec.setdefault(section, {}) if name else spec
        if value is None:
            target.pop(name or section)
        else:
            target[name or section] = value
    return spec


def told(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The events of an answer with their ids."""
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.strip().split("\n\n")]
    return [(block["id"], json.loads(block["data"])) for block in blocks]

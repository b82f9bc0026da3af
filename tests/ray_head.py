"""A Ray head, and further nodes, that a test starts on ports of its own and ends by their own process ids."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

import psutil

BIN = Path(sys.executable).parent
APART = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


def can_be_apart() -> bool:
    """Whether a node can have its processes for itself here."""
    return shutil.which(APART[0]) is not None and subprocess.run([*APART, "true"], capture_output=True).returncode == 0


class RayHead:
    """A cluster of processes of this machine, within its block.

    Args:
        port: the first of ten that it takes.
        cpus: of the head.
        keeps: where what the head knows of the cluster outlives it, on disk or in a Redis of its own; None: nowhere.

    Attributes:
        address: of its job server.
        environment: of commands that talk to it.
    """

    def __init__(self, port: int, cpus: int, keeps: Literal["disk", "redis"] | None = None) -> None:
        self._port, self._cpus = port, cpus
        self.address = f"http://127.0.0.1:{port + 1}"
        self.environment = os.environ | {"RAY_AUTH_MODE": "disabled", "PATH": f"{BIN}:{os.environ['PATH']}"}
        self._folder = tempfile.mkdtemp(prefix="rsh-", dir="/tmp")  # sockets below it have short names
        self._redis: subprocess.Popen[bytes] | None = None
        if keeps == "redis":
            self.environment |= {"RAY_REDIS_ADDRESS": f"127.0.0.1:{port + 9}"}
            options = ["--port", str(port + 9), "--bind", "127.0.0.1", "--dir", self._folder, "--save", "", "--appendonly", "yes"]
            self._redis = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
        if keeps == "disk":
            os.mkdir(f"{self._folder}/gcs")
            self.environment |= {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": f"{self._folder}/gcs"}
        self._started: list[subprocess.Popen[bytes]] = []
        self._agents = 0

    def __enter__(self) -> RayHead:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def start(self) -> None:
        """Start the head; once more, if it was ended, as on a machine that knows nothing of a cluster, though other nodes are here."""
        Path(self._folder, "ray_current_cluster").unlink(missing_ok=True)
        agent = self._agent_port()
        self._ray(
            [
                "--head",
                f"--port={self._port}",
                f"--dashboard-port={self._port + 1}",
                "--dashboard-host=127.0.0.1",
                f"--num-cpus={self._cpus}",
                f"--ray-client-server-port={self._port + 2}",
                f"--dashboard-agent-listen-port={agent}",
                f"--temp-dir={self._folder}",
            ]
        )
        wait_for(f"{self.address}/api/version")
        wait_for(f"http://127.0.0.1:{agent}/api/local_raylet_healthz")

    @property
    def processes(self) -> list[psutil.Process]:
        """All processes of the cluster."""
        nodes = [psutil.Process(node.pid) for node in self._started]
        return [*nodes, *(child for node in nodes for child in node.children(recursive=True))]

    def add_node(self, cpus: int, *, apart: bool = False) -> subprocess.Popen[bytes]:
        """A further node, once it is there; `apart`, its drivers see no process of the head's, to which they would belong otherwise."""
        agent = self._agent_port()
        options = [f"--address=127.0.0.1:{self._port}", f"--num-cpus={cpus}", f"--dashboard-agent-listen-port={agent}"]
        node = self._ray(options, APART if apart else ())
        wait_for(f"http://127.0.0.1:{agent}/api/local_raylet_healthz")
        return node

    def end(self, node: subprocess.Popen[bytes]) -> None:
        """A node is gone from one moment to the next, with all that ran on it."""
        self._started.remove(node)
        family = [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        node.wait(timeout=30)
        psutil.wait_procs(family, timeout=30)

    def end_head(self) -> None:
        """The head is gone, with all that ran on it, and no other node."""
        self.end(self._started[0])

    def end_all(self) -> None:
        """Every node, the head last."""
        for node in reversed(list(self._started)):
            self.end(node)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end_all()
        if self._redis is not None:
            self._redis.kill()
            self._redis.wait(timeout=30)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _agent_port(self) -> int:
        self._agents += 1
        return self._port + 2 + self._agents

    def _ray(self, options: list[str], within: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*within, BIN / "ray", "start", "--block", "--object-store-memory=104857600", "--disable-usage-stats", *options],
            env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._started.append(process)
        return process


def wait_for(url: str) -> None:
    """Until somebody answers there."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=2).read()
            return
        except (urllib.error.URLError, OSError):
            psutil.Process().cpu_percent(interval=0.2)
    raise AssertionError(f"{url} did not answer within two minutes")

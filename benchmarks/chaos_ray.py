"""Rounds of `chaos.py` on Ray: a cluster of this machine whose workers and nodes are taken away while it scores.

The cluster is one for all rounds; nodes that a round took are given back after it. Drivers that are to die are processes of their own.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from chaos_rounds import (
    FILES,
    WORKERS,
    Round,
    attempts,
    batch,
    first_number,
    lost_or_changed,
    make_lake,
    query,
    receipts,
)

IN_FLIGHT = 2 * WORKERS
_GRACE_SECONDS = 4.0
_LATEST_SECONDS = 60.0


class Machines:
    """A head without processors, and nodes for one worker each; a spare one stands by, so that what is lost finds another place."""

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        os.environ["RAY_DEDUP_LOGS"] = "0"
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        import ray
        from ray.cluster_utils import Cluster

        small = {"object_store_memory": 80 << 20, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
        self._nodes = [self._add() for _ in range(WORKERS + 1)]
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level="ERROR")
        self.address: str = self._cluster.address

    def _add(self) -> Any:
        return self._cluster.add_node(num_cpus=1, object_store_memory=80 << 20)

    def whole(self) -> None:
        """Give back what a round took."""
        while len(self._nodes) < WORKERS + 1:
            self._nodes.append(self._add())

    def close(self) -> None:
        """End everything that was started."""
        import ray

        ray.shutdown()
        self._cluster.shutdown()

    def take_node(self, chance: random.Random) -> None:
        """A node is gone at once, with whatever runs on it."""
        node = self._nodes.pop(chance.randrange(len(self._nodes)))
        self._cluster.remove_node(node, allow_graceful=False)

    def drain_node(self, chance: random.Random) -> None:
        """A node is told that its time is up, and goes some seconds later."""
        import ray
        from ray.core.generated import autoscaler_pb2

        node = self._nodes.pop(chance.randrange(len(self._nodes)))
        client = ray._raylet.GcsClient(address=self.address)
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        client.drain_node(node.node_id, reason, "", int((time.time() + _GRACE_SECONDS) * 1000))
        time.sleep(_GRACE_SECONDS)
        with suppress(Exception):  # Ray may have ended it by itself
            self._cluster.remove_node(node, allow_graceful=False)


class Play:
    """Rounds over one lake on one cluster."""

    def __init__(self, folder: Path, machines: Machines) -> None:
        self.folder, self.machines = folder, machines
        self.store = folder / "runs"
        self.expected: bytes = b""

    def run(self) -> int:
        """The query, in this process; its exit code."""
        import raystream as rs
        from raystream.errors import RaystreamError

        try:
            rs.run(query(self.folder, self.store, self.machines.address))
        except RaystreamError as error:
            self.said = f"{type(error).__name__}: {error}"
            return error.exit_code
        return 0

    said = ""

    def command(self) -> subprocess.Popen[bytes]:
        """The query as a command, which can be killed."""
        spec = query(self.folder, self.store, self.machines.address)
        (self.folder / "query.yaml").write_text(yaml.safe_dump(yaml.safe_load(spec.to_yaml())))
        line = [sys.executable, "-m", "raystream.cli", "query", "query.yaml", "--no-report"]
        with (self.folder / "stderr").open("w") as error:
            return subprocess.Popen(line, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=error)

    def clean(self) -> None:
        """As if nothing had been run."""
        import shutil

        shutil.rmtree(self.store, ignore_errors=True)
        for name in ("attempts", "pids", "memory", "odd", "deadly"):
            (self.folder / name).unlink(missing_ok=True)
        self.said = ""
        self.machines.whole()

    def measure(self) -> None:
        """The undisturbed batch."""
        self.clean()
        assert self.run() == 0, self.said
        found = batch(self.store)
        assert found is not None
        self.expected = found

    def pids(self) -> list[int]:
        """The processes that have loaded the model, newest first, this one aside."""
        path = self.folder / "pids"
        found = [int(line) for line in path.read_text().split()] if path.exists() else []
        return [pid for pid in dict.fromkeys(reversed(found)) if pid != os.getpid() and _alive(pid)]

    def when_some_are_scored(self, count: int, act: Callable[[], None]) -> threading.Thread:
        """Do something once so many units are scored."""

        def wait() -> None:
            until = time.monotonic() + _LATEST_SECONDS
            while len(list(self.store.glob("units/*/*/embeddings-*.receipt.json"))) < count and time.monotonic() < until:
                time.sleep(0.02)
            act()

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        return thread

    def go(self, seed: int) -> Round:
        """One round."""
        self.clean()
        chance = random.Random(seed)
        # a seed that ends in 9 plays the first fault: it was a tenth one's, and those that are kept mean what they meant
        name = list(FAULTS)[seed % 10 % len(FAULTS)]
        told = Round(seed, name)
        allowed, codes = FAULTS[name](self, chance)
        before = receipts(self.store)
        for _ in range(3):
            if batch(self.store) is not None:
                break
            codes.append(self.run())
        told.wrong = lost_or_changed(before, receipts(self.store))
        told.identical = batch(self.store) == self.expected
        told.refused = sum(code in (3, 4, 5) for code in codes)
        odd = [code for code in codes if code not in (0, -signal.SIGKILL, 3, 4, 5, 130, 143)]
        told.attempts, told.repeated = attempts(self.folder)
        if odd:
            told.wrong = told.wrong or f"exit code {odd[0]}: {self.said}"
        elif not told.identical:
            told.wrong = told.wrong or f"another batch, or none: exit codes {codes}: {self.said}"
        elif told.repeated > allowed:
            told.wrong = told.wrong or f"{told.repeated} units repeated, {allowed} were in flight"
        return told


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _struck(play: Play, chance: random.Random, act: Callable[[], None], most: int) -> tuple[int, list[int]]:
    """The query, with something happening in the middle."""
    thread = play.when_some_are_scored(chance.randrange(FILES - WORKERS), act)
    code = play.run()
    thread.join(_LATEST_SECONDS)
    return most, [code]


def _worker_killed(play: Play, chance: random.Random) -> tuple[int, list[int]]:
    return _struck(play, chance, lambda: _kill(play.pids()[:1]), IN_FLIGHT)


def _all_workers_killed(play: Play, chance: random.Random) -> tuple[int, list[int]]:
    return _struck(play, chance, lambda: _kill(play.pids()), 2 * IN_FLIGHT)


def _node_gone(play: Play, chance: random.Random) -> tuple[int, list[int]]:
    return _struck(play, chance, lambda: play.machines.take_node(chance), IN_FLIGHT)


def _nodes_gone(play: Play, chance: random.Random) -> tuple[int, list[int]]:
    def take() -> None:
        play.machines.take_node(chance)
        play.machines.take_node(chance)

    return _struck(play, chance, take, 2 * IN_FLIGHT)


def _node_drained(play: Play, chance: random.Random) -> tuple[int, list[int]]:
    return _struck(play, chance, lambda: play.machines.drain_node(chance), IN_FLIGHT)


def _driver_killed(play: Play, chance: random.Random, how: signal.Signals = signal.SIGKILL) -> tuple[int, list[int]]:
    driver = play.command()
    thread = play.when_some_are_scored(chance.randrange(1, FILES), lambda: driver.send_signal(how))
    code = driver.wait(2 * _LATEST_SECONDS)
    thread.join(_LATEST_SECONDS)
    if code not in (0, -how, 128 + how):
        play.said = (play.folder / "stderr").read_text()[-500:]
    return IN_FLIGHT, [code]


def _driver_stopped(play: Play, chance: random.Random) -> tuple[int, list[int]]:
    """As a job is: SIGTERM, and SIGKILL three seconds later."""
    driver = play.command()

    def stop() -> None:
        driver.terminate()
        with suppress(subprocess.TimeoutExpired):
            driver.wait(3.0)
        driver.kill()

    thread = play.when_some_are_scored(chance.randrange(1, FILES), stop)
    code = driver.wait(2 * _LATEST_SECONDS)
    thread.join(_LATEST_SECONDS)
    return IN_FLIGHT, [code]


def _no_memory(play: Play, chance: random.Random) -> tuple[int, list[int]]:
    (play.folder / "memory").write_text(repr(first_number(play.folder, chance.randrange(1, FILES))))
    return IN_FLIGHT, [play.run()]


def _poison(play: Play, chance: random.Random) -> tuple[int, list[int]]:
    """Refused with everything else scored; once the cause is mended, only that unit is left."""
    (play.folder / "deadly").write_text(repr(first_number(play.folder, chance.randrange(1, FILES))))
    code = play.run()
    (play.folder / "deadly").unlink()
    # three attempts at it, and whatever shared its worker with it the first time
    return 3 + IN_FLIGHT, [code]


FAULTS: dict[str, Callable[[Play, random.Random], tuple[int, list[int]]]] = {
    "a worker killed": _worker_killed,
    "a node gone": _node_gone,
    "the driver killed": _driver_killed,
    "all workers killed at once": _all_workers_killed,
    "a node drained, then gone": _node_drained,
    "two nodes gone at once": _nodes_gone,
    "the driver stopped as a job is": _driver_stopped,
    "memory used up": _no_memory,
    "a unit that kills its workers": _poison,
}
"""By name: plays the fault, and returns how many units may be scored again and the exit codes."""


@contextmanager
def on_ray(folder: Path) -> Iterator[Callable[[int], Round]]:
    """Plays rounds by their seeds."""
    make_lake(folder, pause=0.1)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    machines = Machines(folder)
    try:
        play = Play(folder, machines)
        play.measure()
        yield play.go
    finally:
        os.chdir("/")
        machines.close()

"""Leases: one writer at a time, and nobody waits for one that is gone."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from campaigns import history, simulated, write_pool

from raystream import ActiveLearningLoop
from raystream.store.life import LEASE_SECONDS, Lease
from raystream.store.local import LocalStore


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "store"))


def newest(store: LocalStore) -> Path:
    return store.path(f"lease/{max(store.names('lease'))}")


def test_a_second_writer_waits_and_says_so(store: LocalStore) -> None:
    """Until the first is done; it is never refused."""
    said: list[str] = []
    looks: list[float] = []
    first = Lease(store, "lease", said.append)
    first.__enter__()

    def wait(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            first.__exit__(None, None, None)

    with Lease(store, "lease", said.append, wait):
        assert len(looks) == 3
    assert len(said) == 1
    assert f"another process holds this loop (process {os.getpid()} on" in said[0]


def refuse(seconds: float) -> None:
    raise AssertionError("nobody is to be waited for")


def test_a_writer_that_is_gone_holds_nobody_up(store: LocalStore) -> None:
    """Of this machine at once: no process has its number, or one that began at another time."""
    for started in (1.0, None):
        lease = Lease(store, "lease", print)
        lease.__enter__()
        lease._ended.set()
        holder = json.loads(newest(store).read_bytes())
        newest(store).write_text(json.dumps(holder | {"started": started, **({} if started else {"process": 2**22 + 1, "started": 5.0})}))
        with Lease(store, "lease", print, refuse):
            pass


def test_a_writer_of_another_machine_is_given_half_a_minute(store: LocalStore) -> None:
    """By the store's clock, from its last sign of life on."""
    store.put("lease/00000001", json.dumps({"host": "elsewhere", "process": 1, "started": 1.0, "token": "t"}).encode())
    looks: list[float] = []

    def wait(seconds: float) -> None:
        looks.append(seconds)
        file = newest(store)
        old = file.stat().st_mtime - LEASE_SECONDS - 1
        os.utime(file, (old, old))

    with Lease(store, "lease", print, wait):
        assert len(looks) == 1


def test_of_many_that_take_over_one_is_first(store: LocalStore) -> None:
    """Each in turn; at no moment do two hold it."""
    inside, most = 0, 0
    guard = threading.Lock()

    def hold() -> None:
        nonlocal inside, most
        with Lease(store, "lease", lambda text: None, lambda seconds: threading.Event().wait(0.002)):
            with guard:
                inside += 1
                most = max(most, inside)
            with guard:
                inside -= 1

    threads = [threading.Thread(target=hold) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == (0, 1)


@pytest.mark.slow
def test_a_loop_run_twice_at_once_is_run_once(tmp_path: Path) -> None:
    """Two calls at the same time end with one history, that of a single call."""
    write_pool(tmp_path)
    single = simulated(tmp_path, store__uri=str(tmp_path / "single"), loop__rounds=2)
    ActiveLearningLoop(single).step()
    loop = simulated(tmp_path, loop__rounds=2)
    states: list[str] = []

    def run() -> None:
        states.append(ActiveLearningLoop(loop, wait=lambda seconds: threading.Event().wait(0.01)).step().state)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert states == ["finished", "finished"]
    assert history(loop) == history(single)

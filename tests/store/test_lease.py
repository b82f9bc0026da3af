"""One writer at a time: who waits, how long, and that one who is gone holds nobody up."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest

from raystream.store import lease
from raystream.store.lease import Lease
from raystream.store.opening import open_store
from raystream.store.protocol import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def newest(store: Store) -> Path:
    return Path(store.place(f"held/{store.names('held')[-1]}"))


def test_the_second_waits_until_the_first_ended_and_says_so(store: Store) -> None:
    """The first is alive, however old its lease is."""
    told: list[str] = []
    first = Lease(store, "held", told.append, what="stream")
    first.__enter__()
    waits = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            first.__exit__(None, None, None)

    with Lease(store, "held", told.append, wait, what="stream"):
        assert len(waits) == 3
    assert told == [f"another process holds this stream (process {os.getpid()} on {platform.node()}); waiting until it is done"]
    with Lease(store, "held", told.append, pytest.fail):
        assert len(told) == 1
    assert len(store.names("held")) == 2


@pytest.mark.parametrize("holder", [{"process": 2**22 + 1, "started": 1.0}, {"process": os.getpid(), "started": 1.0}, {}])
def test_a_process_of_this_machine_that_is_gone_is_not_waited_for(store: Store, holder: dict) -> None:
    """Nor one whose number another process has now, nor a lease that was cut off."""
    store.put_if_absent("held/00000007", json.dumps({"host": platform.node(), "token": "t", **holder} if holder else {}).encode())
    with Lease(store, "held", pytest.fail, pytest.fail):
        assert store.names("held") == ["00000007", "00000008"]


def test_a_process_of_another_machine_is_waited_for_while_it_gives_signs_of_life(store: Store) -> None:
    """Thirty seconds by the store's clock after the last one it is taken for gone."""
    store.put_if_absent("held/00000001", json.dumps({"host": "elsewhere", "process": 1, "started": 1.0, "token": "t"}).encode())
    told: list[str] = []

    def wait(seconds: float) -> None:
        age = os.stat(newest(store)).st_mtime - (lease.ALIVE_SECONDS + 1)
        os.utime(newest(store), (age, age))

    with Lease(store, "held", told.append, wait):
        assert len(told) == 1
        assert "process 1 on elsewhere" in told[0]

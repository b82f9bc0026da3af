"""The log of a run: numbers without gaps whoever writes, both ways of keeping it, and the state of a run by it."""

from __future__ import annotations

import json
import os
import platform
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

from raystream.errors import QueryError, StoreError
from raystream.store import events as events_module
from raystream.store.events import LOST_SECONDS, EventLog, RunState, run_state
from raystream.store.life import SignOfLife, process_began, server_time
from raystream.store.local import LocalStore
from raystream.store.opening import store_at
from raystream.store.protocol import Store

STORES = ["folder", "bucket"]


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A folder, and a bucket in this process."""
    memory = MemoryStore()
    monkeypatch.setattr("raystream.store.bucket.bucket_of", lambda uri, storage: memory)
    return store_at(str(tmp_path / "runs") if request.param == "folder" else "s3://bucket/runs")


def test_events_are_numbered_from_one_and_read_from_any(store: Store) -> None:
    """Each with its kind, its time and its facts; whoever has seen some reads the others."""
    log = EventLog(store, "queries/q")
    assert log.read() == []
    assert [log.append("planned", rows=3), log.append("progress", rows=3, rate=None), log.append("ünïcode", text="a\nb")] == [1, 2, 3]
    read = EventLog(store, "queries/q").read()
    assert [(event["n"], event["kind"]) for event in read] == [(1, "planned"), (2, "progress"), (3, "ünïcode")]
    assert read[2]["text"] == "a\nb"
    assert read[1]["rate"] is None
    assert all(event["at"].endswith("+00:00") for event in read)
    assert [event["n"] for event in log.read(after=1)] == [2, 3]
    assert log.read(after=3) == []
    assert [event["n"] for event in log.tail(2)] == [2, 3]
    assert (log.at(2) or {})["kind"] == "progress"
    assert log.at(4) is None


def test_several_writers_leave_no_gap_and_nothing_twice(store: Store) -> None:
    """Four of them at once, 25 events each, beside a reader that goes by what it has seen."""
    seen: list[int] = []
    done = threading.Event()

    def follow() -> None:
        log = EventLog(store, "queries/q")
        while not (done.is_set() and not log.read(seen[-1] if seen else 0)):
            seen.extend(event["n"] for event in log.read(seen[-1] if seen else 0))

    def write(writer: int) -> list[int]:
        log = EventLog(store, "queries/q")
        return [log.append("progress", writer=writer, count=count) for count in range(25)]

    reader = threading.Thread(target=follow)
    reader.start()
    with ThreadPoolExecutor(4) as writers:
        numbers = list(writers.map(write, range(4)))
    done.set()
    reader.join()
    assert sorted(number for own in numbers for number in own) == list(range(1, 101))
    assert seen == list(range(1, 101))
    read = EventLog(store, "queries/q").read()
    assert [event["n"] for event in read] == list(range(1, 101))
    assert {(event["writer"], event["count"]) for event in read} == {(writer, count) for writer in range(4) for count in range(25)}
    assert all(own == sorted(own) for own in numbers)


def test_a_line_that_was_cut_never_was_an_event(tmp_path: Path) -> None:
    """Its writer died: readers don't see it, and the next writer writes over it."""
    store = LocalStore(str(tmp_path))
    log, path = EventLog(store, "queries/q"), tmp_path / "queries/q/events.jsonl"
    log.append("started")
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"n": 2, "at": "x", "kind": "half')
    assert [event["n"] for event in log.read()] == [1]
    assert log.append("planned") == 2
    assert path.read_bytes().startswith(whole)
    assert [event["kind"] for event in log.read()] == ["started", "planned"]


def test_lines_that_are_no_events_and_long_ones(tmp_path: Path) -> None:
    """What is damaged is passed over; the last number is found behind events longer than what is read at once."""
    store = LocalStore(str(tmp_path))
    log = EventLog(store, "queries/q")
    log.append("failed", error="x" * (3 * events_module._WINDOW))
    with (tmp_path / "queries/q/events.jsonl").open("ab") as file:
        file.write(b'{"time": 1.0, "event": "UnitEnded"}\n\xff\xfe\n' + b"[1]\n" * events_module._WINDOW)
    assert log.append("stopped") == 2
    assert [event["n"] for event in log.read()] == [1, 2]


def test_a_log_that_was_copied_to_the_other_kind_of_store_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a folder to a bucket and back: all events are read, and numbers go on."""
    memory = MemoryStore()
    monkeypatch.setattr("raystream.store.bucket.bucket_of", lambda uri, storage: memory)
    local, bucket = store_at(str(tmp_path / "a")), store_at("s3://bucket/runs")
    assert [EventLog(local, "q").append(kind) for kind in ("a", "b")] == [1, 2]
    bucket.put("q/events.jsonl", local.read("q/events.jsonl"))
    assert [EventLog(bucket, "q").append(kind) for kind in ("c", "d")] == [3, 4]
    assert [event["kind"] for event in EventLog(bucket, "q").read()] == ["a", "b", "c", "d"]
    assert [event["kind"] for event in EventLog(bucket, "q").read(after=1)] == ["b", "c", "d"]
    assert [event["kind"] for event in EventLog(bucket, "q").read(after=3)] == ["d"]
    assert [event["kind"] for event in EventLog(bucket, "q").tail(3)] == ["b", "c", "d"]
    back = store_at(str(tmp_path / "b"))
    for entry in bucket.walk("q"):
        back.put(entry.name, bucket.read(entry.name))
    assert EventLog(back, "q").append("e") == 5
    assert [event["n"] for event in EventLog(back, "q").read()] == [1, 2, 3, 4, 5]


def test_what_cant_be_written_is_an_error_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file stands where the folder is to be; the lock of a writer that hangs is waited for, not for ever."""
    (tmp_path / "queries").write_text("")
    with pytest.raises(StoreError, match=r"queries/q/events\.jsonl can't be written"):
        EventLog(LocalStore(str(tmp_path)), "queries/q").append("started")
    log = EventLog(LocalStore(str(tmp_path)), "other")
    log.append("started")
    now = [0.0]
    monkeypatch.setattr(events_module, "_clock", lambda: now[0])
    monkeypatch.setattr(events_module, "_pause", lambda seconds: now.__setitem__(0, now[0] + 1.0))
    with (tmp_path / "other/events.jsonl").open("rb") as file:
        events_module._lock(file.fileno())
        with pytest.raises(StoreError, match=r"other/events\.jsonl can't be written"):
            log.append("planned")
    assert log.append("planned") == 2


class Runs:
    """Runs of one query, written as their drivers write them."""

    def __init__(self, store: Store) -> None:
        self.store, self.log = store, EventLog(store, "queries/q")

    def start(self, host: str = "elsewhere", process: int = 1, began: float | None = 1.0) -> int:
        return self.log.append("started", host=host, process=process, process_began=began, who="ada")

    def say(self, run: int, kind: str, **facts: Any) -> None:
        self.log.append(kind, run=run, **facts)

    def state(self, now: float | None = None) -> RunState:
        return run_state(self.store, "q", now)


PLANNED = {"rows": 100, "units": 10, "rows_todo": 60, "units_todo": 6}
PROGRESS = {"rows": 100, "rows_done": 70, "units": 10, "units_done": 7, "rate": 2.5, "seconds_left": 12.0, "workers": 3}


def test_the_states_of_a_run(store: Store) -> None:
    """Figures come from the newest event that has them; a run that gives no signs of life has stopped, and so has one that was stopped."""
    with pytest.raises(QueryError, match="has no run of query q; see --store"):
        run_state(store, "q")
    runs = Runs(store)
    with SignOfLife() as life:
        life.begin(store, "queries/q")
        run = runs.start()
        assert (runs.state().state, runs.state().who, runs.state().rows) == ("running", "ada", None)
        runs.say(run, "planned", **PLANNED)
        assert (runs.state().rows, runs.state().rows_done, runs.state().units, runs.state().units_done) == (100, 40, 10, 4)
        runs.say(run, "progress", **PROGRESS)
        found = runs.state()
        assert (found.state, found.rows_done, found.units_done, found.rate, found.seconds_left) == ("running", 70, 7, 2.5, 12.0)
        assert found.started_at == runs.log.read()[0]["at"]
        assert found.changed_at == runs.log.read()[-1]["at"]
        now = server_time(store)
        assert runs.state(now + LOST_SECONDS - 5).state == "running"
        lost = runs.state(now + LOST_SECONDS + 5)
        assert (lost.state, lost.rows_done, lost.rate, lost.ended) == ("stopped", 70, None, True)
    assert runs.state().state == "stopped"
    runs.say(run, "failed", error="a fault", exit_code=4)
    found = runs.state()
    assert (found.state, found.error, found.exit_code, found.rows_done) == ("failed", "a fault", 4, 70)
    again = runs.start()
    runs.say(again, "stopped")
    assert (runs.state().state, runs.state().error) == ("stopped", None)
    runs.log.append("queued", who="eve")
    assert (runs.state().state, runs.state().who) == ("queued", "eve")
    store.put("queries/q/manifest.json", b"damaged")
    assert runs.state() == RunState("q", "committed")
    runs.say(runs.start(), "committed")
    assert (runs.state().state, runs.state().who) == ("committed", "ada")


def test_of_two_runs_at_once_the_one_that_goes_on_counts(store: Store) -> None:
    """One fails, the other goes on; it, too, is found behind many events of its own."""
    runs = Runs(store)
    with SignOfLife() as life:
        life.begin(store, "queries/q")
        first, second = runs.start(), runs.start()
        runs.say(first, "planned", **PLANNED)
        runs.say(second, "planned", **PLANNED)
        runs.say(first, "failed", error="x", exit_code=3)
        assert (runs.state().state, runs.state().error) == ("running", None)
        for done in range(40):
            runs.say(second, "progress", **PROGRESS | {"rows_done": done})
        assert (runs.state().state, runs.state().rows_done, runs.state().who) == ("running", 39, "ada")


def test_a_driver_of_this_machine_that_is_gone_has_stopped_at_once(store: Store) -> None:
    """By its process, whose number another one may have by now; its last sign of life is young."""
    runs, here = Runs(store), platform.node()
    with SignOfLife() as life:
        life.begin(store, "queries/q")
        began = process_began(os.getpid())
        runs.start(here, os.getpid(), began)
        assert runs.state().state == "running"
        runs.start(here, os.getpid(), (began or 0) - 100)
        assert runs.state().state == "running"  # the first one does
        runs.say(1, "stopped")
        assert runs.state().state == "stopped"


def test_runs_of_older_stores_have_a_state_without_figures(store: Store) -> None:
    """A folder without events: by signs of life."""
    store.put("queries/q/plan.parquet", b"")
    assert run_state(store, "q") == RunState("q", "stopped")
    with SignOfLife() as life:
        life.begin(store, "queries/q")
        assert run_state(store, "q") == RunState("q", "running")
        assert json.loads(json.dumps(run_state(store, "q").summary()))["state"] == "running"


def test_an_event_that_cant_be_written_leaves_no_gap(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is one written over that was written after all, when its writer had given it up."""
    log = EventLog(store, "queries/q")
    assert log.append("one") == 1
    real, fails = store.put_if_absent, [False, True]

    def put(name: str, data: bytes, **options: Any) -> bool:
        if fails and name.startswith("queries/q/events/"):
            if fails.pop():
                real(name, data)
            raise StoreError("the store is away")
        return real(name, data, **options)

    monkeypatch.setattr(store, "put_if_absent", put)
    if store.remote:
        for kind in ("two", "lost"):
            with pytest.raises(StoreError):
                log.append(kind)
        assert log.append("three") == 3
        kinds = ["one", "two", "three"]
    else:
        assert log.append("two") == 2
        kinds = ["one", "two"]
    assert [(event["n"], event["kind"]) for event in log.read()] == list(enumerate(kinds, 1))

"""A stream that is killed at any of its writes, or at random, and run again decides as one that never was."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Command
from pools import pool_table
from streams import NOW, arrive, decisions, make_stream, run

import raystream as rs
from raystream.loop.streams import looks as stream_looks
from raystream.loop.streams.log import StreamLog
from raystream.store import life as lease
from raystream.store.local import LocalStore

PART_ROWS, KILLS = 300, 200

pytestmark = pytest.mark.usefixtures("workplace")


class Killed(BaseException):
    """As if the process were gone: nothing catches it."""


class Kill:
    """Ends the program at the n-th write of the stream's own files, before or after it, and lets it write nothing more."""

    def __init__(self, patched: pytest.MonkeyPatch, at: int, before: bool) -> None:
        self.writes, self._at, self._before = 0, at, before
        for name in ("put_if_absent", "put"):
            patched.setattr(LocalStore, name, self._ending(getattr(LocalStore, name)))
        patched.setattr(lease, "process_began", lambda process: float(at) + before / 2)  # each call is a process of its own

    def _ending(self, write: Callable[..., object]) -> Callable[..., object]:
        def written(store: LocalStore, name: str, *arguments: object, **options: object) -> object:
            beats = threading.current_thread() is not threading.main_thread()  # of the lease, now and then, on a slow machine
            if beats or "/token-" in name or "/needs-" in name or not name.startswith("streams/"):
                return write(store, name, *arguments, **options)
            self.writes += 1
            if self.writes > self._at or (self.writes == self._at and self._before):
                raise Killed
            result = write(store, name, *arguments, **options)
            if self.writes == self._at:
                raise Killed
            return result

        return written


def looks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes]]:
    """Two looks of several files of decisions each; the files of the store that they leave, with their contents."""
    monkeypatch.setattr(stream_looks, "PART_ROWS", 40)
    stream = make_stream(stream={"budget": 0.2, "name": "s", "manager": "density"}, select={"near_duplicates": 0.9})
    for name, start in (("a", 0), ("b", 50)):
        arrive(f"{name}.parquet", pool_table(50, start), rows_in_group=32)
    run(stream)
    arrive("c.parquet", pool_table(50, 100), NOW - 10)
    run(stream)
    return [(path.name, path.read_bytes()) for path in sorted(Path("runs/streams/s").rglob("*.parquet"))]


def go_on_after(monkeypatch: pytest.MonkeyPatch, at: int, before: bool) -> tuple[bool, list[tuple[str, bytes]]]:
    """The two looks, ended at a write, and then from the beginning again; whether they were ended at all, and what is there then."""
    shutil.rmtree("runs/streams")
    Path("lake/c.parquet").unlink()
    ended = False
    with monkeypatch.context() as patched:
        kill = Kill(patched, at, before)
        try:
            looks(monkeypatch)
        except Killed:
            ended = True
            assert kill.writes >= at
    monkeypatch.setattr(lease, "process_began", lambda process: -1.0)
    return ended, looks(monkeypatch)


def test_killed_at_some_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the arrivals, a claim, a state, and decisions: the same arrivals and decisions, byte by byte, in as many files."""
    expected = looks(monkeypatch)
    assert len(expected) == 2 + 3 + 2
    for at in (3, 4, 5, 6, 9):
        assert go_on_after(monkeypatch, at, before=False) == (True, expected), at


def test_two_that_write_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a machine that stood still for longer than a lease lasts: here one that had other weights, so that decisions differ.

    Those of the one that wrote first stand, and the other goes on from there.
    """
    monkeypatch.setattr(stream_looks, "PART_ROWS", 40)
    for name, start in (("a", 0), ("b", 50)):
        arrive(f"{name}.parquet", pool_table(50, start))
    commit, others = StreamLog.commit_decisions, []

    def overtaken(log: StreamLog, *arguments: Any) -> Any:
        if not others:
            others.append(None)
            monkeypatch.setattr(lease, "process_began", lambda process: -1.0)  # the first is taken for gone
            others[0] = run(make_stream(model__args={"hidden": 8}))
            arrive("c.parquet", pool_table(50, 100), NOW - 10)
        return commit(log, *arguments)

    monkeypatch.setattr(StreamLog, "commit_decisions", overtaken)
    first = run()
    assert (others[0].new_rows, first.new_rows, first.seen) == (100, 0, 100)
    assert run().new_rows == 50
    found = decisions()
    assert found.column("rid").to_pylist() == pool_table(150).column("rid").to_pylist()
    assert found.column("epoch").to_pylist() == [1] * 100 + [2] * 50
    used = rs.StreamSampler(budget=0.2)
    chosen = used.decide(found.column("score").slice(0, 100)).tolist()
    used.forget_scores()
    assert found.column("chosen").to_pylist() == chosen + used.decide(found.column("score").slice(100)).tolist()


@pytest.mark.slow
def test_killed_at_any_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it and after it."""
    expected = looks(monkeypatch)
    points = 0
    while go_on_after(monkeypatch, points + 1, before=True) == (True, expected):
        points += 1
        assert go_on_after(monkeypatch, points, before=False) == (True, expected), points
    assert points > 15
    assert go_on_after(monkeypatch, points + 1, before=True) == (False, expected)


def run_in(folder: str) -> None:
    """A call of the stream in a process of its own."""
    os.chdir(folder)
    sys.path.insert(0, folder)
    stream_looks.PART_ROWS = PART_ROWS
    run(make_stream(model__batch_size=16))


def kill_until_done(folder: Path, kills: int, seed: int) -> Iterator[None]:
    """By SIGKILL at random moments, again and again; yields whenever the stream came to an end all the same, so that it can begin anew."""
    context, rng = multiprocessing.get_context("forkserver"), random.Random(seed)
    context.set_forkserver_preload(["raystream.loop.streams.run", "streams"])
    longest = 3.0
    while kills:
        process = context.Process(target=run_in, args=(str(folder),))
        began = time.monotonic()
        process.start()
        process.join(rng.uniform(0.0, longest))
        if process.is_alive():
            process.kill()
            process.join()
            kills -= 1
        else:
            assert process.exitcode == 0
            longest = time.monotonic() - began
            yield


def decided() -> list[tuple[str, bytes]]:
    """The files of decisions as readers see them; what a process leaves that is killed while it writes one has a hidden name."""
    return [(path.name, path.read_bytes()) for path in sorted(Path("runs/streams/s/decisions").glob("[!.]*"))]


@pytest.mark.slow
def test_killed_at_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decisions are those of an undisturbed run, file by file."""
    for i in range(12):
        arrive(f"{i % 5}/{i}.parquet", pool_table(200, 200 * i), NOW - 60 + i % 7, rows_in_group=50)
    monkeypatch.setattr(stream_looks, "PART_ROWS", PART_ROWS)
    run(make_stream(model__batch_size=16))
    expected = decided()
    assert len(expected) == 8
    shutil.rmtree("runs")
    ends = 0
    for _ in kill_until_done(tmp_path, kills=KILLS, seed=0):
        assert decided() == expected
        shutil.rmtree("runs")
        ends += 1
    assert ends


@pytest.mark.slow
def test_followed_until_it_is_asked_to_end(tmp_path: Path) -> None:
    """Files are decided on as they come; SIGTERM ends it in order, with 143, and the next call goes on."""
    Path("lake").mkdir()
    stream = make_stream(pool__uri=str(tmp_path / "lake"), store={"uri": str(tmp_path / "runs")}, stream__follow=0.1)
    Path("s.yaml").write_text(stream.to_yaml())
    here = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    first = Command(tmp_path, "stream", "s.yaml")
    arrive("a.parquet", pool_table(30), NOW - 10**9)
    first.wait_until_it_says("Look 1: 1 file, 30 rows")
    arrive("b.parquet", pool_table(20, 30), NOW - 10**9)
    first.wait_until_it_says("Look 2: 1 file, 20 rows")
    second = Command(tmp_path / "pool", "stream", "../s.yaml", "--set", "stream.follow=0", "--json", environment=here)
    second.wait_until_it_says("another process holds this stream (process")
    first.process.send_signal(signal.SIGTERM)
    code, _, told = first.wait()
    assert (code, "run the same command again to go on" in told) == (143, True)
    code, out, told = second.wait()
    assert code == 0, told
    assert json.loads(out)["seen"] == 50

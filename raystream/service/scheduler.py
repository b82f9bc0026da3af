"""Starts the runs that wait: one server of a store does so at a time, by lease, in turns between owners.

Runs are processes of their own, which outlive the server that started them. What one left when it was killed, it or another finds in the
queue: a run that nobody holds is started again, and goes on where it was.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from raystream.errors import RaystreamError
from raystream.service.config import Config
from raystream.service.edge import Metrics
from raystream.service.process import ProcessTask
from raystream.service.runs import ROOT, QueueEntry, Runs
from raystream.store.life import Lease

_PAUSE = 0.5
_PAUSE_REMOTE = 3.0
_log = logging.getLogger("raystream.service")


def next_run(
    queue: Sequence[QueueEntry], running: Mapping[str, Collection[str]], turns: Mapping[str, int], most_each: int, most: int
) -> QueueEntry | None:
    """Choose the run that is to be started next, if any.

    Whoever has the fewest running comes first, of these whose last turn is the longest ago, of these who asked first.

    Args:
        queue: runs that haven't ended, the oldest first.
        running: who wants it, for each run that is under way.
        turns: the number of each owner's last turn.
        most_each: an owner's runs at a time.
        most: all runs at a time.
    """
    if len(running) >= most:
        return None
    busy = Counter(owner for owners in running.values() for owner in owners)
    waits = [entry for entry in queue if entry.run not in running and busy[entry.owner] < most_each]
    return min(waits, key=lambda entry: (busy[entry.owner], turns.get(entry.owner, 0), entry.since, entry.run), default=None)


class RunScheduler:
    """Starts runs, in a thread of its own once `start` is called.

    Args:
        runs: of the store.
        config: the server's.
        metrics: told of each start.
        spawn: starts a process for a task; left out, one of this Python.
        also: called once in each round while this server is the one that schedules.
    """

    def __init__(
        self,
        runs: Runs,
        config: Config,
        metrics: Metrics,
        spawn: Callable[[ProcessTask], subprocess.Popen[bytes]] | None = None,
        also: Callable[[], object] = lambda: None,
    ) -> None:
        self._runs, self._config, self._metrics, self._also = runs, config, metrics, also
        self._spawn = spawn or spawned
        self._given = config.model_dump(mode="json")
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._turns: dict[str, int] = {}
        self._turn = 0
        self._ended, self._woken = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._go, name="raystream-scheduler", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Look at once: something was submitted."""
        self._woken.set()

    def stop(self) -> None:
        """End; the runs go on."""
        self._ended.set()
        self._woken.set()
        self._thread.join(10)

    def step(self) -> None:
        """Play one round: note what ended, start what may run."""
        self._reap()
        queue, running = self._look()
        while (entry := next_run(queue, running, self._turns, self._config.limits.running, self._config.limits.processes)) is not None:
            self._turn += 1
            self._turns[entry.owner] = self._turn
            self._children[entry.run] = self._spawn(ProcessTask("run", self._given, entry.run))
            self._metrics.add("raystream_runs_started_total")
            running[entry.run] = {other.owner for other in queue if other.run == entry.run}
        self._also()

    def _reap(self) -> None:
        for run, child in list(self._children.items()):
            code = child.poll()
            if code is None:
                continue
            del self._children[run]
            if self._runs.ended(run) is None and code not in (-signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGINT):
                self._runs.died(run, f"signal {-code}" if code < 0 else f"exit code {code}")

    def _look(self) -> tuple[list[QueueEntry], dict[str, set[str]]]:
        """Return the queue, without what has ended, and what of it is under way."""
        queue: list[QueueEntry] = []
        running: dict[str, set[str]] = {}
        known: dict[str, str] = {}
        for entry in self._runs.queue():
            state = known.get(entry.run)
            if state is None:
                state = known[entry.run] = self._state(entry.run)
            if state == "ended":
                continue
            queue.append(entry)
            if state == "running":
                running.setdefault(entry.run, set()).add(entry.owner)
        return queue, running

    def _state(self, run: str) -> str:
        runs = self._runs
        if runs.ended(run) is not None:
            runs.leave_queue(run)
            return "ended"
        if run in self._children or runs.is_held(run):
            return "running"
        if runs.stops(run):
            runs.end(run, "stopped", query=runs.query(run))
            return "ended"
        return "waits" if runs.order(run) is not None else "ended"

    def _go(self) -> None:
        pause = _PAUSE_REMOTE if self._runs.store.remote else _PAUSE
        while not self._ended.is_set():
            try:
                with Lease(self._runs.store, f"{ROOT}/scheduler", _log.info, self._waited, what="queue"):
                    while not self._ended.is_set():
                        self._woken.clear()
                        self.step()
                        self._woken.wait(pause)
            except _ServerEnds:
                return
            except RaystreamError as error:
                _log.warning("the queue can't be served for now: %s", error)
                self._ended.wait(pause)
            except Exception:
                _log.exception("a defect of raystream's in the queue")
                self._ended.wait(pause)

    def _waited(self, seconds: float) -> None:
        if self._ended.wait(seconds):
            raise _ServerEnds


class _ServerEnds(Exception):
    """The server ends while it waits for its turn to schedule."""


def spawned(task: ProcessTask, *, answers: bool = False) -> subprocess.Popen[bytes]:
    """Start a process for a task, in a session of its own, so that what ends the server doesn't end it.

    Args:
        task: what to do.
        answers: whether its stdout is read.
    """
    folder = str(Path(__file__).parents[2])
    inherited = [path for path in (folder, os.environ.get("PYTHONPATH", "")) if path]
    child = subprocess.Popen(
        # -P: no module of the current folder's comes before the standard library's, whatever it is called
        [sys.executable, "-P", "-m", "raystream.service.process"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(inherited)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if answers else subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # a pipe to a server that died would end it
        start_new_session=True,
    )
    assert child.stdin is not None
    with child.stdin as pipe:
        pipe.write(task.json)
    child.stdin = None  # else `communicate` would write to it
    return child

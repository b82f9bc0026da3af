"""Workers in child processes of this one: what a worker dies of ends it alone, as an actor, and takes no Ray.

A child is told its job and its units by a pipe, and runs `InProcess` behind it. It ends when the other end of the pipe does.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import pyarrow as pa

from raystream.errors import RaystreamError
from raystream.imports import keep_pandas_out
from raystream.scoring.executor import Event, InProcess, StartFailed, Told, WorkerLost, all_events
from raystream.scoring.job import ScoringJob, UnitTask

_FOREVER = 3600.0
_LOOK_SECONDS = 0.5
_MEMORY_EVENTS = Path("/sys/fs/cgroup/memory.events")


class InChild:
    """Workers as child processes, each with its own interpreter."""

    def __init__(self, job: ScoringJob) -> None:
        self._job = job
        self._events: queue.Queue[Event] = queue.Queue()
        self._children: dict[int, tuple[subprocess.Popen[bytes], Connection]] = {}
        self._listeners: list[threading.Thread] = []
        self._closed = False
        self._out_of_memory = _kills_for_memory()

    def start_worker(self, worker: int) -> None:
        here, there = Pipe()
        folder = str(Path(__file__).parents[2])
        threads = str(self._job.threads)
        process = subprocess.Popen(
            # -P: no module of the current folder's comes before the standard library's, whatever it is called
            [sys.executable, "-P", "-m", __name__, str(there.fileno())],
            pass_fds=[there.fileno()],
            env={"OMP_NUM_THREADS": threads} | os.environ | {"PYTHONPATH": os.pathsep.join([folder, *_inherited()])},
            stdin=subprocess.DEVNULL,
            stdout=2,  # the result alone goes to stdout
            start_new_session=True,  # Ctrl-C is for the driver, which ends its children
        )
        there.close()
        self._children[worker] = process, here
        listener = threading.Thread(target=self._listen, args=(worker, process, here), name="raystream-child", daemon=True)
        self._listeners.append(listener)
        listener.start()
        _send(here, self._job)

    def assign(self, worker: int, unit: int, task: UnitTask) -> None:
        _send(self._children[worker][1], (unit, task))

    def wait(self, timeout: float) -> list[Event]:
        return all_events(self._events, timeout)

    def close(self) -> None:
        self._closed = True
        for process, _ in self._children.values():
            process.kill()
        for listener in self._listeners:
            listener.join()
        self._children.clear()

    def _listen(self, worker: int, process: subprocess.Popen[bytes], connection: Connection) -> None:
        with connection, suppress(EOFError, OSError):
            # What the user's code has forked may hold the pipe open when the child is dead.
            while connection.poll(_LOOK_SECONDS) or process.poll() is None:
                if connection.poll():
                    self._events.put(replace(connection.recv(), worker=worker))
        code = process.wait()
        if not self._closed:
            before, self._out_of_memory = self._out_of_memory, _kills_for_memory()
            memory = code == -signal.SIGKILL and self._out_of_memory > before
            self._events.put(WorkerLost(worker, RaystreamError(f"the worker died: {_how(code)}"), memory=memory))


def _kills_for_memory() -> int:
    """Count how often the kernel has ended a process of this container for its memory; 0 where it doesn't say."""
    try:
        words = _MEMORY_EVENTS.read_text().split()
    except OSError:
        return 0
    return int(dict(zip(words[::2], words[1::2], strict=False)).get("oom_kill", "0"))


def _inherited() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def _send(connection: Connection, message: object) -> None:
    with suppress(OSError):  # if it is dead, its listener hears
        connection.send(message)


def _how(code: int) -> str:
    if code >= 0:
        return f"it ended with exit code {code}"
    try:
        return f"it was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"it was ended by signal {-code}"


class _Telling(logging.Handler):
    """Passes on what is logged as `raystream`'s: where a child prints, nobody looks."""

    def __init__(self, answers: _ReplyChannel) -> None:
        super().__init__(logging.INFO)
        self._answers = answers

    def emit(self, record: logging.LogRecord) -> None:
        self._answers.send(Told(0, record.getMessage()))


class _ReplyChannel:
    """The way back, for several threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._guard = connection, threading.Lock()

    def send(self, event: Event) -> None:
        if isinstance(event, StartFailed) and not isinstance(event.error, RaystreamError):
            # what the user's code raises need not survive the way
            event = replace(event, error=RaystreamError(f"workers can't start: {type(event.error).__name__}: {event.error}"))
        with self._guard:
            self._connection.send(event)


def _serve(connection: Connection) -> None:
    """Score what comes by the pipe until it ends."""
    os.set_inheritable(connection.fileno(), False)
    answers = _ReplyChannel(connection)
    try:
        job: ScoringJob = connection.recv()
        pa.set_cpu_count(job.threads)
        logging.getLogger("raystream").addHandler(_Telling(answers))
        executor = InProcess(job)
        threading.Thread(target=_answer, args=(executor, answers), name="raystream-answers", daemon=True).start()
        executor.start_worker(0)
        while True:
            executor.assign(0, *connection.recv())
    except (EOFError, OSError):
        os._exit(0)  # the driver is gone, and with it whoever wants what is on the way


def _answer(executor: InProcess, answers: _ReplyChannel) -> None:
    try:
        while True:
            for event in executor.wait(_FOREVER):
                answers.send(event)
    except OSError:
        os._exit(0)


if __name__ == "__main__":
    keep_pandas_out()
    _serve(Connection(int(sys.argv[1])))

"""Writes what becomes of a query's run into its log, beside the run: no run waits for its events, nor fails where none can be written."""

from __future__ import annotations

import getpass
import os
import platform
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from raystream.errors import RaystreamError, StoreError
from raystream.lake.retry import is_ending
from raystream.scoring.plan import ResolvedQuery, ScoringPlan
from raystream.scoring.progress import Reporter, ScoringProgress
from raystream.store.events import EventLog
from raystream.store.jobs import note_job
from raystream.store.life import process_began
from raystream.store.protocol import Store

LEAST_SECONDS, MOST_SECONDS = 5.0, 30.0
"""Between two events of progress: a hundredth of the time that the run has taken so far, within these; the last unit has one at once."""
_ENDING_SECONDS = 10.0
_ERROR_CHARACTERS = 4000
THREAD = "raystream-events"


@dataclass(frozen=True)
class _Asker:
    who: str | None = None
    job: str | None = None


_asker: ContextVar[_Asker] = ContextVar("asker", default=_Asker())  # noqa: B039 - it is frozen


@contextmanager
def asked_by(who: str | None, job: str | None = None) -> Iterator[None]:
    """Have the runs within the block say who asked for them.

    Args:
        who: None or nothing: the user that this process belongs to.
        job: the cluster's job that they run in, if they do.
    """
    token = _asker.set(_Asker(who, job))
    try:
        yield
    finally:
        _asker.reset(token)


class RunLog:
    """The log of one run, which hears its progress as a `Reporter` does; the end of its block ends the run.

    Args:
        reporter: told everything as well.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._log: EventLog | None = None
        self._thread = threading.Thread(target=self._write, name=THREAD, daemon=True)
        self._events: queue.SimpleQueue[tuple[str, dict[str, Any]] | None] = queue.SimpleQueue()
        self._began = self._last = 0.0
        # invariant: rows and units that were there before the run
        self._reused = (0, 0)
        # invariant: units done, and in all, when progress was last written
        self._done = (0, 0)
        self._ended = False

    def begin(self, store: Store, folder: str) -> None:
        """Note that the run is one of the query that this folder of the store is of."""
        self._log = EventLog(store, folder)
        self._began = time.monotonic()
        process = os.getpid()
        self._say("started", host=platform.node(), process=process, process_began=process_began(process), who=_asker.get().who or _user())
        self._thread.start()

    def asked(self, query: ResolvedQuery) -> None:
        """Note that the run is one of this query, whether or not anything is left to do; a job says so to whoever asks for the job."""
        if _asker.get().job is not None:
            with suppress(StoreError):
                note_job(query.store, _asker.get().job or "", query.name)

    def planned(self, plan: ScoringPlan) -> None:
        """Note what the pool is made of, and what is to be scored of it."""
        rows = plan.units.rows
        todo = rows[plan.to_compute]
        self._reused = (int(rows.sum() - todo.sum()), len(rows) - len(todo))
        self._say("planned", rows=int(rows.sum()), units=len(rows), rows_todo=int(todo.sum()), units_todo=len(todo))

    def end(self, kind: str, **facts: Any) -> None:
        """Note that the run came to its end: `committed` or `scored`."""
        self._ended = True
        self._say(kind, **facts)

    # as a reporter

    def stage(self, text: str) -> None:
        self._reporter.stage(text)

    def units(self, progress: ScoringProgress) -> None:
        self._reporter.units(progress)
        now, done = time.monotonic(), (progress.units, progress.of_units)
        all_done = progress.units == progress.of_units and done != self._done
        if not all_done and now - self._last < min(MOST_SECONDS, max(LEAST_SECONDS, (now - self._began) / 100)):
            return
        self._last, self._done = now, done
        rows, units = self._reused
        self._say(
            "progress",
            rows=rows + progress.of_rows,
            rows_done=rows + progress.rows,
            units=units + progress.of_units,
            units_done=units + progress.units,
            rate=None if progress.rate is None else round(progress.rate, 3),
            seconds_left=None if progress.left is None else round(progress.left, 1),
            workers=progress.workers,
        )

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._log is None:
            return
        if not self._ended and isinstance(error, Exception) and not is_ending():  # Ray may make another error of Ctrl-C
            ours = isinstance(error, RaystreamError)
            text = " ".join((str(error) if ours else f"{type(error).__name__}: {error}").split())
            self._say("failed", error=text[:_ERROR_CHARACTERS], exit_code=error.exit_code if isinstance(error, RaystreamError) else 1)
        elif not self._ended:
            self._say("stopped")
        self._events.put(None)
        self._thread.join(_ENDING_SECONDS)

    def _say(self, kind: str, **facts: Any) -> None:
        if self._log is not None:
            self._events.put((kind, facts))

    def _write(self) -> None:
        """Write one event after the other; each names the number of the one by which its run started."""
        assert self._log is not None
        run: int | None = None
        while (event := self._events.get()) is not None:
            kind, facts = event
            with suppress(Exception):  # the run goes on without its events, whatever is wrong with them
                if kind == "started":
                    run = self._log.append(kind, **facts)
                elif run is not None:
                    self._log.append(kind, run=run, **facts)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"  # a container's, which has no name

"""How far a run is: for whoever waits, and for its log.

Tells a person how far the scoring is: a bar on a terminal, otherwise a line every ten seconds, always on stderr.

Writes what becomes of a query's run into its log, beside the run: no run waits for its events, nor fails where none can be written.
"""

from __future__ import annotations

import getpass
import os
import platform
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn

from raystream.errors import RaystreamError, StoreError
from raystream.figures import in_seconds, number_of
from raystream.lake.retry import is_ending
from raystream.scoring.plan import ResolvedQuery, ScoringPlan
from raystream.store.events import EventLog
from raystream.store.life import note_job, process_began
from raystream.store.protocol import Store

LINE_SECONDS = 10.0
WINDOW_SECONDS = 30.0
_SAMPLE_SECONDS = 1.0


@dataclass(frozen=True)
class ScoringProgress:
    """How far the scoring is, over all that a run has scored so far and is about to.

    Attributes:
        units, of_units: done, and in all.
        rows, of_rows: of the units, before their filters; those of units on the way count as far as these are.
        rate: rows a second lately; None before the first.
        left: seconds, at that rate; None before it is known, and once all is done.
        workers: that have loaded the model, and live.
    """

    units: int
    of_units: int
    rows: int
    of_rows: int
    rate: float | None
    left: float | None
    workers: int = 0

    @property
    def words(self) -> list[str]:
        """The rate and the time left, as far as they are known."""
        rate = [] if self.rate is None else [f"{self.rate:,.0f} rows/s" if self.rate >= 10 else f"{self.rate:.1f} rows/s"]
        return rate + ([] if self.left is None else [f"about {in_seconds(max(self.left, 1.0))} left"])


class Meter:
    """Follows rows by the clock: the pace of the last half minute, or of all the time where nothing came within that."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def rate(self, rows: int, seconds: float) -> float | None:
        """Compute rows a second, once so many are behind after so many seconds, neither of which ever shrinks by much."""
        while len(self._samples) > 1 and self._samples[1][0] <= seconds - WINDOW_SECONDS:
            self._samples.popleft()
        if not self._samples or seconds - self._samples[-1][0] >= _SAMPLE_SECONDS:
            self._samples.append((seconds, rows))
        since, before = self._samples[0]
        if rows > before and seconds > since:
            return (rows - before) / (seconds - since)
        return rows / seconds if rows > 0 and seconds > 0 else None


class Reporter(Protocol):
    """Hears what a run tells while it goes on. What the run waits for, such as a store that is away, it logs as `raystream`'s."""

    def stage(self, text: str) -> None:
        """Tell that a new stage has begun."""

    def units(self, progress: ScoringProgress) -> None:
        """Tell that units are being scored, and how far that is."""


class Silent:
    """Says nothing; what Python callers get."""

    def stage(self, text: str) -> None: ...

    def units(self, progress: ScoringProgress) -> None: ...


class Lines:
    """A line a stage, and one every ten seconds while units are scored."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def stage(self, text: str) -> None:
        self._last = time.monotonic()
        print(text, file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print a line of its own."""
        print(text, file=sys.stderr, flush=True)

    def units(self, progress: ScoringProgress) -> None:
        if time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            rows = f"{progress.rows:,} of {number_of(progress.of_rows, 'row')}"
            units = f"{progress.units} of {number_of(progress.of_units, 'unit')}"
            print(", ".join([f"scored {rows} and {units}", *progress.words]), file=sys.stderr, flush=True)


class Bar:
    """A live bar, of rows; use as a context manager."""

    def __init__(self) -> None:
        self._progress = rich.progress.Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[units]}"),
            TextColumn("{task.fields[pace]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, units="", pace="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def stage(self, text: str) -> None:
        self._progress.reset(self._task, total=None, description=text, units="", pace="")

    def say(self, text: str) -> None:
        """Print a line of its own, above the bar."""
        self._progress.console.print(text, markup=False, highlight=False)

    def units(self, progress: ScoringProgress) -> None:
        units = f"{progress.units}/{progress.of_units}"
        pace = ", ".join(progress.words)
        self._progress.update(self._task, completed=progress.rows, total=progress.of_rows, units=units, pace=pace)


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

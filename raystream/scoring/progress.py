"""Tells a person how far the scoring is: a bar on a terminal, otherwise a line every ten seconds, always on stderr."""

from __future__ import annotations

import sys
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn

from raystream.figures import in_seconds, number_of

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

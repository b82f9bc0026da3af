"""Tells a person how far the scoring is: a bar on a terminal, otherwise a line every ten seconds, always on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

from raystream.figures import in_seconds, number_of

LINE_SECONDS = 10.0


class Reporter(Protocol):
    """What a run tells while it goes on. What it waits for, such as a store that is away, it logs as `raystream`'s."""

    def stage(self, text: str) -> None:
        """A new stage has begun."""

    def units(self, done: int, total: int, rows: int, seconds: float) -> None:
        """So many units of this run are done, which held so many rows, within so many seconds."""


class Silent:
    """Says nothing; what Python callers get."""

    def stage(self, text: str) -> None: ...

    def units(self, done: int, total: int, rows: int, seconds: float) -> None: ...


class Lines:
    """A line a stage, and one every ten seconds while units are scored."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._left = _TimeLeft()

    def stage(self, text: str) -> None:
        self._last = time.monotonic()
        print(text, file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line of its own."""
        print(text, file=sys.stderr, flush=True)

    def units(self, done: int, total: int, rows: int, seconds: float) -> None:
        left = self._left.after(done, total, seconds)
        if time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            facts = [f"scored {done} of {number_of(total, 'unit')}", rate(rows, seconds), left]
            print(", ".join(fact for fact in facts if fact), file=sys.stderr, flush=True)


class Bar:
    """A live bar; use as a context manager."""

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[left]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, rate="", left="")
        self._left = _TimeLeft()

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def stage(self, text: str) -> None:
        self._progress.reset(self._task, total=None, description=text, rate="", left="")

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        self._progress.console.print(text, markup=False, highlight=False)

    def units(self, done: int, total: int, rows: int, seconds: float) -> None:
        left = self._left.after(done, total, seconds)
        self._progress.update(self._task, completed=done, total=total, rate=rate(rows, seconds), left=left)


class _TimeLeft:
    """What is left at the pace of the units that are done, counted from when the last of them was: the next one is under way since."""

    def __init__(self) -> None:
        self._done, self._when = 0, 0.0

    def after(self, done: int, total: int, seconds: float) -> str:
        """`about 12 s left`; nothing before a unit is done, after all are, and once they are overdue."""
        if done != self._done:
            self._done, self._when = done, seconds
        if not done or done >= total:
            return ""
        left = self._when * (total - done) / done - (seconds - self._when)
        return f"about {in_seconds(left)} left" if left >= 0.5 else ""


def rate(rows: int, seconds: float) -> str:
    """Rows a second, in words."""
    if not rows or seconds <= 0:
        return ""
    return f"{rows / seconds:,.0f} rows/s"

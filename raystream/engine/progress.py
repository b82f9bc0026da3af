"""Tells a person how far the scoring is: a bar on a terminal, otherwise a line every ten seconds, always on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

LINE_SECONDS = 10.0


class Reporter(Protocol):
    """What a run tells while it goes on."""

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

    def stage(self, text: str) -> None:
        self._last = time.monotonic()
        print(text, file=sys.stderr, flush=True)

    def units(self, done: int, total: int, rows: int, seconds: float) -> None:
        if time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            print(f"scored {done} of {total} units, {rate(rows, seconds)}", file=sys.stderr, flush=True)


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
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, rate="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def stage(self, text: str) -> None:
        self._progress.reset(self._task, total=None, description=text, rate="")

    def units(self, done: int, total: int, rows: int, seconds: float) -> None:
        self._progress.update(self._task, completed=done, total=total, rate=rate(rows, seconds))


def rate(rows: int, seconds: float) -> str:
    """Rows a second, in words."""
    if not rows or seconds <= 0:
        return ""
    return f"{rows / seconds:,.0f} rows/s"

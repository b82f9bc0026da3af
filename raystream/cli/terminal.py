"""What commands know of where they run: a terminal, a pipe, a Ray job.

Speak to whoever runs a command: progress on stderr, the result alone on stdout.

Of Ctrl-C and SIGTERM the first lets the program end in order, a second one ends it at once.

What commands know of the Ray job that they run in, if `raystream submit` or `ray job submit` started them.
"""

from __future__ import annotations

import atexit
import gc
import json
import logging
import os
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from importlib import import_module
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from raystream.imports import keep_pandas_out, uncollected
from raystream.lake.retry import stop_waiting, wait_again

if TYPE_CHECKING:
    from raystream.query.places import Asked
    from raystream.scoring.progress import Reporter

_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray gives it to a job's command, and to nothing else."""

_Asked = TypeVar("_Asked", bound="Asked")


def check_places(asked: _Asked) -> _Asked:
    """Return what is asked, unless it runs in a job and what it reads or writes would go with that.

    Raises:
        QueryError: pool, store, output or labels are a relative path.
    """
    from raystream.query.places import places

    for key, uris in places(asked).items():
        for uri in uris:
            check_place(key, uri)
    return asked


def check_place(key: str, uri: str) -> str:
    """Return the path or URI, unless this is a job and it is relative.

    Raises:
        QueryError: it is.
    """
    if _VARIABLE in os.environ:
        from raystream.query.places import refuse_relative

        refuse_relative(key, uri)
    return uri


def submission_id() -> str | None:
    """Return the id of the job that this command runs in; None outside of one."""
    try:
        job = json.loads(os.environ.get(_VARIABLE, "{}"))
        found = job.get("metadata", {}).get("job_submission_id")
    except (ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


ASKER = "RAYSTREAM_WHO"
"""The environment may say who asked for what this command runs, in another's name: the service's caller, who submitted the job."""
_REPEATED_SECONDS = 60.0


@contextmanager
def reporting() -> Iterator[Reporter]:
    """Show a bar on a terminal, otherwise a line every ten seconds, always on stderr.

    stdout is for the result alone, and Ray prints to it what its processes have to say: that goes to stderr, too.
    """
    _import_steps()
    from raystream.scoring.progress import Bar, Lines, asked_by

    with redirect_stdout(sys.stderr), _descriptor_1_on_2(), asked_by(os.environ.get(ASKER), submission_id()):
        if sys.stderr.isatty():
            with Bar() as bar, _saying(bar.say):
                yield bar
        else:
            lines = Lines()
            with _saying(lines.say):
                yield lines


def _import_steps() -> None:
    """Import what a run takes, torch among it; it is there to stay, and the garbage collector need never look through it."""
    if "raystream.steps" in sys.modules:
        return
    keep_pandas_out()
    with uncollected():
        import_module("raystream.steps")
        gc.freeze()


@contextmanager
def _saying(say: Callable[[str], None]) -> Iterator[None]:
    """Have what raystream logs, such as a store that is waited for, and what libraries warn of said as a line each."""
    handler = _Saying(say)
    logger = logging.getLogger("raystream")
    logger.addHandler(handler)
    showing = warnings.showwarning
    warnings.showwarning = lambda message, category, *where, **more: say(f"raystream: warning: {' '.join(str(message).split())}")
    try:
        yield
    finally:
        warnings.showwarning = showing
        logger.removeHandler(handler)


class _Saying(logging.Handler):
    """Says each message, once a minute if many workers have the same to say."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._say = say
        self._last: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.created - self._last.get(text, float("-inf")) >= _REPEATED_SECONDS:
            self._last[text] = record.created
            self._say(f"raystream: {text}")


def print_result(summary: dict[str, Any], text: Callable[[], str], as_json: bool) -> None:
    """Print one JSON object, or the text, on stdout."""
    print(json.dumps(summary) if as_json else text())


def nobody_reads() -> bool:
    """Tell whether the reader of stdout is gone, as `head` is after ten lines."""
    asked = select.poll()
    try:
        asked.register(1, select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in asked.poll(0))
    except OSError:
        return False


def end_output() -> None:
    """Write out what stdout still holds. Nobody's reading it is no error, nor what the interpreter finds when it flushes once more."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def say_at_once(sentence: str, *, last: bool = False) -> None:
    """Say it on stderr from a signal handler, which may have interrupted a write: past Python's buffers, over the bar of a terminal.

    Args:
        sentence: what to say.
        last: the process ends without another word, so the cursor that the bar hides has to come back now.
    """
    with suppress(OSError):
        before, after = ("\r\x1b[2K", "\x1b[?25h" if last else "") if os.isatty(2) else ("", "")
        os.write(2, f"{before}raystream: {sentence}\n{after}".encode())


@contextmanager
def _descriptor_1_on_2() -> Iterator[None]:
    """Send to stderr what libraries and child processes write to stdout, past Python."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


RESUME = "interrupted; run the same command again to go on where it stopped"

_UNBROKEN = ("raystream-worker", "raystream-ray", "raystream-events")

_TWIN_SECONDS = 1.0
"""Within it a second SIGTERM is the first one's twin: `timeout` signals its child, and then the group that the child is in."""


class Interruption:
    """The signals that asked this program to end.

    The first is raised as a KeyboardInterrupt in the main thread: the only exception that Ray's calls let through. Something on its way
    may turn it into another one all the same; that it came is known here.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._since = 0.0

    @property
    def exit_code(self) -> int:
        """The code that the program ends with once it was interrupted."""
        return 128 + (self.number or 0)

    def heed(self) -> None:
        """Listen from now on, but to no signal that whoever started the program has it ignore."""
        wait_again()
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number, self._since = number, time.monotonic()
            stop_waiting()
            say_at_once("interrupted; ending, again to stop at once")
            raise KeyboardInterrupt
        if number == signal.SIGTERM and time.monotonic() - self._since < _TWIN_SECONDS:
            return
        say_at_once(RESUME, last=True)
        os._exit(128 + number)


class Leaving:
    """Ends the program without those threads that can't be broken off, such as one in the middle of a large batch.

    An interpreter that shuts down under a thread in foreign code may abort; what such a thread still does, nobody wants.
    """

    def __init__(self) -> None:
        self._before = set(threading.enumerate())

    def exit(self, code: int) -> NoReturn:
        """End with this code."""
        # else the interpreter looks through all that was imported for cycles once more, which takes longer than a small query
        atexit.register(gc.freeze)
        if not any(thread.name in _UNBROKEN for thread in set(threading.enumerate()) - self._before):
            sys.exit(code)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)

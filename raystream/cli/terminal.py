"""How commands speak to whoever runs them: progress on stderr, the result alone on stdout."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raystream.scoring.progress import Reporter

_SAME_SECONDS = 60.0


@contextmanager
def reporting() -> Iterator[Reporter]:
    """A bar on a terminal, otherwise a line every ten seconds, always on stderr.

    stdout is for the result alone, and Ray prints to it what its processes have to say: that goes to stderr, too.
    """
    from raystream.scoring.progress import Bar, Lines

    with redirect_stdout(sys.stderr), _descriptor_1_on_2():
        if sys.stderr.isatty():
            with Bar() as bar, _saying(bar.say):
                yield bar
        else:
            lines = Lines()
            with _saying(lines.say):
                yield lines


@contextmanager
def _saying(say: Callable[[str], None]) -> Iterator[None]:
    """Have what raystream logs, such as a store that is waited for, said as a line."""
    handler = _Saying(say)
    logger = logging.getLogger("raystream")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Saying(logging.Handler):
    """Says each message, once a minute if many workers have the same to say."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._say = say
        self._last: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.created - self._last.get(text, float("-inf")) >= _SAME_SECONDS:
            self._last[text] = record.created
            self._say(f"raystream: {text}")


def print_result(summary: dict[str, Any], text: Callable[[], str], as_json: bool) -> None:
    """One JSON object, or the text, on stdout."""
    print(json.dumps(summary) if as_json else text())


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
    """What libraries and child processes write to stdout, past Python, goes to stderr."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)

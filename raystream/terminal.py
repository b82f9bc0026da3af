"""How commands speak to whoever runs them: progress on stderr, the result alone on stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raystream.engine.progress import Reporter


@contextmanager
def reporting() -> Iterator[Reporter]:
    """A bar on a terminal, otherwise a line every ten seconds, always on stderr.

    stdout is for the result alone, and Ray prints to it what its processes have to say: that goes to stderr, too.
    """
    from raystream.engine.progress import Bar, Lines

    with redirect_stdout(sys.stderr), _descriptor_1_on_2():
        if sys.stderr.isatty():
            with Bar() as bar:
                yield bar
        else:
            yield Lines()


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

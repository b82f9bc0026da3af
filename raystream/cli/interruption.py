"""Ctrl-C and SIGTERM: the first lets the program end in order, a second one ends it at once."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

from raystream.cli.terminal import say_at_once
from raystream.lake.retry import stop_waiting, wait_again

RESUME = "interrupted; run the same command again to go on where it stopped"

_SAME_SECONDS = 1.0
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
        """What the program ends with once it was interrupted."""
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
        if number == signal.SIGTERM and time.monotonic() - self._since < _SAME_SECONDS:
            return
        say_at_once(RESUME, last=True)
        os._exit(128 + number)

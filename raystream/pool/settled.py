"""Waiting until files that were written just now can be told from the same files rewritten."""

from __future__ import annotations

import time
from collections.abc import Iterable

from raystream.pool.files import File

FINE = 20_000_000
"""Nanoseconds between two times that a kernel gives to files at least: a tick of its clock, 10 ms at most, and some."""
COARSE = 2_000_000_000
"""The same for file systems that keep whole seconds, or every second one."""


def settle(files: Iterable[File]) -> None:
    """Wait until files that may be scored can be told from the same files rewritten: those of a pool, of labels, of targets."""
    time.sleep(unsettled(files, time.time_ns()) / 1e9)


def unsettled(files: Iterable[File], now: int) -> int:
    """Nanoseconds to wait until a rewrite of any of these local files, of the same size, gives it another mtime.

    A file read within the tick in which it was written, and rewritten within it, would keep its name, size and mtime:
    its old scores would stand for its new rows.

    Args:
        files: as listed.
        now: the time in nanoseconds since the epoch.
    """
    longest = 0
    for file in files:
        if "://" in file.path or not file.version.isdigit():
            continue  # object storage gives every content a version of its own
        written = int(file.version)
        age = now - written
        tick = FINE if written % 1_000_000_000 else COARSE
        if 0 <= age < tick:
            longest = max(longest, tick - age)
    return longest

"""Asking again when a connection broke: a limit, growing pauses, and a count."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from raystream.lake.reason import is_final, reason

ATTEMPTS = 6
FIRST_PAUSE = 0.1
"""Seconds; each pause is about twice the one before: three seconds in all."""
_Result = TypeVar("_Result")


def ignore(why: str) -> None:
    """For those who don't count what was asked again."""


def retried(call: Callable[[], _Result], note: Callable[[str], None] = ignore) -> _Result:
    """What `call` returns, called again while it fails for a reason that may pass.

    Args:
        call: a request that changes nothing.
        note: told the reason each time that it is repeated.

    Raises:
        OSError: of the last attempt, or at once where asking again would end the same.
    """
    for attempt in range(1, ATTEMPTS):
        try:
            return call()
        except OSError as error:
            if is_final(error):
                raise
            note(reason(error))
        # Workers that failed together must not ask again together.
        time.sleep(FIRST_PAUSE * 2 ** (attempt - 1) * (0.5 + random.random()))
    return call()

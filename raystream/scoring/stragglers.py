"""Which units take far longer than others did: their worker may hang, or its machine be slow."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import median

LEAST_SECONDS = 10.0
"""No unit is late before: to hand out a short one twice saves nothing."""
TIMES_THE_MEDIAN = 3.0
_REMEMBERED = 64
_LOOK_SECONDS = 1.0


class Stragglers:
    """Follows how long units are with a worker, waiting for their turn there included.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # invariant: unit -> since when a worker has it, the last that was given it, of those that haven't ended
        self._since: dict[int, float] = {}
        self._took: deque[float] = deque(maxlen=_REMEMBERED)
        self._looked = float("-inf")

    def began(self, unit: int) -> None:
        """Note that a worker was given the unit."""
        self._since[unit] = self._clock()

    def ended(self, unit: int, *, well: bool) -> None:
        """Note that it is scored, or is begun anew later."""
        since = self._since.pop(unit, None)
        if well and since is not None:
            self._took.append(self._clock() - since)

    def late(self) -> list[int]:
        """List the units that are late, longest first; none when asked more often than once a second."""
        now = self._clock()
        if not self._took or now - self._looked < _LOOK_SECONDS:
            return []
        self._looked = now
        limit = max(LEAST_SECONDS, TIMES_THE_MEDIAN * median(self._took))
        return sorted((unit for unit, since in self._since.items() if now - since > limit), key=self._since.__getitem__)

"""Many small requests at a time, without as many objects waiting for their turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

_AT_A_TIME = 64
"""Items that a thread takes before it is handed more: to hand over a small request takes as long as to make it."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_threads(call: Callable[[_Item], _Result], items: Sequence[_Item], threads: int = 32) -> list[_Result]:
    """What a call gives for each of the items, in their order; its first error ends it."""
    size = min(_AT_A_TIME, -(-len(items) // threads)) or 1

    def some(start: int) -> list[_Result]:
        return [call(item) for item in items[start : start + size]]

    with ThreadPoolExecutor(threads) as pool:
        return list(chain.from_iterable(pool.map(some, range(0, len(items), size))))

"""Many small requests at a time, without as many objects waiting for their turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

from raystream.errors import DataError
from raystream.lake.retry import LASTING, Patience, retried
from raystream.store.protocol import Store, WriteBroken

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


_AGAIN_SECONDS = 1.0
"""Before broken work is begun again, at first."""


class _Again(ConnectionError):
    """What broke in the middle and is to be done from the beginning."""

    def __init__(self, cause: DataError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _is_broken(error: DataError) -> bool:
    return isinstance(error, WriteBroken)


def unbroken(
    store: Store,
    work: Callable[[], _Result],
    patience: Patience = LASTING,
    broken: Callable[[DataError], bool] = _is_broken,
    place: str | None = None,
) -> _Result:
    """What some work gives that writes files piece by piece, done again if a storage went away in the middle, and is back.

    Args:
        store: that it writes to.
        work: leaves nothing behind when it fails.
        patience: with storages that are away.
        broken: whether the work failed by an outage that it didn't wait for itself.
        place: what it needs, for people; left out, the store.

    Raises:
        DataError: of the work, in the end.
    """

    def attempt() -> _Result:
        try:
            return work()
        except DataError as error:
            if not broken(error):
                raise
            store.exists("format.json")  # which waits until the store answers
            raise _Again(error) from None

    place = place or store.place("").rstrip("/")
    try:
        return retried(attempt, patience=patience, place=place, errors=(_Again,), first_pause=_AGAIN_SECONDS)
    except _Again as again:
        raise again.cause from None

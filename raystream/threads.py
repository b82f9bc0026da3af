"""Blocks of rows shared out among Python threads, each with single-threaded torch.

Torch's own threads meet at a barrier after every operation, a thousand times a second here: when another process
uses a core, each of them waits for the scheduler, and the whole takes ten times as long. Threads that take
a block each meet once, at the end. NumPy and torch release the interpreter while they compute.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from typing import Generic, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(items: Iterable[Item], start: Callable[[], Callable[[Item], Result]], most: int | None = None) -> list[Result]:
    """Do the work on every item, by as many threads as torch may use, the caller's among them; returns what it makes of them, in order.

    Args:
        items: taken one at a time, by one thread at a time, and no sooner than there is a thread for them.
        start: called once by each thread; returns the work, which may own memory that items need in turn.
        most: threads that are wanted, where not all are.

    Raises:
        Exception: that of the first item, in their order, whose work failed.
    """
    iterator = iter(items)
    first = list(islice(iterator, 2))
    threads = torch.get_num_threads()
    used = threads if most is None else min(threads, most)
    if used == 1 or len(first) < 2:
        work = start()
        return [work(item) for item in chain(first, iterator)]
    queue: _Queue[Item, Result] = _Queue(chain(first, iterator))
    try:
        with ThreadPoolExecutor(used - 1, "raystream", torch.set_num_threads, (1,)) as pool:
            futures = [pool.submit(queue.run, start) for _ in range(used - 1)]
            try:
                torch.set_num_threads(1)
                queue.run(start)
                for future in futures:
                    future.result()
            finally:
                queue.stop()
    finally:
        # the setting is each thread's own, but threads that others start later inherit the last one made
        torch.set_num_threads(threads)
    return queue.results()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in the calling thread alone: for many small operations."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Queue(Generic[Item, Result]):
    """Items still to be taken, and what became of those taken."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = enumerate(items)
        self._lock = threading.Lock()
        self._stopped = False
        self._done: dict[int, Result] = {}
        self._failed: dict[int, BaseException] = {}

    def run(self, start: Callable[[], Callable[[Item], Result]]) -> None:
        """Work until nothing is left or something failed; what was taken before a failure is finished."""
        try:
            work = start()
            while (taken := self._take()) is not None:
                number, item = taken
                try:
                    self._done[number] = work(item)
                except Exception as error:
                    self._failed[number] = error
                    self.stop()
                del taken, item
        finally:
            self.stop()

    def _take(self) -> tuple[int, Item] | None:
        with self._lock:
            return None if self._stopped else next(self._items, None)

    def stop(self) -> None:
        """Hand out nothing more."""
        self._stopped = True

    def results(self) -> list[Result]:
        """Return them in the order of the items."""
        if self._failed:
            raise self._failed[min(self._failed)]
        return [self._done[number] for number in sorted(self._done)]

"""Many independent pieces of work in processes of one thread each: short ones in this process, since another takes seconds to start.

One thread whatever the number of processes: sums depend on the number of threads, and results must not.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from typing import Any, Generic, TypeVar

import faiss
import torch

from raystream.errors import ClusterError

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")

WORTH_SECONDS = 8.0
"""So much work left is worth starting processes for: each imports torch and is given the data."""
_IN_FLIGHT = 2
"""Pieces that a process is given at a time, so that it needn't wait for this one, which works itself."""
_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_shared: Any = None


def each_result(
    work: Callable[[Shared, Item], Result], shared: Shared, items: Sequence[Item], processes: int
) -> Iterator[tuple[Item, Result]]:
    """Yield every item with what the work makes of it, as they are done, in no particular order.

    This process works, too: others are started once it is seen that there is enough to do.

    Args:
        work: a function of a module, which processes can import.
        shared: the same for every item; given to each process once.
        items: pieces of work.
        processes: the most, this one included; 1 starts none.

    Raises:
        ClusterError: a process died.
        Exception: what the work raised, the first of it; nothing more is begun then.
    """
    waiting, seconds = deque(items), list[float]()
    helpers: _Helpers[Shared, Item, Result] | None = None
    try:
        with one_thread_each():
            while waiting or (helpers and helpers.busy):
                if helpers is None and processes > 1 and _left(seconds, len(waiting)) > WORTH_SECONDS:
                    helpers = _Helpers(work, shared, min(processes - 1, len(waiting)))
                if helpers is not None:
                    yield from helpers.exchange(waiting, wait=not waiting)
                if waiting:
                    item, began = waiting.popleft(), time.perf_counter()
                    result = work(shared, item)
                    seconds.append(time.perf_counter() - began)
                    yield item, result
    finally:
        if helpers is not None:
            helpers.end()


def _left(seconds: Sequence[float], waiting: int) -> float:
    """Return what the rest will take, given what pieces took; the first one imports what all need, and tells only that pieces are long."""
    if len(seconds) < 2:
        return seconds[0] if seconds and waiting and seconds[0] > WORTH_SECONDS else 0.0
    return sum(seconds[1:]) / len(seconds[1:]) * waiting


def cores() -> int:
    """Count how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Hold torch, faiss and, where it can be told, linear algebra to one thread."""
    before, faiss_before = torch.get_num_threads(), faiss.omp_get_max_threads()
    with ExitStack() as stack:
        try:
            from threadpoolctl import threadpool_limits
        except ImportError:
            pass
        else:
            stack.enter_context(threadpool_limits(1))
        torch.set_num_threads(1)
        faiss.omp_set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
            faiss.omp_set_num_threads(faiss_before)


class _Helpers(Generic[Shared, Item, Result]):
    """Processes that are gone when this one is, however it ends."""

    def __init__(self, work: Callable[[Shared, Item], Result], shared: Shared, count: int) -> None:
        self._work, self._count = work, count
        self._others = set(multiprocessing.active_children())
        self._executor = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin, (shared,))
        self._given: dict[Future[Result], Item] = {}

    @property
    def busy(self) -> bool:
        """Whether anything is still to come back."""
        return bool(self._given)

    def exchange(self, waiting: deque[Item], *, wait: bool) -> Iterator[tuple[Item, Result]]:
        """Return what is done by now, once new work was handed out for it.

        Args:
            waiting: work is taken from its front.
            wait: until something is done.
        """
        done = futures.wait(self._given, None if wait else 0, futures.FIRST_COMPLETED).done if self._given else set()
        finished = [(self._given.pop(future), future) for future in done]
        ahead = _IN_FLIGHT * self._count
        most = ahead if len(waiting) > ahead else self._count  # the last pieces wait for whoever is free first
        with _environment(dict.fromkeys(_VARIABLES, "1")):  # a process is started when work is handed out
            while waiting and len(self._given) < most:
                item = waiting.popleft()
                self._given[self._executor.submit(_call, self._work, item)] = item
        for item, future in finished:
            try:
                yield item, future.result()
            except BrokenProcessPool:
                raise ClusterError(
                    "a process of the simulation died, perhaps for want of memory; run the command again to go on, or set cluster.workers "
                    "lower"
                ) from None

    def end(self) -> None:
        """Let the processes go; those that still work are ended."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        if self.busy:
            for child in set(multiprocessing.active_children()) - self._others:
                child.terminate()
        self._executor.shutdown(wait=True)


def _begin(shared: Any) -> None:
    """Get a process ready: signals are its parent's affair, and it goes when that has gone."""
    global _shared
    _shared = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(work: Callable[[Any, Item], Result], item: Item) -> Result:
    with one_thread_each():
        return work(_shared, item)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables that processes started meanwhile inherit."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

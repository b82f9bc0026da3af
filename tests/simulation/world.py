"""Processes that take turns by a clock that nobody waits for."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any

from greenlet import getcurrent, greenlet


class Killed(BaseException):
    """The process is gone: nothing that it still does has any effect."""


class Process:
    """One of the simulated machines' processes.

    Attributes:
        skew: seconds by which its machine's clock is ahead.
        interrupted: whether it is about to hear of a Ctrl-C, in its main task.
        dies_at: the number of the request to the store with which it dies, if it does.
    """

    def __init__(self, name: str, skew: float = 0.0) -> None:
        self.name, self.skew = name, skew
        self.alive = True
        self.requests = 0
        self.dies_at: int | None = None
        self.dies_after = False
        self.interrupted = False
        self.main: greenlet | None = None
        self.at_death: list[Callable[[], None]] = []

    def kill(self) -> None:
        """As by SIGKILL."""
        if self.alive:
            self.alive = False
            for act in self.at_death:
                act()


class World:
    """Time, chance, and whose turn it is.

    Args:
        seed: of all that is left to chance.
        say: told what happens; left out, nobody.
    """

    def __init__(self, seed: int, say: Callable[[str], None] | None = None) -> None:
        self.random = random.Random(seed)
        self.now = 1_800_000_000.0
        self.steps = 0
        self._say = say
        self._turns: list[tuple[float, int, greenlet]] = []
        # invariant: task -> the number of the turn that it waits for; older ones of it are void
        self._turn_of: dict[greenlet, int] = {}
        self._order = 0
        self._hub = getcurrent()
        self._process: dict[greenlet, Process] = {}
        self._faults: list[BaseException] = []

    def log(self, *words: object) -> None:
        """Say what happens now."""
        if self._say is not None:
            self._say(f"{self.now - 1_800_000_000:9.3f}  {self.me.name:12}  {' '.join(map(str, words))}")

    @property
    def me(self) -> Process:
        """The process whose turn it is."""
        return self._process.get(getcurrent(), _NOBODY)

    def spawn(self, process: Process, work: Callable[[], None], after: float = 0.0) -> None:
        """Have the process begin some work."""

        def run() -> None:
            try:
                if process.alive:
                    work()
            except Killed:
                pass
            except BaseException as error:
                self._faults.append(error)

        task = greenlet(run, self._hub)
        self._process[task] = process
        process.main = process.main or task
        self._at(self.now + after, task)

    def at(self, seconds: float, act: Callable[[], None]) -> None:
        """Have something happen in so many seconds."""
        self.spawn(_NOBODY, act, seconds)

    def sleep(self, seconds: float) -> None:
        """Let the others go on for so long.

        Raises:
            Killed: this process was ended meanwhile, or before.
        """
        process, task = self.me, getcurrent()
        if not process.alive:
            raise Killed
        self._turn_of.pop(task, None)
        if seconds < float("inf"):
            self._at(self.now + max(0.0, seconds), task)
        self._hub.switch()
        if not process.alive:
            raise Killed
        if process.interrupted and task is process.main:
            process.interrupted = False
            raise KeyboardInterrupt

    def wake(self, task: greenlet) -> None:
        """End its sleep now."""
        self._at(self.now, task)

    def run(self, limit: float) -> None:
        """Until nobody has anything left to do.

        Raises:
            TimeoutError: that takes longer than `limit` seconds of the simulated time.
        """
        until = self.now + limit
        while self._turns:
            when, number, task = heapq.heappop(self._turns)
            if self._turn_of.get(task) != number:
                continue
            self.now = when
            if self.now > until:
                raise TimeoutError(f"not done after {limit:,.0f} simulated seconds")
            self.steps += 1
            task.switch()
            if task.dead:
                del self._process[task], self._turn_of[task]
            if self._faults:
                raise self._faults.pop()

    def _at(self, when: float, task: greenlet) -> None:
        self._order += 1
        self._turn_of[task] = self._order
        heapq.heappush(self._turns, (when, self._order, task))


_NOBODY = Process("-")


class Inbox:
    """What other processes send to one, in the order of its arrival."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._items: deque[Any] = deque()
        self._waiting: list[greenlet] = []

    def put(self, item: Any) -> None:
        """Add to it."""
        self._items.append(item)
        if self._waiting:
            self._world.wake(self._waiting[0])

    def take_all(self, timeout: float) -> list[Any]:
        """All that is there; waits for the first of it."""
        self._wait(timeout)
        found = list(self._items)
        self._items.clear()
        return found

    def take(self) -> Any:
        """The next thing, however long it takes to come."""
        while not self._items:
            self._wait(float("inf"))
        return self._items.popleft()

    def _wait(self, timeout: float) -> None:
        if self._items:
            return
        task, process = getcurrent(), self._world.me
        self._waiting.append(task)

        def wake() -> None:
            if task in self._waiting:
                self._world.wake(task)

        process.at_death.append(wake)
        try:
            self._world.sleep(timeout)
        finally:
            self._waiting.remove(task)
            process.at_death.remove(wake)


class Clock:
    """The module `time`, as a process of the simulation sees it."""

    def __init__(self, world: World) -> None:
        self._world = world

    def time(self) -> float:
        """By the machine's clock, which may be wrong."""
        return self._world.now + self._world.me.skew

    def perf_counter(self) -> float:
        """Seconds."""
        return self._world.now

    monotonic = perf_counter


def drawn(world: World, *weighted: tuple[float, str]) -> str:
    """One of these, by their weights."""
    return world.random.choices([name for _, name in weighted], [weight for weight, _ in weighted])[0]

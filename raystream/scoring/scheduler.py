"""Which unit goes to which worker, and what becomes of one that doesn't come back.

Decides which worker scores which unit, and what to do when something fails. Nothing else.

Events go in as method calls, instructions come out as lists. No clock, no process, no ray: every corner of a
distributed run is a few plain calls in a test.

Which units take far longer than others did: their worker may hang, or its machine be slow.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

IN_FLIGHT = 2
"""Units that a worker holds: one is computed while the next one is read and the one before is committed; where memory runs out, one."""

ATTEMPTS = 3
"""A unit charged this often is poison; a worker that fails to start this often in a row ends the run."""


@dataclass(frozen=True)
class StartWorker:
    """Start a worker under this name; names are never used twice."""

    worker: int


class Assign(NamedTuple):
    """Send the unit to the worker."""

    worker: int
    unit: int


@dataclass(frozen=True)
class Abort:
    """End the run with this error."""

    cause: BaseException


Instruction = StartWorker | Assign | Abort


@dataclass
class Scheduler:
    """The state machine of one scoring run: a unit is pending, running or done.

    An event costs the same however many units and workers there are.

    Args:
        units: how many units there are; they are known by their numbers.
        workers: how many workers to keep alive.
    """

    units: int
    workers: int
    held: dict[int, list[int]] = field(default_factory=dict, init=False)
    """Units in flight by ready worker, oldest first; the oldest is taken to be the one that is running."""
    starting: set[int] = field(default_factory=set, init=False)
    """Workers that were asked for and are neither ready nor lost."""
    done: set[int] = field(default_factory=set, init=False)
    """Units that succeeded or are poisoned; they are never assigned again."""
    charges: dict[int, list[BaseException]] = field(default_factory=dict, init=False)
    """Why a unit failed so far, one entry a failure; at `ATTEMPTS` entries it is poison."""
    poisoned: dict[int, BaseException] = field(default_factory=dict, init=False)
    failed_starts: int = field(default=0, init=False)
    """Starts that failed since a worker was last ready."""
    in_flight: int = field(default=IN_FLIGHT, init=False)
    """Units that a worker may hold."""
    leaving: set[int] = field(default_factory=set, init=False)
    """Workers that are about to be taken away: they end what they hold, are given nothing, and are replaced already."""
    _events: int = field(default=0, init=False)
    """How many there were."""
    _heard: dict[int, int] = field(default_factory=dict, init=False)
    """The number of the last event that a ready worker sent."""
    _charged_at: dict[int, int] = field(default_factory=dict, init=False)
    """The number of the event that charged a unit last, by the loss of a worker."""
    _twice: dict[int, list[int]] = field(default_factory=dict, init=False)
    """The workers that still hold a unit which was handed out twice; of such units alone."""
    _next_worker: int = field(default=0, init=False)
    _fresh: deque[int] = field(init=False)
    """Units that no worker holds and that were never charged, next one first. One that is done meanwhile is passed over when its
    turn comes: to look for it here would take as long as there are units."""
    _charged: deque[int] = field(default_factory=deque, init=False)
    """Units that no worker holds and that were charged before; the same."""
    _free: list[OrderedDict[int, None]] = field(init=False)
    """Workers that may be given a unit, by how many they hold, longest waiting first; none that holds a charged one."""

    def __post_init__(self) -> None:
        self._fresh = deque(range(self.units))
        self._free = [OrderedDict() for _ in range(IN_FLIGHT)]

    @property
    def pending(self) -> list[int]:
        """Units that no worker holds, next one first: those that were charged before come last."""
        return [unit for units in (self._fresh, self._charged) for unit in units if unit not in self.done]

    @property
    def idle(self) -> bool:
        """True if a worker has nothing to do, as nobody waits for one."""
        return bool(self._free[0])

    @property
    def finished(self) -> bool:
        """True if every unit is done or poisoned."""
        return len(self.done) == self.units

    def start(self) -> list[Instruction]:
        """Give the first instructions: no more workers than units."""
        return self._replace_workers()

    def add(self, units: int) -> list[Instruction]:
        """Add so many further units, numbered on from the last; workers that are ready take them at once."""
        self._fresh.extend(range(self.units, self.units + units))
        self.units += units
        return self._replace_workers() + self._assign()

    def worker_ready(self, worker: int) -> list[Instruction]:
        """Note that a worker has loaded the model, and give it work."""
        if worker not in self.starting:
            return []
        self.starting.discard(worker)
        self.failed_starts = 0
        self.held[worker] = []
        self._hear(worker)
        self._place(worker)
        return self._assign()

    def start_failed(self, worker: int, cause: BaseException, retry: bool) -> list[Instruction]:
        """Note that a worker could not start; with `retry` False, no other one can either."""
        self.starting.discard(worker)
        self.leaving.discard(worker)
        self.failed_starts += 1
        if not retry or self.failed_starts >= ATTEMPTS:
            return [Abort(cause)]
        return self._replace_workers()

    def succeeded(self, worker: int, unit: int) -> list[Instruction]:
        """Note that a unit's receipt came; it may come twice, or after its worker was given up."""
        self._hear(worker)
        self._take_back(worker, unit)
        self.done.add(unit)
        self.poisoned.pop(unit, None)
        return self._assign()

    def late(self, unit: int) -> list[Instruction]:
        """Give a unit that takes far longer than others did to a worker that has nothing to do as well; the first receipt counts.

        One that was charged before isn't handed out twice: it may be what ends its worker.
        """
        holders = [worker for worker, units in self.held.items() if unit in units]
        if unit in self.done or unit in self.charges or len(holders) != 1 or not self._free[0]:
            return []
        worker = next(iter(self._free[0]))
        self._twice[unit] = [*holders, worker]
        self.held[worker].append(unit)
        self._place(worker)
        return [Assign(worker, unit)]

    def worker_leaving(self, worker: int) -> list[Instruction]:
        """Start another worker in place of one that is about to be taken away, as on a machine whose time is up."""
        if worker in self.leaving or (worker not in self.held and worker not in self.starting):
            return []
        self.leaving.add(worker)
        self._place(worker)
        return self._replace_workers()

    def spare_memory(self) -> bool:
        """Let each worker hold one unit at a time from now on, since one ran out of memory; tell whether that is new."""
        new, self.in_flight = self.in_flight > 1, 1
        for worker in self.held:
            self._place(worker)
        return new

    def failed(self, worker: int, unit: int, cause: BaseException) -> list[Instruction]:
        """Note that a unit failed for a reason that may pass; the worker lives."""
        self._hear(worker)
        if self._take_back(worker, unit):
            self._charge(unit, cause)
        return self._assign()

    def rejected(self, worker: int, unit: int, cause: BaseException) -> list[Instruction]:
        """Note that a unit failed for a reason that no second try will change."""
        self._hear(worker)
        self._take_back(worker, unit)
        if unit not in self.done:
            self.charges.setdefault(unit, []).append(cause)
            self._poison(unit, cause)
        return self._assign()

    def worker_lost(self, worker: int, cause: BaseException) -> list[Instruction]:
        """Take back all that a dead worker held, and charge only the unit that was running; of one that was leaving, none.

        Nor is a unit charged again by a worker that was last heard of before its last charge: where several die at once, that of which
        the news comes later may have been dead when it was given the unit.
        """
        leaving, heard = worker in self.leaving, self._heard.pop(worker, 0)
        self.leaving.discard(worker)
        if worker in self.starting:
            self.starting.discard(worker)
            return self._replace_workers() if leaving else self.start_failed(worker, cause, retry=True)
        # One of them may be done: another worker, given up for dead, had it before.
        units = [unit for unit in self.held.pop(worker, []) if unit not in self.done]
        self._place(worker)
        for unit in units:
            self._release(worker, unit)
        uncharged = units if leaving else units[1:]
        self._fresh.extendleft(reversed([unit for unit in uncharged if unit not in self._twice]))
        if units and not leaving:
            self._events += 1
            if self._charged_at.get(units[0], 0) <= heard:
                self._charged_at[units[0]] = self._events
                self._charge(units[0], cause)
            elif units[0] not in self._twice:
                self._charged.append(units[0])
        return self._replace_workers() + self._assign()

    def _hear(self, worker: int) -> None:
        """Note that a worker lives."""
        self._events += 1
        if worker in self.held:
            self._heard[worker] = self._events

    def _charge(self, unit: int, cause: BaseException) -> None:
        """Hold a failure against a unit that no worker holds any more."""
        if unit in self.done:
            return
        causes = self.charges.setdefault(unit, [])
        causes.append(cause)
        if len(causes) >= ATTEMPTS:
            self._poison(unit, cause)
        elif unit in self._twice:
            self._place(self._twice[unit][0])  # who goes on with it, alone
        else:
            # Behind all others: if the unit kills its worker, the rest of the pool has gone before.
            self._charged.append(unit)

    def _poison(self, unit: int, cause: BaseException) -> None:
        self.done.add(unit)
        self.poisoned[unit] = cause

    def _take_back(self, worker: int, unit: int) -> bool:
        """Take the unit from the worker, for good; tells whether the worker held it."""
        units = self.held.get(worker, [])
        if unit not in units:
            return False
        units.remove(unit)
        if self._twice:
            self._release(worker, unit)
        self._place(worker)
        return True

    def _release(self, worker: int, unit: int) -> None:
        """Note that a worker holds the unit no more, and whether another one still does."""
        if unit in self._twice:
            self._twice[unit] = [holder for holder in self._twice[unit] if holder != worker]
            if not self._twice[unit]:
                del self._twice[unit]

    def _place(self, worker: int) -> None:
        """File a worker by how many units it holds, or not at all if it may be given none.

        A unit that was charged before has its worker to itself. Which of two units a worker died of can't always be told: the older
        one may have been waiting for the disk. Alone, an innocent unit clears itself, and a guilty one is charged for certain.
        """
        for workers in self._free:
            workers.pop(worker, None)
        units = self.held.get(worker)
        if units is None or worker in self.leaving or len(units) >= self.in_flight:
            return
        if not self.charges or not any(unit in self.charges for unit in units):
            self._free[len(units)][worker] = None

    def _assign(self) -> list[Instruction]:
        """Give the emptiest worker the next unit, as long as there are both."""
        instructions: list[Instruction] = []
        for count, workers in enumerate(self._free):
            while workers and (unit := self._take_next(alone=not count)) is not None:
                worker, _ = workers.popitem(last=False)
                self.held[worker].append(unit)
                self._place(worker)
                instructions.append(Assign(worker, unit))
        return instructions

    def _take_next(self, alone: bool) -> int | None:
        """Take the next unit, one that was charged before only for a worker that is `alone` with it."""
        for units in (self._fresh, self._charged) if alone else (self._fresh,):
            while units:
                unit = units.popleft()
                if unit not in self.done:
                    return unit
        return None

    def _replace_workers(self) -> list[Instruction]:
        alive = len(self.held) + len(self.starting) - len(self.leaving)
        wanted = min(self.workers, self.units - len(self.done))
        return [self._start_worker() for _ in range(wanted - alive)]

    def _start_worker(self) -> StartWorker:
        worker = self._next_worker
        self._next_worker += 1
        self.starting.add(worker)
        return StartWorker(worker)


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

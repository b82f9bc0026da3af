"""Decides which worker scores which unit, and what to do when something fails. Nothing else.

Events go in as method calls, instructions come out as lists. No clock, no process, no ray: every corner of a
distributed run is a few plain calls in a test.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

IN_FLIGHT = 2
"""Units that a worker holds: one is computed while the next one is read and the one before is committed."""

ATTEMPTS = 3
"""A unit charged this often is poison; a worker that fails to start this often in a row ends the run."""


@dataclass(frozen=True)
class StartWorker:
    """Start a worker under this name; names are never used twice."""

    worker: int


@dataclass(frozen=True)
class Assign:
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

    Args:
        units: how many units there are; they are known by their numbers.
        workers: how many workers to keep alive.
    """

    units: int
    workers: int
    pending: deque[int] = field(init=False)
    """Units that no worker holds, next one first. Disjoint from every worker's list and from `done`."""
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
    _next_worker: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.pending = deque(range(self.units))

    @property
    def finished(self) -> bool:
        """Whether every unit is done or poisoned."""
        return len(self.done) == self.units

    def start(self) -> list[Instruction]:
        """The first instructions: no more workers than units."""
        return self._replace_workers()

    def add(self, units: int) -> list[Instruction]:
        """So many further units, numbered on from the last; workers that are ready take them at once."""
        self.pending.extend(range(self.units, self.units + units))
        self.units += units
        return self._replace_workers() + self._assign()

    def worker_ready(self, worker: int) -> list[Instruction]:
        """A worker has loaded the model and waits for work."""
        if worker not in self.starting:
            return []
        self.starting.discard(worker)
        self.failed_starts = 0
        self.held[worker] = []
        return self._assign()

    def start_failed(self, worker: int, cause: BaseException, retry: bool) -> list[Instruction]:
        """A worker could not start; with `retry` False, no other one can either."""
        self.starting.discard(worker)
        self.failed_starts += 1
        if not retry or self.failed_starts >= ATTEMPTS:
            return [Abort(cause)]
        return self._replace_workers()

    def succeeded(self, worker: int, unit: int) -> list[Instruction]:
        """A unit's receipt came; it may come twice, or after its worker was given up."""
        self._take_back(worker, unit)
        self.done.add(unit)
        self.poisoned.pop(unit, None)
        if unit in self.pending:
            self.pending.remove(unit)
        return self._assign()

    def failed(self, worker: int, unit: int, cause: BaseException) -> list[Instruction]:
        """A unit failed for a reason that may pass; the worker lives."""
        self._take_back(worker, unit)
        self._charge(unit, cause)
        return self._assign()

    def rejected(self, worker: int, unit: int, cause: BaseException) -> list[Instruction]:
        """A unit failed for a reason that no second try will change."""
        self._take_back(worker, unit)
        self.charges.setdefault(unit, []).append(cause)
        self._poison(unit, cause)
        return self._assign()

    def worker_lost(self, worker: int, cause: BaseException) -> list[Instruction]:
        """A worker died: all it held goes back, and only the unit that was running is charged."""
        if worker in self.starting:
            return self.start_failed(worker, cause, retry=True)
        units = self.held.pop(worker, [])
        for unit in reversed(units[1:]):
            self.pending.appendleft(unit)
        if units:
            self._charge(units[0], cause)
        return self._replace_workers() + self._assign()

    def _charge(self, unit: int, cause: BaseException) -> None:
        if unit in self.done or unit in self.pending or any(unit in units for units in self.held.values()):
            return
        causes = self.charges.setdefault(unit, [])
        causes.append(cause)
        if len(causes) >= ATTEMPTS:
            self._poison(unit, cause)
        else:
            # Last in the queue: if the unit kills its worker, the rest of the pool has gone before.
            self.pending.append(unit)

    def _poison(self, unit: int, cause: BaseException) -> None:
        if unit in self.done:
            return
        self.done.add(unit)
        self.poisoned[unit] = cause

    def _take_back(self, worker: int, unit: int) -> None:
        units = self.held.get(worker, [])
        if unit in units:
            units.remove(unit)

    def _assign(self) -> list[Instruction]:
        instructions: list[Instruction] = []
        while (found := self._next_assignment()) is not None:
            self.pending.remove(found.unit)
            self.held[found.worker].append(found.unit)
            instructions.append(found)
        return instructions

    def _next_assignment(self) -> Assign | None:
        """The emptiest worker takes the next unit; a unit that was charged before has its worker to itself.

        Which of two units a worker died of can't always be told: the older one may have been waiting for the disk.
        Alone, an innocent unit clears itself, and a guilty one is charged for certain.
        """
        free = [w for w, units in self.held.items() if len(units) < IN_FLIGHT and not any(u in self.charges for u in units)]
        if not free:
            return None
        worker = min(free, key=lambda w: (len(self.held[w]), w))
        return next((Assign(worker, unit) for unit in self.pending if unit not in self.charges or not self.held[worker]), None)

    def _replace_workers(self) -> list[Instruction]:
        alive = len(self.held) + len(self.starting)
        wanted = min(self.workers, self.units - len(self.done))
        return [self._start_worker() for _ in range(wanted - alive)]

    def _start_worker(self) -> StartWorker:
        worker = self._next_worker
        self._next_worker += 1
        self.starting.add(worker)
        return StartWorker(worker)

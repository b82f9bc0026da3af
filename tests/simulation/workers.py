"""Workers in processes that may die, hang, be taken for dead, or be taken away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import xxhash

from raystream.errors import ClusterError, PoolError, RaystreamError
from raystream.lake.retry import Patience
from raystream.scoring.executor import Event, StartFailed, UnitEnded, WorkerLeaving, WorkerLost, WorkerReady
from raystream.scoring.job import ScoringJob, UnitTask
from raystream.scoring.worker import Follow, Worker, alone
from raystream.store.protocol import Store
from raystream.store.receipts import Receipt, UnitOutputs, unit_folder
from simulation.bucket import Broken
from simulation.world import Inbox, Process, World


def content(key: str, output: str) -> bytes:
    """What a unit's output holds: the same whoever computes it."""
    return xxhash.xxh3_128_digest(f"{key} {output}".encode()) * 3


@dataclass
class Tally:
    """What was done in all runs of one seed."""

    attempts: list[tuple[str, str, str]] = field(default_factory=list)
    """Of each: the run, the unit's key, its outputs."""
    excused: int = 0
    """Attempts that something which went wrong explains."""
    lost: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Manners:
    """How units and workers behave in one seed.

    Attributes:
        poison: by the key of a unit, what it does: `kills`, `raises`, `bad`.
        seconds: that a unit takes.
        hangs: attempts, of all, that take a hundred times as long.
    """

    poison: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 5.0
    hangs: float = 0.0


class SimulatedWorker(Worker):
    """Retries, commits and fails as any worker; what it computes takes its time and is nothing much."""

    def __init__(self, job: ScoringJob, store: Store, patience: Patience, world: World, manners: Manners) -> None:
        self._job, self._store, self._patience = job, store, patience
        self._world, self._manners = world, manners
        self._computing = threading.Lock()

    def score(self, task: UnitTask, follow: Follow = alone) -> UnitOutputs:
        world, manners = self._world, self._manners
        harm = manners.poison.get(task.key)
        took = manners.seconds * world.random.uniform(0.5, 1.5)
        if world.random.random() < manners.hangs:
            took *= 100.0
        for _ in range(2):
            world.sleep(took / 2)
            follow(1)
        if harm == "kills":
            world.me.kill()
            world.sleep(0.0)
        if harm == "raises":
            raise RuntimeError("something odd")
        if harm == "bad":
            raise PoolError(f"{task.unit.name}: can't be read")
        attempt = f"{world.random.getrandbits(48):012x}"
        receipts = []
        for output in task.outputs:
            name = f"{unit_folder(task.key)}/{output.name}-{attempt}.parquet"
            try:
                with self._store.writing(name) as file:
                    file.write(content(task.key, output.name))
            except RaystreamError:
                self._store.discard(name)
                raise
            receipts.append(self._receipt(task, output.name, name))
        return self._commit(receipts)

    def _receipt(self, task: UnitTask, output: str, name: str) -> Receipt:
        return Receipt(
            key=task.key, output=output, unit=task.unit.name, rows=task.unit.rows,
            positions=xxhash.xxh3_64_hexdigest(np.arange(task.unit.rows).data), file=self._store.stored(name), columns=("margin",),
            width=None, members=None, classes=2, batch_size=32, state_hash="s", quarantined=0, quarantine_reasons=(),
            bytes_read=task.unit.bytes, seconds=1.0,
        )  # fmt: skip


class Machines:
    """The executor of one run: its workers are processes of the simulation.

    Args:
        world: decides what happens.
        run: the name of the run whose workers these are.
        work: makes a worker within its process.
        tally: told of every attempt.
        check: told of every unit that is handed out.
    """

    def __init__(
        self, world: World, run: str, work: Callable[[], SimulatedWorker], tally: Tally, check: Callable[[UnitTask], None]
    ) -> None:
        self._world, self._run, self._make, self._tally, self._check = world, run, work, tally, check
        self._events = Inbox(world)
        self.processes: dict[int, Process] = {}
        self._inboxes: dict[int, Inbox] = {}
        self._held: dict[int, list[int]] = {}
        self._given_up: set[int] = set()
        self._heard: set[int] = set()
        self.closed = False

    def start_worker(self, worker: int) -> None:
        world = self._world
        process = self.processes[worker] = Process(f"{self._run}/{worker}", world.random.choice([0.0, -3600.0, 3600.0]))
        self._inboxes[worker], self._held[worker] = Inbox(world), []
        world.log("starts worker", worker)

        def work() -> None:
            world.sleep(world.random.uniform(0.1, 5.0))
            scorer = self._make()
            try:
                if not scorer._store.exists(scorer._job.token):
                    raise ClusterError("the worker doesn't see the driver's store")
            except RaystreamError as error:
                self._events.put(StartFailed(worker, error, retry=False))
                return
            self._events.put(WorkerReady(worker))
            for _ in range(2):
                world.spawn(process, lambda: self._score(worker, scorer))

        process.at_death.append(lambda: world.at(world.random.uniform(0.1, 3.0), lambda: self._lose(worker)))
        world.spawn(process, work)

    def assign(self, worker: int, unit: int, task: UnitTask) -> None:
        self._check(task)
        if unit in self._heard:
            raise Broken(f"{task.unit.name} is scored again by {self._run}, which has had its receipts")
        self._tally.excused += any(unit in units for other, units in self._held.items() if other not in self._given_up)
        self._world.log("assigns", task.unit.name, "to", worker)
        self._held[worker].append(unit)
        self._inboxes[worker].put((unit, task))

    def wait(self, timeout: float) -> list[Event]:
        found: list[Event] = self._events.take_all(timeout)
        self._heard.update(e.unit for e in found if isinstance(e, UnitEnded) and isinstance(e.outcome, UnitOutputs))
        return sorted(found, key=lambda event: isinstance(event, WorkerLost))

    def close(self) -> None:
        self.closed = True
        self._tally.excused += sum(map(len, self._held.values()))
        for process in self.processes.values():
            process.kill()

    # what goes wrong

    def kill(self, count: int) -> None:
        """Some workers die at once, and are heard of a moment later."""
        alive = [worker for worker, process in self.processes.items() if process.alive]
        for worker in self._world.random.sample(alive, min(count, len(alive))):
            self._world.log("worker", worker, "is killed")
            self.processes[worker].kill()

    def take_for_dead(self) -> None:
        """A worker can't be reached, and is given up; it goes on all the same, and writes late."""
        alive = [worker for worker, process in self.processes.items() if process.alive and worker not in self._given_up]
        if alive:
            worker = self._world.random.choice(alive)
            self._lose(worker)

    def drain(self) -> None:
        """A worker's machine is about to be taken away, and then is."""
        alive = [worker for worker, process in self.processes.items() if process.alive and worker not in self._given_up]
        if alive:
            worker = self._world.random.choice(alive)
            self._events.put(WorkerLeaving(worker))
            self._world.at(self._world.random.uniform(0.0, 30.0), self.processes[worker].kill)

    def _lose(self, worker: int) -> None:
        if self.closed or worker in self._given_up:
            return
        self._given_up.add(worker)
        self._tally.lost += 1
        self._tally.excused += len(self._held[worker])
        self._events.put(WorkerLost(worker, RaystreamError("the worker died")))

    def _score(self, worker: int, scorer: SimulatedWorker) -> None:
        while True:
            unit, task = self._inboxes[worker].take()
            self._tally.attempts.append((self._run, task.key, " ".join(output.name for output in task.outputs)))
            outcome = scorer.attempt(task)
            self._held[worker].remove(unit)
            if not isinstance(outcome, UnitOutputs):
                self._tally.failed += 1
                self._tally.excused += 1
                self._world.log("failed", task.unit.name, outcome.error)
            self._events.put(UnitEnded(worker, unit, outcome))

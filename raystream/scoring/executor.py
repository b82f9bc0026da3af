"""The seam between the decisions and the processes: workers are started, given units, and heard of again.

`Scoring` carries the scheduler's instructions to an executor, and the executor's events back.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from raystream.errors import ClusterError, ModelError, QueryError, RaystreamError
from raystream.scoring.job import ScoringJob, UnitTask
from raystream.scoring.scheduler import ATTEMPTS, IN_FLIGHT, Abort, Assign, Instruction, Scheduler, Stragglers
from raystream.scoring.worker import PATIENCE, Abandoned, Failure, Worker, started
from raystream.store.receipts import UnitOutputs


@dataclass(frozen=True)
class WorkerReady:
    """The worker has loaded the model."""

    worker: int


@dataclass(frozen=True)
class StartFailed:
    """The worker could not start; with `retry` False, no other one can either."""

    worker: int
    error: BaseException
    retry: bool


@dataclass(frozen=True)
class UnitEnded:
    """The worker is through with a unit, well or not."""

    worker: int
    unit: int
    outcome: UnitOutputs | Failure


@dataclass(frozen=True)
class WorkerLost:
    """The worker died; what it held may or may not be scored. `memory`: its machine had none left; `preempted`: it was taken away."""

    worker: int
    error: BaseException
    memory: bool = False
    preempted: bool = False


@dataclass(frozen=True)
class WorkerLeaving:
    """The worker's machine is about to be taken away; until then it goes on."""

    worker: int


@dataclass(frozen=True)
class Told:
    """A worker of another process has something to say to people."""

    worker: int
    text: str


@dataclass(frozen=True)
class UnitGoesOn:
    """The worker is through with so many of a unit's rows; none of them counts before the unit has ended."""

    worker: int
    unit: int
    rows: int


Event = WorkerReady | StartFailed | UnitEnded | WorkerLost | WorkerLeaving | Told | UnitGoesOn

_log = logging.getLogger("raystream")

RAY_SECONDS = 6.0
"""About what a Ray takes to start on a laptop, its workers included."""
RAY_PAYS_SECONDS = 1.5 * RAY_SECONDS
"""What one worker may still have to do for a Ray not to pay: while it starts, it needs the processors itself."""
GOES_ON_SECONDS = 0.5
"""Between two words of one unit."""
FAR_SECONDS = 5.0
"""The same of workers elsewhere, which may be a thousand."""
_ENDING_SECONDS = 1.0
"""How long workers of this process are waited for when they are ended: what they run can't be broken off but between two batches."""


def now_and_then(say: Callable[[int], None], every: float = GOES_ON_SECONDS) -> Callable[[int], None]:
    """Make what calls `say` the first time at once, and then only once in so many seconds."""
    last = float("-inf")

    def say_if_time(rows: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= every:
            last = now
            say(rows)

    return say_if_time


def all_events(events: queue.Queue[Event], timeout: float) -> list[Event]:
    """Take all that is in a queue; wait up to `timeout` seconds for the first of it."""
    try:
        found = [events.get(timeout=timeout)]
    except queue.Empty:
        return []
    while not events.empty():
        found.append(events.get())
    return found


class Executor(Protocol):
    """Runs workers somewhere. Calls come from one thread; events are fetched, never pushed."""

    def start_worker(self, worker: int) -> None:
        """Begin to start a worker under this number; `WorkerReady` or `StartFailed` follows."""

    def assign(self, worker: int, unit: int, task: UnitTask) -> None:
        """Send a unit to a worker that is ready; `UnitEnded` or `WorkerLost` follows."""

    def wait(self, timeout: float) -> list[Event]:
        """Return what happened since; waits up to `timeout` seconds for the first of it."""

    def close(self) -> None:
        """End all workers; what they had not committed is not scored."""


class WorkerSource(Protocol):
    """Where workers run. Nothing is started until they are asked for."""

    def workers(self, job: ScoringJob, rows: int, size: int) -> tuple[Executor, int]:
        """Make an executor for so many rows and bytes, and others that may come, and say how many workers to keep alive in it."""


class InProcess:
    """Workers as threads of this process, without Ray. For small pools and for tests."""

    def __init__(self, job: ScoringJob) -> None:
        self._job = job
        self._events: queue.Queue[Event] = queue.Queue()
        self._inboxes: dict[int, queue.Queue[tuple[int, UnitTask] | None]] = {}
        self._threads: list[threading.Thread] = []
        self._closed = threading.Event()
        self._dropped: set[int] = set()
        self._patience = replace(PATIENCE, pause=self.pause)
        self._loading = threading.Lock()
        self._threads_before = torch.get_num_threads()

    def start_worker(self, worker: int) -> None:
        self._inboxes[worker] = queue.Queue()
        thread = threading.Thread(target=self._work, args=(worker,), name="raystream-worker", daemon=True)
        self._threads.append(thread)
        thread.start()

    def assign(self, worker: int, unit: int, task: UnitTask) -> None:
        self._inboxes[worker].put((unit, task))

    def wait(self, timeout: float) -> list[Event]:
        return all_events(self._events, timeout)

    def drop(self, unit: int) -> None:
        """Abandon a unit that was assigned, since it is another's now, before its next batch, unless it has ended."""
        self._dropped.add(unit)

    def leave(self) -> None:
        """Have the workers end after the batch that they are at, and don't wait for it; the units that they hold are abandoned."""
        self._closed.set()
        for inbox in self._inboxes.values():
            inbox.put(None)

    def close(self) -> None:
        self.leave()
        until = time.monotonic() + _ENDING_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        torch.set_num_threads(self._threads_before)

    def pause(self, seconds: float) -> bool:
        """Wait for a storage that is away; whether the run ended meanwhile."""
        return self._closed.wait(seconds)

    def _work(self, worker: int) -> None:
        try:
            # Factories run under a seed, and the generators are the whole process's.
            with self._loading:
                scorer = started(self._job, self._patience)
        except BaseException as error:
            # SystemExit from the user's code, too: a thread that ends without a word would be waited for for ever.
            self._events.put(StartFailed(worker, error, retry=not isinstance(error, RaystreamError)))
            return
        self._events.put(WorkerReady(worker))
        # As in an actor: while one unit is computed, the next one is read and the one before is written.
        beside = [threading.Thread(target=self._score, args=(worker, scorer), daemon=True) for _ in range(IN_FLIGHT - 1)]
        for thread in beside:
            thread.start()
        self._score(worker, scorer)
        for thread in beside:
            thread.join()

    def _score(self, worker: int, scorer: Worker) -> None:
        while (item := self._inboxes[worker].get()) is not None and not self._closed.is_set():
            unit, task = item
            try:
                outcome = scorer.attempt(task, self._follow(worker, unit))
            except Abandoned:
                continue
            except BaseException as error:
                # A lost device, or the user's code asking to exit: there is no other process to try in.
                told = f"{task.unit.name}: {type(error).__name__}: {error}"
                outcome = Failure(ModelError(told), retry=False)
            self._events.put(UnitEnded(worker, unit, outcome))
        self._inboxes[worker].put(None)  # for the threads beside

    def _follow(self, worker: int, unit: int) -> Callable[[int], None]:
        """Make what tells of a unit's rows, and ends it where the workers are to end."""
        say = now_and_then(lambda rows: self._events.put(UnitGoesOn(worker, unit, rows)))

        def follow(rows: int) -> None:
            if self._closed.is_set() or unit in self._dropped:
                raise Abandoned
            say(rows)

        return follow


_POLL_SECONDS = 1.0


class Scoring:
    """Scores units on one set of workers, which stay up from one call to the next.

    Args:
        executor: where the workers run; not closed here.
        workers: how many to keep alive.
        keep_going: whether a unit with bad data is passed over, instead of ending the run.
        on_event: told of each event, and of None when nothing happened for a second.
        clock: seconds.
    """

    def __init__(
        self,
        executor: Executor,
        workers: int,
        *,
        keep_going: bool,
        on_event: Callable[[Event | None], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._executor, self._keep_going, self._on_event = executor, keep_going, on_event
        self._scheduler = Scheduler(0, workers)
        self._stragglers = Stragglers(clock)
        self._tasks: Sequence[UnitTask] = ()
        self._first = 0

    def score(self, tasks: Sequence[UnitTask], keep: Callable[[int, UnitOutputs], None]) -> dict[int, tuple[BaseException, ...]]:
        """Score the tasks.

        Args:
            tasks: looked at one by one, some more than once.
            keep: takes the outputs of each, with its number among them, as they come; maybe twice.

        Returns:
            why tasks have none, by their numbers: the cause of each attempt.

        Raises:
            RaystreamError: bad data or bad model output without `keep_going`, or workers that can't start.
        """
        self._first, self._tasks = self._scheduler.units, tasks
        self._follow(self._scheduler.add(len(tasks)))
        while not self._scheduler.finished:
            events = self._executor.wait(_POLL_SECONDS)
            for event in events:
                if isinstance(event, UnitEnded) and isinstance(event.outcome, UnitOutputs):
                    if event.unit >= self._first:
                        keep(event.unit - self._first, event.outcome)
                    self._on_event(event)
                    self._stragglers.ended(event.unit, well=True)
                    self._follow(self._scheduler.succeeded(event.worker, event.unit))
                else:
                    self._on_event(event)
                    self._take_in(event)
                    self._follow(_tell(self._scheduler, event, self._keep_going))
            if not events:
                self._on_event(None)
            if self._scheduler.idle:
                for unit in self._stragglers.late():
                    self._follow(self._scheduler.late(unit))
        charges = self._scheduler.charges
        return {unit - self._first: tuple(charges[unit]) for unit in self._scheduler.poisoned if unit >= self._first}

    def _take_in(self, event: Event) -> None:
        """Note that a unit failed, and that memory runs out, which is said once."""
        if isinstance(event, UnitEnded):
            self._stragglers.ended(event.unit, well=False)
        if _ran_out_of_memory(event) and self._scheduler.spare_memory():
            _log.warning("a worker ran out of memory; from now on each holds one unit at a time and reads no other one ahead")

    def _follow(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, Abort):
                raise _as_ours(instruction.cause)
            if isinstance(instruction, Assign):
                self._stragglers.began(instruction.unit)
                self._executor.assign(instruction.worker, instruction.unit, self._tasks[instruction.unit - self._first])
            else:
                self._executor.start_worker(instruction.worker)


def _tell(scheduler: Scheduler, event: Event, keep_going: bool) -> list[Instruction]:
    if isinstance(event, UnitEnded) and isinstance(event.outcome, Failure):
        return _tell_failed(scheduler, event.worker, event.unit, event.outcome, keep_going)
    if isinstance(event, WorkerReady):
        return scheduler.worker_ready(event.worker)
    if isinstance(event, StartFailed):
        return scheduler.start_failed(event.worker, event.error, event.retry)
    if isinstance(event, WorkerLost):
        leaving = scheduler.worker_leaving(event.worker) if event.preempted else []
        return leaving + [_by_deaths(told) for told in scheduler.worker_lost(event.worker, event.error)]
    if isinstance(event, WorkerLeaving):
        return scheduler.worker_leaving(event.worker)
    return []


def _tell_failed(scheduler: Scheduler, worker: int, unit: int, failure: Failure, keep_going: bool) -> list[Instruction]:
    if failure.outage:
        return [Abort(failure.error)]
    if failure.retry:
        return scheduler.failed(worker, unit, failure.error)
    if keep_going and not isinstance(failure.error, QueryError):  # what no unit can be asked
        return scheduler.rejected(worker, unit, failure.error)
    return [Abort(failure.error)]


def _by_deaths(instruction: Instruction) -> Instruction:
    """Say of the end of a run whose workers die before they are ready that it is no defect of the model's, nor of ours."""
    if not isinstance(instruction, Abort):
        return instruction
    return Abort(
        ClusterError(
            f"{ATTEMPTS} workers in a row could not start, the last one so: {instruction.cause}; see that a worker has memory for the "
            "model, and run again to resume"
        )
    )


def _ran_out_of_memory(event: Event) -> bool:
    if isinstance(event, UnitEnded):
        return isinstance(event.outcome, Failure) and event.outcome.memory
    return isinstance(event, WorkerLost) and event.memory


def _as_ours(cause: BaseException) -> BaseException:
    if isinstance(cause, RaystreamError):
        return cause
    return RaystreamError(f"workers can't start: {type(cause).__name__}: {cause}")

"""Scores units: carries the scheduler's instructions to an executor, and the executor's events back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raystream.errors import QueryError, RaystreamError
from raystream.scoring.executor import Event, Executor, StartFailed, Told, UnitEnded, WorkerLost, WorkerReady
from raystream.scoring.job import UnitTask
from raystream.scoring.scheduler import Abort, Assign, Instruction, Scheduler
from raystream.store.receipts import UnitOutputs

_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Scored:
    """What became of the units, by their numbers: each has outputs or a reason why not."""

    outputs: dict[int, UnitOutputs]
    failed: dict[int, BaseException]


class Scoring:
    """Scores units on one set of workers, which stay up from one call to the next.

    Args:
        executor: where the workers run; not closed here.
        workers: how many to keep alive.
        keep_going: whether a unit with bad data is passed over, instead of ending the run.
        on_event: told of each event, and of None when nothing happened for a second.
    """

    def __init__(self, executor: Executor, workers: int, *, keep_going: bool, on_event: Callable[[Event | None], None]) -> None:
        self._executor, self._keep_going, self._on_event = executor, keep_going, on_event
        self._scheduler = Scheduler(0, workers)
        self._tasks: list[UnitTask] = []
        self._outputs: dict[int, UnitOutputs] = {}

    def score(self, tasks: Sequence[UnitTask]) -> Scored:
        """Score the tasks.

        Raises:
            RaystreamError: bad data or bad model output without `keep_going`, or workers that can't start.
        """
        first = len(self._tasks)
        self._tasks += tasks
        self._follow(self._scheduler.add(len(tasks)))
        while not self._scheduler.finished:
            events = self._executor.wait(_POLL_SECONDS)
            for event in events:
                if isinstance(event, UnitEnded) and isinstance(event.outcome, UnitOutputs):
                    self._outputs[event.unit] = event.outcome
                self._on_event(event)
                self._follow(_tell(self._scheduler, event, self._keep_going))
            if not events:
                self._on_event(None)
        numbers = range(first, len(self._tasks))
        poisoned = self._scheduler.poisoned
        return Scored(
            {i - first: self._outputs[i] for i in numbers if i in self._outputs},
            {i - first: poisoned[i] for i in numbers if i in poisoned},
        )

    def _follow(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, Abort):
                raise _as_ours(instruction.cause)
            if isinstance(instruction, Assign):
                self._executor.assign(instruction.worker, instruction.unit, self._tasks[instruction.unit])
            else:
                self._executor.start_worker(instruction.worker)


def _tell(scheduler: Scheduler, event: Event, keep_going: bool) -> list[Instruction]:
    if isinstance(event, WorkerReady):
        return scheduler.worker_ready(event.worker)
    if isinstance(event, StartFailed):
        return scheduler.start_failed(event.worker, event.error, event.retry)
    if isinstance(event, WorkerLost):
        return scheduler.worker_lost(event.worker, event.error)
    if isinstance(event, Told):
        return []
    outcome = event.outcome
    if isinstance(outcome, UnitOutputs):
        return scheduler.succeeded(event.worker, event.unit)
    if outcome.outage:
        return [Abort(outcome.error)]
    if outcome.retry:
        return scheduler.failed(event.worker, event.unit, outcome.error)
    if keep_going and not isinstance(outcome.error, QueryError):  # what no unit can be asked
        return scheduler.rejected(event.worker, event.unit, outcome.error)
    return [Abort(outcome.error)]


def _as_ours(cause: BaseException) -> BaseException:
    if isinstance(cause, RaystreamError):
        return cause
    return RaystreamError(f"workers can't start: {type(cause).__name__}: {cause}")

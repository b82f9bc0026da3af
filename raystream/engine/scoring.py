"""Scores units: carries the scheduler's instructions to an executor, and the executor's events back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raystream.engine.executor import Event, Executor, StartFailed, UnitEnded, WorkerLost, WorkerReady
from raystream.engine.job import Task
from raystream.engine.receipt import Receipt
from raystream.engine.scheduler import Abort, Assign, Instruction, Scheduler
from raystream.errors import RaystreamError

_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Scored:
    """What became of the units, by their numbers: each has a receipt or a reason why not."""

    receipts: dict[int, Receipt]
    failed: dict[int, BaseException]


def score_units(
    tasks: Sequence[Task],
    executor: Executor,
    workers: int,
    *,
    keep_going: bool,
    on_event: Callable[[Event | None], None],
) -> Scored:
    """Score all tasks with that many workers.

    Args:
        tasks: the units that have no receipt yet.
        executor: where the workers run; not closed here.
        workers: how many to keep alive.
        keep_going: whether a unit with bad data is passed over, instead of ending the run.
        on_event: told of each event, and of None when nothing happened for a second.

    Raises:
        RaystreamError: bad data or bad model output without `keep_going`, or workers that can't start.
    """
    scheduler = Scheduler(len(tasks), workers)
    receipts: dict[int, Receipt] = {}

    def follow(instructions: list[Instruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, Abort):
                raise _as_ours(instruction.cause)
            if isinstance(instruction, Assign):
                executor.assign(instruction.worker, instruction.unit, tasks[instruction.unit])
            else:
                executor.start_worker(instruction.worker)

    follow(scheduler.start())
    while not scheduler.finished:
        events = executor.wait(_POLL_SECONDS)
        for event in events:
            if isinstance(event, UnitEnded) and isinstance(event.outcome, Receipt):
                receipts[event.unit] = event.outcome
            instructions = _tell(scheduler, event, keep_going)
            on_event(event)
            follow(instructions)
        if not events:
            on_event(None)
    return Scored(receipts, dict(scheduler.poisoned))


def _tell(scheduler: Scheduler, event: Event, keep_going: bool) -> list[Instruction]:
    if isinstance(event, WorkerReady):
        return scheduler.worker_ready(event.worker)
    if isinstance(event, StartFailed):
        return scheduler.start_failed(event.worker, event.error, event.retry)
    if isinstance(event, WorkerLost):
        return scheduler.worker_lost(event.worker, event.error)
    outcome = event.outcome
    if isinstance(outcome, Receipt):
        return scheduler.succeeded(event.worker, event.unit)
    if outcome.retry:
        return scheduler.failed(event.worker, event.unit, outcome.error)
    if keep_going:
        return scheduler.rejected(event.worker, event.unit, outcome.error)
    return [Abort(outcome.error)]


def _as_ours(cause: BaseException) -> BaseException:
    if isinstance(cause, RaystreamError):
        return cause
    return RaystreamError(f"workers can't start: {type(cause).__name__}: {cause}")

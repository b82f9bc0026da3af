"""The scheduler, by plain calls: no process, no clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystream.scoring.scheduler import ATTEMPTS, IN_FLIGHT, Abort, Assign, Instruction, Scheduler, StartWorker


def assigned(instructions: list[Instruction]) -> list[tuple[int, int]]:
    return [(i.worker, i.unit) for i in instructions if isinstance(i, Assign)]


def started(instructions: list[Instruction]) -> list[int]:
    return [i.worker for i in instructions if isinstance(i, StartWorker)]


def running(units: int, workers: int) -> Scheduler:
    scheduler = Scheduler(units, workers)
    for worker in started(scheduler.start()):
        scheduler.worker_ready(worker)
    return scheduler


def test_starts_no_more_workers_than_units() -> None:
    """Two units need two workers at most."""
    assert started(Scheduler(2, 8).start()) == [0, 1]


def test_keeps_two_units_in_flight_per_worker() -> None:
    """A ready worker gets two units, and the next one as soon as one is done."""
    scheduler = Scheduler(5, 1)
    scheduler.start()
    assert assigned(scheduler.worker_ready(0)) == [(0, 0), (0, 1)]
    assert assigned(scheduler.succeeded(0, 0)) == [(0, 2)]


def test_spreads_units_over_workers() -> None:
    """The emptiest worker is served first."""
    scheduler = Scheduler(4, 2)
    scheduler.start()
    scheduler.worker_ready(0)
    assert assigned(scheduler.worker_ready(1)) == [(1, 2), (1, 3)]


def test_a_dead_worker_gives_back_all_and_only_the_running_unit_is_charged() -> None:
    """Unit 0 was running, unit 1 was waiting: only 0 is charged, 1 goes first again."""
    scheduler = running(3, 1)
    instructions = scheduler.worker_lost(0, RuntimeError("killed"))
    assert started(instructions) == [1]
    assert list(scheduler.charges) == [0]
    assert assigned(scheduler.worker_ready(1)) == [(1, 1), (1, 2)]


def test_a_charged_unit_has_its_worker_to_itself() -> None:
    """A unit that may have killed a worker runs alone, so that nobody else is charged for it again."""
    scheduler = running(4, 1)
    scheduler.worker_lost(0, RuntimeError("killed"))
    assert assigned(scheduler.worker_ready(1)) == [(1, 1), (1, 2)]
    assert assigned(scheduler.succeeded(1, 1)) == [(1, 3)]
    assert assigned(scheduler.succeeded(1, 2)) == []
    assert assigned(scheduler.succeeded(1, 3)) == [(1, 0)]


def test_an_innocent_unit_is_cleared_however_often_its_neighbour_kills() -> None:
    """Unit 1 kills whoever runs it, and unit 0 is always the older one in flight: only 1 is poisoned."""
    scheduler = Scheduler(2, 1)
    follow = scheduler.start()
    while not scheduler.finished:
        [worker] = started(follow)
        held = [unit for _, unit in assigned(scheduler.worker_ready(worker))]
        while held == [0]:
            held = [unit for _, unit in assigned(scheduler.succeeded(worker, 0))]
        follow = scheduler.worker_lost(worker, RuntimeError("killed")) if held else []
    assert list(scheduler.poisoned) == [1]


def test_a_unit_charged_three_times_is_poison_and_the_rest_goes_on() -> None:
    """The unit that kills its worker each time ends with its cause; all others are done."""
    scheduler = running(4, 1)
    worker, held, deaths = 0, [0, 1], 0
    while not scheduler.finished:
        if held[0] == 2:
            deaths += 1
            [worker] = started(scheduler.worker_lost(worker, RuntimeError(f"death {deaths}"))) or [-1]
            held = [unit for _, unit in assigned(scheduler.worker_ready(worker))] if worker >= 0 else []
        else:
            held = held[1:] + [unit for _, unit in assigned(scheduler.succeeded(worker, held[0]))]
    assert deaths == ATTEMPTS
    assert [str(cause) for cause in scheduler.poisoned.values()] == ["death 3"]
    assert list(scheduler.poisoned) == [2]


def test_a_failed_unit_is_tried_again_last() -> None:
    """A failure that may pass puts the unit behind the others."""
    scheduler = running(4, 1)
    assert assigned(scheduler.failed(0, 0, OSError("slow disk"))) == [(0, 2)]
    assert list(scheduler.pending) == [3, 0]


def test_rejected_units_are_never_tried_again() -> None:
    """Bad data is not retried."""
    scheduler = running(1, 1)
    assert scheduler.rejected(0, 0, ValueError("NaN")) == []
    assert scheduler.finished
    assert list(scheduler.poisoned) == [0]


def test_a_receipt_may_come_twice() -> None:
    """The second one changes nothing."""
    scheduler = running(3, 1)
    scheduler.succeeded(0, 0)
    assert scheduler.succeeded(0, 0) == []
    assert scheduler.done == {0}


def test_a_receipt_of_a_lost_worker_counts() -> None:
    """A unit that was put back and then turns out to be done is not scored again."""
    scheduler = running(3, 1)
    scheduler.worker_lost(0, RuntimeError("unavailable"))
    scheduler.succeeded(0, 0)
    assert 0 in scheduler.done
    assert 0 not in scheduler.pending


def test_a_poisoned_unit_whose_receipt_comes_after_all_is_done() -> None:
    """Evidence beats suspicion."""
    scheduler = running(1, 1)
    for _ in range(ATTEMPTS):
        scheduler.failed(0, 0, OSError("x"))
    assert scheduler.poisoned
    scheduler.succeeded(0, 0)
    assert not scheduler.poisoned


def test_a_lost_worker_is_reported_once() -> None:
    """A second report of the same loss charges nobody."""
    scheduler = running(2, 1)
    scheduler.worker_lost(0, RuntimeError("a"))
    assert scheduler.worker_lost(0, RuntimeError("b")) == []
    assert [len(causes) for causes in scheduler.charges.values()] == [1]


def test_a_unit_rejected_by_a_worker_given_up_is_not_tried_again() -> None:
    """The word of a worker that was taken for dead comes late: the unit, put back meanwhile, is done and nobody gets it."""
    scheduler = running(3, 1)
    scheduler.worker_lost(0, RuntimeError("unavailable"))
    scheduler.rejected(0, 0, ValueError("NaN"))
    scheduler.rejected(0, 1, ValueError("NaN"))
    assert scheduler.pending == [2]
    assert assigned(scheduler.worker_ready(1)) == [(1, 2)]
    scheduler.succeeded(1, 2)
    assert scheduler.finished
    assert sorted(scheduler.poisoned) == [0, 1]


def test_a_rejection_after_the_receipt_changes_nothing() -> None:
    """Evidence beats suspicion, whichever comes first; nobody is charged."""
    scheduler = running(2, 1)
    scheduler.succeeded(0, 0)
    scheduler.rejected(0, 0, ValueError("NaN"))
    assert not scheduler.poisoned
    assert not scheduler.charges


def test_a_worker_that_dies_over_a_unit_that_is_done_charges_the_next_one() -> None:
    """Its receipt came from a worker given up before; it isn't scored again, and whatever the worker died of, it wasn't that."""
    scheduler = running(3, 1)
    scheduler.worker_lost(0, RuntimeError("unavailable"))
    assert assigned(scheduler.worker_ready(1)) == [(1, 1), (1, 2)]
    scheduler.succeeded(0, 1)
    scheduler.worker_lost(1, RuntimeError("killed"))
    assert sorted(scheduler.charges) == [0, 2]
    assert scheduler.pending == [0, 2]


class Compared(int):
    """A unit's number that counts how often it is compared with another one."""

    times = 0

    def __eq__(self, other: object) -> bool:
        Compared.times += 1
        return int(self) == other

    __hash__ = int.__hash__


@pytest.mark.parametrize("workers", [1, 40])
def test_an_event_costs_the_same_however_many_units_there_are(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 units, of which some fail and some workers die: every number is looked at a few times, not once for each other unit."""
    monkeypatch.setattr(Compared, "times", 0)
    count, events = 2000, 0
    scheduler = Scheduler(count, workers)
    held: dict[int, list[int]] = {}
    follow = scheduler.start()
    while not scheduler.finished:
        for instruction in follow:
            if isinstance(instruction, Assign):
                held[instruction.worker].append(instruction.unit)
        follow = []
        for worker in sorted(scheduler.starting):
            held[worker] = []
            follow += scheduler.worker_ready(worker)
        for worker in [] if follow else sorted(held):
            events += 1
            if events % 97 == 0:
                del held[worker]
                follow += scheduler.worker_lost(worker, RuntimeError("killed"))
            elif held[worker]:
                unit = Compared(held[worker].pop(0))
                follow += scheduler.failed(worker, unit, OSError("x")) if events % 13 == 0 else scheduler.succeeded(worker, unit)
    assert len(scheduler.done) == count
    assert Compared.times <= 10 * events


def test_workers_that_cannot_start_abort_with_the_models_own_error() -> None:
    """After three failed starts in a row the first cause is not hidden behind a cluster error."""
    scheduler = Scheduler(9, 1)
    scheduler.start()
    cause = MemoryError("model too large")
    assert started(scheduler.start_failed(0, cause, retry=True)) == [1]
    assert started(scheduler.worker_lost(1, cause)) == [2]
    assert scheduler.start_failed(2, cause, retry=True) == [Abort(cause)]


def test_a_start_that_no_other_worker_can_do_better_aborts_at_once() -> None:
    """A model that can't be loaded is not loaded three times."""
    scheduler = Scheduler(9, 2)
    scheduler.start()
    cause = ValueError("no such module")
    assert scheduler.start_failed(0, cause, retry=False) == [Abort(cause)]


def test_no_worker_is_replaced_when_too_few_units_are_left() -> None:
    """With one unit left, one of two workers is enough."""
    scheduler = running(3, 2)
    scheduler.succeeded(0, 0)
    scheduler.succeeded(1, 2)
    assert started(scheduler.worker_lost(1, RuntimeError("x"))) == []


@pytest.mark.parametrize("workers", [1, 3])
@given(data=st.data())
def test_every_unit_ends_whatever_happens(workers: int, data: st.DataObject) -> None:
    """Under any order of events: no more in flight than allowed, nothing lost, nothing twice but what is late, and that twice at most."""
    scheduler = Scheduler(data.draw(st.integers(0, 9)), workers)
    held: dict[int, list[int]] = {}
    starting: list[int] = []
    leaving: set[int] = set()
    late: set[int] = set()

    def follow(instructions: list[Instruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, StartWorker):
                starting.append(instruction.worker)
            else:
                assert isinstance(instruction, Assign)
                assert instruction.unit not in scheduler.done
                assert instruction.worker not in leaving
                assert sum(instruction.unit in units for units in held.values()) <= (instruction.unit in late)
                assert instruction.unit not in held[instruction.worker]
                held[instruction.worker].append(instruction.unit)
                assert len(held[instruction.worker]) <= IN_FLIGHT

    follow(scheduler.start())
    while not scheduler.finished:
        busy = [worker for worker, units in held.items() if units]
        if starting and (not busy or data.draw(st.booleans())):
            worker = starting.pop(0)
            held[worker] = []
            follow(scheduler.worker_ready(worker))
            continue
        assert busy, "units are left, but nobody works"
        worker = data.draw(st.sampled_from(busy))
        what = data.draw(st.sampled_from(["succeed", "fail", "reject", "die", "leave", "be late", "run out of memory"]))
        if what == "die":
            held.pop(worker)
            follow(scheduler.worker_lost(worker, RuntimeError("died")))
            continue
        if what == "leave":
            leaving.add(worker)
            follow(scheduler.worker_leaving(worker))
            what = "succeed"  # or nothing would ever end
        if what == "run out of memory":
            scheduler.spare_memory()
            what = "fail"
        if what == "be late":
            late.add(held[worker][0])
            follow(scheduler.late(held[worker][0]))
            what = "succeed"
        unit = held[worker].pop(data.draw(st.integers(0, len(held[worker]) - 1)))
        if what == "succeed":
            follow(scheduler.succeeded(worker, unit))
        elif what == "fail":
            follow(scheduler.failed(worker, unit, OSError("x")))
        else:
            follow(scheduler.rejected(worker, unit, ValueError("x")))
    assert not scheduler.pending
    assert {unit for units in held.values() for unit in units} <= late


def test_a_late_unit_goes_to_whoever_has_nothing_to_do_and_the_first_receipt_counts() -> None:
    """Worker 0 hangs over unit 0; worker 1 is through with the rest and gets it, too; the slower receipt changes nothing."""
    scheduler = running(3, 2)
    assert scheduler.late(0) == []  # nobody is idle
    scheduler.succeeded(0, 1)
    assert not scheduler.idle
    scheduler.succeeded(1, 2)
    assert scheduler.idle
    assert scheduler.late(0) == [Assign(1, 0)]
    assert scheduler.late(0) == []  # never three times
    scheduler.succeeded(1, 0)
    assert scheduler.finished
    assert scheduler.succeeded(0, 0) == []
    assert scheduler.add(2)[0] == Assign(1, 3)  # the worker that was late is one again


def test_of_a_unit_handed_out_twice_one_failure_leaves_the_other_at_it() -> None:
    """It is charged, and goes back to the others only when neither of the two has it any more."""
    scheduler = running(2, 2)
    scheduler.succeeded(0, 1)
    assert scheduler.late(0) == [Assign(1, 0)]
    assert scheduler.failed(1, 0, OSError("x")) == []
    assert len(scheduler.charges[0]) == 1
    assert scheduler.late(0) == []  # it was charged: it may be what ends workers
    scheduler.worker_lost(0, RuntimeError("killed"))
    assert len(scheduler.charges[0]) == 2
    assert scheduler.held == {1: [0]}
    scheduler.succeeded(1, 0)
    assert scheduler.finished


def test_of_a_unit_handed_out_twice_the_death_of_one_does_not_put_it_back() -> None:
    """The worker that dies held it and another one, which alone goes back to the front."""
    scheduler = running(4, 2)
    scheduler.succeeded(1, 2)
    scheduler.succeeded(1, 3)
    assert scheduler.late(1) == [Assign(1, 1)]
    assert started(scheduler.worker_lost(0, RuntimeError("killed"))) == [2]
    assert scheduler.held == {1: [1]}
    assert scheduler.pending == [0]


def test_a_worker_that_is_about_to_go_gets_nothing_new_and_is_replaced_at_once() -> None:
    """It ends what it holds; what it can't end goes back, and nobody is charged for a machine that was taken away."""
    scheduler = running(6, 1)
    assert started(scheduler.worker_leaving(0)) == [1]
    assert scheduler.worker_leaving(0) == []
    assert scheduler.succeeded(0, 0) == []
    assert assigned(scheduler.worker_ready(1)) == [(1, 2), (1, 3)]
    assert scheduler.worker_lost(0, RuntimeError("taken away")) == []
    assert not scheduler.charges
    assert scheduler.pending == [1, 4, 5]


def test_a_worker_that_goes_before_it_was_ready_is_no_failed_start() -> None:
    """However many machines are taken away while their workers load the model, the run goes on."""
    scheduler = Scheduler(3, 1)
    [worker] = started(scheduler.start())
    for _ in range(2 * ATTEMPTS):
        [following] = started(scheduler.worker_leaving(worker))
        assert scheduler.worker_lost(worker, RuntimeError("taken away")) == []
        worker = following
    assert assigned(scheduler.worker_ready(worker)) == [(worker, 0), (worker, 1)]


def test_where_memory_runs_out_workers_hold_one_unit_each() -> None:
    """Those that hold two end them first; it is news once."""
    scheduler = running(6, 1)
    assert scheduler.spare_memory()
    assert not scheduler.spare_memory()
    assert assigned(scheduler.succeeded(0, 0)) == []
    assert assigned(scheduler.succeeded(0, 1)) == [(0, 2)]
    assert assigned(scheduler.succeeded(0, 2)) == [(0, 3)]


def test_workers_that_die_at_once_charge_a_unit_once() -> None:
    """It is handed to workers of whose death the news is still on its way; one that is heard of since charges it again."""
    scheduler = running(1, 1)
    for worker in (1, 2):
        scheduler.starting.add(worker)
        scheduler.worker_ready(worker)
    scheduler.worker_lost(0, RuntimeError("killed"))
    scheduler.worker_lost(1, RuntimeError("killed"))
    scheduler.worker_lost(2, RuntimeError("killed"))
    assert len(scheduler.charges[0]) == 1
    assert scheduler.pending == [0]
    for number in (2, 3):
        worker = min(scheduler.starting)
        scheduler.worker_ready(worker)
        assert scheduler.held[worker] == [0]
        scheduler.worker_lost(worker, RuntimeError("again"))
        assert len(scheduler.charges[0]) == number
    assert scheduler.finished
    assert list(scheduler.poisoned) == [0]

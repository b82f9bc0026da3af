"""What a loop and a stream leave in the store, with writers that come and go: of each step one record stands, and all read that one."""

from __future__ import annotations

import math
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from obstore.store import MemoryStore

from raystream.loop.journal import Asked, Closed, Journal, Judged, Reserved, Trained
from raystream.loop.labels import LabelValues, newest
from raystream.loop.streams.log import Arrival, Progress, StreamLog
from raystream.store.bucket import ObjectStore

WRITERS = st.integers(0, 1)
ROUNDS = st.integers(1, 3)
IDS = pa.string()


def bucket() -> ObjectStore:
    """A store in memory of its own."""
    memory: Any = MemoryStore()
    with patch("raystream.store.bucket.bucket_of", lambda uri, storage: memory):
        return ObjectStore("s3://bucket/runs")


class JournalMachine(RuleBasedStateMachine):
    """Two processes write one loop's journal; either may end and begin anew, which forgets what it knew."""

    @initialize()
    def begin(self) -> None:
        self.store = bucket()
        self.writers = [Journal(self.store, "l") for _ in range(2)]
        self.first: dict[tuple[str, int], Any] = {}
        self.count = 0

    @rule(writer=WRITERS)
    def killed(self, writer: int) -> None:
        self.writers[writer] = Journal(self.store, "l")

    @rule(writer=WRITERS, round_=ROUNDS, kind=st.sampled_from(["asked", "closed", "trained", "judged"]))
    def commit(self, writer: int, round_: int, kind: str) -> None:
        """Whoever comes second gets what stands there."""
        self.count += 1
        journal = self.writers[writer]
        record: Any
        if kind == "asked":
            batch = journal.put_table(round_, "selection", pa.table({"rid": [f"r{self.count}"]}))
            record = Asked(round_, f"q{self.count}", "margin", batch)
        elif kind == "closed":
            record = Closed(round_, f"digest {self.count}", "labels.parquet", {"labelled": self.count})
        elif kind == "trained":
            record = Trained(round_, {"weights": f"model-{self.count}"})
        else:
            record = Judged(round_, self.count, 0, {"accuracy": self.count / 100})
        stands = self.first.setdefault((kind, round_), record)
        assert getattr(journal, f"commit_{kind}")(record) == stands

    @rule(writer=WRITERS, number=ROUNDS)
    def reserve(self, writer: int, number: int) -> None:
        self.count += 1
        rows = Reserved([f"c{self.count}"], ["s"], [])
        stands = self.first.setdefault(("reserved", number), rows)
        assert self.writers[writer].commit_reserved(number, rows, IDS) == stands

    @invariant()
    def all_read_the_same(self) -> None:
        for journal in getattr(self, "writers", []):
            for (kind, number), record in self.first.items():
                assert getattr(journal, kind)(number) == record

    @invariant()
    def the_batch_that_people_see_is_the_one_that_stands(self) -> None:
        for (kind, round_), record in getattr(self, "first", {}).items():
            if kind == "asked":
                journal = self.writers[0]
                assert journal.read_table(round_, "selection.parquet") == journal.read_table(round_, record.batch)


class StreamMachine(RuleBasedStateMachine):
    """Two processes decide on one stream; each goes on from what it has read, which may be behind."""

    @initialize()
    def begin(self) -> None:
        self.store = bucket()
        self.logs = [StreamLog(self.store, "s") for _ in range(2)]
        self.seen: list[tuple[Progress, dict[str, Any]]] = [(Progress(), {}), (Progress(), {})]
        self.arrived: list[list[Arrival]] = []
        self.decided: list[list[str]] = []
        self.states: list[dict[str, Any]] = []
        self.count = 0

    @rule(writer=WRITERS)
    def killed(self, writer: int) -> None:
        self.logs[writer] = StreamLog(self.store, "s")
        self.look_again(writer)

    @rule(writer=WRITERS)
    def look_again(self, writer: int) -> None:
        """Whoever reads finds all that was decided, and the state after it."""
        progress, state = self.seen[writer] = self.logs[writer].progress()
        assert progress.parts == len(self.decided)
        assert state == (self.states[-1] if self.states else {})

    @rule(writer=WRITERS, behind=st.integers(0, 1))
    def arrive(self, writer: int, behind: int) -> None:
        """A look of a number that is taken changes nothing."""
        self.count += 1
        look = max(1, len(self.arrived) + 1 - behind)
        arrivals = [Arrival(f"{self.count}.parquet", 1, "v", self.count)]
        self.logs[writer].commit_arrivals(look, arrivals)
        if look > len(self.arrived):
            self.arrived.append(arrivals)

    @rule(writer=WRITERS, rows=st.integers(1, 3))
    def decide(self, writer: int, rows: int) -> None:
        """From where the writer believes the stream to be: if another was there first, nothing of it counts."""
        self.count += 1
        before, _ = self.seen[writer]
        ids = [f"{self.count}-{row}" for row in range(rows)]
        progress = Progress(parts=before.parts + 1, rows=before.rows + rows)
        state = {"window": self.count}
        found = self.logs[writer].commit_decisions(pa.table({"rid": ids}), progress, state)
        if before.parts < len(self.decided):
            assert found is None
            self.look_again(writer)
            return
        assert found is not None
        self.seen[writer] = (found, state)
        self.decided.append(ids)
        self.states.append(state)

    @invariant()
    def each_row_is_decided_on_once(self) -> None:
        if getattr(self, "decided", None):
            found = self.logs[0].ids()
            assert found is not None
            assert found.to_pylist() == [id_ for ids in self.decided for id_ in ids]

    @invariant()
    def arrivals_stay_in_their_order(self) -> None:
        if getattr(self, "arrived", None):
            found = self.logs[1].arrivals()
            assert [(arrival.path, arrival.look) for arrival in found] == [
                (arrival.path, look) for look, arrivals in enumerate(self.arrived, 1) for arrival in arrivals
            ]


@pytest.mark.parametrize("machine", [JournalMachine, StreamMachine])
def test_one_record_of_each_step_stands(machine: type[RuleBasedStateMachine]) -> None:
    """Whoever writes, ends or begins anew in between."""
    run_state_machine_as_test(machine, settings=settings(max_examples=10, stateful_step_count=15, deadline=None))


STATES = ["labelled", "skipped", "rejected", "deleted", "draft"]
SAID = st.tuples(
    st.integers(0, 3), st.sampled_from([-math.inf, 1.0, 2.0, 3.0]), st.sampled_from(STATES), st.sampled_from(["cat", "dog", "cow", None])
)


@settings(max_examples=200)
@given(said=st.lists(SAID, max_size=12), order=st.randoms(use_true_random=False))
def test_what_people_said_is_the_newest_in_whatever_order_it_is_read(said: list[Any], order: Any) -> None:
    """Against a plain search: of each row the answers of the newest time, of which there must be one; drafts were never said."""
    values = LabelValues("classes", ("cat", "dog"), True)
    shuffled = list(said)
    order.shuffle(shuffled)
    found, again = newest(said, values), newest(shuffled, values)
    assert (found.by_id, found.conflicts) == (again.by_id, again.conflicts)
    assert dict(found.unknown).keys() == dict(again.unknown).keys()
    for id_ in range(4):
        rows = [(time, state, label if state == "labelled" else None) for i, time, state, label in said if i == id_ and state != "draft"]
        newest_time = max((time for time, *_ in rows), default=None)
        last = {(state, values.label_of(label) if state == "labelled" else None) for time, state, label in rows if time == newest_time}
        usable = len(last) == 1 and ("labelled", None) not in last
        assert (id_ in found.by_id) == usable
        assert (id_ in found.conflicts) == (len(last) > 1)
        if usable:
            [(state, label)] = last
            assert (found.by_id[id_].state, found.by_id[id_].label) == (state, label)

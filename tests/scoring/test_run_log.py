"""What a run says of itself in its log, however it ends; and that it never ends by that."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

import raystream as rs
from raystream.errors import QueryError, RaystreamError, StoreError
from raystream.run import score
from raystream.scoring import progress as run_log
from raystream.scoring.progress import RunLog, ScoringProgress, Silent, asked_by
from raystream.store.events import Event, EventLog, run_state
from raystream.store.gc import collect
from raystream.store.local import LocalStore
from raystream.store.opening import store_at

MakeQuery = Callable[..., rs.Query]


def log_of(name: str = "q", uri: str = "runs") -> list[Event]:
    return EventLog(store_at(uri), f"queries/{name}").read()


@pytest.mark.parametrize("uri", ["runs", "s3://bucket/runs"])
def test_a_query_writes_what_becomes_of_it(make_query: MakeQuery, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    """In a folder as in a bucket; asked again, it adds nothing. Forgetting the query forgets its log."""
    memory = MemoryStore()
    monkeypatch.setattr("raystream.store.bucket.bucket_of", lambda uri, storage: memory)
    monkeypatch.setattr(run_log, "LEAST_SECONDS", 0.0)
    with asked_by("ada"):
        result = rs.run(make_query(store__uri=uri, store__query="q"))
    events = log_of(uri=uri)
    kinds = [event["kind"] for event in events]
    assert kinds[:2] == ["started", "planned"]
    assert kinds[-1] == "committed"
    assert set(kinds[2:-1]) == {"progress"}
    assert {event["run"] for event in events[1:]} == {1}
    assert events[0]["who"] == "ada"
    assert {key: events[1][key] for key in ("rows", "units", "rows_todo", "units_todo")} == {
        "rows": 1200, "units": 4, "rows_todo": 1200, "units_todo": 4
    }  # fmt: skip
    last = events[-2]
    assert (last["rows"], last["rows_done"], last["units"], last["units_done"], last["workers"]) == (1200, 1200, 4, 4, 1)
    state = run_state(result.store, "q")
    assert (state.state, state.rows, state.rows_done, state.units_done, state.who) == ("committed", 1200, 1200, 4, "ada")
    rs.run(make_query(store__uri=uri, store__query="q"))
    assert log_of(uri=uri) == events
    collect(result.store, drop=["q"], older_than=0.0, delete=True)
    assert log_of(uri=uri) == []
    with pytest.raises(QueryError, match="no run of query q"):
        run_state(result.store, "q")


def test_what_was_scored_before_counts_as_done(make_query: MakeQuery, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`score` of a part ends `scored`; the query over all of it, by another who, begins from there."""
    monkeypatch.setattr(run_log, "LEAST_SECONDS", 0.0)
    score(make_query(store__query="part", pool__uri="pool/year=2020"))
    assert [event["kind"] for event in log_of("part")][-1] == "scored"
    assert run_state(LocalStore("runs"), "part").state == "scored"
    rs.run(make_query(store__query="q"))
    progress = [event for event in log_of() if event["kind"] == "progress"]
    assert log_of()[1]["rows_todo"] == 900
    assert progress[0]["rows_done"] >= 300
    assert (progress[-1]["rows_done"], progress[-1]["units_done"]) == (1200, 4)


def test_a_run_that_fails_says_why_and_its_code(make_query: MakeQuery) -> None:
    """Units that aren't scored, in a run that may score none; then one that may."""
    with pytest.raises(QueryError):
        rs.run(make_query(store__query="q"), may_score=False)
    state = run_state(LocalStore("runs"), "q")
    assert (state.state, state.exit_code) == ("failed", 2)
    assert "4 of 4 units are not scored yet" in str(state.error)
    rs.run(make_query(store__query="q"))
    assert [event["kind"] for event in log_of() if event["kind"] != "progress"] == [
        "started", "planned", "failed", "started", "planned", "committed"
    ]  # fmt: skip
    assert log_of()[-1]["run"] == 4


@pytest.mark.parametrize(
    ("error", "kind", "code"), [(KeyboardInterrupt(), "stopped", None), (KeyError("x"), "failed", 1), (RaystreamError("x"), "failed", 1)]
)
def test_how_a_run_ends(tmp_path: Path, error: BaseException, kind: str, code: int | None) -> None:
    """Ctrl-C is no failure; a defect of ours has its kind."""
    store = LocalStore(str(tmp_path))

    def run() -> None:
        with RunLog(Silent()) as log:
            log.begin(store, "queries/q")
            raise error

    with pytest.raises(type(error)):
        run()
    last = EventLog(store, "queries/q").read()[-1]
    assert (last["kind"], last.get("exit_code")) == (kind, code)


def test_a_run_neither_waits_for_its_events_nor_fails_by_them(make_query: MakeQuery, monkeypatch: pytest.MonkeyPatch) -> None:
    """None can be written, and the result is the same."""

    def refuse(self: EventLog, kind: str, **facts: Any) -> int:
        raise StoreError("no room")

    monkeypatch.setattr(EventLog, "append", refuse)
    assert rs.run(make_query(store__query="q")).selection.num_rows == 12
    monkeypatch.undo()


def test_progress_is_said_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every five seconds at first, every thirty in long runs; a writer that hangs holds nobody up."""
    now, written, free = [1000.0], list[float](), threading.Event()
    monkeypatch.setattr(run_log.time, "monotonic", lambda: now[0])

    def append(self: EventLog, kind: str, **facts: Any) -> int:
        free.wait()
        if kind == "progress":
            written.append(facts["rows_done"])
        return 1

    monkeypatch.setattr(EventLog, "append", append)
    with RunLog(Silent()) as log:
        log.begin(LocalStore(str(tmp_path)), "queries/q")
        for second in range(20_000):
            now[0] = 1000.0 + second
            log.units(ScoringProgress(0, 1, second, 20_000, None, None))
        free.set()
    gaps = [after - before for before, after in pairwise(written)]
    assert (min(gaps), max(gaps)) == (5, 30)
    assert len(written) < 1000

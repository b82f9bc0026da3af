"""Signs of life, and what `raystream gc` makes of them: a run is never taken for a dead one, whatever the clocks say."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from obstore.store import MemoryStore
from pools import logits_and_embeddings, pool_table
from scored import planned

import raystream as rs
from raystream.errors import QueryError, StoreError, StoreUnreachable
from raystream.run import calibrate, score
from raystream.scoring.plan import write_plan
from raystream.store.gc import collect
from raystream.store.life import ALIVE_SECONDS, BEAT_SECONDS, SignOfLife, is_alive, server_time
from raystream.store.local import LocalStore
from raystream.store.opening import open_store
from raystream.store.protocol import Entry, Store
from raystream.store.queries import plan_outputs, read_plan, stored_units
from raystream.store.result import Result, load_result

MakeQuery = Callable[..., rs.Query]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """A bucket in this process that all URIs lead to."""
    bucket = MemoryStore()
    monkeypatch.setattr("raystream.store.bucket.bucket_of", lambda uri, storage: bucket)
    return bucket


def names(store: Store, folder: str) -> list[str]:
    return sorted(entry.name for entry in store.walk(folder))


def test_a_sign_is_given_at_least_once_a_minute_until_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token is written anew each time, also after a store that was away; in the end nothing is left."""
    store, puts, waits = LocalStore(str(tmp_path)), list[str](), list[float]()
    put, three = LocalStore.put, threading.Event()

    def counted(self: LocalStore, name: str, data: bytes) -> None:
        puts.append(name)
        if puts.count(life.token) == 3 and "token-" in name:
            raise StoreUnreachable("away")
        put(self, name, data)

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        if len(waits) == 4:
            three.set()
        return len(waits) == 4

    monkeypatch.setattr(LocalStore, "put", counted)
    with SignOfLife(wait) as life:
        assert not life.begun
        life.begin(store, "queries/q")
        life.needs(["a", "b"])
        three.wait()
        assert puts.count(life.token) == 4
        assert life.token in names(store, "queries/q")
        assert len(names(store, "queries/q")) == 2
    assert names(store, "queries/q") == []
    assert set(waits) == {BEAT_SECONDS}
    assert BEAT_SECONDS <= 60 < ALIVE_SECONDS


def test_alive_is_who_gave_a_sign_lately() -> None:
    """By the store's clock; files that are no tokens are no signs."""
    ages = ((0, "token-1", True), (ALIVE_SECONDS, "token-1", True), (ALIVE_SECONDS + 1, "token-1", False), (0, "x", False))
    for age, name, alive in ages:
        assert is_alive([Entry(f"queries/q/{name}", 1, 1000.0 - age)], 1000.0) == alive


STORES = ["runs", "s3://bucket/runs"]
QUERIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "labelled rows elsewhere": {"pool__labelled": ["labels.parquet"], "select__strategy": "core_set"},
    "epig": {"acquire": {"score": "epig", "mc_samples": 3, "targets": "targets"}, "select__strategy": "top_k"},
    "a fitted temperature": {"model__temperature": "fit.parquet", "pool__label": "y"},
}


@pytest.fixture
def lake(workplace: Path) -> None:
    """Labelled rows in files of their own, targets, and rows to fit a temperature on."""
    pq.write_table(pool_table(30, 5000, seed=3), workplace / "labels.parquet")
    (workplace / "targets").mkdir()
    pq.write_table(pool_table(20, 7000, seed=4), workplace / "targets" / "part.parquet")
    table = pool_table(300, start=9000)
    labels = logits_and_embeddings(table)[0].argmax(1).numpy().copy()
    labels[::3] = 0
    pq.write_table(table.append_column("y", pa.array(labels)), workplace / "fit.parquet")


@pytest.mark.usefixtures("memory", "lake")
@pytest.mark.parametrize(
    ("uri", "kind"),
    [pytest.param(uri, kind, marks=() if uri == "runs" or kind == "plain" else pytest.mark.slow) for uri in STORES for kind in QUERIES],
)
def test_nothing_that_a_run_needs_goes_while_it_runs(make_query: MakeQuery, monkeypatch: pytest.MonkeyPatch, uri: str, kind: str) -> None:
    """`gc --delete --older-than 0` at each step of a run: it ends as if nothing had been, and the next query scores nothing."""
    changes = QUERIES[kind]
    expected = rs.run(make_query(**changes, store__uri="undisturbed"))
    swept = []

    def after(module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            found = real(*arguments, **options)
            swept.append(collect(open_store(uri), older_than=0.0, delete=True))
            return found

        monkeypatch.setattr(module, name, call)

    from raystream import steps
    from raystream.choosing import epig
    from raystream.scoring import plan
    from raystream.scoring.session import Session

    for module, name in (
        (steps, "write_plan"), (steps, "read_pool"), (steps, "find_labelled_rows"), (steps, "choose_batch"), (plan, "plan_scoring"),
        (epig, "plan_scoring"), (Session, "compute"),
    ):  # fmt: skip
        after(module, name)
    result = rs.run(make_query(**changes, store__uri=uri))
    monkeypatch.undo()
    assert len(swept) >= 6
    assert {name for each in swept for name in (*each.unfinished, *each.dropped)} == set()
    assert result.selection.equals(expected.selection)


@pytest.mark.usefixtures("lake")
@pytest.mark.parametrize("kind", QUERIES)
def test_units_that_nobody_kept_are_safe_once_a_run_uses_them(
    make_query: MakeQuery, workplace: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scored long ago, for a query that is forgotten: the run that uses them again says so, and they stay for it."""
    changes = QUERIES[kind]
    rs.run(make_query(**changes, store__query="old"))
    before = {key for key in (workplace / "runs/units").glob("*/*")}
    collect(LocalStore("runs"), drop=["old"], older_than=1e9, delete=True)
    assert {key for key in (workplace / "runs/units").glob("*/*")} == before
    for path in (workplace / "runs/units").rglob("*"):
        os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - int(9 * 86400e9)))
    from raystream import steps

    real, swept = steps.choose_batch, []

    def call(*arguments: Any) -> Any:
        swept.append(collect(LocalStore("runs"), older_than=86400.0, delete=True))
        return real(*arguments)

    monkeypatch.setattr(steps, "choose_batch", call)
    result = rs.run(make_query(**changes, store__query="new"))
    assert result.manifest.units_scored == 0
    assert len(swept) == 1
    left = {key for key in (workplace / "runs/units").glob("*/*")}
    # of a fit that was made before, only the number is used
    assert left == before or kind == "a fitted temperature"


def test_a_run_that_only_begins_may_need_anything(make_query: MakeQuery, workplace: Path) -> None:
    """Until its plan is there, no unit goes; once its last sign is old, and nothing in its folder is young, it is forgotten."""
    score(make_query(store__query="done"))
    store = LocalStore("runs")
    collect(store, drop=["done"], older_than=1e9, delete=True)
    with SignOfLife() as life:
        life.begin(store, "queries/planning")
        found = collect(store, older_than=0.0, delete=True)
        assert (found.running, found.units.count, found.units_young.count) == (("planning",), 0, 4)
        token = store.path(life.token)
        old = token.stat().st_mtime - ALIVE_SECONDS - 5
        os.utime(token, (old, old))
        found = collect(store, older_than=0.0, delete=True)
        assert (found.unfinished, found.units.count) == (("planning",), 4)


class Skewed(LocalStore):
    """A store whose server's clock is off."""

    ahead = 0.0

    def walk(self, *folders: str) -> Iterator[Entry]:
        return (entry._replace(modified=entry.modified + self.ahead) for entry in super().walk(*folders))


@pytest.mark.parametrize("ahead", [-3600.0, 3600.0])
def test_ages_go_by_the_stores_clock(make_query: MakeQuery, workplace: Path, ahead: float) -> None:
    """An hour off in either direction: a run that lives is alive, what is young stays, and what is old goes."""
    score(make_query(store__query="a"))
    store = Skewed("runs")
    store.ahead = ahead
    assert server_time(store) == pytest.approx(time.time() + ahead, abs=60)
    assert [path.name for path in Path("runs").iterdir() if path.name.startswith("probe")] == []
    with SignOfLife() as life:
        life.begin(store, "queries/b")
        assert collect(store, older_than=1800.0, delete=True).running == ("a", "b")
    assert collect(store, older_than=1800.0, delete=True).bytes == 0
    for path in Path("runs").rglob("*"):
        os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - int(2000e9)))
    assert collect(store, older_than=1800.0, delete=True).units.count == 4


def test_a_dry_run_needs_no_right_to_write(make_query: MakeQuery, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it would remove it says by our own clock; to remove something, it has to ask the store's."""
    score(make_query())

    def refuse(*arguments: Any) -> None:
        raise StoreError("read only")

    monkeypatch.setattr(LocalStore, "put", refuse)
    assert collect(LocalStore("runs"), older_than=0.0).units.count == 4
    with pytest.raises(StoreError, match="read only"):
        collect(LocalStore("runs"), older_than=0.0, delete=True)


def test_what_killed_runs_left_goes(make_query: MakeQuery, workplace: Path) -> None:
    """Old tokens, lists of units and half-written files beside committed queries, fits, loops, simulations and streams are leftovers."""
    rs.run(make_query(store__query="q"))
    store, once = LocalStore("runs"), "0" * 32
    left = [f"queries/q/token-{once}", f"queries/q/needs-{once}", f"calibrations/c/token-{once}"]
    left += [f"loops/l/rounds/0001/.selection.parquet.{once}", f"simulations/s/runs/.random-0.json.{once}", f"loops/l/token-{once}"]
    left += [f"streams/s/decisions/.00000001.parquet.{once}"]
    stay = ["calibrations/c/fit.json", "loops/l/rounds/0001/selection.parquet", "simulations/s/runs/random-0.json"]
    for name in [*left, *stay]:
        store.put(name, b"x")
        os.utime(store.path(name), (0, 0))
    assert collect(store, older_than=0.0, delete=True).leftovers.count == len(left)
    assert not any(store.exists(name) for name in left)
    assert all(store.exists(name) for name in stay)


@pytest.mark.usefixtures("lake")
def test_runs_that_end_leave_no_sign(make_query: MakeQuery, workplace: Path) -> None:
    """Committed, scored alone, fitted or refused: no token and no list of units stays."""
    rs.run(make_query(**QUERIES["labelled rows elsewhere"]))
    score(make_query(**QUERIES["epig"]))
    calibrate(make_query(**QUERIES["a fitted temperature"]))
    with pytest.raises(QueryError, match="not scored yet"):
        rs.run(make_query(model__args={"hidden": 9}), may_score=False)
    assert [path for path in (workplace / "runs").rglob("*") if path.name.startswith(("token-", "needs-"))] == []


def kept(result: Result) -> tuple[str, ...]:
    """The outputs that a query's plan names."""
    return plan_outputs(read_plan(result.store, result.query).schema)


@pytest.mark.usefixtures("lake")
def test_the_manifest_is_the_last_write(make_query: MakeQuery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Selection, its copy and the plan with all keys come before it: whoever sees it sees all of them; the query stands there as it is."""
    written: list[str] = []
    for name in ("put", "put_if_absent", "writing", "append"):
        real = getattr(LocalStore, name)
        monkeypatch.setattr(LocalStore, name, lambda self, path, *a, _real=real, **o: written.append(path) or _real(self, path, *a, **o))
    result = rs.run(make_query(**QUERIES["epig"]))
    last = [path.rpartition("/")[2].partition("-")[0] for path in written if "token-" not in path]
    assert last[-3:] == ["plan.parquet", "selection.parquet", "manifest.json"]
    assert last.count("query.yaml") == 1
    assert [outputs.rpartition("-")[0] for outputs in kept(result)] == ["scores", "samples", "epig"]
    assert len(stored_units(result.store, result.manifest).outputs) == 4


@pytest.mark.usefixtures("lake")
def test_a_run_that_begins_late_keeps_the_plan_of_one_that_is_further_on(make_query: MakeQuery) -> None:
    """The same query once more, planned before the first was committed: the keys of EPIG stay in the plan, and so do its units."""
    query = make_query(**QUERIES["epig"])
    late = planned(query)
    result = rs.run(query)
    write_plan(*late)
    assert len(kept(result)) == 3
    found = collect(result.store, older_than=0.0, delete=True)
    assert (found.units.count, found.units_kept.count) == (1, 4)  # the targets' own unit, which only their samples were needed of
    assert len(stored_units(result.store, result.manifest).outputs) == 4


def test_who_loses_a_name_leaves_the_winners_files(make_query: MakeQuery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two different queries under one explicit name, committing at the same moment: the later one is refused, and nothing of it stays."""
    from raystream.choosing import batch as commit

    winner: list[Any] = []
    real = commit.write_plan

    def late(*arguments: Any) -> Any:
        monkeypatch.setattr(commit, "write_plan", real)
        winner.append(rs.run(make_query(store__query="q", select__budget=5, pool__uri="pool/year=2021")))
        return real(*arguments)

    monkeypatch.setattr(commit, "write_plan", late)
    with pytest.raises(QueryError, match=r"store\.query q is taken by another query"):
        rs.run(make_query(store__query="q"))
    found = load_result("runs", "q")
    assert found.selection.equals(winner[0].selection)
    assert read_plan(found.store, "q").num_rows == 1
    assert len([name for name in found.store.names("queries/q") if name.startswith("selection-")]) == 1


def test_a_run_whose_query_was_committed_meanwhile_changes_nothing(make_query: MakeQuery, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives back what was committed first, and writes not even a copy."""
    first: list[Any] = []
    from raystream import steps

    real = steps.choose_batch

    def late(*arguments: Any) -> Any:
        monkeypatch.setattr(steps, "choose_batch", real)
        first.append(rs.run(make_query()))
        return real(*arguments)

    monkeypatch.setattr(steps, "choose_batch", late)
    result = rs.run(make_query())
    assert not result.new
    assert result.manifest == first[0].manifest

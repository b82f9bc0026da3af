"""Whole queries with their store in a bucket: the same selections as with a folder, whatever happens on the way."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from commands import Command
from obstore.store import MemoryStore
from pools import pool_table
from scored import planned, receipt_of

import raystream as rs
from raystream.choosing.candidates import read_pool
from raystream.errors import QueryError, RaystreamError
from raystream.report.page import write_report
from raystream.run import score
from raystream.store.integrity import local_copies
from raystream.store.protocol import Store
from raystream.store.receipts import EMBEDDINGS
from raystream.store.result import Result, load_result
from raystream.store.unit_columns import whole_units

MakeQuery = Callable[..., rs.Query]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """A bucket in this process that all URIs lead to."""
    bucket = MemoryStore()
    monkeypatch.setattr("raystream.store.bucket.bucket_of", lambda uri, storage: bucket)
    return bucket


@pytest.fixture
def runs(folder: str, s3_keys: None) -> str:
    """The URI of a store of its own on the S3 server."""
    return f"s3://{folder}"


def selection_of(result: Result) -> bytes:
    """The committed file, byte for byte."""
    return result.store.read(result.manifest.selection.name)


def names_below(store: Store, folder: str) -> set[str]:
    found = set()
    for name in store.names(folder):
        below = names_below(store, f"{folder}/{name}")
        found |= below or {f"{folder}/{name}"}
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"select__strategy": "core_set"},
        {"select__strategy": "badge"},
        {"select__strategy": "cluster_margin", "select__near_duplicates": 0.99},
        {"select__strategy": "core_set", "pool__filters": [["country", "==", "DE"]]},
    ],
)
def test_a_bucket_and_a_folder_give_the_same_bytes(make_query: MakeQuery, memory: MemoryStore, changes: dict[str, Any]) -> None:
    """The selection files are equal, and so are the names and hashes of what was committed but for the attempts' own."""
    here = rs.run(make_query(**changes))
    there = rs.run(make_query(**changes, store__uri="s3://bucket/runs"))
    assert selection_of(there) == selection_of(here)
    assert there.query == here.query
    assert there.manifest.certificate == here.manifest.certificate
    assert there.summary()["selection"] == f"s3://bucket/runs/queries/{there.query}/selection.parquet"
    kinds = [{name.rpartition("/")[2].partition("-")[0] for name in names_below(r.store, "units")} for r in (here, there)]
    assert kinds[0] == kinds[1]


def test_the_same_query_again_reads_what_is_committed(make_query: MakeQuery, memory: MemoryStore) -> None:
    """Nothing is scored; a query that chooses otherwise takes the scored units; `show` finds both by their names."""
    first = rs.run(make_query(store__uri="s3://bucket/runs"))
    again = rs.run(make_query(store__uri="s3://bucket/runs"))
    assert (first.new, again.new) == (True, False)
    assert again.selection.equals(first.selection)
    other = rs.run(make_query(store__uri="s3://bucket/runs", select__budget=5))
    assert (other.manifest.units_scored, other.manifest.units_reused) == (0, first.manifest.units_scored)
    assert load_result("s3://bucket/runs", first.query[:6]).selection.equals(first.selection)


def test_the_report_and_the_events_lie_beside_the_selection(make_query: MakeQuery, memory: MemoryStore) -> None:
    """The page shows the pool's map, for which it reads embeddings; every unit has its event; no token stays behind."""
    result = rs.run(make_query(store__uri="s3://bucket/runs"))
    assert write_report(result) == f"s3://bucket/runs/queries/{result.query}/report.html"
    folder = f"queries/{result.query}"
    assert result.store.read(f"{folder}/report.html").count(b'<svg class="chart wide"') == 2
    events = [json.loads(line) for line in result.store.read(f"{folder}/workers.jsonl").splitlines()]
    assert sum(event["event"] == "UnitEnded" for event in events) == result.manifest.units_scored
    kinds = {name.partition("-")[0] for name in result.store.names(folder)}
    assert kinds == {
        "events", "manifest.json", "plan.parquet", "query.yaml", "report.html", "selection", "selection.parquet", "workers.jsonl"
    }  # fmt: skip


def test_the_stores_options_are_no_part_of_the_query(make_query: MakeQuery, memory: MemoryStore) -> None:
    """Where the results go changes neither the identity nor what is chosen; unknown options and secrets are exit 2."""
    plain = rs.run(make_query(store__uri="s3://bucket/runs"))
    optioned = rs.run(make_query(store__uri="s3://bucket/runs", store__storage={"region": "eu-central-1"}))
    assert (optioned.new, optioned.query) == (False, plain.query)
    with pytest.raises(QueryError, match=r"store\.storage\.regoin"):
        make_query(store__uri="s3://bucket/runs", store__storage={"regoin": "x"})
    with pytest.raises(QueryError, match=r"store\.storage\.secret_key is a secret"):
        make_query(store__uri="s3://bucket/runs", store__storage={"secret_key": "x"})


class Killed(BaseException):
    """What a run dies of."""


@pytest.mark.parametrize("at", [*range(0, 16, 3), *range(16, 26)])
def test_a_run_that_dies_between_two_files_goes_on(
    make_query: MakeQuery, memory: MemoryStore, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Whichever write is the last one, the next run commits the selection of an undisturbed one."""
    import obstore

    expected = selection_of(rs.run(make_query()))
    writes = 0

    class Dying:
        def __getattr__(self, name: str) -> Any:
            return getattr(obstore, name)

        def put(self, bucket: Any, name: str, *args: Any, **options: Any) -> None:
            if "/events/" not in name:  # which a thread of its own writes, and which nothing depends on
                self._may_die()
            obstore.put(bucket, name, *args, **options)

        def open_writer(self, *args: Any, **options: Any) -> Any:
            self._may_die()
            return obstore.open_writer(*args, **options)

        def delete(self, *args: Any, **options: Any) -> None:
            self._may_die()
            obstore.delete(*args, **options)

        def _may_die(self) -> None:
            nonlocal writes
            writes += 1
            if writes > at:
                raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("raystream.store.bucket.obstore", Dying())
        try:
            rs.run(make_query(store__uri="s3://bucket/runs"))
        except (Killed, RaystreamError):
            died = True
        else:
            died = False
    assert died == (at < writes)
    assert selection_of(rs.run(make_query(store__uri="s3://bucket/runs"))) == expected


def test_two_runs_racing_on_a_query_have_one_winner(make_query: MakeQuery, memory: MemoryStore) -> None:
    """Both return the winner's selection; the loser leaves no file of its own."""
    query = make_query(store__uri="s3://bucket/runs")
    barrier, results = threading.Barrier(2), []

    def race() -> None:
        barrier.wait()
        results.append(rs.run(query))

    threads = [threading.Thread(target=race) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.new for result in results) in ([False, True], [False, False])
    assert results[0].manifest.selection == results[1].manifest.selection
    found = results[0].store.names(f"queries/{results[0].query}")
    assert len([name for name in found if name.startswith("selection-")]) == 1


def test_embeddings_are_brought_here_once_and_only_when_looked_at(
    make_query: MakeQuery, memory: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To know which parts there are, no file of embeddings is copied; looked at twice, each is copied once."""
    query = make_query(store__uri="s3://bucket/runs")
    score(query)
    asked, plan = planned(query)
    pool = read_pool(asked, plan, whole_units(asked.store, plan.found))
    copied = []
    copies = local_copies()
    monkeypatch.setattr(copies, "_make_room", lambda file: copied.append(file.name))
    parts, _ = pool.embeddings(None)
    assert sum(part.shape[0] for part in parts) == len(pool)
    assert copied == []
    for part in [*parts, *parts]:
        assert part.array.shape == part.shape
        part.release()
    assert sorted(copied) == sorted(receipt_of(unit, EMBEDDINGS).file.name for unit in pool.units)  # type: ignore[union-attr]


def test_planning_lists_what_is_scored_instead_of_asking_for_each_unit(
    make_query: MakeQuery, memory: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new pool of 300 files is planned without asking for a single receipt; scored in part, each that is there is found."""
    import obstore

    (tmp_path / "many").mkdir()
    for file in range(300):
        pq.write_table(pool_table(4, 4 * file), tmp_path / "many" / f"{file:03}.parquet")
    asked = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(obstore, name)

        def get(self, bucket: Any, name: str) -> Any:
            asked.append(name)
            return obstore.get(bucket, name)

    monkeypatch.setattr("raystream.store.bucket.obstore", Counting())
    query = make_query(store__uri="s3://bucket/runs", pool__uri="many")
    assert len(planned(query)[1].missing) == 300
    assert asked
    assert not [name for name in asked if name.endswith("receipt.json")]
    score(make_query(store__uri="s3://bucket/runs", pool__uri=[f"many/{file:03}.parquet" for file in (3, 77, 299)]))
    assert sorted(set(range(300)) - set(planned(query)[1].to_compute.tolist())) == [3, 77, 299]


@pytest.mark.slow
def test_s3_and_a_folder_give_the_same_bytes(make_query: MakeQuery, runs: str, storage: dict[str, Any]) -> None:
    """Scored, committed, run again, and chosen anew from scored units, on a real server."""
    there = {"store__uri": runs, "store__storage": storage}
    for changes in ({}, {"select__strategy": "core_set"}):
        here, first = rs.run(make_query(**changes)), rs.run(make_query(**changes, **there))
        assert selection_of(first) == selection_of(here)
        assert not rs.run(make_query(**changes, **there)).new
    other = rs.run(make_query(**there, select__budget=5))
    assert other.manifest.units_scored == 0
    write_report(other)


class EveryThird:
    """Faults of a proxy: each third answer breaks off, after so many bytes."""

    delay, refused = 0.0, 0

    def __init__(self, proxy: Any, reset_after: int) -> None:
        self._proxy, self.reset_after, self.broken = proxy, reset_after, 0

    @property
    def resets(self) -> int:
        return int(self._proxy.requests % 3 == 0)

    @resets.setter
    def resets(self, left: int) -> None:
        self.broken += 1


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 100, 1_000])
def test_a_link_that_resets_changes_nothing(
    make_query: MakeQuery, runs: str, through_proxy: dict[str, Any], proxy: Any, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers break off while units and the selection are committed and read: the selection is that of an undisturbed run."""
    monkeypatch.setattr("raystream.store.bucket.FIRST_PAUSE_BEYOND", 0.01)
    expected = selection_of(rs.run(make_query()))
    query = make_query(store__uri=runs, store__storage=through_proxy)
    proxy.faults = EveryThird(proxy, after)
    result = rs.run(query)
    assert proxy.faults.broken > 0
    assert selection_of(result) == expected
    folder = result.store.names(f"queries/{result.query}")
    assert len([name for name in folder if name.startswith("selection-")]) == 1


@pytest.mark.slow
def test_two_runs_racing_through_a_bad_link_have_one_winner(
    make_query: MakeQuery, runs: str, through_proxy: dict[str, Any], proxy: Any
) -> None:
    """Lost answers make nobody believe that both, or neither, committed."""
    query = make_query(store__uri=runs, store__storage=through_proxy)
    score(query)
    for budget in range(3, 7):
        racing = query.model_copy(update={"select": query.select.model_copy(update={"budget": budget})})
        proxy.faults = EveryThird(proxy, 0)
        barrier, results = threading.Barrier(3), []

        def race(racing: rs.Query = racing, barrier: threading.Barrier = barrier, results: list[Result] = results) -> None:
            barrier.wait()
            results.append(rs.run(racing))

        threads = [threading.Thread(target=race) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 3
        assert len({result.manifest.selection for result in results}) == 1
        assert sum(result.new for result in results) <= 1
        assert results[0].store.exists(results[0].manifest.selection.name)


@pytest.mark.slow
def test_the_command_line_shows_uris(make_query: MakeQuery, workplace: Path, runs: str, storage: dict[str, Any]) -> None:
    """`query` and `show --json` print the selection's and the report's URI; options ride in the URI."""
    uri = f"{runs}?{'&'.join(f'{name}={value}' for name, value in storage.items())}"
    (workplace / "query.yaml").write_text(make_query(store__uri=uri).to_yaml())

    def said(*arguments: str) -> dict[str, Any]:
        done = subprocess.run([sys.executable, "-m", "raystream.cli", *arguments, "--json"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    first = said("query", "query.yaml")
    assert first["selection"] == f"{runs}/queries/{first['query']}/selection.parquet"
    assert first["report"] == f"{runs}/queries/{first['query']}/report.html"
    shown = said("show", first["query"][:5], "--store", uri)
    assert (shown["selection"], shown["report"], shown["new"]) == (first["selection"], first["report"], False)


@pytest.mark.slow
def test_ray_workers_and_selection_actors_use_the_bucket(
    make_query: MakeQuery, workplace: Path, runs: str, storage: dict[str, Any]
) -> None:
    """Workers write their units to it and selection actors map copies from it: the selection of a run in this process with a folder."""
    core_set: dict[str, Any] = {"select__strategy": "core_set"}
    expected = rs.run(make_query(**core_set)).selection
    query = make_query(**core_set, select__memory=1 << 12, store__uri=runs, store__storage=storage, cluster={"workers": 2})
    (workplace / "query.yaml").write_text(query.to_yaml())
    done = subprocess.run(
        [sys.executable, "-m", "raystream.cli", "query", "query.yaml", "--json", "--no-report"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["selection_rounds"]["actors"] == 2
    chosen = load_result(f"{runs}?{'&'.join(f'{name}={value}' for name, value in storage.items())}", said["query"]).selection
    for column in ("rid", "gain", "distance", "row"):
        assert chosen.column(column).equals(expected.column(column))


@pytest.mark.slow
@pytest.mark.parametrize("address", ["in_process", "auto"])
def test_a_store_that_goes_away_in_a_run_is_waited_for(
    make_query: MakeQuery, workplace: Path, runs: str, through_proxy: dict[str, Any], proxy: Any, address: str
) -> None:
    """No connection comes through from the first scored unit until it is said on stderr: then the run goes on, and nothing is missing."""
    with (workplace / "user_nets.py").open("a") as source:
        source.write(
            "\n\nclass Slow(nn.Sequential):\n"
            "    def forward(self, x):\n"
            "        import time\n"
            "        time.sleep(0.05)\n"
            "        return super().forward(x)\n\n\n"
            "def slow():\n"
            "    return Slow(*net())\n"
        )
    expected = selection_of(rs.run(make_query()))
    cluster = {"address": address, "workers": 1}
    query = make_query(model__source="user_nets:slow", on_error="skip", store__uri=runs, store__storage=through_proxy, cluster=cluster)
    (workplace / "query.yaml").write_text(query.to_yaml())
    command = Command(workplace, "query", "query.yaml", "--json", "--no-report")
    command.wait_until_it_says("rows in 4 units")
    proxy.faults.refused = 10**9
    proxy.cut()
    command.wait_until_it_says("doesn't answer: ")
    proxy.faults.refused = 0
    code, output, error = command.wait()
    assert code == 0, error
    said = json.loads(output)
    assert (said["units_scored"], said["warnings"]) == (4, [])
    assert "answers again, after" in error
    assert "for up to 10 minutes" in error
    chosen = load_result(f"{runs}?{'&'.join(f'{name}={value}' for name, value in through_proxy.items())}", said["query"])
    assert selection_of(chosen) == expected

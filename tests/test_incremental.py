"""A pool that changes: only what is new is scored, what is gone is not chosen, and the plan says so beforehand."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from pools import pool_table

import raystream as rs
from raystream.pool import File, unsettled

MakeQuery = Callable[..., rs.Query]
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def plan(cli: Cli, make_query: MakeQuery) -> Callable[..., dict]:
    """`raystream plan --json` of the query with these changes."""

    def run(**changes: object) -> dict:
        Path("query.yaml").write_text(make_query(**changes).to_yaml())
        code, out, err = cli("plan", "query.yaml", "--json")
        assert code == 0, err
        return json.loads(out)

    return run


def counts(planned: dict) -> tuple[int, int, int]:
    return tuple(planned["changes"][name] for name in ("added", "rewritten", "removed"))


def add(workplace: Path, year: int, rows: int = 50, start: int = 1200, seed: int = 0) -> Path:
    path = workplace / "pool" / f"year={year}" / "part.parquet"
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pool_table(rows, start, seed), path)
    return path


def test_the_plan_tells_what_the_query_then_does(make_query: MakeQuery, workplace: Path, plan: Callable) -> None:
    """Files added, rewritten and removed at once: three counts, the bytes, and so many units scored, no more."""
    assert plan()["changes"] is None
    first = rs.run(make_query())
    assert counts(plan()) == (0, 0, 0)
    paths = [add(workplace, 2024), add(workplace, 2025, start=1250), add(workplace, 2020, rows=300, start=0, seed=9)]
    (workplace / "pool" / "year=2023" / "part.parquet").unlink()
    planned = plan()
    assert counts(planned) == (2, 1, 1)
    assert planned["changes"]["since"] == first.query
    assert planned["changes"]["bytes"] == sum(path.stat().st_size for path in paths)
    assert (planned["files"], planned["rows"]) == (5, 1000)
    assert (planned["units"], planned["units_scored"]) == (5, 2)
    assert planned["bytes_to_read"] < planned["bytes"]
    second = rs.run(make_query())
    assert (second.manifest.units_scored, second.manifest.units_reused) == (3, 2)
    assert not any("year=2023" in path for path in rs.run(make_query(select__budget=1000)).selection.column("path").to_pylist())
    assert counts(plan()) == (0, 0, 0)


def test_the_plan_says_what_else_is_scored_anew_for(make_query: MakeQuery, workplace: Path, plan: Callable, cli: Cli) -> None:
    """Other weights, arguments or source, another size of batches: named, as long as units are missing for it."""
    rs.run(make_query())
    assert plan(select__budget=3)["changes"]["settings"] == []
    assert plan(model__batch_size=64)["changes"]["settings"] == ["model.batch_size"]
    assert "changed     model.batch_size, on which scores depend" in cli("plan", "query.yaml")[1]
    planned = plan(model__args={"hidden": 9}, pool__filters=[["url", "!=", "x"]])
    assert planned["changes"]["settings"] == ["the model's weights, arguments or source", "pool.filters"]
    assert planned["units_scored"] == 0
    rs.run(make_query(model__batch_size=64, store__query="newer"))
    planned = plan()
    assert (planned["changes"]["settings"], planned["units_scored"]) == (["model.batch_size"], 4)
    assert "on which scores depend" not in cli("plan", "query.yaml")[1]


def test_the_rows_are_those_of_a_store_that_never_saw_the_old_pool(make_query: MakeQuery, workplace: Path) -> None:
    """What is reused makes no difference to what is chosen."""
    rs.run(make_query())
    add(workplace, 2024)
    add(workplace, 2021, rows=280, start=300, seed=5)
    (workplace / "pool" / "year=2022" / "part.parquet").unlink()
    grown = rs.run(make_query())
    assert grown.selection.equals(rs.run(make_query(store__uri="fresh")).selection)


def test_a_rewritten_file_of_equal_size_is_scored_again(make_query: MakeQuery, workplace: Path, plan: Callable) -> None:
    """Rewritten in place right after a query, so that name and size are the same and hardly any time has passed."""
    path = add(workplace, 2020, rows=300, start=0)
    before = rs.run(make_query(select__strategy="top_k"))
    size = path.stat().st_size
    table = pq.read_table(path, partitioning=None)
    x = table.column("x").take(list(reversed(range(300))))
    pq.write_table(table.set_column(1, "x", x.combine_chunks()), path)
    assert path.stat().st_size == size
    assert counts(plan(select__strategy="top_k")) == (0, 1, 0)
    after = rs.run(make_query(select__strategy="top_k"))
    assert (after.manifest.units_scored, after.manifest.units_reused) == (1, 3)
    assert after.selection.equals(rs.run(make_query(select__strategy="top_k", store__uri="fresh")).selection)
    assert after.query != before.query


def test_a_file_touched_alone_is_scored_again_and_one_put_back_is_not(make_query: MakeQuery, workplace: Path) -> None:
    """The version is the mtime: another one is another file; the old one again has its scores still."""
    path = workplace / "pool" / "year=2021" / "part.parquet"
    was = path.stat().st_mtime_ns
    first = rs.run(make_query())
    os.utime(path, ns=(was, was + 1))
    assert rs.run(make_query()).manifest.units_scored == 1
    os.utime(path, ns=(was, was))
    assert not rs.run(make_query()).new
    assert rs.run(make_query()).query == first.query


def test_a_query_over_another_pool_does_not_count(make_query: MakeQuery, workplace: Path, plan: Callable) -> None:
    """Compared is the newest query over the same URIs, whatever came after it over others, and whatever it chose by."""
    first = rs.run(make_query(select__budget=3))
    rs.run(make_query(pool__uri="pool/year=2020"))
    add(workplace, 2024)
    planned = plan(select__strategy="top_k", model__args={"hidden": 9})
    assert planned["changes"]["since"] == first.query
    assert counts(planned) == (1, 0, 0)
    assert planned["units_scored"] == 0


def test_as_text(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """A line with the three counts and the bytes, once there is something to compare with."""
    Path("query.yaml").write_text(yaml.safe_dump(make_query().model_dump(mode="json", exclude_unset=True)))
    assert "since query" not in cli("plan", "query.yaml")[1]
    result = rs.run(make_query())
    add(workplace, 2024)
    out = cli("plan", "query.yaml")[1]
    assert "1 file added, 0 rewritten" in out
    assert f"0 removed since query {result.query}" in out


SECOND = 10**9


@pytest.mark.parametrize(
    ("mtime", "now", "wait"),
    [
        (5 * SECOND + 7, 5 * SECOND + 7, 20_000_000),
        (5 * SECOND + 7, 5 * SECOND + 15_000_007, 5_000_000),
        (5 * SECOND + 7, 5 * SECOND + 20_000_007, 0),
        (5 * SECOND, 5 * SECOND + 500, 2 * SECOND - 500),
        (5 * SECOND, 7 * SECOND, 0),
        (9 * SECOND + 1, 5 * SECOND, 0),
    ],
    ids=["just now", "a little ago", "settled", "whole seconds", "whole seconds, settled", "in the future"],
)
def test_files_written_just_now_are_waited_for(mtime: int, now: int, wait: int) -> None:
    """Until the file system's clock has moved on: then a rewrite has another mtime. Clocks that disagree hold nothing up."""
    old = File("/pool/b.parquet", 1, str(now - 60 * SECOND))
    assert unsettled([old, File("/pool/a.parquet", 1, str(mtime))], now) == wait


def test_object_storage_is_not_waited_for() -> None:
    """Its versions are etags, or it says the time of the server."""
    assert unsettled([File("s3://lake/a.parquet", 1, str(5 * SECOND)), File("/pool/a.parquet", 1, '"etag"')], 5 * SECOND) == 0


def test_a_damaged_query_is_not_compared_with(make_query: MakeQuery, workplace: Path, plan: Callable) -> None:
    """The newest that can be read is; another query's damage is no reason not to plan."""
    first = rs.run(make_query())
    damaged = rs.run(make_query(select__budget=3))
    assert plan()["changes"]["since"] == damaged.query
    (damaged.folder / "manifest.json").write_text("{")
    found = plan()
    assert (found["changes"]["since"], found["committed"]) == (first.query, True)
    assert counts(found) == (0, 0, 0)

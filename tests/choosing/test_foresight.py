"""What is refused, and what is said, before a row is scored."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import pool_table, vectors

import raystream as rs
from raystream.errors import LabelsError, PoolError, QueryError, RaystreamError, StoreError
from raystream.pool import plan_pool
from raystream.pool import reader as unscored
from raystream.pool.reader import read_unscored
from raystream.query import Pool
from raystream.run import plan
from raystream.store.local import LocalStore

MakeQuery = Callable[..., rs.Query]


@pytest.fixture
def unscored_store(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing may be scored: a worker that is started is a defect."""
    from raystream.cluster import growing as processes

    def refused(*_: object) -> None:
        raise AssertionError("something is scored")

    monkeypatch.setattr(processes, "InProcess", refused)
    yield
    assert not list((workplace / "runs").rglob("*.receipt.json"))


def rewrite(workplace: Path, year: int, change: Callable[[pa.Table], pa.Table]) -> None:
    path = workplace / "pool" / f"year={year}" / "part.parquet"
    pq.write_table(change(pq.read_table(path, partitioning=None)), path, row_group_size=64)


def renamed(table: pa.Table, ids: list[str | None]) -> pa.Table:
    """The table with other ids at its beginning."""
    rest = table.column("rid").to_pylist()[len(ids) :]
    return table.set_column(0, "rid", pa.array(ids + rest))


def refused(query: rs.Query, error: type[RaystreamError], words: str) -> None:
    """Both `plan` and `query` refuse it, in the same words."""
    with pytest.raises(error, match=words):
        plan(query)
    with pytest.raises(error, match=words):
        rs.run(query)
    assert not list(Path("runs").rglob("plan.parquet"))


@pytest.mark.usefixtures("unscored_store")
def test_ids_that_occur_twice(make_query: MakeQuery, workplace: Path) -> None:
    """In different files, with where they are met again; rows that the filters exclude don't count."""
    rewrite(workplace, 2022, lambda table: renamed(table, ["r000003", "r000301"]))
    refused(make_query(), PoolError, r"2 ids of column rid are not unique, first: r000003, r000301, met again at .*year=2022.* row 0, ")
    with pytest.raises(AssertionError, match="something is scored"):
        rs.run(make_query(pool__filters=[["year", ">", 2021]]))


@pytest.mark.usefixtures("unscored_store")
def test_ids_that_are_null(make_query: MakeQuery, workplace: Path) -> None:
    """They are counted, and where they are."""
    rewrite(workplace, 2021, lambda table: renamed(table, [None, None]))
    refused(make_query(), PoolError, r"2 ids of column rid are null, first: .*year=2021.* row 0, ")


@pytest.mark.usefixtures("unscored_store")
def test_labels_of_another_pool(make_query: MakeQuery, workplace: Path) -> None:
    """No labelled id is a row of the pool, also not one that its filters exclude."""
    pq.write_table(pa.table({"rid": ["x1", "x2"]}), workplace / "labels.parquet")
    refused(make_query(pool__labelled="labels.parquet"), LabelsError, r"none of the 2 ids \('x1', 'x2'\) in pool.labelled")
    pq.write_table(pa.table({"rid": ["x1", "r000003"]}), workplace / "labels.parquet")
    with pytest.raises(AssertionError, match="something is scored"):
        rs.run(make_query(pool__labelled="labels.parquet", pool__filters=[["year", ">", 2021]]))


@pytest.mark.usefixtures("unscored_store")
@pytest.mark.parametrize(
    ("select", "words"),
    [
        ({"quotas": [{"by": "country", "value": "CH", "min": 1}]}, "1 rows with country CH are asked for, but 0 candidates have it"),
        ({"quotas": [{"by": "year", "value": 2020, "min": 11}, {"by": "year", "value": 2021, "min": 2}]}, "ask for 13 rows in all"),
        ({"cost": {"column": "minutes", "budget": 0.5}}, r"the cheapest of 1,200 eligible rows costs 1 by column minutes"),
        (
            {"cost": {"column": "minutes", "budget": 3.5}, "quotas": [{"by": "country", "min": 2}]},
            "ask for 6 rows, of which the cheapest cost 6 by column minutes, but select.cost.budget is 3.5",
        ),
        ({"must_include": ["r000001", "nobody"]}, "1 of 2 ids of select.must_include are not in the pool after its filters: 'nobody'"),
    ],
)
def test_a_batch_that_cannot_be(make_query: MakeQuery, select: dict[str, Any], words: str) -> None:
    """Minimums above what the pool holds or the budget allows, costs above the budget, rows that aren't there."""
    refused(make_query(select={"budget": 12} | select), QueryError, words)


@pytest.mark.usefixtures("unscored_store")
def test_a_disk_without_room(make_query: MakeQuery, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is certainly written is more than there is room for."""
    monkeypatch.setattr(LocalStore, "free_bytes", 20_000)
    refused(make_query(), StoreError, r"has 19.5 KiB of room, but scoring 1,200 rows writes at least 28.1 KiB")


def test_a_budget_above_what_is_eligible_is_said(make_query: MakeQuery, workplace: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the numbers, by `plan` and before `query` scores; the batch is then what there is."""
    pq.write_table(pa.table({"rid": ["r000001", "r000002", "elsewhere"]}), workplace / "labels.parquet")
    query = make_query(pool__labelled="labels.parquet", pool__uri="pool/year=2020", select={"budget": 500, "exclude": ["r000009"]})
    said = "select.budget is 500, but 297 of 300 rows are eligible, since 2 are labelled and 1 are in select.exclude"
    assert said in plan(query).warnings
    with caplog.at_level(logging.WARNING, "raystream"):
        assert rs.run(query).selection.num_rows == 297
    assert said in caplog.messages
    caplog.clear()
    again = query.model_copy(update={"seed": 1})
    with caplog.at_level(logging.WARNING, "raystream"):
        assert rs.run(again).manifest.units_scored == 0
    assert caplog.messages == []  # nothing is scored, so nothing is foreseen


def test_under_skip_it_is_said_since_rows_may_be_left_out(
    make_query: MakeQuery, workplace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The row with the second id is bad, and left out: the query ends well."""

    def spoilt(table: pa.Table) -> pa.Table:
        x = np.stack(table.column("x").to_pylist())
        x[0] = np.nan
        return renamed(table.set_column(1, "x", vectors(x)), ["r000003"])

    rewrite(workplace, 2022, spoilt)
    with caplog.at_level(logging.WARNING, "raystream"):
        assert rs.run(make_query(on_error="skip")).selection.num_rows == 12
    assert "1 ids of column rid are not unique" in caplog.messages[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of 500 rows in row groups of 64."""
    folder = tmp_path_factory.mktemp("unscored")
    for number in range(3):
        pq.write_table(pool_table(500, 500 * number), folder / f"{number}.parquet", row_group_size=64)
    return folder


@pytest.mark.parametrize("held", [0, 5000, 1 << 20])
@given(data=st.data(), fewest=st.integers(1, 9))
def test_ids_and_places_are_those_of_the_rows_that_pass(files: Path, held: int, data: st.DataObject, fewest: int) -> None:
    """Held or read again, in blocks smaller than a file: the same rows in the same order as the files hold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unscored, "HELD_BYTES", held)
        patch.setattr(unscored, "_BLOCK_ROWS", 50)
        pool = Pool(uri=str(files), id="rid", inputs=["x"], filters=[["minutes", "<", fewest]])
        whole = pq.read_table(files)
        expected = whole.filter(pc.less(whole.column("minutes"), fewest)).column("rid").to_pylist()
        if not expected:
            return
        planned = plan_pool(pool)
        rows = read_unscored(planned.units, planned.read)
        assert [id_ for chunk in rows.ids.chunks for id_ in chunk.to_pylist()] == expected
        some = np.array(data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=9)), np.int64)
        assert rows.ids_at(some).to_pylist() == [expected[row] for row in some]
        for row in some[:1].tolist():
            number = int(expected[row][1:])
            assert rows.place(row).startswith(f"{files}/{number // 500}.parquet#rg")
            assert rows.place(row).endswith(f" row {number % 500}")

"""Times stored as INT96, as Spark and Hive wrote them: beyond the range of nanoseconds, without a zone of their own."""

from __future__ import annotations

import operator
from datetime import UTC, datetime
from pathlib import Path

import deltalake
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raystream.errors import PoolError, QueryError
from raystream.pool import PoolPlan, plan_pool, read_columns_at, read_unit
from raystream.pool.labelled import Labelled, locate_labelled
from raystream.pool.reader import Prepared
from raystream.query import Pool

TIMES = [datetime(1, 1, 1), datetime(1816, 3, 29), datetime(2024, 1, 2, 3, 4, 5, 678901), None, datetime(9999, 12, 31, 23, 59, 59)]
COMPARED = {"==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def write_int96(path: Path, times: list[datetime | None] = TIMES, first: int = 0) -> Path:
    table = pa.table({"x": np.arange(first, first + len(times), dtype=np.float32), "t": pa.array(times, pa.timestamp("us"))})
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(table, path, use_deprecated_int96_timestamps=True, row_group_size=2)
    assert pq.read_metadata(path).schema.column(1).physical_type == "INT96"
    return path


def rows(plan: PoolPlan) -> list[tuple[str, int]]:
    blocks = [(Path(unit.file.path).name, block.rows) for unit in plan.units for block in read_unit(unit, plan.read, 3)]
    return [(name, row) for name, found in blocks for row in found.tolist()]


@pytest.mark.parametrize("op", [*COMPARED, "in", "not in"])
@pytest.mark.parametrize("value", [time for time in TIMES if time] + [datetime(1700, 1, 1), datetime(2262, 4, 12)])
def test_filters_compare_the_times_that_were_written(tmp_path: Path, op: str, value: datetime) -> None:
    """Spark's "for ever" is after all others, and nothing of before 1677 has become something of today."""
    path = write_int96(tmp_path / "a.parquet")
    if op in COMPARED:
        expected = [i for i, time in enumerate(TIMES) if time is not None and COMPARED[op](time, value)]
    else:
        expected = [i for i, time in enumerate(TIMES) if (time == value) == (op == "in")]
    text = value.isoformat()
    pool = Pool(uri=str(path), inputs=["x"], filters=[["t", op, [text] if "in" in op else text]])
    if expected:
        assert [row for _, row in rows(plan_pool(pool))] == expected


def test_kept_times_are_those_that_were_written(tmp_path: Path) -> None:
    """In microseconds, without a zone where nothing says one."""
    plan = plan_pool(Pool(uri=str(write_int96(tmp_path / "a.parquet")), inputs=["x"], keep=["t"]))
    assert plan.keep_schema.field("t").type == pa.timestamp("us")
    assert read_columns_at([(plan.files[0], row) for row in range(5)], plan.keep_schema)["t"].to_pylist() == TIMES


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", None])
@pytest.mark.parametrize("first", [True, False])
def test_beside_other_times_they_have_their_zone(tmp_path: Path, unit: str, zone: str | None, first: bool) -> None:
    """One pool of files from before and after an upgrade of the writer is one type, and one filter holds alike in all of them."""
    write_int96(tmp_path / ("a.parquet" if first else "z.parquet"))
    given = [datetime(2024, 1, 1, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC)]
    times = pa.array(given if zone else [time.replace(tzinfo=None) for time in given], pa.timestamp(unit, zone))
    pq.write_table(pa.table({"x": [5.0, 6.0], "t": times}), tmp_path / "m.parquet")
    text = "2024-06-01T00:00:00" + ("Z" if zone else "")
    plan = plan_pool(Pool(uri=str(tmp_path), inputs=["x"], filters=[["t", ">", text]], keep=["t"]))
    assert plan.keep_schema.field("t").type == pa.timestamp("us", zone)
    assert {place for place in rows(plan)} == {("a.parquet" if first else "z.parquet", 4), ("m.parquet", 1)}
    forever, late = TIMES[-1], given[1]
    assert forever is not None
    if zone != "Europe/Berlin":  # 9999-12-31 is no time that Python has there
        kept = read_columns_at([(file, 1 if file.path.endswith("m.parquet") else 4) for file in plan.files], plan.keep_schema)
        assert set(kept["t"].to_pylist()) == ({forever.replace(tzinfo=UTC), late} if zone else {forever, late.replace(tzinfo=None)})
    with pytest.raises(QueryError, match="expected a time without a zone" if zone is None else "expected a time with its zone"):
        plan_pool(Pool(uri=str(tmp_path), inputs=["x"], filters=[["t", ">", "2024-06-01T00:00:00" + ("" if zone else "Z")]]))


def test_labelled_rows_outside_such_filters_are_found(tmp_path: Path) -> None:
    """By the times in UTC, in both kinds of files."""
    write_int96(tmp_path / "a.parquet", [datetime(2020, 1, 1), datetime(2030, 1, 1)])
    later = pa.array([datetime(2020, 1, 1, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC)], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"x": pa.array([2.0, 3.0], pa.float32()), "t": later}), tmp_path / "b.parquet")
    plan = plan_pool(Pool(uri=str(tmp_path), inputs=["x"], filters=[["t", ">=", "2025-01-01T00:00:00Z"]]))
    ids = pa.array([f"{file.path}#{row}" for file in plan.files for row in (0, 1)], pa.large_string())
    units, rest = locate_labelled(plan, Labelled("id", ids, (), ids.slice(0, 0)))
    assert [(Path(unit.file.path).name, unit.positions) for unit in units] == [("a.parquet", (0,)), ("b.parquet", (0,))]
    assert len(rest) == 2


def test_what_goes_to_a_users_function_is_of_the_pools_type(tmp_path: Path) -> None:
    """A file's units say that they are cast, and the function gets UTC of both files."""
    write_int96(tmp_path / "a.parquet", [datetime(2024, 1, 1)])
    pq.write_table(pa.table({"x": [1.0], "t": pa.array([1], pa.timestamp("us", "UTC"))}), tmp_path / "b.parquet")
    plan = plan_pool(Pool(uri=str(tmp_path), inputs=["t"]), prepared=Prepared("module:function", "0"))
    assert [unit.casts for unit in plan.units] == [(("t", pa.timestamp("us", "UTC")),), ()]
    got: list[pa.DataType] = []

    def prepare(batch: pa.RecordBatch) -> tuple[tuple[np.ndarray, ...], dict[int, str]]:
        got.append(batch.schema.field("t").type)
        return (np.zeros((batch.num_rows, 1), np.float32),), {}

    for unit in plan.units:
        list(read_unit(unit, plan.read, 4, prepare=prepare))
    assert got == [pa.timestamp("us", "UTC")] * 2


def test_a_delta_tables_times_have_the_tables_zone(tmp_path: Path) -> None:
    """Its log says UTC, its files, which Spark wrote, say nothing."""
    table = pa.table({"x": pa.array([0.0, 1.0], pa.float32()), "t": pa.array([1, 2], pa.timestamp("us", "UTC"))})
    deltalake.write_deltalake(str(tmp_path / "table"), table)
    [file] = (tmp_path / "table").glob("*.parquet")
    write_int96(file, [datetime(2024, 1, 1), datetime(9999, 12, 31)])
    uri = f"delta+{tmp_path}/table"
    plan = plan_pool(Pool(uri=uri, inputs=["x"], filters=[["t", ">", "2024-06-01T02:00:00+02:00"]], keep=["t"]))
    assert [row for _, row in rows(plan)] == [1]
    kept = read_columns_at([(plan.files[0], row) for row in (0, 1)], plan.keep_schema)["t"]
    assert kept.type == pa.timestamp("us", "UTC")
    assert kept.to_pylist() == [datetime(2024, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)]
    with pytest.raises(QueryError, match="expected a time with its zone"):
        plan_pool(Pool(uri=uri, inputs=["x"], filters=[["t", ">", "2024-06-01T00:00:00"]]))


def test_beside_anything_else_they_are_refused(tmp_path: Path) -> None:
    """With both files and what they hold."""
    write_int96(tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": [1.0], "t": [1]}), tmp_path / "b.parquet")
    with pytest.raises(PoolError, match=r"column t is int64 in .*b\.parquet but a time, stored as INT96, in .*a\.parquet;"):
        plan_pool(Pool(uri=str(tmp_path), inputs=["x"], keep=["t"]))

"""Pools that are Iceberg or Delta tables, against tables written as other engines write them."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from lake_tables import delete_in_delta, delete_in_iceberg, delta_log

from raystream.errors import LabelsError, PoolError, QueryError
from raystream.pool import PoolPlan, locate_labelled, plan_pool, read_columns_at, read_labelled, read_unit
from raystream.pool.labelled_ids import id_batches
from raystream.pool.tables import list_pool
from raystream.query import Pool

ROWS, GROUP = 40, 8


def rows_of(start: int, rows: int = ROWS) -> pa.Table:
    """Ids from `start` on, a float input, and a column to filter by that grows with the id."""
    ids = range(start, start + rows)
    return pa.table({"k": pa.array(ids, pa.int64()), "x": pa.array(ids, pa.float32()), "day": pa.array([i // 10 for i in ids], pa.int64())})


@pytest.fixture
def iceberg(catalog: Any) -> Any:
    """`lake/ns.pool`: three data files of 40 rows in 5 row groups, ids 0 to 119."""
    table = catalog.create_table("ns.pool", schema=rows_of(0).schema, properties={"write.parquet.row-group-limit": str(GROUP)})
    for start in range(0, 3 * ROWS, ROWS):
        table.append(rows_of(start))
    return table


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    """A Delta table of three data files, ids 0 to 119, partitioned by a date that stands in the log alone."""
    folder = tmp_path / "delta"
    for number in range(3):
        dates = pa.array([datetime.date(2024, 1, 1 + number)] * ROWS)
        write_deltalake(folder, rows_of(number * ROWS).append_column("date", dates), mode="append", partition_by=["date"])
    return folder


def plan(uri: str, **options: Any) -> PoolPlan:
    return plan_pool(Pool(uri=uri, id="k", inputs=["x"], **options), target_bytes=1)


def ids_read(found: PoolPlan) -> list[int]:
    """All ids that the plan's units yield, sorted."""
    parts = [rows.ids.to_pylist() for unit in found.units for rows in read_unit(unit, found.read, 7)]
    return sorted(id_ for part in parts for id_ in part)


def data_files(table: Any) -> dict[int, str]:
    """First id -> data file."""
    paths = [task.file.file_path for task in table.refresh().scan().plan_files()]
    return {pq.read_table(path.removeprefix("file://")).column("k")[0].as_py(): path for path in paths}


def test_an_iceberg_table_is_read_as_it_stands(iceberg: Any) -> None:
    """All rows of its files, and the plan records the table and its snapshot."""
    found = plan("iceberg://lake/ns.pool")
    assert ids_read(found) == list(range(120))
    assert (found.rows, found.unit_rows, len(found.units)) == (120, 120, 15)
    (version,) = found.tables
    assert (version.uri, version.version) == ("iceberg://lake/ns.pool", iceberg.current_snapshot().snapshot_id)
    assert version.table == str(iceberg.metadata.table_uuid)


@pytest.mark.parametrize("form", ["PARQUET", "PUFFIN"])
def test_rows_that_iceberg_has_deleted_are_not_there(iceberg: Any, form: str) -> None:
    """Neither read nor counted, whichever row group they stand in, for position deletes and deletion vectors."""
    files = data_files(iceberg)
    gone = {0: [0, 7, 8, 39], 80: list(range(8, 16))}
    delete_in_iceberg(iceberg, {files[first]: positions for first, positions in gone.items()}, form)
    found = plan("iceberg://lake/ns.pool")
    expected = sorted(set(range(120)) - {first + position for first, positions in gone.items() for position in positions})
    assert ids_read(found) == expected == sorted(iceberg.scan().to_arrow().column("k").to_pylist())
    assert (found.rows, found.unit_rows) == (108, 108)
    assert len(found.units) == 14  # a row group without rows left is none


def test_deletes_that_are_lost_are_an_error(iceberg: Any) -> None:
    """A file of fewer deletes than its table counts would bring deleted rows back."""
    delete_in_iceberg(iceberg, {data_files(iceberg)[0]: [0, 7, 8]})
    [path] = Path(iceberg.location().removeprefix("file://")).rglob("deletes-*.parquet")
    pq.write_table(pq.read_table(path).slice(0, 2), path)
    with pytest.raises(PoolError, match=r"iceberg://lake/ns\.pool: .*deletes-.* holds 2 deletes, but the table counts 3; repair it"):
        plan("iceberg://lake/ns.pool")


def test_deletes_rescope_the_files_they_are_about_and_no_others(iceberg: Any) -> None:
    """A file's identity changes with its deletes alone; what units carry are the deletes among their own rows."""
    files = data_files(iceberg)
    before = {file.path: file.identity for file in plan("iceberg://lake/ns.pool").files}
    delete_in_iceberg(iceberg, {files[40]: [3, 30]})
    found = plan("iceberg://lake/ns.pool")
    after = {file.path: file.identity for file in found.files}
    assert [path for path in after if before[path] != after[path]] == [files[40].removeprefix("file://")]
    delete_in_iceberg(iceberg, {files[40]: [4]})
    again = {file.path: file.identity for file in plan("iceberg://lake/ns.pool").files}
    assert [path for path in again if again[path] != after[path]] == [files[40].removeprefix("file://")]
    carried = [unit.file.deletes.positions.tolist() for unit in found.units if unit.file.deletes is not None]
    assert carried == [[3], [], [], [30], []]
    assert all(unit.file.table is None for unit in found.units)


def test_an_older_snapshot_is_read_as_it_was(iceberg: Any) -> None:
    """Files and deletes that came later don't count; one that isn't there is an error that names those that are."""
    first, second, _ = [snapshot.snapshot_id for snapshot in iceberg.refresh().metadata.snapshots]
    delete_in_iceberg(iceberg, {data_files(iceberg)[0]: [0]})
    assert ids_read(plan(f"iceberg://lake/ns.pool?snapshot_id={first}")) == list(range(40))
    assert ids_read(plan(f"iceberg://lake/ns.pool?snapshot_id={second}")) == list(range(80))
    with pytest.raises(PoolError, match=rf"has no snapshot 7; the newest of 4 are .*{first}"):
        plan("iceberg://lake/ns.pool?snapshot_id=7")


def test_equality_deletes_are_refused_with_what_to_do(iceberg: Any) -> None:
    """They name values, not positions, and reading past them would bring deleted rows back."""
    delete_in_iceberg(iceberg, {data_files(iceberg)[0]: [0]}, equality=[1])
    with pytest.raises(PoolError, match=r"equality deletes in snapshot .*; compact the table"):
        plan("iceberg://lake/ns.pool")


FILTERS: list[tuple[list[Any], int]] = [
    ([("k", ">=", 100)], 1),
    ([("day", "==", 4)], 1),
    ([[("day", "==", 4)], [("k", "<", 5)]], 2),
    ([("k", "in", [3, 77])], 2),
    ([("k", "not in", list(range(40)))], 3),
    ([("k", ">", 38.5), ("k", "<=", 41)], 2),
]


@pytest.mark.parametrize(("filters", "most"), FILTERS)
def test_filters_reach_icebergs_statistics_and_stay_exact(iceberg: Any, filters: list[Any], most: int) -> None:
    """Files that can't hold a matching row aren't opened; the rows are those of the same filters over the files."""
    folder = iceberg.location().removeprefix("file://") + "/data"
    assert ids_read(plan("iceberg://lake/ns.pool", filters=filters)) == ids_read(plan(folder, filters=filters))
    assert len(plan("iceberg://lake/ns.pool", filters=filters).files) <= most


@pytest.mark.parametrize(("filters", "most"), [*FILTERS[:-1], ([("date", "==", "2024-01-02")], 1), ([("date", ">", "2024-01-02")], 1)])
def test_filters_reach_deltas_log_and_stay_exact(delta: Path, filters: list[Any], most: int) -> None:
    """By its statistics, and by partition columns of the type that the table declares."""
    found = plan(f"delta+{delta}", filters=filters)
    assert ids_read(found) == matching(DeltaTable(delta).to_pyarrow_table(), filters)
    assert len(found.files) <= most


def matching(table: pa.Table, filters: list[Any]) -> list[int]:
    """The ids of the rows that pass, by plain Python."""
    compare = {
        "==": lambda a, b: str(a) == str(b),
        ">": lambda a, b: str(a) > b if isinstance(b, str) else a > b,
        ">=": lambda a, b: a >= b,
        "<": lambda a, b: a < b,
        "in": lambda a, b: a in b,
        "not in": lambda a, b: a not in b,
    }
    either: Sequence[Sequence[Any]] = filters if isinstance(filters[0], list) else [filters]
    rows = table.to_pylist()
    return sorted(row["k"] for row in rows if any(all(compare[op](row[name], value) for name, op, value in terms) for terms in either))


def test_a_filter_that_leaves_no_file_says_so(iceberg: Any, delta: Path) -> None:
    """Rather than that the pool is empty; and a column that isn't there is named."""
    for uri in ("iceberg://lake/ns.pool", f"delta+{delta}"):
        with pytest.raises(PoolError, match=r"no row of .* is left after pool.filters, by the table's own statistics"):
            plan(uri, filters=[("k", ">", 1000)])
        with pytest.raises(PoolError, match=r"pool.filters names column dya.*did you mean 'day'"):
            plan(uri, filters=[("dya", ">", 1)])


def test_a_delta_table_is_read_without_its_deleted_rows(delta: Path) -> None:
    """A deletion vector takes rows out of one file; versions before it still hold them."""
    add = next(entry["add"] for entry in delta_log(delta) if "add" in entry and "2024-01-02" in entry["add"]["path"])
    delete_in_delta(delta, add, [0, 5, 39])
    found = plan(f"delta+{delta}")
    assert ids_read(found) == sorted(set(range(120)) - {40, 45, 79})
    assert (found.rows, found.unit_rows, found.tables[0].version) == (117, 117, 3)
    assert ids_read(plan(f"delta+file://{delta}?version=2")) == list(range(120))
    assert ids_read(plan(f"delta+{delta}?version=0")) == list(range(40))
    with pytest.raises(PoolError, match=r"has no version 9; its log holds 0 to 3"):
        plan(f"delta+{delta}?version=9")


def test_partition_columns_that_only_the_log_knows_can_be_kept(delta: Path) -> None:
    """In the table's type, not in what their text looks like."""
    found = plan(f"delta+{delta}", keep=["date", "day"])
    assert found.keep_schema.field("date").type == pa.date32()
    table = read_columns_at([(unit.file, unit.first_row) for unit in found.units], found.keep_schema)
    assert table.column("date").to_pylist() == [datetime.date(2024, 1, 1 + day // 4) for day in table.column("day").to_pylist()]


def test_paths_and_texts_with_odd_characters(tmp_path: Path) -> None:
    """Partition values that are escaped in the path, twice in the log, are read as they were written; so are deletes of them."""
    folder = tmp_path / "a b"
    for number, city in enumerate(["x y", "ü/%", "007"]):
        write_deltalake(folder, rows_of(number * ROWS).append_column("city", pa.array([city] * ROWS)), mode="append", partition_by=["city"])
    add = next(entry["add"] for entry in delta_log(folder) if "add" in entry and entry["add"]["partitionValues"] == {"city": "ü/%"})
    delete_in_delta(folder, add, [1])
    found = plan(f"delta+{folder}", filters=[("city", "in", ["ü/%", "007"])], keep=["city"])
    assert ids_read(found) == [40, *range(42, 120)]
    assert found.keep_schema.field("city").type == pa.string()
    assert {value for file in found.files for _, value in file.partitions} == {"ü/%", "007"}


def test_a_column_added_later_is_null_in_older_files(iceberg: Any, delta: Path) -> None:
    """For filters and kept columns; for an input there is nothing to score, which is said."""
    more = rows_of(120).append_column("url", pa.array(["u"] * ROWS))
    with iceberg.update_schema() as update:
        update.union_by_name(more.schema)
    iceberg.append(more)
    dated = more.append_column("date", pa.array([datetime.date(2024, 2, 1)] * ROWS))
    write_deltalake(delta, dated, mode="append", schema_mode="merge")
    for uri in ("iceberg://lake/ns.pool", f"delta+{delta}"):
        found = plan(uri, keep=["url"])
        urls = read_columns_at([(unit.file, unit.first_row) for unit in found.units], found.keep_schema).column("url").to_pylist()
        assert sorted(set(urls), key=str) == [None, "u"]
        assert ids_read(plan(uri, filters=[("url", "==", "u")])) == list(range(120, 160))
        assert ids_read(plan(uri, filters=[("url", "not in", ["u"])])) == list(range(120))
        with pytest.raises(PoolError, match=r"column url .* was added to the table after the file was written"):
            plan_pool(Pool(uri=uri, id="k", inputs=["x"], labelled=[]), columns=["url"])


def test_renamed_and_replaced_columns_are_refused(iceberg: Any) -> None:
    """Iceberg knows columns by number: reading by name would give another column's values, or none."""
    then = iceberg.current_snapshot().snapshot_id
    with iceberg.update_schema(allow_incompatible_changes=True) as update:
        update.rename_column("x", "y")
    with pytest.raises(PoolError, match=r"column y of .* was renamed after .*, where it is x; rewrite the table's files"):
        plan_pool(Pool(uri="iceberg://lake/ns.pool", id="k", inputs=["y"]))
    with pytest.raises(PoolError, match=r"column x is not in iceberg://lake/ns\.pool"):
        plan("iceberg://lake/ns.pool")
    assert ids_read(plan(f"iceberg://lake/ns.pool?snapshot_id={then}")) == list(range(120))  # with the names that it had then
    with iceberg.update_schema(allow_incompatible_changes=True) as update:
        update.delete_column("y")
    with iceberg.update_schema() as update:
        update.union_by_name(rows_of(0).schema)
    with pytest.raises(PoolError, match=r"column x of .* is another one than the column of that name in .*dropped since"):
        plan("iceberg://lake/ns.pool")


def test_labelled_rows_are_looked_up_before_filters_and_deletes_hold_for_them(iceberg: Any, delta: Path) -> None:
    """Statistics don't hide labelled rows from the look-up; a labelled row that its table deleted is none."""
    files = data_files(iceberg)
    delete_in_iceberg(iceberg, {files[0]: [1]})
    add = next(entry["add"] for entry in delta_log(delta) if "add" in entry and "2024-01-01" in entry["add"]["path"])
    delete_in_delta(delta, add, [2])
    found = plan("iceberg://lake/ns.pool", filters=[("k", ">=", 100)], labelled=[f"delta+{delta}?version=3"])
    labelled = read_labelled([f"delta+{delta}"], "k", pa.int64())
    assert set(labelled.ids.to_pylist()) == set(range(120)) - {2}
    read = [batch for file in labelled.files for batch in id_batches(file, "k", pa.int64())]
    places = {id_: row for rows, ids in read for id_, row in zip(ids.to_pylist(), rows.tolist(), strict=True)}
    assert places[3] == 3
    units, rest = locate_labelled(found, labelled)
    located = sorted(id_ for unit in units for rows in read_unit(unit, found.read, 100) for id_ in rows.ids.to_pylist())
    assert located == [0, *range(3, 100)]
    assert rest.ids.to_pylist() == [1, *range(100, 120)]


def test_bad_uris_and_tables_are_named(iceberg: Any, tmp_path: Path) -> None:
    """What can't be used is one sentence that says which; a password is never shown."""
    for uri, error, message in [
        ("iceberg://lake/pool", QueryError, "is not a table; expected iceberg://catalog/namespace.table"),
        ("iceberg://lake/ns.pool?version=1", QueryError, "version is not an option of such a table"),
        ("iceberg://lake/ns.pool?snapshot_id=new", QueryError, "snapshot_id is 'new', expected a whole number"),
        ("iceberg://lake/ns.pol", PoolError, "has no table ns.pol; did you mean 'ns.pool'"),
        ("iceberg://elsewhere/ns.pool", PoolError, "no catalog elsewhere is configured; say where it is in .pyiceberg.yaml"),
        (f"delta+{tmp_path}", PoolError, "can't be opened as a Delta table"),
        ("delta+s3://ann:hush@bucket/x", QueryError, "holds a user or password"),
    ]:
        with pytest.raises(error, match=message) as caught:
            list_pool([uri])
        assert "hush" not in str(caught.value)
    with pytest.raises(LabelsError, match="has no table"):
        read_labelled(["iceberg://lake/ns.none"], "k", pa.int64())


def test_a_data_file_that_is_gone_is_named(iceberg: Any) -> None:
    """The table lists it, so that leaving it out would choose from less than was asked for."""
    path = Path(data_files(iceberg)[0].removeprefix("file://"))
    path.unlink()
    with pytest.raises(PoolError, match=rf"lists the file {path}, which isn't there; restore it or read a newer version"):
        plan("iceberg://lake/ns.pool")


def test_tables_and_files_make_one_pool(iceberg: Any, write: Any) -> None:
    """In a list of URIs; a table's file beside the table, but with deletes, is refused."""
    extra = write("extra/more.parquet", rows_of(500, 3))
    assert ids_read(plan_pool(Pool(uri=["iceberg://lake/ns.pool", str(extra)], id="k", inputs=["x"]))) == [*range(120), 500, 501, 502]
    path = data_files(iceberg)[0]
    delete_in_iceberg(iceberg, {path: [0]})
    with pytest.raises(PoolError, match="twice, with different rows deleted"):
        list_pool(["iceberg://lake/ns.pool", path])


def test_a_catalog_is_not_needed_to_read_a_unit(iceberg: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers have the unit alone: its file, its positions, and nothing of the table."""
    import pickle

    delete_in_iceberg(iceberg, {data_files(iceberg)[0]: [0]})
    found = plan("iceberg://lake/ns.pool")
    units = pickle.loads(pickle.dumps(list(found.units)))
    monkeypatch.setattr("pyiceberg.catalog.load_catalog", None)
    ids = [rows.ids.to_numpy() for unit in units for rows in read_unit(unit, found.read, 100)]
    assert sorted(np.concatenate(ids).tolist()) == list(range(1, 120))
    assert units == list(found.units)


def test_a_partition_column_that_icebergs_file_lacks_has_the_tables_value(catalog: Any) -> None:
    """As in tables taken over from Hive: the value stands in the table, under the column's own type."""
    from pyiceberg.transforms import IdentityTransform

    dates = [datetime.date(2024, 1, 1), None]
    schema = rows_of(0).append_column("date", pa.array([None] * ROWS, pa.date32())).schema
    table = catalog.create_table("ns.parts", schema=schema)
    with table.update_spec() as update:
        update.add_field("date", IdentityTransform())
    for number, date in enumerate(dates):
        table.append(rows_of(number * ROWS).append_column("date", pa.array([date] * ROWS, pa.date32())))
    places = [(unit.file, unit.first_row) for unit in plan("iceberg://lake/ns.parts", keep=["date"]).units]
    whole = read_columns_at(places, pa.schema([("date", pa.date32())])).column("date").to_pylist()
    for path in data_files(table).values():
        local = path.removeprefix("file://")
        pq.write_table(pq.ParquetFile(local).read().drop(["date"]), local)
    found = plan("iceberg://lake/ns.parts", keep=["date"])
    values = read_columns_at([(unit.file, unit.first_row) for unit in found.units], found.keep_schema).column("date")
    assert sorted(values.to_pylist(), key=str) == sorted(whole, key=str) == sorted(dates, key=str)
    assert values.type == pa.date32()
    assert ids_read(plan("iceberg://lake/ns.parts", filters=[("date", "==", "2024-01-01")])) == list(range(ROWS))


def test_filters_that_order_a_null_partition_are_exact(catalog: Any, tmp_path: Path) -> None:
    """pyiceberg's own evaluation ends in an error there; a null matches no comparison, but is not in every list."""
    from pyiceberg.transforms import IdentityTransform

    schema = rows_of(0).append_column("city", pa.array(["x"] * ROWS)).schema
    table = catalog.create_table("ns.cities", schema=schema)
    with table.update_spec() as update:
        update.add_field("city", IdentityTransform())
    for number, city in enumerate(["a", None, "b"]):
        rows = rows_of(number * ROWS).append_column("city", pa.array([city] * ROWS, pa.string()))
        table.append(rows)
        write_deltalake(tmp_path / "cities", rows, mode="append", partition_by=["city"])
    for uri in ("iceberg://lake/ns.cities", f"delta+{tmp_path}/cities"):
        assert ids_read(plan(uri, filters=[("city", ">", "a")])) == list(range(80, 120))
        assert ids_read(plan(uri, filters=[("city", "<=", "b")])) == [*range(40), *range(80, 120)]
        assert ids_read(plan(uri, filters=[("city", "not in", ["a"])])) == list(range(40, 120))

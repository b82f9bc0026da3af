"""Whole queries over tables, against the same query over plain Parquet of the rows that the tables still hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from lake_tables import delete_in_delta, delete_in_iceberg, delta_log
from pools import DIMENSION, pool_table

import raystream as rs
from raystream import cli
from raystream.errors import LabelsError, PoolError, QueryError, StoreError
from raystream.store.local import LocalStore
from raystream.store.queries import read_manifest
from raystream.store.result import Result

GONE = [0, 5, 63, 64, *range(128, 192), 299]


def listed(start: int) -> pa.Table:
    """300 rows of the tests' pool, with vectors as lists, which tables turn them into anyway."""
    table = pool_table(300, start)
    index = table.schema.get_field_index("x")
    return table.set_column(index, "x", table.column("x").cast(pa.list_(pa.field("element", pa.float32()))))


def survivors(files: list[str], deleted: str, folder: Path) -> Path:
    """The rows left of the files, in files whose names sort alike."""
    folder.mkdir()
    for number, path in enumerate(sorted(files)):
        table = pq.ParquetFile(path).read()
        keep = np.setdiff1d(np.arange(len(table)), GONE) if path == deleted else np.arange(len(table))
        pq.write_table(table.take(pa.array(keep)), folder / f"{number}.parquet", row_group_size=50)
    return folder


@pytest.fixture
def iceberg_pool(workplace: Path, catalog: Any) -> tuple[str, Path]:
    """A table of four files with position deletes in one, and the folder of its surviving rows."""
    table = catalog.create_table("ns.pool", schema=listed(0).schema, properties={"write.parquet.row-group-limit": "64"})
    for start in range(0, 1200, 300):
        table.append(listed(start))
    paths = [task.file.file_path for task in table.scan().plan_files()]
    delete_in_iceberg(table, {paths[1]: GONE})
    local = [path.removeprefix("file://") for path in paths]
    return "iceberg://lake/ns.pool", survivors(local, local[1], workplace / "plain")


@pytest.fixture
def delta_pool(workplace: Path) -> tuple[str, Path]:
    """A table of four files with a deletion vector in one, and the folder of its surviving rows."""
    folder = workplace / "delta"
    for start in range(0, 1200, 300):
        write_deltalake(folder, listed(start), mode="append")
    add = [entry["add"] for entry in delta_log(folder) if "add" in entry][2]
    delete_in_delta(folder, add, GONE)
    paths = [str(path) for path in folder.glob("*.parquet")]
    return f"delta+{folder}", survivors(paths, str(folder / add["path"]), workplace / "plain")


def same_choice(one: Result, other: Result) -> None:
    """The same rows in the same order with the same scores; and the same rows were looked at."""
    assert one.selection.column("rid").to_pylist() == other.selection.column("rid").to_pylist()
    scores = [result.selection.column("score").to_numpy() for result in (one, other)]
    np.testing.assert_allclose(*scores, atol=1e-6)
    assert one.manifest.counts == other.manifest.counts
    assert one.manifest.counts.scored == one.manifest.counts.pool


@pytest.mark.parametrize("kind", ["iceberg_pool", "delta_pool"])
def test_a_query_over_a_table_is_the_query_over_its_surviving_rows(kind: str, make_query: Any, request: Any) -> None:
    """Also with labelled rows, kept columns and quotas; deleted rows are neither scored, chosen nor counted."""
    uri, plain = request.getfixturevalue(kind)
    labels = plain.parent / "labels.parquet"
    pq.write_table(listed(0).slice(0, 40).select(["rid"]), labels)
    options = {
        "pool__id": "rid",
        "pool__labelled": [str(labels)],
        "pool__keep": ["url", "country"],
        "select__quotas": [{"by": "country", "max": 5}],
    }
    result = rs.run(make_query(pool__uri=uri, **options))
    same_choice(result, rs.run(make_query(pool__uri=str(plain), **options)))
    assert result.manifest.counts.scored == 1200 - len(GONE)
    manifest = read_manifest(LocalStore("runs"), result.query)
    assert manifest is not None
    (version,) = manifest.tables
    assert (version.uri, version.version > 0) == (uri, True)


@pytest.mark.parametrize("kind", ["iceberg_pool", "delta_pool"])
def test_filters_choose_alike_and_leave_files_unread(kind: str, make_query: Any, request: Any) -> None:
    """The ids of the last file are above the bound: the statistics of the others rule them out."""
    uri, plain = request.getfixturevalue(kind)
    filters = {"pool__filters": [("rid", ">=", "r000880"), ("country", "in", ["DE", "FR"])]}
    one, other = (rs.run(make_query(pool__uri=place, **filters)) for place in (uri, str(plain)))
    assert one.selection.column("rid").to_pylist() == other.selection.column("rid").to_pylist()
    assert one.manifest.counts.scored == other.manifest.counts.scored
    assert (len(one.manifest.files), len(other.manifest.files)) == (2, 4)


def test_new_deletes_score_that_file_alone_and_nothing_else_anew(make_query: Any, catalog: Any, iceberg_pool: tuple[str, Path]) -> None:
    """And a commit that changes no row leaves the query the one that is committed."""
    uri, _ = iceberg_pool
    first = rs.run(make_query(pool__uri=uri))
    table = catalog.load_table("ns.pool")
    with table.update_schema() as update:
        update.add_column("note", pa_string())
    assert not rs.run(make_query(pool__uri=uri)).new
    path = sorted(task.file.file_path for task in table.scan().plan_files())[0]
    delete_in_iceberg(table, {path: [17]})
    second = rs.run(make_query(pool__uri=uri))
    assert second.query != first.query
    assert second.manifest.units_reused == first.manifest.units_scored - second.manifest.units_scored > 0
    assert second.manifest.counts.scored == first.manifest.counts.scored - 1


def pa_string() -> Any:
    from pyiceberg.types import StringType

    return StringType()


def rows_in(catalog: Any, uri: str) -> pa.Table:
    """What an output table or file holds, by its own library."""
    if uri.startswith("iceberg"):
        return catalog.load_table("ns.batches").scan().to_arrow()
    return DeltaTable(uri.removeprefix("delta+")).to_pyarrow_table() if uri.startswith("delta") else pq.ParquetFile(uri).read()


@pytest.mark.parametrize("kind", ["iceberg", "delta", "parquet"])
def test_the_selection_is_written_to_the_output_and_only_once(kind: str, make_query: Any, catalog: Any, workplace: Path) -> None:
    """Its columns and the query's name; the same query again changes nothing, another one stands beside it."""
    places = {"iceberg": "iceberg://lake/ns.batches", "delta": f"delta+{workplace}/batches", "parquet": str(workplace / "batch.parquet")}
    uri = places[kind]
    result = rs.run(make_query(output=uri))
    assert result.query == rs.run(make_query(store__uri="elsewhere")).query  # the output is no part of what is asked
    held = rows_in(catalog, uri).sort_by("rank")
    assert held.column_names == [*result.selection.column_names, "query_id"]
    assert set(held.column("query_id").to_pylist()) == {result.query}
    for name in ("rank", "rid", "score", "represents", "path", "row"):
        assert held.column(name).to_pylist() == result.selection.column(name).to_pylist()
    if kind == "parquet":
        assert pq.read_schema(uri).metadata[b"raystream.model"].decode() == result.manifest.fingerprint
    before = versions(catalog, uri)
    assert not rs.run(make_query(output=uri)).new
    assert versions(catalog, uri) == before
    if kind != "parquet":
        other = rs.run(make_query(output=uri, select__budget=7, pool__keep=["url"]))
        names = rows_in(catalog, uri).column("query_id").to_pylist()
        assert (names.count(result.query), names.count(other.query)) == (12, 7)


@pytest.mark.parametrize("kind", ["iceberg", "delta", "parquet"])
def test_scores_and_selections_do_not_take_each_others_place(kind: str, make_query: Any, catalog: Any, workplace: Path, cli: Any) -> None:
    """One table or file holds either; what was there stays, and so does a file of raystream's that somebody has changed."""
    uri, second = {
        "iceberg": ("iceberg://lake/ns.batches", "iceberg://lake/ns.second"),
        "delta": (f"delta+{workplace}/batches", f"delta+{workplace}/second"),
        "parquet": ("batch.parquet", "second.parquet"),
    }[kind]
    result = rs.run(make_query(output=uri))
    held = rows_in(catalog, uri)
    code, _, error = cli("scores", result.query, "--out", uri)
    assert (code, "holds selections, whose rows scores would take the place of" in error) == (3, True), error
    assert rows_in(catalog, uri).equals(held)
    assert cli("scores", result.query, "--out", second)[0] == 0
    with pytest.raises(StoreError, match="holds scores, whose rows a selection would take the place of"):
        rs.run(make_query(output=second, select__budget=3))
    if kind == "parquet":
        pq.write_table(held.append_column("label", pa.array(range(held.num_rows))).replace_schema_metadata(), uri)
        with pytest.raises(StoreError, match="not written by raystream"):
            rs.run(make_query(output=uri, select__budget=3))


def versions(catalog: Any, uri: str) -> int:
    """How often a table was committed to."""
    if uri.startswith("iceberg"):
        return len(catalog.load_table("ns.batches").metadata.snapshots)
    return DeltaTable(uri.removeprefix("delta+")).version() if uri.startswith("delta") else 0


def test_a_committed_query_without_its_output_gets_it_by_running_again(make_query: Any, catalog: Any, workplace: Path) -> None:
    """A place that can't be written is an error after the commit; what is missing is written by the same query."""
    (workplace / "full").write_text("not a folder")
    with pytest.raises(StoreError, match=r"output full/out.*query [0-9a-f]{12} is committed, run it again"):
        rs.run(make_query(output="full/out"))
    (workplace / "full").unlink()
    result = rs.run(make_query(output="full/out"))
    assert not result.new
    path = workplace / "full" / "out" / f"selection-{result.query}.parquet"
    assert pq.ParquetFile(path).read().drop(["query_id"]).equals(result.selection)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    uri = "iceberg://lake/ns.batches"
    rs.run(make_query(output=uri))
    catalog.load_table("ns.batches").delete("rank < 3")
    rs.run(make_query(output=uri))
    assert sorted(rows_in(catalog, uri).column("rank").to_pylist()) == list(range(12))


def test_outputs_that_cannot_be_used_are_refused_before_anything_is_scored(make_query: Any, catalog: Any) -> None:
    """A wrong form, a pinned version, another table's rows."""
    for uri, message in [("iceberg://lake/x", "is not a table"), ("delta+/x?version=3", "names a version")]:
        with pytest.raises(QueryError, match=message):
            rs.run(make_query(output=uri))
    catalog.create_table("ns.other", schema=pa.schema([("a", pa.int64())]))
    write_deltalake("other", pa.table({"a": [1]}))
    for uri in ("iceberg://lake/ns.other", "delta+other"):
        with pytest.raises(StoreError, match="a table without a column query_id"):
            rs.run(make_query(output=uri))
    with pytest.raises(StoreError, match=r"output iceberg://nowhere/a\.b can't be written: URI missing"):
        rs.run(make_query(output="iceberg://nowhere/a.b"))
    assert not Path("runs").exists()


def test_the_command_line_says_what_is_wrong_with_a_table(
    make_query: Any, catalog: Any, iceberg_pool: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 3 for a snapshot that isn't there, 2 for a URI that is none; one sentence, no traceback."""
    Path("query.yaml").write_text(make_query(pool__uri=iceberg_pool[0]).to_yaml())
    for change, code, message in [
        ("pool.uri=iceberg://lake/ns.pool?snapshot_id=5", 3, "has no snapshot 5; the newest of 5 are"),
        ("pool.uri=iceberg://lake", 2, "is not a table"),
        ("output=iceberg://lake", 2, "output iceberg://lake is not a table"),
    ]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["query", "query.yaml", "--set", change])
        said = capsys.readouterr().err.splitlines()[-1]
        assert (ended.value.code, message in said, "Traceback" in said) == (code, True, False), said


def test_the_tests_pool_has_the_width_that_lists_hide() -> None:
    """The reference pools really hold what the nets expect."""
    assert {len(x) for x in listed(0).column("x").to_pylist()} == {DIMENSION}


@pytest.mark.parametrize("use", ["targets", "temperature"])
def test_targets_and_calibration_rows_may_be_tables(use: str, make_query: Any, delta_pool: tuple[str, Path], workplace: Path) -> None:
    """Without their deleted rows, against the same rows as plain Parquet: the same scores; a version that isn't there is named."""
    table, plain = delta_pool
    other = f"{table}?version=9"

    def ask(place: str) -> rs.Query:
        if use == "targets":
            return make_query(acquire={"score": "epig", "targets": [place], "mc_samples": 2}, select__strategy="top_k")
        return make_query(model__temperature=place, pool__label="label", select__strategy="top_k")

    if use == "temperature":
        write_deltalake(workplace / "labels", listed(0).append_column("label", pa.array([i % 4 for i in range(300)])))
        (add,) = [entry["add"] for entry in delta_log(workplace / "labels") if "add" in entry]
        delete_in_delta(workplace / "labels", add, GONE)
        path = workplace / "labels" / add["path"]
        table, plain = f"delta+{workplace}/labels", survivors([str(path)], str(path), workplace / "rest")
        other = f"{table}?version=9"
    one, same = rs.run(ask(table)), rs.run(ask(str(plain)))
    assert one.selection.column("rid").to_pylist() == same.selection.column("rid").to_pylist()
    np.testing.assert_allclose(one.selection.column("score").to_numpy(), same.selection.column("score").to_numpy(), atol=1e-6)
    if use == "temperature":
        assert one.manifest.calibration is not None
        assert one.manifest.calibration.rows == 300 - len(GONE)
    with pytest.raises((PoolError, LabelsError), match=rf"{use} delta\+.* has no version 9"):
        rs.run(ask(other))

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

import raystream.pool as pool_package
from raystream.errors import PoolError, QueryError
from raystream.pool import plan, plan_pool
from raystream.query import Pool


def test_the_public_names_are_sorted_and_real() -> None:
    """`__all__` is what the package offers."""
    assert pool_package.__all__ == sorted(pool_package.__all__)
    assert all(hasattr(pool_package, name) for name in pool_package.__all__)


def test_plan_counts_before_and_after_filters(write, tmp_path: Path) -> None:
    """Files and rows are the whole pool's, units what folders and statistics leave of it."""
    for year in (2022, 2023, 2024):
        write(f"year={year}/a.parquet", {"k": range(10), "x": range(10)})
    found = plan_pool(Pool(uri=str(tmp_path), id="k", inputs=["x"], filters=[("year", ">", 2022), ("k", "<", 5)]), target_bytes=1)
    assert (len(found.files), found.rows, found.unit_rows) == (3, 30, 16)
    assert [unit.row_groups for unit in found.units] == [(0,), (1,)] * 2
    assert {unit.filters for unit in found.units} == {((("k", "<", 5),),)}
    assert found.bytes == sum(unit.bytes for unit in found.units) > 0
    assert found.snapshot == [file.identity for file in found.files]
    assert (found.id_name, found.id_type, found.warnings) == ("k", pa.int64(), ())


def test_units_do_not_depend_on_other_files_or_on_filters_that_folders_decide(write, tmp_path: Path) -> None:
    """So that scored units are found again when the pool grows or is looked at through its folders."""
    write("split=a/x.parquet", {"k": range(20), "x": range(20)})
    alone = plan_pool(Pool(uri=str(tmp_path), id="k", inputs=["x"]), target_bytes=200)
    write("split=b/x.parquet", {"k": range(20), "x": range(20)})
    filters = [[("split", "==", "a")], [("split", "==", "b"), ("k", "<", 3)]]
    grown = plan_pool(Pool(uri=str(tmp_path), id="k", inputs=["x"], filters=filters), target_bytes=200)
    assert len(alone.units) > 1
    assert list(grown.units[: len(alone.units)]) == list(alone.units)


def test_list_columns_take_their_width_from_the_rows_that_have_one(write, tmp_path: Path) -> None:
    """Null, empty and ragged rows and files without rows are passed over."""
    type_ = pa.list_(pa.list_(pa.uint8()))
    write("a.parquet", pa.table({"v": pa.array([], type_)}))
    write("b.parquet", {"v": pa.array([None, [], [[1], [2, 3]], [[1, 2, 3], [4, 5, 6]]], type_)})
    assert plan_pool(Pool(uri=str(tmp_path), inputs=["v"])).read.shapes == ((2, 3),)
    write("b.parquet", {"v": pa.array([None, []], type_)})
    with pytest.raises(PoolError, match="column v holds no list with values"):
        plan_pool(Pool(uri=str(tmp_path), inputs=["v"]))


def test_one_odd_row_does_not_decide_the_width(write, tmp_path: Path) -> None:
    """The commonest shape of a sample does, wherever the odd rows stand; of equals the earlier one."""
    type_ = pa.list_(pa.float32())
    write("a.parquet", {"v": pa.array([[1, 2]] + [[1, 2, 3]] * 3, type_)})
    write("b.parquet", {"v": pa.array([[1]] * 3, type_)})
    assert plan_pool(Pool(uri=str(tmp_path), inputs=["v"])).read.shapes == ((3,),)
    (tmp_path / "a.parquet").unlink()
    write("c.parquet", {"v": pa.array([[1, 2]] * 3, type_)})
    assert plan_pool(Pool(uri=str(tmp_path), inputs=["v"])).read.shapes == ((1,),)


def test_the_width_is_taken_from_files_that_are_read(write, tmp_path: Path) -> None:
    """Files and row groups that filters leave out have no say."""
    type_ = pa.list_(pa.float32())
    for year, width in ((2023, 2), (2024, 3)):
        write(f"year={year}/a.parquet", {"k": range(8), "v": pa.array([[1] * 9] * 4 + [[1] * width] * 4, type_)})
    pool = Pool(uri=str(tmp_path), inputs=["v"], filters=[("year", "==", 2024), ("k", ">", 3)])
    assert plan_pool(pool).read.shapes == ((3,),)


def test_sampled_files_are_spread_over_the_pool(write, tmp_path: Path) -> None:
    """The first eight of many files don't decide alone, and nulls at the start of all of them don't hide the rest."""
    type_ = pa.list_(pa.float32())
    for i in range(24):
        write(f"{i:02}.parquet", {"v": pa.array([[1] * (2 if i < 8 else 3)], type_)})
    assert plan_pool(Pool(uri=str(tmp_path), inputs=["v"])).read.shapes == ((3,),)
    for i in range(24):
        write(f"{i:02}.parquet", {"v": pa.array([None] * 70 + [[1] * 4], type_)}, rows_per_group=100)
    assert plan_pool(Pool(uri=str(tmp_path), inputs=["v"])).read.shapes == ((4,),)


def test_files_that_cannot_be_read_are_left_out_under_skip(write, tmp_path: Path) -> None:
    """With a warning that names file and reason; under fail, and if no file is left, they end planning."""
    write("a.parquet", {"x": [1, 2]})
    for name in ("b=1/b.parquet", "c.parquet"):
        path = write(name, {"x": [3]})
        path.write_bytes(path.read_bytes()[:-20])
    pool = Pool(uri=str(tmp_path), inputs=["x"])
    found = plan_pool(pool, on_error="skip")
    assert [Path(file.path).name for file in found.files] == ["a.parquet"]
    assert (found.rows, found.partition_types) == (2, {})
    (warning,) = found.warnings
    assert warning.startswith("2 files of the pool were left out: ")
    assert "b.parquet can't be read as Parquet: " in warning
    assert "c.parquet can't be read as Parquet: " in warning
    with pytest.raises(PoolError, match=r"b\.parquet can't be read as Parquet"):
        plan_pool(pool)
    write("d.parquet", {"y": [1]})
    with pytest.raises(PoolError, match=r"column x is missing in .*d\.parquet"):
        plan_pool(pool, on_error="skip")
    with pytest.raises(PoolError, match=r"none of the 1 files can be read, first: .*c\.parquet can't be read"):
        plan_pool(Pool(uri=str(tmp_path / "c.parquet"), inputs=["x"]), on_error="skip")


def test_pools_without_rows_are_refused(write, tmp_path: Path) -> None:
    """No row at all, and no row after filters, are told apart."""
    path = write("a.parquet", pa.table({"x": pa.array([], pa.int64())}))
    with pytest.raises(PoolError, match="holds no row in 1 files"):
        plan_pool(Pool(uri=str(path), inputs=["x"]))
    write("k=1/b.parquet", {"x": [1]})
    for term in (("k", "==", 2), ("x", ">", 5)):
        with pytest.raises(PoolError, match=rf"no row of 1 files is left after filters {term[0]} {term[1]} {term[2]}"):
            plan_pool(Pool(uri=str(tmp_path / "k=1" / "..") + "/k=*", inputs=["x"], filters=[term]))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"id": "score"}, QueryError, "pool.id names column score, .* rename"),
        ({"keep": ["path"]}, QueryError, "pool.keep names column path, .* rename"),
        ({"keep": ["entropy"]}, QueryError, "pool.keep names column entropy"),
        ({"keep": ["k"]}, QueryError, "remove it from pool.keep"),
        ({"keep": ["s", "s"]}, QueryError, "names column s twice"),
        ({"keep": ["nothing"]}, PoolError, "column nothing is missing"),
        ({"id": "f"}, PoolError, "id column f is double; expected integers, strings or binary"),
        ({"id": "kk"}, PoolError, "column kk is missing"),
        ({"inputs": ["s"]}, PoolError, "column s is string; expected numbers"),
        ({"inputs": ["f", "v"]}, PoolError, "the inputs mix"),
        ({"filters": [("s", "==", 5)]}, QueryError, r"pool.filters compares column s \(string\) == 5"),
        ({"filters": [("t", "==", 5)]}, PoolError, "column t is missing"),
    ],
)
def test_names_and_types_that_cannot_be_used(write, vectors, changes: dict, error: type[Exception], message: str) -> None:
    """Each mistake in the query is one sentence of the right kind."""
    path = str(write("a.parquet", {"k": [1], "s": ["x"], "f": [0.5], "v": vectors(1), "score": [1], "path": ["p"], "entropy": [1.0]}))
    with pytest.raises(error, match=message):
        plan_pool(Pool(**{"uri": path, "id": "k", "inputs": ["f"], **changes}))


def test_derived_ids_claim_the_name_id(write) -> None:
    """Without pool.id a kept column can't be called id; the id may be an input."""
    path = str(write("a.parquet", {"id": [1]}))
    with pytest.raises(QueryError, match=r"pool.keep names id"):
        plan_pool(Pool(uri=path, inputs=["id"], keep=["id"]))
    assert plan_pool(Pool(uri=path, id="id", inputs=["id"])).read.inputs == ("id",)


def test_columns_of_the_model_stand_in_for_inputs(write, vectors) -> None:
    """A model of kind columns says what is read; partitions and dictionaries may be kept."""
    path = write("day=3/a.parquet", {"k": [1], "logits": vectors(1), "s": pa.array(["x"]).dictionary_encode()})
    found = plan_pool(Pool(uri=f"{path.parents[1]}", id="k", keep=["day", "s"]), ["logits"], "skip")
    assert (found.read.inputs, found.read.on_error) == (("logits",), "skip")
    assert found.keep_schema == pa.schema({"day": pa.int64(), "s": pa.string()})


def test_a_large_row_group_is_warned_of(write, monkeypatch: pytest.MonkeyPatch) -> None:
    """The warning names the row group, as its columns bound a worker's memory; decoded size counts."""
    monkeypatch.setattr(plan, "LARGE_ROW_GROUP", 60_000)
    path = write("a.parquet", {"x": [1] * 20_000, "y": [1] * 20_000}, rows_per_group=10_000)
    (warning,) = plan_pool(Pool(uri=str(path), inputs=["x", "y"])).warnings
    assert "a.parquet#rg1, holds" in warning

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystream.errors import PoolError
from raystream.pool import PoolPlan, UnitRows, plan_pool, read_unit, units_at
from raystream.pool.columns import Column
from raystream.pool.reader import ReadSpec, tensors_of, tensors_of_numbers
from raystream.query import Pool


def read_all(plan: PoolPlan, batch_rows: int = 3) -> list[UnitRows]:
    return [rows for unit in plan.units for rows in read_unit(unit, plan.read, batch_rows)]


def ids(blocks: list[UnitRows]) -> list:
    return [value for block in blocks for value in block.ids.to_pylist()]


def positions(blocks: list[UnitRows]) -> list[int]:
    return [row for block in blocks for row in block.rows.tolist()]


def test_every_row_is_read_once_in_order(write, vectors, tmp_path: Path) -> None:
    """Over several files and row groups: ids, positions and tensors in the order of (path, row), batches bounded."""
    write("a.parquet", {"k": range(10), "v": vectors(10)})
    write("b.parquet", {"k": range(10, 15), "v": vectors(5, start=30)})
    plan = plan_pool(Pool(uri=str(tmp_path), id="k", inputs=["v"]), target_bytes=1)
    assert [unit.name.rpartition("/")[2] for unit in plan.units] == [
        "a.parquet#rg0", "a.parquet#rg1", "a.parquet#rg2", "b.parquet#rg0", "b.parquet#rg1"
    ]  # fmt: skip
    blocks = read_all(plan)
    assert ids(blocks) == list(range(15))
    assert positions(blocks) == [*range(10), *range(5)]
    assert all(len(block.rows) <= 3 for block in blocks)
    assert np.array_equal(np.concatenate([block.inputs[0] for block in blocks]).ravel(), np.arange(45, dtype=np.float32))


def test_scalars_are_stacked_and_tensors_are_not(write, vectors) -> None:
    """Scalar columns give one float32 tensor in the query's order; list columns one tensor each."""
    path = str(write("a.parquet", {"x": [1, 2], "y": [0.5, 1.5], "z": [True, False], "v": vectors(2), "w": vectors(2, 1)}))
    plan = plan_pool(Pool(uri=path, inputs=["y", "x", "z"]))
    assert (plan.read.shapes, plan.read.dtypes) == (((3,),), ("float32",))
    (block,) = read_all(plan)
    assert block.inputs[0].tolist() == [[0.5, 1, 1], [1.5, 2, 0]]
    plan = plan_pool(Pool(uri=path, inputs=["w", "v"]))
    assert (plan.read.shapes, plan.read.dtypes) == (((1,), (3,)), ("float32", "float32"))
    assert [array.shape for array in read_all(plan)[0].inputs] == [(2, 1), (2, 3)]


def test_derived_ids_are_path_and_row(write) -> None:
    """Without an id column rows are called path#row, counted before filters."""
    path = write("a.parquet", {"x": range(9)})
    plan = plan_pool(Pool(uri=str(path), inputs=["x"], filters=[("x", "in", [1, 5, 8])]))
    assert ids(read_all(plan)) == [f"{path}#1", f"{path}#5", f"{path}#8"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (pa.array([1, None, 3], pa.uint16()), pa.uint16()),
        (pa.array(["a", None, "c"], pa.large_string()), pa.large_string()),
        (pa.array(["a", None, "c"], pa.string_view()), pa.large_string()),
        (pa.array(["a", None, "c"]).dictionary_encode(), pa.string()),
        (pa.array([b"a", b"b", b"c"]), pa.binary()),
        (pa.array([b"aa", b"bb", b"cc"], pa.binary(2)), pa.binary(2)),
    ],
)
def test_ids_keep_their_type(write, given: pa.Array, expected: pa.DataType) -> None:
    """Dictionaries and views are decoded, other types kept, nulls let through, also where rows are filtered out."""
    path = str(write("a.parquet", {"k": given, "x": [1, 2, 3]}))
    plan = plan_pool(Pool(uri=path, id="k", inputs=["x"], filters=[("x", ">", 1)]))
    (block,) = read_all(plan)
    assert plan.id_type == block.ids.type == expected
    assert block.ids.to_pylist() == given.to_pylist()[1:]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 7), st.integers(1, 7))
def test_batching_and_row_groups_never_show(tmp_path_factory, values: list[int], group: int, batch: int) -> None:
    """Filtered rows and their positions are the same for any row groups and batch size."""
    path = tmp_path_factory.mktemp("pool") / "a.parquet"
    pq.write_table(pa.table({"x": values}), path, row_group_size=group)
    expected = [i for i, value in enumerate(values) if value != 2]
    if not expected:
        return
    blocks = read_all(plan_pool(Pool(uri=str(path), inputs=["x"], filters=[("x", "!=", 2)]), target_bytes=1), batch)
    assert positions(blocks) == expected
    assert [x for block in blocks for x in block.inputs[0][:, 0].tolist()] == [values[i] for i in expected]


def test_positions_read_nothing_else(write, vectors) -> None:
    """A unit with positions yields those rows, whatever the filters say."""
    path = str(write("a.parquet", {"k": range(10), "v": vectors(10)}, rows_per_group=3))
    plan = plan_pool(Pool(uri=path, id="k", inputs=["v"], filters=[("k", "==", 0)]))
    blocks = [rows for unit in units_at(plan.footers[0], [2, 7, 9]) for rows in read_unit(unit, plan.read, 2)]
    assert ids(blocks) == positions(blocks) == [2, 7, 9]
    assert np.concatenate([block.inputs[0] for block in blocks])[:, 0].tolist() == [6, 21, 27]


BAD = pa.array([[1, 1], [float("nan"), 1], None, [1, None], [1], [1, float("inf")], [2, 2]], pa.list_(pa.float32()))


def test_the_first_bad_row_is_an_error(write) -> None:
    """Under fail the message says file, row group, row, column and what is wrong."""
    path = str(write("a.parquet", {"pixels": BAD.slice(5).to_pylist()[::-1] + BAD.to_pylist()}))
    plan = plan_pool(Pool(uri=path, inputs=["pixels"]))
    with pytest.raises(PoolError, match=r"a\.parquet#rg0 row 1: column pixels holds a value that is infinite as float32; "):
        read_all(plan)


def test_bad_rows_are_left_out_under_skip(write) -> None:
    """Under skip every bad row is reported once and the rest is read."""
    path = str(write("a.parquet", {"k": range(7), "v": BAD}))
    plan = plan_pool(Pool(uri=path, id="k", inputs=["v"]), on_error="skip")
    blocks = read_all(plan, batch_rows=7)
    assert ids(blocks) == positions(blocks) == [0, 6]
    assert [x for block in blocks for x in block.inputs[0].tolist()] == [[1, 1], [2, 2]]
    found = sorted(str(bad).rpartition("/")[2] for block in blocks for bad in block.bad)
    assert found == [
        "a.parquet#rg0 row 1: column v holds NaN",
        "a.parquet#rg0 row 2: column v is null",
        "a.parquet#rg0 row 3: column v holds a null",
        "a.parquet#rg1 row 4: column v holds 1 values, expected 2",
        "a.parquet#rg1 row 5: column v holds a value that is infinite as float32",
    ]


def test_bad_scalars_name_their_column(write) -> None:
    """Of stacked columns the one at fault is named; a row bad in two of them is one row."""
    path = str(write("a.parquet", {"x": [1, None, 3, 4], "y": [1.0, 2.0, float("nan"), 4.0], "z": [1.0, None, 1.0, 1.0]}))
    blocks = read_all(plan_pool(Pool(uri=path, inputs=["x", "y", "z"]), on_error="skip"), 4)
    assert positions(blocks) == [0, 3]
    assert [(bad.row, bad.column, bad.reason) for block in blocks for bad in block.bad] == [(1, "x", "is null"), (2, "y", "holds NaN")]


def test_a_batch_without_a_sound_row_still_reports(write) -> None:
    """Nothing is lost from the report when all rows of a batch are bad."""
    path = str(write("a.parquet", {"v": pa.array([[1.0], None, None], pa.list_(pa.float32(), 1))}))
    blocks = read_all(plan_pool(Pool(uri=path, inputs=["v"]), on_error="skip"), 1)
    assert [(len(block.rows), len(block.bad)) for block in blocks] == [(1, 0), (0, 1), (0, 1)]
    assert blocks[1].inputs[0].shape == (0, 1)


def test_a_changed_file_and_damaged_pages_are_errors(write, vectors) -> None:
    """Reading what was planned or not at all; damage names the unit."""
    path = write("a.parquet", {"v": vectors(4000, 8)}, rows_per_group=2000)
    stat = os.stat(path)
    plan = plan_pool(Pool(uri=str(path), inputs=["v"]), target_bytes=1)
    content = bytearray(path.read_bytes())
    metadata = pq.read_metadata(path)
    start = metadata.row_group(1).column(0).data_page_offset
    content[start : start + 2000] = bytes(255 - b for b in content[start : start + 2000])
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert sum(len(rows.rows) for rows in read_unit(plan.units[0], plan.read, 100)) == 2000
    with pytest.raises(PoolError, match=r"a\.parquet#rg1 can't be read"):
        list(read_unit(plan.units[1], plan.read, 100))
    os.utime(path, ns=(1, 1))
    with pytest.raises(PoolError, match="was changed"):
        list(read_unit(plan.units[0], plan.read, 100))


def test_units_and_specs_travel(write, vectors) -> None:
    """What workers get survives pickling, and units are hashable."""
    path = str(write("a.parquet", {"k": range(3), "v": vectors(3)}))
    plan = plan_pool(Pool(uri=path, id="k", inputs=["v"], filters=[("k", "in", [1, 2])]))
    unit, read = pickle.loads(pickle.dumps((plan.units[0], plan.read)))
    assert (unit, read) == (plan.units[0], plan.read)
    assert hash(unit) == hash(plan.units[0])


def test_masked_columns_may_hold_minus_infinity(write) -> None:
    """In the columns that the plan names, and in no other."""
    inf = float("inf")
    rows = [[0.0, -inf], [-inf, -inf], [inf, 0.0], [1.0, 2.0]]
    path = str(write("a.parquet", {"z": pa.array(rows, pa.list_(pa.float32(), 2)), "e": pa.array(rows, pa.list_(pa.float32(), 2))}))
    blocks = read_all(plan_pool(Pool(uri=path), ["z"], "skip", masked=["z"]), 9)
    assert positions(blocks) == [0, 3]
    assert [bad.reason for block in blocks for bad in block.bad] == ["holds nothing but -inf", "holds a value that is infinite as float32"]
    assert positions(read_all(plan_pool(Pool(uri=path), ["z", "e"], "skip", masked=["z"]), 9)) == [3]
    with pytest.raises(PoolError, match="row 0: column z holds a value that is infinite"):
        read_all(plan_pool(Pool(uri=path), ["z"]))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("width", [None, 3])
@given(
    some=st.lists(
        st.lists(st.floats(width=64) | st.integers(-(2**60), 2**60) | st.booleans(), min_size=2, max_size=4)
        | st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3),
        min_size=1,
        max_size=4,
    )
)
def test_plain_numbers_become_the_tensors_of_columns(dtype: str, width: int | None, some: list[list[Any]]) -> None:
    """Or nothing, which whoever asks takes for `tensors_of`'s to read: so what it says of wrong rows is said."""
    shape: tuple[int | None, ...] = () if width is None else (width,)
    columns = tuple(Column(name, shape, dtype) for name in ("a", "b"))
    spec = ReadSpec(None, pa.string(), columns)
    rows = [{"a": values if width else values[0], "b": values[::-1] if width else values[-1]} for values in some]
    found = tensors_of_numbers(rows, spec)
    if found is None:
        floats = all(type(value) is float and abs(value) < 1e4 for values in some for value in values)
        assert not (floats and all(len(values) == 3 for values in some))
        return
    kind = pa.float64() if width is None else pa.list_(pa.float64(), width)
    batch = pa.RecordBatch.from_pydict({name: pa.array([row[name] for row in rows], kind) for name in ("a", "b")})
    for one, other in zip(found, tensors_of(batch, spec), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_many_plain_numbers_are_left_to_columns() -> None:
    """Which then take less time."""
    spec = ReadSpec(None, pa.string(), (Column("a", (32,), "float32"),))
    assert tensors_of_numbers([{"a": [0.5] * 32}] * 32, spec) is not None
    assert tensors_of_numbers([{"a": [0.5] * 32}] * 33, spec) is None

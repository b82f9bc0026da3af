from __future__ import annotations

import io
from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raystream.errors import PoolError
from raystream.pool import PoolPlan, plan_pool, read_columns_at, read_unit
from raystream.pool.column_types import wider
from raystream.pool.reader import Prepared
from raystream.query import Pool

WIDER = [
    (pa.int8(), pa.int64(), pa.int64()),
    (pa.uint8(), pa.uint32(), pa.uint32()),
    (pa.float32(), pa.float64(), pa.float64()),
    (pa.decimal128(10, 2), pa.decimal128(20, 2), pa.decimal128(20, 2)),
    (pa.string(), pa.large_string(), pa.string()),
    (pa.string_view(), pa.string(), pa.string()),
    (pa.dictionary(pa.int32(), pa.large_string()), pa.string(), pa.string()),
    (pa.dictionary(pa.int8(), pa.int32()), pa.int64(), pa.int64()),
    (pa.string_view(), pa.large_string(), pa.large_string()),
    (pa.binary(), pa.binary_view(), pa.binary()),
    (pa.list_(pa.int32()), pa.list_(pa.int64()), pa.list_(pa.int64())),
    (pa.list_(pa.float32(), 3), pa.list_(pa.field("element", pa.float32())), pa.list_(pa.float32())),
    (pa.list_(pa.float32(), 3), pa.list_(pa.float64(), 3), pa.list_(pa.float64(), 3)),
    (pa.large_list(pa.string()), pa.list_(pa.large_string()), pa.list_(pa.string())),
    (pa.struct({"bytes": pa.binary()}), pa.struct({"bytes": pa.large_binary()}), pa.struct({"bytes": pa.binary()})),
]
APART = [
    (pa.string(), pa.int64()), (pa.int32(), pa.uint32()), (pa.int64(), pa.float64()), (pa.float16(), pa.float32()),
    (pa.bool_(), pa.int8()), (pa.list_(pa.float32()), pa.float32()), (pa.list_(pa.float32(), 3), pa.list_(pa.float32(), 4)),
    (pa.list_(pa.int32()), pa.list_(pa.string())), (pa.decimal128(10, 2), pa.decimal128(10, 3)), (pa.string(), pa.binary()),
    (pa.binary(), pa.binary(4)), (pa.timestamp("ms"), pa.timestamp("us")), (pa.null(), pa.string()),
    (pa.struct({"a": pa.int32()}), pa.struct({"b": pa.int32()})), (pa.struct({"a": pa.int32()}), pa.struct({"a": pa.string()})),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other", "expected"), WIDER)
def test_the_wider_type_holds_both(one: pa.DataType, other: pa.DataType, expected: pa.DataType) -> None:
    """Whichever comes first."""
    assert wider(one, other) == wider(other, one) == expected


@pytest.mark.parametrize(("one", "other"), APART)
def test_other_types_have_no_wider_one(one: pa.DataType, other: pa.DataType) -> None:
    """Whichever comes first."""
    assert wider(one, other) is None
    assert wider(other, one) is None


def test_encodings_and_nullable_items_are_no_difference(write, tmp_path: Path) -> None:
    """Dictionaries and the items of lists may be told apart in footers, but the pool's type is one."""
    nullable = pa.array([[1.0]], pa.list_(pa.float64()))
    write("a.parquet", {"i": [1.0], "s": pa.array(["x"]).dictionary_encode(), "v": nullable})
    item = pa.field("element", pa.float64(), nullable=False)
    write("b.parquet", {"i": [1.0], "s": ["x"], "v": pa.array([[1.0]], pa.list_(item))})
    plan = plan_pool(Pool(uri=str(tmp_path), id="s", inputs=["i"], keep=["v"]))
    assert plan.id_type == pa.string()
    assert [unit.casts for unit in plan.units] == [(), ()]


def test_types_that_do_not_agree_are_named(write, tmp_path: Path) -> None:
    """Column, both files and both types; also of a column that the first file has as a folder."""
    write("a.parquet", {"x": [1.0], "i": pa.array([1], pa.int32())})
    write("b.parquet", {"x": [1.0], "i": ["1"]})
    with pytest.raises(PoolError, match=r"column i is int32 in .*a\.parquet but string in .*b\.parquet; expected one type"):
        plan_pool(Pool(uri=str(tmp_path), inputs=["x"], keep=["i"]))
    write("i=5/0.parquet", {"x": [1.0]})
    with pytest.raises(PoolError, match=r"column i is int32 in .*a\.parquet but string in .*b\.parquet"):
        plan_pool(Pool(uri=str(tmp_path), inputs=["x"], keep=["i"]))


ASKED = [{"keep": ["a"]}, {"filters": [("a", "==", 1)]}, {"filters": [("a", "==", "x")]}, {}]


@pytest.mark.parametrize(("folder", "kind"), [("a=1", "int64"), ("a=x", "string")])
@pytest.mark.parametrize("array", [pa.array(["1"]), pa.array([1]), pa.array([[1]]), pa.array([1.5])])
@pytest.mark.parametrize("asked", ASKED)
def test_a_folder_and_a_column_must_be_of_one_kind(write, tmp_path: Path, folder: str, kind: str, array: pa.Array, asked: dict) -> None:
    """Whole numbers beside integers, text beside strings; anything else is refused while planning, with both places and types."""
    write(f"{folder}/a.parquet", {"x": [1.0]})
    write("b.parquet", {"x": [1.0], "a": array})
    pool, also = Pool(uri=str(tmp_path), inputs=["x"], **asked), () if asked else ["a"]
    if str(array.type) == kind:
        if "filters" not in asked or isinstance(asked["filters"][0][2], str) == (kind == "string"):
            assert plan_pool(pool, also=also).rows == 2
        return
    message = rf"column a is .* in .*/b\.parquet, but a hive folder \({kind}\) in .*/{folder}/a\.parquet; .*, so rename the column or"
    with pytest.raises(PoolError, match=message):
        plan_pool(pool, also=also)


def test_columns_of_several_widths_and_spellings_come_as_one(write, tmp_path: Path) -> None:
    """Kept columns in the wider type, in whatever order the files come, folders included."""
    texts = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
    numbers = [pa.int8(), pa.int32(), pa.int64(), pa.int16()]
    for number, (text, whole) in enumerate(zip(texts, numbers, strict=True)):
        data = {"x": [0.5], "s": pa.array([f"s{number}"], pa.string()).cast(text), "i": pa.array([number], whole)}
        write(f"{number}.parquet", data | {"v": pa.array([[number]], [pa.list_(whole), pa.large_list(whole)][number % 2])})
    write("i=4/s=s4/4.parquet", {"x": [0.5], "v": pa.array([[4]], pa.list_(pa.int64(), 1))})
    plan = plan_pool(Pool(uri=str(tmp_path), inputs=["x"], keep=["s", "i", "v"]))
    assert plan.keep_schema == pa.schema({"s": pa.string(), "i": pa.int64(), "v": pa.list_(pa.int64())})
    table = read_columns_at([(file, 0) for file in plan.files], plan.keep_schema)
    assert table.to_pydict() == {"s": [f"s{n}" for n in range(5)], "i": [*range(5)], "v": [[n] for n in range(5)]}


def test_a_value_beyond_the_pools_type_names_file_and_column(write, tmp_path: Path) -> None:
    """Folders are whole numbers of 64 bits, which a column of unsigned ones may go beyond."""
    write("a=1/a.parquet", {"x": [1.0]})
    write("b.parquet", {"x": [1.0], "a": pa.array([2**64 - 1], pa.uint64())})
    plan = plan_pool(Pool(uri=str(tmp_path), inputs=["x"], keep=["a"]))
    with pytest.raises(PoolError, match=r"column a of .*b\.parquet is uint64 and can't become int64, .*; write it as such"):
        read_columns_at([(file, 0) for file in plan.files], plan.keep_schema)


def read_all(plan: PoolPlan) -> list:
    return [rows for unit in plan.units for rows in read_unit(unit, plan.read, 4)]


LISTS = [pa.list_(pa.float32(), 3), pa.list_(pa.float32()), pa.large_list(pa.float64())]


@pytest.mark.parametrize("order", [*permutations(range(3))])
def test_inputs_of_several_list_types_are_one_tensor(write, tmp_path: Path, order: tuple[int, ...]) -> None:
    """The width is that of the rows, and a row of another one is a bad row, also where the type says its width."""
    for place, number in enumerate(order):
        write(f"{place}.parquet", {"x": pa.array([[number, 1, 2], [number, 4, 5]], LISTS[number])})
    plan = plan_pool(Pool(uri=str(tmp_path), inputs=["x"]))
    assert plan.read.shapes == ((3,),)
    tensors = np.concatenate([rows.inputs[0] for rows in read_all(plan)])
    assert tensors.tolist() == [row for number in order for row in ([number, 1, 2], [number, 4, 5])]
    place = order.index(0)
    write(f"{place}.parquet", {"x": pa.array([[1.0] * 4], pa.list_(pa.float32(), 4))})
    with pytest.raises(PoolError, match=rf"{place}\.parquet#rg0 row 0: column x holds 4 values, expected 3"):
        read_all(plan_pool(Pool(uri=str(tmp_path), inputs=["x"])))
    found = read_all(plan_pool(Pool(uri=str(tmp_path), inputs=["x"]), on_error="skip"))
    assert [len(rows.ids) for rows in found] == [0 if i == place else 2 for i in range(3)]


@pytest.mark.parametrize(
    ("types", "dtype"), [([pa.list_(pa.int32(), 2), pa.list_(pa.int64(), 2)], "int64"), ([pa.int8(), pa.int64()], "float32")]
)
def test_inputs_of_integers_become_the_wider_ones(write, tmp_path: Path, types: list, dtype: str) -> None:
    """In every unit, whatever its file holds."""
    for number, type_ in enumerate(types):
        write(f"{number}.parquet", {"x": pa.array([[number, 1]] if pa.types.is_nested(type_) else [number], type_)})
    blocks = [rows.inputs[0] for rows in read_all(plan_pool(Pool(uri=str(tmp_path), inputs=["x"])))]
    assert [str(block.dtype) for block in blocks] == [dtype] * 2
    assert [block[0, 0] for block in blocks] == [0, 1]


@pytest.mark.parametrize(
    ("types", "widest", "values"),
    [
        ([pa.int32(), pa.int64()], pa.int64(), [1, 2]),
        ([pa.uint64(), pa.uint16()], pa.uint64(), [1, 2]),
        ([pa.string(), pa.large_string()], pa.string(), ["a", "b"]),
        ([pa.string_view(), pa.string()], pa.string(), ["a", "b"]),
        ([pa.binary(), pa.large_binary()], pa.binary(), [b"a", b"b"]),
    ],
)
def test_ids_come_in_the_wider_type(write, tmp_path: Path, types: list, widest: pa.DataType, values: list) -> None:
    """And only units of narrower files say so, which is in their keys: the others' outputs are what they were."""
    for number, type_ in enumerate(types):
        write(f"{number}.parquet", {"k": pa.array([values[number]], type_), "x": [1.0]})
    plan = plan_pool(Pool(uri=str(tmp_path), id="k", inputs=["x"]))
    assert plan.id_type == widest
    found = read_all(plan)
    assert [rows.ids.type for rows in found] == [widest] * 2
    assert [rows.ids[0].as_py() for rows in found] == values
    assert [unit.casts for unit in plan.units] == [() if type_ == widest else (("k", widest),) for type_ in types]
    alone = plan_pool(Pool(uri=str(tmp_path / f"{types.index(widest)}.parquet"), id="k", inputs=["x"]))
    assert alone.units[0] in plan.units


@pytest.mark.parametrize("op", ["==", "!=", "<", "<=", ">", ">=", "in", "not in"])
@pytest.mark.parametrize("value", [3, 300, 2**40, 0.5])
def test_filters_hold_alike_in_files_of_several_widths(write, tmp_path: Path, op: str, value: float) -> None:
    """And statistics prune no row that passes; the pool written in one type is the oracle."""
    narrow, wide = [1, 3, 100, None], [3, 300, 2**40, None]
    for folder, types in (("mixed", (pa.int8(), pa.int64())), ("one", (pa.int64(), pa.int64()))):
        for name, (type_, values) in zip("ab", zip(types, (narrow, wide), strict=True), strict=True):
            write(f"{folder}/{name}.parquet", {"x": range(4), "i": pa.array(values, type_)}, rows_per_group=1)

    def passing(folder: str) -> list:
        pool = Pool(uri=str(tmp_path / folder), inputs=["x"], filters=[("i", op, [value] if "in" in op else value)])
        try:
            plan = plan_pool(pool)
        except PoolError:
            return []
        return [(Path(unit.file.path).name, rows.rows.tolist()) for unit in plan.units for rows in read_unit(unit, plan.read, 4)]

    assert passing("mixed") == passing("one")


def test_a_function_of_the_users_gets_one_type(write, tmp_path: Path) -> None:
    """The wider one, in every unit; the units of narrower files say so."""
    for number, type_ in enumerate(LISTS):
        write(f"{number}.parquet", {"x": pa.array([[number, 1, 2]], type_)})
    plan = plan_pool(Pool(uri=str(tmp_path), inputs=["x"]), prepared=Prepared("module:function", "code"))
    got = []

    def prepare(batch: pa.RecordBatch) -> tuple:
        got.append(batch.column("x"))
        return (np.zeros((len(batch), 1), np.float32),), {}

    for unit in plan.units:
        list(read_unit(unit, plan.read, 4, prepare=prepare))
    assert [array.type for array in got] == [pa.list_(pa.float64())] * 3
    assert [array.to_pylist() for array in got] == [[[number, 1, 2]] for number in range(3)]
    assert [unit.casts for unit in plan.units] == [(("x", pa.list_(pa.float64())),)] * 3


WITH_NULLS = [
    pa.int32(), pa.string(), pa.large_binary(), pa.timestamp("us", "UTC"), pa.date32(), pa.decimal128(9, 2), pa.bool_(), pa.float16(),
    pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.float32(), 2), pa.struct({"bytes": pa.binary(), "path": pa.string()}),
    pa.fixed_shape_tensor(pa.float32(), [2]),
]  # fmt: skip


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("type_", WITH_NULLS, ids=str)
def test_a_column_that_is_null_in_one_file_is_of_the_others_type(write, tmp_path: Path, type_: pa.DataType, first: bool) -> None:
    """Kept, whichever file comes first; also where it is null in a part of a file."""
    write(f"{'a' if first else 'z'}.parquet", {"x": [1.0, 2.0], "c": pa.nulls(2)})
    write("m.parquet", {"x": [3.0], "c": pa.nulls(1, type_)})
    plan = plan_pool(Pool(uri=str(tmp_path), inputs=["x"], keep=["c"]))
    kept = read_columns_at([(file, 0) for file in plan.files], plan.keep_schema)
    assert kept["c"].type == (type_.value_type if pa.types.is_dictionary(type_) else type_)
    assert kept["c"].null_count == 2


def test_lists_and_structs_of_nulls_are_of_the_others_type(write, tmp_path: Path) -> None:
    """As writers without a schema make of empty lists and missing paths."""
    write("a.parquet", {"x": [1.0], "l": pa.array([[]], pa.list_(pa.null())), "s": [{"bytes": b"b", "path": None}]})
    write("b.parquet", {"x": [1.0], "l": [["y"]], "s": [{"bytes": b"b", "path": "p"}]})
    plan = plan_pool(Pool(uri=str(tmp_path), inputs=["x"], keep=["l", "s"]))
    kept = read_columns_at([(file, 0) for file in plan.files], plan.keep_schema).to_pydict()
    assert kept == {"l": [[], ["y"]], "s": [{"bytes": b"b", "path": path} for path in (None, "p")]}


@pytest.mark.parametrize(
    ("filters", "passing"),
    [
        ([("c", "==", "u")], [("b", 0)]), ([("c", "!=", "u")], [("b", 1)]), ([("c", "in", ["u", "v"])], [("b", 0), ("b", 1)]),
        ([("c", "not in", ["u"])], [("a", 0), ("a", 1), ("b", 1), ("b", 2)]), ([("c", "<", "z"), ("x", ">", 2)], [("b", 0), ("b", 1)]),
        ([[("c", "==", "u")], [("x", "==", 1)]], [("a", 0), ("b", 0)]),
    ],
)  # fmt: skip
def test_filters_on_a_column_that_is_null_in_one_file(write, tmp_path: Path, filters: list, passing: list) -> None:
    """Nulls match nothing, but are `not in` every list, whatever type a file gives them."""
    write("a.parquet", {"x": [1, 2], "c": pa.nulls(2)})
    write("b.parquet", {"x": [3, 4, 5], "c": ["u", "v", None]})
    plan = plan_pool(Pool(uri=str(tmp_path), inputs=["x"], filters=filters))
    assert [(Path(u.file.path).stem, row) for u in plan.units for rows in read_unit(u, plan.read, 4) for row in rows.rows] == passing


@pytest.mark.parametrize("name", ["x", "k"])
def test_inputs_and_ids_that_are_null_in_one_file_are_bad_rows(write, tmp_path: Path, name: str) -> None:
    """As they are where the file says their type: inputs by row, ids to be counted over the whole pool."""
    columns = {"x": pa.array([1.0, 2.0]), "k": pa.array(["a", "b"])}
    write("a.parquet", columns | {name: pa.nulls(2)})
    write("b.parquet", columns)
    plan = plan_pool(Pool(uri=str(tmp_path), id="k", inputs=["x"]), on_error="skip")
    blocks = read_all(plan)
    assert {block.ids.type for block in blocks} == {pa.string()}
    assert [(bad.row, bad.column, bad.reason) for block in blocks for bad in block.bad] == (
        [(0, "x", "is null"), (1, "x", "is null")] * (name == "x")
    )
    assert sum(block.ids.null_count for block in blocks) == 2 * (name == "k")


@pytest.mark.parametrize("kind", ["list", "text", "image", "raw"])
def test_other_inputs_that_are_null_in_one_file(write, tmp_path: Path, kind: str) -> None:
    """Lists whose width the other files tell, texts, bytes; a function of the user's gets nulls of the pool's type."""
    npy = io.BytesIO()
    np.save(npy, np.ones(2, np.float32))
    value = {"list": [1.0, 2.0], "text": "t", "image": npy.getvalue(), "raw": "t"}[kind]
    write("a.parquet", {"v": pa.nulls(2)})
    write("b.parquet", {"v": [value, None]})
    prepared = Prepared("module:function", "0") if kind == "raw" else None
    texts = "taken" if kind == "text" else "refused"
    plan = plan_pool(Pool(uri=str(tmp_path), inputs=["v"]), on_error="skip", prepared=prepared, texts=texts)
    got: list[pa.DataType] = []

    def prepare(batch: pa.RecordBatch) -> tuple:
        got.append(batch.schema.field("v").type)
        return (np.zeros((len(batch), 1), np.float32),), {}

    blocks = [rows for unit in plan.units for rows in read_unit(unit, plan.read, 4, prepare=prepare)]
    assert [len(block.rows) for block in blocks] == ([2, 2] if kind == "raw" else [0, 1])
    assert [len(block.bad) for block in blocks] == ([0, 0] if kind == "raw" else [2, 1])
    assert got == [pa.string()] * (2 * (kind == "raw"))


def test_a_hive_key_beside_a_column_of_nulls(write, tmp_path: Path) -> None:
    """Files without the folder may hold nulls instead."""
    write("c=u/a.parquet", {"x": [1.0]})
    write("b.parquet", {"x": [2.0], "c": pa.nulls(1)})
    plan = plan_pool(Pool(uri=str(tmp_path), inputs=["x"], keep=["c"]))
    assert read_columns_at([(file, 0) for file in plan.files], plan.keep_schema)["c"].to_pylist() == [None, "u"]

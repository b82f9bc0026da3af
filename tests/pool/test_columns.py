from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystream.errors import PoolError
from raystream.pool.columns import Column, check_mixture, decode, recognise, row_shapes, structural_flaws, value_flaws

FLOAT = st.floats(width=32, allow_nan=False, allow_infinity=False)


def with_shape(array: pa.Array, shape: tuple[int, ...]) -> Column:
    return Column("v", shape, recognise("v", array.type).dtype)


@pytest.mark.parametrize(
    ("type_", "shape", "dtype"),
    [
        (pa.float64(), (), "float32"),
        (pa.float16(), (), "float32"),
        (pa.uint8(), (), "uint8"),
        (pa.bool_(), (), "bool"),
        (pa.list_(pa.float64(), 4), (4,), "float32"),
        (pa.list_(pa.list_(pa.uint8(), 4), 3), (3, 4), "uint8"),
        (pa.list_(pa.int32()), (None,), "int32"),
        (pa.large_list(pa.list_(pa.float32())), (None, None), "float32"),
        (pa.fixed_shape_tensor(pa.uint8(), (2, 3)), (2, 3), "uint8"),
        (pa.fixed_shape_tensor(pa.float64(), (2, 3, 4), permutation=[2, 0, 1]), (4, 2, 3), "float32"),
    ],
)
def test_types_are_recognised(type_: pa.DataType, shape: tuple, dtype: str) -> None:
    """Shape and dtype follow from the Arrow type alone; a list's width stays open."""
    assert recognise("v", type_) == Column("v", shape, dtype)


@pytest.mark.parametrize("type_", [pa.string(), pa.list_(pa.string()), pa.decimal128(5, 2), pa.struct({"a": pa.int8()}), pa.timestamp("s")])
def test_other_types_are_refused(type_: pa.DataType) -> None:
    """The message names the column and its type."""
    with pytest.raises(PoolError, match=r"column v is .*; expected numbers"):
        recognise("v", type_)


def test_scalars_and_lists_do_not_mix() -> None:
    """A model's inputs are either stacked scalars or tensors."""
    with pytest.raises(PoolError, match=r"single numbers \(column a\) with lists \(column b\)"):
        check_mixture([recognise("a", pa.int8()), recognise("b", pa.list_(pa.int8(), 2))])


def test_fixed_size_lists_are_not_copied() -> None:
    """A slice of a float32 list column decodes to a view of the same memory."""
    values = pa.array(np.arange(12, dtype=np.float32))
    block = decode(pa.FixedSizeListArray.from_arrays(values, 3).slice(1, 2), Column("v", (3,), "float32"))
    assert block.tolist() == [[3, 4, 5], [6, 7, 8]]
    assert np.shares_memory(block, values.to_numpy())


@given(st.lists(st.lists(FLOAT, min_size=2, max_size=2), min_size=1, max_size=8), st.data())
def test_decoding_agrees_with_to_pylist(rows: list, data: st.DataObject) -> None:
    """Whatever the list type and the slice, the tensor holds what Python sees."""
    types = [pa.list_(pa.float32(), 2), pa.list_(pa.float64(), 2), pa.list_(pa.float32()), pa.large_list(pa.float64())]
    type_ = data.draw(st.sampled_from(types))
    start = data.draw(st.integers(0, len(rows)))
    array = pa.array(rows, type_).slice(start, data.draw(st.integers(0, len(rows) - start)))
    column = with_shape(array, (2,))
    assert structural_flaws(array, column) == {}
    block = decode(array, column)
    assert (block.dtype, block.shape) == (np.float32, (len(array), 2))
    assert block.tolist() == array.to_pylist()


@pytest.mark.parametrize(
    "type_",
    [
        pa.list_(pa.list_(pa.int16(), 2), 3),
        pa.list_(pa.list_(pa.int16())),
        pa.list_(pa.list_(pa.int16(), 2)),
        pa.list_(pa.list_(pa.int16()), 3),
    ],
)
def test_nested_lists(type_: pa.DataType) -> None:
    """Fixed and variable lists nest in any order."""
    rows = np.arange(24, dtype=np.int16).reshape(4, 3, 2)
    array = pa.array(rows.tolist(), type_).slice(1)
    assert np.array_equal(decode(array, with_shape(array, (3, 2))), rows[1:])


@pytest.mark.parametrize("permutation", [None, [1, 0]])
def test_tensors_agree_with_arrow(permutation: list[int] | None) -> None:
    """A fixed-shape tensor decodes as Arrow's own to_numpy_ndarray, permutation and slice respected."""
    type_ = pa.fixed_shape_tensor(pa.float32(), (2, 3), permutation=permutation)
    storage = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(24, dtype=np.float32)), 6)
    array = pa.ExtensionArray.from_storage(type_, storage).slice(1, 2)
    block = decode(array, recognise("v", type_))
    assert np.array_equal(block, array.to_numpy_ndarray())
    assert value_flaws(block) == {}


ITEM = st.none() | st.floats(0, 9, width=32)


@given(st.lists(st.none() | st.lists(ITEM, max_size=3), max_size=8), st.booleans(), st.integers(0, 3))
def test_every_unsound_row_is_reported(rows: list, fixed: bool, start: int) -> None:
    """Null rows, null items and other lengths are found, each at its row; sound rows never are."""
    if fixed:
        rows = [row if row is None else (row * 2 + [1.0, 1.0])[:2] for row in rows]
    array = pa.array(rows, pa.list_(pa.float32(), 2) if fixed else pa.list_(pa.float32())).slice(start)
    flaws = structural_flaws(array, with_shape(array, (2,)))
    expected = {}
    for i, row in enumerate(array.to_pylist()):
        if row is None:
            expected[i] = "is null"
        elif len(row) != 2:
            expected[i] = f"holds {len(row)} values, expected 2"
        elif None in row:
            expected[i] = "holds a null"
    assert flaws == expected


@given(st.lists(st.none() | st.lists(st.none() | st.lists(ITEM, max_size=2), max_size=2), max_size=6), st.integers(0, 3), st.booleans())
def test_shapes_are_those_of_rows_that_have_one(rows: list, start: int, fixed: bool) -> None:
    """As numpy sees them: null, ragged and empty rows have none, at whatever level."""
    if fixed:
        rows = [row and [item and (item * 2)[:2] for item in row] for row in rows]
        rows = [row and [item or None for item in row] for row in rows]
    array = pa.array(rows, pa.list_(pa.list_(pa.float32(), 2) if fixed else pa.list_(pa.float32()))).slice(start)
    shapes = [np.array(row, dtype=object).shape for row in rows[start:]]
    assert row_shapes(array, recognise("v", array.type)) == [shape for shape in shapes if len(shape) == 2 and all(shape)]


def test_nested_flaws() -> None:
    """A flaw inside is reported at the outermost row."""
    array = pa.array([[[1, 2], [3, 4]], [[1], [2, 3]], [None, [1, 2]], [[1, None], [1, 2]], [[1, 2]]], pa.list_(pa.list_(pa.int8())))
    flaws = structural_flaws(array, with_shape(array, (2, 2)))
    assert flaws == {1: "holds 1 values, expected 2", 2: "holds a null", 3: "holds a null", 4: "holds 1 values, expected 2"}


@given(st.lists(st.lists(st.floats(width=32), min_size=3, max_size=3), max_size=6))
def test_every_row_with_nan_or_infinity_is_reported(rows: list) -> None:
    """Exactly the rows that numpy calls not finite, also where finite values overflow the sum."""
    block = np.array(rows, dtype=np.float32).reshape(-1, 3)
    assert sorted(value_flaws(block)) == np.flatnonzero(~np.isfinite(block).all(axis=1)).tolist()


@given(st.lists(st.lists(st.sampled_from([0.0, 3e38, float("nan"), float("inf"), float("-inf")]), min_size=3, max_size=3), max_size=6))
def test_minus_infinity_is_a_value_where_it_masks(rows: list) -> None:
    """In masked columns rows with NaN, +inf or nothing but -inf are reported, each with its reason, and no others."""
    expected = {}
    for i, row in enumerate(rows):
        if any(v != v for v in row):
            expected[i] = "holds NaN"
        elif float("inf") in row:
            expected[i] = "holds a value that is infinite as float32"
        elif set(row) == {float("-inf")}:
            expected[i] = "holds nothing but -inf"
    assert value_flaws(np.array(rows, dtype=np.float32).reshape(-1, 3), masked=True) == expected


def test_doubles_too_large_for_float32_are_reported() -> None:
    """Rounding to float32 never lets an infinite value through."""
    array = pa.array([[1.0], [1e300]], pa.list_(pa.float64(), 1))
    assert value_flaws(decode(array, with_shape(array, (1,)))) == {1: "holds a value that is infinite as float32"}
    assert value_flaws(np.array([[1], [2]], dtype=np.int64)) == {}

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raystream.errors import LabelsError, PoolError
from raystream.pool import has_columns, plan_pool, read_unit
from raystream.pool.columns import check_mixture, decode, recognise, structural_flaws
from raystream.query import Pool

TYPES = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string_view()]


@pytest.mark.parametrize("type_", TYPES, ids=str)
def test_strings_are_texts_where_the_model_takes_them(type_):
    """All encodings of strings are texts for a model of texts, and an error for every other."""
    for texts in ("taken", "expected"):
        column = recognise("t", type_, texts)
        assert (column.is_text, column.is_scalar, column.shape) == (True, False, ())
    with pytest.raises(PoolError, match=r"column t is .*; expected numbers, booleans, or lists of them as a model's input"):
        recognise("t", type_)


def test_numbers_where_texts_are_expected():
    """A model of texts alone refuses numbers; one that takes both reads them as ever."""
    with pytest.raises(PoolError, match=r"column x is float; expected strings"):
        recognise("x", pa.float32(), "expected")
    assert recognise("x", pa.float32(), "taken") == recognise("x", pa.float32())


def test_texts_beside_other_inputs():
    """Texts stand beside lists and other texts, not beside single numbers, which become one tensor."""
    text, numbers, number = recognise("t", pa.string(), "taken"), recognise("v", pa.list_(pa.float32(), 3)), recognise("x", pa.float32())
    check_mixture([text, numbers, text])
    with pytest.raises(PoolError, match=r"mix single numbers \(column x\) with texts \(column t\)"):
        check_mixture([text, number])


def test_texts_decode_to_str():
    """Texts come as they are, empty ones too; nulls are flaws."""
    column = recognise("t", pa.string(), "taken")
    array = pa.array(["a", "", None, "ü𝄞"])
    assert structural_flaws(array, column) == {2: "is null"}
    found = decode(array.slice(0, 2), column)
    assert (found.dtype, found.tolist()) == (np.dtype(object), ["a", ""])
    assert decode(array.slice(3, 1), column).tolist() == ["ü𝄞"]
    assert decode(array.slice(0, 0), column).shape == (0,)


@pytest.fixture
def pool(tmp_path):
    """Two files of texts beside vectors; row 5 of the first has no text, row 2 of the second no sound vector."""
    rng = np.random.default_rng(0)
    for file, bad in (("a", 5), ("b", 2)):
        texts = [f"{file} {i}" if (file, i) != ("a", bad) else None for i in range(20)]
        vectors = rng.standard_normal((20, 3)).astype(np.float32)
        vectors[2, 1] = np.nan if file == "b" else 0
        table = pa.table({"t": texts, "v": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 3), "n": range(20)})
        pq.write_table(table, tmp_path / f"{file}.parquet", row_group_size=7)
    return Pool(uri=str(tmp_path), inputs=["t", "v"], filters=[["n", ">", 1]])


def test_bad_rows_leave_texts_and_tensors_together(pool):
    """Under skip, null texts and NaN vectors are left out, reported, and every other row keeps its own text."""
    plan = plan_pool(pool, on_error="skip", texts="taken")
    rows = [found for unit in plan.units for found in read_unit(unit, plan.read, 4)]
    assert [len(found.inputs[0]) == len(found.inputs[1]) == len(found.rows) for found in rows] == [True] * len(rows)
    assert [text for found in rows for text in found.inputs[0].tolist()] == [
        *(f"a {i}" for i in range(2, 20) if i != 5), *(f"b {i}" for i in range(3, 20)),
    ]  # fmt: skip
    assert [str(bad).partition("row ")[2] for found in rows for bad in found.bad] == ["5: column t is null", "2: column v holds NaN"]
    strict = plan_pool(pool, texts="taken")
    with pytest.raises(PoolError, match=r"row 5: column t is null; correct the row, or set on_error: skip"):
        list(read_unit(strict.units[0], strict.read, 4))


def test_labelled_files_with_texts(pool, tmp_path):
    """Labelled rows can be scored if their file holds the text; as numbers it can't be the same column."""
    plan = plan_pool(pool, texts="taken")
    assert has_columns(plan.files, plan.read.columns) == [True, True]
    other = tmp_path / "other"
    other.mkdir()
    pq.write_table(pa.table({"t": [1.0], "v": [[1.0, 2.0, 3.0]]}), other / "c.parquet")
    numbers = plan_pool(Pool(uri=str(other), inputs=["v"])).files
    with pytest.raises(LabelsError, match=r"column t is double; expected strings"):
        has_columns(numbers, plan.read.columns)

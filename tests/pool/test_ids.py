from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystream.errors import PoolError
from raystream.pool import check_unique

TYPES = [pa.int64(), pa.uint8(), pa.string(), pa.large_string(), pa.binary(), pa.binary(1), pa.dictionary(pa.int8(), pa.string())]


@given(st.lists(st.integers(0, 9), max_size=12), st.sampled_from(TYPES))
def test_repeated_ids_are_counted_and_the_first_are_named(values: list[int], type_: pa.DataType) -> None:
    """For every id type and chunking: silence if all differ, else the number of repeated ids and three, first met first."""
    is_number = pa.types.is_integer(type_)
    spelled = values if is_number else [str(v).encode() if "binary" in str(type_) else str(v) for v in values]
    ids = pa.chunked_array([pa.array(spelled[:3], type_), pa.array(spelled[3:], type_)])
    repeats = [v for i, v in enumerate(spelled) if v in spelled[:i]]
    if not repeats:
        check_unique(ids, "k")
        return
    shown = list(dict.fromkeys(repeats))[:3]
    with pytest.raises(PoolError) as caught:
        check_unique(ids, "k")
    rows = [[i for i, v in enumerate(spelled) if v == repeat][1] for repeat in shown]
    places = ", ".join(f"row {row}" for row in rows)
    first = ", ".join(map(str, shown))
    assert str(caught.value).startswith(f"{len(set(repeats))} ids of column k are not unique, first: {first}, met again at {places};")


def test_null_ids_are_counted_and_the_first_are_placed() -> None:
    """Over all chunks, by row number or by what the caller calls the rows."""
    ids = pa.chunked_array([[1, None], [None, 3, None, None, 2]])
    with pytest.raises(PoolError, match=r"4 ids of column k are null, first: row 1, row 2, row 4; expected"):
        check_unique(ids, "k")
    with pytest.raises(PoolError, match=r"first: /a row 11, /a row 12, /a row 14; expected"):
        check_unique(ids, "k", lambda row: f"/a row {row + 10}")
    with pytest.raises(PoolError, match=r"1 ids of column k are not unique, first: 7, met again at /a row 12; expected"):
        check_unique(pa.array([7, 1, 7, 7]), "k", lambda row: f"/a row {row + 10}")
    with pytest.raises(PoolError, match=r"1 ids of column k are null, first: row 1; expected"):
        check_unique(pa.array(["a", None]), "k")
    check_unique(pa.array([3, 1, 2]), "k")

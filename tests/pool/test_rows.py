from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystream.errors import PoolError
from raystream.pool import list_files, plan_pool, read_columns_at
from raystream.query import Pool


@given(data=st.data())
def test_rows_come_in_the_order_asked_for(tmp_path_factory, data: st.DataObject) -> None:
    """Any rows of any files, repeated or not, give the same as indexing the whole table."""
    folder = tmp_path_factory.mktemp("pool")
    for name, start in (("a", 0), ("b", 10)):
        numbers = range(start, start + 10)
        pq.write_table(pa.table({"x": numbers, "s": [f"s{i}" for i in numbers]}), folder / f"{name}.parquet", row_group_size=3)
    files = list_files([str(folder)])
    places = data.draw(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 9)), max_size=12))
    table = read_columns_at([(files[f], row) for f, row in places], pa.schema({"s": pa.string(), "x": pa.int64()}))
    assert table.to_pydict() == {"s": [f"s{10 * f + row}" for f, row in places], "x": [10 * f + row for f, row in places]}


def test_folders_and_encoded_columns_can_be_read(write, tmp_path) -> None:
    """Hive keys come with the plan's type, dictionaries and views as their values."""
    for day, x, s, t in [("3", [1, 2], ["p", "q"], ["y", None]), ("__HIVE_DEFAULT_PARTITION__", [3], ["r"], ["z"])]:
        write(f"day={day}/a.parquet", {"x": x, "s": pa.array(s).dictionary_encode(), "t": pa.array(t, pa.string_view())})
    plan = plan_pool(Pool(uri=str(tmp_path), inputs=["x"], keep=["s", "day", "t"]))
    three, null = plan.files
    places = [(null, 0), (three, 1), (three, 0)]
    assert read_columns_at(places, plan.keep_schema).to_pydict() == {"s": ["r", "q", "p"], "day": [None, 3, 3], "t": ["z", None, "y"]}
    assert read_columns_at(places, pa.schema({"day": pa.int64()})).to_pydict() == {"day": [None, 3, 3]}
    assert read_columns_at([], plan.keep_schema).schema == plan.keep_schema


def test_a_file_that_was_replaced_is_noticed(write) -> None:
    """Rows of another file under the same path are never passed off as the chosen ones."""
    path = write("a.parquet", {"x": [1]})
    (file,) = list_files([str(path)])
    write("a.parquet", {"x": [1, 2, 3]})
    with pytest.raises(PoolError, match="was changed"):
        read_columns_at([(file, 0)], pa.schema({"x": pa.int64()}))

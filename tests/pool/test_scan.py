"""Files whose pages don't hold what their footer counts: pyarrow ends without a word, here every reader says which column."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raystream as rs
from raystream.errors import DataError, PoolError
from raystream.pool import PoolPlan, locate_labelled, plan_pool, read_columns_at, read_footers, read_labelled, read_unit
from raystream.pool.files import File, UnreachableError
from raystream.pool.folders import list_files
from raystream.pool.labelled import Labelled
from raystream.pool.remote import RemoteParquet
from raystream.pool.scan import scan
from raystream.query import Pool

SCHEMA = pa.schema([pa.field("k", pa.int64(), False), pa.field("x", pa.float32(), False), pa.field("z", pa.int64(), False)])
ROWS = 8


def write_rows(path: Path, groups: int) -> bytearray:
    count = ROWS * groups
    table = pa.table({"k": range(count), "x": np.arange(count, dtype=np.float32), "z": range(count)}, schema=SCHEMA)
    pq.write_table(table, path, compression="none", use_dictionary=False, row_group_size=ROWS, write_statistics=False)
    return bytearray(path.read_bytes())


def shorten(path: Path, column: str, holds: int, groups: int = 1) -> None:
    """A file whose footer counts 8 values in a column chunk of the first row group, while its page says that it holds fewer."""
    content = write_rows(path, groups)
    chunk = pq.read_metadata(path).row_group(0).column(SCHEMA.get_field_index(column))
    page = content.index(bytes([0x2C, 0x15, 2 * ROWS]), chunk.data_page_offset)  # a data page's header begins with its number of values
    content[page + 2] = 2 * holds
    path.write_bytes(content)


def scored(plan: PoolPlan) -> None:
    for unit in plan.units:
        list(read_unit(unit, plan.read, 3))


READERS: dict[str, tuple[str, Callable[[PoolPlan], object]]] = {
    "units": ("x", scored),
    "units' ids": ("k", scored),
    "filters": ("z", scored),
    "kept columns": ("z", lambda plan: read_columns_at([(plan.files[0], 1)], plan.keep_schema)),
    "labelled ids": ("k", lambda plan: read_labelled([plan.files[0].path], "k", pa.int64())),
    "labelled rows outside the filters": ("z", lambda plan: locate_labelled(plan, Labelled("k", pa.array([1]), (), pa.array([])))),
}


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("holds", [0, 1, 3])
@pytest.mark.parametrize("reader", sorted(READERS))
def test_a_column_that_ends_early_is_named(tmp_path: Path, reader: str, holds: int, groups: int) -> None:
    """By every reader, with the file, the row group and both numbers; the row groups after it don't make up for it."""
    column, read = READERS[reader]
    shorten(tmp_path / "a.parquet", column, holds, groups)
    plan = plan_pool(Pool(uri=str(tmp_path), id="k", inputs=["x"], filters=[["z", ">", 0]], keep=["z"]))
    with pytest.raises(
        DataError, match=rf"column {column} of .*a\.parquet#rg0 holds {holds} rows, but the footer counts 8; write the file"
    ):
        read(plan)


def test_a_file_whose_rows_are_all_missing_is_no_shorter_pool(make_query: Callable[..., rs.Query], workplace: Path) -> None:
    """Beside a good file: exit 3, and not the good file's rows alone; under skip its unit is left out, and counts as such."""
    (workplace / "mixed").mkdir()
    shorten(workplace / "mixed" / "a.parquet", "x", 0)
    write_rows(workplace / "mixed" / "b.parquet", 1)
    asked = {"pool": {"uri": "mixed", "inputs": ["x"]}, "model__args": {"d": 1}, "select": {"budget": 2, "strategy": "top_k"}}
    with pytest.raises(PoolError, match=r"column x of .*a\.parquet#rg0 holds 0 rows") as failed:
        rs.run(make_query(**asked))
    assert failed.value.exit_code == 3
    result = rs.run(make_query(**asked, on_error="skip", max_quarantined=1.0))
    assert {Path(path).name for path in result.selection.column("path").to_pylist()} == {"b.parquet"}
    assert any("a.parquet" in warning for warning in result.manifest.warnings)


def varint(number: int) -> bytes:
    return bytes([2 * number])


def test_a_footer_that_counts_more_rows_than_all_pages_hold(tmp_path: Path) -> None:
    """All three counts of the footer say 12, where each column holds 8."""
    counted = 12
    path = tmp_path / "a.parquet"
    content = write_rows(path, 1)
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    footer = bytes(content[start:-8])
    rows, values = b"\x16\x10\x19", b"\x16\x10\x16"
    assert (footer.count(rows), footer.count(values)) == (1, 3)
    footer = footer.replace(values, b"\x16" + varint(counted) + b"\x16").replace(rows, b"\x16" + varint(counted) + b"\x19")
    end = footer.rindex(b"\x16\x10")
    footer = footer[: end + 1] + varint(counted) + footer[end + 2 :]
    path.write_bytes(content[:start] + footer + content[-8:])
    assert pq.read_metadata(path).num_rows == pq.read_metadata(path).row_group(0).num_rows == counted
    plan = plan_pool(Pool(uri=str(path), inputs=["x"]))
    with pytest.raises(PoolError, match=rf"column x of .*a\.parquet#rg0 holds 8 rows, but the footer counts {counted}"):
        scored(plan)
    with pytest.raises(DataError, match=rf"column k of .*a\.parquet#rg0 holds 8 rows, but the footer counts {counted}"):
        read_labelled([str(path)], "k", pa.int64())


def test_a_footer_that_contradicts_itself_is_refused_while_planning(tmp_path: Path) -> None:
    """A column chunk of 7 values among 8 rows, by column and row group; a file of 9 rows whose row groups have 8."""
    path = tmp_path / "a.parquet"
    content = bytes(write_rows(path, 1))
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    values = content.rindex(b"\x16\x10\x16")  # of column z
    path.write_bytes(content[: values + 1] + varint(7) + content[values + 2 :])
    with pytest.raises(PoolError, match=r"column z of .*a\.parquet holds 7 values in .*#rg0, which has 8 rows; write the file anew"):
        read_footers(list_files([str(path)]), ["x"], ["z"])
    assert read_footers(list_files([str(path)]), ["x"])[0].rows == 8
    rows = content.index(b"\x16\x10\x19", start)
    path.write_bytes(content[: rows + 1] + varint(9) + content[rows + 2 :])
    with pytest.raises(PoolError, match=r"the footer of .*a\.parquet is damaged: its row groups have 8 rows, but the file 9; repair"):
        read_footers(list_files([str(path)]), ["x"])


class Source(io.FileIO):
    """A file read as an object is."""

    def read_at(self, count: int, at: int) -> bytes:
        self.seek(at)
        return self.read(count)


def test_damaged_pages_in_object_storage_are_not_asked_for_again(tmp_path: Path) -> None:
    """They came, so asking once more would give the same: no outage, but an error with the file; so is a damaged footer."""
    path = tmp_path / "a.parquet"
    table = pa.table({"s": [f"{i} " * 20 for i in range(200)]})
    pq.write_table(table, path, compression="snappy", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[60:400] = bytes(255 - byte for byte in content[60:400])
    path.write_bytes(content)
    file = File("s3://lake/damaged.parquet", len(content), "1")
    with RemoteParquet(Source(path), (file.path, file.size, "1")) as parquet, pytest.raises(PoolError, match="repair or remove") as failed:
        list(scan(file, parquet, ["s"]))
    assert not isinstance(failed.value, UnreachableError)
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    content[start : start + 30] = bytes(30)
    path.write_bytes(content)
    with Source(path) as source, pytest.raises(pa.ArrowInvalid):
        RemoteParquet(source, (file.path, file.size, "2"))


@pytest.mark.parametrize("holds", [0, 3])
def test_remote_files_are_counted_alike(tmp_path: Path, holds: int) -> None:
    """Whatever runs of row groups they come in."""
    path = tmp_path / "a.parquet"
    shorten(path, "x", holds, groups=2)
    size = path.stat().st_size
    with RemoteParquet(Source(path), (str(path), size, "1")) as parquet:
        file = File("s3://lake/a.parquet", size, "1")
        with pytest.raises(PoolError, match=rf"column x of s3://lake/a\.parquet#rg0 holds {holds} rows, but the footer counts 8"):
            list(scan(file, parquet, ["k", "x"], 3))
        assert sum(batch.num_rows for _, batch in scan(file, parquet, ["k", "z"], 5)) == 2 * ROWS

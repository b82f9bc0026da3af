from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from raystream.errors import PoolError
from raystream.pool import list_files, read_footers


def test_footer_holds_rows_bytes_and_statistics(write, vectors) -> None:
    """Rows and bytes are those of each row group's read columns; statistics those of the filter columns."""
    path = write("a.parquet", {"i": [1, 2, None, 4, 5], "v": vectors(5), "unread": ["x" * 1000] * 5}, rows_per_group=3)
    (footer,) = read_footers(list_files([str(path)]), ["v"], ["i"])
    assert [group.rows for group in footer.row_groups] == [3, 2]
    assert footer.rows == 5
    assert all(0 < group.bytes < 500 for group in footer.row_groups)
    (name, found), *_ = footer.row_groups[0].statistics
    assert (name, found.least, found.greatest, found.nulls) == ("i", 1, 2, 1)
    assert footer.schema.names == ["v", "i"]


def test_empty_file_is_fine(write) -> None:
    """A file without rows has a footer like any other."""
    path = write("a.parquet", pa.table({"i": pa.array([], pa.int64())}))
    (footer,) = read_footers(list_files([str(path)]), ["i"])
    assert footer.rows == 0


@pytest.mark.parametrize("content", [b"", b"PAR1", b"hello, this is no Parquet file", None])
def test_a_file_that_is_not_parquet_is_named(tmp_path: Path, write, content: bytes | None) -> None:
    """Empty, foreign and truncated files give one sentence with the path."""
    path = write("bad.parquet", {"i": [1, 2, 3]})
    path.write_bytes(path.read_bytes()[:-20] if content is None else content)
    with pytest.raises(PoolError, match=r"bad\.parquet can't be read as Parquet"):
        read_footers(list_files([str(path)]), ["i"])


def test_missing_and_repeated_columns_are_named(write, tmp_path: Path) -> None:
    """A missing column says the file and what was probably meant; a name that stands twice is refused."""
    write("a.parquet", {"pixels": [1]})
    with pytest.raises(PoolError, match=r"column pixel is missing in .*a\.parquet; did you mean 'pixels'\?"):
        read_footers(list_files([str(tmp_path)]), ["pixel"])
    twice = write("b.parquet", pa.table([[1], [2]], names=["i", "i"]))
    with pytest.raises(PoolError, match="column i stands 2 times"):
        read_footers(list_files([str(twice)]), ["i"])


def test_a_name_is_a_column_or_a_folder(write, tmp_path: Path) -> None:
    """A hive key that is a column too is refused, and so is an input that is a folder only."""
    write("k=1/a.parquet", {"k": [1], "i": [1]})
    with pytest.raises(PoolError, match="k is both a column and a partition"):
        read_footers(list_files([str(tmp_path)]), ["i"], ["k"])
    other = tmp_path / "other"
    write("other/k=1/a.parquet", {"i": [1]})
    files = list_files([str(other)])
    assert read_footers(files, ["i"], ["k"], ["k"])[0].schema.names == ["i"]
    with pytest.raises(PoolError, match=r"column k .* is a hive folder"):
        read_footers(files, ["k"])

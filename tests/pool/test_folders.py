"""Which files a path, a folder or a pattern stands for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raystream.errors import PoolError, QueryError
from raystream.pool import list_files


def names(root: Path, uris: list[str]) -> list[str]:
    return [os.path.relpath(file.path, root) for file in list_files(uris)]


@pytest.fixture
def lake(tmp_path: Path, write) -> Path:
    for name in ("b.parquet", "a/x.parq", "a/deep/y.pq", "_temp/z.parquet", "a/.hidden.parquet", "a/_log/w.parquet"):
        write(name, {"i": [1]})
    (tmp_path / "a" / "notes.txt").write_text("no")
    return tmp_path


def test_folder_is_listed_recursively_sorted_and_without_hidden_names(lake: Path) -> None:
    """Names that begin with _ or . are skipped at every level, and so is what isn't Parquet."""
    assert names(lake, [str(lake)]) == ["a/deep/y.pq", "a/x.parq", "b.parquet"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.parquet", ["b.parquet"]),
        ("**/*.pq", ["a/deep/y.pq"]),
        ("**", ["a/deep/y.pq", "a/x.parq", "b.parquet"]),
        ("a/?.parq", ["a/x.parq"]),
        ("[!b]/*.parq", ["a/x.parq"]),
        ("[ab]*", ["a/deep/y.pq", "a/x.parq", "b.parquet"]),
        ("a/**/*.p*", ["a/deep/y.pq", "a/x.parq"]),
    ],
)
def test_globs(lake: Path, pattern: str, expected: list[str]) -> None:
    """A pattern stays within a folder but for **, and a folder that it matches stands for its content."""
    assert names(lake, [f"{lake}/{pattern}"]) == expected


def test_a_file_named_twice_is_read_once(lake: Path) -> None:
    """Overlapping URIs give each file once, file:// and relative paths included."""
    here = os.path.relpath(lake / "b.parquet")
    assert names(lake, [str(lake / "b.parquet"), f"file://{lake}/b.parquet", here, f"{lake}/*.parquet"]) == ["b.parquet"]


def test_percent_signs_are_decoded_in_uris_only(write, tmp_path: Path) -> None:
    """file:// URIs are URL-encoded; plain paths, brackets included, are taken as they are."""
    path = write("my data[1].parquet", {"i": [1]})
    (file,) = list_files([f"file://localhost{tmp_path}/my%20data%5B1%5D.parquet"])
    assert file.path == str(path)
    assert names(tmp_path, [f"file://{tmp_path}/my%20data[1].parquet"]) == names(tmp_path, [str(path)]) == ["my data[1].parquet"]


def test_hive_folders_become_partitions(write, tmp_path: Path) -> None:
    """Keys and values are URL-decoded, Hive's null is None, and the folders of a glob's fixed part don't count."""
    write("year=2024/city=a%20b/x.parquet", {"i": [1]})
    write("year=2023/city=__HIVE_DEFAULT_PARTITION__/x.parquet", {"i": [1]})
    old, new = list_files([str(tmp_path)])
    assert old.partitions == (("year", "2023"), ("city", None))
    assert new.partitions == (("year", "2024"), ("city", "a b"))
    assert [file.partitions for file in list_files([f"{tmp_path}/year=*/*/x.parquet"])] == [old.partitions, new.partitions]
    assert list_files([f"{tmp_path}/year=2024"])[0].partitions == (("city", "a b"),)


def test_different_partition_names_are_refused(write, tmp_path: Path) -> None:
    """Two layouts in one pool are an error that names both files."""
    one, two = write("a=1/x.parquet", {"i": [1]}), write("b=1/x.parquet", {"i": [1]})
    with pytest.raises(PoolError, match="hive folders") as caught:
        list_files([str(tmp_path)])
    assert str(one) in str(caught.value)
    assert str(two) in str(caught.value)


def test_what_cannot_be_listed_is_named(tmp_path: Path) -> None:
    """Missing paths, empty folders and foreign schemes say which URI of which key is meant."""
    with pytest.raises(QueryError, match=r"pool.labelled hdfs://x/y: hdfs:// is not a storage that raystream reads"):
        list_files(["hdfs://x/y"], key="pool.labelled")
    with pytest.raises(QueryError, match="names a host"):
        list_files(["file://elsewhere/x"])
    with pytest.raises(PoolError, match=r"nothing\.parquet does not exist"):
        list_files([str(tmp_path / "nothing.parquet")])
    with pytest.raises(PoolError, match="holds no Parquet file"):
        list_files([str(tmp_path)])
    with pytest.raises(PoolError, match=r"the folder .*/no does not exist"):
        list_files([str(tmp_path / "no" / "*.parquet")])


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ("_delta_log/00000000000000000000.json", "holds a Delta table in .*/t, .* delta"),
        ("metadata/00001-5d1c.metadata.json", "holds an Iceberg table in .*/t, .* name it by its catalog"),
    ],
)
def test_the_folder_of_a_table_is_not_read_as_files(write, tmp_path: Path, log: str, says: str) -> None:
    """They also hold rows that the table has deleted; who names the files themselves gets them."""
    path = write("lake/t/a.parquet", {"i": [1]})
    (path.parent / log).parent.mkdir()
    (path.parent / log).write_text("{}")
    for uri in ("lake/t", "lake"):
        with pytest.raises(PoolError, match=says):
            list_files([str(tmp_path / uri)])
    assert names(tmp_path, [str(tmp_path / "lake/t/*.parquet")]) == ["lake/t/a.parquet"]
    assert names(tmp_path, [str(path)]) == ["lake/t/a.parquet"]


@pytest.mark.parametrize("uris", [[], [""], [" "], ["file://"]])
def test_nothing_is_no_path(uris: list[str]) -> None:
    """An empty path is a mistake in the query, not the current folder."""
    with pytest.raises(QueryError, match=r"pool\.uri is empty; give a path"):
        list_files(uris)

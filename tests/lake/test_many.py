"""Pools of many files, of many columns and of one large file, in a real S3."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from pools import vectors
from servers import Proxy

from raystream.errors import PoolError
from raystream.lake import storage_from
from raystream.pool import list_files, plan_pool, read_unit
from raystream.pool.remote import READ_AHEAD
from raystream.query import Pool

Options = dict[str, str | int | bool]


def encoded(table: pa.Table, **options: object) -> memoryview:
    """The table as a Parquet file's bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return memoryview(sink.getvalue())


def put(s3: pafs.FileSystem, path: str, data: memoryview | bytes) -> None:
    with s3.open_output_stream(path) as out:
        out.write(data)


def test_names_are_listed_as_on_a_disk(s3: pafs.FileSystem, folder: str, storage: Options, s3_keys: None) -> None:
    """Hidden names and other types are left out, patterns and hive folders mean the same, and each file comes once, by path."""
    for name in ("a/year=2020/x.parquet", "a/year=2021/y.parquet", "a/_tmp/z.parquet", "a/year=2020/.h.parquet", "a/notes.txt"):
        put(s3, f"{folder}/{name}", b"data")
    root, options = f"s3://{folder}/a", storage_from(storage)
    expected = [f"{root}/year=2020/x.parquet", f"{root}/year=2021/y.parquet"]
    files = list_files([root, f"{root}/year=2021/y.parquet", f"{root}/"], storage=options)
    assert [file.path for file in files] == expected
    assert [file.partitions for file in files] == [(("year", "2020"),), (("year", "2021"),)]
    assert [f.path for f in list_files([f"{root}/year=*/?.parquet"], storage=options)] == expected
    assert [f.path for f in list_files([f"s3://{folder}/**/year=202[1]"], storage=options)] == expected[1:]


def test_names_that_look_like_patterns_or_options(
    s3: pafs.FileSystem, folder: str, storage: Options, s3_keys: None, tmp_path: Path
) -> None:
    """A name that is there is no pattern, also in a folder on the way; a question mark in a listed name is no option."""
    data = encoded(pa.table({"id": pa.array([1], pa.int64()), "x": vectors(np.ones((1, 2)))}))
    names = ["a[1].parquet", "b[1]/x.parquet", "c/part?v=1.parquet", "c/country=q?x=1/p.parquet"]
    for name in names:
        put(s3, f"{folder}/{name}", data)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    for root, options in ((f"s3://{folder}", storage), (str(tmp_path), {})):
        for uri, name in (("a[1].parquet", names[0]), ("b[1]/*.parquet", names[1]), ("b[1]", names[1]), ("[b]*/x.parquet", names[1])):
            assert [file.path for file in list_files([f"{root}/{uri}"], storage=storage_from(options))] == [f"{root}/{name}"]
        with pytest.raises(PoolError, match="does not exist"):
            list_files([f"{root}/b[1]/gone.parquet"], storage=storage_from(options))
        (file,) = list_files([f"{root}/c/*.parquet"], storage=storage_from(options))
        assert file.path == f"{root}/c/part?v=1.parquet"
        plan = plan_pool(Pool(uri=f"{root}/c/country=q?x=1" if not options else f"{root}/c/country*", inputs=["x"], storage=options))
        assert [rows.ids.to_pylist() for rows in read_unit(plan.units[0], plan.read, 10)] == [[f"{root}/{names[3]}#0"]]


def test_many_small_files_take_few_requests_at_the_same_time(
    s3: pafs.FileSystem, folder: str, through_proxy: Options, proxy: Proxy, s3_keys: None
) -> None:
    """Planning asks two questions a file and one a thousand for the list, and many of them at once."""
    data = encoded(pa.table({"id": pa.array([1], pa.int64()), "x": vectors(np.ones((1, 2)))}))
    for index in range(200):
        put(s3, f"{folder}/{index:04d}.parquet", data)
    proxy.faults.delay = 0.01
    plan = plan_pool(Pool(uri=f"s3://{folder}", id="id", inputs=["x"], storage=through_proxy))
    assert len(plan.files) == plan.rows == 200
    assert proxy.requests <= 2 * 200 + 4
    assert proxy.most_at_once >= 8


def test_two_columns_of_five_thousand(s3: pafs.FileSystem, folder: str, through_proxy: Options, proxy: Proxy, s3_keys: None) -> None:
    """Beside the footer, no more than the two columns and small holes travel; the values are the file's."""
    rng = np.random.default_rng(0)
    names = [f"c{i:04d}" for i in range(5000)]
    table = pa.table({name: rng.standard_normal(400).astype(np.float32) for name in names})
    data = encoded(table, row_group_size=200, use_dictionary=False, compression="none")
    put(s3, f"{folder}/wide.parquet", data)
    plan = plan_pool(Pool(uri=f"s3://{folder}", inputs=["c0007", "c4321"], storage=through_proxy))
    footer = int.from_bytes(data[-8:-4], "little")
    proxy.reset()
    [unit] = plan.units
    blocks = [rows.inputs[0] for rows in read_unit(unit, plan.read, 1000)]
    expected = np.stack([table.column("c0007").to_numpy(), table.column("c4321").to_numpy()], axis=1)
    assert np.array_equal(np.concatenate(blocks), expected)
    assert proxy.received < 0.02 * (len(data) - footer), "the footer was known; the columns are two in 2,500"


def test_a_footer_is_fetched_once_for_the_units_of_a_file(
    s3: pafs.FileSystem, folder: str, through_proxy: Options, proxy: Proxy, s3_keys: None
) -> None:
    """Units of one file share its footer: reading each costs a question before, one after, and its rows."""
    table = pa.table({"id": np.arange(4000), "x": vectors(np.random.default_rng(0).standard_normal((4000, 16)))})
    put(s3, f"{folder}/one.parquet", encoded(table, row_group_size=500, use_dictionary=False))
    pool = Pool(uri=f"s3://{folder}/one.parquet", id="id", inputs=["x"], storage=through_proxy)
    plan = plan_pool(pool, target_bytes=500 * 16 * 4)
    assert len(plan.units) == 8
    proxy.reset()
    ids = [i for unit in plan.units for rows in read_unit(unit, plan.read, 256) for i in rows.ids.to_pylist()]
    assert ids == list(range(4000))
    assert proxy.requests == 3 * 8


@pytest.mark.slow
def test_a_large_file_is_read_ahead_in_bounded_memory(
    s3: pafs.FileSystem, folder: str, through_proxy: Options, proxy: Proxy, s3_keys: None
) -> None:
    """Of a file of 200 MB that is read as one unit, hardly more than two runs have come when the first rows are handed over."""
    rng = np.random.default_rng(0)
    table = pa.table({"id": np.arange(200_000), "x": vectors(rng.standard_normal((200_000, 256), dtype=np.float32))})
    put(s3, f"{folder}/large.parquet", encoded(table, row_group_size=4_000, use_dictionary=False, compression="none"))
    plan = plan_pool(Pool(uri=f"s3://{folder}", id="id", inputs=["x"], storage=through_proxy), target_bytes=1 << 40)
    [unit] = plan.units
    assert unit.bytes > 12 * READ_AHEAD
    proxy.reset()
    count = 0
    for rows in read_unit(unit, plan.read, 4_000):
        count += len(rows.rows)
        read = count * 256 * 4
        assert proxy.received <= read + 3.5 * READ_AHEAD
    assert count == 200_000

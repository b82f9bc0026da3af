"""A stream whose rows arrive in a bucket, and whose decisions are kept there."""

from __future__ import annotations

import time

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from pools import pool_table
from streams import arrive, decisions, make_stream, run

pytestmark = pytest.mark.usefixtures("workplace", "s3_keys")


@pytest.mark.slow
def test_a_stream_in_a_bucket(s3: pafs.FileSystem, folder: str, storage: dict) -> None:
    """An empty prefix at first, then two looks: the decisions are those of a folder; what is too young waits."""
    stream = make_stream(pool__uri=f"s3://{folder}/lake", pool__storage=storage, store={"uri": f"s3://{folder}/runs"})
    assert run(stream).new_rows == 0
    for number, start in enumerate((0, 100)):
        pq.write_table(pool_table(100, start), f"{folder}/lake/{number}.parquet", filesystem=s3)
        arrive(f"{number}.parquet", pool_table(100, start))
        assert run(stream, time.time() - 3600).new_rows == 100, "another clock's time says nothing"
        run()
    assert run(stream, time.time() + 60).new_rows == 0
    files = s3.get_file_info(pafs.FileSelector(f"{folder}/runs/streams/s/decisions"))
    found = [pq.read_table(file.path, filesystem=s3).replace_schema_metadata(None) for file in sorted(files, key=lambda file: file.path)]
    assert pa.concat_tables(found) == decisions()
    pq.write_table(pool_table(10, 200), f"{folder}/lake/2.parquet", filesystem=s3)
    written = s3.get_file_info(f"{folder}/lake/2.parquet").mtime_ns / 1e9
    result = run(stream, written + 1)
    assert (result.new_rows, result.wait) == (0, pytest.approx(1, abs=0.01))
    assert run(stream, written + 60).new_rows == 10

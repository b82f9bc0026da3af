"""Parquet read as from object storage, by ranges: a local file stands in for the object."""

from __future__ import annotations

import io

import pyarrow as pa
import pytest

from raystream.errors import PoolError
from raystream.pool import remote
from raystream.pool.remote import RemoteParquet


class Source(io.FileIO):
    """A file that counts the bytes which are asked for by their place."""

    asked = 0

    def read_at(self, count: int, at: int) -> bytes:
        with open(self.name, "rb") as file:
            file.seek(at)
            data = file.read(count)
        self.asked += len(data)
        return data


def test_what_follows_the_last_byte_runs_then_and_fails_after_the_last_row(write, vectors, monkeypatch: pytest.MonkeyPatch) -> None:
    """`then` runs once, when nothing is left to ask for; all rows are out before its error is raised."""
    monkeypatch.setattr(remote, "READ_AHEAD", 1)
    path = write("a.parquet", {"k": range(400), "v": vectors(400)}, rows_per_group=100)
    counts: list[int] = []

    def then() -> None:
        counts.append(source.asked)
        raise PoolError("the file was changed")

    source = Source(path)
    rows: list[int] = []
    with RemoteParquet(source, (str(path), path.stat().st_size, "1")) as parquet:
        batches = (rows.extend(batch.column("k").to_pylist()) for batch in parquet.iter_batches(60, columns=["k", "v"], then=then))
        with pytest.raises(PoolError, match="was changed"):
            list(batches)
        assert rows == list(range(400))
        assert counts == [source.asked]
        assert pa.Table.from_batches(parquet.iter_batches(columns=["k"])).num_rows == 400
    assert len(counts) == 1

"""Pools of a few small files on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write("a/b.parquet", {...} or table, rows_per_group)`: write a file below tmp_path and return its path."""

    def write(name: str, data: dict | pa.Table, rows_per_group: int = 4) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(data), path, row_group_size=rows_per_group)
        return path

    return write


@pytest.fixture(scope="session")
def vectors() -> Callable[..., pa.Array]:
    """`vectors(n, width, start)`: a fixed-size list column counting up from start."""

    def vectors(n: int, width: int = 3, start: float = 0.0) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array([start + i for i in range(n * width)], pa.float32()), width)

    return vectors

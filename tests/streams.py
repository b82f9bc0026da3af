"""Streams that tests run: files that arrive at given times, a clock of their own, and what was decided."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import raystream as rs
from raystream.loop.streams.log import StreamLog, fold
from raystream.store.opening import open_store

NOW = 1_800_000_000.0
"""What the clock says unless a test says otherwise."""


def make_stream(**changes: Any) -> rs.Stream:
    """A stream over the folder `lake`, in process; `section__key=value` replaces a key."""
    spec: dict[str, Any] = {
        "pool": {"uri": "lake", "id": "rid", "inputs": ["x"]},
        "model": {"source": "user_nets:net", "batch_size": 512},
        "cluster": {"address": "in_process"},
        "stream": {"budget": 0.2, "name": "s"},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            spec.setdefault(section, {})[name] = value
        else:
            spec[section] = value
    return rs.Stream(**spec)


def arrive(name: str, table: pa.Table, at: float = NOW - 60, rows_in_group: int = 1 << 20) -> Path:
    """Write a file of the lake, as if at that time."""
    path = Path("lake") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows_in_group)
    os.utime(path, (at, at))
    return path


def run(stream: rs.Stream | None = None, now: float = NOW, wait: Callable[[float], object] | None = None) -> Any:
    """One call of the stream; it never really waits."""
    return rs.run_stream(stream or make_stream(), now=lambda: now, wait=wait or (lambda seconds: None))


def decisions(name: str = "s") -> pa.Table:
    """All that was decided, in order; a server that decides by request goes on in another log."""
    fold(StreamLog(open_store("runs"), name))
    files = sorted(Path("runs/streams", name, "decisions").iterdir())
    return pa.concat_tables([pq.read_table(file).replace_schema_metadata(None) for file in files])

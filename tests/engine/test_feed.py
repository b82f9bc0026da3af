"""The feed: every row that passes, once, in whole inference batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raystream.engine.feed import CHUNK_ROWS, Feed
from raystream.pool import plan_pool
from raystream.query import Pool


def test_a_full_block_after_a_partly_filled_buffer_is_handed_over_once(tmp_path: Path) -> None:
    """A filter leaves 6,344 of the first block's rows; of the full block that follows, no row comes twice."""
    k = np.arange(60_000)
    pq.write_table(pa.table({"x": k.astype(np.float32), "k": k}), tmp_path / "a.parquet", row_group_size=10_240)
    plan = plan_pool(Pool(uri=str(tmp_path), inputs=["x"], filters=[["k", ">=", 10_040]]))
    [unit] = plan.units
    rows, values = [], []
    with Feed(unit, plan.read, 64, pin=False) as feed:
        for chunk in feed:
            rows.append(chunk.rows.copy())
            values.append(chunk.inputs[0].numpy().ravel().copy())
    assert max(map(len, rows)) == CHUNK_ROWS
    assert np.array_equal(np.concatenate(rows), k[10_040:])
    assert np.array_equal(np.concatenate(values), k[10_040:].astype(np.float32))

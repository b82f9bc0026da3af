"""A loop whose pool, labels, models and records lie in a bucket."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from campaigns import asked, history, make_loop, simulated, write_pool

from raystream import ActiveLearningLoop
from raystream.store.opening import store_at

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("s3_keys")]


def test_a_loop_in_a_bucket_is_that_on_a_disk(tmp_path: Path, s3: pafs.FileSystem, folder: str, storage: dict[str, Any]) -> None:
    """Batches, history and models are the same; labels are read from the bucket, and another process loads the model from there."""
    truth = write_pool(tmp_path)
    here = simulated(tmp_path, loop__rounds=2, loop__control=0.34)
    ActiveLearningLoop(here).step()
    for path in (tmp_path / "pool").glob("*.parquet"):
        with s3.open_output_stream(f"{folder}/pool/{path.name}") as out:
            out.write(path.read_bytes())
    there = make_loop(
        tmp_path,
        pool__uri=f"s3://{folder}/pool",
        pool__storage=storage,
        store={"uri": f"s3://{folder}/runs", "storage": storage},
        loop__oracle=f"s3://{folder}/labels",
        loop__rounds=2,
        loop__control=0.34,
        loop__evaluate=None,
    )
    for number in (1, 2):
        state = ActiveLearningLoop(there).step()
        assert (state.state, state.round) == ("waiting", number)
        assert state.batch is not None
        assert state.batch.startswith("s3://")
        store = store_at(there.store.uri, there.store.options)
        batch = asked(pq.read_table(io.BytesIO(store.read(f"loops/small/rounds/000{number}/selection.parquet"))))
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"rid": batch, "y": [truth[id_] for id_ in batch]}), sink)
        with s3.open_output_stream(f"{folder}/labels/{number}.parquet") as out:
            out.write(sink.getvalue())
    assert ActiveLearningLoop(there).step().state == "finished"
    known = ("round", "labels", "strategy", "control_accuracy")
    assert [[row[key] for key in known] for row in history(there)] == [[row[key] for key in known] for row in history(here)]

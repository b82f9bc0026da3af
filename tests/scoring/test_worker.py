"""The worker: inference batches, memory that runs out, racing attempts, and the reader that reads ahead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pools import logits_and_embeddings, vectors
from scored import file_of, planned

import raystream as rs
from raystream.errors import ClusterError
from raystream.scoring.batch_reader import BatchReader
from raystream.scoring.plan import ResolvedQuery
from raystream.scoring.worker import Failure, Worker
from raystream.store.receipts import EMBEDDINGS, SCORES, read_receipt
from raystream.store.vectors import map_embeddings

MakeQuery = Callable[..., rs.Query]


def worker_of(asked: ResolvedQuery, **changes: object) -> Worker:
    asked.store.put("token", b"")
    return Worker(replace(asked.job, token="token", **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [1, 7, 64, 100, 5000])
def test_the_feed_yields_every_row_once_in_whole_batches(make_query: MakeQuery, batch: int) -> None:
    """Chunks are whole inference batches but for the last, in the file's order, with the inputs as stored."""
    asked, plan = planned(make_query())
    unit = plan.units[0]
    rows, ids, values = [], [], []
    with BatchReader(unit, asked.pool.read, batch, pin=False) as reader:
        for chunk in reader:
            rows.append(chunk.rows)
            ids += chunk.ids.to_pylist()
            values.append(chunk.inputs[0].numpy().copy())
    assert all(len(r) % batch == 0 for r in rows[:-1])
    assert np.concatenate(rows).tolist() == list(range(300))
    table = pq.read_table(unit.file.path, partitioning=None)
    assert ids == table.column("rid").to_pylist()
    assert np.array_equal(np.concatenate(values), np.stack(table.column("x").to_pylist()))


def test_the_feed_rebatches_filtered_rows(make_query: MakeQuery) -> None:
    """Filters leave ragged blocks; inference batches are full all the same."""
    asked, plan = planned(make_query(pool__filters=[["country", "==", "DE"]]))
    with BatchReader(plan.units[0], asked.pool.read, 16, pin=False) as reader:
        sizes = [len(chunk) for chunk in reader]
    assert all(size % 16 == 0 for size in sizes[:-1])
    assert 60 < sum(sizes) < 140


def test_a_feed_that_is_left_early_ends_its_thread(make_query: MakeQuery) -> None:
    """Leaving after the first chunk, or before it, hangs nobody."""
    asked, plan = planned(make_query())
    for wanted in (0, 1):
        with BatchReader(plan.units[0], asked.pool.read, 1, pin=False) as reader:
            for _ in zip(range(wanted), reader, strict=False):
                pass
        assert not reader._thread.is_alive()


def test_stored_outputs_are_the_models(make_query: MakeQuery) -> None:
    """Scores and float16 embeddings in the store equal a plain torch pass over the same rows."""
    asked, plan = planned(make_query())
    unit = worker_of(asked).score(plan.missing[1])
    table = pq.read_table(plan.units[1].file.path, partitioning=None)
    logits, embedding = logits_and_embeddings(table)
    stored = np.concatenate([part.array for part in map_embeddings(file_of(asked.query, unit, EMBEDDINGS))])
    assert stored.dtype == np.float16
    np.testing.assert_allclose(stored, embedding.numpy(), rtol=2e-3, atol=1e-6)
    scores = pq.read_table(file_of(asked.query, unit, SCORES))
    energy = -logits.double().logsumexp(1).numpy()
    np.testing.assert_allclose(scores.column("energy").to_numpy(), energy, atol=1e-6)
    assert [read_receipt(asked.store, unit.key, receipt.output) for receipt in unit.receipts] == list(unit.receipts)


def test_out_of_memory_halves_the_batch_and_the_receipt_says_so(make_query: MakeQuery, workplace: Path) -> None:
    """A model that fits 10 rows at once: batches of 32 become 8, scores agree to 1e-6, and the result warns."""
    with (workplace / "user_nets.py").open("a") as source:
        source.write(
            "\n\nclass Tight(nn.Sequential):\n"
            "    def forward(self, x):\n"
            "        if len(x) > 10:\n"
            "            raise torch.OutOfMemoryError('CUDA out of memory')\n"
            "        return super().forward(x)\n\n\n"
            "def tight():\n"
            "    return Tight(*net())\n"
        )
    whole = rs.run(make_query(store__uri="whole"))
    tight = rs.run(make_query(store__uri="tight", model__source="user_nets:tight"))
    assert tight.selection.column("rid").to_pylist() == whole.selection.column("rid").to_pylist()
    np.testing.assert_allclose(tight.selection.column("score").to_numpy(), whole.selection.column("score").to_numpy(), atol=1e-6)
    assert any("cut from 32 to 8 rows" in warning for warning in tight.manifest.warnings)


def test_two_attempts_at_a_unit_leave_one(make_query: MakeQuery) -> None:
    """The second receipt loses: the first stays, and the loser's files are gone."""
    asked, plan = planned(make_query())
    worker = worker_of(asked)
    first = worker.score(plan.missing[0])
    second = worker.score(plan.missing[0])
    assert second == first
    folder = file_of(asked.query, first, SCORES).parent
    assert len(list(folder.iterdir())) == 4


def test_a_receipt_whose_files_are_gone_is_replaced(make_query: MakeQuery) -> None:
    """A unit that lost its scores is scored again for good."""
    asked, plan = planned(make_query())
    worker = worker_of(asked)
    first = worker.score(plan.missing[0])
    file_of(asked.query, first, SCORES).unlink()
    second = worker.score(plan.missing[0])
    kept = [a == b for a, b in zip(first.receipts, second.receipts, strict=True)]
    assert kept == [False, True]
    assert [read_receipt(asked.store, first.key, receipt.output) for receipt in second.receipts] == list(second.receipts)


def test_embedding_overflow_names_the_row(make_query: MakeQuery, workplace: Path) -> None:
    """A number above 65504 does not fit float16: the row is named, and float32 is the way out."""
    path = workplace / "pool" / "year=2020" / "part.parquet"
    table = pq.read_table(path, partitioning=None)
    x = np.stack(table.column("x").to_pylist())
    x[17] = 1e6
    pq.write_table(table.set_column(1, "x", vectors(x)), path, row_group_size=64)
    asked, plan = planned(make_query())
    failure = worker_of(asked).attempt(plan.missing[0])
    assert isinstance(failure, Failure)
    assert "row 17: the embedding overflows float16; set model.embedding_dtype to float32" in str(failure.error)
    wide, plan = planned(make_query(model__embedding_dtype="float32"))
    unit = worker_of(wide).score(plan.missing[0])
    [part] = map_embeddings(file_of(wide.query, unit, EMBEDDINGS))
    assert part.array.dtype == np.float32


def test_unexpected_errors_are_retried_and_bad_data_is_not(make_query: MakeQuery, monkeypatch: pytest.MonkeyPatch) -> None:
    """An OSError may pass; bad rows won't."""
    asked, plan = planned(make_query())
    worker = worker_of(asked)

    def broken(*_: object) -> None:
        raise OSError("the disk hiccuped")

    monkeypatch.setattr(worker, "_score_batch", broken)
    failure = worker.attempt(plan.missing[0])
    assert isinstance(failure, Failure)
    assert failure.retry
    assert "the disk hiccuped" in str(failure.error)
    assert not list(Path(asked.store.uri, "units").rglob("*.arrow"))


def test_a_worker_that_sees_another_store_refuses(make_query: MakeQuery) -> None:
    """Without the driver's token, the store isn't shared: exit 5."""
    asked, _ = planned(make_query())
    with pytest.raises(ClusterError, match=r"give store\.uri a folder that every node shares"):
        Worker(replace(asked.job, token="never-written"))

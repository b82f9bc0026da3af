"""The worker: inference batches, memory that runs out, racing attempts, and the reader that reads ahead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pools import logits_and_embeddings, vectors

import raystream as rs
from raystream.errors import ClusterError
from raystream.scoring.batch_reader import BatchReader
from raystream.scoring.job import Job
from raystream.scoring.plan import Prepared, prepare
from raystream.scoring.worker import Failure, Worker
from raystream.store.receipts import read_receipt
from raystream.store.vectors import map_embeddings

MakeQuery = Callable[..., rs.Query]


def job_of(prepared: Prepared, **changes: object) -> Job:
    prepared.store.put("token", b"")
    job = Job(
        model=prepared.query.model, fingerprint=prepared.fingerprint, read=prepared.pool.read, store=prepared.store.uri,
        token="token", embedding=True, probabilities=False, samples=False,
        mc_samples=0, seed=0, threads=1, skip_bad_rows=False, import_paths=(),
    )  # fmt: skip
    return replace(job, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [1, 7, 64, 100, 5000])
def test_the_feed_yields_every_row_once_in_whole_batches(make_query: MakeQuery, batch: int) -> None:
    """Chunks are whole inference batches but for the last, in the file's order, with the inputs as stored."""
    prepared = prepare(make_query())
    unit = prepared.tasks[0].unit
    rows, ids, values = [], [], []
    with BatchReader(unit, prepared.pool.read, batch, pin=False) as reader:
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
    prepared = prepare(make_query(pool__filters=[["country", "==", "DE"]]))
    with BatchReader(prepared.tasks[0].unit, prepared.pool.read, 16, pin=False) as reader:
        sizes = [len(chunk) for chunk in reader]
    assert all(size % 16 == 0 for size in sizes[:-1])
    assert 60 < sum(sizes) < 140


def test_a_feed_that_is_left_early_ends_its_thread(make_query: MakeQuery) -> None:
    """Leaving after the first chunk, or before it, hangs nobody."""
    prepared = prepare(make_query())
    for wanted in (0, 1):
        with BatchReader(prepared.tasks[0].unit, prepared.pool.read, 1, pin=False) as reader:
            for _ in zip(range(wanted), reader, strict=False):
                pass
        assert not reader._thread.is_alive()


def test_stored_outputs_are_the_models(make_query: MakeQuery) -> None:
    """Scores and float16 embeddings in the store equal a plain torch pass over the same rows."""
    prepared = prepare(make_query())
    receipt = Worker(job_of(prepared)).score(prepared.tasks[1])
    table = pq.read_table(prepared.tasks[1].unit.file.path, partitioning=None)
    logits, embedding = logits_and_embeddings(table)
    stored = np.concatenate([part.array for part in map_embeddings(prepared.store.path(receipt.embeddings.name))])  # type: ignore[union-attr]
    assert stored.dtype == np.float16
    np.testing.assert_allclose(stored, embedding.numpy(), rtol=2e-3, atol=1e-6)
    scores = pq.read_table(prepared.store.path(receipt.scores.name))
    energy = -logits.double().logsumexp(1).numpy()
    np.testing.assert_allclose(scores.column("energy").to_numpy(), energy, atol=1e-6)
    assert read_receipt(prepared.store, receipt.key) == receipt


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
    prepared = prepare(make_query())
    worker = Worker(job_of(prepared))
    first = worker.score(prepared.tasks[0])
    second = worker.score(prepared.tasks[0])
    assert second == first
    folder = prepared.store.path(first.scores.name).parent
    assert len(list(folder.iterdir())) == 3


def test_a_receipt_whose_files_are_gone_is_replaced(make_query: MakeQuery) -> None:
    """A unit that lost its scores is scored again for good."""
    prepared = prepare(make_query())
    worker = Worker(job_of(prepared))
    first = worker.score(prepared.tasks[0])
    prepared.store.discard(first.scores.name)
    second = worker.score(prepared.tasks[0])
    assert second.scores.name != first.scores.name
    assert read_receipt(prepared.store, first.key) == second


def test_embedding_overflow_names_the_row(make_query: MakeQuery, workplace: Path) -> None:
    """A number above 65504 does not fit float16: the row is named, and float32 is the way out."""
    path = workplace / "pool" / "year=2020" / "part.parquet"
    table = pq.read_table(path, partitioning=None)
    x = np.stack(table.column("x").to_pylist())
    x[17] = 1e6
    pq.write_table(table.set_column(1, "x", vectors(x)), path, row_group_size=64)
    prepared = prepare(make_query())
    failure = Worker(job_of(prepared)).attempt(prepared.tasks[0])
    assert isinstance(failure, Failure)
    assert "row 17: the embedding overflows float16; set model.embedding_dtype to float32" in str(failure.error)
    wide = prepare(make_query(model__embedding_dtype="float32"))
    receipt = Worker(job_of(wide)).score(wide.tasks[0])
    [part] = map_embeddings(wide.store.path(receipt.embeddings.name))  # type: ignore[union-attr]
    assert part.array.dtype == np.float32


def test_unexpected_errors_are_retried_and_bad_data_is_not(make_query: MakeQuery, monkeypatch: pytest.MonkeyPatch) -> None:
    """An OSError may pass; bad rows won't."""
    prepared = prepare(make_query())
    worker = Worker(job_of(prepared))

    def broken(*_: object) -> None:
        raise OSError("the disk hiccuped")

    monkeypatch.setattr(worker, "_score_batch", broken)
    failure = worker.attempt(prepared.tasks[0])
    assert isinstance(failure, Failure)
    assert failure.retry
    assert "the disk hiccuped" in str(failure.error)
    assert not list(prepared.store.path("units").rglob("*.arrow"))


def test_a_worker_that_sees_another_store_refuses(make_query: MakeQuery) -> None:
    """Without the driver's token, the store isn't shared: exit 5."""
    prepared = prepare(make_query())
    with pytest.raises(ClusterError, match=r"give store\.uri a folder that every node shares"):
        Worker(job_of(prepared, token="never-written"))

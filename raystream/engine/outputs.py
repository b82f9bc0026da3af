"""Writes what a worker computed for one unit: a Parquet file of scores and an Arrow file of embeddings."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from raystream.acquisition import logit_scores
from raystream.engine.receipt import unit_folder
from raystream.engine.store import LocalStore, StoredFile

SCORE_BLOCK = 1 << 20
"""Logits that are kept before they are turned into scores: large blocks, since each operation has a fixed cost."""


def embedding_type(dimension: int, dtype: str) -> pa.DataType:
    """The Arrow type of stored embeddings. The item field is non-null: three times faster to read than a nullable one."""
    item = pa.float16() if dtype == "float16" else pa.float32()
    return pa.list_(pa.field("item", item, nullable=False), dimension)


class OutputWriter:
    """Collects the outputs of one attempt at a unit; embeddings go to disk as they come.

    Args:
        store: where to.
        key: the unit's.
        id_name: the name of the id column.
        embedding_dtype: float16 or float32.
        temperature: of the softmax.
    """

    def __init__(self, store: LocalStore, key: str, id_name: str, embedding_dtype: str, temperature: float) -> None:
        self._store = store
        attempt = uuid.uuid4().hex[:12]
        self._scores_name = f"{unit_folder(key)}/scores-{attempt}.parquet"
        self._embeddings_name = f"{unit_folder(key)}/embeddings-{attempt}.arrow"
        self._id_name, self._dtype, self._temperature = id_name, embedding_dtype, temperature
        self._ids: list[pa.Array] = []
        self._rows: list[np.ndarray] = []
        self._logits: list[torch.Tensor] = []
        self._kept = 0
        self._columns: dict[str, list[np.ndarray]] = {}
        self._open = ExitStack()
        self._ipc: pa.ipc.RecordBatchFileWriter | None = None
        self._sink: object = None
        self.dimension: int | None = None
        self.classes: int | None = None
        self.rows = 0

    def add(self, ids: pa.Array, rows: np.ndarray, logits: torch.Tensor | None, embedding: np.ndarray | None) -> None:
        """Take the outputs of a chunk; `embedding` (n, d) may be overwritten after the call."""
        self._ids.append(ids)
        self._rows.append(rows)
        self.rows += len(rows)
        if logits is not None:
            self.classes = logits.shape[1]
            self._logits.append(logits)
            self._kept += logits.numel()
            if self._kept >= SCORE_BLOCK:
                self._score()
        if embedding is not None:
            self._write_embedding(embedding)

    def finish(self) -> tuple[StoredFile, StoredFile | None]:
        """Write the scores and wait until all is on disk."""
        self._score()
        embeddings = None
        if self._ipc is not None:
            self._ipc.close()
            self._open.close()
            embeddings = self._sink.stored  # type: ignore[attr-defined]
        buffer = pa.BufferOutputStream()
        pq.write_table(self._table(), buffer, use_dictionary=False, compression="none", write_statistics=False)
        with self._store.sink(self._scores_name) as sink:
            sink.write(buffer.getvalue())
        return sink.stored, embeddings

    def abandon(self) -> None:
        """Leave nothing of this attempt behind."""
        self._open.close()
        self._store.discard(self._embeddings_name)
        self._store.discard(self._scores_name)

    def _table(self) -> pa.Table:
        columns: dict[str, pa.Array] = {self._id_name: pa.chunked_array(self._ids) if self._ids else pa.array([], pa.string())}
        columns |= {name: pa.array(np.concatenate(parts)) for name, parts in self._columns.items()}
        columns["row"] = pa.array(np.concatenate(self._rows) if self._rows else np.empty(0, np.int64))
        return pa.table(columns)

    def _score(self) -> None:
        if not self._logits:
            return
        result = logit_scores(torch.cat(self._logits), self._temperature)
        self._logits, self._kept = [], 0
        for name, values in self._named(result.scores, result.prediction, result.confidence):
            self._columns.setdefault(name, []).append(values.cpu().numpy())

    @staticmethod
    def _named(scores: dict[str, torch.Tensor], prediction: torch.Tensor, confidence: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        yield from scores.items()
        yield "prediction", prediction
        yield "confidence", confidence

    def _write_embedding(self, embedding: np.ndarray) -> None:
        count, dimension = embedding.shape
        kind = embedding_type(dimension, self._dtype)
        if self._ipc is None:
            self.dimension = dimension
            self._sink = self._open.enter_context(self._store.sink(self._embeddings_name))
            schema = pa.schema([pa.field("embedding", kind, nullable=False)])
            self._ipc = pa.ipc.new_file(pa.PythonFile(self._sink, mode="w"), schema)
        values = pa.Array.from_buffers(kind.value_type, count * dimension, [None, pa.py_buffer(embedding)])
        array = pa.Array.from_buffers(kind, count, [None], children=[values])
        self._ipc.write_batch(pa.record_batch([array], schema=pa.schema([pa.field("embedding", kind, nullable=False)])))

"""Writes what a worker computed for one unit: a Parquet file of scores, Arrow files of embeddings and probabilities."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from raystream.acquisition import member_scores
from raystream.acquisition.logits import block_scores
from raystream.acquisition.members import softened
from raystream.model import Prediction, RowScores
from raystream.pool import BadRow
from raystream.query import MEMBER_SCORES
from raystream.scoring.further_scores import FurtherScores
from raystream.store.protocol import Store, StoredFile
from raystream.store.quarantined import described
from raystream.store.receipts import unit_folder
from raystream.store.vectors import as_metadata, block_rows, page_hashes

SCORE_BLOCK = 1 << 20
"""Logits that are kept before they are turned into scores: large blocks, since each operation has a fixed cost."""


def embedding_type(dimension: int, dtype: str) -> pa.DataType:
    """The Arrow type of stored embeddings. The item field is non-null: three times faster to read than a nullable one."""
    item = pa.float16() if dtype == "float16" else pa.float32()
    return pa.list_(pa.field("item", item, nullable=False), dimension)


@dataclass(frozen=True)
class Outputs:
    """The files of one attempt at a unit."""

    scores: StoredFile
    embeddings: StoredFile | None
    probabilities: StoredFile | None
    samples: StoredFile | None
    quarantine: StoredFile | None


class OutputWriter:
    """Collects the outputs of one attempt at a unit; embeddings go to disk as they come.

    Args:
        store: where to.
        key: the unit's.
        path: of the unit's file.
        id_name: the name of the id column.
        embedding_dtype: float16 or float32.
        temperature: of the softmax.
        embedding: whether to write the embeddings.
        probabilities: whether to write the class probabilities, in the embeddings' dtype.
        samples: whether to write the log-probabilities of every member or dropout sample, in float32.
        further: scores beyond those that every unit holds.

    Attributes:
        quarantine: the rows that are left out; whoever finds them adds them.
    """

    def __init__(
        self,
        store: Store,
        key: str,
        path: str,
        id_name: str,
        embedding_dtype: str,
        temperature: float,
        *,
        embedding: bool = True,
        probabilities: bool = False,
        samples: bool = False,
        further: FurtherScores | None = None,
    ) -> None:
        self._store = store
        attempt = uuid.uuid4().hex[:12]
        self._scores_name = f"{unit_folder(key)}/scores-{attempt}.parquet"
        self._quarantine_name = f"{unit_folder(key)}/quarantined-{attempt}.parquet"
        self.quarantine = Quarantine(id_name, path)
        self._id_name, self._dtype, self._temperature = id_name, embedding_dtype, temperature
        self._ids: list[pa.Array] = []
        self._rows: list[np.ndarray] = []
        self._logits: list[torch.Tensor] = []
        self._kept = 0
        self._columns: dict[str, list[np.ndarray]] = {}
        self._names = {
            "embedding": f"{unit_folder(key)}/embeddings-{attempt}.arrow" if embedding else None,
            "probabilities": f"{unit_folder(key)}/probabilities-{attempt}.arrow" if probabilities else None,
            "samples": f"{unit_folder(key)}/samples-{attempt}.arrow" if samples else None,
        }
        self._vectors: dict[str, _VectorFile] = {}
        self._samples: list[torch.Tensor] = []
        self._further = further
        self.members: int | None = None
        self.classes: int | None = None
        self.rows = 0

    @property
    def dimension(self) -> int | None:
        """The embedding's width, once there is one."""
        return self._vectors["embedding"].dimension if "embedding" in self._vectors else None

    @property
    def positions(self) -> np.ndarray:
        """(n,) int64, where the rows taken so far stand in their file."""
        return np.concatenate(self._rows) if self._rows else np.empty(0, np.int64)

    def add(self, ids: pa.Array, rows: np.ndarray, prediction: Prediction) -> None:
        """Take the outputs of a batch: logits (n, c), samples (n, k, c) and embedding (n, d), on any device."""
        self._ids.append(ids)
        self._rows.append(rows)
        self.rows += len(rows)
        if prediction.logits is not None:
            self.classes = prediction.logits.shape[1]
            self._logits.append(prediction.logits)
            self._kept += prediction.logits.numel()
            if prediction.samples is not None:
                self.members = prediction.samples.shape[1]
                self._samples.append(prediction.samples)
                self._kept += prediction.samples.numel()
            if self._further is not None:
                self._further.add(prediction)
            if self._kept >= SCORE_BLOCK:
                self._score()
        if prediction.scores is not None:
            self._keep(prediction.scores)
        if prediction.embedding is not None:
            self._write("embedding", prediction.embedding)

    def _keep(self, rows: RowScores) -> None:
        """Take scores that are there already."""
        self.classes, self.members = rows.classes, rows.members
        more = {name: values for name, values in (("prediction", rows.prediction), ("confidence", rows.confidence)) if values is not None}
        for name, values in {**rows.scores, **more}.items():
            self._columns.setdefault(name, []).append(values.cpu().numpy())

    def _write(self, column: str, vectors: torch.Tensor) -> None:
        """Append (n, d) vectors to the file of that column, if it is wanted."""
        name = self._names[column]
        if name is None:
            return
        if column not in self._vectors:
            dtype = "float32" if column == "samples" else self._dtype  # rounded log-probabilities are no distribution any more
            self._vectors[column] = _VectorFile(self._store, name, column, vectors.shape[1], dtype)
        self._vectors[column].add(vectors)

    def compute(self) -> None:
        """Turn what is left into scores: the last work for the device."""
        self._score()

    def finish(self) -> Outputs:
        """Write the scores and wait until all is on disk."""
        stored = {}
        for column, file in self._vectors.items():
            file.close()
            stored[column] = self._store.stored(file.name)
        with self._store.writing(self._scores_name) as file:
            pq.write_table(self._table(), file, use_dictionary=False, compression="none", write_statistics=False)
        scores = self._store.stored(self._scores_name)
        if len(self.quarantine):
            with self._store.writing(self._quarantine_name) as file:
                pq.write_table(self.quarantine.table(), file)
            stored["quarantine"] = self._store.stored(self._quarantine_name)
        return Outputs(scores, *(stored.get(kind) for kind in ("embedding", "probabilities", "samples", "quarantine")))

    def abandon(self) -> None:
        """Leave nothing of this attempt behind."""
        for file in self._vectors.values():
            file.abandon()
        for name in (*self._names.values(), self._scores_name, self._quarantine_name):
            if name is not None:
                self._store.discard(name)

    def _table(self) -> pa.Table:
        columns: dict[str, pa.Array] = {self._id_name: pa.chunked_array(self._ids) if self._ids else pa.array([], pa.string())}
        columns |= {name: pa.array(np.concatenate(parts)) for name, parts in self._columns.items()}
        columns["row"] = pa.array(self.positions)
        return pa.table(columns)

    def _score(self) -> None:
        if not self._logits:
            return
        logits = torch.cat(self._logits)
        result = block_scores(logits, self._temperature)
        self._logits, self._kept = [], 0
        columns = {**result.scores, "prediction": result.prediction, "confidence": result.confidence}
        self._write("probabilities", torch.softmax(logits.float() / self._temperature, dim=1))
        log_probs = log_mean = None
        if self._samples:
            log_probs = softened(torch.cat(self._samples), self._temperature)
            self._samples = []
            of_members = member_scores(log_probs, MEMBER_SCORES)
            columns |= of_members.scores
            log_mean = of_members.log_mean
            self._write("samples", log_probs.flatten(1))
        if self._further is not None:
            self._further.complete(columns, logits, log_probs, log_mean)
        for name, values in columns.items():
            self._columns.setdefault(name, []).append(values.cpu().numpy())


class _VectorFile:
    """An Arrow file of one column of vectors, written a block at a time from one buffer."""

    def __init__(self, store: Store, name: str, column: str, dimension: int, dtype: str) -> None:
        self.name, self.dimension = name, dimension
        self._kind = embedding_type(dimension, dtype)
        self._schema = pa.schema([pa.field(column, self._kind, nullable=False)])
        rows = block_rows(dimension, np.dtype(dtype).itemsize)
        self._buffer = np.empty((rows, dimension), dtype)
        self._filled = 0
        self._hashes: list[bytes] = []
        self._open = ExitStack()
        file = self._open.enter_context(store.writing(name))
        self._ipc = self._open.enter_context(pa.ipc.new_file(file, self._schema))

    def add(self, vectors: torch.Tensor) -> None:
        """Append (n, d) rows, converted to the stored dtype."""
        start = 0
        while start < len(vectors):
            count = min(len(vectors) - start, len(self._buffer) - self._filled)
            torch.from_numpy(self._buffer[self._filled : self._filled + count]).copy_(vectors[start : start + count])
            self._filled += count
            start += count
            if self._filled == len(self._buffer):
                self._flush()

    def close(self) -> None:
        self._flush()
        empty = pa.record_batch([pa.array([], self._kind)], schema=self._schema)
        self._ipc.write_batch(empty, custom_metadata=as_metadata(b"".join(self._hashes)))
        self._open.close()

    def abandon(self) -> None:
        self._open.close()

    def _flush(self) -> None:
        if not self._filled:
            return
        self._hashes.append(page_hashes(self._buffer[: self._filled]))
        values = pa.Array.from_buffers(self._kind.value_type, self._filled * self.dimension, [None, pa.py_buffer(self._buffer)])
        array = pa.Array.from_buffers(self._kind, self._filled, [None], children=[values])
        self._ipc.write_batch(pa.record_batch([array], schema=self._schema))
        self._filled = 0


class Quarantine:
    """The rows that one attempt at a unit leaves out.

    Args:
        id_name: the id column.
        path: of the unit's file.
    """

    def __init__(self, id_name: str, path: str) -> None:
        self._id_name, self._path = id_name, path
        self._ids: list[pa.Array] = []
        self._rows: list[np.ndarray] = []
        self._reasons: list[str] = []

    def __len__(self) -> int:
        return len(self._reasons)

    @property
    def positions(self) -> np.ndarray:
        """(n,) int64, where the rows stand in the file, in the order in which they were left out."""
        return np.concatenate(self._rows) if self._rows else np.empty(0, np.int64)

    def add(self, ids: pa.Array, rows: np.ndarray, reasons: Sequence[str]) -> None:
        """Leave these rows out: their ids, (n,) positions in the file, and what is wrong with each."""
        if len(rows):
            self._ids.append(ids)
            self._rows.append(np.asarray(rows, np.int64))
            self._reasons += reasons

    def add_read(self, bad: Sequence[BadRow], id_type: pa.DataType) -> None:
        """Leave out rows that can't be read."""
        self.add(pa.array([row.id for row in bad], id_type), np.array([row.row for row in bad]), [row.flaw for row in bad])

    def first(self, count: int) -> list[str]:
        """Where the first few stand, and what is wrong with them."""
        return described(self.table().slice(0, count).drop_columns([self._id_name])) if len(self) else []

    def table(self) -> pa.Table:
        """All of them, by row; at least one."""
        rows = self.positions
        columns = {
            self._id_name: pa.concat_arrays(self._ids),
            "path": pa.repeat(pa.scalar(self._path, pa.string()), len(rows)),
            "row": pa.array(rows),
            "reason": pa.array(self._reasons, pa.string()),
        }
        return pa.table(columns).take(pa.array(np.argsort(rows, kind="stable")))

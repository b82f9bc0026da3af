"""Writes what a worker computed for one unit: Parquet files of scores, Arrow files of vectors, one for each output."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import xxhash

from raystream.acquisition.members import softened
from raystream.model import Prediction, RowScores
from raystream.pool import BadRow
from raystream.scoring.class_labels import ClassLabel
from raystream.scoring.job import UnitTask
from raystream.scoring.output_kinds import FUNCTION, GRADIENTS, KINDS, Output, OutputBlock, computed
from raystream.scoring.score_reduction import UsersScore
from raystream.store.protocol import Store, StoredFile
from raystream.store.receipts import EMBEDDINGS, SAMPLES, SCORES, Receipt, unit_folder
from raystream.store.unit_columns import described
from raystream.store.vectors import as_metadata, block_rows, page_hashes

_REASONS_KEPT = 3
SCORE_BLOCK = 1 << 20
"""Logits that are kept before they are turned into scores: large blocks, since each operation has a fixed cost."""


def embedding_type(dimension: int, dtype: str) -> pa.DataType:
    """Return the Arrow type of stored embeddings. The item field is non-null: three times faster to read than a nullable one."""
    item = pa.float16() if dtype == "float16" else pa.float32()
    return pa.list_(pa.field("item", item, nullable=False), dimension)


class TakenRows:
    """The rows that one attempt at a unit takes into some of its outputs, and those that it leaves out of them.

    Args:
        id_name: the id column.
        path: of the unit's file.
    """

    def __init__(self, id_name: str, path: str) -> None:
        self._rows: list[np.ndarray] = []
        self.quarantine = Quarantine(id_name, path)
        self.count = 0

    def add(self, rows: np.ndarray) -> None:
        """Take rows that stand at these positions in the file."""
        self._rows.append(rows)
        self.count += len(rows)

    @property
    def positions(self) -> np.ndarray:
        """(n,) int64, where the rows taken so far stand in their file."""
        return np.concatenate(self._rows) if self._rows else np.empty(0, np.int64)


class OutputWriter:
    """Collects the outputs of one attempt at a unit; embeddings go to disk as they come.

    Args:
        store: where to.
        task: the unit, and the outputs that are written of it.
        id_name: the name of the id column.
        temperature: of the softmax.
        functions: the user's own, by import path.
        labels: what the model calls its classes, if it does.

    Attributes:
        scored: the rows of all outputs but the embedding, and those that are left out of them; whoever finds these adds them.
        embedded: those of the embedding.
    """

    def __init__(
        self,
        store: Store,
        task: UnitTask,
        id_name: str,
        temperature: float,
        functions: Mapping[str, UsersScore],
        labels: Sequence[ClassLabel] | None,
    ) -> None:
        self._store, self._task, self._id_name, self._temperature = store, task, id_name, temperature
        self._functions, self._labels = functions, labels
        attempt = uuid.uuid4().hex[:12]
        self._names = {output.name: f"{unit_folder(task.key)}/{output.name}-{attempt}" for output in task.outputs}
        self._in_blocks = [output for output in task.outputs if KINDS[output.kind].made is not None]
        self._embedding = next((output for output in task.outputs if output.kind == EMBEDDINGS), None)
        self._compares = any(output.kind in (SCORES, SAMPLES, FUNCTION) for output in task.outputs)
        self._measures = any(output.kind == GRADIENTS for output in task.outputs)
        self.scored, self.embedded = (TakenRows(id_name, task.unit.file.path) for _ in range(2))
        self._ids: list[pa.Array] = []
        self._parts: dict[str, list[torch.Tensor]] = {}
        self._kept = 0
        self._bias = True
        self._columns: dict[str, dict[str, list[np.ndarray]]] = {output.name: {} for output in task.outputs}
        self._vectors: dict[str, _VectorFile] = {}
        self._files: dict[str, StoredFile] = {}
        self._left_out: dict[str, StoredFile] = {}
        self.members: int | None = None
        self.classes: int | None = None

    def add(self, ids: pa.Array, rows: np.ndarray, prediction: Prediction) -> None:
        """Take a batch's logits (n, c), samples (n, k, c) and what else goes with them, on any device."""
        self._ids.append(ids)
        self.scored.add(rows)
        if prediction.scores is not None:
            self._keep(prediction.scores)
        if prediction.logits is None:
            return
        self.classes = prediction.logits.shape[1]
        self.members = None if prediction.samples is None else prediction.samples.shape[1]
        if not self._in_blocks:
            return
        self._hold("logits", prediction.logits)
        if self._compares:
            self._hold("samples", prediction.samples)
        if self._measures:
            assert prediction.embedding is not None  # the worker asks for it
            self._hold("lengths", torch.linalg.vector_norm(prediction.embedding, dim=1, keepdim=True))
            self._bias = prediction.bias
        self._hold("gradient_lengths", prediction.gradient_lengths)
        if self._kept >= SCORE_BLOCK:
            self._score()

    def add_embedding(self, rows: np.ndarray, embedding: torch.Tensor | None) -> None:
        """Take a batch's embeddings (n, d), on any device, if these are written."""
        if self._embedding is None:
            return
        self.embedded.add(rows)
        if embedding is not None:
            self._write(self._embedding, embedding)

    def _hold(self, name: str, values: torch.Tensor | None) -> None:
        if values is not None:
            self._parts.setdefault(name, []).append(values)
            self._kept += values.numel()

    def _keep(self, rows: RowScores) -> None:
        """Take scores that are there already."""
        self.classes, self.members = rows.classes, rows.members
        more = {name: values for name, values in (("prediction", rows.prediction), ("confidence", rows.confidence)) if values is not None}
        scores = next((output for output in self._in_blocks if output.kind == SCORES), None)
        if scores is not None:
            self._add_columns(scores, {**rows.scores, **more})

    def _add_columns(self, output: Output, columns: dict[str, torch.Tensor]) -> None:
        for name, values in columns.items():
            self._columns[output.name].setdefault(name, []).append(values.cpu().numpy())

    def _write(self, output: Output, vectors: torch.Tensor) -> None:
        """Append (n, d) vectors to an output's file."""
        if output.name not in self._vectors:
            dtype = dict(output.parameters).get("dtype", "float32")
            name = f"{self._names[output.name]}.arrow"
            self._vectors[output.name] = _VectorFile(self._store, name, output.kind, vectors.shape[1], dtype)
        self._vectors[output.name].add(vectors)

    def compute(self) -> None:
        """Turn what is left into outputs: the last work for the device."""
        self._score()

    def finish(self) -> None:
        """Write the tables and wait until all is on disk."""
        for name, vectors in self._vectors.items():
            vectors.close()
            self._files[name] = self._store.stored(vectors.name)
        for output in self._task.outputs:
            name = self._names[output.name]
            table = self._table(output)
            if table.num_columns:
                with self._store.writing(f"{name}.parquet") as file:
                    pq.write_table(table, file, use_dictionary=False, compression="none", write_statistics=False)
                self._files[output.name] = self._store.stored(f"{name}.parquet")
            quarantine = self._taken(output).quarantine
            if len(quarantine):
                with self._store.writing(f"{name}.quarantined.parquet") as file:
                    pq.write_table(quarantine.table(), file)
                self._left_out[output.name] = self._store.stored(f"{name}.quarantined.parquet")

    def receipts(self, **facts: Any) -> tuple[Receipt, ...]:
        """Make the receipts of what was written, one for each output.

        Args:
            facts: fields of the receipts that only the worker knows.
        """
        return tuple(self._receipt(output, facts) for output in self._task.outputs)

    def _receipt(self, output: Output, facts: Mapping[str, Any]) -> Receipt:
        taken, vectors = self._taken(output), self._vectors.get(output.name)
        columns = [*self._columns[output.name]]
        return Receipt(
            key=self._task.key,
            output=output.name,
            unit=self._task.unit.name,
            rows=taken.count,
            positions=xxhash.xxh3_64_hexdigest(taken.positions.astype(np.int64).data),
            file=self._files.get(output.name),
            columns=tuple([self._id_name, *columns, "row"] if output.kind == SCORES else columns),
            width=None if vectors is None else vectors.dimension,
            members=None if output.kind == EMBEDDINGS else self.members,
            classes=None if output.kind == EMBEDDINGS else self.classes,
            quarantined=len(taken.quarantine),
            quarantine=self._left_out.get(output.name),
            quarantine_reasons=tuple(taken.quarantine.first(_REASONS_KEPT)),
            **facts,
        )

    def _taken(self, output: Output) -> TakenRows:
        return self.embedded if output.kind == EMBEDDINGS else self.scored

    def abandon(self) -> None:
        """Leave nothing of this attempt behind."""
        for vectors in self._vectors.values():
            vectors.abandon()
        for output in self._task.outputs:
            suffix = ".parquet" if KINDS[output.kind].stored == "table" else ".arrow"
            for name in (f"{self._names[output.name]}{suffix}", f"{self._names[output.name]}.quarantined.parquet"):
                self._store.discard(name)

    def _table(self, output: Output) -> pa.Table:
        columns: dict[str, pa.Array] = {}
        if output.kind == SCORES:
            columns[self._id_name] = pa.chunked_array(self._ids) if self._ids else pa.array([], pa.string())
        columns |= {name: pa.array(np.concatenate(parts)) for name, parts in self._columns[output.name].items()}
        if output.kind == SCORES:
            columns["row"] = pa.array(self.scored.positions)
        return pa.table(columns)

    def _score(self) -> None:
        if not self._parts:
            return
        parts = {name: torch.cat(values) for name, values in self._parts.items()}
        self._parts, self._kept = {}, 0
        samples = parts.get("samples")
        block = OutputBlock(
            logits=parts["logits"],
            log_probs=None if samples is None else softened(samples, self._temperature),
            lengths=parts.get("lengths"),
            bias=self._bias,
            gradient_lengths=parts.get("gradient_lengths"),
            temperature=self._temperature,
        )
        for output in self._in_blocks:
            found = computed(output, block, self._labels, self._functions)
            if isinstance(found, torch.Tensor):
                self._write(output, found)
            elif found is not None:
                self._add_columns(output, found)


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
        """Say where the first few stand, and what is wrong with them."""
        return described(self.table().slice(0, count).drop_columns([self._id_name])) if len(self) else []

    def table(self) -> pa.Table:
        """Return all of them as a table, by row; at least one."""
        rows = self.positions
        columns = {
            self._id_name: pa.concat_arrays(self._ids),
            "path": pa.repeat(pa.scalar(self._path, pa.string()), len(rows)),
            "row": pa.array(rows),
            "reason": pa.array(self._reasons, pa.string()),
        }
        return pa.table(columns).take(pa.array(np.argsort(rows, kind="stable")))

"""Scores units: reads, runs the model, writes the outputs, commits the receipt. The same in a thread and in an actor."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from raystream.engine.feed import Chunk, Feed
from raystream.engine.job import Job, Task
from raystream.engine.outputs import OutputWriter
from raystream.engine.receipt import Receipt, read_receipt, unit_folder
from raystream.engine.store import LocalStore
from raystream.errors import ClusterError, DataError, ModelError, RaystreamError
from raystream.model import bad_output_rows, load

_REASONS_KEPT = 20
_LARGEST = {"float16": 65504.0, "float32": 1e19}
"""What a stored embedding's numbers must stay below for sure; above it, each is looked at."""


@dataclass(frozen=True)
class Failure:
    """Why a unit has no receipt; `retry` says whether another try may end otherwise."""

    error: RaystreamError
    retry: bool


class Worker:
    """Holds the user's model and scores one unit after another.

    Calls may overlap, from different threads: while one computes, the next one reads and the one before waits for the
    disk. Only one computes at a time.

    Raises:
        ModelError: the model can't be loaded.
        ClusterError: this process doesn't see the driver's store.
    """

    def __init__(self, job: Job) -> None:
        sys.path.extend(p for p in job.import_paths if p not in sys.path and Path(p).exists())
        self._job = job
        self._store = LocalStore(job.store)
        if not self._store.exists(job.token):
            raise ClusterError(
                f"store {job.store} as this worker sees it lacks what the driver wrote; give store.uri a folder that every node shares"
            )
        _set_threads(job.threads)
        self._model = load(job.model, embedding=job.embedding)
        self._computing = threading.Lock()

    def score(self, task: Task) -> Receipt:
        """Score one unit and commit it.

        Raises:
            PoolError: a row or a file can't be read.
            ModelError: the model's output can't be used.
            StoreError: the store can't be written.
        """
        started = time.perf_counter()
        job, unit = self._job, task.unit
        _set_threads(job.threads)
        writer = OutputWriter(self._store, task.key, job.read.id or "id", job.model.embedding_dtype, job.model.temperature)
        try:
            with Feed(unit, job.read, job.model.batch_size, pin=self._model.device.type == "cuda") as feed:
                quarantined: list[str] = []
                with self._computing:
                    for chunk in feed:
                        quarantined += self._score_chunk(chunk, writer, unit.name)
                quarantined = [str(bad) for bad in feed.bad] + quarantined
            scores, embeddings = writer.finish()
        except ModelError as error:
            writer.abandon()
            raise ModelError(f"{unit.name}: {error}") from error
        except BaseException:
            writer.abandon()
            raise
        receipt = Receipt(
            key=task.key,
            unit=unit.name,
            rows=writer.rows,
            scores=scores,
            embeddings=embeddings,
            dimension=writer.dimension,
            classes=writer.classes,
            batch_size=self._model.batch_size,
            state_hash=self._model.state_hash,
            quarantined=len(quarantined),
            quarantine_reasons=tuple(quarantined[:_REASONS_KEPT]),
            bytes_read=unit.bytes,
            seconds=time.perf_counter() - started,
        )
        return self._commit(receipt)

    def attempt(self, task: Task) -> Receipt | Failure:
        """`score`, with what went wrong as a value: it has to travel between processes."""
        try:
            return self.score(task)
        except DataError as error:
            return Failure(error, retry=False)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{task.unit.name}: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
            return Failure(RaystreamError(text), retry=True)

    def _commit(self, receipt: Receipt) -> Receipt:
        name = f"{unit_folder(receipt.key)}/receipt.json"
        if self._store.put_if_absent(name, receipt.to_json()):
            return receipt
        winner = read_receipt(self._store, receipt.key)
        if winner is None:
            # The receipt that is there names files that are gone or cut short.
            self._store.put(name, receipt.to_json())
            return receipt
        for file in (receipt.scores, receipt.embeddings):
            if file is not None:
                self._store.discard(file.name)
        return winner

    def _score_chunk(self, chunk: Chunk, writer: OutputWriter, name: str) -> list[str]:
        logits: list[torch.Tensor] = []
        embedding: np.ndarray | None = None
        bad: list[torch.Tensor] = []
        suspicious = False
        batch_size = self._job.model.batch_size
        for start in range(0, len(chunk), batch_size):
            prediction = self._model.predict(tuple(tensor[start : start + batch_size] for tensor in chunk.inputs))
            wrong = bad_output_rows(prediction)
            if wrong is not None:
                bad.append(torch.nonzero(wrong).flatten().cpu() + start)
            if prediction.logits is not None:
                logits.append(prediction.logits)
            if prediction.embedding is not None:
                if embedding is None:
                    embedding = np.empty((len(chunk), prediction.embedding.shape[1]), self._job.model.embedding_dtype)
                stop = start + len(prediction.embedding)
                torch.from_numpy(embedding[start:stop]).copy_(prediction.embedding)
                flat = prediction.embedding.flatten()
                # Below this, no number of the batch can be NaN, infinite or too large; one pass, ten times faster than a maximum.
                suspicious |= not float(flat.dot(flat)) < _LARGEST[self._job.model.embedding_dtype] ** 2
        joined = torch.cat(logits) if logits else None
        overflowed = _not_finite(embedding) if embedding is not None and suspicious else np.empty(0, np.int64)
        if not bad and not len(overflowed):
            writer.add(chunk.ids, chunk.rows, joined, embedding)
            return []
        return self._quarantine(chunk, writer, name, joined, embedding, torch.cat(bad).numpy() if bad else np.empty(0, np.int64), overflowed)

    def _quarantine(
        self,
        chunk: Chunk,
        writer: OutputWriter,
        name: str,
        logits: torch.Tensor | None,
        embedding: np.ndarray | None,
        wrong: np.ndarray,
        overflowed: np.ndarray,
    ) -> list[str]:
        """Refuse rows whose outputs can't be used, or leave them out, as the query says."""
        reasons = dict.fromkeys(chunk.rows[overflowed].tolist(), "embedding overflows float16; set model.embedding_dtype to float32")
        reasons |= dict.fromkeys(chunk.rows[wrong].tolist(), "the model's output holds NaN or infinity")
        if not self._job.skip_bad_rows:
            row = min(reasons)
            same = sorted(r for r, reason in reasons.items() if reason == reasons[row])
            count = f"{len(same)} rows, first {', '.join(map(str, same[:3]))}" if len(same) > 1 else f"row {row}"
            raise ModelError(f"{count}: {reasons[row]}; or set on_error to skip")
        keep = ~np.isin(chunk.rows, list(reasons))
        writer.add(
            chunk.ids.filter(pa.array(keep)),
            chunk.rows[keep],
            logits[torch.from_numpy(keep).to(logits.device)] if logits is not None else None,
            embedding[keep] if embedding is not None else None,
        )
        return [f"{name} row {row}: {reason}" for row, reason in sorted(reasons.items())]


def _not_finite(embedding: np.ndarray) -> np.ndarray:
    """Rows of a stored (n, d) embedding with NaN or infinity, as positions."""
    exponent = np.uint16(0x7C00) if embedding.dtype == np.float16 else np.uint32(0x7F800000)
    bits = torch.from_numpy(embedding.view(f"i{embedding.itemsize}"))
    masked = bits.bitwise_and(int(exponent))
    if not bool((masked == int(exponent)).any()):
        return np.empty(0, np.int64)
    return torch.nonzero((masked == int(exponent)).any(dim=1)).flatten().numpy()


def _set_threads(threads: int) -> None:
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


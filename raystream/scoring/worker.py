"""Scores units: reads, runs the model, writes the outputs, commits the receipt. The same in a thread and in an actor."""

from __future__ import annotations

import math
import sys
import threading
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raystream.errors import ClusterError, DataError, ModelError, QueryError, RaystreamError, StoreUnreachable
from raystream.lake import is_remote
from raystream.lake.retry import Patience, on_disk
from raystream.model import (
    PROBE_ROWS,
    Prediction,
    Predictor,
    bad_output_rows,
    code_hash,
    fingerprint,
    is_device_failure,
    load,
    with_local_files,
)
from raystream.pool import OutageError, Unit, UnreachableError
from raystream.scoring.batch_reader import BatchReader, Chunk
from raystream.scoring.epig import score_epig
from raystream.scoring.first_rows import first_rows, preparation, probe
from raystream.scoring.further_scores import FurtherScores
from raystream.scoring.job import Job, Task
from raystream.scoring.outputs import OutputWriter
from raystream.scoring.score_reduction import ReducedPredictor
from raystream.scoring.users_scores import users_score
from raystream.store.opening import store_at
from raystream.store.protocol import WriteBroken
from raystream.store.receipts import Receipt, read_receipt, unit_folder
from raystream.store.requests import unbroken

PATIENCE = Patience(from_start=True)
_REASONS_KEPT = 3
_START = "what a worker starts from"
_DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Failure:
    """Why a unit has no receipt; `retry` says whether another try may end otherwise."""

    error: RaystreamError
    retry: bool
    outage: bool = False
    """Whether a storage was away for longer than it is waited for: no unit is to blame, and no other one would do better."""


class Worker:
    """Holds the user's model and scores one unit after another.

    Calls may overlap, from different threads: while one computes, the next one reads and the one before waits for the
    disk. Only one computes at a time.

    Args:
        job: what all units share.
        patience: with storages that are away; they have answered the driver, so they are waited for from the start.

    Raises:
        ModelError: the model can't be loaded, or isn't the one that was planned with.
        ClusterError: this process doesn't see the driver's store.
    """

    def __init__(self, job: Job, patience: Patience = PATIENCE) -> None:
        job = replace(job, model=with_local_files(job.model, job.storage, patience))
        sys.path.extend(p for p in job.import_paths if p not in sys.path and Path(p).exists())
        self._job, self._patience = job, patience
        self._store = store_at(job.store, job.store_storage, patience)
        if not self._store.exists(job.token):
            raise ClusterError(
                f"store {job.store} as this worker sees it lacks what the driver wrote; give store.uri a folder that every node shares"
            )
        _set_threads(job.threads)
        promised = load(
            job.model,
            embedding=job.embedding or job.asked.gradients,
            mc_samples=job.mc_samples,
            seed=job.seed,
            last_layer=job.asked.gradients,
            gradient_classes=job.asked.egl_classes,
            names=job.read.names,
        )
        if fingerprint(job.model) != job.fingerprint:
            raise ModelError("the model's weights or source changed while the query was being started; run it again")
        self._functions = [users_score(path) for path, _ in job.asked.functions]
        changed = next((path for path, code in job.asked.functions if code_hash(path, "acquire") != code), None)
        if changed:
            raise ModelError(f"the source of acquisition function {changed} changed while the query was being started; run it again")
        self._prepare = preparation(job.read)
        first = unbroken(
            self._store,
            lambda: first_rows(job.first, job.read, min(job.model.batch_size, PROBE_ROWS), self._prepare, job.threads),
            patience,
            lambda error: isinstance(error, OutageError) and not any(is_remote(unit.file.path) for unit in job.first),
            "the storage of the pool",
        )
        if first is not None:
            probe(promised, first, lenient=True)
        self._promised = promised
        self._model: Predictor = promised if job.reduction is None else ReducedPredictor(promised, job.reduction)
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
        if task.epig is not None:
            with self._computing:
                return self._commit(score_epig(self._store, task, job.asked))
        model = job.model
        writer = OutputWriter(
            self._store,
            task.key,
            unit.file.path,
            job.read.id or "id",
            model.embedding_dtype,
            model.temperature_value,
            embedding=job.embedding,
            probabilities=job.probabilities,
            samples=job.samples,
            further=FurtherScores(job.asked, self._functions, model.temperature_value, self._promised.class_labels),
        )
        try:
            pin = self._model.device.type == "cuda"
            with BatchReader(unit, job.read, job.model.batch_size, pin, job.threads, self._prepare) as reader:
                with self._computing:
                    predictor = self._model_for(unit)
                    for chunk in reader:
                        for batch in chunk.batches(job.model.batch_size):
                            self._score_batch(predictor, batch, writer)
                    writer.compute()
                writer.quarantine.add_read(reader.bad, job.read.id_type)
                reader.check(writer.positions, writer.quarantine.positions)
                repeated = len(reader.repeated)
            outputs = writer.finish()
        except ModelError as error:
            writer.abandon()
            raise ModelError(f"{unit.name}: {error}") from error
        except QueryError as error:
            writer.abandon()
            raise QueryError(f"{unit.name}: {error}") from error
        except BaseException:
            writer.abandon()
            raise
        receipt = Receipt(
            key=task.key,
            unit=unit.name,
            rows=writer.rows,
            scores=outputs.scores,
            embeddings=outputs.embeddings,
            probabilities=outputs.probabilities,
            samples=outputs.samples,
            members=writer.members,
            dimension=writer.dimension,
            classes=writer.classes,
            batch_size=self._model.batch_size,
            state_hash=self._model.state_hash,
            quarantined=len(writer.quarantine),
            quarantine=outputs.quarantine,
            quarantine_reasons=tuple(writer.quarantine.first(_REASONS_KEPT)),
            bytes_read=unit.bytes,
            seconds=time.perf_counter() - started,
            repeated_reads=repeated,
            class_labels=self._promised.class_labels,
            notes=self._promised.notes,
        )
        return self._commit(receipt)

    def attempt(self, task: Task) -> Receipt | Failure:
        """`score`, with what went wrong as a value: it has to travel between processes.

        A device that is lost is raised: nothing that this process computes from here on can be trusted.
        """
        try:
            return self._in_spite_of_outages(task)
        except (DataError, QueryError) as error:
            outage = isinstance(error, OutageError | StoreUnreachable)
            return Failure(error, retry=isinstance(error, UnreachableError) and not outage, outage=outage)
        except Exception as error:
            if is_device_failure(error):
                raise
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{task.unit.name}: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
            return Failure(RaystreamError(text), retry=True)

    def _in_spite_of_outages(self, task: Task) -> Receipt:
        """`score`, from the beginning again where a storage went away in the middle of a file, which can't be taken up there."""
        unit = task.unit
        here = not is_remote(unit.file.path)  # else each request has waited by itself

        def broken(error: DataError) -> bool:
            return isinstance(error, WriteBroken) or (here and isinstance(error, OutageError))

        return unbroken(self._store, lambda: self.score(task), self._patience, broken, f"the storage of {unit.name}")

    def _commit(self, receipt: Receipt) -> Receipt:
        name = f"{unit_folder(receipt.key)}/receipt.json"
        # A receipt whose name is lost in a crash of the machine costs this unit, which is not worth waiting for the disk.
        if self._store.put_if_absent(name, receipt.to_json(), wait=False):
            return receipt
        winner = read_receipt(self._store, receipt.key)
        if winner is None:
            # The receipt that is there names files that are gone or cut short.
            self._store.put(name, receipt.to_json())
            return receipt
        kept = {file.name for file in winner.files}
        for file in receipt.files:
            if file.name not in kept:  # it may be our own after all, told to be another's
                self._store.discard(file.name)
        return winner

    def _model_for(self, unit: Unit) -> Predictor:
        """The model; for a unit that holds embeddings alone, as a file of labelled rows may, what passes these on."""
        if unit.columns is None:
            return self._model
        return load(
            self._job.model.model_copy(update={"logits": None, "probabilities": None, "samples": None, "task": "classes"}), embedding=True
        )

    def _score_batch(self, model: Predictor, batch: Chunk, writer: OutputWriter) -> None:
        """Run the model on a batch and hand on its outputs, and the rows that are left out."""
        prediction = model.predict(batch.inputs)
        wrong = too_large = None
        if not self._is_sound(prediction):
            wrong, too_large = bad_output_rows(prediction), self._too_large(prediction.embedding)
        if wrong is None and too_large is None:
            # The inputs lie in a buffer that is filled again; logits are kept for longer than that.
            writer.add(batch.ids, batch.rows, self._wanted(_apart(prediction, batch.inputs)))
            return
        reasons: dict[int, str] = {}
        for rows, reason in (
            (too_large, "the embedding overflows float16; set model.embedding_dtype to float32"),
            (wrong, prediction.reason),
        ):
            if rows is not None:
                reasons |= dict.fromkeys(batch.rows[rows.cpu().numpy()].tolist(), reason)
        if not self._job.skip_bad_rows:
            raise ModelError(f"{_counted(reasons)}; correct it, or set on_error to skip to leave such rows out")
        keep = torch.from_numpy(~np.isin(batch.rows, list(reasons)))
        writer.add(
            batch.ids.filter(pa.array(keep.numpy())),
            batch.rows[keep.numpy()],
            self._wanted(
                Prediction(
                    _kept(prediction.logits, keep),
                    _kept(prediction.embedding, keep),
                    samples=_kept(prediction.samples, keep),
                    scores=None if prediction.scores is None else prediction.scores.kept(keep),
                    bias=prediction.bias,
                    gradient_lengths=_kept(prediction.gradient_lengths, keep),
                )
            ),
        )
        left_out = ~keep.numpy()
        rows = batch.rows[left_out]
        writer.quarantine.add(batch.ids.filter(pa.array(left_out)), rows, [reasons[row] for row in rows.tolist()])

    def _wanted(self, prediction: Prediction) -> Prediction:
        """The prediction; its logits in place of any samples, where they are to be stored like these."""
        if not self._job.logits or prediction.logits is None:
            return prediction
        return replace(prediction, samples=prediction.logits.unsqueeze(1))

    def _is_sound(self, prediction: Prediction) -> bool:
        """Whether two sums alone show that every number is finite and can be stored, as they nearly always do.

        No number is larger than the root of the sum of all squares: one pass, ten times faster than a maximum.
        """
        sound = prediction.scores is None or bool(prediction.scores.sound.all())
        if prediction.embedding is not None:
            flat = prediction.embedding.flatten()
            sound = float(flat.dot(flat)) < torch.finfo(_DTYPES[self._job.model.embedding_dtype]).max ** 2
        summed = [values for values in (prediction.logits, prediction.samples, prediction.gradient_lengths) if values is not None]
        return sound and all(math.isfinite(float(values.sum())) for values in summed)

    def _too_large(self, embedding: torch.Tensor | None) -> torch.Tensor | None:
        """(n,) which rows overflow when stored, or None if none does."""
        if embedding is None or not self._job.embedding or self._job.model.embedding_dtype != "float16":
            return None
        rows = torch.isinf(embedding.half()).any(dim=1) & torch.isfinite(embedding).all(dim=1)
        return rows if bool(rows.any()) else None


def started(job: Job, patience: Patience = PATIENCE) -> Worker:
    """A worker, in spite of outages of the disks that its model and the first rows lie on; requests to storages wait by themselves."""
    here = not any(is_remote(unit.file.path) for unit in job.first)

    def broken(error: DataError) -> bool:
        return here and isinstance(error, OutageError)

    def start() -> Worker:
        return on_disk(lambda: Worker(job, patience), _START, patience)

    return unbroken(store_at(job.store, job.store_storage, patience), start, patience, broken, _START)


def _kept(values: torch.Tensor | None, keep: torch.Tensor) -> torch.Tensor | None:
    return None if values is None else values[keep.to(values.device)]


def _apart(prediction: Prediction, inputs: tuple[Any, ...]) -> Prediction:
    """The prediction with its logits in memory of their own: a model may return its input, or a view of it."""
    shared = {tensor.untyped_storage().data_ptr() for tensor in inputs if isinstance(tensor, torch.Tensor)}
    logits = prediction.logits
    if logits is None or logits.untyped_storage().data_ptr() not in shared:
        return prediction
    return replace(prediction, logits=logits.clone())


def _counted(reasons: dict[int, str]) -> str:
    """The first row's reason, and how many rows share it."""
    first = min(reasons)
    same = sorted(row for row, reason in reasons.items() if reason == reasons[first])
    rows = f"{len(same)} rows, first {', '.join(map(str, same[:3]))}" if len(same) > 1 else f"row {first}"
    return f"{rows}: {reasons[first]}"


def _set_threads(threads: int) -> None:
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)

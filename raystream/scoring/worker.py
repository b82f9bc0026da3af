"""Scores units: reads, runs the model, writes the outputs, commits the receipt. The same in a thread and in an actor."""

from __future__ import annotations

import math
import sys
import threading
import time
import traceback
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raystream.acquisition.members import softened
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
from raystream.scoring.batch_reader import BatchReader, BufferedRows, first_rows, preparation, probe
from raystream.scoring.epig import score_epig
from raystream.scoring.job import ScoringJob, UnitTask
from raystream.scoring.output_kinds import FUNCTION, GRADIENTS, KINDS, PARAMETER_GRADIENTS, OutputBlock, computed
from raystream.scoring.outputs import OutputWriter, TakenRows
from raystream.scoring.score_reduction import ReducedPredictor, users_score
from raystream.store.opening import store_at
from raystream.store.packs import unbroken
from raystream.store.protocol import WriteBroken
from raystream.store.receipts import EMBEDDINGS, Receipt, UnitOutputs, read_receipt, receipt_name

PATIENCE = Patience(from_start=True)
_START = "what a worker starts from"
_NO_MEMORY = "DefaultCPUAllocator: "
"""How torch, which has no class for it, begins to say that a processor's memory is used up."""
_DTYPES = {"float16": torch.float16, "float32": torch.float32}


Follow = Callable[[int], None]
"""Told how many of a unit's rows are behind, after each batch; it may raise `Abandoned`."""


class Abandoned(BaseException):
    """The unit on the way is not wanted any more: nothing is left of it, and nobody is to blame."""


def alone(rows: int) -> None:
    """Make one for units that nobody follows."""


@dataclass(frozen=True)
class Failure:
    """Why a unit has no receipt; `retry` says whether another try may end otherwise."""

    error: RaystreamError
    retry: bool
    outage: bool = False
    """Whether a storage was away for longer than it is waited for: no unit is to blame, and no other one would do better."""
    memory: bool = False
    """Whether there was no memory left for it."""


@dataclass(frozen=True)
class RowsInMemory:
    """What a model says of rows in memory: a score, (n,), embeddings (n, d) as they would be stored, and how many classes."""

    scores: np.ndarray
    embeddings: np.ndarray | None
    classes: int | None


class Worker:
    """Holds the user's model and scores one unit after another.

    Calls may overlap, from different threads: while one computes, the next one reads and the one before waits for the
    disk. Only one computes at a time.

    Args:
        job: what all units share.
        patience: with storages that are away; they have answered the driver, so they are waited for from the start.

    Attributes:
        width: of the embeddings that it makes; 0 before the first, and if it makes none.

    Raises:
        ModelError: the model can't be loaded, or isn't the one that was planned with.
        ClusterError: this process doesn't see the driver's store.
    """

    def __init__(self, job: ScoringJob, patience: Patience = PATIENCE) -> None:
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
            embedding=any(job.asks_for(kind) for kind in (EMBEDDINGS, GRADIENTS)),
            mc_samples=job.mc_samples,
            seed=job.seed,
            last_layer=job.asks_for(GRADIENTS) is not None,
            gradient_classes=None if (lengths := job.asks_for(PARAMETER_GRADIENTS)) is None else lengths["classes"],
            names=job.read.names,
        )
        if fingerprint(job.model) != job.fingerprint:
            raise ModelError("the model's weights or source changed while the query was being started; run it again")
        functions = {output["function"]: output["code"] for output in job.outputs if output.kind == FUNCTION}
        self._functions = {path: users_score(path) for path in functions}
        changed = next((path for path, code in functions.items() if code_hash(path, "acquire") != code), None)
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
        self.width = 0

    def score(self, task: UnitTask, follow: Follow = alone, batch_size: int | None = None) -> UnitOutputs:
        """Compute outputs of one unit and commit them.

        Args:
            task: what of it.
            follow: told how far it is; from the beginning again if the unit is begun again.
            batch_size: instead of the model's, where nobody will keep what is written.

        Raises:
            Abandoned: `follow` did.
            PoolError: a row or a file can't be read.
            ModelError: the model's output can't be used.
            StoreError: the store can't be written.
        """
        started = time.perf_counter()
        job, unit = self._job, task.unit
        _set_threads(job.threads)
        size = batch_size or job.model.batch_size
        if task.targets is not None:
            with self._computing:
                return self._commit([score_epig(self._store, task)])
        writer = OutputWriter(
            self._store, task, job.read.id or "id", job.model.temperature_value, self._functions, self._promised.class_labels
        )
        kinds = {output.kind for output in task.outputs}
        taken = [writer.embedded] * (EMBEDDINGS in kinds) + [writer.scored] * bool(kinds - {EMBEDDINGS})
        try:
            pin = self._model.device.type == "cuda"
            with BatchReader(unit, job.read, size, pin, job.threads, self._prepare) as reader:
                waits = time.perf_counter()
                with self._computing:
                    started += time.perf_counter() - waits  # for the unit before, whose time it is
                    predictor = self._model_for(unit)
                    for chunk in reader:
                        for batch in chunk.batches(size):
                            self._score_batch(predictor, batch, kinds, writer)
                            follow(_rows_behind(unit, int(batch.rows[-1])))
                    writer.compute()
                for rows in taken:
                    rows.quarantine.add_read(reader.bad, job.read.id_type)
                    reader.check(rows.positions, rows.quarantine.positions)
                repeated = len(reader.repeated)
            writer.finish()
        except ModelError as error:
            writer.abandon()
            raise ModelError(f"{unit.name}: {error}") from error
        except QueryError as error:
            writer.abandon()
            raise QueryError(f"{unit.name}: {error}") from error
        except BaseException:
            writer.abandon()
            raise
        return self._commit(
            writer.receipts(
                batch_size=self._model.batch_size,
                state_hash=self._model.state_hash,
                bytes_read=unit.bytes,
                seconds=time.perf_counter() - started,
                repeated_reads=repeated,
                class_labels=self._promised.class_labels,
                notes=self._promised.notes,
            )
        )

    def score_rows(self, inputs: tuple[np.ndarray, ...], column: str) -> RowsInMemory:
        """Score rows that lie in memory, and write nothing.

        Args:
            inputs: as `raystream.pool.reader.tensors_of` makes them.
            column: the score that is asked for.

        Raises:
            ModelError: the model's output can't be used.
        """
        job, size = self._job, self._job.model.batch_size
        parts: list[RowsInMemory] = []
        with self._computing:
            _set_threads(job.threads)
            for start in range(0, len(inputs[0]), size):
                some = inputs if len(inputs[0]) <= size else [values[start : start + size] for values in inputs]
                tensors = tuple(values if values.dtype == object else torch.from_numpy(np.ascontiguousarray(values)) for values in some)
                prediction = self._model.predict(tensors)
                wrong = None if self._is_sound(prediction) else bad_output_rows(prediction)
                if wrong is not None:
                    raise ModelError(f"row {start + int(torch.nonzero(wrong)[0])}: {prediction.reason}")
                scores, logits = self._columns(prediction, column)[column].cpu().numpy(), prediction.logits
                classes = logits.shape[1] if logits is not None else prediction.scores.classes if prediction.scores is not None else None
                vectors = None
                if prediction.embedding is not None and job.asks_for(EMBEDDINGS) is not None:
                    vectors = prediction.embedding.to(_DTYPES[job.model.embedding_dtype]).cpu().numpy()
                parts.append(RowsInMemory(scores, vectors, classes))
        if len(parts) == 1:
            return parts[0]
        embeddings = [part.embeddings for part in parts if part.embeddings is not None]
        return RowsInMemory(
            np.concatenate([part.scores for part in parts]), np.concatenate(embeddings) if embeddings else None, parts[-1].classes
        )

    def _columns(self, prediction: Prediction, column: str) -> dict[str, torch.Tensor]:
        """Compute score columns of some rows, this one among them."""
        if prediction.scores is not None:
            return dict(prediction.scores.scores)
        temperature, samples = self._job.model.temperature_value, prediction.samples
        if prediction.logits is None:
            return {}
        gradients = self._job.asks_for(GRADIENTS) is not None and prediction.embedding is not None
        block = OutputBlock(
            logits=prediction.logits,
            log_probs=None if samples is None else softened(samples, temperature),
            lengths=torch.linalg.vector_norm(prediction.embedding, dim=1, keepdim=True) if gradients else None,
            bias=prediction.bias,
            gradient_lengths=prediction.gradient_lengths,
            temperature=temperature,
            only=column,
        )
        found: dict[str, torch.Tensor] = {}
        for output in self._job.outputs:
            if KINDS[output.kind].made is not None and KINDS[output.kind].stored == "table":
                made = computed(output, block, self._promised.class_labels, self._functions)
                found |= made if isinstance(made, dict) else {}
        return found

    def attempt(self, task: UnitTask, follow: Follow = alone) -> UnitOutputs | Failure:
        """Call `score`, and return what went wrong as a value: it has to travel between processes.

        A device that is lost is raised: nothing that this process computes from here on can be trusted.
        """
        try:
            return self._in_spite_of_outages(task, follow)
        except (DataError, QueryError) as error:
            outage = isinstance(error, OutageError | StoreUnreachable)
            return Failure(error, retry=isinstance(error, UnreachableError) and not outage, outage=outage)
        except Exception as error:
            if is_device_failure(error):
                raise
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{task.unit.name}: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
            return Failure(RaystreamError(text), retry=True, memory=isinstance(error, MemoryError) or _NO_MEMORY in str(error))

    def _in_spite_of_outages(self, task: UnitTask, follow: Follow) -> UnitOutputs:
        """Call `score`, from the beginning again where a storage went away in the middle of a file, which can't be taken up there."""
        unit = task.unit
        here = not is_remote(unit.file.path)  # else each request has waited by itself

        def broken(error: DataError) -> bool:
            return isinstance(error, WriteBroken) or (here and isinstance(error, OutageError))

        return unbroken(self._store, lambda: self.score(task, follow), self._patience, broken, f"the storage of {unit.name}")

    def _commit(self, receipts: Sequence[Receipt]) -> UnitOutputs:
        return UnitOutputs(tuple(self._committed(receipt) for receipt in receipts))

    def _committed(self, receipt: Receipt) -> Receipt:
        """Return the receipt that is kept of an output: this one, or that of whoever was first."""
        name = receipt_name(receipt.key, receipt.output)
        # A receipt whose name is lost in a crash of the machine costs this output, which is not worth waiting for the disk.
        if self._store.put_if_absent(name, receipt.to_json(), wait=False):
            return receipt
        winner = read_receipt(self._store, receipt.key, receipt.output)
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
        """Return the model; for a unit that holds embeddings alone, as a file of labelled rows may, what passes these on."""
        if unit.columns is None:
            return self._model
        return load(
            self._job.model.derived(logits=None, probabilities=None, samples=None, task="classes"), embedding=True
        )

    def _score_batch(self, model: Predictor, batch: BufferedRows, kinds: Collection[str], writer: OutputWriter) -> None:
        """Run the model on a batch and hand on its outputs, and the rows that are left out of them."""
        prediction = model.predict(batch.inputs)
        if prediction.embedding is not None:
            self.width = prediction.embedding.shape[1]
        measured = GRADIENTS in kinds  # then a score needs the embedding, too
        if EMBEDDINGS not in kinds and not measured:
            prediction = replace(prediction, embedding=None)
        if PARAMETER_GRADIENTS not in kinds:
            prediction = replace(prediction, gradient_lengths=None)
        wrong = unkept = too_large = None
        if not self._is_sound(prediction):
            wrong = bad_output_rows(prediction if measured else replace(prediction, embedding=None))
            if EMBEDDINGS in kinds and prediction.embedding is not None:
                unkept = bad_output_rows(Prediction(None, prediction.embedding))
                too_large = self._too_large(prediction.embedding)
        if wrong is None and unkept is None and too_large is None:
            # The inputs lie in a buffer that is filled again; logits are kept for longer than that.
            writer.add(batch.ids, batch.rows, _apart(prediction, batch.inputs))
            writer.add_embedding(batch.rows, prediction.embedding)
            return
        of_scores = {} if wrong is None else _reasons(batch, wrong, prediction.reason)
        of_embedding: dict[int, str] = {}
        for rows, reason in (
            (too_large, "the embedding overflows float16; set model.embedding_dtype to float32"), (unkept, prediction.reason)
        ):  # fmt: skip
            of_embedding |= {} if rows is None else _reasons(batch, rows, reason)
        if not self._job.skip_bad_rows:
            raise ModelError(f"{_counted(of_embedding | of_scores)}; correct it, or set on_error to skip to leave such rows out")
        ids, positions, keep = _parted(batch, of_scores, writer.scored)
        writer.add(
            ids,
            positions,
            Prediction(
                _kept(prediction.logits, keep),
                _kept(prediction.embedding, keep),
                samples=_kept(prediction.samples, keep),
                scores=None if prediction.scores is None else prediction.scores.kept(keep),
                bias=prediction.bias,
                gradient_lengths=_kept(prediction.gradient_lengths, keep),
            ),
        )
        if EMBEDDINGS in kinds:
            _, positions, keep = _parted(batch, of_embedding, writer.embedded)
            writer.add_embedding(positions, _kept(prediction.embedding, keep))

    def _is_sound(self, prediction: Prediction) -> bool:
        """Tell whether two sums alone show that every number is finite and can be stored, as they nearly always do.

        No number is larger than the root of the sum of all squares: one pass, ten times faster than a maximum.
        """
        sound = prediction.scores is None or bool(prediction.scores.sound.all())
        if prediction.embedding is not None:
            flat = prediction.embedding.flatten()
            sound = float(flat.dot(flat)) < torch.finfo(_DTYPES[self._job.model.embedding_dtype]).max ** 2
        summed = [values for values in (prediction.logits, prediction.samples, prediction.gradient_lengths) if values is not None]
        return sound and all(math.isfinite(float(values.sum())) for values in summed)

    def _too_large(self, embedding: torch.Tensor) -> torch.Tensor | None:
        """Tell (n,) which rows overflow when stored; None if none does."""
        if self._job.model.embedding_dtype != "float16":
            return None
        rows = torch.isinf(embedding.half()).any(dim=1) & torch.isfinite(embedding).all(dim=1)
        return rows if bool(rows.any()) else None


def started(job: ScoringJob, patience: Patience = PATIENCE) -> Worker:
    """Start a worker, in spite of outages of the disks that its model and first rows lie on; requests to storages wait by themselves."""
    here = not any(is_remote(unit.file.path) for unit in job.first)

    def broken(error: DataError) -> bool:
        return here and isinstance(error, OutageError)

    def start() -> Worker:
        return on_disk(lambda: Worker(job, patience), _START, patience)

    return unbroken(store_at(job.store, job.store_storage, patience), start, patience, broken, _START)


def _rows_behind(unit: Unit, last: int) -> int:
    """Count the rows of a unit that are scored, left out or filtered away once the row at this position is."""
    if unit.positions is not None:
        return bisect_right(unit.positions, last)
    return min(unit.rows, last + 1 - unit.first_row)


def _reasons(batch: BufferedRows, bad: torch.Tensor, reason: str) -> dict[int, str]:
    """Map each of these rows, by their positions in the file, to what is wrong with it."""
    return dict.fromkeys(batch.rows[bad.cpu().numpy()].tolist(), reason)


def _parted(batch: BufferedRows, reasons: dict[int, str], taken: TakenRows) -> tuple[pa.Array, np.ndarray, torch.Tensor]:
    """Leave these rows of a batch out; the ids and positions of the others, and (n,) bool, which they are."""
    keep = ~np.isin(batch.rows, list(reasons))
    rows = batch.rows[~keep]
    taken.quarantine.add(batch.ids.filter(pa.array(~keep)), rows, [reasons[row] for row in rows.tolist()])
    return batch.ids.filter(pa.array(keep)), batch.rows[keep], torch.from_numpy(keep)


def _kept(values: torch.Tensor | None, keep: torch.Tensor) -> torch.Tensor | None:
    return None if values is None else values[keep.to(values.device)]


def _apart(prediction: Prediction, inputs: tuple[Any, ...]) -> Prediction:
    """Return the prediction with its logits in memory of their own: a model may return its input, or a view of it."""
    shared = {tensor.untyped_storage().data_ptr() for tensor in inputs if isinstance(tensor, torch.Tensor)}
    logits = prediction.logits
    if logits is None or logits.untyped_storage().data_ptr() not in shared:
        return prediction
    return replace(prediction, logits=logits.clone())


def _counted(reasons: dict[int, str]) -> str:
    """Write the first row's reason, and how many rows share it."""
    first = min(reasons)
    same = sorted(row for row, reason in reasons.items() if reason == reasons[first])
    rows = f"{len(same)} rows, first {', '.join(map(str, same[:3]))}" if len(same) > 1 else f"row {first}"
    return f"{rows}: {reasons[first]}"


def _set_threads(threads: int) -> None:
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)

"""EPIG of one unit, from what is stored of it."""

from __future__ import annotations

import io
import time
import uuid
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from raystream.acquisition import class_weighted, epig, epig_targets
from raystream.errors import PoolError
from raystream.scoring.class_labels import weights_by_class
from raystream.scoring.job import UnitTask
from raystream.scoring.output_kinds import EPIG
from raystream.store.protocol import Store
from raystream.store.receipts import Receipt, read_receipt, unit_folder
from raystream.store.vectors import VectorFiles


def score_epig(store: Store, task: UnitTask) -> Receipt:
    """Compute EPIG of one unit from its stored samples, a block of them at a time; the receipt isn't committed yet."""
    assert task.samples is not None  # they come together
    assert task.targets is not None
    started = time.perf_counter()
    [output] = task.outputs
    samples = read_receipt(store, task.key, task.samples)
    if samples is None or samples.file is None or samples.members is None:
        raise PoolError(f"{task.unit.name}: its scored outputs are no longer in the store; run the query again")
    targets = epig_targets(torch.from_numpy(np.load(io.BytesIO(store.read(task.targets)))))
    scores = []
    for part in VectorFiles(store).parts(samples.file, samples.rows):
        log_probs = torch.from_numpy(part.array.reshape(part.rows, samples.members, -1))
        found = epig(log_probs, targets)
        if output["class_weights"] is not None:
            mean = log_probs.double().logsumexp(dim=1)  # but for a constant
            found = class_weighted(found, mean, weights_by_class(output["class_weights"], mean.shape[1], samples.class_labels))
        scores.append(found.float().numpy())
        del log_probs
        part.release()
    name = f"{unit_folder(task.key)}/{output.name}-{uuid.uuid4().hex[:12]}.parquet"
    with store.writing(name) as file:
        pq.write_table(pa.table({EPIG: np.concatenate(scores)}), file, use_dictionary=False, compression="none", write_statistics=False)
    seconds = time.perf_counter() - started
    return replace(
        samples,
        output=output.name,
        file=store.stored(name),
        columns=(EPIG,),
        width=None,
        quarantined=0,
        quarantine_reasons=(),
        quarantine=None,
        bytes_read=0,
        seconds=seconds,
    )

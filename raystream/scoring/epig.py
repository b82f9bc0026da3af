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
from raystream.scoring.asked import Asked
from raystream.scoring.further_scores import class_weights
from raystream.scoring.job import Task
from raystream.store.protocol import Store
from raystream.store.receipts import Receipt, read_receipt, unit_folder
from raystream.store.vectors import VectorFiles


def score_epig(store: Store, task: Task, asked: Asked) -> Receipt:
    """EPIG of one unit from its stored samples, a block of them at a time; the receipt isn't committed yet."""
    assert task.epig is not None
    started = time.perf_counter()
    unit = read_receipt(store, task.epig.scored)
    if unit is None or unit.samples is None or unit.members is None:
        raise PoolError(f"{task.unit.name}: its scored outputs are no longer in the store; run the query again")
    targets = epig_targets(torch.from_numpy(np.load(io.BytesIO(store.read(task.epig.targets)))))
    scores = []
    for part in VectorFiles(store).parts(unit.samples, unit.rows):
        log_probs = torch.from_numpy(part.array.reshape(part.rows, unit.members, -1))
        found = epig(log_probs, targets)
        if asked.class_weights is not None:
            mean = log_probs.double().logsumexp(dim=1)  # but for a constant
            found = class_weighted(found, mean, class_weights(asked, mean.shape[1]))
        scores.append(found.float().numpy())
        del log_probs
        part.release()
    name = f"{unit_folder(task.key)}/scores-{uuid.uuid4().hex[:12]}.parquet"
    with store.writing(name) as file:
        pq.write_table(pa.table({"epig": np.concatenate(scores)}), file, use_dictionary=False, compression="none", write_statistics=False)
    return replace(
        unit,
        key=task.key,
        scores=store.stored(name),
        embeddings=None,
        probabilities=None,
        samples=None,
        quarantined=0,
        quarantine_reasons=(),
        bytes_read=0,
        seconds=time.perf_counter() - started,
    )

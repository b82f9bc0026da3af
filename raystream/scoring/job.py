"""What a worker is told: once for the whole run, and once for each unit."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field

from raystream.lake import LOCAL, Storage
from raystream.pool import ReadSpec, Unit
from raystream.query import Model
from raystream.scoring.asked import Asked
from raystream.scoring.score_reduction import Reduction


@dataclass(frozen=True)
class Job:
    """Everything that all units of a run share; small, and travels to each worker once.

    `logits` says that the log-probabilities of the logits are stored as if they were the only sample.
    `token` is a file of the store that the driver wrote: a worker that can't read it doesn't see the same store. `storage` says
    how to reach the model's files where they are remote, `store_storage` the same of the store. `first` are the units whose first rows
    the model is probed with: the pool's first, for all workers.
    """

    model: Model
    fingerprint: str
    read: ReadSpec
    store: str
    token: str
    embedding: bool
    probabilities: bool
    samples: bool
    mc_samples: int
    seed: int
    threads: int
    skip_bad_rows: bool
    import_paths: tuple[str, ...]
    logits: bool = False
    asked: Asked = field(default_factory=Asked)
    reduction: Reduction | None = None
    storage: Storage = LOCAL
    store_storage: Storage = LOCAL
    first: tuple[Unit, ...] = ()


@dataclass(frozen=True)
class EpigTask:
    """What epig is computed from: the key of the unit as it was scored, with samples, and the targets' samples, a file of the store."""

    scored: str
    targets: str


@dataclass(frozen=True)
class Task:
    """One unit to score and the key to keep it under; with `epig`, from what is stored of it."""

    unit: Unit
    key: str
    epig: EpigTask | None = None


def importable_folders() -> tuple[str, ...]:
    """The folders that this process imports from; workers add those of them that they see too."""
    return tuple(os.path.abspath(path) for path in sys.path if os.path.isdir(path or "."))

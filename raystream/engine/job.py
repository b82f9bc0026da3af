"""What a worker is told: once for the whole run, and once for each unit."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from raystream.lake import LOCAL, Storage
from raystream.pool import ReadSpec, Unit
from raystream.query import Model


@dataclass(frozen=True)
class Job:
    """Everything that all units of a run share; small, and travels to each worker once.

    `token` is a file of the store that the driver wrote: a worker that can't read it doesn't see the same store. `storage` says
    how to reach the model's files where they are remote, `store_storage` the same of the store.
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
    storage: Storage = LOCAL
    store_storage: Storage = LOCAL


@dataclass(frozen=True)
class Task:
    """One unit to score and the key to keep it under."""

    unit: Unit
    key: str


def importable_folders() -> tuple[str, ...]:
    """The folders that this process imports from; workers add those of them that they see too."""
    return tuple(os.path.abspath(path) for path in sys.path if os.path.isdir(path or "."))

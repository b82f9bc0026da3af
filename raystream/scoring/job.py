"""The orders that a worker is given: once for the whole run, and once for each unit."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import NamedTuple

from raystream.lake import LOCAL, Storage
from raystream.pool import ReadSpec, Unit
from raystream.query import Model
from raystream.scoring.output_kinds import Output
from raystream.scoring.score_reduction import Reduction


@dataclass(frozen=True)
class ScoringJob:
    """Everything that all units of a run share; small, and travels to each worker once.

    Attributes:
        max_quarantined: under `skip_bad_rows`, the share of units that may have no outputs in the end.
        outputs: all that units may be asked for, so what the model must be able to give.
        token: a file of the store that the driver wrote: a worker that can't read it doesn't see the same store.
        storage: how to reach the model's files where they are remote; `store_storage` the same of the store.
        first: the units whose first rows the model is probed with: the pool's first, for all workers.
    """

    model: Model
    fingerprint: str
    read: ReadSpec
    store: str
    outputs: tuple[Output, ...]
    mc_samples: int
    seed: int
    threads: int
    skip_bad_rows: bool
    max_quarantined: float
    import_paths: tuple[str, ...]
    reduction: Reduction | None = None
    storage: Storage = LOCAL
    store_storage: Storage = LOCAL
    first: tuple[Unit, ...] = ()
    token: str = ""

    def asks_for(self, kind: str) -> Output | None:
        """Return the output of that kind, if units may be asked for it."""
        return next((output for output in self.outputs if output.kind == kind), None)


class UnitTask(NamedTuple):
    """Outputs of one unit to be computed and kept under its key.

    `samples` and `targets` are set for EPIG alone, which comes from what is stored: the unit's samples as an output, and a file of the
    store with those of the targets.
    """

    unit: Unit
    key: str
    outputs: tuple[Output, ...]
    samples: str | None = None
    targets: str | None = None


def importable_folders() -> tuple[str, ...]:
    """List the folders that this process imports from; workers add those of them that they see too."""
    return tuple(os.path.abspath(path) for path in sys.path if os.path.isdir(path or "."))

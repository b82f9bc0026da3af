"""Rows that a table has deleted although its files still hold them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Deletes:
    """The deleted rows of one file, or of a run of its rows.

    Two are equal when they belong to equal deletes of the whole file: what a unit carries of them is no part of its identity.

    Attributes:
        digest: of all deleted positions of the file.
        positions: (n,) int64, sorted, each once; positions in the file.
    """

    digest: str
    positions: Positions = field(compare=False, repr=False)

    @classmethod
    def of(cls, parts: Sequence[npt.ArrayLike]) -> Deletes | None:
        """The union of several lists of positions, in any order; None if nothing is deleted."""
        positions = np.unique(np.concatenate([np.asarray(part, dtype=np.int64) for part in parts] or [np.empty(0, np.int64)]))
        return cls(hashlib.sha256(positions.astype("<i8").tobytes()).hexdigest()[:16], positions) if len(positions) else None

    def within(self, low: int, high: int) -> Deletes:
        """Those from position `low` up to, but not including, `high`."""
        first, end = np.searchsorted(self.positions, [low, high])
        return Deletes(self.digest, self.positions[first:end].copy())

    def count(self, low: int, high: int) -> int:
        """How many of these positions are deleted, `high` not included."""
        first, end = np.searchsorted(self.positions, [low, high])
        return int(end - first)

    def kept(self, first: int, rows: int) -> Positions:
        """Offsets of the rows that are left among `rows` rows from position `first` on."""
        keep = np.ones(rows, dtype=bool)
        keep[self.within(first, first + rows).positions - first] = False
        return np.flatnonzero(keep)

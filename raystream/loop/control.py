"""Rows that are set apart by hash to judge models by, and how far a share of them is to be trusted.

Control rows are reserved before round 1, labelled with the batches, and never trained on while they serve. A model trained without them is
judged by them as by any sample drawn at random: a plain mean with Wilson's interval. No other estimate from the labels of a loop
was found to be unbiased.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raystream.selection.hashing import draw
from raystream.selection.strategies.ranking import lowest

Rows = npt.NDArray[np.int64]

SAMPLE_ROWS = 1000
"""Of the pool, on which successive models are compared."""


@dataclass(frozen=True)
class Share:
    """So many rows of so many, such as those that a model gets right."""

    right: int
    of: int

    @property
    def value(self) -> float:
        """As a number from 0 to 1; nan of no rows."""
        return self.right / self.of if self.of else math.nan

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Compute the interval of `wilson`."""
        return wilson(self.right, self.of, z)

    def __add__(self, other: Share) -> Share:
        return Share(self.right + other.right, self.of + other.of)


def wilson(right: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """Compute Wilson's score interval (1927) of a share: (low, high), from 0 to 1 where there are no rows.

    Args:
        right: rows that count.
        of: rows in all.
        z: the normal quantile; 1.96 covers 95%.
    """
    if not of:
        return 0.0, 1.0
    share, spread = right / of, z * z / of
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / of + spread / (4 * of))
    # the ends are 0 and 1 exactly where no row counts, or all do; rounding must not say otherwise
    return (0.0 if right == 0 else max(0.0, middle - half)), (1.0 if right == of else min(1.0, middle + half))


def control_rows(keys: npt.NDArray[np.uint64], count: int) -> Rows:
    """Return the control rows of a pool in the order in which they are asked for: its first by hash.

    Args:
        keys: (n,) of `raystream.selection.row_hash`, of the whole pool: what is labelled, chosen or filtered makes no difference.
        count: how many; all n when there are fewer. More of them begin with the same rows.
    """
    return lowest(draw(keys, "control"), count)


def sample_rows(keys: npt.NDArray[np.uint64], count: int = SAMPLE_ROWS) -> Rows:
    """Return the rows of a pool on which successive models are compared, the same ones always, in row order."""
    return np.sort(lowest(draw(keys, "stopping"), count))


def controls_in(batch: int, control: float) -> int:
    """Count how many rows of a batch are control rows, given the share that they are of it."""
    return round(control * batch)

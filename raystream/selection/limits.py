"""What a batch may be limited by beyond its size, as data: quotas and costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raystream.selection.rows import Array


@dataclass(frozen=True)
class Quota:
    """Caps and floors by one column.

    Attributes:
        by: the column's name.
        group: (n,) int32, the group of each candidate; -1 belongs to none.
        names: of the groups.
        most: (g,) int64, how many rows of each group may be chosen.
        least: (g,) int64, how many must be.
    """

    by: str
    group: Array
    names: Sequence[str]
    most: Array
    least: Array


@dataclass(frozen=True)
class Cost:
    """`column` (n,) float64, at least 0, costs of the candidates, which may add up to `budget`."""

    name: str
    column: Array
    budget: float

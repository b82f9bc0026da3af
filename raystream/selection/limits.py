"""What a batch may be limited by beyond its size, as data: quotas and costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from raystream.arrays import plain
from raystream.errors import DataError, QueryError
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

    @classmethod
    def of(cls, values: ArrayLike, *, value: object = None, max: int | None = None, min: int | None = None, by: str = "group") -> Quota:
        """A cap, a floor or both for the rows of each group, or of one.

        Args:
            values: (n,) each row's group: numbers or strings; None and nan belong to none.
            value: the group that is meant; left out, each of them.
            max: how many rows of the group may be chosen.
            min: how many must be.
            by: what errors call the values.
        """
        groups = plain(values, "values")
        if groups.ndim != 1:
            raise DataError(f"`values` has shape {groups.shape}, expected a group for each row")
        if max is None and min is None:
            raise QueryError(f"the quota by {by} has neither `max` nor `min`; give one")
        if (max is not None and max < 0) or (min is not None and min < 0) or (max is not None and min is not None and min > max):
            raise QueryError(f"the quota by {by} has `min` {min} and `max` {max}, expected numbers of at least 0, `min` not above `max`")
        known, group = _grouped(groups)
        if value is not None and value not in known:
            known.append(value)  # a group that no row is in
        known = known or [None]
        asked = np.asarray([value is None or value == one for one in known])
        most = np.where(asked & (max is not None), max or 0, len(groups))
        least = np.where(asked & (min is not None), min or 0, 0)
        return cls(by, group, [str(one) for one in known], most.astype(np.int64), least.astype(np.int64))


def _grouped(values: Array) -> tuple[list[Any], Array]:
    """The groups in order of first appearance, and (n,) int32 which each row is in, -1 for none."""
    number: dict[Any, int] = {}
    group = np.empty(len(values), dtype=np.int32)
    for row, value in enumerate(values.tolist()):
        group[row] = -1 if value is None or value != value else number.setdefault(value, len(number))
    return list(number), group


@dataclass(frozen=True)
class Cost:
    """`column` (n,) float64, at least 0, costs of the candidates, which may add up to `budget`."""

    name: str
    column: Array
    budget: float

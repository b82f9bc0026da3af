"""Columns of the pool for some of its scored rows: kept ones, and those of quotas and costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raystream.errors import PoolError, QueryError
from raystream.pool import read_columns_at
from raystream.pool.columns import readable
from raystream.query import Select
from raystream.scoring.scored_pool import ScoredPool
from raystream.selection import Cost, Quota

PREDICTION = "prediction"
"""In a quota's `by`: the predicted class instead of a column."""


@dataclass(frozen=True)
class PoolColumns:
    """What is read of a pool's own files for some of its scored rows.

    Attributes:
        pool: the scored rows.
        schema: the columns that may be read, with their types, as `PoolPlan.keep_schema`.
        classes: the names of the predicted classes, if they have any.
    """

    pool: ScoredPool
    schema: pa.Schema
    classes: list[str] | None

    def read(self, rows: np.ndarray, names: Sequence[str]) -> pa.Table:
        """These columns, one row for each of `rows`, in their order."""
        return read_columns_at(self.pool.places(rows), pa.schema([field for field in self.schema if field.name in names]))

    def quotas(self, select: Select, rows: np.ndarray) -> list[Quota]:
        """The query's quotas over these rows of the pool, one for each column that they go by."""
        columns = list(dict.fromkeys(quota.by for quota in select.quotas))
        stored = [name for name in columns if name != PREDICTION]
        table = self.read(rows, stored) if stored else None
        result = []
        for name in columns:
            if name == PREDICTION or table is None:
                values = self.pool.columns_at(rows, [PREDICTION]).column(0)
                if self.classes is not None:
                    values = pa.array(self.classes, pa.string()).take(values.combine_chunks())
            else:
                values = table.column(name)
            result.append(_quota(select, name, values, select.budget))
        return result

    def cost(self, select: Select, rows: np.ndarray) -> Cost | None:
        """What these rows cost; None if the query has no cost."""
        cost = select.cost
        if cost is None:
            return None
        column = self.read(rows, [cost.column]).column(cost.column)
        try:
            values = column.cast(pa.float64()).to_numpy()
        except pa.ArrowException:
            raise PoolError(f"select.cost.column {cost.column} is {column.type}, expected numbers; name another column") from None
        bad = np.flatnonzero(~np.isfinite(values) | (values < 0))
        if len(bad):
            ids = self.pool.ids_at(rows[bad[:3]]).to_pylist()
            raise PoolError(
                f"select.cost.column {cost.column} is null, negative or not finite for {len(bad)} candidates, "
                f"first with ids {', '.join(map(str, ids))}; expected costs of at least 0"
            )
        return Cost(cost.column, values, cost.budget)


def _spelt(value: str, type_: pa.DataType) -> str:
    """A value as the groups of a column of this type are called: `1` of doubles is `1.0`; itself where it is none of theirs."""
    try:
        return str(readable(pa.array([value]).cast(type_))[0])
    except pa.ArrowException:
        return value


def _quota(select: Select, by: str, values: pa.ChunkedArray | pa.Array, budget: int) -> Quota:
    column = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    try:
        encoded = column.dictionary_encode()
    except pa.ArrowNotImplementedError:
        raise PoolError(
            f"select.quotas go by {by}, which is {column.type}; expected text, numbers or dates, so name another column"
        ) from None
    group = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int32)
    names = [str(value) for value in readable(encoded.dictionary)]
    asked = [quota for quota in select.quotas if quota.by == by]
    spelt: dict[str, str] = {}
    for wanted in dict.fromkeys(str(quota.value) for quota in asked if quota.value is not None):
        meant = _spelt(wanted, encoded.dictionary.type)
        if spelt.setdefault(meant, wanted) != wanted:
            raise QueryError(f"select.quotas name one group of {by} as {spelt[meant]} and as {wanted}; spell it alike")
        if wanted not in names and meant in names:
            names[names.index(meant)] = wanted
        elif wanted not in names:
            names.append(wanted)  # a group that no row is in
    names = names or ["null"]
    most, least = np.full(len(names), budget, dtype=np.int64), np.zeros(len(names), dtype=np.int64)
    for quota in sorted(asked, key=lambda quota: quota.value is not None):
        where = slice(None) if quota.value is None else slice(names.index(str(quota.value)), names.index(str(quota.value)) + 1)
        if quota.max is not None:
            most[where] = quota.max
        if quota.min is not None:
            least[where] = quota.min
    return Quota(by, group, names, most, least)

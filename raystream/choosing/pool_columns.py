"""Columns of the pool for some of its scored rows: kept ones, and those of quotas and costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raystream.choosing.scored_pool import ScoredPool
from raystream.errors import PoolError, QueryError
from raystream.pool import Places, read_columns_at
from raystream.pool.columns import readable
from raystream.query import Select
from raystream.scoring.plan import Prepared, places_in
from raystream.selection import Cost, Quota

PREDICTION = "prediction"
"""In a quota's `by`: the predicted class instead of a column."""


def places_of(prepared: Prepared, pool: ScoredPool, rows: np.ndarray) -> Places:
    """The file of each row of the scored pool, and its row in it."""
    return places_in(prepared, pool.receipts, pool.unit_of(rows), pool.columns_at(rows, ["row"]).column("row").to_numpy())




def pool_columns(prepared: Prepared, pool: ScoredPool, rows: np.ndarray, names: Sequence[str]) -> pa.Table:
    """Columns of the pool's files, one row for each of `rows`, in their order."""
    schema = pa.schema([field for field in prepared.pool.keep_schema if field.name in names])
    return read_columns_at(places_of(prepared, pool, rows), schema)


def read_quotas(prepared: Prepared, pool: ScoredPool, rows: np.ndarray, budget: int) -> list[Quota]:
    """The query's quotas over these rows of the pool, one for each column that they go by."""
    select = prepared.query.select
    columns = list(dict.fromkeys(quota.by for quota in select.quotas))
    stored = [name for name in columns if name != PREDICTION]
    table = pool_columns(prepared, pool, rows, stored) if stored else None
    result = []
    for name in columns:
        if name == PREDICTION or table is None:
            values = pool.columns_at(rows, [PREDICTION]).column(0)
            if prepared.classes is not None:
                values = pa.array(prepared.classes, pa.string()).take(values.combine_chunks())
        else:
            values = table.column(name)
        result.append(_quota(select, name, values, budget))
    return result


def read_cost(prepared: Prepared, pool: ScoredPool, rows: np.ndarray) -> Cost | None:
    """What these rows cost; None if the query has no cost."""
    cost = prepared.query.select.cost
    if cost is None:
        return None
    column = pool_columns(prepared, pool, rows, [cost.column]).column(cost.column)
    try:
        values = column.cast(pa.float64()).to_numpy()
    except pa.ArrowException:
        raise PoolError(f"select.cost.column {cost.column} is {column.type}, expected numbers; name another column") from None
    bad = np.flatnonzero(~np.isfinite(values) | (values < 0))
    if len(bad):
        ids = pool.ids_at(rows[bad[:3]]).to_pylist()
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

"""A query's quotas and costs: their columns of the pool, how a batch met them, and why there is none.

Kept columns are read the same way: by the positions of the rows that need them. Errors and notes of `selection`, which speak of
arguments (`k`), are put into the words of a query (`select.budget`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raystream.errors import PoolError, QueryError, RaystreamError
from raystream.figures import shown
from raystream.pool import read_columns_at
from raystream.pool.columns import readable
from raystream.query import Select
from raystream.query.catalogue import TRAITS
from raystream.scoring.scored_pool import ScoredPool
from raystream.selection import Chosen, Cost, Quota

PREDICTION = "prediction"
"""In a quota's `by`: the predicted class instead of a column."""


@dataclass(frozen=True)
class PoolColumns:
    """The columns of a pool's own files, read for some of its scored rows.

    Attributes:
        pool: the scored rows.
        schema: the columns that may be read, with their types, as `PoolPlan.keep_schema`.
        classes: the names of the predicted classes, if they have any.
    """

    pool: ScoredPool
    schema: pa.Schema
    classes: list[str] | None

    def read(self, rows: np.ndarray, names: Sequence[str]) -> pa.Table:
        """Read these columns, one row for each of `rows`, in their order."""
        return read_columns_at(self.pool.places(rows), pa.schema([field for field in self.schema if field.name in names]))

    def quotas(self, select: Select, rows: np.ndarray) -> list[Quota]:
        """Make the query's quotas over these rows of the pool, one for each column that they go by."""
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
            result.append(quota_of(select, name, values, select.budget))
        return result

    def cost(self, select: Select, rows: np.ndarray) -> Cost | None:
        """Read what these rows cost; None if the query has no cost."""
        cost = select.cost
        if cost is None:
            return None
        values = as_costs(cost.column, self.read(rows, [cost.column]).column(cost.column))
        bad = np.flatnonzero(~np.isfinite(values) | (values < 0))
        if len(bad):
            ids = self.pool.ids_at(rows[bad[:3]]).to_pylist()
            raise PoolError(
                f"select.cost.column {cost.column} is null, negative or not finite for {len(bad)} candidates, "
                f"first with ids {', '.join(map(shown, ids))}; expected costs of at least 0"
            )
        return Cost(cost.column, values, cost.budget)


def as_costs(name: str, column: pa.ChunkedArray) -> np.ndarray:
    """Return the values of the column of costs as (n,) float64, whatever they are; nan where they are null."""
    try:
        values: np.ndarray = column.cast(pa.float64()).to_numpy()
    except pa.ArrowException:
        raise PoolError(f"select.cost.column {name} is {column.type}, expected numbers; name another column") from None
    return values


def _spelt(value: str, type_: pa.DataType) -> str:
    """Write a value as the groups of a column of this type are called: `1` of doubles is `1.0`; itself where it is none of theirs."""
    try:
        return str(readable(pa.array([value]).cast(type_))[0])
    except pa.ArrowException:
        return value


def quota_of(select: Select, by: str, values: pa.ChunkedArray | pa.Array, budget: int) -> Quota:
    """Make the query's quota by a column, over rows with these values."""
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


_KEYS = {
    **{name: f"select.args.{name}" for traits in TRAITS.values() for name in traits.args},
    **{name: f"select.{name}" for name in Select.model_fields},
    "k": "select.budget",
    "score": "acquire.score",
    "x": "model.embedding",
    "probabilities": "probabilities",
    "labelled": "pool.labelled",
    "labelled_probabilities": "class probabilities of labelled rows",
    "log_probs": "acquire.mc_samples, or several model.weights",
}
"""What each argument is in a query."""


def in_query(text: str) -> str:
    """Return the text with the keys of a query in place of the names of arguments, which stand between backticks."""
    return re.sub(r"`([a-z_]+)((?:\.[a-z_]+)*)`", lambda match: _KEYS[match[1]] + match[2] if match[1] in _KEYS else match[0], text)


@contextmanager
def words_of_query() -> Iterator[None]:
    """Let errors that are raised within speak of the query's keys."""
    try:
        yield
    except RaystreamError as error:
        raise type(error)(in_query(str(error))) from error


@dataclass(frozen=True)
class BatchLimits:
    """The quotas and the cost of a query's candidates."""

    quotas: Sequence[Quota]
    cost: Cost | None


def read_limits(select: Select, columns: PoolColumns, rows: np.ndarray | None) -> BatchLimits:
    """Read what the query's quotas and costs go by for these rows of the pool; for all rows for None."""
    if not select.quotas and select.cost is None:
        return BatchLimits([], None)
    if rows is None:
        rows = np.arange(len(columns.pool))
    quotas = columns.quotas(select, rows) if select.quotas else []
    return BatchLimits(quotas, columns.cost(select, rows))


def how_met(select: Select, limits: BatchLimits, chosen: Chosen, must: int) -> dict[str, float | int | str]:
    """Return facts for the manifest, none for a query without constraints.

    `cost`: what the batch costs. `quota BY=VALUE`: rows of the group in the batch; for quotas of all groups of a column
    `quota BY fullest` where there is a max and `quota BY emptiest` where there is a min. `must_include`, of which there are
    `must`, and `random_share`: rows of theirs; some may be of both.
    """
    facts: dict[str, float | int | str] = {}
    if limits.cost is not None:
        facts["cost"] = float(limits.cost.column[chosen.rows].sum())
    by = {quota.by: quota for quota in limits.quotas}
    for asked in select.quotas:
        quota = by[asked.by]
        group = quota.group[chosen.rows]
        counts = np.bincount(group[group >= 0], minlength=len(quota.names))
        if asked.value is not None:
            facts[f"quota {asked.by}={asked.value}"] = int(counts[list(quota.names).index(str(asked.value))])
            continue
        if asked.max is not None:
            facts[f"quota {asked.by} fullest"] = int(counts.max(initial=0))
        if asked.min is not None:
            facts[f"quota {asked.by} emptiest"] = int(counts.min(initial=len(group)))
    given = {"must_include": must, "random_share": chosen.why.count("random_share")}
    return facts | {key: count for key, count in given.items() if getattr(select, key)}


def exceeded(limits: BatchLimits, chosen: Chosen) -> list[str]:
    """Warn of limits that rows which had to be in the batch, or were drawn at random, go beyond."""
    found = []
    keys = " and ".join(f"select.{key}" for key in ("must_include", "random_share") if key in chosen.why)
    if limits.cost is not None and (spent := float(limits.cost.column[chosen.rows].sum())) > limits.cost.budget * (1 + 1e-9):
        budget = f"select.cost.budget {limits.cost.budget:g}"
        found.append(f"the batch costs {spent:g}, above {budget}, since rows of {keys} are in it whatever they cost")
    for quota in limits.quotas:
        group = quota.group[chosen.rows]
        counts = np.bincount(group[group >= 0], minlength=len(quota.names))
        over = counts - quota.most
        if over.max(initial=0) > 0:
            i = int(over.argmax())
            found.append(
                f"{counts[i]} rows have {quota.by} {shown(quota.names[i])}, above the {quota.most[i]} that select.quotas allow, since "
                f"rows of {keys} are in the batch whatever their groups"
            )
    return found


def refuse_empty(select: Select, limits: BatchLimits, chosen: Chosen, candidates: int, limited: bool) -> None:
    """Raise QueryError if the query's own numbers shut all candidates out.

    A pool of which all is labelled, or all like what is labelled, has an empty batch, with the reason.
    """
    keys = {obstacle.key for obstacle in chosen.obstacles}
    wider = " or raise select.candidates" if limited else ""
    if keys == {"cost"} and limits.cost is not None:
        cheapest = float(limits.cost.column.min())
        raise QueryError(
            f"no row can be chosen: the cheapest of {candidates} candidates costs {cheapest:g} by column {limits.cost.name}, but "
            f"select.cost.budget is {limits.cost.budget:g}; raise it{wider}"
        )
    if keys - {"near_duplicates"}:
        reason = in_query(chosen.note or "").removesuffix("; raise select.candidates").replace("other ", "")
        advice = f"relax {' or '.join(f'select.{key}' for key in sorted(keys))}{wider}"
        raise QueryError(f"no row can be chosen: {reason}; {advice}")

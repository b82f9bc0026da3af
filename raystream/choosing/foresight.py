"""What can be refused before anything is scored: by the pool's ids, and the columns of quotas and costs. No input column is read.

What is refused here would be refused after the scoring, too; under `on_error: skip` rows that are left out may change that, so there it
is only said. A pool of which every unit is scored is looked at when it is chosen from.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from raystream.choosing.candidates import find_named
from raystream.choosing.constraints import PREDICTION, as_costs, quota_of, words_of_query
from raystream.choosing.labelled import carry_inputs, none_in_the_pool
from raystream.errors import QueryError, RaystreamError, StoreError
from raystream.figures import in_bytes, number_of
from raystream.lake import is_remote
from raystream.lake.retry import LASTING
from raystream.pool import LabelledMarks, OutageError, check_unique, locate_labelled, read_columns_at
from raystream.pool.reader import UnscoredRows, read_unscored
from raystream.query import Select
from raystream.scoring.plan import ResolvedQuery, ScoringPlan
from raystream.selection import Constraints
from raystream.store.packs import unbroken
from raystream.store.receipts import EMBEDDINGS

_SHOWN = 3
_ROW_BYTES = 24
"""Of a row's scores, what no compression takes away: six float32 columns."""


def foresee(asked: ResolvedQuery, plan: ScoringPlan, *, chooses: bool = True) -> list[str]:
    """Refuse a query that can't end well, before anything is scored.

    Args:
        asked: the query.
        plan: its units; if none is missing, there is nothing to foresee.
        chooses: whether a batch is to be chosen.

    Returns:
        Sentences for the user, of what isn't refused.

    Raises:
        QueryError: what it asks of the batch can't be met.
        PoolError: ids are null or not unique.
        LabelsError: no labelled id is a row of the pool.
        StoreError: the store's disk has no room for what is written at least.
    """
    if not plan.missing:
        return []
    check_room(asked, plan)
    if asked.query.pool.id is None:
        return []
    here = not any(is_remote(file.path) for file in plan.units.files)  # else each request has waited by itself
    rows = unbroken(
        asked.store,
        lambda: read_unscored(plan.units, asked.pool.read),
        LASTING,
        lambda error: here and isinstance(error, OutageError),
        "the storage of the pool",
    )
    said: list[str] = []
    checks: list[Callable[[], str | None]] = [lambda: check_unique(rows.ids, rows.id_name, rows.place)]
    checks.append(lambda: _check_labelled(asked, rows))
    if chooses:
        checks.append(lambda: _check_batch(asked, rows))
    for check in checks:
        try:
            told = check()
        except RaystreamError as error:
            if asked.query.on_error == "fail":
                raise
            told = f"{error}; unless the rows that on_error: skip leaves out change it, this ends the query once it is scored"
        if told:
            said.append(told)
    return said


def check_room(asked: ResolvedQuery, plan: ScoringPlan, width: int | None = None) -> None:
    """Refuse a disk that is too small for what is certainly written.

    Args:
        asked: the query.
        plan: its units.
        width: of the embeddings; left out, that of units that are scored already.

    Raises:
        StoreError: the store's disk has less room.
    """
    free = asked.store.free_bytes
    if free is None:
        return
    if width is None:
        tables = [table for table in plan.found if table.kind == EMBEDDINGS and table.there.any()]
        known = [table.at(int(np.flatnonzero(table.there)[0])) for table in tables]
        width = next((receipt.width for receipt in known if receipt is not None), None)
    item = 2 if asked.query.model.embedding_dtype == "float16" else 4
    places = plan.to_compute
    rows = int(plan.units.rows[places[~plan.units.filtered[places]]].sum())  # of others, nobody knows how many pass
    embeddings = item * (width or 0) if asked.query.needs_embedding else 0
    least = rows * (_ROW_BYTES + embeddings)
    if least > free:
        raise StoreError(
            f"store {asked.store.uri} has {in_bytes(free)} of room, but scoring {number_of(rows, 'row')} writes at least "
            f"{in_bytes(least)}; free some, or set another store.uri"
        )


def _check_labelled(asked: ResolvedQuery, rows: UnscoredRows) -> None:
    """Refuse labels of which none is a row of the pool."""
    labelled = asked.labelled
    if labelled is None or rows.missing or asked.pool.unreadable or not len(rows) or not (len(labelled.every) or labelled.outside):
        return
    if carry_inputs(asked, labelled):
        return  # they are scored where they stand
    every = labelled.every
    if LabelledMarks.of(every, rows.ids).labelled.any() or locate_labelled(asked.pool, every)[0]:
        return
    raise none_in_the_pool(asked, labelled, rows.ids_at(np.arange(min(_SHOWN, len(rows)))))


def _check_batch(asked: ResolvedQuery, rows: UnscoredRows) -> str | None:
    """Refuse a batch that can't be chosen; what is said of one that will be small."""
    query, labelled = asked.query, asked.labelled
    done = np.zeros(len(rows), bool) if labelled is None else LabelledMarks.of(labelled.every, rows.ids).labelled
    named = find_named(query.select, rows.ids, done)
    free = ~done
    free[named.exclude] = False
    eligible = np.flatnonzero(free)
    _check_limits(query.select, rows, asked.pool.keep_schema, eligible)
    if len(eligible) >= query.select.budget or rows.missing or not len(rows):
        return None  # that there are no rows at all is said when they are chosen from
    why = [f"{count:,} are {what}" for count, what in ((int(done.sum()), "labelled"), (len(named.exclude), "in select.exclude")) if count]
    reason = f", since {' and '.join(why)}" if why else ""
    return f"select.budget is {query.select.budget:,}, but {len(eligible):,} of {number_of(len(rows), 'row')} are eligible{reason}"


def _check_limits(select: Select, rows: UnscoredRows, schema: pa.Schema, eligible: np.ndarray) -> None:
    """Refuse minimums that the pool can't meet, and costs above the budget."""
    floors = [quota for quota in select.quotas if quota.by != PREDICTION and quota.min is not None]
    names = list(dict.fromkeys(quota.by for quota in floors))
    if not len(eligible) or (not floors and select.cost is None):
        return
    wanted = {*names, *([select.cost.column] if select.cost else [])}
    table = read_columns_at(rows.places(eligible), pa.schema([field for field in schema if field.name in wanted]))
    asked = select.derived(quotas=floors)
    quotas = [quota_of(asked, name, table.column(name), select.budget) for name in names]
    with words_of_query():
        Constraints(select.budget, quotas=quotas)
    if select.cost is None or select.must_include or round(select.random_share * select.budget):
        return  # what must be in the batch is, whatever it costs, and what is drawn at random
    costs = as_costs(select.cost.column, table.column(select.cost.column))
    costs = np.where(np.isfinite(costs) & (costs >= 0), costs, np.inf)  # what is wrong with candidates is said when they are known
    budget = select.cost.budget * (1 + 1e-9)
    if np.isfinite(cheapest := float(costs.min())) and cheapest > budget:
        raise QueryError(
            f"no row can be chosen: the cheapest of {number_of(len(eligible), 'eligible row')} costs {cheapest:g} by column "
            f"{select.cost.column}, but select.cost.budget is {select.cost.budget:g}; raise it"
        )
    for quota in quotas:
        groups = np.flatnonzero(quota.least)
        price = sum(float(np.sort(costs[quota.group == group])[: quota.least[group]].sum()) for group in groups)
        if np.isfinite(price) and price > budget:
            raise QueryError(
                f"select.quotas by {quota.by} ask for {number_of(int(quota.least.sum()), 'row')}, of which the cheapest cost {price:g} by "
                f"column {select.cost.column}, but select.cost.budget is {select.cost.budget:g}; lower min or raise it"
            )



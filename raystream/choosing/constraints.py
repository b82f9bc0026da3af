"""How a batch met its constraints, and why there is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raystream.choosing.pool_columns import PoolColumns
from raystream.choosing.wording import in_query
from raystream.errors import QueryError
from raystream.query import Select
from raystream.selection import Chosen, Cost, Quota


@dataclass(frozen=True)
class Limits:
    """The quotas and the cost of a query's candidates."""

    quotas: Sequence[Quota]
    cost: Cost | None


def read_limits(select: Select, columns: PoolColumns, rows: np.ndarray | None) -> Limits:
    """Read what the query's quotas and costs go by for these rows of the pool; for all rows for None."""
    if not select.quotas and select.cost is None:
        return Limits([], None)
    if rows is None:
        rows = np.arange(len(columns.pool))
    quotas = columns.quotas(select, rows) if select.quotas else []
    return Limits(quotas, columns.cost(select, rows))


def how_met(select: Select, limits: Limits, chosen: Chosen) -> dict[str, float | int | str]:
    """Facts for the manifest, none for a query without constraints.

    `cost`: what the batch costs. `quota BY=VALUE`: rows of the group in the batch; for quotas of all groups of a column
    `quota BY fullest` where there is a max and `quota BY emptiest` where there is a min. `must_include` and `random_share`: rows of theirs.
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
    given = Counter(chosen.why)
    return facts | {key: given[key] for key in ("must_include", "random_share") if getattr(select, key)}


def exceeded(limits: Limits, chosen: Chosen) -> list[str]:
    """Warnings of limits that rows which had to be in the batch go beyond."""
    found = []
    if limits.cost is not None and (spent := float(limits.cost.column[chosen.rows].sum())) > limits.cost.budget * (1 + 1e-9):
        budget = f"select.cost.budget {limits.cost.budget:g}"
        found.append(f"the batch costs {spent:g}, above {budget}, since select.must_include is in it whatever it costs")
    for quota in limits.quotas:
        group = quota.group[chosen.rows]
        counts = np.bincount(group[group >= 0], minlength=len(quota.names))
        for i in np.flatnonzero(counts > quota.most)[:1]:
            found.append(
                f"{counts[i]} rows have {quota.by} {quota.names[i]}, above the {quota.most[i]} that select.quotas allow, since "
                "select.must_include is in the batch whatever its groups"
            )
    return found


def refuse_empty(select: Select, limits: Limits, chosen: Chosen, candidates: int, limited: bool) -> None:
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

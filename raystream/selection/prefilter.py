"""The rows that are ahead by some order, exact repeats passed over before they are counted: the pre-filter of candidates.

Of a long order only as much is looked at as it takes to find enough distinct rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from raystream.errors import QueryError
from raystream.selection.constraints import Constraints
from raystream.selection.limits import Cost, Quota
from raystream.selection.repeats import as_stored, equal, first_equal, hashes_of, hashes_of_rows
from raystream.selection.rows import Array, Rows
from raystream.selection.set_aside import binds_together, plan_floors
from raystream.selection.strategies.ranking import lowest, walk

Kinds = Callable[[Array], tuple[Array, Array | None]]
"""Rows (m,) int64 -> their groups by each quota, (m, q) int, and what they cost, (m,) float64 or None."""
_COMPARED = 4096
_SPARE = 2
"""Candidates of a group with a floor, for each row that must come from it: near-duplicates and costs may block some."""


@dataclass(frozen=True)
class Ahead:
    """The rows that go through.

    Attributes:
        rows: (b,) int64, in order.
        passed: how many exact repeats before the last of them were passed over.
        others: whether there are rows behind them that may be no repeats.
    """

    rows: Array
    passed: int
    others: bool


First = Callable[[Callable[[int], Array], int, int], Ahead]
"""The order, how many rows there are, how many are to go through -> the first of them; such as `ahead`."""


def ahead(
    order: Callable[[int], Array],
    total: int,
    limit: int,
    *,
    opened: Callable[[Array], Rows],
    covered: Array | None = None,
    kinds: Kinds | None = None,
) -> Ahead:
    """Find the first `limit` distinct rows; where there are fewer, all of them and the first of their repeats.

    A repeat of a row that is ahead goes through as well, uncounted, if it is the first or the cheapest of other groups than that row is in:
    constraints may keep that row out of the batch.

    Args:
        order: how many -> so many rows that come first, int64.
        total: how many rows there are.
        limit: how many rows are to go through.
        opened: ascending rows -> their embeddings.
        covered: (m, d) embeddings of which rows are repeats, too, as stored; may be None.
        kinds: by what constraints tell rows apart; None where there are none.
    """
    looked = _Looked(opened, covered)
    count = min(limit, total)
    while True:
        looked.add(order(count))
        distinct = looked.distinct
        if distinct >= limit or count == total:
            break
        # as many more as it would take if they repeated each other as those before do
        count = min(total, count + int(np.clip(1.1 * (limit - distinct) * count / max(distinct, 1), 64, 4 * count)))
    first = looked.first()
    own = first == np.arange(len(first))
    through = own & (np.cumsum(own) <= limit)
    end = int(np.flatnonzero(through)[-1]) + 1 if own.sum() >= limit and limit else len(own)
    if kinds is not None:
        through[:end] |= _others_in_kind(looked.rows[:end], first[:end], kinds)
    lacking = limit - int(through.sum())
    if lacking > 0:
        through[np.flatnonzero(~through[:end])[:lacking]] = True
    return Ahead(looked.rows[through], end - int(through.sum()), end < total)


def with_floors(
    kept: Array, free: Array, score: Array, quotas: Sequence[Quota], cost: Cost | None, first: First, budget: int
) -> Array:  # fmt: skip
    """Return the rows `kept` by score, and enough of every group with a floor, int64, ascending.

    These are the best of the group by score, and where the batch couldn't pay for them, the cheapest; where these can't meet the floors of
    several columns together, those of combinations of groups that can.

    Args:
        kept: int64, some of the `free` rows.
        free: (n,) int64 rows that may be chosen, ascending.
        score: (n,) of theirs.
        quotas: over the free rows and, behind them, those that are in the batch already.
        cost: of the same rows.
        first: what goes through of an order.
        budget: how many rows the batch may have in all.
    """
    n = len(free)

    def more(by: Sequence[Quota], key: Array) -> Array:
        return np.unique(np.concatenate([kept, *(some for quota in by for some in _of_groups(quota, key, free, first))]))

    kept = more(quotas, -score)
    there = np.arange(n, len(quotas[0].group))
    if cost is not None:
        money = cost.budget - float(cost.column[there].sum())
        if any(_price(quota, cost, np.searchsorted(free, kept), there) > money for quota in quotas):
            kept = more(quotas, cost.column[:n])
    if not binds_together(quotas, budget):
        return kept
    rows = np.concatenate([np.searchsorted(free, kept), there])
    some = [replace(quota, group=quota.group[rows]) for quota in quotas]
    price = None if cost is None else replace(cost, column=cost.column[rows])
    given, order = np.arange(len(kept), len(rows)), lowest(-score[rows[: len(kept)]], len(kept))
    if _best_first_meet(some, price, budget, given, order) or plan_floors(some, price, budget, given) is not None:
        return kept
    plan = plan_floors(quotas, cost, budget, there)
    return kept if plan is None else more([plan.cells], -score if cost is None else cost.column[:n])


def _best_first_meet(quotas: Sequence[Quota], cost: Cost | None, budget: int, given: Array, order: Array) -> bool:
    """Tell whether whoever takes rows in this order meets all floors, which is quicker to see than whether anybody does."""
    try:
        limits = Constraints(budget, quotas=quotas, cost=cost)
        for row in given:
            limits.take(int(row))
        walk(order, limits.left, limits, None)
        limits.check_floors()
    except QueryError:
        return False
    return True


def _of_groups(quota: Quota, key: Array, free: Array, first: First) -> list[Array]:
    """Pick from each group with a floor the `free` rows with the lowest keys."""
    result = []
    for group in np.flatnonzero(quota.least):
        members = np.flatnonzero(quota.group[: len(free)] == group)

        def order(count: int, rows: Array = free[members], keys: Array = key[members]) -> Array:
            ordered: Array = rows[lowest(keys, count)]
            return ordered

        result.append(first(order, len(members), _SPARE * int(quota.least[group])).rows)
    return result


def _price(quota: Quota, cost: Cost, rows: Array, given: Array) -> float:
    """Add up the costs of the cheapest of `rows` that meet every floor beside those `given`."""
    price = 0.0
    for group in np.flatnonzero(quota.least):
        need = max(int(quota.least[group]) - int((quota.group[given] == group).sum()), 0)
        price += float(np.sort(cost.column[rows[quota.group[rows] == group]])[:need].sum())
    return price


class _Looked:
    """The rows that have been looked at, behind those that are covered, and their hashes."""

    def __init__(self, opened: Callable[[Array], Rows], covered: Array | None) -> None:
        self._opened, self._covered = opened, covered
        self.rows = np.empty(0, dtype=np.int64)
        self._hashes = np.empty(0, dtype=np.uint64)
        self._known = np.empty(0, dtype=np.uint64)

    def add(self, rows: Array) -> None:
        """Look at more: `rows` begin with those that are known."""
        new = rows[len(self.rows) :]
        if not len(new):
            return
        ordered = np.sort(new)
        opened = self._opened(ordered)
        if not len(self.rows) and self._covered is not None:
            self._covered = as_stored(self._covered, opened.dtype)
            self._known = hashes_of(self._covered)
        self._hashes = np.concatenate([self._hashes, hashes_of_rows(opened)[np.searchsorted(ordered, new)]])
        self.rows = rows

    @property
    def distinct(self) -> int:
        """The number of hashes that no covered row has."""
        return len(np.setdiff1d(self._hashes, self._known))

    def first(self) -> Array:
        """Return (n,) int64, the place of the first row that is equal to each; -1 for those that equal a covered one."""
        known = len(self._known)
        found = first_equal(np.concatenate([self._known, self._hashes]), self._differ)[known:] - known
        result: Array = np.maximum(found, -1)
        return result

    def _differ(self, places: Array, twins: Array) -> Array:
        known = len(self._known)
        every = np.unique(np.concatenate([places, twins]))
        rows = self.rows[every[every >= known] - known]
        ordered = np.sort(rows)
        opened = self._opened(ordered) if len(rows) else None

        def vectors(which: Array) -> Array:
            inside = which < known
            if opened is None or inside.all():
                assert self._covered is not None
                return self._covered[which]
            result = np.empty((len(which), opened.width), dtype=opened.dtype)
            if self._covered is not None:
                result[inside] = self._covered[which[inside]]
            result[~inside] = opened.stored(np.searchsorted(ordered, self.rows[which[~inside] - known]))
            return result

        parts = [slice(begin, begin + _COMPARED) for begin in range(0, len(places), _COMPARED)]
        found = [~equal(vectors(places[part]), vectors(twins[part])) for part in parts]
        return np.concatenate(found) if found else np.empty(0, dtype=bool)


def _others_in_kind(rows: Array, first: Array, kinds: Kinds) -> Array:
    """Tell (n,) bool the repeats of earlier rows which are the first or the cheapest of groups that no equal row is the first of."""
    result = np.zeros(len(rows), dtype=bool)
    repeats = np.flatnonzero((first >= 0) & (first != np.arange(len(first))))
    if not len(repeats):
        return result
    places = np.union1d(repeats, first[repeats])
    groups, cost = kinds(rows[places])
    _, kind = np.unique(np.column_stack([first[places], groups]), axis=0, return_inverse=True)
    result[places[np.unique(kind, return_index=True)[1]]] = True
    if cost is not None:
        cheapest = np.lexsort((places, cost, kind))
        result[places[cheapest[np.unique(kind[cheapest], return_index=True)[1]]]] = True
    return result

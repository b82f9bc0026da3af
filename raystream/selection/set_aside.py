"""The money that the minimums of quotas still need, kept out of the reach of other rows.

A plan holds rows that would meet every floor. A row outside it may be taken while the plan, without the dearest row that it
makes unnecessary, can be paid beside it. With floors by one column the plan is the cheapest there is, so that nothing is refused
that could be paid; with floors by several columns it is a greedy one, which can be paid at any time if it could be at the start.
Rows that near-duplicates or caps by other columns take out of the plan are replaced if others are left, and else missed.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from raystream.selection.limits import Cost, Quota
from raystream.selection.near_duplicates import NearDuplicates
from raystream.selection.rows import Array

_AT_ONCE = 4096

Floor = tuple[int, int]
"""A group with a minimum: the number of its quota, and its own in it."""


class SetAside:
    """The plan, and up to which cost rows may be taken beside it. These limits only ever fall: what is blocked stays so.

    Args:
        quotas: of the batch.
        cost: of the candidates.
        count: per quota (g,) int64, how many rows of each group are in the batch.
        taken: the rows in it.
        money: what is left for more.
        alike: the near-duplicates of the batch; None when off.
        gather: rows (m,) int64 -> vectors (m, d) float32; without it the plan doesn't look at near-duplicates.
    """

    def __init__(
        self, quotas: Sequence[Quota], cost: Cost, count: Sequence[Array], taken: Array, money: float,
        alike: NearDuplicates | None = None, gather: Callable[[Array], Array] | None = None,
    ) -> None:  # fmt: skip
        n = len(cost.column)
        self._quotas, self._cost = tuple(quotas), cost.column
        self._with_floors = [k for k, quota in enumerate(self._quotas) if quota.least.any()]
        self._count = [some.copy() for some in count]
        self._need = [np.maximum(quota.least - some, 0) for quota, some in zip(self._quotas, self._count, strict=True)]
        self._planned = [np.zeros(len(quota.names), dtype=np.int64) for quota in self._quotas]
        self._plan: dict[int, Array | None] = {}
        self._members: dict[Floor, list[tuple[float, int]]] = {
            (k, int(g)): [] for k in self._with_floors for g in np.flatnonzero(self._quotas[k].least)
        }
        self._changed, self._hopeless = set(self._members), set[Floor]()
        self._alike = None if gather is None else alike
        self._gather = gather
        self._gone, self._in_plan = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        self._gone[taken] = True
        self._limit = math.inf
        self._limits = [np.full(len(quota.names), math.inf) for quota in self._quotas]
        self._credit = [np.zeros(len(quota.names)) for quota in self._quotas]
        self._cheapest, self._at = np.argsort(self._cost, kind="stable"), 0
        self.on = self._begin() and self._total <= money
        """False when even the plan can't be paid: nothing is kept back then."""
        if self.on:
            self._lower_limits(money)

    def blocked(self, rows: Array) -> Array:
        """Tell (m,) bool which of the rows would take money that the minimums need."""
        if not self.on:
            return np.zeros(len(rows), dtype=bool)
        return np.asarray((self._cost[rows] > self._allowed(rows)) & ~self._in_plan[rows])

    def took(self, row: int, money: float, x: Array | None) -> None:
        """Note that `row` joined the batch, which leaves `money`; `x` (d,) float32 if near-duplicates count."""
        self._gone[row] = True
        if not self.on:
            return
        for k, quota in enumerate(self._quotas):
            group = int(quota.group[row])
            if group >= 0:
                self._count[k][group] += 1
                self._need[k][group] = max(self._need[k][group] - 1, 0)
        if row in self._plan:
            self._drop(row)
        floors = self._floors(row)
        self._change(floors)
        for floor in floors:
            self._shorten(floor)
        self._drop_blocked(row, x)
        for k, g in [floor for floor in self._members if self._lacks(floor) and floor not in self._hopeless]:
            self._fill(self._cheapest[self._quotas[k].group[self._cheapest] == g])
            if self._lacks((k, g)):
                self._hopeless.add((k, g))
        self._lower_limits(money)

    @property
    def binds(self) -> bool:
        """True if no row may be taken but those that meet a minimum, for want of money."""
        while self._at < len(self._cheapest) and self._gone[self._cheapest[self._at]]:
            self._at += 1
        return self.on and self._at < len(self._cheapest) and self._limit < self._cost[self._cheapest[self._at]]

    def __getstate__(self) -> dict[str, Any]:
        # pieces elsewhere ask what is blocked and take nothing: that needs neither vectors nor orders
        return self.__dict__ | {"_gather": None, "_alike": None, "_plan": {}, "_members": {}, "_cheapest": np.empty(0, dtype=np.int64)}

    @property
    def _total(self) -> float:
        return math.fsum(self._cost[row] for row in self._plan)

    def _allowed(self, rows: Array) -> Array:
        limit = np.full(len(rows), self._limit)
        for k in self._with_floors:
            group = self._quotas[k].group[rows]
            np.maximum(limit, np.where(group >= 0, self._limits[k][group], self._limit), out=limit)
        return limit

    def _begin(self) -> bool:
        """Make the first plan; whether there is one."""
        orders = [self._cheapest]
        if len(self._with_floors) > 1:  # rows that meet several floors at once may be the cheaper way
            serves = np.zeros(len(self._cost))
            for k in self._with_floors:
                serves += (self._need[k] > 0)[self._quotas[k].group] & (self._quotas[k].group >= 0)
            orders.append(np.lexsort((self._cost, self._cost / np.maximum(serves, 1), serves == 0)))
        plans: list[tuple[float, list[tuple[int, Array | None]]]] = []
        for order in orders:
            self._fill(order)
            for row in sorted(self._plan, key=lambda row: (-self._cost[row], -row)):
                if self._spare(row):
                    self._drop(row)
            if not any(self._lacks(floor) for floor in self._members):
                plans.append((self._total, list(self._plan.items())))
            for row in list(self._plan):
                self._drop(row)
        for row, x in min(plans, key=lambda plan: plan[0])[1] if plans else []:
            self._add(row, x)
        return bool(plans)

    def _fill(self, order: Array) -> None:
        """Put into the plan the first rows of `order` that meet what it lacks."""
        kept = [x for x in self._plan.values() if x is not None]
        among = None
        if self._alike is not None:
            among = NearDuplicates(self._alike.threshold, self._alike.width, np.stack(kept) if kept else None)
        at, step = 0, 256
        while at < len(order) and any(self._lacks(floor) for floor in self._members):
            rows = order[at : at + step]
            at, step = at + step, min(2 * step, _AT_ONCE)
            rows = rows[self._wanted(rows)]
            x = None
            if self._alike is not None and self._gather is not None and len(rows):
                x = self._gather(rows)
                alike = self._alike.blocked(x)
                self._gone[rows[alike]] = True
                rows, x = rows[~alike], x[~alike]
            for i in range(len(rows)):
                if not self._wanted(rows[i : i + 1])[0]:
                    continue
                if among is not None and x is not None:
                    if among.blocked(x[i : i + 1])[0]:
                        continue
                    among.add(x[i : i + 1])
                self._add(int(rows[i]), None if x is None else x[i])

    def _wanted(self, rows: Array) -> Array:
        """Tell (m,) bool which rows meet a floor that the plan lacks rows for, and may be taken."""
        meets = np.zeros(len(rows), dtype=bool)
        free = ~self._gone[rows] & ~self._in_plan[rows] & (self._cost[rows] <= self._allowed(rows))
        for k, quota in enumerate(self._quotas):
            group = quota.group[rows]
            meets |= (group >= 0) & (self._need[k] > self._planned[k])[group]
            free &= (group < 0) | (self._count[k] + self._planned[k] < quota.most)[group]
        return meets & free

    def _add(self, row: int, x: Array | None) -> None:
        self._plan[row] = x
        self._in_plan[row] = True
        self._shift(row, 1)
        for floor in self._floors(row):
            insort(self._members[floor], (float(self._cost[row]), row))

    def _drop(self, row: int) -> None:
        del self._plan[row]
        self._in_plan[row] = False
        self._shift(row, -1)
        for floor in self._floors(row):
            members = self._members[floor]
            del members[bisect_left(members, (float(self._cost[row]), row))]

    def _shift(self, row: int, by: int) -> None:
        for k, quota in enumerate(self._quotas):
            if quota.group[row] >= 0:
                self._planned[k][quota.group[row]] += by
        self._change(self._floors(row))

    def _change(self, floors: Sequence[Floor]) -> None:
        self._changed |= set(floors if len(self._with_floors) == 1 else self._members)

    def _floors(self, row: int) -> list[Floor]:
        every = ((k, int(self._quotas[k].group[row])) for k in self._with_floors)
        return [floor for floor in every if floor in self._members]

    def _lacks(self, floor: Floor) -> bool:
        k, g = floor
        return bool(self._need[k][g] > self._planned[k][g])

    def _spare(self, row: int, but: Floor | None = None) -> bool:
        """Tell whether the plan meets all floors, or all `but` one, without the row."""
        return all(self._planned[k][g] > self._need[k][g] for k, g in self._floors(row) if (k, g) != but)

    def _shorten(self, floor: Floor) -> None:
        """Drop rows that the plan has too many of, the dearest first."""
        k, g = floor
        while self._planned[k][g] > self._need[k][g]:
            row = next((row for _, row in reversed(self._members[floor]) if self._spare(row)), None)
            if row is None:
                break
            self._drop(row)

    def _drop_blocked(self, row: int, x: Array | None) -> None:
        """Drop what can't be taken any more beside `row`: its near-duplicates, and what its caps leave no place for."""
        if self._alike is not None and x is not None and self._plan:
            rows = list(self._plan)
            planned = np.stack([vector for vector in self._plan.values() if vector is not None])
            alike = NearDuplicates(self._alike.threshold, len(x), x[None]).blocked(planned)
            for other in np.asarray(rows)[alike]:
                self._gone[other] = True
                self._drop(int(other))
        for k, quota in enumerate(self._quotas):
            group = int(quota.group[row])
            while group >= 0 and self._planned[k][group] and self._count[k][group] + self._planned[k][group] > quota.most[group]:
                self._drop(max((self._cost[other], other) for other in self._plan if quota.group[other] == group)[1])

    def _lower_limits(self, money: float) -> None:
        for k, g in self._changed:
            found = (cost for cost, row in reversed(self._members[k, g]) if self._spare(row, (k, g)))
            self._credit[k][g] = next(found, 0.0) if self._need[k][g] > 0 else 0.0
        self._changed = set()
        slack = money - self._total
        self._limit = min(self._limit, slack)
        for k in self._with_floors:
            np.minimum(self._limits[k], slack + self._credit[k], out=self._limits[k])

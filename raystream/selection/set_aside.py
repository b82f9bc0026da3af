"""What the minimums of quotas still need, kept out of the reach of other rows: money, and places where several columns bind together.

`SetAside` keeps money. Its plan holds rows that would meet every floor. A row outside it may be taken while the plan, without the dearest
row that it makes unnecessary, can be paid beside it. With floors by one column the plan is the cheapest there is, so that nothing is
refused that could be paid; with floors by several columns it is a greedy one, which can be paid at any time if it could be at the start.
Rows that near-duplicates or caps by other columns take out of the plan are replaced if others are left, and else missed.

`plan_floors` finds how many rows of each combination of groups meet the floors of all columns together, where whoever takes the best
rows first would miss one.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raystream.selection.limits import Cost, Quota
from raystream.selection.repeats import NearDuplicates
from raystream.selection.rows import Array

_AT_ONCE = 4096
_STEPS = 20_000
"""How far rows are looked for that meet floors by three columns and more together, which no quick way always finds."""
_DUST = 1e-12

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


@dataclass(frozen=True, eq=False)
class FloorPlan:
    """How many rows of each cell, that is of each combination of groups, meet the floors of all columns together.

    Attributes:
        cells: the cells as one column, whose floors are the plan.
        groups: per quota (c,) int64, the group that a cell is of; -1 for none, and where the quota binds nothing.
    """

    cells: Quota
    groups: tuple[Array, ...]

    def kept(self, unmet: Array, number: int, groups: int) -> Array:
        """Count (groups,) float64 rows of each group of a quota that the plan still needs, by those (c,) of the cells."""
        group = self.groups[number]
        return np.bincount(group[group >= 0], weights=unmet[group >= 0], minlength=groups)


def binds_together(quotas: Sequence[Quota], budget: int) -> bool:
    """Tell whether floors meet floors or caps of another column, so that rows may have to be chosen with an eye to both."""
    return any(quota.least.any() for quota in quotas) and sum(_binds(quota, budget) for quota in quotas) > 1


def _binds(quota: Quota, budget: int) -> bool:
    held = np.bincount(quota.group[quota.group >= 0], minlength=len(quota.names))
    return bool(quota.least.any() or (quota.most < np.minimum(held, budget)).any())


def plan_floors(quotas: Sequence[Quota], cost: Cost | None, budget: int, given: Array) -> FloorPlan | None:
    """Find rows that meet all floors beside caps and costs, and keep of them how many there are of each cell.

    Where two columns bind, a plan is found whenever there is one, as a flow of least cost from the groups of one column to those of the
    other; where more do, which is as hard as any problem of matching, one is looked for within limits.

    Args:
        quotas: of the batch, over the candidates.
        cost: of the candidates; None where rows cost nothing.
        budget: how many rows the batch may have in all.
        given: int64, the rows that are in it already.

    Returns:
        None where no rows meet them, or none were found, and where one column alone binds.
    """
    if not binds_together(quotas, budget):
        return None
    counts = [np.bincount(quota.group[given][quota.group[given] >= 0], minlength=len(quota.names)) for quota in quotas]
    binding = [k for k, quota in enumerate(quotas) if _binds(quota, budget)]
    free = np.ones(len(quotas[0].group), dtype=bool)
    free[given] = False
    cell = np.zeros(len(free), dtype=np.int64)
    for k in binding:
        cell = np.unique(cell * (len(quotas[k].names) + 1) + quotas[k].group, return_inverse=True)[1].reshape(-1)
    table = np.column_stack([quotas[k].group[np.unique(cell, return_index=True)[1]] for k in binding])
    costs = np.ones(len(free)) if cost is None else cost.column
    order = np.lexsort((costs, cell))
    order = order[free[order]]
    prices = np.split(costs[order], np.searchsorted(cell[order], np.arange(1, len(table))))
    needs = [np.maximum(quotas[k].least - counts[k], 0) for k in binding]
    rooms = [np.maximum(quotas[k].most - counts[k], 0) for k in binding]
    left = budget - len(given)
    money = math.inf if cost is None else (cost.budget - float(cost.column[given].sum())) * (1 + _DUST)
    if left < 0 or any((need > room).any() for need, room in zip(needs, rooms, strict=True)):
        return None
    found = _by_flow(table, prices, needs, rooms, left) if len(binding) == 2 else _by_search(table, prices, needs, rooms, left, money)
    if found is None or math.fsum(price for c in np.flatnonzero(found) for price in prices[c][: found[c]]) > money:
        return None
    least = np.where(found > 0, found + np.bincount(cell[given], minlength=len(table)), 0)
    names = [" and ".join(f"{quotas[k].by} {quotas[k].names[g]}" for k, g in zip(binding, row, strict=True) if g >= 0) for row in table]
    nothing = np.full(len(table), -1)
    groups = tuple(table[:, binding.index(k)] if k in binding else nothing for k in range(len(quotas)))
    return FloorPlan(Quota("cell", cell.astype(np.int32), names, np.full(len(table), len(free)), least), groups)


def _by_flow(table: Array, prices: Sequence[Array], needs: Sequence[Array], rooms: Sequence[Array], left: int) -> Array | None:
    """Find (c,) int64 the cheapest rows that meet the floors of two columns, by shortest augmenting paths; None if there are none.

    A row is a unit that flows from its group in the first column to that in the second. What floors need flows at a gain above all costs.

    Args:
        table: (c, 2) the groups of each cell, -1 none.
        prices: of each cell's rows, ascending.
        needs: per column (g,) int64, how many rows of each group must be.
        rooms: per column (g,) int64, how many may be.
        left: how many may be in all.
    """
    sizes = [len(need) + 1 for need in needs]  # rows of no group flow through a node of their own
    nodes = 3 + sum(sizes)
    gain = 2.0 * (left + 1) * (max((float(some[-1]) for some in prices if len(some)), default=0.0) + 1.0)
    ends, caps, weights = [(0, 1)], [left], [0.0]
    floors = []
    for side, (need, room) in enumerate(zip(needs, rooms, strict=True)):
        for g in range(sizes[side]):
            own = 2 + side * sizes[0] + g
            ends += [(1, own) if side == 0 else (own, nodes - 1)] * 2
            floors += [len(caps)] if g < len(need) and need[g] else []
            caps += [int(need[g]), int(room[g] - need[g])] if g < len(need) else [0, left]
            weights += [-gain, 0.0]
    first = len(caps)
    where = 2 + np.where(table < 0, np.asarray(sizes) - 1, table) + np.asarray([0, sizes[0]])
    there = np.concatenate([np.asarray(ends), where])
    # every arc, and behind them the same the other way
    tail, head = np.concatenate([there[:, 0], there[:, 1]]), np.concatenate([there[:, 1], there[:, 0]])
    arcs = len(there)
    cap, weight = np.zeros(2 * arcs, dtype=np.int64), np.zeros(2 * arcs)
    cap[:first], weight[:first], weight[arcs : arcs + first] = caps, weights, -np.asarray(weights)
    used = np.zeros(len(table), dtype=np.int64)

    def price(c: int) -> None:
        """Offer the cell's next rows of one price, and those that were taken last."""
        some, at = prices[c], int(used[c])
        forth, back = first + c, arcs + first + c
        cap[forth] = np.searchsorted(some, some[at], side="right") - at if at < len(some) else 0
        cap[back] = at - np.searchsorted(some, some[at - 1]) if at else 0
        weight[forth], weight[back] = some[at] if at < len(some) else 0.0, -some[at - 1] if at else 0.0

    for c in range(len(table)):
        price(c)
    while (path := _shortest(tail, head, cap, weight, nodes, gain)) is not None:
        units = int(cap[path].min())
        cap[path] -= units
        cap[(path + arcs) % (2 * arcs)] += units
        for arc in path:
            if arc % arcs >= first:
                used[arc % arcs - first] += units if arc < arcs else -units
                price(int(arc % arcs - first))
    return None if cap[floors].any() else used


def _shortest(tail: Array, head: Array, cap: Array, weight: Array, nodes: int, gain: float) -> Array | None:
    """Return the arcs of the path from the first node to the last with the least sum of weights; None where it is no gain."""
    open_ = np.flatnonzero(cap > 0)
    start, end, step = tail[open_], head[open_], weight[open_]
    distance, by = np.full(nodes, np.inf), np.full(nodes, -1)
    distance[0] = 0.0
    for _ in range(nodes):
        reach = distance[start] + step
        best = np.full(nodes, np.inf)
        np.minimum.at(best, end, reach)
        better = best < distance - _DUST * gain
        if not better.any():
            break
        hit = better[end] & (reach == best[end])
        by[end[hit]] = open_[hit]
        distance = np.where(better, best, distance)
    if not distance[-1] < -_DUST * gain:
        return None
    path: list[int] = []
    node = nodes - 1
    while node and len(path) < nodes:
        path.append(int(by[node]))
        node = int(tail[by[node]])
    return None if node else np.asarray(path)


def _by_search(
    table: Array, prices: Sequence[Array], needs: Sequence[Array], rooms: Sequence[Array], left: int, money: float
) -> Array | None:
    """Find (c,) int64 rows that meet the floors of any number of columns, by trying cells for the floor with the least choice.

    Args and Returns as `_by_flow`; `money` is what they may cost together.
    """
    used, size = np.zeros(len(table), dtype=np.int64), np.asarray([len(some) for some in prices])
    needs, rooms = [need.copy() for need in needs], [room.copy() for room in rooms]
    spent, steps = 0.0, 0
    tried: list[tuple[list[int], int]] = []  # what is left to try at each step, and the cell that was taken there

    def take(c: int, by: int) -> None:
        nonlocal spent, left
        spent += prices[c][used[c]] if by > 0 else -prices[c][used[c] - 1]
        used[c] += by
        left -= by
        for k, g in enumerate(table[c]):
            if g >= 0:
                needs[k][g] -= by
                rooms[k][g] -= by

    def options() -> list[int]:
        """Return cells to try, the last one first; none where a floor can't be met any more."""
        if left <= 0 or any(int(np.maximum(need, 0).sum()) > left for need in needs):
            return []
        free = np.where(np.logical_and.reduce([(g < 0) | (room > 0)[g] for g, room in zip(table.T, rooms, strict=True)]), size - used, 0)
        serves = sum(((g >= 0) & (need > 0)[g]).astype(int) for g, need in zip(table.T, needs, strict=True))
        least, best = math.inf, np.empty(0, dtype=np.int64)
        for k, need in enumerate(needs):
            for g in np.flatnonzero(need > 0):
                cells = np.flatnonzero((table[:, k] == g) & (free > 0))
                choice = int(free[cells].sum() - need[g])
                if choice < 0:
                    return []
                if choice < least:
                    least, best = choice, cells
        dear = np.asarray([prices[int(c)][used[c]] for c in best])
        affordable = spent + dear <= money
        return [int(c) for c in best[affordable][np.lexsort((-dear[affordable], serves[best][affordable]))]]

    while any((need > 0).any() for need in needs):
        steps += 1
        if steps > _STEPS:
            return None
        choices = options()
        while not choices:
            if not tried:
                return None
            choices, c = tried.pop()
            take(c, -1)
        tried.append((choices, c := choices.pop()))
        take(c, 1)
    return used

"""The constraints of a batch beyond its size: rows taken already, near-duplicates, quotas, a cost budget.

A row that is blocked once stays blocked: strategies may forget it, and whoever asks earlier or later, or
in another order, gets the same batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from raystream.errors import DataError, QueryError
from raystream.figures import shown
from raystream.selection.limits import Cost, Obstacle, Quota, Shortfall
from raystream.selection.repeats import NearDuplicates, Repeats
from raystream.selection.rows import Array
from raystream.selection.set_aside import FloorPlan, SetAside

_DUST = 1e-12
"""Part of a cost budget that sums of costs may be above it where floors are asked for: three rows of 0.1 cost 0.3."""


class Constraints:
    """Keeps count of a batch while it is chosen, and says which rows may still join it.

    Args:
        budget: how many rows the batch may have in all.
        near_duplicates: holds labelled rows already; None when off.
        quotas: one for each column.
        cost: None when rows cost nothing.
        repeats: exact repeats among the candidates; None where they don't matter, or there are none.
        gather: rows (m,) int64 -> vectors (m, d) float32, for near-duplicates among rows that floors may need.
        more: whether higher `candidates` would let in more rows.
        plan: rows of which combinations of groups are to meet the floors; left out, whichever come first.

    Raises:
        QueryError: a floor above what its group holds, or floors of one column that add up to more than the budget.
        DataError: a cost that is negative or not a number.
    """

    def __init__(
        self,
        budget: int,
        *,
        near_duplicates: NearDuplicates | None = None,
        quotas: Sequence[Quota] = (),
        cost: Cost | None = None,
        repeats: Repeats | None = None,
        gather: Callable[[Array], Array] | None = None,
        more: bool = False,
        plan: FloorPlan | None = None,
    ) -> None:
        self.left = self._budget = budget
        self._gather, self._more = gather, more
        self._near_duplicates, self._asked, self._cost = near_duplicates, tuple(quotas), cost
        self._plan = plan
        # with a plan its cells have the floors
        capped = [replace(quota, least=np.zeros_like(quota.least)) for quota in quotas]
        self._quotas = self._asked if plan is None else (*capped, plan.cells)
        self._repeats = repeats
        self._taken: set[int] = set()
        self._why: dict[int, str] = {}
        self._spent = 0.0
        floors = any(quota.least.any() for quota in self._quotas)
        self._money = 0.0 if cost is None else cost.budget * (1 + _DUST) if floors else cost.budget
        # made when it is first asked, so that rows which had to be in the batch are paid by then
        self._aside: SetAside | None = None
        self._keeps_money = floors and cost is not None
        self._count = [np.zeros(len(quota.names), dtype=np.int64) for quota in self._quotas]
        # what each row may be counted towards: one floor only while the floors of all columns fit the budget side by side,
        # so that the slack never grows, which would let a blocked row back in
        self._unmet = [quota.least.copy() for quota in self._quotas]
        self._apart = sum(int(unmet.sum()) for unmet in self._unmet) <= budget
        self._check(budget)

    def _check(self, budget: int) -> None:
        for quota in self._quotas:
            held = np.bincount(quota.group[quota.group >= 0], minlength=len(quota.names))
            for i in map(int, np.flatnonzero(quota.least > np.minimum(held, quota.most))):
                what = f"{held[i]} candidates have it" if quota.least[i] > held[i] else f"`quotas` allow at most {quota.most[i]}"
                raise QueryError(
                    f"`quotas`: at least {quota.least[i]} rows with {quota.by} {shown(quota.names[i])} are asked for, but {what}, "
                    f"{quota.least[i] - min(held[i], quota.most[i])} short; lower min, or widen what may be chosen"
                )
            if quota.least.sum() > budget:
                raise QueryError(
                    f"`quotas` by {quota.by} ask for {quota.least.sum()} rows in all, {quota.least.sum() - budget} above "
                    f"`k` {budget}; lower min or raise `k`"
                )
        if self._cost is not None:
            column = self._cost.column
            bad = np.flatnonzero(~np.isfinite(column) | (column < 0))
            if len(bad):
                raise DataError(
                    f"{len(bad)} candidates have a {self._cost.name} that is negative, null or not a number, first {column[bad[0]]:g}; "
                    "expected costs of at least 0 in `cost.column`"
                )

    @property
    def vectors(self) -> bool:
        """True if `blocked` and `take` need the rows' embeddings."""
        return self._near_duplicates is not None

    @property
    def free(self) -> bool:
        """True if nothing but the size and what is taken already restricts the batch."""
        return self._near_duplicates is None and not self._quotas and self._cost is None and self._repeats is None

    @property
    def leaves_chances(self) -> bool:
        """True if every eligible row may be taken until the batch is full, whichever rows are drawn before it."""
        if self._more or self._near_duplicates is not None or self._repeats is not None:
            return False
        for quota in self._quotas:
            held = np.bincount(quota.group[quota.group >= 0], minlength=len(quota.names))
            if quota.least.any() or (np.minimum(held, self._budget) > quota.most).any():
                return False
        return self._cost is None or bool(np.sort(self._cost.column)[::-1][: self._budget].sum() <= self._cost.budget)

    @property
    def taken(self) -> Array:
        """The rows that are taken, int64, ascending."""
        return np.asarray(sorted(self._taken), dtype=np.int64)

    @property
    def reach(self) -> int | None:
        """The number of rows of an order that suffice to fill the batch; None when that can't be known."""
        return self.left + len(self._taken) if self.free else None

    def excluded(self, n: int) -> Array:
        """Return the rows of n candidates, int64, that are blocked whatever their embeddings are."""
        self._set_aside()
        alike, self._near_duplicates = self._near_duplicates, None
        try:
            return self.taken if self.free else np.flatnonzero(self.blocked(np.arange(n)))
        finally:
            self._near_duplicates = alike

    def blocked(self, rows: Array, x: Array | None = None) -> Array:
        """Tell (m,) bool which of the candidates `rows` (int64) can't be taken now or later; `x` (m, d) float32 if `vectors`."""
        if self.left <= 0:
            return np.ones(len(rows), dtype=bool)
        mask = np.fromiter((int(row) in self._taken for row in rows), dtype=bool, count=len(rows))
        if self._repeats is not None:
            mask |= self._repeats.blocked(rows)
        for number, quota in enumerate(self._quotas):
            group = quota.group[rows]
            mask |= (group >= 0) & (self._count[number] >= quota.most)[group]
        mask |= self._reserved(rows)
        if self._plan is not None:
            mask |= self._kept_by_plan(rows, self._plan)
        if self._cost is not None:
            mask |= self._spent + self._cost.column[rows] > self._money
            aside = self._set_aside()
            if aside is not None:
                mask |= aside.blocked(rows)
        if self._near_duplicates is not None and not mask.all():
            assert x is not None
            free = np.flatnonzero(~mask)
            mask[free] = self._near_duplicates.blocked(x[free])
        return mask

    def take(self, row: int, x: Array | None = None, why: str | None = None) -> None:
        """Add the candidate `row` to the batch; `x` (d,) float32 if `vectors`. `why` is told instead of the constraint that bound it."""
        self._why[row] = self._binding(row) if why is None else why
        self._taken.add(row)
        self.left -= 1
        counted = False
        for number, quota in enumerate(self._quotas):
            group = int(quota.group[row])
            if group < 0:
                continue
            self._count[number][group] += 1
            if self._unmet[number][group] > 0 and not (self._apart and counted):
                self._unmet[number][group] -= 1
                counted = True
        if self._cost is not None:
            self._spent += float(self._cost.column[row])
        if self._repeats is not None:
            self._repeats.take(row)
        if self._near_duplicates is not None:
            assert x is not None
            self._near_duplicates.add(x[None])
        if self._aside is not None:
            self._aside.took(row, self._money - self._spent, x)

    def needed(self, rows: Array) -> Array:
        """Tell (m,) bool which of the rows meet a floor that isn't met yet."""
        result = np.zeros(len(rows), dtype=bool)
        for quota, unmet in zip(self._quotas, self._unmet, strict=True):
            group = quota.group[rows]
            result |= (group >= 0) & (unmet > 0)[group]
        return result

    def why(self, row: int) -> str:
        """Name what bound a row that was taken, '' if nothing did."""
        return self._why[row]

    def check_floors(self) -> None:
        """Raise QueryError if the batch, which is complete, misses a floor."""
        for number, quota in enumerate(self._asked):
            short = np.flatnonzero(self._count[number] < quota.least)
            if len(short):
                raise QueryError(self._shortfall().of_floor(number, int(short[0])))

    def obstacles(self, n: int) -> list[Obstacle]:
        """List what keeps the rest of n candidates out of a batch that is smaller than its budget."""
        return self._shortfall().obstacles(np.arange(n))

    def _shortfall(self) -> Shortfall:
        money = self._money - self._spent
        count = self._count[: len(self._asked)]
        return Shortfall(self._asked, self._cost, count, dict(self._why), self.left, money, self._near_duplicates, self._gather, self._more)

    def _set_aside(self) -> SetAside | None:
        if self._keeps_money and self._aside is None:
            assert self._cost is not None
            money = self._money - self._spent
            self._aside = SetAside(self._quotas, self._cost, self._count, self.taken, money, self._near_duplicates, self._gather)
        return self._aside

    def __getstate__(self) -> dict[str, Any]:
        # pieces elsewhere have vectors of their own, and no way to those of all candidates
        self._set_aside()
        return self.__dict__ | {"_gather": None}

    def _slack(self) -> list[int]:
        """Count per quota, or once for all of them if they count apart, how many rows may still be taken that meet no floor."""
        unmet = [int(counts.sum()) for counts in self._unmet]
        return [self.left - sum(unmet)] if self._apart else [self.left - count for count in unmet]

    def _reserved(self, rows: Array) -> Array:
        """Tell (m,) bool where the places that are left are kept for rows that meet a floor, and these don't."""
        result = np.zeros(len(rows), dtype=bool)
        if not any(unmet.any() for unmet in self._unmet):
            return result
        meets = []
        for quota, unmet in zip(self._quotas, self._unmet, strict=True):
            group = quota.group[rows]
            meets.append((group >= 0) & (unmet > 0)[group])
        slack = self._slack()
        if self._apart:
            return ~np.logical_or.reduce(meets) if slack[0] <= 0 else result
        for left, good in zip(slack, meets, strict=True):
            if left <= 0:
                result |= ~good
        return result

    def _kept_by_plan(self, rows: Array, plan: FloorPlan) -> Array:
        """Tell (m,) bool which rows would take places that caps leave for rows of the plan, and aren't of it."""
        unmet = self._unmet[-1]
        full = np.zeros(len(rows), dtype=bool)
        for number, quota in enumerate(self._asked):
            kept = plan.kept(unmet, number, len(quota.names))
            group = quota.group[rows]
            full |= (group >= 0) & ((kept > 0) & (self._count[number] + kept >= quota.most))[group]
        return np.asarray(full & (unmet[plan.cells.group[rows]] == 0))

    def _binding(self, row: int) -> str:
        """Name the floor without which another row might have been taken."""
        aside = self._set_aside()
        if not any(unmet.any() for unmet in self._unmet) or (min(self._slack()) > 0 and not (aside is not None and aside.binds)):
            return ""
        if self._plan is not None and self._unmet[-1][self._plan.cells.group[row]] == 0:
            return ""
        asked = zip(self._quotas, self._unmet, strict=True) if self._plan is None else ((quota, quota.least) for quota in self._asked)
        for quota, unmet in asked:
            group = int(quota.group[row])
            if group >= 0 and unmet[group] > 0:
                return f"quota {quota.by} {quota.names[group]}: at least {quota.least[group]}"
        return ""

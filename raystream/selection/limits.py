"""The limits of a batch beyond its size, namely quotas and costs, and in words which of them keeps a floor from being met."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from raystream.arrays import plain
from raystream.errors import DataError, QueryError
from raystream.figures import shown
from raystream.selection.repeats import NearDuplicates
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
        """Make a cap, a floor or both for the rows of each group, or of one.

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
    """List the groups in order of first appearance, and (n,) int32 which each row is in, -1 for none."""
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


_FEWER = {"must_include": "name fewer rows", "random_share": "lower `random_share`"}
_GIVEN = tuple(_FEWER)
_AT_ONCE = 8192


@dataclass(frozen=True)
class Obstacle:
    """A constraint that keeps `rows` candidates out: its key under `select`, and in words what is the matter with them."""

    key: str
    rows: int
    words: str


def in_words(obstacles: Sequence[Obstacle], others: str) -> str:
    """Say what keeps these others out, as a sentence."""
    if not obstacles:
        return f"of the {others} none may be taken: places are kept for minimums that they don't meet, or they equal chosen rows"
    if len(obstacles) == 1:
        return f"all {others} {obstacles[0].words}"
    return f"of the {others} {' and '.join(f'{one.rows} {one.words}' for one in obstacles)}"


@dataclass(frozen=True)
class Binding:
    """The constraint for which a group gets `most` rows and no more, in words, and what to do instead of lowering its minimum."""

    most: int
    words: str
    remedy: str


@dataclass(frozen=True)
class Shortfall:
    """A batch that is complete, and its constraints.

    Attributes:
        quotas, cost: of the batch.
        count: per quota (g,) int64, how many rows of each group are in it.
        why: what bound each of its rows.
        places: how many more rows it might have had.
        money: what is left of the cost budget.
        alike: the near-duplicates of the batch; None when off.
        gather: rows (m,) int64 -> vectors (m, d) float32.
        more: whether higher `candidates` would let in more rows.
    """

    quotas: Sequence[Quota]
    cost: Cost | None
    count: Sequence[Array]
    why: Mapping[int, str]
    places: int
    money: float
    alike: NearDuplicates | None
    gather: Callable[[Array], Array] | None
    more: bool

    def obstacles(self, rows: Array) -> list[Obstacle]:
        """List what keeps those of `rows` out that are not in the batch; each counts for the first constraint that does."""
        left, result = self._others(rows), []
        for quota, count in zip(self.quotas, self.count, strict=True):
            full = count >= quota.most
            out = (quota.group[left] >= 0) & np.append(full, False)[quota.group[left]]
            if out.any():
                names = [shown(quota.names[i]) for i in np.unique(quota.group[left[out]])]
                some = ", ".join(names[:3]) + (", .." if len(names) > 3 else "")
                result.append(Obstacle("quotas", int(out.sum()), f"are in groups of {quota.by} that are full ({some})"))
            left = left[~out]
        if self.cost is not None:
            out = self.cost.column[left] > self.money
            if out.any():
                left_over = self.money if self.money > 1e-9 * self.cost.budget else 0.0
                words = f"cost more than the {left_over:g} left of `cost.budget` {self.cost.budget:g}"
                result.append(Obstacle("cost", int(out.sum()), words))
            left = left[~out]
        if self.alike is not None and len(left):
            words = f"have a cosine of at least {self.alike.threshold} with a chosen or labelled row"
            result.append(Obstacle("near_duplicates", len(left), words))
        return result

    def of_floor(self, number: int, group: int) -> str:
        """Write the sentence on a floor that the batch misses: which constraint binds, what is short, what to do."""
        quota = self.quotas[number]
        least, binding = int(quota.least[group]), self._binding(number, group)
        return (
            f"`quotas`: at least {least} rows with {quota.by} {shown(quota.names[group])} are asked for, but {binding.words}, "
            f"{least - binding.most} short; lower min{binding.remedy}"
        )

    def _binding(self, number: int, group: int) -> Binding:
        quota, members = self.quotas[number], np.flatnonzero(self.quotas[number].group == group)
        least, others, had = int(quota.least[group]), self._others(members), int(self.count[number][group])
        found = self._by_places(number, group) or self._by_caps(number, members, least)
        if found is None and self.cost is not None:
            found = self._by_money(self.cost, number, group)
        if found is None and self.alike is not None and self.gather is not None:
            free = had + self._apart(others)
            if free < least:
                words = f"`near_duplicates` {self.alike.threshold:g} leaves {free} of the {len(members)} candidates that have it"
                found = Binding(free, words, f" or raise `near_duplicates`{', or raise `candidates`' if self.more else ''}")
        if found is not None:
            return found
        why = in_words(self.obstacles(members), f"{len(others)} others") if self.places > 0 else "other minimums took the places"
        return Binding(had, f"only {had} could be chosen: {why}", " or relax one of these")

    def _given(self) -> tuple[Array, str]:
        """Find the rows that were in the batch before the strategy began, and which keys put them there."""
        rows = [row for row, why in self.why.items() if why in _GIVEN]
        keys = [key for key in _GIVEN if key in self.why.values()]
        return np.asarray(rows, dtype=np.int64), " and ".join(f"`{key}`" for key in keys)

    def _by_places(self, number: int, group: int) -> Binding | None:
        """See whether rows that had to be in the batch leave no places."""
        quota, (given, keys) = self.quotas[number], self._given()
        budget = self.places + len(self.why)
        helpful = np.bincount(quota.group[given][quota.group[given] >= 0], minlength=len(quota.names))
        short = int(np.maximum(quota.least - helpful, 0).sum())
        if short <= budget - len(given):
            return None
        verb = "takes" if " and " not in keys else "take"
        words = f"{keys} {verb} {len(given)} of {budget} places, which leaves {budget - len(given)} for the {short} rows that minimums need"
        fewer = " or ".join(_FEWER[key] for key in _GIVEN if key in keys)
        return Binding(int(quota.least[group]) - (short - budget + len(given)), words, f", raise `k` or {fewer}")

    def _by_caps(self, number: int, members: Array, least: int) -> Binding | None:
        """See whether the caps of another column let in too few."""
        for other, quota in enumerate(self.quotas):
            group = quota.group[members]
            held = np.bincount(group[group >= 0], minlength=len(quota.names))
            most = int(np.minimum(held, quota.most).sum()) + int((group < 0).sum())
            if other != number and most < least:
                return Binding(most, f"the max by {quota.by} lets in {most} of them at most", f" or raise the max by {quota.by}")
        return None

    def _by_money(self, cost: Cost, number: int, group: int) -> Binding | None:
        """See whether the cost budget doesn't pay for the cheapest rows: of this group alone, or of all groups of its column."""
        quota, (given, keys) = self.quotas[number], self._given()
        spent = float(cost.column[given].sum())
        money, price, pays, asked = cost.budget - spent, 0.0, 0, 0
        for g in np.flatnonzero(quota.least):
            members = np.flatnonzero(quota.group == g)
            there = int(np.isin(members, given).sum())
            cheapest = np.cumsum(np.sort(cost.column[members[~np.isin(members, given)]]))
            need = max(int(quota.least[g]) - there, 0)
            if g == group:
                pays = there + int(np.searchsorted(cheapest, money * (1 + 1e-12), side="right"))
            price += float(cheapest[need - 1]) if need else 0.0
            asked += int(quota.least[g])
        beside = f" beside the {spent:g} that {keys} cost{'s' if ' and ' not in keys else ''}" if spent else ""
        remedy = " or raise `cost.budget`"
        if pays < quota.least[group]:
            return Binding(pays, f"`cost.budget` {cost.budget:g} pays for {pays} of them at most{beside}", remedy)
        if price > money * (1 + 1e-12):
            every = f"the cheapest {asked} rows that meet the minimums by {quota.by}"
            had = int(self.count[number][group])
            return Binding(had, f"`cost.budget` {cost.budget:g} doesn't pay for {every}, which cost {price:g}{beside}", remedy)
        return None

    def _others(self, rows: Array) -> Array:
        return rows[~np.isin(rows, np.fromiter(self.why, dtype=np.int64, count=len(self.why)))]

    def _apart(self, rows: Array) -> int:
        """Count the rows that are no near-duplicates of the batch."""
        assert self.alike is not None and self.gather is not None  # noqa: PT018
        parts = (rows[begin : begin + _AT_ONCE] for begin in range(0, len(rows), _AT_ONCE))
        return sum(int((~self.alike.blocked(self.gather(part))).sum()) for part in parts)

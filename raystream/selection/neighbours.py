"""Each row's nearest other rows: exact for pools of moderate size, through inverted lists of measured recall above.

Rows are compared block by block, in single threads, which makes the result independent of how many there are. In large pools the rows of
one list of a coarse k-means are compared, all at once, with those of the lists nearest to it: near rows are in the same list or in lists
whose centres are near.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch

from raystream.selection.clusters import clusters
from raystream.selection.near_pairs import nearest_of_groups, pairs_within
from raystream.selection.near_rows import NearPairs, NearRows, Room, Stretches, bits, grouped
from raystream.selection.nearest import pair_distances
from raystream.selection.rows import Array, squared_distances
from raystream.selection.strategy import Arrays, Kept
from raystream.threads import each

_LARGEST = 4
"""Lists longer than this many times the average are cut up: the work grows with the square of their length."""


@dataclass(frozen=True)
class InvertedLists:
    """c lists of n rows.

    Attributes:
        members: for each list its rows, int64, ascending.
        list_of: (n,) int32, the list of each row.
        near: (c, c) int32, for each list all lists, itself first, by the distance of their centres.
        centres: (c, d) float32.
    """

    members: list[Array]
    list_of: Array
    near: Array
    centres: Array

    @cached_property
    def size(self) -> Array:
        """(c,) int64, how many rows each list has."""
        return np.asarray([len(rows) for rows in self.members])

    def probed(self, number: int, probes: int, least: int) -> Array:
        """Find the `probes` lists nearest to one list, int32, or more of them if those hold fewer than `least` rows."""
        held = np.cumsum(self.size[self.near[number]])
        result: Array = self.near[number, : max(probes, int(np.searchsorted(held, least)) + 1)]
        return result

    def affordable(self, compared: int) -> int:
        """Count the nearest lists, at least 1, that a row may be compared with, if rows are to be with `compared` others on average.

        Long lists stand in the middle, near each other: rows meet more of them than of the short ones.
        """
        met = np.cumsum(self.size @ self.size[self.near]) / self.size.sum()
        return max(int(np.searchsorted(met, compared, side="right")), 1)

    def spans(self, x: Array) -> Array:
        """Return (c,) float64, at least the largest distance of a member to its list's centre; `x` are the rows."""

        def span(number: int) -> float:
            return float(_distances(x[self.members[number]], self.centres[number])[1].max(initial=0.0))

        return np.asarray(each(range(len(self.members)), lambda: span))

    def meeting(self, spans: Array, point: Array, radius: float) -> Array:
        """Find int64 lists, ascending, that may hold rows within the radius of `point` (d,)."""
        return np.flatnonzero(_distances(self.centres, point)[0] <= (radius + spans) * (1 + 2.0**-50))

    def rank(self, rows: Array, others: Array) -> Array:
        """Return (m, k): at which place the list of each row of `others` (m, k) stands, as seen from the list of its row of `rows` (m,)."""
        place = np.empty_like(self.near)
        np.put_along_axis(place, self.near, np.arange(len(self.near), dtype=np.int32)[None], axis=1)
        result: Array = place[self.list_of[rows][:, None], self.list_of[others]]
        return result


def _distances(x: Array, point: Array) -> tuple[Array, Array]:
    """Return (n,) float64 bounds of the distances of float32 rows to a point, from below and from above."""
    with np.errstate(over="ignore", under="ignore"):
        difference = x - point
        squared = np.einsum("ij,ij->i", difference, difference).astype(np.float64)
    error = (x.shape[1] + 8) * 2.0**-23
    tiny = x.shape[1] * 2.0**-120
    below = np.where(np.isfinite(squared), np.sqrt(np.maximum(squared * (1 - error) - tiny, 0.0)), 0.0)
    return below, np.sqrt(squared * (1 + error) + tiny)


def inverted_lists(x: Array, seed: int, kept: Kept | None = None) -> InvertedLists:
    """Make about sqrt(n) lists of the (n, d) float32 rows; `kept` may hold their clusters."""
    n = len(x)
    found = clusters(x, round(np.sqrt(n)), seed, kept=kept)
    longest = _LARGEST * int(np.ceil(n / len(found.size)))
    members: list[Array] = []
    centre: list[int] = []
    for number, rows in enumerate(found.members()):
        parts = np.array_split(rows, max(-(-len(rows) // longest), 1))
        members += parts
        centre += [number] * len(parts)
    list_of = np.empty(n, dtype=np.int32)
    for number, rows in enumerate(members):
        list_of[rows] = number
    centres = found.centres[centre]
    near = np.empty((len(members), len(members)), dtype=np.int32)
    for number in range(len(members)):
        squared = squared_distances(centres, centres[number])
        squared[number] = -1.0
        near[number] = np.argsort(squared, kind="stable")
    return InvertedLists(members, list_of, near, centres)


EXACT = 100_000
"""Up to this many rows, every row is compared with every other one."""
RECALL = 0.95
"""What share of the true neighbours is to be found, as long as few enough rows have to be compared."""
COMPARED = 1 << 16
"""At most this many rows are compared with each row of larger pools on average, even if the recall is lower then."""
_SAMPLE = 1000
_SAMPLED = 250
_UNDECIDED = 1 << 13
"""So many more than 4 k others of each of these go to float64, before all are compared with it in float32."""
_QUERIES = 1024
_BALL_ROWS = 1 << 18
"""A thread looks for members of balls among so many rows at a time."""

Facts = dict[str, float | int | str]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Neighbours:
    """The k nearest rows of each of n rows, itself left out.

    Attributes:
        distance: (n, k) float64, ascending.
        index: (n, k) int32; of those found at the same distance, the lower first.
        facts: which index found them, and with what recall.
    """

    distance: Array
    index: Array
    facts: Facts


@dataclass(frozen=True)
class Edges:
    """Row i's neighbours are `index[start[i] : start[i + 1]]`.

    Attributes:
        start: (n + 1,) int64.
        index: (e,) int32, ascending within each row.
        full: (n,) bool, the rows that may have more than were kept.
        facts: see `Neighbours`.
    """

    start: Array
    index: Array
    full: Array
    facts: Facts

    @classmethod
    def kept(cls, arrays: Arrays) -> Edges:
        """Make edges from `arrays`."""
        return cls(arrays["start"], arrays["index"], arrays["full"], json.loads(str(arrays["facts"])))

    def arrays(self) -> Arrays:
        """Return all of it as arrays by name, to be kept."""
        return {"start": self.start, "index": self.index, "full": self.full, "facts": np.asarray(json.dumps(self.facts))}

    def of(self, rows: Array) -> Array:
        """Return int64 neighbours of all these rows, one row's after another's."""
        count = self.start[rows + 1] - self.start[rows]
        skipped = self.start[rows] - np.concatenate([[0], np.cumsum(count)[:-1]])
        result: Array = self.index[np.arange(count.sum()) + np.repeat(skipped, count)].astype(np.int64)
        return result


def nearest_neighbours(x: Array, k: int, *, seed: int = 0, exact: int = EXACT, compared: int = COMPARED) -> Neighbours:
    """Find each row's k nearest other rows.

    Args:
        x: (n, d) float32, finite.
        k: how many; all n - 1 when there are fewer.
        seed: of the inverted lists.
        exact: the number of rows up to which all are compared.
        compared: see `COMPARED`.
    """
    k = max(min(k, len(x) - 1), 0)
    distance, index = np.empty((len(x), k)), np.empty((len(x), k), dtype=np.int32)

    def keep(block: NearBlock) -> None:
        index[block.rows], squared = block.nearest(k)
        distance[block.rows] = np.sqrt(squared)

    _, facts = Index(x, seed, exact).search(k, np.inf, keep, compared)
    return Neighbours(distance, index, facts)


def within(x: Array, radius: float, most: int, *, seed: int = 0, exact: int = EXACT, compared: int = COMPARED) -> Edges:
    """Find each row's neighbours at a distance of at most `radius` in float64, itself left out, the nearest `most` of them.

    Args:
        x: (n, d) float32, finite.
        radius: at least 0.
        most: neighbours for each row.
        seed, exact, compared: see `nearest_neighbours`.
    """
    return Index(x, seed, exact).edges(radius, most, compared)


@dataclass(frozen=True)
class NearBlock:
    """The rows at `places`, and the `near` ones that were found for them."""

    all_rows: NearRows
    places: Array
    near: NearPairs

    @property
    def rows(self) -> Array:
        """(m,) int64, their numbers."""
        result: Array = self.all_rows.order[self.places]
        return result

    def nearest(self, k: int) -> tuple[Array, Array]:
        """Find (m, k) int64 of the nearest others, and their squared distances by the definition."""
        row, other = self.near.row, self.all_rows.order[self.near.place]
        squared = pair_distances(self.all_rows.x, self.all_rows.x, self.rows[row], other)
        order = np.lexsort((other, squared, row))
        starts = np.searchsorted(row, np.arange(len(self.places)))
        first = order[starts[:, None] + np.arange(k)]
        return other[first], squared[first]

    def within(self, radius: float, most: int) -> tuple[Array, Array]:
        """Count (m,) the others within the radius, at most `most`, the nearest; and list these, int32, ascending for each row."""
        x, near, number = self.all_rows.x, self.near, self.rows
        other = self.all_rows.order[near.place]
        inside = near.upper <= np.square(radius) * (1 - 2.0**-50)
        unsure = np.flatnonzero(~inside)
        inside[unsure] = pairs_within(x, number[near.row[unsure]], other[unsure], radius)
        count = np.bincount(near.row[inside], minlength=len(number))
        if (count > most).any():
            inside[self._beyond(np.flatnonzero(inside & (count > most)[near.row]), most)] = False
            count = np.minimum(count, most)
        key = np.sort(near.row[inside] * len(x) + other[inside])
        return count, (key % len(x)).astype(np.int32)

    def _beyond(self, pairs: Array, most: int) -> Array:
        """Find those `pairs` (numbers in `near`, more than `most` of each row) that are not among the `most` nearest of their row."""
        rows, near = self.all_rows, self.near
        row, place, product = near.row[pairs], near.place[pairs], near.product[torch.from_numpy(pairs)]
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        group = np.cumsum(np.diff(row, prepend=-1) != 0) - 1
        # of those from this product on, too many are left out for one that is certainly nearer to be among them
        key = np.sort((group << 32) + bits(product))
        next_one = (key[starts + most] - (group[starts] << 32)).astype(bits(product).dtype)
        next_one = torch.from_numpy(next_one).view(product.dtype)
        slack, square = (float(of[torch.from_numpy(place)].max()) for of in (rows.slack, rows.square))
        limit = rows.limit(near.upper[pairs], self.places[row], slack, square)
        certain = (next_one[torch.from_numpy(group)] > limit).numpy()
        left = most - np.bincount(group[certain], minlength=len(starts))
        asked = np.flatnonzero(~certain)
        lowest = nearest_of_groups(rows.x, group[asked], self.rows[row[asked]], rows.order[place[asked]], left)
        result: Array = pairs[asked[~lowest]]
        return result


class Index:
    """The (n, d) float32 rows `x`, in an order in which those to be compared lie side by side; `kept` may hold their clusters."""

    def __init__(self, x: Array, seed: int, exact: int = EXACT, kept: Kept | None = None) -> None:
        self._lists = inverted_lists(x, seed, kept) if len(x) > exact else None
        members = [np.arange(len(x))] if self._lists is None else self._lists.members
        self._rows = NearRows(x, np.concatenate(members))
        self._start = np.concatenate([[0], np.cumsum([len(rows) for rows in members])])
        self._place = np.empty(len(x), dtype=np.int64)
        self._place[self._rows.order] = np.arange(len(x))
        self._spans: Array | None = None

    def search(
        self,
        k: int,
        radius: float,
        keep: Callable[[NearBlock], Result],
        compared: int = COMPARED,
        *,
        of: Array | None = None,
        at_once: int = _QUERIES,
    ) -> tuple[list[Result], Facts]:
        """Apply `keep` to one block of rows after another with those near them: within the radius, and among the k nearest.

        With `of`, to these rows alone, `at_once` of them, with all that were compared and lie within the radius; k says how well is looked.
        """
        if k == 0:
            return [], {"index": "exact", "recall": 1.0}
        probes, facts = self._probes(k, compared)
        wanted = np.ones(len(self._place), dtype=bool)
        if of is not None:
            wanted[:] = False
            wanted[self._place[of]] = True

        def start() -> Callable[[tuple[int, Array]], list[Result]]:
            room = Room()

            def compare(item: tuple[int, Array]) -> list[Result]:
                number, places = item
                probed = [0] if self._lists is None else self._lists.probed(number, probes, k + 1)
                rows, places, stretches = self._rows.around(places, self._stretches(probed))
                blocks = (places[begin : begin + at_once] for begin in range(0, len(places), at_once))
                nearest = k if of is None else None
                return [keep(NearBlock(rows, block, rows.find(block, stretches, nearest, radius, room))) for block in blocks]

            return compare

        # all of a list is seen from the middle of it
        step = at_once if self._lists is None else len(self._place)
        members = (np.flatnonzero(wanted[start:stop]) + start for start, stop in pairwise(self._start.tolist()))
        parts = ((number, places[begin : begin + step]) for number, places in enumerate(members) for begin in range(0, len(places), step))
        return [result for results in each(parts, start) for result in results], facts

    def _stretches(self, lists: Iterable[int]) -> Stretches:
        return [(int(self._start[number]), int(self._start[number + 1])) for number in lists]

    def _probes(self, k: int, compared: int) -> tuple[int, Facts]:
        """Find how many lists to compare each with, and the recall: the share of true neighbours of some fixed rows that are in them."""
        rows, lists, n = self._rows, self._lists, len(self._rows.x)
        if lists is None:
            return 1, {"index": "exact", "recall": 1.0}
        some = np.unique(np.linspace(0, n - 1, _SAMPLE).astype(np.int64))

        def compare(begin: int) -> Array:
            places = self._place[some[begin : begin + _SAMPLED]]
            near = rows.find(places, [(0, n)], k, np.inf, tied=_UNDECIDED)
            return lists.rank(rows.order[places], NearBlock(rows, places, near).nearest(k)[0])

        needed = np.concatenate(each(range(0, len(some), _SAMPLED), lambda: compare))
        recall = np.cumsum(np.bincount(needed.ravel(), minlength=len(lists.members))) / needed.size
        probes = min(int(np.searchsorted(recall, RECALL)) + 1, lists.affordable(compared), len(lists.members))
        facts: Facts = {"index": f"{len(lists.members)} inverted lists, {probes} probed", "recall": round(float(recall[probes - 1]), 4)}
        return probes, facts

    def edges(self, radius: float, most: int, compared: int = COMPARED, *, of: Array | None = None, at_once: int = _QUERIES) -> Edges:
        """See `within`. With `of`, (m,) int64, all neighbours that are found of these rows, and none of others, which are full."""
        n = len(self._place)
        most = max(min(most, n - 1), 0)
        count = np.zeros(n, dtype=np.int64)

        def keep(block: NearBlock) -> tuple[Array, Array]:
            count[block.rows], index = block.within(radius, most if of is None else n)
            return block.rows, index

        blocks, facts = self.search(most, radius, keep, compared, of=of, at_once=at_once)
        start = np.concatenate([[0], np.cumsum(count)])
        index = np.empty(start[-1], dtype=np.int32)
        for rows, kept in blocks:
            ends = np.cumsum(count[rows])
            index[np.arange(len(kept)) + np.repeat(start[rows] - (ends - count[rows]), count[rows])] = kept
        full = count >= most
        if of is not None and self._lists is None:
            full = ~np.isin(np.arange(n), of)
        elif of is not None and len(of) < n:
            full[:] = True
        return Edges(start, index, full, facts)

    def balls(self, rows: Array, radius: float, covered: Array) -> list[Array]:
        """Find for each of `rows` (m,) int64 the rows within the radius, itself included, int64 and ascending.

        Lists all of whose rows are `covered` (n,) bool are passed over.
        """
        places, near = self._place[rows], np.zeros(1, dtype=np.int64)
        if self._lists is not None:
            self._spans = self._lists.spans(self._rows.x) if self._spans is None else self._spans
            near = np.unique(np.concatenate([self._lists.meeting(self._spans, self._rows.x[row], radius) for row in rows]))
            bare = np.concatenate([[0], np.cumsum(~covered[self._rows.order])])[self._start]
            near = near[bare[near + 1] > bare[near]]
        stretches = self._joined(near)

        def start() -> Callable[[Stretches], tuple[Array, Array]]:
            room = Room()

            def see(part: Stretches) -> tuple[Array, Array]:
                found = self._rows.find(places, part, None, radius, room)
                count, others = NearBlock(self._rows, places, found).within(radius, len(self._place))
                return np.repeat(np.arange(len(rows)), count), others

            return see

        found = [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int32)), *each(grouped(stretches, _BALL_ROWS), start)]
        of, others = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return [np.sort(np.append(others[of == number], row)) for number, row in enumerate(rows)]

    def apart(self, rows: Array, most: int) -> Array:
        """Return the first up to `most` of `rows` that are in different lists."""
        if self._lists is None:
            return rows[:0]
        first = np.unique(self._lists.list_of[rows], return_index=True)[1]
        result: Array = rows[np.sort(first)[:most]]
        return result

    def _joined(self, lists: Iterable[int]) -> Stretches:
        """Join ascending `lists`, those beside each other as one."""
        result: Stretches = []
        for start, stop in self._stretches(lists):
            if result and result[-1][1] == start:
                result[-1] = result[-1][0], stop
            else:
                result.append((start, stop))
        return result

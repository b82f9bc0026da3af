"""A coarse division of the rows: near rows are in the same list or in lists whose centres are near."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raystream.selection.clusters import clusters
from raystream.selection.rows import Array, squared_distances

_LARGEST = 4
"""Lists longer than this many times the average are cut up: the work grows with the square of their length."""


@dataclass(frozen=True)
class InvertedLists:
    """c lists of n rows.

    Attributes:
        members: for each list its rows, int64, ascending.
        list_of: (n,) int32, the list of each row.
        near: (c, c) int32, for each list all lists, itself first, by the distance of their centres.
    """

    members: list[Array]
    list_of: Array
    near: Array

    def probed(self, number: int, probes: int, least: int) -> Array:
        """int32, the `probes` lists nearest to one list, or more of them if those hold fewer than `least` rows."""
        held = np.cumsum([len(self.members[other]) for other in self.near[number]])
        result: Array = self.near[number, : max(probes, int(np.searchsorted(held, least)) + 1)]
        return result

    def rank(self, rows: Array, others: Array) -> Array:
        """(m, k): at which place the list of each row of `others` (m, k) stands, as seen from the list of its row of `rows` (m,)."""
        place = np.empty_like(self.near)
        np.put_along_axis(place, self.near, np.arange(len(self.near), dtype=np.int32)[None], axis=1)
        result: Array = place[self.list_of[rows][:, None], self.list_of[others]]
        return result


def inverted_lists(x: Array, seed: int) -> InvertedLists:
    """About sqrt(n) lists of the (n, d) float32 rows."""
    n = len(x)
    found = clusters(x, round(np.sqrt(n)), seed)
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
    return InvertedLists(members, list_of, near)

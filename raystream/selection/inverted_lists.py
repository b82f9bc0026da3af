"""A coarse division of the rows: near rows are in the same list or in lists whose centres are near."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raystream.selection.clusters import clusters
from raystream.selection.rows import Array, squared_distances
from raystream.selection.threads import each

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

    def probed(self, number: int, probes: int, least: int) -> Array:
        """int32, the `probes` lists nearest to one list, or more of them if those hold fewer than `least` rows."""
        held = np.cumsum([len(self.members[other]) for other in self.near[number]])
        result: Array = self.near[number, : max(probes, int(np.searchsorted(held, least)) + 1)]
        return result

    def spans(self, x: Array) -> Array:
        """(c,) float64, at least the largest distance of a member to its list's centre; `x` are the rows."""

        def span(number: int) -> float:
            return float(_distances(x[self.members[number]], self.centres[number])[1].max(initial=0.0))

        return np.asarray(each(range(len(self.members)), lambda: span))

    def meeting(self, spans: Array, point: Array, radius: float) -> Array:
        """int64 lists, ascending, that may hold rows within the radius of `point` (d,)."""
        return np.flatnonzero(_distances(self.centres, point)[0] <= (radius + spans) * (1 + 2.0**-50))

    def rank(self, rows: Array, others: Array) -> Array:
        """(m, k): at which place the list of each row of `others` (m, k) stands, as seen from the list of its row of `rows` (m,)."""
        place = np.empty_like(self.near)
        np.put_along_axis(place, self.near, np.arange(len(self.near), dtype=np.int32)[None], axis=1)
        result: Array = place[self.list_of[rows][:, None], self.list_of[others]]
        return result


def _distances(x: Array, point: Array) -> tuple[Array, Array]:
    """(n,) float64 bounds of the distances of float32 rows to a point, from below and from above."""
    with np.errstate(over="ignore", under="ignore"):
        difference = x - point
        squared = np.einsum("ij,ij->i", difference, difference).astype(np.float64)
    error = (x.shape[1] + 8) * 2.0**-23
    tiny = x.shape[1] * 2.0**-120
    below = np.where(np.isfinite(squared), np.sqrt(np.maximum(squared * (1 - error) - tiny, 0.0)), 0.0)
    return below, np.sqrt(squared * (1 + error) + tiny)


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
    return InvertedLists(members, list_of, near, centres)

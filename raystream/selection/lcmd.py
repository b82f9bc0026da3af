"""Largest cluster maximum distance: the farthest row of the cluster that is covered worst in all.

Holzmüller, Zaverkin, Kästner and Steinwart, *A framework and benchmark for deep batch active learning for
regression*, 2023. Where farthest-first goes after single outliers, this goes where many rows are far.

Each pick is one product of all rows with the new centre. Products whose rigorous bound says that the new
centre is farther than the old one are all that most rows cost; the others get float64 differences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from raystream.selection.arguments import count, labelled_of, shards_of
from raystream.selection.bounds import Encoding, Precision
from raystream.selection.constraints import Constraints
from raystream.selection.core_set import prepare
from raystream.selection.nearest import Centres, block_rows, nearest
from raystream.selection.rows import Array, Metric, squared_distances
from raystream.selection.shards import DEFAULT_MEMORY, LocalShards, Shards
from raystream.selection.strategy import Candidates, Picked, Request, embeddings, gathered
from raystream.selection.threads import each

_BLOCK = 16384
_CENTRES_AT_ONCE = 4096
_FEWEST_CENTRES = 32
"""bfloat16 units take as long for fewer columns, or are not used at all."""
_SUM_BITS = 61


@dataclass(frozen=True)
class LargestCluster:
    """What was chosen.

    Attributes:
        rows: (b,) int64 in order of choice.
        gain: (b,) float64, the sum of squared distances in the row's cluster when it was taken; nan for the first if nothing is labelled.
        distance: (b,) float64 to the nearest row chosen before or labelled; nan for the first if nothing is labelled.
    """

    rows: Array
    gain: Array
    distance: Array


def lcmd(
    x: ArrayLike, k: int, *, labelled: ArrayLike | None = None, metric: Metric = "euclidean", memory: int = DEFAULT_MEMORY
) -> Array:
    """Choose k rows, each the farthest from its centre in the cluster with the largest sum of squared distances.

    A row's cluster is that of the nearest row chosen before or labelled, the earlier one at a tie. With nothing
    labelled the first row is the farthest from the mean. Ties go to the cluster of the earlier centre, labelled
    ones first, then to the lower row. Sums are exact to n 2^-61 of the largest squared distance at the time, in any order.

    Args:
        x: (n, d) embeddings; taken as float32 unless float16.
        k: how many rows; all n when there are fewer.
        labelled: (m, d) rows that are centres already.
        metric: `cosine` works on rows divided by their lengths.
        memory: bytes that the rows may take as float32.

    Returns:
        (min(k, n),) int64 rows in order of choice.

    Raises:
        DataError: embeddings that are not finite, or not as wide as the labelled ones.
        QueryError: rows that don't fit `memory`.
    """
    shards = shards_of(x, metric)
    return largest_cluster(shards, count(k), labelled=labelled_of(labelled, shards.width, metric), memory=memory).rows


def largest_cluster(
    shards: Shards,
    k: int,
    *,
    labelled: Array | None = None,
    constraints: Constraints | None = None,
    memory: int = DEFAULT_MEMORY,
    precision: Precision = "auto",
) -> LargestCluster:
    """`lcmd` for those who have shards.

    Args:
        shards: the candidates.
        k: how many rows at most.
        labelled: (m, d) float32 in the metric's space.
        constraints: rows that they block are passed over, do not become centres, but count in their clusters' sums.
        memory: bytes that the rows may take as float32.
        precision: of the bounds; has no influence on the result.
    """
    if len(shards) == 0 or k <= 0:
        return LargestCluster(np.empty(0, dtype=np.int64), np.empty(0), np.empty(0))
    fixed = np.empty((0, shards.width), dtype=np.float32) if labelled is None else labelled
    x = gathered(shards.rows, memory, "lcmd")
    encoding, mean = prepare(LocalShards.of_array(x), fixed, precision)
    free = _Free(x, constraints)
    clusters = _Clusters(x, fixed, encoding, k)
    rows: list[int] = []
    gain: list[float] = []
    distance: list[float] = []
    if not clusters.size:
        first = free.farthest(np.flatnonzero(free.alive), _squared_to(x, mean))
        if first is not None:
            rows, gain, distance = [first], [math.nan], [math.nan]
            clusters.add(first)
    while clusters.size and len(rows) < k and (found := clusters.largest(free.alive)) is not None:
        cluster, members = found
        row = free.farthest(members, clusters.squared)
        if row is not None:  # else all of the cluster's rows are blocked
            rows.append(row)
            gain.append(clusters.sum_of(cluster))
            distance.append(float(np.sqrt(clusters.squared[row])))
            clusters.add(row)
    return LargestCluster(np.asarray(rows, dtype=np.int64), np.asarray(gain), np.asarray(distance))


def lcmd_strategy(candidates: Candidates, request: Request) -> Picked:
    """`lcmd` in a query."""
    found = largest_cluster(
        embeddings(candidates, "lcmd"), request.budget, labelled=request.labelled, constraints=request.constraints, memory=request.memory
    )
    return Picked(found.rows, found.gain, found.distance, passes=1)


class _Free:
    """Which rows may still be chosen, as far as is known."""

    def __init__(self, x: Array, constraints: Constraints | None) -> None:
        self._x, self._constraints = x, constraints
        self.alive = np.ones(len(x), dtype=bool)
        if constraints is not None:
            self.alive[constraints.taken] = False

    def farthest(self, rows: Array, squared: Array) -> int | None:
        """Take the row of the largest `squared` (n,) among `rows`, ascending, that nothing blocks; None if all are blocked."""
        step = 1
        while len(rows):
            first = self._leading(rows, squared, step)
            x = self._x[first]
            blocked = np.zeros(len(first), dtype=bool) if self._constraints is None else self._constraints.blocked(first, x)
            self.alive[first[blocked]] = False
            left = np.flatnonzero(~blocked)
            if len(left):
                row = int(first[left[0]])
                self.alive[row] = False
                if self._constraints is not None:
                    self._constraints.take(row, x[left[0]])
                return row
            rows = rows[self.alive[rows]]
            step = min(max(64, 4 * step), 16384)
        return None

    @staticmethod
    def _leading(rows: Array, squared: Array, count: int) -> Array:
        value = squared[rows]
        order = [int(np.argmax(value))] if count == 1 else np.argsort(-value, kind="stable")[:count]
        result: Array = rows[order]
        return result


class _Clusters:
    """Each row's nearest centre, the exact squared distance to it, and their sum for each centre."""

    def __init__(self, x: Array, labelled: Array, encoding: Encoding, picks: int) -> None:
        n = len(x)
        self._x, self._encoding = x, encoding
        self.size = len(labelled)
        self.squared = np.full(n, np.inf)
        self._of = np.zeros(n, dtype=np.int32)
        self._operand, self._slack = torch.empty((n, encoding.width), dtype=encoding.dtype), torch.empty(n)
        # a product above a row's limit means that its present centre is nearer
        self._limit = torch.empty(n, dtype=encoding.dtype)
        each(self._blocks(_BLOCK), lambda: self._encode)
        self._largest_slack = float(self._slack.max())
        self._largest_square = float(self._square(slice(None)).max())
        self._sum = np.zeros(len(labelled) + min(picks, n), dtype=np.int64)
        if len(labelled):
            self._start(labelled)

    def _blocks(self, size: int) -> list[slice]:
        return [slice(begin, min(begin + size, len(self._x))) for begin in range(0, len(self._x), size)]

    def _encode(self, at: slice) -> None:
        self._slack[at] = self._encoding.rows(self._x[at], self._operand[at])[1]

    def _square(self, which: slice | torch.Tensor) -> torch.Tensor:
        """float64 bounds of the rows' squared lengths, scaled, as in their operands."""
        return self._operand[which, self._x.shape[1]].double() * (1 + 2.0**-7)

    def _start(self, labelled: Array) -> None:
        """Put each row to its nearest labelled row."""
        parts = range(0, len(labelled), _CENTRES_AT_ONCE)
        chunks = [(begin, Centres.of(labelled[begin : begin + _CENTRES_AT_ONCE], self._encoding)) for begin in parts]

        def see(at: slice) -> None:
            for begin, chunk in chunks:
                found = nearest(self._x[at], chunk, exact_distance=True)
                nearer = found.upper < self.squared[at]
                self.squared[at] = np.where(nearer, found.upper, self.squared[at])
                self._of[at] = np.where(nearer, found.index + begin, self._of[at])

        each(self._blocks(block_rows(min(len(labelled), _CENTRES_AT_ONCE))), lambda: see)
        self._settle()

    def _settle(self) -> None:
        """Every row has a centre for the first time."""
        self._sum_up(self._unit())
        for at in self._blocks(_BLOCK):
            self._bound(np.arange(at.start, at.stop))

    def _unit(self) -> int:
        """p, from the largest distance at present: sums are of multiples of 2^-p."""
        return _SUM_BITS - math.ceil(math.log2(max(len(self._x), 2))) - math.frexp(float(self.squared.max()))[1]

    def _sum_up(self, power: int) -> None:
        self._power = power
        self._sum[:] = 0
        np.add.at(self._sum, self._of, self._units(self.squared))

    def _units(self, squared: Array) -> Array:
        """int64, below 2^61 / n: no order of summing changes a sum."""
        result: Array = np.rint(np.ldexp(squared, self._power)).astype(np.int64)
        return result

    def _bound(self, rows: Array) -> None:
        which = torch.from_numpy(rows)
        slack = self._slack[which].double() + self._largest_slack
        self._limit[which] = self._encoding.limit(self.squared[rows], slack, self._square(which) + self._largest_square)

    def largest(self, alive: Array) -> tuple[int, Array] | None:
        """The cluster with the largest sum, the earliest at a tie, that has rows alive, and these, ascending; None if no row is."""
        cluster = int(np.argmax(self._sum[: self.size]))
        members = np.flatnonzero((self._of == cluster) & alive)
        if not len(members):
            left = np.bincount(self._of[alive], minlength=self.size) > 0
            if not left.any():
                return None
            cluster = int(np.argmax(np.where(left, self._sum[: self.size], -1)))
            members = np.flatnonzero((self._of == cluster) & alive)
        return cluster, members

    def sum_of(self, cluster: int) -> float:
        """The sum of squared distances."""
        return math.ldexp(float(self._sum[cluster]), -self._power)

    def add(self, row: int) -> None:
        """The row becomes a centre."""
        centre: Array = self._x[row]
        number, self.size = self.size, self.size + 1
        if number == 0:
            self.squared[:] = _squared_to(self._x, centre)
            self._settle()
            return
        operand = self._encoding.centres(centre[None])[0]
        if self._encoding.bfloat16:
            operand = operand.repeat(_FEWEST_CENTRES, 1)
        moved = each(self._blocks(_BLOCK), lambda: lambda at: self._nearer(at, centre, operand))
        rows = np.concatenate([rows for rows, _ in moved])
        squared = np.concatenate([squared for _, squared in moved])
        np.subtract.at(self._sum, self._of[rows], self._units(self.squared[rows]))
        self._sum[number] += self._units(squared).sum()
        self._of[rows], self.squared[rows] = number, squared
        self._bound(rows)
        if (power := self._unit()) != self._power:
            self._sum_up(power)

    def _nearer(self, at: slice, centre: Array, operand: torch.Tensor) -> tuple[Array, Array]:
        """The rows of a block that are nearer to the new centre than to their own, and their squared distances."""
        product = torch.mm(self._operand[at], operand.T)[:, 0].contiguous()
        bits = torch.int16 if product.dtype == torch.bfloat16 else torch.int32
        # as integers: the order is the same, and a negative product can only stand for zero
        rows = torch.nonzero(product.view(bits) <= self._limit[at].view(bits)).numpy()[:, 0]
        if self._encoding.exact:
            squared = self._encoding.upper(product[torch.from_numpy(rows)], 0.0)
        else:
            squared = _squared_to(self._x[at.start + rows], centre)
        rows += at.start
        nearer = squared < self.squared[rows]
        return rows[nearer], squared[nearer]


def _squared_to(x: Array, point: Array) -> Array:
    """(m,) float64 by the definition, in bounded memory."""
    result = np.empty(len(x))

    def see(begin: int) -> None:
        result[begin : begin + 2048] = squared_distances(x[begin : begin + 2048], point)

    if len(x) <= _BLOCK:
        for begin in range(0, len(x), 2048):
            see(begin)
    else:
        each(range(0, len(x), 2048), lambda: see)
    return result

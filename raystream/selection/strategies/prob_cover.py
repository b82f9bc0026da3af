"""Rows whose balls cover as many others as can be: for small budgets, where a label is believed of a row's neighbourhood.

Yehuda et al., *Active learning through a covering lens*, 2022.

The radius is that of balls which lie within one cluster (section 3.2), half of them where the paper asks for 95%: k-means cuts through real
groups wherever it is asked for another number of clusters, and a radius at which next to no ball meets a cut is one at which most rows
are alone (benchmarks/LOG.md). What balls hold is a graph with a limited number of edges: where there would be more, rows drawn by hashes
stand for all when gains are counted. A chosen row's ball is whole.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike

from raystream.errors import QueryError
from raystream.selection.arguments import checked_seed, count, labelled_of, shards_of
from raystream.selection.clusters import clusters, sample, scale_power
from raystream.selection.constraints import Constraints
from raystream.selection.near_pairs import pairs_within
from raystream.selection.neighbours import COMPARED, EXACT, Edges, Index
from raystream.selection.represents import assign
from raystream.selection.rows import Array, Metric, as_rows, squared_distances, vectors
from raystream.selection.shards import DEFAULT_MEMORY
from raystream.selection.strategies.core_set import farthest_first
from raystream.selection.strategy import Candidates, Kept, Picked, Request, derive, embeddings, gathered
from raystream.threads import each, one_thread

_SAMPLE = 1000
_BLOCK = 8192
_SPARE = 4
"""Rows of each block whose distances float64 looks at, since float32 leaves the order of the nearest uncertain."""


PURITY = 0.5


def pure_radius(x: Array, *, purity: float = PURITY, count: int | None = None, seed: int = 0, kept: Kept | None = None) -> float:
    """Find the largest radius at which the balls around a share `purity` of the rows hold rows of one pseudo-label only.

    Args:
        x: (n, d) float32, at least one row.
        purity: in (0, 1].
        count: of the clusters of k-means, which are the pseudo-labels: the classes, if their number is known;
            left out, 50, or one for every 20 rows.
        seed: of the clusters and of the up to 1,000 rows whose balls are looked at.
        kept: where the radius, or the clusters, of these rows may lie already.

    Returns:
        The radius; a radius that reaches everything when there is one pseudo-label only.

    Raises:
        QueryError: a purity out of range.
    """
    if not 0 < purity <= 1:
        raise QueryError(f"`purity` is {purity}, expected a number above 0, at most 1")
    count = count or min(50, max(len(x) // 20, 2))
    parameters = {"purity": purity, "count": count, "seed": seed}
    found = derive(kept, "pure_radius 2", parameters, lambda: {"radius": np.asarray(_pure_radius(x, purity, count, seed, kept))})
    return float(found["radius"])


def _pure_radius(x: Array, purity: float, count: int, seed: int, kept: Kept | None) -> float:
    """See `pure_radius`."""
    label = clusters(x, count, seed, kept=kept).nearest
    rows = sample(len(x), _SAMPLE, seed)
    free = _nearest_other(x, label, rows)
    # a ball is pure while its radius is below the distance to the nearest row with another label
    impure = len(rows) - int(np.ceil(purity * len(rows) * (1 - 2.0**-40)))
    first = float(np.sort(free)[impure])
    return _everything(x) if np.isinf(first) else float(np.nextafter(first, 0))


def _nearest_other(x: Array, label: Array, rows: Array) -> Array:
    """Measure (m,) float64 the distance from each of `rows` to the nearest row of another label, inf if there is none."""
    power = scale_power(x)
    mean = np.ldexp(x.mean(axis=0, dtype=np.float64), power).astype(np.float32)
    mine = torch.from_numpy(np.ldexp(x[rows], power) - mean)
    of_mine = torch.from_numpy(label[rows])

    def see(begin: int) -> Array:
        block = torch.from_numpy(np.ldexp(x[begin : begin + _BLOCK], power) - mean)
        near = torch.addmm(block.square().sum(1), mine, block.T, alpha=-2)
        near[of_mine[:, None] == torch.from_numpy(label[begin : begin + _BLOCK])] = torch.inf
        which = begin + near.topk(min(_SPARE, len(block)), dim=1, largest=False).indices.numpy()
        squared = squared_distances(x[which], x[rows][:, None])
        result: Array = np.where(label[which] == label[rows][:, None], np.inf, squared).min(axis=1)
        return result

    squared = np.stack(each(range(0, len(x), _BLOCK), lambda: see)).min(axis=0)
    distance: Array = np.sqrt(squared)
    return distance


def _everything(x: Array) -> float:
    """Return a distance that no two rows exceed: twice the largest from the mean."""
    mean = x.mean(axis=0, dtype=np.float64)
    return 2 * max(float(np.sqrt(squared_distances(x[i : i + _BLOCK], mean).max())) for i in range(0, len(x), _BLOCK))


def _balls_of_some(x: Array, radius: float, seed: int) -> Array:
    """Estimate for 512 of the rows, (m,) float64, how many others lie within the radius: by the definition, of up to 2,048 others."""
    of, others = sample(len(x), _BALLS_SEEN, seed), sample(len(x), _OTHERS_SEEN, seed + 1)
    middle = x[of].mean(axis=0, dtype=np.float64)
    a, b = torch.from_numpy(x[of] - middle), torch.from_numpy(x[others] - middle)
    with one_thread():
        sums = a.square().sum(1)[:, None] + b.square().sum(1)
        beyond = (sums - 2 * (a @ b.T)).sub_(radius * radius).numpy()
        error = sums.numpy() * (x.shape[1] + 8) * 2.0**-50
    inside = beyond < -error
    row, other = np.nonzero(np.abs(beyond) <= error)
    inside[row, other] = pairs_within(x, of[row], others[other], radius)
    inside &= of[:, None] != others
    result: Array = inside.sum(axis=1) * (len(x) / len(others))
    return result


_BALLS_SEEN, _OTHERS_SEEN = 512, 2048
_BALLS = 16
"""Balls that one product makes, for about what one of them costs."""
_PAIRS = 1 << 22
"""Rows in these balls, about, by the largest of those made before."""
_AT_ONCE = 1024
"""Balls whose edges are found together, at most."""


class Balls:
    """Balls around the (n, d) float32 rows `x`, whose edges `kept` may hold.

    Attributes:
        edges: from each row to the rows of its ball but itself; where balls hold more than `most` on average, from so many rows drawn by
            hashes that there are about n * most edges.
    """

    def __init__(self, x: Array, radius: float, most: int, seed: int, *, exact: int = EXACT, kept: Kept | None = None) -> None:
        self._x, self._radius, self._seed, self._exact, self._kept = x, radius, seed, exact, kept
        self._whole: dict[int, Array] = {}
        self._largest = len(x)
        parameters = {"radius": radius, "most": most, "seed": seed, "exact": exact, "compared": COMPARED}
        self.edges = Edges.kept(derive(kept, "edges 3", parameters, lambda: self._edges(most).arrays()))

    def _edges(self, most: int) -> Edges:
        """Find the edges: within a ball rows are counted, none is nearer than another."""
        n = len(self._x)
        if most >= n - 1:
            return self._index.edges(self._radius, most)
        size = _balls_of_some(self._x, self._radius, self._seed)
        count = min(int(n * most / max(float(size.mean()), 1.0)), n)
        at_once = min(max(int(_PAIRS / max(float(size.max()), 1.0)), 1), _AT_ONCE)
        return self._index.edges(self._radius, most, of=sample(n, max(count, 1), self._seed), at_once=at_once)

    def uncovered(self, row: int, covered: Array, next_ones: Callable[[], Array]) -> Array:
        """Find int64 rows of the whole ball around `row`, itself included, that are not `covered` (n,) bool; ascending.

        Where all rows have to be gone through for a ball, those of `next_ones`, which are likely to be asked for next, come by as well:
        what is covered stays so.
        """
        ball = self._ball(row, covered, next_ones) if self.edges.full[row] else np.sort(np.append(self.edges.of(np.asarray([row])), row))
        result: Array = ball[~covered[ball]]
        return result

    def _ball(self, row: int, covered: Array, next_ones: Callable[[], Array]) -> Array:
        if row not in self._whole:
            likely = next_ones()
            likely = self._index.apart(likely[self.edges.full[likely] & (likely != row)], min(_BALLS - 1, _PAIRS // self._largest))
            rows = np.append(row, likely)
            self._whole = dict(zip(rows.tolist(), self._index.balls(rows, self._radius, covered), strict=True))
            self._largest = max(map(len, self._whole.values()))
        return self._whole.pop(row)

    @cached_property
    def _index(self) -> Index:
        return Index(self._x, self._seed, self._exact, self._kept)


_EDGES = 1 << 26
"""Edges of the whole graph, unless the query says how many for each row."""
_FEWEST_EDGES = 32
_EDGES_AT_ONCE = 1 << 21
_OUT = -(1 << 40)
_LEADING = 1 << 14
"""Rows among which those are looked for whose balls are made beside a chosen one's: the largest gains are often all of one group."""


def prob_cover(
    x: ArrayLike,
    k: int,
    *,
    labelled: ArrayLike | None = None,
    metric: Metric = "euclidean",
    seed: int = 0,
    delta: float | None = None,
    purity: float = PURITY,
    clusters: int | None = None,
    edges: int | None = None,
    memory: int = DEFAULT_MEMORY,
) -> Array:
    """Choose, one after the other, the row within `delta` of which the most rows are not covered yet, ties to the lower row.

    When every row is covered, farthest-first (`core_set`) goes on.

    Args:
        x: (n, d) embeddings.
        k: how many rows; all n when there are fewer.
        labelled: (m, d) rows whose balls are covered already.
        metric: `cosine` works on rows divided by their lengths.
        seed: of the pseudo-labels and the index.
        delta: the radius that a label is believed in, above 0; left out, that of `pure_radius`.
        purity: see `pure_radius`.
        clusters: the number of pseudo-labels, see `pure_radius`.
        edges: rows of each ball, on average, that gains are counted by: where balls hold more, rows drawn by hashes stand for all. Left
            out, all in pools of up to 8,192 rows, 671 at 100,000, 67 at a million. What a chosen row covers is its whole ball.
        memory: bytes that the rows may take as float32.

    Returns:
        (min(k, n),) int64 distinct rows in order of choice.

    Raises:
        DataError: embeddings that are not finite.
        QueryError: a delta not above 0, a purity out of range, or rows that don't fit `memory`.
    """
    shards, k = shards_of(x, metric, memory), count(k)
    args = {"delta": delta, "purity": purity, "clusters": clusters, "edges": edges}
    given = {name: value for name, value in args.items() if value is not None}
    request = Request(k, checked_seed(seed), labelled_of(labelled, shards.width, metric), Constraints(k), memory=memory, args=given)
    return prob_cover_strategy(Candidates(shards=shards), request).rows


def prob_cover_strategy(candidates: Candidates, request: Request) -> Picked:
    """Run `prob_cover` in a query."""
    shards, args, constraints = embeddings(candidates, "prob_cover"), request.args, request.constraints
    delta = args.get("delta")
    if delta is not None and not delta > 0:
        raise QueryError(f"`delta` is {delta}, expected a number above 0")
    if not len(shards) or request.budget <= 0:
        return Picked(np.empty(0, dtype=np.int64), np.empty(0))
    x = gathered(shards.rows, request.memory, "prob_cover")
    labelled = vectors(request.labelled, shards.width, "euclidean")
    if delta is None:
        delta = pure_radius(x, purity=args.get("purity", PURITY), count=args.get("clusters"), seed=request.seed, kept=candidates.kept)
    most = args.get("edges", max(_EDGES // len(x), _FEWEST_EDGES))
    cover = _Cover(x, Balls(x, float(delta), most, request.seed, kept=candidates.kept), _near_labelled(x, labelled, float(delta)))
    rows, gain = cover.choose(request.budget, constraints)
    facts = {"delta": float(delta), "covered": float(cover.covered.mean()), **cover.balls.edges.facts}
    if len(rows) < request.budget and (len(rows) or len(labelled)):  # else every row was blocked from the start
        centres = np.concatenate([labelled, x[rows]])
        rest = farthest_first(shards, request.budget - len(rows), labelled=centres, exclude=constraints.taken, constraints=constraints)
        rows, gain = np.concatenate([rows, rest.rows]), np.concatenate([gain, np.zeros(len(rest.rows))])
    return Picked(rows, gain, passes=1, facts=facts)


def _near_labelled(x: Array, labelled: Array, delta: float) -> Array:
    """Tell (n,) bool the rows within `delta` of a labelled one."""
    result = np.zeros(len(x), dtype=bool)
    if len(labelled):
        nearest = assign(as_rows(x), labelled).nearest
        for begin in range(0, len(x), 8192):
            which = slice(begin, begin + 8192)
            result[which] = np.sqrt(squared_distances(x[which], labelled[nearest[which]])) <= delta
    return result


class _Cover:
    """The greedy cover: what is covered, and how many rows each row would add.

    A row's gain is the number of uncovered rows that have an edge to it, itself included: all that are in its ball, or those of them that
    were drawn.
    """

    def __init__(self, x: Array, balls: Balls, covered: Array) -> None:
        self._x, self.balls = x, balls
        self.covered = np.zeros(len(x), dtype=bool)
        self._gain = np.ones(len(x), dtype=np.int64)
        for begin in range(0, len(balls.edges.index), _EDGES_AT_ONCE):  # each piece is copied as int64
            self._gain += np.bincount(balls.edges.index[begin : begin + _EDGES_AT_ONCE], minlength=len(x))
        self._most_edges = int(np.diff(balls.edges.start).max())
        self._cover(np.flatnonzero(covered))

    def choose(self, budget: int, constraints: Constraints) -> tuple[Array, Array]:
        """Choose (rows, gains) until everything is covered that can be."""
        rows: list[int] = []
        gain: list[float] = []
        while len(rows) < budget and (row := self._best(constraints)) is not None:
            constraints.take(row, self._x[row])
            self._gain[row] = _OUT
            newly = self.balls.uncovered(row, self.covered, self._leading)
            self._cover(newly)
            rows.append(row)
            gain.append(float(len(newly)))
        return np.asarray(rows, dtype=np.int64), np.asarray(gain, dtype=np.float64)

    def _leading(self) -> Array:
        """Find int64 rows of the largest gains, the largest first."""
        count = min(_LEADING, len(self._gain))
        rows = np.argpartition(self._gain, len(self._gain) - count)[len(self._gain) - count :]
        result: Array = rows[np.lexsort((rows, -self._gain[rows]))]
        return result

    def _best(self, constraints: Constraints) -> int | None:
        """Find the lowest row of the largest gain that nothing blocks."""
        while (top := self._gain.max()) > 0:
            level = np.flatnonzero(self._gain == top)
            at, step = 0, 1
            while at < len(level):
                some = level[at : at + step]
                blocked = constraints.blocked(some, self._x[some])
                self._gain[some[blocked]] = _OUT  # for ever
                if not blocked.all():
                    return int(some[np.argmin(blocked)])
                at, step = at + step, min(2 * step, 4096)
        return None

    def _cover(self, rows: Array) -> None:
        """Cover these rows, not covered so far: they are no gain to anybody any more."""
        self.covered[rows] = True
        self._gain[rows] -= 1
        step = max(_EDGES_AT_ONCE // max(self._most_edges, 1), 1)
        for begin in range(0, len(rows), step):
            np.subtract.at(self._gain, self.balls.edges.of(rows[begin : begin + step]), 1)

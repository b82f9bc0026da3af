"""How far a row's label may be believed of its neighbours: the radius of balls that lie within one cluster.

Yehuda et al., *Active learning through a covering lens*, 2022, section 3.2.
"""

from __future__ import annotations

import numpy as np
import torch

from raystream.errors import QueryError
from raystream.selection.clusters import clusters, sample, scale_power
from raystream.selection.derived import Kept, derive
from raystream.selection.rows import Array, squared_distances
from raystream.selection.threads import each

_SAMPLE = 1000
_BLOCK = 8192
_SPARE = 4
"""Rows of each block whose distances float64 looks at, since float32 leaves the order of the nearest uncertain."""


def pure_radius(x: Array, *, purity: float = 0.95, count: int | None = None, seed: int = 0, kept: Kept | None = None) -> float:
    """The largest radius at which the balls around a share `purity` of the rows hold rows of one pseudo-label only.

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
    found = derive(kept, "pure_radius", parameters, lambda: {"radius": np.asarray(_pure_radius(x, purity, count, seed, kept))})
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
    """(m,) float64: the distance from each of `rows` to the nearest row of another label, inf if there is none."""
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
    """A distance that no two rows exceed: twice the largest from the mean."""
    mean = x.mean(axis=0, dtype=np.float64)
    return 2 * max(float(np.sqrt(squared_distances(x[i : i + _BLOCK], mean).max())) for i in range(0, len(x), _BLOCK))

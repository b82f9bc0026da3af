"""The report's map: the pool's density in the plane in which its embeddings vary most, with the chosen and the labelled rows on it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from markupsafe import Markup

from raystream.figures import shown
from raystream.report.svg import Legend, Scale, both, circle, legend, line, text
from raystream.threads import one_thread

NUMBERED = 20
CLASSES = 10
"""Different colours that points may have."""
_FITTED_ROWS = 5_000
_CELL = 10
_SHADES = 5
_MARK = 9.5
_LONGEST_NAME = 40

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Projection:
    """A map's two axes: the directions in which the pool's embeddings vary most.

    Attributes:
        mean: (d,).
        axes: (d, 2), orthonormal.
        share: of the variance that the two axes show.
    """

    mean: Floats
    axes: Floats
    share: float

    def __call__(self, embeddings: Floats) -> Floats:
        """Project (n, d) to (n, 2)."""
        plane: Floats = (embeddings - self.mean) @ self.axes
        return plane


def project(embeddings: Floats) -> Projection | None:
    """Find the principal plane of (n, d) embeddings by subspace iteration; None where there is no plane to see.

    An exact decomposition takes seconds for 4,096 dimensions; a picture needs two digits, for which some thousand evenly spaced rows do.
    """
    if embeddings.ndim != 2 or min(embeddings.shape) < 2:
        return None
    embeddings = embeddings[:: -(-len(embeddings) // _FITTED_ROWS)]
    mean = embeddings.mean(axis=0)
    centred = embeddings - mean
    variance = float(np.square(centred).sum())
    if not np.isfinite(variance) or variance <= 0:
        return None
    start = np.random.default_rng(0).standard_normal((embeddings.shape[1], min(8, *embeddings.shape)))
    with one_thread():  # narrow products: while another process has a core, threads would wait for each other
        rows = torch.from_numpy(centred)
        found = torch.from_numpy(start).to(rows.dtype)
        for _ in range(12):
            found = torch.linalg.qr(rows.T @ (rows @ found))[0]
        rotation = torch.linalg.svd(rows @ found, full_matrices=False)[2]
        axes = (found @ rotation[:2].T).numpy()
    # An axis may point either way: its largest entry is made positive, so that the map never flips.
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    return Projection(mean, axes, float(np.square(centred @ axes).sum()) / variance)


@dataclass(frozen=True, eq=False)
class MapPoints:
    """What is drawn: (n, 2) of the pool, (m, 2) labelled, (k, 2) chosen with their ascending ranks (k,), and what colours these go by.

    `groups` are (k,) names, at most ten different ones; None for one colour.
    """

    pool: Floats
    labelled: Floats
    chosen: Floats
    ranks: Sequence[int]
    groups: Sequence[str] | None


def pool_map(points: MapPoints) -> Markup:
    """Draw the pool's density with the labelled rows and the chosen ones on it; the first twenty carry their ranks."""
    names = sorted(set(points.groups), key=_natural) if points.groups is not None else []
    colour_of = {name: f"var(--class-{number})" for number, name in enumerate(names)}
    colours = [colour_of[group] for group in points.groups] if points.groups is not None else ["var(--chosen)"] * len(points.chosen)
    entries = [Legend("pool", "var(--shade-4)")]
    if len(points.labelled):
        entries.append(Legend("labelled", "var(--labelled)", "hollow"))
    if names:
        entries += [Legend(f"chosen, prediction {shown(name, _LONGEST_NAME)}", colour_of[name], "dot") for name in names]
    else:
        entries.append(Legend("chosen", "var(--chosen)", "dot"))
    return legend(entries) + both(lambda width: _draw(width, points, colours), "The pool's rows by their embeddings, and which are chosen")


def _draw(width: int, points: MapPoints, colours: Sequence[str]) -> tuple[int, list[str]]:
    height = round(width * (0.6 if width > 500 else 0.9))
    low, high = _extent(points)
    x, y = Scale(low[0], high[0], 6, width - 6), Scale(low[1], high[1], height - 6, 6)
    chosen = [(x(a), y(b)) for a, b in points.chosen.tolist()]
    drawn = _density(points.pool, x, y, width, height)
    drawn += [_diamond(x(a), y(b)) for a, b in points.labelled.tolist()]
    first = [place for place, rank in enumerate(points.ranks) if rank < NUMBERED]
    small = 2.5 if len(chosen) > 300 else 4
    for place in reversed(range(len(chosen))):
        drawn.append(circle(*chosen[place], small, f"fill: {colours[place]}; stroke: var(--paper); stroke-width: .7"))
    marks = spread([chosen[place] for place in first], _MARK, width, height)
    for place, (across, down) in zip(first, marks, strict=True):
        if (across, down) != chosen[place]:
            drawn.append(line([chosen[place], (across, down)], "", f"stroke: {colours[place]}; stroke-width: 1"))
    for place, (across, down) in zip(first, marks, strict=True):
        drawn.append(circle(across, down, _MARK - 1, f"fill: var(--paper); stroke: {colours[place]}; stroke-width: 2"))
        drawn.append(text(across, down + 4, str(points.ranks[place]), anchor="middle", name="strong"))
    return height, drawn


def _extent(points: MapPoints) -> tuple[Floats, Floats]:
    """Find the corners: nearly all of the pool, and every chosen and labelled row."""
    low, high = np.quantile(points.pool, [0.001, 0.999], axis=0)
    for some in (points.chosen, points.labelled):
        if len(some):
            low, high = np.minimum(low, some.min(axis=0)), np.maximum(high, some.max(axis=0))
    margin = 0.03 * (high - low) + 1e-9
    return low - margin, high + margin


def _density(pool: Floats, x: Scale, y: Scale, width: int, height: int) -> list[str]:
    """Draw squares, the darker the more rows lie in them; a path for each shade."""
    across, down = x(pool[:, 0]) // _CELL, y(pool[:, 1]) // _CELL  # type: ignore[arg-type]
    inside = (across >= 0) & (across < width // _CELL) & (down >= 0) & (down < height // _CELL)
    cells, counts = np.unique(np.stack([across, down])[:, inside].astype(int), axis=1, return_counts=True)
    if not len(counts):
        return []
    shade = np.floor(np.log(counts) / max(np.log(counts.max()), 1e-9) * (_SHADES - 1e-6)).astype(int)
    paths = []
    for number in range(_SHADES):
        where = "".join(f"M{a * _CELL} {b * _CELL}h{_CELL}v{_CELL}h-{_CELL}z" for a, b in cells[:, shade == number].T.tolist())
        paths.append(f'<path d="{where}" style="fill: var(--shade-{number})"/>')
    return paths


def _diamond(x: float, y: float) -> str:
    return f'<path d="M{x:.1f} {y - 4:.1f}l4 4l-4 4l-4 -4z" style="fill: none; stroke: var(--labelled); stroke-width: 1.3"/>'


def spread(points: Sequence[tuple[float, float]], radius: float, width: float, height: float) -> list[tuple[float, float]]:
    """Find a place for a mark of each point: on it where there is room, else as near as there is, so that no two marks overlap."""
    placed: list[tuple[float, float]] = []
    for at in points:
        placed.append(next(place for place in _around(at, radius, width, height) if all(math.dist(place, o) >= 2 * radius for o in placed)))
    return placed


def _around(at: tuple[float, float], radius: float, width: float, height: float) -> Iterator[tuple[float, float]]:
    """Try the point itself, then rings around it, within the frame; as many as there have to be for every mark to find its place."""
    yield at
    for ring in range(1, 4 * NUMBERED):
        steps = 8 + 4 * ring
        for step in range(steps):
            angle = 2 * math.pi * step / steps
            place = (at[0] + ring * radius * math.cos(angle), at[1] + ring * radius * math.sin(angle))
            if radius <= place[0] <= width - radius and radius <= place[1] <= height - radius:
                yield place


def _natural(name: str) -> tuple[int, str]:
    """Return what sorts numbers in their own order, before anything else."""
    return (int(name) if name.isdecimal() else 1 << 62, name)

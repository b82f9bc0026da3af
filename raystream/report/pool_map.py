"""Charts of a query: the map of the pool, histograms.

The report's map: the pool's density in the plane in which its embeddings vary most, with the chosen and the labelled rows on it.

The report's charts of scores and of confidence: how the batch's scores lie in the pool's, and how far confidence can be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from markupsafe import Markup

from raystream.figures import shown
from raystream.report.svg import STYLE, Legend, Scale, alone, both, circle, decimals, legend, line, percent, rect, text, ticks
from raystream.store.calibration import Calibration, Reliability
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


_BINS = 50
_CHOSEN = "fill: var(--chosen); fill-opacity: .28; stroke: var(--chosen); stroke-width: 1.5"


@dataclass(frozen=True, eq=False)
class Histogram:
    """The shares of pool and selection over a score: (b + 1,) edges, (b,) shares each."""

    edges: Floats
    pool: Floats
    chosen: Floats

    @classmethod
    def of(cls, pool: Floats, chosen: Floats) -> Histogram:
        """Bin values, at least one of each."""
        low, high = float(min(pool.min(), chosen.min())), float(max(pool.max(), chosen.max()))
        edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
        return cls(edges, *(np.histogram(values, edges)[0] / len(values) for values in (pool, chosen)))

    @property
    def is_one_bar(self) -> bool:
        """Whether there is nothing to see: all rows lie in one and the same bin."""
        return bool((self.pool + self.chosen > 0).sum() <= 1)


def score_histogram(pool: Floats, chosen: Floats, score: str) -> Markup | None:
    """Return the shares of pool and selection over the score; None where they would be one bar."""
    shares = Histogram.of(pool, chosen)
    if shares.is_one_bar:
        return None
    named = legend([Legend(f"pool, {len(pool):,} rows", "var(--pool)"), Legend(f"chosen, {len(chosen):,} rows", "var(--chosen)")])
    return named + both(lambda width: _draw_histogram(width, shares, score), f"Shares of pool and chosen rows over {score}")


def _draw_histogram(width: int, shares: Histogram, score: str) -> tuple[int, list[str]]:
    height = 300 if width > 500 else 250
    top, left, bottom = 10, 52, height - 42
    edges, highest = shares.edges, float(max(shares.pool.max(), shares.chosen.max()))
    x, y = Scale(edges[0], edges[-1], left, width - 20), Scale(0, highest * 1.04, bottom, top)
    marks = ticks(0, highest, 4)
    said = percent(marks)
    drawn = []
    for mark in marks:
        drawn += [line([(left, y(mark)), (width - 20, y(mark))], "grid"), text(left - 8, y(mark) + 4, said(mark), anchor="end")]
    drawn.append(line(_stairs(x, y, edges, shares.pool), "", "fill: var(--pool); stroke: var(--pool-line)"))
    drawn.append(line(_stairs(x, y, edges, shares.chosen), "", _CHOSEN))
    drawn.append(line([(left, bottom), (width - 20, bottom)], "axis"))
    marks = ticks(edges[0], edges[-1], max(4, width // 110))
    written = decimals(marks)
    drawn += [text(x(mark), bottom + 18, written(mark), anchor="middle") for mark in marks]
    return height, [*drawn, text((left + width - 20) / 2, height - 4, f"{score} (higher: label sooner)", anchor="middle")]


def _stairs(x: Scale, y: Scale, edges: Floats, shares: Floats) -> list[tuple[float, float]]:
    """Return the outline of the bars, from the ground and back to it."""
    points = [(x(edges[0]), y(0))]
    for low, high, share in zip(edges, edges[1:], shares, strict=False):
        points += [(x(low), y(share)), (x(high), y(share))]
    return [*points, (x(edges[-1]), y(0))]


def reliability_diagram(calibration: Calibration) -> Markup:
    """Draw accuracy by confidence before and after a temperature was fitted, above the rows of each bin."""
    return both(lambda width: _draw_reliability(width, calibration), _RELIABILITY)


def reliability_svg(calibration: Calibration) -> bytes:
    """Draw `reliability_diagram` as a file of its own."""
    return alone(lambda width: _draw_reliability(width, calibration), _RELIABILITY, STYLE)


_RELIABILITY = "How often the model is right, by how confident it is"


def _draw_reliability(width: int, calibration: Calibration) -> tuple[int, list[str]]:
    """Draw both halves side by side, or one below the other where there is no room."""
    halves = [(calibration.before, 1.0, calibration.ece_before), (calibration.after, calibration.temperature, calibration.ece_after)]
    if width > 500:
        half = (width - 30) // 2
        return 380, [drawn for place, of in enumerate(halves) for drawn in _reliability_half(place * (half + 30), 0, half, *of)]
    return 760, [drawn for place, of in enumerate(halves) for drawn in _reliability_half(0, 380 * place, width, *of)]


def _reliability_half(across: float, down: float, width: float, bins: Reliability, temperature: float, error: float) -> list[str]:
    left, right, top, bottom, ground = across + 48, across + width - 20, down + 34, down + 240, down + 330
    x, y = Scale(0, 1, left, right), Scale(0, 1, bottom, top)
    drawn = [text(left, down + 18, f"temperature {temperature:g}: calibration error {error:.3f}", name="strong")]
    for mark in (0.0, 0.25, 0.5, 0.75, 1.0):
        drawn += [line([(left, y(mark)), (right, y(mark))], "grid"), text(left - 8, y(mark) + 4, f"{mark:.0%}", anchor="end")]
    count, most = len(bins.count), max(1, max(bins.count))
    bar = (right - left) / count
    drawn.append(line([(x(0), y(0)), (x(1), y(1))], "", "fill: none; stroke: var(--pool-line); stroke-dasharray: 4 3"))
    for number, rows in enumerate(bins.count):
        middle, accuracy, confidence = left + (number + 0.5) * bar, bins.accuracy[number], bins.confidence[number]
        if rows and accuracy is not None and confidence is not None:
            drawn.append(rect(middle - 0.45 * bar, y(accuracy), 0.9 * bar, y(0) - y(accuracy), "fill: var(--pool)"))
            # the gap is what the error sums up: from what was predicted right to what the model was confident of
            drawn.append(line([(middle, y(accuracy)), (middle, y(confidence))], "", "stroke: var(--chosen); stroke-width: 1.5"))
            drawn.append(circle(middle, y(confidence), 3, "fill: var(--chosen)"))
        tall = rows / most * (ground - bottom - 22)
        drawn.append(rect(middle - 0.45 * bar, ground - tall, 0.9 * bar, tall, "fill: var(--pool)"))
    drawn += [line([(left, place), (right, place)], "axis") for place in (bottom, ground)]
    drawn += [text(left - 8, bottom + 26, f"{most:,}", anchor="end"), text(left - 8, ground, "0 rows", anchor="end")]
    drawn += [text(x(mark), ground + 16, f"{mark:.0%}", anchor="middle") for mark in (0.0, 0.5, 1.0)]
    return [*drawn, text((left + right) / 2, ground + 36, "confidence; bars: predicted right, and rows", anchor="middle")]

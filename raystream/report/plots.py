"""The report's charts of scores and of confidence: how the batch's scores lie in the pool's, and how far confidence can be trusted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from raystream.report.style import STYLE
from raystream.report.svg import Legend, Scale, alone, both, circle, decimals, legend, line, percent, rect, text, ticks
from raystream.store.calibration import Calibration, Reliability

_BINS = 50
_CHOSEN = "fill: var(--chosen); fill-opacity: .28; stroke: var(--chosen); stroke-width: 1.5"

Floats = npt.NDArray[np.floating]


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

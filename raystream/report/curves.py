"""Curves of loops and simulations, and a simulation's page.

Line charts with bands, as HTML and SVG that follow the page: its width, its text, and whether it is dark.

Lines are drawn in an SVG that is stretched to the width there is, their strokes not with it; ticks and names are text of the page, placed
in percent. So a chart is as readable at 400 pixels as at 1,100, and takes its colours from `templates/curves.css`, which a page includes.

A simulation's report: one HTML page that needs nothing but itself, with curves, figures and a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from raystream.report.cards import Fact
from raystream.report.svg import multiples, templates, tick_step
from raystream.store.protocol import Store

COLOURS = 8
"""Classes `c0` .. `c7`; lines beyond them are dashed, too."""
_FEW = 4
"""More bands than these lie over each other so often that they are drawn fainter."""
_SIDE = 1000
_ROOM = 0.04


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        name: for the legend.
        x: (n,) ascending.
        y: (n,); where it is None or nan, the curve has a gap.
        low, high: (n,) ends of its band, as `y`; None: it has no band.
        control: drawn as what the others are compared with, in grey.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    control: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal line with a name, such as a ceiling or a target."""

    y: float
    name: str


@dataclass(frozen=True)
class Mark:
    """A vertical line with a name, such as the round at which a rule would have stopped."""

    x: float
    name: str


@dataclass(frozen=True)
class Axis:
    """A range with its ticks.

    Attributes:
        low, high: the ends.
        ticks: values within them.
        step: between these.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    step: float

    def share(self, value: float) -> float:
        """Return where a value lies, from 0 at the low end to 1 at the high one."""
        return (value - self.low) / (self.high - self.low)


def chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    levels: Sequence[Level] = (),
    marks: Sequence[Mark] = (),
    percent: bool = False,
) -> Markup:
    """Draw a chart with its legend; empty where no line has a point.

    Args:
        lines: drawn in their order, those of controls first of all.
        x_label: below the ticks.
        y_label: above them.
        levels: within the vertical range, which they widen.
        marks: within the horizontal one.
        percent: shares of 1 are written as percents.
    """
    values = [value for line in lines for row in (line.y, line.low or (), line.high or ()) for value in row if _there(value)]
    if not values:
        return Markup("")
    x = _axis([place for line in lines for place in line.x], tight=True)
    y = _axis([*(value for value in values if value is not None), *(level.y for level in levels)], tight=False)
    others = [line for line in lines if not line.control]
    kinds = {id(line): f"c{i % COLOURS}{' far' if i >= COLOURS else ''}" for i, line in enumerate(others)}
    drawn = [(line, kinds.get(id(line), "control")) for line in lines]
    shapes = [Markup('<path class="grid" d="M0 {0}H{1}"/>').format(_down(y.share(tick)), _SIDE) for tick in y.ticks]
    shapes += [Markup('<path class="level" d="M0 {0}H{1}"/>').format(_down(y.share(level.y)), _SIDE) for level in levels]
    shapes += [Markup('<path class="mark" d="M{0} 0V{1}"/>').format(_across(x.share(mark.x)), _SIDE) for mark in marks]
    ordered = sorted(drawn, key=lambda pair: not pair[0].control)
    shapes += [_band(line, kind, x, y) for line, kind in ordered]
    shapes += [_stroke(line, kind, x, y) for line, kind in ordered]
    texts = [_text("tick y", "top", 1 - y.share(tick), number(tick, y.step, percent)) for tick in y.ticks]
    texts += [_text("tick x", "left", x.share(tick), number(tick, x.step, False)) for tick in x.ticks]
    texts += [_text("named level", "top", 1 - y.share(level.y), level.name) for level in levels]
    texts += [_text("named mark", "left", x.share(mark.x), mark.name) for mark in marks]
    legend = [Markup('<li class="{0}">{1}</li>').format(kind, line.name) for line, kind in drawn]
    return Markup(
        '<div class="chart{many}"><div class="axis">{y_label}</div><div class="area">'
        '<svg viewBox="0 0 {side} {side}" preserveAspectRatio="none" role="img" aria-label="{y_label} by {x_label}">{shapes}</svg>{texts}'
        '</div><div class="axis x">{x_label}</div><ul class="legend">{legend}</ul></div>'
    ).format(
        many=" many" if len(lines) > _FEW else "",
        y_label=y_label,
        x_label=x_label,
        side=_SIDE,
        shapes=_joined(shapes),
        texts=_joined(texts),
        legend=_joined(legend),
    )


def number(value: float, step: float, percent: bool) -> str:
    """Write a tick in as few digits as tell it from its neighbours."""
    value, step = (100 * value, 100 * step) if percent else (value, step)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:,.{digits}f}{'%' if percent else ''}"


def _there(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


_NOTHING = 1e-12


def _axis(values: Sequence[float], *, tight: bool) -> Axis:
    """Choose a range that holds the values, with about five ticks at round numbers."""
    low, high = min(values), max(values)
    reach = max(abs(low), abs(high))
    if reach < _NOTHING:
        reach = 1.0
    if high - low <= _NOTHING * reach:  # what is left of a difference is rounding
        low, high = low - reach / 2, high + reach / 2
    step = tick_step(high - low, 5)
    if not tight:
        room = _ROOM * (high - low)
        low, high = low - room, high + room
    return Axis(low, high, tuple(multiples(low, high, step)), step)


def _across(share: float) -> str:
    return f"{_SIDE * share:.1f}".removesuffix(".0")


def _down(share: float) -> str:
    return _across(1 - share)


def _runs(x: Sequence[float], *rows: Sequence[float | None]) -> Iterable[list[int]]:
    """Yield the positions that have all values, by unbroken runs."""
    run: list[int] = []
    for i in range(len(x)):
        if all(_there(row[i]) for row in rows):
            run.append(i)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _points(places: Iterable[int], values: Sequence[float | None], line: Line, x: Axis, y: Axis) -> str:
    return "L".join(f"{_across(x.share(line.x[i]))} {_down(y.share(values[i] or 0.0))}" for i in places)


def _stroke(line: Line, kind: str, x: Axis, y: Axis) -> Markup:
    # a run of one point is a stroke of no length, which round caps make a dot
    parts = [f"M{_points(run, line.y, line, x, y)}{'h0' if len(run) == 1 else ''}" for run in _runs(line.x, line.y)]
    return (
        Markup('<path class="line {0}" d="{1}"><title>{2}</title></path>').format(kind, "".join(parts), line.name) if parts else Markup("")
    )


def _band(line: Line, kind: str, x: Axis, y: Axis) -> Markup:
    if line.low is None or line.high is None:
        return Markup("")
    parts = [
        f"M{_points(run, line.high, line, x, y)}L{_points(reversed(run), line.low, line, x, y)}Z"
        for run in _runs(line.x, line.low, line.high)
        if len(run) > 1
    ]
    return Markup('<path class="band {0}" d="{1}"/>').format(kind, "".join(parts)) if parts else Markup("")


def _text(kind: str, side: str, share: float, text: str) -> Markup:
    return Markup('<span class="{0}" style="{1}: {2}%">{3}</span>').format(kind, side, f"{100 * share:.2f}", text)


def _joined(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(escape(part) for part in parts)


@dataclass(frozen=True)
class Chart:
    """Curves under a heading; `html` is what `raystream.report.curves.chart` gives."""

    heading: str
    html: Markup
    caption: str


@dataclass(frozen=True)
class StrategyRow:
    """A strategy's line of the table: as many cells as there are columns, and how it fared."""

    name: str
    cells: tuple[str, ...]
    verdict: str
    best: bool


@dataclass(frozen=True)
class SimulationPage:
    """Everything on the page; strings are plain text, escaped by the template."""

    name: str
    title: str
    lede: str
    facts: tuple[Fact, ...]
    warnings: tuple[str, ...]
    charts: tuple[Chart, ...]
    columns: tuple[str, ...]
    rows: tuple[StrategyRow, ...]
    table_note: str
    choices: tuple[str, ...]
    spec: str
    provenance: tuple[tuple[str, str], ...]


def write_simulation_report(store: Store, folder: str, page: SimulationPage) -> str:
    """Write `report.html` into a simulation's folder, in place of any that is there; its path or URI.

    Raises:
        StoreError: it can't be written.
    """
    html = templates().get_template("simulation.html").render(page=page)
    store.put(f"{folder}/report.html", html.encode("utf-8", "replace"))
    return store.place(f"{folder}/report.html")

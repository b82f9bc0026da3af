"""Drawing and style: SVG without a library, templates, colours.

Charts as SVG that stands in the page: text is text, colours are the page's variables, and each is drawn for wide and for narrow pages.

A chart that is only scaled has letters of five pixels on a telephone. So each is a function of its width, called twice; the stylesheet
shows the one that fits. Everything that comes from the user goes through `text` or an attribute's `escape`.

The one stylesheet of all pages and charts, and the templates that use it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

WIDE, NARROW = 860, 364


@dataclass(frozen=True)
class Legend:
    """An entry below a chart's heading: its words, its colour as CSS has it, and how its mark looks."""

    words: str
    colour: str
    mark: str = ""


@dataclass(frozen=True)
class Scale:
    """A linear map from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def both(draw: Callable[[int], tuple[int, list[str]]], title: str) -> Markup:
    """Return a chart for wide and for narrow pages.

    Args:
        draw: from a width in pixels to the height and the elements.
        title: what it shows, for those who can't see it.
    """
    return Markup("\n".join(_svg(width, *draw(width), title, name) for width, name in ((WIDE, "wide"), (NARROW, "narrow"))))


def alone(draw: Callable[[int], tuple[int, list[str]]], title: str, style: str) -> bytes:
    """Return a chart as a file of its own, with the stylesheet that gives it its colours."""
    height, elements = draw(WIDE)
    root = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {height}" class="raystream">'
    ground = f'<rect width="{WIDE}" height="{height}" style="fill: var(--paper)"/>'
    return f"{root}<style>{style}</style>{ground}{_svg(WIDE, height, elements, title, 'alone')}</svg>\n".encode()


def _svg(width: int, height: int, elements: Sequence[str], title: str, name: str) -> str:
    head = f'<svg class="chart {name}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
    return "\n".join([head, *elements, "</svg>"])


def legend(entries: Sequence[Legend]) -> Markup:
    """Write the entries as a list that wraps where the page is narrow."""
    items = (f'<li><i class="{one.mark}" style="--mark: {one.colour}"></i>{escape(one.words)}</li>' for one in entries)
    return Markup(f'<ul class="legend">{"".join(items)}</ul>')


def text(x: float, y: float, words: str, *, anchor: str = "start", name: str = "") -> str:
    """Write words at a place."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{_named(name)}>{escape(words)}</text>'


def line(points: Sequence[tuple[float, float]], name: str, style: str = "") -> str:
    """Draw a polyline; whether it is filled is the style's affair."""
    where = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{where}"{_named(name)}{_styled(style)}/>'


def rect(x: float, y: float, width: float, height: float, style: str) -> str:
    """Draw a filled rectangle."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"{_styled(style)}/>'


def circle(x: float, y: float, radius: float, style: str) -> str:
    """Draw a dot."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"{_styled(style)}/>'


def _named(name: str) -> str:
    return f' class="{name}"' if name else ""


def _styled(style: str) -> str:
    return f' style="{style}"' if style else ""


def tick_step(span: float, about: int) -> float:
    """Find a distance of 1, 2 or 5 times a power of ten, so that about so many lie within a span above 0."""
    rough = span / max(about, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))


def ticks(low: float, high: float, about: int) -> list[float]:
    """Find round values within a range, 1, 2 or 5 times a power of ten apart."""
    span = high - low
    return multiples(low, high, tick_step(span, about)) if span > 0 and math.isfinite(span) else [low]


def multiples(low: float, high: float, step: float) -> list[float]:
    """List the multiples of a step within a range, its ends included as far as rounding goes."""
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.15g}") + 0.0 for number in range(first, last + 1)]


def decimals(values: Sequence[float]) -> Callable[[float], str]:
    """Say how to write these ticks: as few digits as tell them apart."""
    for digits in range(8):
        written = [f"{value:.{digits}f}" for value in values]
        if len(set(written)) == len(values) and all(abs(float(w) - v) <= abs(v) * 1e-6 for w, v in zip(written, values, strict=True)):
            return lambda value: f"{value:,.{digits}f}"
    told_apart = (digits for digits in range(3, 18) if len({f"{value:.{digits}g}" for value in values}) == len(set(values)))
    most = next(told_apart, 17)
    return lambda value: f"{value:.{most}g}"


def percent(values: Sequence[float]) -> Callable[[float], str]:
    """Say how to write the same for shares of 1."""
    written = decimals([100 * value for value in values])
    return lambda value: f"{written(100 * value)}%"


STYLE = Markup(files("raystream.report").joinpath("templates/style.css").read_text(encoding="utf-8"))


def templates() -> Environment:
    """Return the templates; what they show is escaped, and a name that isn't there is an error."""
    made = Environment(
        loader=PackageLoader("raystream.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters["breakable"] = breakable
    return made


_BREAKS = re.compile(r"(?<=[/_.:#|,;=&?])(?![/_.:#|,;=&?\s]|$)(?:(?<!\d[.,])|(?!\d))")


def breakable(words: str) -> list[str]:
    """Words, or an id, in the parts between which a line may end: after what separates parts of a name, not within a number."""
    return _BREAKS.split(words) if words else []

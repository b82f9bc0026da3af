"""A simulation's report: one HTML page that needs nothing but itself, with curves, figures and a verdict."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from raystream.report.facts import Fact
from raystream.report.style import templates
from raystream.store.protocol import Store


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

"""The report of a query: a page, its downloads, and its cards in a notebook.

A query's report: one HTML page that needs nothing but itself, written beside the selection.

The chosen rows to take along from a page: ids to copy, and files that the page itself carries.

How far a run is, in a notebook: a line and a bar below the cell, gone when the run ends.
"""

from __future__ import annotations

import csv
import html
import io
import time
from base64 import b64encode
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from raystream.errors import RaystreamError
from raystream.figures import number_of, shown
from raystream.pool.columns import readable
from raystream.query.select import column_of
from raystream.report.cards import Cards, Fact, Sheet, cards, facts, lede, name_of_prediction, sheet, title
from raystream.report.pool_map import CLASSES, NUMBERED, MapPoints, pool_map, project, reliability_diagram, score_histogram
from raystream.report.stored import StoredPool, chosen_embeddings, labelled_embeddings, pool_scores, sampled_embeddings, stored_pool
from raystream.report.svg import templates
from raystream.report.text import Met, constraints_met, describe_model
from raystream.scoring.progress import ScoringProgress
from raystream.store.queries import query_folder
from raystream.store.result import Result

_ROWS = 20_000
_HIDDEN = frozenset({"path", "row"})
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula, which a row of the pool must not bring along."""


@dataclass(frozen=True)
class Downloads:
    """What can be taken along; `ids` are a line each, the others data URIs. Batches that are too large for a page have none."""

    ids: str
    ids_file: str
    rows_file: str


def downloads(selection: pa.Table) -> Downloads | None:
    """Offer a whole selection."""
    if not 0 < selection.num_rows <= _ROWS:
        return None
    ids = "\n".join(_plain(value) for value in readable(selection.column(1)))
    names = [name for name in selection.column_names if name not in _HIDDEN]
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(map(_harmless, names))
    writer.writerows(zip(*([_cell(value) for value in readable(selection.column(name))] for name in names), strict=True))
    return Downloads(ids, _uri("text/plain", ids + "\n"), _uri("text/csv", buffer.getvalue()))


def _plain(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _cell(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    return _harmless(_plain(value))


def _harmless(text: str) -> str:
    """Return text that a spreadsheet takes for text: an apostrophe before what it would compute."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _uri(kind: str, content: str) -> str:
    return f"data:{kind};charset=utf-8;base64,{b64encode(content.encode('utf-8', 'replace')).decode()}"


ROWS_SHOWN = 200
_GROUPS = 12


@dataclass(frozen=True)
class Figure:
    """A drawing of numbers with its caption, or the sentence that stands in for it."""

    drawing: Markup | None
    caption: str


@dataclass(frozen=True)
class Page:
    """Everything on the page; strings are plain text, escaped by the template."""

    query: str
    title: str
    lede: str
    facts: tuple[Fact, ...]
    constraints: tuple[Met, ...]
    warnings: tuple[str, ...]
    chosen: int
    cards: Cards
    sheet: Sheet
    downloads: Downloads | None
    histogram: Figure
    map: Figure
    reliability: Figure | None
    spec: str
    provenance: tuple[tuple[str, str], ...]


def write_report(result: Result) -> str:
    """Write `report.html` beside a committed selection, in place of any that is there; its path or URI.

    Raises:
        StoreError: the query's folder can't be written.
    """
    html = templates().get_template("report.html").render(page=gather(result))
    result.store.put(f"{query_folder(result.query)}/report.html", html.encode("utf-8", "replace"))
    return result.place("report.html")


def gather(result: Result) -> Page:
    """Read what the page shows; whatever is missing from the store or the pool is said on the page."""
    manifest = result.manifest
    try:
        pool: StoredPool | None = stored_pool(result)
    except OSError:
        pool = None
    spec = result.store.read_if_there(f"{query_folder(result.query)}/query.yaml") or b""
    return Page(
        query=result.query,
        title=title(manifest),
        lede=lede(manifest),
        facts=facts(manifest),
        constraints=tuple(_conditions(result)),
        warnings=tuple(manifest.warnings),
        chosen=result.selection.num_rows,
        cards=cards(result, ROWS_SHOWN),
        sheet=sheet(result.selection, ROWS_SHOWN),
        downloads=downloads(result.selection),
        histogram=_histogram(result, pool),
        map=_map(result, pool),
        reliability=_reliability(result),
        spec=spec.decode(),
        provenance=(
            ("query", result.query),
            ("committed", manifest.committed or "at an unknown time"),
            ("selection", result.path),
            ("model", describe_model(manifest.resolved["model"])),
            ("model's fingerprint", manifest.fingerprint),
            ("seed", str(manifest.seed)),
            ("files of the pool", f"{len(manifest.files):,}"),
            ("versions", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
        ),
    )


def _conditions(result: Result) -> list[Met]:
    """Say how constraints were met; where quotas hold for each group of a column that the selection has, with the largest groups."""
    found = constraints_met(result.manifest)
    after = max((place for place, met in enumerate(found) if met.name == "quota"), default=-1) + 1
    columns = result.selection.column_names
    for asked in result.manifest.resolved["select"].get("quotas", ()):
        name = "prediction_name" if asked["by"] == "prediction" and "prediction_name" in columns else asked["by"]
        if asked["value"] is None and name in columns:
            groups = Counter(shown(value) for value in readable(result.selection.column(name)) if value is not None)
            largest = groups.most_common(_GROUPS)
            found[after:after] = [Met("of which", f"{asked['by']} {group}: {number_of(count, 'row')}", "") for group, count in largest]
    return found


def _histogram(result: Result, pool: StoredPool | None) -> Figure:
    score = column_of(result.manifest.resolved["acquire"]["score"])
    chosen = result.selection.column("score").drop_null().to_numpy()
    if not len(chosen):
        return Figure(None, "There is no histogram of scores: the choice used none.")
    scores = pool_scores(pool, score) if pool is not None else np.empty(0, np.float32)
    if not len(scores):
        return Figure(None, "There is no histogram of scores: the pool's scored units are no longer in the store.")
    rows = f"{len(scores):,} rows in evenly spaced units" if pool is not None and pool.is_sample else f"all {len(scores):,} scored rows"
    drawing = score_histogram(scores, chosen, score)
    if drawing is None:
        return Figure(None, f"There is no histogram of scores: {rows} and the chosen have about the same {score}, {scores[0]:.4g}.")
    return Figure(
        drawing,
        f"Grey: {rows}, labelled ones included. In colour: the {len(chosen):,} chosen. Each adds up to 100%. The further the chosen "
        "lie to the right of the grey, the more the choice followed the score; diversity keeps them from the far right.",
    )


def _reliability(result: Result) -> Figure | None:
    """Plot how far confidence was off before and after, where the temperature was fitted."""
    calibration = result.manifest.calibration
    if calibration is None:
        return None
    return Figure(
        reliability_diagram(calibration),
        f"{calibration.rows:,} labelled rows by the model's confidence in its prediction. Bars: how many of them it got right. Dots: "
        "how confident it was; on the dashed line both agree, a dot above its bar is over-confident. The calibration error is the mean "
        "length over rows of the lines from bar to dot. One temperature for all logits, "
        f"{calibration.temperature:g}, was fitted on these rows, so the second half is a little too kind; the mean negative "
        f"log-likelihood of the labels went from {calibration.nll_before:.4f} to {calibration.nll_after:.4f}. No prediction changes.",
    )


def _map(result: Result, pool: StoredPool | None) -> Figure:
    sample = sampled_embeddings(pool) if pool is not None else np.empty((0, 0), np.float32)
    plane = project(sample)
    if pool is None or not len(sample):
        return Figure(None, "There is no map of the pool: no embeddings are in the store for this query.")
    ranks, embeddings = chosen_embeddings(pool, result.selection)
    if plane is None or not len(ranks):
        return Figure(None, "There is no map of the pool: its embeddings all but coincide.")
    predictions = [name or "none" for name in name_of_prediction(result.selection)]
    groups = [predictions[rank] for rank in ranks]
    coloured = 1 < len(set(groups)) <= CLASSES
    try:
        labelled = labelled_embeddings(result, pool)
    except (RaystreamError, OSError):
        labelled = np.empty((0, 0), np.float32)
    points = MapPoints(
        plane(sample),
        plane(labelled) if len(labelled) else np.empty((0, 2)),
        plane(embeddings),
        ranks.tolist(),
        groups if coloured else None,
    )
    drawn = f"the {len(ranks):,} chosen rows" if len(ranks) == result.selection.num_rows else f"{len(ranks):,} of the chosen rows"
    colours = ", coloured by what the model takes them for" if coloured else ""
    whole = len(sample) == result.manifest.counts.scored
    grey = f"all {len(sample):,}" if whole else f"{len(sample):,} drawn, evenly spaced"
    diamonds = f" Diamonds are labelled rows{_of_labelled(len(labelled), result)}." if len(labelled) else ""
    caption = (
        f"The stronger the grey, the more rows of the pool ({grey}).{diamonds} Points are {drawn}{colours}; the first "
        f"{min(NUMBERED, len(ranks))} carry their ranks, beside the point where there is no room on it. The axes are the two directions "
        f"in which the embeddings vary most; they show {plane.share:.0%} of the variance, so points that are close here may be far apart "
        "all the same."
    )
    return Figure(pool_map(points), caption)


def _of_labelled(shown: int, result: Result) -> str:
    total = result.manifest.counts.labelled
    return f" ({shown:,} of {total:,})" if shown < total else f" (all {shown:,})"


_SECONDS = 0.2
"""Between two drawings at least."""


class NotebookBar:
    """Tells how far a run is; use as a context manager, in a process of IPython's."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._text, self._last = "", 0.0

    def __enter__(self) -> NotebookBar:
        from IPython.display import HTML, display

        self._html = HTML
        self._handle = display(HTML(""), display_id=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._draw("")

    def stage(self, text: str) -> None:
        self._text = text
        self._draw(html.escape(text))

    def units(self, progress: ScoringProgress) -> None:
        if time.monotonic() - self._last < _SECONDS and progress.units < progress.of_units:
            return
        bar = f'<progress value="{progress.rows}" max="{progress.of_rows}" style="vertical-align: middle"></progress>'
        facts = [f"{progress.units:,}/{progress.of_units:,} units", *progress.words]
        self._draw(f"{html.escape(self._text)} {bar} {', '.join(facts)}")

    def _draw(self, content: str) -> None:
        self._last = time.monotonic()
        self._handle.update(self._html(content))

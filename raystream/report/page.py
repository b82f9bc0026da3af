"""A query's report: one HTML page that needs nothing but itself, written beside the selection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined

from raystream.lake.uri import redacted
from raystream.pool.columns import readable
from raystream.query.acquire import column_of
from raystream.report.facts import Fact, facts, lede, title
from raystream.report.pictures import Picture, pictures
from raystream.report.plots import NUMBERED, pool_map, project, reliability_diagram, score_histogram
from raystream.report.stored import StoredPool, chosen_embeddings, pool_scores, sampled_embeddings, stored_pool
from raystream.store.queries import query_folder
from raystream.store.result import Result

ROWS_SHOWN = 200
_COLOURS = 10
_LONGEST = 80
_HIDDEN = frozenset({"path", "row"})


@dataclass(frozen=True)
class Card:
    """A chosen row as a picture; `picture` is None when it could not be read in time."""

    rank: int
    id: str
    score: str
    prediction: str
    picture: Picture | None


@dataclass(frozen=True)
class Plot:
    """A picture of numbers, or the sentence that stands in for it."""

    uri: str | None
    caption: str


@dataclass(frozen=True)
class Sheet:
    """The first rows of a selection.

    Attributes:
        columns: name and whether it holds numbers.
        rows: as text, one entry a column.
        total: rows of the whole selection.
    """

    columns: tuple[tuple[str, bool], ...]
    rows: tuple[tuple[str, ...], ...]
    total: int


@dataclass(frozen=True)
class Page:
    """Everything on the page; strings are plain text, escaped by the template."""

    query: str
    title: str
    lede: str
    facts: tuple[Fact, ...]
    warnings: tuple[str, ...]
    chosen: int
    cards: tuple[Card, ...]
    cards_note: str
    sheet: Sheet
    histogram: Plot
    map: Plot
    reliability: Plot | None
    spec: str
    provenance: tuple[tuple[str, str], ...]


def write_report(result: Result) -> str:
    """Write `report.html` beside a committed selection, in place of any that is there; its path or URI.

    Raises:
        StoreError: the query's folder can't be written.
    """
    environment = Environment(
        loader=PackageLoader("raystream.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    html = environment.get_template("report.html").render(page=gather(result))
    result.store.put(f"{query_folder(result.query)}/report.html", html.encode("utf-8", "replace"))
    return result.place("report.html")


def gather(result: Result) -> Page:
    """Read what the page shows; whatever is missing from the store or the pool is said on the page."""
    manifest = result.manifest
    try:
        pool: StoredPool | None = stored_pool(result)
    except OSError:
        pool = None
    found = pictures(result, ROWS_SHOWN)
    cards = tuple(_cards(result, found.by_rank)) if found is not None and found.by_rank else ()
    spec = result.store.read_if_there(f"{query_folder(result.query)}/query.yaml") or b""
    return Page(
        query=result.query,
        title=title(manifest),
        lede=lede(manifest),
        facts=facts(manifest),
        warnings=tuple(manifest.warnings),
        chosen=result.selection.num_rows,
        cards=cards,
        cards_note=found.note if found is not None else "",
        sheet=sheet(result.selection, ROWS_SHOWN),
        histogram=_histogram(result, pool),
        map=_map(result, pool),
        reliability=_reliability(result),
        spec=spec.decode(),
        provenance=(
            ("query", result.query),
            ("committed", manifest.committed or "at an unknown time"),
            ("selection", result.path),
            ("model", _model(manifest.resolved["model"])),
            ("model's fingerprint", manifest.fingerprint),
            ("seed", str(manifest.seed)),
            ("files of the pool", f"{len(manifest.files):,}"),
            ("versions", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
        ),
    )


def _model(section: dict[str, Any]) -> str:
    """Its source and weights, as the query names them."""
    weights = section.get("weights") or []
    parts = [section.get("source") or f"kind {section['kind']}", *([weights] if isinstance(weights, str) else weights)]
    return ", ".join(redacted(part) for part in parts)


def _cards(result: Result, found: dict[int, Picture]) -> list[Card]:
    head = result.selection.slice(0, ROWS_SHOWN)
    ids = head.column(result.selection.column_names[1]).to_pylist()
    scores = head.column("score").to_pylist()
    predictions = name_of_prediction(head)
    return [
        Card(
            rank,
            id=short(ids[rank]),
            score="" if scores[rank] is None else f"{scores[rank]:.3f}",
            prediction=predictions[rank] or "",
            picture=found.get(rank),
        )
        for rank in range(head.num_rows)
    ]


def _histogram(result: Result, pool: StoredPool | None) -> Plot:
    score = column_of(result.manifest.resolved["acquire"]["score"])
    chosen = result.selection.column("score").drop_null().to_numpy()
    if not len(chosen):
        return Plot(None, "There is no histogram of scores: the choice used none.")
    scores = pool_scores(pool, score) if pool is not None else np.empty(0, np.float32)
    if not len(scores):
        return Plot(None, "There is no histogram of scores: the pool's scored units are no longer in the store.")
    rows = f"{len(scores):,} rows in evenly spaced units" if pool is not None and pool.is_sample else f"all {len(scores):,} scored rows"
    return Plot(
        score_histogram(scores, chosen, score),
        f"Grey: {rows}, labelled ones included. Red: the {len(chosen):,} chosen. Each adds up to 100 %. The further the red "
        "lies to the right of the grey, the more the choice followed the score; diversity keeps it from the far right.",
    )


def _reliability(result: Result) -> Plot | None:
    """How far confidence was off before and after, where the temperature was fitted."""
    calibration = result.manifest.calibration
    if calibration is None:
        return None
    return Plot(
        reliability_diagram(calibration),
        f"{calibration.rows:,} labelled rows by the model's confidence in its prediction. Bars: how many of them it got right. Red dots: "
        "how confident it was; on the dashed line both agree, a dot above its bar is over-confident. The calibration error is the mean "
        f"length of the red lines over rows. One temperature for all logits, {calibration.temperature:g}, was fitted on these rows, so the "
        f"right half is a little too kind; the mean negative log-likelihood of the labels went from {calibration.nll_before:.4f} to "
        f"{calibration.nll_after:.4f}. No prediction changes.",
    )


def _map(result: Result, pool: StoredPool | None) -> Plot:
    sample = sampled_embeddings(pool) if pool is not None else np.empty((0, 0), np.float32)
    plane = project(sample)
    if pool is None or not len(sample):
        return Plot(None, "There is no map of the pool: no embeddings are in the store for this query.")
    ranks, embeddings = chosen_embeddings(pool, result.selection)
    if plane is None or not len(ranks):
        return Plot(None, "There is no map of the pool: its embeddings all but coincide.")
    predictions = [name or "none" for name in name_of_prediction(result.selection)]
    groups = [predictions[rank] for rank in ranks]
    coloured = 1 < len(set(groups)) <= _COLOURS
    uri = pool_map(plane(sample), plane(embeddings), ranks.tolist(), groups if coloured else None)
    drawn = f"the {len(ranks):,} chosen rows" if len(ranks) == result.selection.num_rows else f"{len(ranks):,} of the chosen rows"
    colours = ", coloured by what the model takes them for" if coloured else ""
    whole = len(sample) == result.manifest.counts.scored
    grey = f"all {len(sample):,}" if whole else f"{len(sample):,} drawn, evenly spaced"
    caption = (
        f"The darker the grey, the more rows of the pool ({grey}). Points are {drawn}{colours}; the first "
        f"{min(NUMBERED, len(ranks))} carry their ranks. The axes are the two directions in which the embeddings vary most; they show "
        f"{plane.share:.0%} of the variance, so points that are close here may be far apart all the same."
    )
    return Plot(uri, caption)


def sheet(selection: pa.Table, count: int) -> Sheet:
    """The first rows, without the columns that say nothing: all null, all empty, or where a row lies."""
    head = selection.slice(0, count)
    columns: list[tuple[str, bool]] = []
    cells: list[list[str]] = []
    for name in selection.column_names:
        texts = [short(value) for value in readable(head.column(name))]
        named = name == "prediction" and "prediction_name" in selection.column_names
        if name in _HIDDEN or named or not any(texts):
            continue
        kind = selection.schema.field(name).type
        columns.append((name, bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))))
        cells.append(texts)
    return Sheet(tuple(columns), tuple(zip(*cells, strict=True)), selection.num_rows)


def name_of_prediction(selection: pa.Table) -> list[str | None]:
    """The predicted class of each row, by its name where classes have names."""
    named = "prediction_name" in selection.column_names
    return [None if v is None else str(v) for v in selection.column("prediction_name" if named else "prediction").to_pylist()]


def short(value: object) -> str:
    """A value as short text: four digits of a float, hexadecimal for bytes, nothing for null."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:#.4g}".rstrip(".")  # trailing zeros kept: columns align
    text = value.hex() if isinstance(value, bytes) else str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST // 2] + "…" + text[-_LONGEST // 2 + 1 :]

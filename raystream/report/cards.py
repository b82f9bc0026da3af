"""A batch as cards, and the facts that stand above them.

Chosen rows as cards: a picture or the text that the model saw, with id, prediction, score and why; for pages and notebooks.

A manifest in words and figures: what was asked, and what came out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from raystream.figures import LONGEST, number_of, shown
from raystream.lake import redacted
from raystream.pool.columns import readable
from raystream.query.catalogue import KINDS
from raystream.query.select import HIDDEN_COLUMNS
from raystream.report.pictures import GoneError, Picture, inputs_of, is_text, pictures
from raystream.report.svg import STYLE, templates
from raystream.report.text import describe_model, describe_seconds
from raystream.store.calibration import Calibration
from raystream.store.manifest import Certificate, Manifest
from raystream.store.result import Result

_NONE: Mapping[int, Any] = MappingProxyType({})
_IN_NOTEBOOK = 12
_TEXT = 1_500
"""Characters of a text that a page carries; how many of them are shown is a matter of room."""


@dataclass(frozen=True)
class Card:
    """A chosen row; `picture` and `text` are None when there is none, or it could not be read in time."""

    rank: int
    id: str
    score: str
    prediction: str
    why: str
    picture: Picture | None
    text: str | None
    kept: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Cards:
    """The first chosen rows; none where the model saw neither pictures nor texts.

    Attributes:
        rows: in the order of their ranks.
        kind: `pictures` or `texts`.
        note: what there is to say about what is missing.
    """

    rows: tuple[Card, ...] = ()
    kind: str = "pictures"
    note: str = ""


def cards(result: Result, count: int) -> Cards:
    """Make cards of the first `count` chosen rows."""
    found = pictures(result, count)
    if found is not None:
        rows = _rows(result, count, found.column, pictures=found.by_rank) if found.by_rank else ()
        return Cards(rows, "pictures", found.note)
    try:
        texts = inputs_of(result, result.selection.slice(0, count), is_text)
    except GoneError as error:
        return Cards(note=f"The texts can't be shown: {error}.")
    if texts is None:
        return Cards()
    by_rank = {rank: text for rank, text in zip(texts.ranks, texts.values.to_pylist(), strict=True) if text is not None}
    return Cards(_rows(result, count, texts.field.name, texts=by_rank), "texts", texts.note("Texts"))


def _rows(
    result: Result, count: int, seen: str, *, pictures: Mapping[int, Picture] = _NONE, texts: Mapping[int, str] = _NONE
) -> tuple[Card, ...]:
    """Make the cards; `seen` is the column of their pictures or texts, which a card that shows one doesn't repeat among those kept."""
    head = result.selection.slice(0, count)
    ids, scores = readable(head.column(1)), head.column("score").to_pylist()
    predictions, reasons = name_of_prediction(head), head.column("why").to_pylist()
    kept = [(name, readable(head.column(name))) for name in result.manifest.resolved["pool"].get("keep", ()) if name in head.column_names]
    return tuple(
        Card(
            rank,
            id=shown(ids[rank]),
            score="" if scores[rank] is None else f"{scores[rank]:.3f}",
            prediction=shown(predictions[rank] or ""),
            why=reasons[rank] or "",
            picture=pictures.get(rank),
            text=texts[rank][:_TEXT] + ("…" if len(texts[rank]) > _TEXT else "") if rank in texts else None,
            kept=tuple(
                (name, short(values[rank]))
                for name, values in kept
                if values[rank] is not None and not (name == seen and (rank in pictures or rank in texts))
            ),
        )
        for rank in range(head.num_rows)
    )


def as_html(result: Result) -> str:
    """Return a result for a notebook: the first cards, or the first rows as a table, in the report's style."""
    return templates().get_template("notebook.html").render(
        style=STYLE, line=repr(result).strip("<>"), cards=cards(result, _IN_NOTEBOOK), sheet=sheet(result.selection, _IN_NOTEBOOK)
    )


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


def sheet(selection: pa.Table, count: int) -> Sheet:
    """Return the first rows, without the columns that say nothing (all null, all empty) or are for programs."""
    head = selection.slice(0, count)
    columns: list[tuple[str, bool]] = []
    cells: list[list[str]] = []
    for name in selection.column_names:
        texts = [short(value) for value in readable(head.column(name))]
        named = name == "prediction" and "prediction_name" in selection.column_names
        if name in HIDDEN_COLUMNS or named or not any(texts):
            continue
        kind = selection.schema.field(name).type
        columns.append((name, bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))))
        cells.append(texts)
    return Sheet(tuple(columns), tuple(zip(*cells, strict=True)), selection.num_rows)


def name_of_prediction(selection: pa.Table) -> list[str | None]:
    """Return the predicted class of each row, by its name where classes have names."""
    named = "prediction_name" in selection.column_names
    return [None if v is None else str(v) for v in selection.column("prediction_name" if named else "prediction").to_pylist()]


def short(value: object) -> str:
    """Write a value as short text: four digits of a float, hexadecimal for bytes, nothing for null."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:#.4g}".rstrip(".")  # trailing zeros kept: columns align
    return shown(value, LONGEST)


@dataclass(frozen=True)
class Fact:
    """A key figure and what it means."""

    name: str
    value: str
    meaning: str


def title(manifest: Manifest) -> str:
    """Say what was asked, as a heading."""
    chosen = manifest.counts.chosen
    return f"{chosen:,} row{'' if chosen == 1 else 's'} to label next"


def lede(manifest: Manifest) -> str:
    """Say what was asked, as a sentence: budget, strategy, score and pool."""
    select, score = manifest.resolved["select"], manifest.resolved["acquire"]["score"]
    scored = manifest.gives_scores
    how = f"strategy {select['strategy']}" + (f", score {score}" if scored else ", no score")
    return f"Asked for: {select['budget']:,} rows of {_pool_name(manifest.resolved['pool']['uri'])} by {how}, seed {manifest.seed}."


def facts(manifest: Manifest) -> tuple[Fact, ...]:
    """Return the key figures, in the order of a run."""
    counts, seconds = manifest.counts, manifest.seconds
    metric = manifest.resolved["select"]["metric"]
    left = [f"{n:,} {what}" for n, what in ((counts.labelled, "labelled"), (counts.quarantined, "quarantined")) if n]
    units = manifest.units_scored + manifest.units_reused
    total = seconds.calibrate + seconds.plan + seconds.start + seconds.score + seconds.select
    found = [
        _model(manifest.resolved["model"]),
        Fact("rows in the pool", f"{counts.pool:,}", f"of which {' and '.join(left)}" if left else "none of them labelled"),
        Fact("candidates", f"{counts.candidates:,}", _candidates(manifest)),
        Fact("chosen", f"{counts.chosen:,}", f"for a budget of {manifest.resolved['select']['budget']:,}"),
        *_certificate(manifest.certificate, metric),
        *_temperature(manifest.calibration),
        Fact("units scored", f"{manifest.units_scored:,}", f"of {units:,}; {manifest.units_reused:,} reused from the store"),
        Fact(
            "seconds",
            f"{total:.1f}",
            describe_seconds(seconds),
        ),
    ]
    return tuple(found)


def _model(section: Mapping[str, Any]) -> Fact:
    """Return the model by its name, and its weights where its kind has any beside the source."""
    if members := section.get("members"):
        return Fact("model", number_of(len(members), "member"), describe_model(section))
    name, weights = describe_model({**section, "weights": None}), section.get("weights") or []
    kind = KINDS.get(section["kind"])
    if weights:
        trained = f"weights {', '.join(_short(redacted(one)) for one in ([weights] if isinstance(weights, str) else weights))}"
    else:
        trained = f"kind {section['kind']}{', no weights named' if kind is not None and 'weights' in kind.keys else ''}"
    last = name.rstrip("/").rpartition(":" if kind is not None and kind.imported else "/")[2]
    return Fact("model", last, trained if last == name else f"{name}; {trained}")


def _certificate(certificate: Certificate | None, metric: str) -> list[Fact]:
    if certificate is None:
        return [Fact("covering radius", "none", "the choice did not look at embeddings")]
    rows = "eligible row of the pool" if certificate.over == "pool" else "candidate"
    meaning = f"no {rows} is farther than this from a chosen or labelled row ({metric} distance of embeddings)"
    found = [Fact("covering radius", f"{certificate.radius:.4g}", meaning)]
    if certificate.lower_bound is not None:
        bound = certificate.lower_bound
        ratio = f", so this one is at most {certificate.radius / bound:.2f} times the best" if bound > 0 else ""
        found.append(Fact("lower bound", f"{bound:.4g}", f"no batch of this size has a smaller radius{ratio}"))
    return found


def _temperature(calibration: Calibration | None) -> list[Fact]:
    if calibration is None:
        return []
    error = f"{calibration.ece_before:.3f} to {calibration.ece_after:.3f}"
    return [
        Fact(
            "temperature",
            f"{calibration.temperature:g}",
            f"fitted on {calibration.rows:,} labelled rows; calibration error from {error}",
        )
    ]


def _candidates(manifest: Manifest) -> str:
    counts = manifest.counts
    if counts.candidates >= counts.eligible:
        return "all eligible rows entered the choice"
    return f"the highest by {manifest.resolved['acquire']['score']} of {counts.eligible:,} eligible rows"


def _pool_name(uri: str | Sequence[str]) -> str:
    """Return the first path, as far as it takes to recognise the pool by it."""
    first, *more = [uri] if isinstance(uri, str) else list(uri)
    return _short(first) + (f" and {len(more)} more" if more else "")


def _short(path: str) -> str:
    """Return the last two parts of a long path."""
    parts = PurePath(path).parts
    return "/".join(parts[-2:]) if len(parts) > 2 else path

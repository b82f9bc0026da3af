"""Chosen rows as cards: a picture or the text that the model saw, with id, prediction, score and why; for pages and notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from raystream.figures import LONGEST, shown
from raystream.pool.columns import readable
from raystream.query.acquire import HIDDEN_COLUMNS
from raystream.report.chosen_inputs import GoneError, inputs_of, is_text
from raystream.report.pictures import Picture, pictures
from raystream.report.style import STYLE, templates
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

"""A batch's rows as plain data: all columns of the selection, and what the model saw of each, as a picture or a text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from raystream.errors import QueryError
from raystream.query.acquire import HIDDEN_COLUMNS, SELECTION_COLUMNS
from raystream.report.chosen_inputs import Accepts, ChosenInputs, GoneError, inputs_of, is_text
from raystream.report.downloads import downloads
from raystream.report.pictures import SIDE, pictures_of
from raystream.service.plain import column, ids, kind_of_ids
from raystream.store.result import Result

ROWS = 20_000
"""Chosen rows that a page holds at most; the file has all."""
CHUNK = 50
"""Rows whose pictures or texts come at a time: about a screenful."""
_TEXT, _WHOLE_TEXT = 1_500, 100_000
_CELL = 300
_ZOOMED = 1_024


def batch_rows(result: Result) -> dict[str, Any]:
    """Return the columns of a selection that people look at by their names, the ids as text, and which the query kept of the pool."""
    head = result.selection.slice(0, ROWS)
    id_name = head.column_names[1]
    shown = [name for name in SELECTION_COLUMNS if name in head.column_names and name not in HIDDEN_COLUMNS]
    kept = [name for name in head.column_names if name not in SELECTION_COLUMNS and name != id_name]
    taken = downloads(result.selection)
    return {
        "total": result.selection.num_rows,
        "id": id_name,
        "id_kind": kind_of_ids(head.schema.field(1).type),
        "kept": kept,
        "ids": ids(head.column(1)),
        "columns": {name: column(head.column(name)) for name in shown}
        | {name: [_short(value) for value in column(head.column(name))] for name in kept},
        "csv": None if taken is None else taken.rows_file,
        "ids_file": None if taken is None else taken.ids_file,
    }


def shown_inputs(read: Callable[[Accepts], ChosenInputs | None]) -> dict[str, Any]:
    """Return what the model saw of some rows: `kind` is `pictures`, `texts` or `table`, `items` are by rank, `note` says what is missing.

    Args:
        read: gives an input column of these rows.
    """
    found = pictures_of(read, SIDE)
    if found is not None:
        items: dict[int, Any] = {rank: {"uri": one.uri, "small": one.small} for rank, one in found.by_rank.items()}
        return {"kind": "pictures", "items": items, "note": found.note}
    try:
        texts = read(is_text)
    except GoneError as error:
        return {"kind": "table", "items": {}, "note": f"The texts can't be shown: {error}."}
    if texts is None:
        return {"kind": "table", "items": {}, "note": ""}
    values = zip(texts.ranks, texts.values.to_pylist(), strict=True)
    items = {rank: _cut(text, _TEXT) for rank, text in values if text is not None}
    return {"kind": "texts", "items": items, "note": texts.note("Texts")}


def one_row(result: Result, rank: int) -> dict[str, Any]:
    """Return a chosen row's picture, of at most 1,024 pixels a side, or its whole text.

    Raises:
        QueryError: no row has this rank.
    """
    if not 0 <= rank < result.selection.num_rows:
        raise QueryError(f"query {result.query} has no row of rank {rank}; its ranks are 0 to {result.selection.num_rows - 1:,}")
    row = result.selection.slice(rank, 1)
    place = {"path": row.column("path")[0].as_py(), "row": row.column("row")[0].as_py()}
    found = pictures_of(lambda accepts: inputs_of(result, row, accepts), _ZOOMED)
    if found is not None:
        picture = found.by_rank.get(0)
        return place | {"picture": None if picture is None else {"uri": picture.uri, "small": picture.small}, "note": found.note}
    try:
        texts = inputs_of(result, row, is_text)
    except GoneError as error:
        return place | {"note": f"The text can't be shown: {error}."}
    if texts is None:
        return place | {"note": ""}
    value = texts.values[0].as_py()
    if value is None or not value.strip():
        return place | {"note": "It has no text." if value is None else "Its text is blank."}
    return place | {"text": _cut(value, _WHOLE_TEXT), "note": ""}


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[:longest] + "…"


def _short(value: Any) -> Any:
    """Shorten a kept value to text that a page can hold."""
    if isinstance(value, str):
        return _cut(value, _CELL)
    return value if value is None or isinstance(value, bool | int | float) else _cut(json.dumps(value, ensure_ascii=False), _CELL)

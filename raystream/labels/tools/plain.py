"""CSV, JSON Lines and Parquet: for a spreadsheet or a tool of one's own. People fill in `label`, or `state`, and `annotator`."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raystream.errors import LabelsError
from raystream.labels.annotation import (
    FIELD,
    LABELLED,
    QUERY_FIELD,
    RANK_FIELD,
    SCORE_FIELD,
    STATES,
    Annotation,
    Document,
    id_of,
    is_nothing,
    text_or_none,
    time_of,
    whole_number,
)
from raystream.labels.batch import Batch
from raystream.labels.tools.tool import Tool, Written, about, as_lines, picture

_TO_FILL = ("label", "state", "annotator")
_FORMULA = re.compile(r"'*(?:[=+@\t\r]|-(?![0-9]+(?:\.[0-9]+)?\Z))")
"""What a spreadsheet runs, and what looks like it once escaped; a negative number is none."""


def escaped(cell: str) -> str:
    """Write text so that no spreadsheet takes it for a formula."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def unescaped(cell: str) -> str:
    """Undo `escaped`; text that was never escaped stays as it is."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _rows(batch: Batch) -> list[dict[str, Any]]:
    return [
        about(batch, item)
        | {"prediction": item.prediction}
        | ({batch.kind: item.text if batch.kind == "text" else picture(batch, item)} if batch.kind else {})
        for item in batch.items
    ]


def _csv(batch: Batch) -> Written:
    text = io.StringIO()
    rows = _rows(batch)
    names = [*(rows[0] if rows else about_names(batch)), *_TO_FILL]
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        cells = (row.get(name) for name in names)
        writer.writerow(["" if cell is None else escaped(cell) if isinstance(cell, str) else cell for cell in cells])
    return Written({"batch.csv": text.getvalue().encode()}, single=True)


def about_names(batch: Batch) -> list[str]:
    """Return the columns of a batch without rows."""
    return [FIELD, QUERY_FIELD, RANK_FIELD, "prediction", *([batch.kind] if batch.kind else [])]


def _jsonl(batch: Batch) -> Written:
    return Written({"batch.jsonl": as_lines(row | dict.fromkeys(_TO_FILL) for row in _rows(batch))}, single=True)


def _parquet(batch: Batch) -> Written:
    rows = _rows(batch)
    parsed = [batch.ids.parse(item.id) for item in batch.items]
    table = pa.table({batch.ids.name: pa.array(parsed, batch.ids.plain)} if batch.ids.name not in (rows or [{}])[0] else {})
    types = {RANK_FIELD: pa.int32(), SCORE_FIELD: pa.float32(), "raystream_confidence": pa.float32(),
             "raystream_represents": pa.int64()}  # fmt: skip
    for name in [*(rows[0] if rows else about_names(batch)), *_TO_FILL]:
        if name not in table.column_names:
            table = table.append_column(name, pa.array([row.get(name) for row in rows], types.get(name, pa.string())))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return Written({"batch.parquet": sink.getvalue().to_pybytes()}, single=True)


def _annotations(document: Document, cell: Callable[[Any], Any]) -> Iterator[Annotation]:
    for number, written in enumerate(document.records):
        record = {name: cell(value) for name, value in written.items()}
        label, said = _filled_in(record.get("label")), _filled_in(record.get("state"))
        if label is None and said is None:
            continue
        state = LABELLED if said is None else str(said).strip().lower()
        if state not in STATES:
            raise LabelsError(
                f"{document.name}: state of row {number} is {said!r}; expected {', '.join(STATES[:-1])} or {STATES[-1]}, or nothing for "
                "labelled rows"
            )
        given = id_of(record.get(FIELD))
        if given is None:
            raise LabelsError(f"{document.name}: row {number} has no {FIELD}; keep that column, by which rows are found")
        yield Annotation(
            id=given,
            raw=label,
            state=state,
            annotator=text_or_none(record.get("annotator")),
            labelled_at=time_of(record.get("labelled_at")),
            tool_id=text_or_none(record.get("tool_id")) or "",
            query=text_or_none(record.get(QUERY_FIELD) or record.get("query")),
            rank=whole_number(record.get(RANK_FIELD, record.get("rank"))),
        )


def _filled_in(value: Any) -> Any:
    """Return what a person wrote; None for nothing, and for nothing but spaces."""
    return None if is_nothing(value) or (isinstance(value, str) and not value.strip()) else value


def _recognises(kinds: tuple[str, ...]) -> Callable[[Document], bool]:
    def recognises(document: Document) -> bool:
        first = document.first
        return document.kind in kinds and ("label" in first or "state" in first) and "answer" not in first and "data" not in first

    return recognises


def _cell(value: Any) -> Any:
    return unescaped(value) if isinstance(value, str) else value


def _as_it_is(value: Any) -> Any:
    return value


_EXPECTED = f"it needs {FIELD}, and a column named label or state that people fill in"
CSV = Tool("csv", "CSV", _csv, _recognises(("csv",)), lambda document: _annotations(document, _cell), _EXPECTED)
JSONL = Tool("jsonl", "JSON Lines", _jsonl, _recognises(("lines", "json")), lambda document: _annotations(document, _as_it_is), _EXPECTED)
PARQUET = Tool("parquet", "Parquet", _parquet, _recognises(("parquet",)), lambda document: _annotations(document, _as_it_is), _EXPECTED)

"""What one person said of one row, as a tool wrote it down, before it is known what the row's id and label are in the pool."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

LABELLED, SKIPPED, DRAFT, REJECTED, DELETED = "labelled", "skipped", "draft", "rejected", "deleted"
STATES = (LABELLED, SKIPPED, DRAFT, REJECTED, DELETED)
Label = str | float | tuple[str, ...]
"""A class, a number, several classes; anything else as the JSON that the tool gave."""
TIMES = "one such as 2026-01-31T12:00:00Z, seconds since 1970, or nothing"
"""What a time may be, for messages."""
_EXACT = 1 << 53
"""From here on floats lack some of the whole numbers."""
_FIRST, _LAST = 1e8, 1e11
"""Seconds since 1970, of 1973 and of the year 5138. Less is no time of a label, but may be a spreadsheet's, which counts days."""
_SHOWN = 40


@dataclass(frozen=True)
class Annotation:
    """What one person said of one row.

    Attributes:
        id: of the row, as the tool carried it, or the name of the file that was shown; None of rows that aren't from an export.
        raw: the label as the tool has it: a class, several, a number, or the tool's own structure; None where there is none.
        state: one of the five.
        annotator: who.
        labelled_at: when, in UTC.
        tool_id: the tool's own name of the annotation, unique in its project; empty where it has none.
        query: the one that chose the row.
        rank: the row's, in that query.
    """

    id: str | None
    raw: Any
    state: str = LABELLED
    annotator: str | None = None
    labelled_at: datetime | None = None
    tool_id: str = ""
    query: str | None = None
    rank: int | None = None


def text_or_none(value: object) -> str | None:
    """Return a name that a tool gives, of people and the like, as text; None for nothing."""
    if isinstance(value, Mapping):  # a person with an id, a name and perhaps an address
        value = value.get("email") or value.get("username") or value.get("name") or value.get("id")
    return None if is_nothing(value) else text_of(value)


def is_nothing(value: object) -> bool:
    """Tell whether a field is empty; some programs write a gap as NaN."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def text_of(value: object) -> str:
    """Write what stands in a field as text: 7.0 is 7, which programs write for whole numbers beside gaps, and bytes are hexadecimal."""
    if isinstance(value, float | Decimal) and -_EXACT < value < _EXACT and value == int(value):
        return str(int(value))
    return value.hex() if isinstance(value, bytes) else str(value)


def id_of(value: object) -> str | None:
    """Write a row's id as tools carry it; None for nothing, an empty text being an id."""
    return None if value != "" and is_nothing(value) else text_of(value)


def whole_number(value: object) -> int | None:
    """Read a rank as tools give it back; None for anything that isn't one."""
    try:
        found = int(text_of(value))
    except ValueError:
        return None
    return found if 0 <= found < 1 << 31 else None


def time_of(value: object) -> datetime | None:
    """Read a time that a tool wrote, in UTC, to microseconds; None for nothing.

    Args:
        value: ISO 8601, UTC where it names no zone; or seconds since 1970, or thousandths, millionths or billionths of them.

    Raises:
        ValueError: it is no time. Which of two answers is the newer one hangs on it, so that none is made up.
    """
    if isinstance(value, Mapping) and "$date" in value:  # as MongoDB writes times, and long numbers
        value = value["$date"]
    if isinstance(value, Mapping) and "$numberLong" in value:
        value = value["$numberLong"]
    if is_nothing(value) or (isinstance(value, str) and not value.strip()):
        return None
    found: Any = value
    if isinstance(value, str):
        text = value.strip().removesuffix(" UTC")
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            found = float(text) if text.isascii() and text.replace(".", "", 1).isdecimal() else None
    if isinstance(found, date) and not isinstance(found, datetime):
        found = datetime(found.year, found.month, found.day)
    if isinstance(found, int | float) and not isinstance(found, bool) and _FIRST <= found < _LAST * 1e9:
        while found >= _LAST:
            found /= 1000
        found = datetime.fromtimestamp(found, UTC)
    with suppress(OverflowError):  # beyond the years that there are
        if isinstance(found, datetime):
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    raise ValueError(f"{str(value)[:_SHOWN]!r} is no time; expected {TIMES}")


def label_of(raw: Any, task: str) -> Label | None:
    """Return a label as the table has it; None where there is none, or where it can't be one of this task.

    Args:
        raw: as a tool gives it.
        task: `model.task` of the query.
    """
    if is_nothing(raw):
        return None
    if task == "regression":
        value = raw[0] if isinstance(raw, list | tuple) and len(raw) == 1 else raw
        if isinstance(value, bool) or (isinstance(value, str) and "_" in value):  # what Python takes for numbers
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            return None
        return number if math.isfinite(number) else None
    if task == "multi_label":
        values = raw if isinstance(raw, list | tuple) else _listed(raw)
        return tuple(dict.fromkeys(_class(value) for value in values))
    if task == "classes":
        if isinstance(raw, list | tuple):
            if len(raw) != 1:
                return json.dumps(list(raw), ensure_ascii=False, default=text_of) if raw else None
            raw = raw[0]
        return _class(raw)
    return raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False, sort_keys=True, default=text_of)


def _listed(raw: Any) -> list[Any]:
    """Read several classes in one cell of a spreadsheet: a JSON list; else the one class that it names."""
    if isinstance(raw, str) and raw.startswith("["):
        try:
            found = json.loads(raw)
        except ValueError:
            return [raw]
        return found if isinstance(found, list) else [raw]
    return [raw]


def _class(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, bytes):  # what some programs write for text
        return value.decode("utf-8", "backslashreplace")
    if value is None or isinstance(value, list | tuple | Mapping):
        return json.dumps(value, ensure_ascii=False, sort_keys=True, default=text_of)
    return text_of(value)

"""What one person said of one row, as a tool wrote it down, before it is known what the row's id and label are in the pool."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

LABELLED, SKIPPED, DRAFT, REJECTED, DELETED = "labelled", "skipped", "draft", "rejected", "deleted"
STATES = (LABELLED, SKIPPED, DRAFT, REJECTED, DELETED)
Label = str | float | tuple[str, ...]
"""A class, a number, several classes; anything else as the JSON that the tool gave."""


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
    if value is None or value == "":
        return None
    return str(value)


def whole_number(value: object) -> int | None:
    """Read a rank as tools give it back; None for anything that isn't one."""
    try:
        found = int(str(value))
    except ValueError:
        return None
    return found if 0 <= found < 1 << 31 else None


def time_of(value: object) -> datetime | None:
    """Read a time that a tool wrote: ISO 8601, or seconds or milliseconds since 1970; None for anything else. In UTC, to microseconds."""
    if isinstance(value, Mapping):
        value = value.get("$date")
    if isinstance(value, str):
        text = value.strip()
        if text.replace(".", "", 1).isdecimal():
            value = float(text)
        else:
            try:
                found = datetime.fromisoformat(text.removesuffix(" UTC"))
            except ValueError:
                return None
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    seconds = value / 1000 if abs(value) >= 1e11 else value
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return None


def label_of(raw: Any, task: str) -> Label | None:
    """Return a label as the table has it; None where there is none, or where it can't be one of this task.

    Args:
        raw: as a tool gives it.
        task: `model.task` of the query.
    """
    if raw is None or raw == "":
        return None
    if task == "regression":
        value = raw[0] if isinstance(raw, list | tuple) and len(raw) == 1 else raw
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
                return json.dumps(list(raw), ensure_ascii=False) if raw else None
            raw = raw[0]
        return _class(raw)
    return raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False, sort_keys=True)


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
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)

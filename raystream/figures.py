"""Figures and values in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from raystream.errors import did_you_mean


def number_of(number: int, noun: str) -> str:
    """Write `1 unit`, `1,200 units`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def in_bytes(number: float) -> str:
    """Write `1.5 GiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:,.0f} {unit}" if unit == "bytes" else f"{number:,.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} TiB"


def in_seconds(seconds: float) -> str:
    """Write `12 s`, `34 min`, `5.6 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


LONGEST = 80
"""Characters of a value, such as an id, that are shown of it."""
_COLUMNS, _LONGEST_NAME = 20, 40


def shown(value: object, longest: int = LONGEST) -> str:
    """Write a value of the user's, such as an id, on one line: its middle is left out if it is long, bytes are hexadecimal."""
    text = value.hex() if isinstance(value, bytes) else str(value)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return _cut(text, longest)


def quoted(value: object, longest: int = LONGEST) -> str:
    """Write the same as Python writes it: strings in quotes."""
    return _cut(repr(value), longest)


def several(values: Sequence[object], count: int = 3) -> str:
    """Write the first of some values, quoted, and dots for the others."""
    return ", ".join(map(quoted, values[:count])) + (", .." if len(values) > count else "")


def of_columns(name: str, there: Iterable[str]) -> str:
    """Write `; did you mean 'pixels'? The columns are id, pixels, label`: what to say of a column that isn't among those that are there."""
    columns = [shown(column, _LONGEST_NAME) for column in there]
    if not columns:
        return "; there are no columns"
    near = did_you_mean(name, columns)
    more = f" and {len(columns) - _COLUMNS:,} more" if len(columns) > _COLUMNS else ""
    return (f"{near} The" if near.startswith("; did") else "; the") + f" columns are {', '.join(columns[:_COLUMNS])}{more}"


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest // 2]}…{text[longest // 2 + 1 - longest :]}"

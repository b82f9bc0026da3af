"""A selection's values as text for a page: cut to a length, and aligned like numbers where they are numbers."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from raystream.pool.columns import readable

_LONGEST = 80
_HIDDEN = frozenset({"path", "row"})


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

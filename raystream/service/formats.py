"""The formats in which a selection is handed out."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pyarrow as pa

from raystream.service.record_routes import json_value, rows_of

_ROWS = 10_000
"""Of a selection, that are text at a time."""


def preferred(accept: str, kinds: tuple[str, ...]) -> str | None:
    """Return the first of these kinds that is accepted most."""
    weights: dict[str, float] = {}
    for part in accept.split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    weight = float(value)
                except ValueError:
                    weight = 0.0
        weights[kind.lower()] = weight

    def weight_of(kind: str) -> float:
        return weights.get(kind, weights.get(f"{kind.partition('/')[0]}/*", weights.get("*/*", 0.0)))

    best = max(kinds, key=weight_of)
    return best if weight_of(best) > 0 else None


def json_rows(name: str, table: pa.Table) -> Iterator[str]:
    """A selection as one JSON object, so many rows at a time: as objects of Python's, they take fifty times their room."""
    yield f'{{"query": {json.dumps(name)}, "rows": ['
    for start in range(0, table.num_rows, _ROWS):
        text = json.dumps(rows_of(table.slice(start, _ROWS)), allow_nan=False, ensure_ascii=False)
        yield (", " if start else "") + text[1:-1]
    yield "]}"


def flat(table: pa.Table) -> pa.Table:
    """Return a table as CSV can hold it: bytes as hex digits, lists and structs as JSON."""
    columns = []
    for column in table.columns:
        kind = column.type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            values = (json_value(value) for value in column.to_pylist())
            column = pa.array([value if value is None or isinstance(value, str) else json.dumps(value) for value in values], pa.string())
        columns.append(column)
    return pa.table(columns, names=table.column_names)

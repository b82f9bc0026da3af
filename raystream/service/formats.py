"""The formats in which tables are handed out: a selection piece by piece, rows of other tables as JSON."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

_ROWS = 10_000
"""Of a selection, that are text at a time: as objects of Python's, they take fifty times their room."""
_BYTES = 1 << 20
"""Of a file, that are sent at a time."""


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


def file_pieces(path: Path) -> Iterator[bytes]:
    """Read a file as it is."""
    with path.open("rb") as file:
        while piece := file.read(_BYTES):
            yield piece


def json_pieces(name: str, path: Path) -> Iterator[str]:
    """Write a selection's Parquet file as one JSON object."""
    yield f'{{"query": {json.dumps(name)}, "rows": ['
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for number, table in enumerate(_tables(file)):
            text = json.dumps(rows_of(table), allow_nan=False, ensure_ascii=False)
            yield (", " if number else "") + text[1:-1]
    yield "]}"


def csv_pieces(path: Path) -> Iterator[bytes]:
    """Write a selection's Parquet file as CSV, the names of its columns first."""
    sink = io.BytesIO()
    with pq.ParquetFile(path, pre_buffer=False) as file:
        none = flat(file.schema_arrow.empty_table())
        with pyarrow.csv.CSVWriter(sink, none.schema) as writer:
            for table in _tables(file):
                writer.write_table(flat(table))
                yield sink.getvalue()
                sink.seek(0)
                sink.truncate()
    yield sink.getvalue()


def _tables(file: pq.ParquetFile) -> Iterator[pa.Table]:
    """Read a file's rows, so many at a time, in this thread alone."""
    for batch in file.iter_batches(_ROWS, use_threads=False):
        yield pa.Table.from_batches([batch])


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


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """Return a table's rows as JSON can have them: what is no number is null, bytes are hex digits."""
    return [{name: json_value(value) for name, value in row.items()} for row in table.to_pylist()]


def json_value(value: Any) -> Any:
    """Return a value as JSON can have it, for programs: integers stay numbers whatever their size, unlike those of `plain`."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): json_value(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [json_value(inner) for inner in value]
    return value if value is None or isinstance(value, str | int | bool) else json.loads(json.dumps(value, default=str))

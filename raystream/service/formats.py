"""What the service hands out: tables, rows, values as JSON.

The formats in which tables are handed out: a selection piece by piece, rows of other tables as JSON.

Values of pools and stores as JSON takes them.

A batch's rows as plain data: all columns of the selection, and what the model saw of each, as a picture or a text.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from raystream.errors import QueryError
from raystream.pool.columns import readable
from raystream.query.select import HIDDEN_COLUMNS, SELECTION_COLUMNS
from raystream.report.page import downloads
from raystream.report.pictures import SIDE, Accepts, ChosenInputs, GoneError, inputs_of, is_text, pictures_of
from raystream.store.result import Result

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


EXACT = 1 << 53
"""Integers from here on are no numbers of a browser's."""


def plain(value: Any) -> Any:
    """Return a value as JSON has it: what isn't finite is null, bytes are hexadecimal, what has no form in JSON is text."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, int):
        return value if abs(value) < EXACT else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        return [plain(inner) for inner in value]
    return str(value)


def column(values: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return a column's values as JSON has them."""
    return [plain(value) for value in readable(values)]


def ids(values: pa.Array | pa.ChunkedArray) -> list[str]:
    """Return ids as text, as every tool but the pool has them: integers decimal, bytes hexadecimal."""
    return [value.hex() if isinstance(value, bytes) else str(value) for value in readable(values)]


def kind_of_ids(type_: pa.DataType) -> str:
    """Say what the text of `ids` stands for: `integer`, `string` or `binary`."""
    if pa.types.is_integer(type_):
        return "integer"
    return "string" if pa.types.is_string(type_) or pa.types.is_large_string(type_) else "binary"


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

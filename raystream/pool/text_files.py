"""Labels as text, CSV and JSON Lines: read by Arrow, types included, and handed on as Parquet in memory.

The id column alone is read by what the pool's ids are, so that `007` stays a string where these are strings, and is 7 where they
are integers; binary ids are written as hexadecimal digits.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raystream.errors import PoolError
from raystream.figures import quoted
from raystream.lake import reason
from raystream.pool.footer_bytes import footer_bytes
from raystream.pool.ids import id_bytes

SUFFIXES = {".csv": "CSV", ".jsonl": "JSON Lines", ".ndjson": "JSON Lines"}
"""By which files of text are told, and what they hold."""
_BLOCK_BYTES = 16 << 20
"""Rows of text are read so many bytes at a time; a single row must fit."""
_GROUP_ROWS = 1 << 16
_KEPT_BYTES = 256 << 20
"""Of what files of text became: each is opened several times, to list, to look for ids, and by whoever scores its rows."""
_NUMBER = pa.decimal128(38, 0)
"""Takes integers of any width, whether written as numbers or as text."""


@dataclass(frozen=True, slots=True)
class TextIds:
    """The column of ids in a file of text, and the type of the pool's ids."""

    name: str
    type: pa.DataType


class TextParquet(pq.ParquetFile):  # type: ignore[misc] # pyarrow has no types
    """The rows of a file of text as a Parquet file; `version` is what the file was: path, size and version."""

    def __init__(self, content: pa.Buffer, version: tuple[str, int, str]) -> None:
        super().__init__(pa.BufferReader(content), pre_buffer=False)
        self.version, self._content = version, content

    @property
    def footer(self) -> tuple[bytes, int]:
        """The bytes from where the Parquet footer begins, and the size of it all."""
        size = self._content.size
        return footer_bytes(lambda count, at: self._content.slice(at, count).to_pybytes(), size), size


_converted: OrderedDict[tuple[tuple[str, int, str], TextIds | None], pa.Buffer] = OrderedDict()
_converted_lock = Lock()


def text_format(path: str) -> str | None:
    """Say what a file of text holds, told by its name; None where it isn't one."""
    return next((what for suffix, what in SUFFIXES.items() if path.lower().endswith(suffix)), None)


def open_text(version: tuple[str, int, str], ids: TextIds | None, read: Callable[[], bytes]) -> TextParquet:
    """Open a file of text as Parquet; one that was opened lately isn't read again.

    Args:
        version: its path, size and version.
        ids: its column of ids, if that is to be the pool's.
        read: gives its content.

    Raises:
        PoolError: it isn't what its name says, or an id can't be one of the pool's.
    """
    with _converted_lock:
        known = _converted.get((version, ids))
    if known is None:
        known = _as_parquet(version[0], ids, read())
        with _converted_lock:
            _converted[version, ids] = known
            while sum(content.size for content in _converted.values()) > _KEPT_BYTES:
                _converted.popitem(last=False)
    return TextParquet(known, version)


def _as_parquet(path: str, ids: TextIds | None, content: bytes) -> pa.Buffer:
    what = text_format(path)
    try:
        table = _csv(content, ids) if what == "CSV" else _json(content, ids)
    except pa.ArrowException as error:
        raise PoolError(f"{path} can't be read as {what}: {reason(error)}; correct the file") from None
    twice = next((name for name in table.column_names if table.column_names.count(name) > 1), None)
    if twice is not None:
        raise PoolError(f"column {twice} stands {table.column_names.count(twice)} times in {path}; expected different names")
    if ids is not None and ids.name in table.column_names:
        at = table.column_names.index(ids.name)
        table = table.set_column(at, ids.name, _ids(table.column(at), ids, path))
    sink = pa.BufferOutputStream()
    pq.write_table(table.select([f.name for f in table.schema if _is_writable(f.type)]), sink, row_group_size=_GROUP_ROWS)
    return sink.getvalue()


def _csv(content: bytes, ids: TextIds | None) -> pa.Table:
    from pyarrow import csv

    # an empty field is a null, but the words NA and null may be ids or labels
    convert = csv.ConvertOptions(
        column_types={} if ids is None else {ids.name: pa.string()},
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    return csv.read_csv(
        io.BytesIO(content),
        read_options=csv.ReadOptions(block_size=_BLOCK_BYTES),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=convert,
    )


def _json(content: bytes, ids: TextIds | None) -> pa.Table:
    from pyarrow import json

    if not content.strip():
        return pa.table({} if ids is None else {ids.name: pa.array([], pa.string())})

    def read(type_: pa.DataType | None) -> pa.Table:
        schema = None if ids is None or type_ is None else pa.schema([(ids.name, type_)])
        table = json.read_json(
            io.BytesIO(content),
            read_options=json.ReadOptions(block_size=_BLOCK_BYTES),
            parse_options=json.ParseOptions(explicit_schema=schema, newlines_in_values=False),
        )
        # a column that is asked for is there in any case
        absent = schema is not None and table.num_rows and table.column(ids.name if ids else "").null_count == table.num_rows
        return table.drop_columns([ids.name]) if absent and ids else table

    if ids is None:
        return read(None)
    if pa.types.is_integer(ids.type):
        return read(_NUMBER)
    try:
        return read(pa.string())
    except pa.ArrowInvalid as error:
        if "from string to number" not in str(error):
            raise
        return read(_NUMBER)


def _ids(column: pa.ChunkedArray, ids: TextIds, path: str) -> pa.ChunkedArray:
    """Return the ids, read as text or as numbers, in a type that is comparable with the pool's."""
    if pa.types.is_integer(ids.type):
        numbers = column if column.type == _NUMBER else _numbers(column, ids, path)
        return _narrowed(numbers, ids, path)
    text = column.cast(pa.string())
    if pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type):
        return text
    return pa.chunked_array([_from_hex(chunk, ids, path) for chunk in text.chunks], pa.large_binary())


def _numbers(column: pa.ChunkedArray, ids: TextIds, path: str) -> pa.ChunkedArray:
    text = pc.utf8_trim_whitespace(column)
    wrong = pc.invert(pc.match_substring_regex(text, "^[+-]?[0-9]{1,38}$"))
    if pc.any(wrong).as_py():
        raise _no_id(column, wrong, ids, path, "expected whole numbers")
    return text.cast(_NUMBER)


def _narrowed(numbers: pa.ChunkedArray, ids: TextIds, path: str) -> pa.ChunkedArray:
    for type_ in (pa.int64(), pa.uint64()):
        try:
            return numbers.cast(type_)
        except pa.ArrowInvalid:
            continue
    wrong = pc.or_(pc.less(numbers, pa.scalar(-(2**63), _NUMBER)), pc.greater_equal(numbers, pa.scalar(2**63, _NUMBER)))
    raise _no_id(numbers, wrong, ids, path, "expected integers of 64 bits, all of them signed or none")


def _from_hex(text: pa.Array, ids: TextIds, path: str) -> pa.Array:
    data, offsets = id_bytes(text)
    digits = data[offsets[0] : offsets[-1]]
    values = _DIGITS[digits]
    odd = np.diff(offsets) % 2 == 1
    if odd.any() or (values == _NO_DIGIT).any():
        right = pc.fill_null(pc.match_substring_regex(text, "^([0-9a-fA-F]{2})*$"), True)
        raise _no_id(pa.chunked_array([text]), pa.chunked_array([pc.invert(right)]), ids, path, "expected pairs of hexadecimal digits")
    packed = (values[0::2] << 4) | values[1::2]
    where = pa.py_buffer((offsets - offsets[0]) // 2)
    found = pa.Array.from_buffers(pa.large_binary(), len(text), [None, where, pa.py_buffer(packed)])
    return pc.if_else(text.is_valid(), found, None) if text.null_count else found


def _no_id(column: pa.ChunkedArray, wrong: pa.ChunkedArray, ids: TextIds, path: str, expected: str) -> PoolError:
    """Make the error for ids that can't be the pool's; it names the first of them, and its row."""
    rows = pc.indices_nonzero(wrong.combine_chunks())
    count, row = len(rows), rows[0].as_py()
    value, more = quoted(str(column[row].as_py())), f" and {count - 1} more such" if count > 1 else ""
    return PoolError(f"id column {ids.name} of {path} holds {value} in row {row}{more}, but the pool's ids are {ids.type}; {expected}")


def _is_writable(type_: pa.DataType) -> bool:
    """Tell whether Parquet can hold a type: `{}` of JSON is a struct of nothing."""
    if pa.types.is_struct(type_):
        return type_.num_fields > 0 and all(_is_writable(field.type) for field in type_)
    return not pa.types.is_list(type_) or _is_writable(type_.value_type)


_NO_DIGIT = 255
_DIGITS = np.full(256, _NO_DIGIT, np.uint8)
for _value, _digit in enumerate("0123456789abcdef"):
    _DIGITS[[ord(_digit), ord(_digit.upper())]] = _value

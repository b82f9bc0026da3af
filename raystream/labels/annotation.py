"""What tools wrote: files parsed, what one person said of one row, and ids as tools carry them.

What one person said of one row, as a tool wrote it down, before it is known what the row's id and label are in the pool.

Ids as tools carry them: texts, from which the pool's own ids come back.

Files that tools wrote, parsed: JSON, JSON Lines, XML, CSV, Parquet, also in gzip or zip archives. What is cut off says so.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq

from raystream.errors import LabelsError, ModelError
from raystream.lake import is_remote, local_copy, reason, redacted
from raystream.lake import parse as parse_uri
from raystream.pool.columns import plain, plain_type

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


FIELD = "raystream_id"
"""The key under which a row's id stands in a tool's data."""
QUERY_FIELD, RANK_FIELD, SCORE_FIELD = "raystream_query", "raystream_rank", "raystream_score"
Id = int | str | bytes
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")
_HEX = re.compile(r"(?:[0-9a-f]{2})*", re.IGNORECASE)


@dataclass(frozen=True)
class IdColumn:
    """The ids of a query's pool.

    Attributes:
        name: of their column.
        type: as the selection has it; integers, text or bytes.
    """

    name: str
    type: pa.DataType

    @property
    def plain(self) -> pa.DataType:
        """The type without extensions and dictionaries."""
        return plain_type(self.type)

    def texts(self, column: pa.ChunkedArray | pa.Array) -> list[str]:
        """Return ids as tools carry them: integers decimal, text as it is, bytes as hexadecimal digits."""
        return [as_text(value) for value in plain(column).to_pylist()]

    def values(self, column: pa.ChunkedArray | pa.Array) -> list[Id]:
        """Return ids as Python has them."""
        return list(plain(column).to_pylist())

    def parse(self, text: str) -> Id | None:
        """Return the id that a text stands for; None where it can be none of the pool's."""
        plain_ = self.plain
        if pa.types.is_integer(plain_):
            if not _INTEGER.fullmatch(text.strip()):
                return None
            value = int(text)
            signed = pa.types.is_signed_integer(plain_)
            low, high = (-(1 << (plain_.bit_width - 1)), 1 << (plain_.bit_width - 1)) if signed else (0, 1 << plain_.bit_width)
            return value if low <= value < high else None
        if pa.types.is_string(plain_) or pa.types.is_large_string(plain_):
            return text
        digits = text.replace("-", "") if _is_uuid(plain_, text) else text
        if not _HEX.fullmatch(digits):
            return None
        found = bytes.fromhex(digits)
        return found if not pa.types.is_fixed_size_binary(plain_) or len(found) == plain_.byte_width else None

    def array(self, values: list[Id]) -> pa.Array:
        """Return ids in the pool's plain type."""
        return pa.array(values, self.plain)


def as_text(value: Id) -> str:
    """Return one id as tools carry it."""
    return value.hex() if isinstance(value, bytes) else str(value)


def _is_uuid(type_: pa.DataType, text: str) -> bool:
    """Tell whether these are the 36 characters in which others write 16 bytes."""
    return pa.types.is_fixed_size_binary(type_) and type_.byte_width == 16 and len(text) == 36 and text.count("-") == 4


SUFFIXES = (".json", ".jsonl", ".ndjson", ".manifest", ".xml", ".csv", ".tsv", ".parquet", ".zip", ".gz")
_MICROSECONDS = pa.timestamp("us", "UTC")
_GZIP = b"\x1f\x8b"
_LARGEST_MEMBER = 4 << 30
"""Bytes that a member of an archive may unpack to."""


@dataclass(frozen=True)
class Document:
    """One file.

    Attributes:
        name: its path, for messages.
        kind: json, lines, xml, csv or parquet.
        content: what JSON holds; a list of records for lines, csv and parquet; the root of XML.
    """

    name: str
    kind: str
    content: Any

    @property
    def records(self) -> list[dict[str, Any]]:
        """The mappings that the file holds one after the other; none of XML and of other JSON."""
        content = self.content if isinstance(self.content, list) else []
        return [record for record in content if isinstance(record, dict)]

    @property
    def first(self) -> dict[str, Any]:
        """The first record, or an empty one."""
        return next(iter(self.records), {})


def read_documents(source: str) -> list[Document]:
    """Read the files of a source: one file, or all of a folder whose suffix is known, in the order of their names.

    Args:
        source: a path, or the URI of a file or folder in object storage.

    Raises:
        LabelsError: nothing is there, or a file isn't what it says or ends in the middle.
    """
    try:
        path = Path(local_copy(source, key="the export")) if is_remote(source) else Path(parse_uri(source, "the export").path)
    except ModelError as error:
        raise LabelsError(str(error)) from None
    if path.is_dir():
        files = [
            file
            for file in sorted(path.rglob("*"))
            if file.suffix.lower() in SUFFIXES and file.is_file() and not _is_hidden(file.relative_to(path).parts)
        ]
        if not files:
            raise LabelsError(f"{source} holds none of the files that tools write ({', '.join(SUFFIXES)}); name the tool's export")
    elif path.is_file():
        files = [path]
    else:
        raise LabelsError(f"{source} is not there; name the file or folder that the tool exported")
    root = redacted(source) if is_remote(source) else str(path)
    return [document for file in files for document in _parsed(file, f"{root}{str(file).removeprefix(str(path))}")]


def _is_hidden(parts: tuple[str, ...]) -> bool:
    """Tell whether a path is of what programs keep beside files, such as `__MACOSX/` in archives."""
    return any(part.startswith((".", "_")) for part in parts)


def _parsed(path: Path, name: str) -> Iterator[Document]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LabelsError(f"{name} can't be read: {error.strerror}") from None
    if data[:2] == b"PK":
        yield from _unpacked(name, data)
    else:
        yield parse(name, data)


def _unpacked(name: str, data: bytes) -> Iterator[Document]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for info in sorted(archive.infolist(), key=lambda info: info.filename):
                parts = PurePosixPath(info.filename).parts
                if info.is_dir() or not info.filename.lower().endswith(SUFFIXES) or _is_hidden(parts):
                    continue
                if info.file_size > _LARGEST_MEMBER:
                    size = f"{name}:{info.filename} unpacks to {info.file_size:,} bytes"
                    raise LabelsError(f"{size}, which is too much to be read from an archive; unpack it, and name it")
                yield parse(f"{name}:{info.filename}", archive.read(info))
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        if isinstance(error, LabelsError):
            raise
        raise LabelsError(f"{name} is a zip archive that is damaged or cut off ({reason(error)}); export it again") from None


def parse(name: str, data: bytes) -> Document:
    """Read one file's content.

    Raises:
        LabelsError: it isn't what it says or ends in the middle.
    """
    if data[:2] == _GZIP:
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise LabelsError(f"{name} is a gzip archive that is damaged or cut off ({reason(error)}); export it again") from None
    if data[:4] == b"PAR1":
        return Document(name, "parquet", _parquet(name, data))
    text = _text(name, data)
    suffix = name.lower().removesuffix(".gz").rpartition(".")[2]
    start = text.lstrip()[:1]
    if suffix in ("csv", "tsv"):
        return Document(name, "csv", _csv(name, text, "\t" if suffix == "tsv" else _separator(text)))
    if start == "<":
        return Document(name, "xml", _xml(name, text))
    if suffix in ("jsonl", "ndjson", "manifest"):
        return Document(name, "lines", _lines(name, text))
    if not start:
        raise LabelsError(f"{name} is empty; export it again")
    if start not in ("[", "{"):
        raise LabelsError(f"{name} is neither JSON, XML, CSV nor Parquet: it begins with {text.strip()[:20]!r}")
    try:
        return Document(name, "json", json.loads(text))
    except json.JSONDecodeError as error:
        if start == "{" and "\n" in text.strip() and error.msg == "Extra data":
            return Document(name, "lines", _lines(name, text))
        raise _no_json(name, text, error) from None
    except RecursionError:
        raise LabelsError(f"{name} is nested too deeply to be read") from None


def _text(name: str, data: bytes) -> str:
    """Decode UTF-8, or UTF-16 that says so in its first bytes, as some Windows programs write it."""
    wide = data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        if wide:
            raise LabelsError(f"{name} is UTF-16 that is damaged or cut off; export it again") from None
        raise LabelsError(
            f"{name} is no text in UTF-8 (byte {error.start:,}); export it as UTF-8, which spreadsheets call CSV UTF-8"
        ) from None


def _lines(name: str, text: str) -> list[Any]:
    found = []
    # Only \n ends a line: texts inside the strings may hold other separators of lines.
    lines = text.split("\n")
    last = max((number for number, line in enumerate(lines) if line.strip()), default=-1)
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            cut = number == last and not text.endswith("\n")
            what = "ends in the middle: it was cut off, so export it again" if cut else f"is no JSON ({error.msg}); correct it"
            raise LabelsError(f"{name}: line {number + 1} {what}") from None
        except RecursionError:
            raise LabelsError(f"{name}: line {number + 1} is nested too deeply to be read") from None
    return found


def _no_json(name: str, text: str, error: json.JSONDecodeError) -> LabelsError:
    unterminated = error.msg.startswith("Unterminated string")
    if unterminated or error.pos >= len(text.rstrip()):
        return LabelsError(f"{name} ends in the middle of its JSON: it was cut off, so export it again")
    return LabelsError(f"{name} is no JSON: {error.msg} in line {error.lineno}, column {error.colno}; correct it or export it again")


def _xml(name: str, text: str) -> ElementTree.Element:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise LabelsError(f"{name} declares a document type, which no tool's export does; it isn't read")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        line, column = error.position
        cut = "no element found" in str(error) or "unclosed token" in str(error)
        what = "ends in the middle: it was cut off" if cut else f"is no XML in line {line}, column {column + 1}"
        raise LabelsError(f"{name} {what}; export it again") from None


def _separator(text: str) -> str:
    """Tell what parts the fields of a spreadsheet: a comma, or where the head has none what programs write in its place."""
    head = text.partition("\n")[0]
    return next((mark for mark in ",;\t" if mark in head), ",")


def _csv(name: str, text: str, separator: str) -> list[dict[str, Any]]:
    """Read rows by the names of the columns."""
    csv.field_size_limit(1 << 30)
    # A StringIO would hold four bytes a character.
    rows = csv.reader(io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8", newline=""), delimiter=separator, strict=True)
    try:
        head = next(rows, None)
        if head is None:
            raise LabelsError(f"{name} is empty; export it again")
        if len(set(head)) < len(head):
            twice = next(column for column in head if head.count(column) > 1)
            raise LabelsError(f"{name} has {head.count(twice)} columns named {twice!r}; give each a name of its own")
        found = []
        for row in rows:
            if not row:
                continue
            if len(row) != len(head):
                what = "ends in the middle: the file was cut off or edited" if len(row) < len(head) else "has too many fields"
                raise LabelsError(f"{name}: line {rows.line_num} {what} ({len(row)} fields, expected {len(head)})")
            found.append(dict(zip(head, row, strict=True)))
        return found
    except csv.Error as error:
        cut = "unexpected end" in str(error)
        what = "ends inside quotes: it was cut off, so export it again" if cut else f"is no CSV in line {rows.line_num}: {error}"
        raise LabelsError(f"{name} {what}") from None


def _parquet(name: str, data: bytes) -> list[dict[str, Any]]:
    try:
        table = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)
        types = [_MICROSECONDS if pa.types.is_timestamp(each.type) and each.type.unit == "ns" else each.type for each in table.schema]
        # Python's times hold no billionths of a second.
        return list(table.cast(pa.schema(map(pa.field, table.column_names, types)), safe=False).to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise LabelsError(f"{name} is Parquet that is damaged or cut off ({reason(error)}); export it again") from None

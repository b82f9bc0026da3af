"""Files that tools wrote, parsed: JSON, JSON Lines, XML, CSV, Parquet, also in gzip or zip archives. What is cut off says so."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq

from raystream.errors import LabelsError, ModelError
from raystream.lake import is_remote, local_copy, reason, redacted
from raystream.lake import parse as parse_uri

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

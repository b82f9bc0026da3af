"""Read what a Parquet footer says of column chunks, without pyarrow.

pyarrow ends the process where it comes upon a chunk that it can't make sense of: one that is encrypted, whose type isn't the
schema's, or whose statistics are cut short. Here such a chunk is said to be encrypted, or is an error, or has no bounds.

Footers are written in Thrift's compact protocol. A field is a byte, the distance to the field's number before and the kind of its value,
then the value; 0 ends a struct. Numbers are of 7 bits a byte, lowest first, and zigzag: 0, -1, 1, -2. Of bytes that end too early
IndexError is raised.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

NUMBERS, STRUCT, LISTS = (4, 5, 6), 12, (9, 10)
_BOOLEANS, _BINARY = (1, 2), 8
_FIXED = {3: 1, 7: 8}
"""Bytes of single bytes and floating numbers."""
MANY = 15
"""Items of a list from which on their number is written apart."""
Fields = dict[int, Any]
"""The fields of a struct by their numbers: int, bytes, or the fields of another struct; no list is kept."""


class ThriftError(ValueError):
    """Bytes that are none of Thrift's, or not what was expected there."""


def read_field(data: bytes, at: int, before: int) -> tuple[int, int]:
    """Find where the value of a field starts, and the field's number."""
    head = data[at]
    if head > 15:
        return at + 1, before + (head >> 4)
    number, at = read_number(data, at + 1)
    return at, number


def read_number(data: bytes, at: int) -> tuple[int, int]:
    """Read a signed number, and say where it ends."""
    value, at = _unsigned(data, at)
    return (value >> 1) ^ -(value & 1), at


def read_count(data: bytes, at: int) -> tuple[int, int]:
    """Read how many items a list of structs has, and where the first starts.

    Raises:
        ThriftError: it is a list of anything else.
    """
    head = data[at]
    if head & 15 != STRUCT:
        raise ThriftError("it holds a list of something else where it should describe row groups and columns")
    return (head >> 4, at + 1) if head >> 4 < MANY else _unsigned(data, at + 1)


def read_struct(data: bytes, at: int, field: int = 0, last: int = 1 << 15) -> tuple[Fields, int]:
    """Return the fields of a struct after the given one, up to the last one wanted, and where they end."""
    found: Fields = {}
    while field < last and (head := data[at]):
        at, field = (at + 1, field + (head >> 4)) if head > 15 else read_field(data, at, field)
        kind = head & 15
        if kind in NUMBERS:
            found[field], at = read_number(data, at)
        elif kind == _BINARY:
            length, at = _unsigned(data, at)
            found[field] = data[at : at + length]
            at += length
        elif kind == STRUCT:
            found[field], at = read_struct(data, at)
        else:
            at = skip(data, at, kind)
    return found, at + 1


def skip(data: bytes, at: int, kind: int) -> int:
    """Find where a value ends. Most of a footer is skipped: so this makes nothing of it, and calls nothing for numbers and short texts."""
    if kind == STRUCT:
        while head := data[at]:
            at += 1
            if head < 16:
                _, at = _unsigned(data, at)
            kind = head & 15
            if kind in NUMBERS:
                while data[at] > 127:
                    at += 1
                at += 1
            elif kind == _BINARY and data[at] < 128:
                at += data[at] + 1
            else:
                at = skip(data, at, kind)
        return at + 1
    if kind in LISTS:
        count, of = data[at] >> 4, data[at] & 15
        count, at = (count, at + 1) if count < MANY else _unsigned(data, at + 1)
        for _ in range(count):
            if of in NUMBERS:
                while data[at] > 127:
                    at += 1
                at += 1
            elif of == _BINARY and data[at] < 128:
                at += data[at] + 1
            else:
                # a boolean is one with the kind of its field, but has a byte of its own in a list
                at = at + 1 if of in _BOOLEANS else skip(data, at, of)
        return at
    if kind in NUMBERS:
        return _unsigned(data, at)[1]
    if kind == _BINARY:
        length, at = _unsigned(data, at)
        return at + length
    if kind in _BOOLEANS:
        return at
    if kind in _FIXED:
        return at + _FIXED[kind]
    raise ThriftError(f"it holds a value of kind {kind}, which no part of a footer is")


def texts(values: tuple[str, ...]) -> bytes:
    """Encode a list of fewer than `MANY` texts."""
    encoded = [value.encode() for value in values]
    return bytes([len(encoded) << 4 | _BINARY]) + b"".join(_written(len(value)) + value for value in encoded)


def empty_structs(count: int, field: int) -> bytes:
    """Encode a list of structs that hold nothing but an empty struct in that field."""
    head = bytes([count << 4 | STRUCT]) if count < MANY else bytes([MANY << 4 | STRUCT]) + _written(count)
    return head + bytes([field << 4 | STRUCT, 0, 0]) * count


def _unsigned(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while (byte := data[at]) > 127:
        value |= (byte & 127) << shift
        shift += 7
        at += 1
    return value | byte << shift, at + 1


def _written(number: int) -> bytes:
    """Write an unsigned number."""
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


_TAIL = 1 << 16
"""Bytes at the end of a file that are read at once; most footers are smaller."""
_ENCRYPTED = b"PARE"
_BYTE_ARRAYS = 6
"""Physical types from here on are bytes."""
_LIST = b"\x19"
"""The head of a list in the field that follows another one: of a column's path among others, and of the columns' orders."""
_STATISTICS = 12
"""A field of a column chunk's description."""
_ORDERED, _UNORDERED = (6, 5), (2, 1)
"""The fields of statistics that are the least and the greatest value: by the column's order, and as writers have it that say none."""
_END = 8
"""Bytes after a footer: its length, and the magic number."""
_BY_TYPE = 1
"""The field of a column's order which says that its values are ordered as their type is."""


class DamagedFooterError(ValueError):
    """A footer that contradicts itself; the text says how."""


class EncryptedFooterError(ValueError):
    """A footer that can't be read without a key."""

    def __init__(self) -> None:
        super().__init__("it is encrypted, footer and all, and raystream holds no keys")


@dataclass(frozen=True, slots=True)
class ColumnChunk:
    """A column chunk.

    Attributes:
        encrypted: whether nothing else can be known without a key.
        values: how many it holds, nulls included.
        start: where its first page lies in the file.
        stored: bytes of its pages.
        size: bytes of them once they are decompressed.
        nulls: how many values are null; None where the writer left it out.
        least: a bound that no value lies below, encoded as the physical type is; None where there is none to go by.
        greatest: the same above.
    """

    encrypted: bool
    values: int = 0
    start: int = 0
    stored: int = 0
    size: int = 0
    nulls: int | None = None
    least: bytes | None = None
    greatest: bytes | None = None


@dataclass(frozen=True, slots=True)
class GroupChunks:
    """A row group: its rows, and those of its column chunks that were asked for, by their leaf columns."""

    rows: int
    chunks: dict[int, ColumnChunk]


def footer_bytes(read_at: Callable[[int, int], bytes], size: int) -> bytes:
    """Return the end of a Parquet file, from where its footer begins; of any other file, some of its end.

    Args:
        read_at: gives so many bytes from such an offset on.
        size: of the file.

    Raises:
        EncryptedFooterError: the footer is encrypted.
    """
    data = read_at(min(size, _TAIL), max(0, size - _TAIL))
    if data.endswith(_ENCRYPTED):
        raise EncryptedFooterError()
    length = int.from_bytes(data[-8:-4], "little") + 8
    return read_at(length, size - length) if len(data) < length <= size else data[-length:]


def find_groups(footer: bytes, leaves: Mapping[int, str], metadata: pq.FileMetaData, size: int) -> list[GroupChunks]:
    """Return the row groups of a file, their chunks found by the columns' names where that is certain; else by `read_groups`.

    Files of a thousand columns are read for a few of them, and taking all of a footer apart takes 5 us a chunk.

    Args:
        footer: the bytes that the footer begins with.
        leaves: the leaf columns wanted, and the paths of these.
        metadata: the same footer as pyarrow has it, of which only the row groups' numbers are taken.
        size: of the file.

    Raises:
        DamagedFooterError: a row group is none of such a file.
    """
    columns = metadata.num_columns
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    odd = next((group.num_columns for group in groups if group.num_columns != columns), columns)
    if odd != columns:
        raise _wrong_count(odd, columns)
    found: list[GroupChunks] = [GroupChunks(group.num_rows, {}) for group in groups]
    signed = metadata.serialized_size != len(footer) - _END  # as those are of files with encrypted columns
    if signed or footer.rfind(_LIST + empty_structs(columns, _BY_TYPE)) < 0:
        return read_groups(footer, leaves, columns, size)
    for leaf, path in leaves.items():
        chunks = _by_path(footer, path, len(groups), size)
        if chunks is None:
            return read_groups(footer, leaves, columns, size)
        for group, chunk in zip(found, chunks, strict=True):
            group.chunks[leaf] = chunk
    return _checked(found)


def read_groups(footer: bytes, leaves: Collection[int], columns: int, size: int) -> list[GroupChunks]:
    """Return the row groups of a file, by taking all of the footer apart.

    Args:
        footer: the bytes that the footer begins with.
        leaves: the leaf columns wanted.
        columns: how many leaf columns the schema has.
        size: of the file.

    Raises:
        DamagedFooterError: the bytes are no footer, or a row group is none of such a file.
    """
    wanted = frozenset(leaves)
    found: list[tuple[int, dict[int, Fields]]] = []
    orders: list[Fields] = []
    try:
        at, field = 0, 0
        while head := footer[at]:
            at, field = read_field(footer, at, field)
            if field == 4 and head & 15 in LISTS:
                count, at = read_count(footer, at)
                for _ in range(count):
                    rows, chunks, at = _group(footer, at, wanted, columns)
                    found.append((rows, chunks))
            elif field == 7 and head & 15 in LISTS:
                count, at = read_count(footer, at)
                for _ in range(count):
                    order, at = read_struct(footer, at)
                    orders.append(order)
            else:
                at = skip(footer, at, head & 15)
    except ThriftError as error:
        raise DamagedFooterError(str(error)) from None
    except (IndexError, RecursionError):
        raise DamagedFooterError("it ends early") from None
    # Writers that say no order compared all bytes as signed ones, so what they say of texts is no bound; others have fields of their own.
    fields = {leaf: _ORDERED if leaf < len(orders) and _BY_TYPE in orders[leaf] else None if orders else _UNORDERED for leaf in wanted}
    return _checked([GroupChunks(rows, {leaf: _chunk(of, fields[leaf], size) for leaf, of in chunks.items()}) for rows, chunks in found])


def _by_path(footer: bytes, path: str, count: int, size: int) -> list[ColumnChunk] | None:
    """Return the chunks of a column, found by its path; None unless that stands in the footer just as often as there are row groups.

    It stands there more often where a value looks like it, and less often where a chunk is damaged.
    """
    ways = [_LIST + texts(parts) for parts in {(path,), tuple(path.split("."))} if len(parts) < MANY]
    standing = [way for way in ways if footer.count(way) == count]
    if len(standing) != 1:
        return None
    found, at = [], 0
    try:
        for _ in range(count):
            at = footer.index(standing[0], at) + len(standing[0])
            description, _ = read_struct(footer, at, field=3, last=_STATISTICS)
            found.append(_chunk({3: description}, _ORDERED, size))
    except (IndexError, RecursionError, ThriftError, DamagedFooterError):
        return None  # if it is damaged, `read_groups` says how
    return found


def _group(data: bytes, at: int, wanted: frozenset[int], columns: int) -> tuple[int, dict[int, Fields], int]:
    rows, count, field = -1, 0, 0
    chunks: dict[int, Fields] = {}
    while head := data[at]:
        at, field = read_field(data, at, field)
        if field == 1 and head & 15 in LISTS:
            count, at = read_count(data, at)
            for leaf in range(count):
                if leaf in wanted:
                    chunks[leaf], at = read_struct(data, at)
                else:
                    at = skip(data, at, STRUCT)
        elif field == 3 and head & 15 in NUMBERS:
            rows, at = read_number(data, at)
        else:
            at = skip(data, at, head & 15)
    if count != columns:
        raise _wrong_count(count, columns)
    return rows, chunks, at + 1


def _chunk(fields: Fields, bounds: tuple[int, int] | None, size: int) -> ColumnChunk:
    """Make a column chunk of a file of that size; `bounds` are the fields of its statistics that are its least and its greatest value."""
    if 8 in fields:
        return ColumnChunk(encrypted=True)
    try:
        meta: Fields = fields[3]
        values, plain, stored, start, dictionary = meta[5], meta[6], meta[7], meta[9], meta.get(11, 0)
        statistics: Fields = meta.get(_STATISTICS, {})
        nulls, least, greatest = statistics.get(3), None, None
        if bounds is not None and (bounds == _ORDERED or meta[1] < _BYTE_ARRAYS):
            least, greatest = statistics.get(bounds[0]), statistics.get(bounds[1])
        found = ColumnChunk(False, values, min(start, dictionary) if dictionary > 0 else start, stored, plain, nulls, least, greatest)
        sound = values >= 0 and found.start >= 0 and stored >= 0 and plain >= 0 and (nulls is None or nulls >= 0)
        sound = sound and found.start + stored <= size
        sound = sound and (least is None or isinstance(least, bytes)) and (greatest is None or isinstance(greatest, bytes))
    except (KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise DamagedFooterError("it describes a column chunk that can't be")
    return found


def _checked(groups: list[GroupChunks]) -> list[GroupChunks]:
    fewest = min((group.rows for group in groups), default=0)
    if fewest < 0:
        raise DamagedFooterError(f"a row group has {fewest} rows")
    return groups


def _wrong_count(count: int, columns: int) -> DamagedFooterError:
    return DamagedFooterError(f"a row group has {count} columns, expected the schema's {columns}")

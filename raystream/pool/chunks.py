"""What a Parquet footer says of column chunks, read without pyarrow.

pyarrow ends the process where it comes upon a chunk that it can't make sense of: one that is encrypted, whose type isn't the
schema's, or whose statistics are cut short. Here such a chunk is an error, or has no bounds.

A footer is one Thrift struct in the compact protocol. A field is a byte, the distance to the field's number before and the kind of
its value, then the value; 0 ends a struct. Numbers are of 7 bits a byte, lowest first, and zigzag: 0, -1, 1, -2.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

_TAIL = 1 << 16
"""Bytes at the end of a file that are read at once; most footers are smaller."""
_ENCRYPTED = b"PARE"
_BOOLEANS, _BINARY, _LISTS, _STRUCT = (1, 2), 8, (9, 10), 12
_FIXED = {3: 1, 7: 8}
"""Bytes of single bytes and floating numbers."""
_NUMBERS = (4, 5, 6)
_LONG_LIST = 15
_BYTE_ARRAYS = 6
"""Physical types from here on are bytes."""
_Fields = dict[int, Any]
"""The fields of a struct by their numbers: int, bytes, or the fields of another struct; no list is kept."""


class DamagedFooterError(ValueError):
    """A footer that contradicts itself; the text says how."""


class EncryptedFooterError(ValueError):
    """A footer that can't be read without a key."""

    def __init__(self) -> None:
        super().__init__("it is encrypted, footer and all, and raystream holds no keys")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A column chunk.

    Attributes:
        encrypted: whether nothing else can be known without a key.
        physical: the number of its physical type in Parquet's own list.
        values: how many it holds, nulls included.
        start: where its first page lies in the file.
        stored: bytes of its pages.
        size: bytes of them once they are decompressed.
        nulls: how many values are null; None where the writer left it out.
        least: a bound that no value lies below, encoded as the physical type is; None where there is none to go by.
        greatest: the same above.
    """

    encrypted: bool
    physical: int = -1
    values: int = 0
    start: int = 0
    stored: int = 0
    size: int = 0
    nulls: int | None = None
    least: bytes | None = None
    greatest: bytes | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """A row group: its rows, and those of its column chunks that were asked for, by their leaf columns."""

    rows: int
    chunks: dict[int, Chunk]


def footer_bytes(read_at: Callable[[int, int], bytes], size: int) -> bytes:
    """The end of a Parquet file, from where its footer begins; of any other file, some of its end.

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


def read_groups(footer: bytes, leaves: Collection[int], columns: int, size: int) -> list[Group]:
    """The row groups of a file.

    Args:
        footer: the bytes that the struct begins with.
        leaves: the leaf columns wanted.
        columns: how many leaf columns the schema has.
        size: of the file.

    Raises:
        DamagedFooterError: the bytes are no footer, or a row group is none of such a file.
    """
    wanted = frozenset(leaves)
    found: list[tuple[int, dict[int, _Fields]]] = []
    orders: list[_Fields] = []
    try:
        at, field = 0, 0
        while head := footer[at]:
            at, field = _field(footer, at, field)
            if field == 4 and head & 15 in _LISTS:
                count, at = _list(footer, at)
                for _ in range(count):
                    rows, chunks, at = _group(footer, at, wanted, columns)
                    found.append((rows, chunks))
            elif field == 7 and head & 15 in _LISTS:
                count, at = _list(footer, at)
                for _ in range(count):
                    order, at = _struct(footer, at)
                    orders.append(order)
            else:
                at = _skip(footer, at, head & 15)
    except (IndexError, RecursionError):
        raise DamagedFooterError("it ends early") from None
    # Writers that say no order compared all bytes as signed ones, so what they say of texts is no bound; others have fields of their own.
    fields = {leaf: (6, 5) if leaf < len(orders) and 1 in orders[leaf] else None if orders else (2, 1) for leaf in wanted}
    return [Group(rows, {leaf: _chunk(of, fields[leaf], size) for leaf, of in chunks.items()}) for rows, chunks in found]


def _group(data: bytes, at: int, wanted: frozenset[int], columns: int) -> tuple[int, dict[int, _Fields], int]:
    rows, count, field = -1, 0, 0
    chunks: dict[int, _Fields] = {}
    while head := data[at]:
        at, field = _field(data, at, field)
        if field == 1 and head & 15 in _LISTS:
            count, at = _list(data, at)
            for leaf in range(count):
                if leaf in wanted:
                    chunks[leaf], at = _struct(data, at)
                else:
                    at = _skip(data, at, _STRUCT)
        elif field == 3 and head & 15 in _NUMBERS:
            rows, at = _number(data, at)
        else:
            at = _skip(data, at, head & 15)
    if count != columns:
        raise DamagedFooterError(f"a row group has {count} columns, expected the schema's {columns}")
    if rows < 0:
        raise DamagedFooterError(f"a row group has {rows} rows")
    return rows, chunks, at + 1


def _chunk(fields: _Fields, bounds: tuple[int, int] | None, size: int) -> Chunk:
    """A column chunk, with the fields of its statistics that are bounds."""
    if 8 in fields:
        return Chunk(encrypted=True)
    try:
        meta: _Fields = fields[3]
        physical, values, plain, stored, start = meta[1], meta[5], meta[6], meta[7], meta[9]
        dictionary: int = meta.get(11, 0)
        statistics: _Fields = meta.get(12, {})
        nulls, least, greatest = (statistics.get(field) for field in (3, *(bounds or (0, 0))))
        if bounds == (2, 1) and physical >= _BYTE_ARRAYS:
            least = greatest = None
        found = Chunk(False, physical, values, min(start, dictionary) if dictionary > 0 else start, stored, plain, nulls, least, greatest)
        known = all(bound is None or isinstance(bound, bytes) for bound in (least, greatest))
        sound = known and min(found.values, found.start, found.stored, found.size, found.nulls or 0) >= 0
        sound = sound and found.start + found.stored <= size
    except (KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise DamagedFooterError("it describes a column chunk that can't be")
    return found


def _field(data: bytes, at: int, before: int) -> tuple[int, int]:
    """Where the value of a field starts, and the field's number."""
    head = data[at]
    if head > 15:
        return at + 1, before + (head >> 4)
    number, at = _number(data, at + 1)
    return at, number


def _unsigned(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while (byte := data[at]) > 127:
        value |= (byte & 127) << shift
        shift += 7
        at += 1
    return value | byte << shift, at + 1


def _number(data: bytes, at: int) -> tuple[int, int]:
    value, at = _unsigned(data, at)
    return (value >> 1) ^ -(value & 1), at


def _list(data: bytes, at: int) -> tuple[int, int]:
    """How many items a list of structs has, and where the first starts."""
    head = data[at]
    if head & 15 != _STRUCT:
        raise DamagedFooterError("it holds numbers where it should describe row groups and columns")
    return (head >> 4, at + 1) if head >> 4 < _LONG_LIST else _unsigned(data, at + 1)


def _struct(data: bytes, at: int) -> tuple[_Fields, int]:
    found: _Fields = {}
    field = 0
    while head := data[at]:
        at, field = (at + 1, field + (head >> 4)) if head > 15 else _field(data, at, field)
        kind = head & 15
        if kind in _NUMBERS:
            found[field], at = _number(data, at)
        elif kind == _BINARY:
            length, at = _unsigned(data, at)
            found[field] = data[at : at + length]
            at += length
        elif kind == _STRUCT:
            found[field], at = _struct(data, at)
        else:
            at = _skip(data, at, kind)
    return found, at + 1


def _skip(data: bytes, at: int, kind: int) -> int:
    """Where a value ends. Most of a footer is skipped: so this makes nothing of it, and calls nothing for numbers and short texts."""
    if kind == _STRUCT:
        while head := data[at]:
            at += 1
            if head < 16:
                _, at = _unsigned(data, at)
            kind = head & 15
            if kind in _NUMBERS:
                while data[at] > 127:
                    at += 1
                at += 1
            elif kind == _BINARY and data[at] < 128:
                at += data[at] + 1
            else:
                at = _skip(data, at, kind)
        return at + 1
    if kind in _LISTS:
        count, of = data[at] >> 4, data[at] & 15
        count, at = (count, at + 1) if count < _LONG_LIST else _unsigned(data, at + 1)
        for _ in range(count):
            if of in _NUMBERS:
                while data[at] > 127:
                    at += 1
                at += 1
            elif of == _BINARY and data[at] < 128:
                at += data[at] + 1
            else:
                # a boolean is one with the kind of its field, but has a byte of its own in a list
                at = at + 1 if of in _BOOLEANS else _skip(data, at, of)
        return at
    if kind in _NUMBERS:
        return _unsigned(data, at)[1]
    if kind == _BINARY:
        length, at = _unsigned(data, at)
        return at + length
    if kind in _BOOLEANS:
        return at
    if kind in _FIXED:
        return at + _FIXED[kind]
    raise DamagedFooterError(f"it holds a value of kind {kind}, which no part of a footer is")

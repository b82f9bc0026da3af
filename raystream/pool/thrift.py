"""Thrift's compact protocol, as far as Parquet's footers need it.

A field is a byte, the distance to the field's number before and the kind of its value, then the value; 0 ends a struct. Numbers are of
7 bits a byte, lowest first, and zigzag: 0, -1, 1, -2. Of bytes that end too early IndexError is raised.
"""

from __future__ import annotations

from typing import Any

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
    """Where the value of a field starts, and the field's number."""
    head = data[at]
    if head > 15:
        return at + 1, before + (head >> 4)
    number, at = read_number(data, at + 1)
    return at, number


def read_number(data: bytes, at: int) -> tuple[int, int]:
    """A signed number, and where it ends."""
    value, at = _unsigned(data, at)
    return (value >> 1) ^ -(value & 1), at


def read_count(data: bytes, at: int) -> tuple[int, int]:
    """How many items a list of structs has, and where the first starts.

    Raises:
        ThriftError: it is a list of anything else.
    """
    head = data[at]
    if head & 15 != STRUCT:
        raise ThriftError("it holds a list of something else where it should describe row groups and columns")
    return (head >> 4, at + 1) if head >> 4 < MANY else _unsigned(data, at + 1)


def read_struct(data: bytes, at: int, field: int = 0, last: int = 1 << 15) -> tuple[Fields, int]:
    """The fields of a struct after the given one, up to the last one wanted, and where they end."""
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
    """Where a value ends. Most of a footer is skipped: so this makes nothing of it, and calls nothing for numbers and short texts."""
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
    """How a list of fewer than `MANY` texts is written."""
    encoded = [value.encode() for value in values]
    return bytes([len(encoded) << 4 | _BINARY]) + b"".join(_written(len(value)) + value for value in encoded)


def empty_structs(count: int, field: int) -> bytes:
    """How a list of structs is written that hold nothing but an empty struct in that field."""
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
    """An unsigned number."""
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])

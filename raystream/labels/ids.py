"""Ids as tools carry them: texts, from which the pool's own ids come back."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow as pa

from raystream.pool.columns import plain, plain_type

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

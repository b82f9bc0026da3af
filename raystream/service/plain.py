"""Values of pools and stores as JSON takes them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa

from raystream.pool.columns import readable

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

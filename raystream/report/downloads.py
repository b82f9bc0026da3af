"""The chosen rows to take along from a page: ids to copy, and files that the page itself carries."""

from __future__ import annotations

import csv
import io
from base64 import b64encode
from dataclasses import dataclass

import pyarrow as pa

from raystream.pool.columns import readable

_ROWS = 20_000
_HIDDEN = frozenset({"path", "row"})
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula, which a row of the pool must not bring along."""


@dataclass(frozen=True)
class Downloads:
    """What can be taken along; `ids` are a line each, the others data URIs. Batches that are too large for a page have none."""

    ids: str
    ids_file: str
    rows_file: str


def downloads(selection: pa.Table) -> Downloads | None:
    """Offer a whole selection."""
    if not 0 < selection.num_rows <= _ROWS:
        return None
    ids = "\n".join(_plain(value) for value in readable(selection.column(1)))
    names = [name for name in selection.column_names if name not in _HIDDEN]
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(map(_harmless, names))
    writer.writerows(zip(*([_cell(value) for value in readable(selection.column(name))] for name in names), strict=True))
    return Downloads(ids, _uri("text/plain", ids + "\n"), _uri("text/csv", buffer.getvalue()))


def _plain(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _cell(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    return _harmless(_plain(value))


def _harmless(text: str) -> str:
    """Return text that a spreadsheet takes for text: an apostrophe before what it would compute."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _uri(kind: str, content: str) -> str:
    return f"data:{kind};charset=utf-8;base64,{b64encode(content.encode('utf-8', 'replace')).decode()}"

"""Which version of a table was read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TableVersion:
    """What was read of a table: its URI in the query, its own identity, and the snapshot's id or the version."""

    uri: str
    table: str
    version: int

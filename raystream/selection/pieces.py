"""The seam between a driver and the pieces of state that it drives, in this process or in others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Pieces(Protocol):
    """Objects of one kind, each of which holds a stretch of the candidates, in row order."""

    def call(self, method: str, *args: Any) -> list[Any]:
        """What each piece's `method` answers to `args`, in row order; small things both ways."""


class LocalPieces:
    """Pieces in this process."""

    def __init__(self, pieces: Sequence[object]) -> None:
        self._pieces = list(pieces)

    def call(self, method: str, *args: Any) -> list[Any]:
        """See `Pieces`."""
        return [getattr(piece, method)(*args) for piece in self._pieces]

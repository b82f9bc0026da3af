"""The seam between an algorithm and the processes that hold its data: objects that each answer for a stretch of the candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

Factory = Callable[..., Any]
"""Makes a piece; importable, as are its arguments picklable, since the piece may live in another process.

It may say of its methods, for whoever has to make a lost piece again: `pure`, the names of those that change nothing in
the piece, and `fresh`, of those after which no call before matters. All others are made again, in order.
"""


class Pieces(Protocol):
    """Objects made by one factory, in this process or in others, which may be lost and made again."""

    def call(self, method: str, *args: Any, apart: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        """What each piece answers to `method(*args, *apart[i])`, in row order."""


Spread = Callable[[Factory, Sequence[tuple[Any, ...]]], Pieces]
"""Makes `factory(*args)` for each of the arguments, one piece for each stretch of rows."""


class LocalPieces:
    """Pieces in this process, asked one after the other: each uses all threads."""

    def __init__(self, factory: Factory, args: Sequence[tuple[Any, ...]]) -> None:
        self._pieces = [factory(*own) for own in args]

    def call(self, method: str, *args: Any, apart: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        """See `Pieces`."""
        each = [()] * len(self._pieces) if apart is None else apart
        return [getattr(piece, method)(*args, *own) for piece, own in zip(self._pieces, each, strict=True)]

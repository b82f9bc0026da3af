"""Clusters and neighbour graphs of the candidates' embeddings: costly, and the same in the next choice among the same rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from raystream.selection.rows import Array

Parameters = Mapping[str, float | int]
Arrays = dict[str, Array]


class Kept(Protocol):
    """Arrays that were computed from the candidates' embeddings alone, from one choice to the next."""

    def get(self, kind: str, parameters: Parameters) -> Arrays | None:
        """The arrays that were kept under this name and these parameters, not to be written to; None if there are none."""

    def put(self, kind: str, parameters: Parameters, arrays: Arrays) -> None:
        """Keep arrays; what can't be kept is computed anew next time."""


def derive(kept: Kept | None, kind: str, parameters: Parameters, compute: Callable[[], Arrays]) -> Arrays:
    """Get arrays that are kept, or compute and keep them.

    Args:
        kept: where; None computes.
        kind: a name for what is computed; another version of the code that gives other digits takes another name.
        parameters: all that the arrays depend on beside the candidates' embeddings.
        compute: gives them.
    """
    found = None if kept is None else kept.get(kind, parameters)
    if found is None:
        found = compute()
        if kept is not None:
            kept.put(kind, parameters, found)
    return found

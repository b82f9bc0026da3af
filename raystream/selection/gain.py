"""What farthest-first maximises: any number that only shrinks while rows are chosen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raystream.errors import QueryError
from raystream.selection.rows import Array


@dataclass(frozen=True, eq=False)
class Gain:
    """offset + weight * sqrt(D) in float64, D the squared distance to the nearest chosen or labelled row.

    Every gain is computed by `of`, so that equal rows have equal gains bit for bit, and an upper bound
    of D gives one of the gain.

    Attributes:
        weight: (n,) float64, at least 0; None is 1 for every row.
        offset: (n,) float64; None is 0.
    """

    weight: Array | None = None
    offset: Array | None = None

    def of(self, squared: Array, which: Array | slice = slice(None)) -> Array:
        """(m,) float64 gains of the rows `which` from their squared distances, (m,) float64."""
        result: Array = np.sqrt(squared)
        if self.weight is not None:
            np.multiply(result, self.weight[which], out=result)
        if self.offset is not None:
            np.add(result, self.offset[which], out=result)
        return result

    def at(self, which: Array | slice) -> Gain:
        """The gain of the rows `which` alone."""
        return Gain(None if self.weight is None else self.weight[which], None if self.offset is None else self.offset[which])

    def among(self, n: int, exclude: Array) -> Gain:
        """Itself, checked for n rows; distance alone if the weight of every row outside `exclude` is 0 and nothing else tells rows apart.

        Raises:
            QueryError: another number of rows, a negative weight, or numbers that are not finite.
        """
        for name, part in (("weight", self.weight), ("offset", self.offset)):
            if part is not None and (part.shape != (n,) or not np.isfinite(part).all()):
                raise QueryError(f"gain.{name} has shape {part.shape}, expected ({n},) finite numbers")
        if self.weight is not None and (self.weight < 0).any():
            raise QueryError("gain.weight is negative; expected at least 0, else the gain would grow as rows are chosen")
        if self.weight is not None and self.offset is None and not np.delete(self.weight, exclude).any():
            return Gain()
        return self

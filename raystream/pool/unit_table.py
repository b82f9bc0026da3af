"""Units as a table: of a million of them, objects would be most of a plan's memory. A unit is made when one is handed out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from raystream.pool.files import File
from raystream.pool.units import Unit, unit_name

_COLUMNS = np.dtype(
    [
        *(("file", "<i4"), ("shared", "<i4"), ("group", "<i4"), ("groups", "<i4")),
        *(("first_row", "<i8"), ("rows", "<i8"), ("bytes", "<i8"), ("low", "<i8"), ("high", "<i8")),
    ]
)
_BLOCK = 1 << 14
"""Units that are taken into the table at once."""

Integers = npt.NDArray[np.int64]
_Shared = tuple[Any, ...]
"""What units of one file have in common: filters, the id, the columns and the casts."""


class Units(Sequence[Unit]):
    """Units in order, some tens of bytes each.

    Args:
        files: those that the units are of.
        shared: what else units have in common.
        table: (n,) of the columns above, `file` and `shared` being places among these.
        positions: of the units that read some rows of their row groups, by their places.
    """

    def __init__(
        self, files: Sequence[File], shared: Sequence[_Shared], table: npt.NDArray[Any], positions: dict[int, tuple[int, ...]]
    ) -> None:
        self.files, self._shared, self._table, self._positions = tuple(files), tuple(shared), table, positions

    @classmethod
    def of(cls, units: Iterable[Unit]) -> Units:
        """Hold these units; no more than a block of them is held as objects at a time."""
        if isinstance(units, Units):
            return units
        files: list[File] = []
        shared: list[_Shared] = []
        positions: dict[int, tuple[int, ...]] = {}
        blocks, place, remaining = [np.empty(0, _COLUMNS)], 0, iter(units)
        while some := list(islice(remaining, _BLOCK)):
            rows = []
            for unit in some:
                if not files or unit.file is not files[-1]:
                    files.append(unit.file)
                common = (unit.filters, unit.id, unit.columns, unit.casts)
                if not shared or common != shared[-1]:
                    shared.append(common)
                if unit.positions is not None:
                    positions[place] = unit.positions
                groups, span = unit.row_groups, unit.span or (-1, -1)
                rows.append((len(files) - 1, len(shared) - 1, groups[0], len(groups), unit.first_row, unit.rows, unit.bytes, *span))
                place += 1
            blocks.append(np.array(rows, _COLUMNS))
        return cls(files, shared, np.concatenate(blocks), positions)

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, place: int) -> Unit: ...

    @overload
    def __getitem__(self, place: slice) -> Units: ...

    def __getitem__(self, place: int | slice) -> Unit | Units:
        if isinstance(place, slice):
            return self.take(np.arange(len(self))[place])
        place = range(len(self))[place]
        file, shared, group, groups, first_row, rows, size, low, high = self._table[place].item()
        filters, id_, columns, casts = self._shared[shared]
        own = tuple(range(group, group + groups)), first_row, rows, size
        return Unit(self.files[file], *own, filters, self._positions.get(place), id_, columns, casts, (low, high) if low >= 0 else None)

    def __iter__(self) -> Iterator[Unit]:
        return (self[place] for place in range(len(self)))

    def take(self, places: Integers) -> Units:
        """Return the units at these places, in the order asked for."""
        positions = {}
        if self._positions:
            positions = {i: self._positions[place] for i, place in enumerate(places.tolist()) if place in self._positions}
        return Units(self.files, self._shared, self._table[places], positions)

    @property
    def rows(self) -> Integers:
        """(n,) how many rows each unit reads."""
        return np.asarray(self._table["rows"])

    @property
    def bytes(self) -> Integers:
        """(n,) uncompressed bytes that each unit reads."""
        return np.asarray(self._table["bytes"])

    @property
    def filtered(self) -> npt.NDArray[np.bool_]:
        """(n,) whether filters are left for each unit's rows to pass."""
        left = np.array([bool(filters) for filters, *_ in self._shared], bool)
        return left[self._table["shared"]] if len(self) else np.empty(0, bool)

    @property
    def first_rows(self) -> Integers:
        """(n,) the position in its file of each unit's first row."""
        return np.asarray(self._table["first_row"])

    @property
    def file_of(self) -> npt.NDArray[np.int32]:
        """(n,) the place among `files` of each unit's file."""
        return np.asarray(self._table["file"])

    def alike(self) -> Iterator[tuple[int, int]]:
        """Yield runs of units, first and end, that differ in their row groups alone."""
        table = self._table
        new = (table["file"][1:] != table["file"][:-1]) | (table["shared"][1:] != table["shared"][:-1])
        new |= (table["low"][1:] >= 0) | (table["low"][:-1] >= 0)  # of spans each is for itself
        for place in self._positions:  # each for itself
            new[max(place - 1, 0) : place + 1] = True
        edges = np.concatenate([[0], np.flatnonzero(new) + 1, [len(table)]]) if len(table) else np.zeros(1, np.int64)
        for begin in range(0, len(edges) - 1, _BLOCK):
            some = edges[begin : begin + _BLOCK + 1].tolist()
            yield from pairwise(some)

    def common(self, place: int) -> int | None:
        """Return a number that units share which differ in file and row groups alone; None of a unit that reads some rows or a span."""
        if place in self._positions or self._table["low"][place] >= 0:
            return None
        return int(self._table["shared"][place])

    def row_groups(self, first: int, end: int) -> list[tuple[int, int]]:
        """Return the first row group of each of these units, and how many it has."""
        some = self._table[first:end]
        return list(zip(some["group"].tolist(), some["groups"].tolist(), strict=True))

    def spans(self, first: int, end: int) -> list[tuple[int, int] | None]:
        """Return the span of each of these units, if it has one."""
        some = self._table[first:end]
        return [None if low < 0 else (low, high) for low, high in zip(some["low"].tolist(), some["high"].tolist(), strict=True)]


class UnitNames(Sequence[str]):
    """The names of units, each made when it is asked for."""

    def __init__(self, units: Units) -> None:
        self._units = units

    def __len__(self) -> int:
        return len(self._units)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> list[str]: ...

    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            start, stop, _ = place.indices(len(self))
            paths = [self._units.files[file].path for file in self._units.file_of[start:stop].tolist()]
            named = zip(paths, self._units.row_groups(start, stop), self._units.spans(start, stop), strict=True)
            return [unit_name(path, *groups, span) for path, groups, span in named]
        return self[range(len(self))[place] : range(len(self))[place] + 1][0]

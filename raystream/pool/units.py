"""Units of work: pieces of the pool, and millions of them as a table.

Cutting a file into units, the grain of scoring, retrying and reusing.

Units as a table: of a million of them, objects would be most of a plan's memory. A unit is made when one is handed out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice, pairwise
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raystream.pool.column_types import casts
from raystream.pool.files import File
from raystream.pool.filters import Filters, filter_columns, row_group_may_match
from raystream.pool.footers import Footer, RowGroup

TARGET_BYTES = 32 << 20
WORK_ROWS = 4096
"""Rows of a unit whose rows are texts, images or the input of a function, whatever their bytes: some minutes of a slow model's work."""
_READ_AGAIN = 256 << 20
"""Bytes of a row group from which its parts grow with it, since each of them reads the group anew."""


class Unit(NamedTuple):
    """A run of row groups of one file, or some of its rows.

    Attributes:
        file: where the rows are.
        row_groups: consecutive.
        first_row: position in the file of the first row that it may hold.
        rows: how many are read, before row filters, without deleted ones.
        bytes: uncompressed, of the columns read.
        filters: what rows must still pass.
        positions: if given, the sorted positions in the file of the only rows read; filters don't apply to them.
        id: the id column, where it is another one than the pool's; only labelled files have such units.
        columns: the input columns read, in the spec's order, where they aren't all of it; only labelled files have such units.
        casts: the columns that outputs depend on by their type, where the file's is narrower than the pool's, with the pool's.
        span: if given, the positions in the file, from the first on and before the second, that a part of a row group holds.
    """

    file: File
    row_groups: tuple[int, ...]
    first_row: int
    rows: int
    bytes: int
    filters: Filters = ()
    positions: tuple[int, ...] | None = None
    id: str | None = None
    columns: tuple[str, ...] | None = None
    casts: tuple[tuple[str, pa.DataType], ...] = ()
    span: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """`path#rg3-5`, `path#rg3`, or `path#rg3[4096:8192]` for the part of a row group, as messages show it."""
        return unit_name(self.file.path, self.row_groups[0], len(self.row_groups), self.span)


def unit_name(path: str, group: int, groups: int, span: tuple[int, int] | None = None) -> str:
    """Name a unit of so many row groups of a file, or of a span of one."""
    if span is not None:
        return f"{path}#rg{group}[{span[0]}:{span[1]}]"
    return f"{path}#rg{group}" if groups == 1 else f"{path}#rg{group}-{group + groups - 1}"


def cut_units(
    footer: Footer,
    filters: Filters = (),
    target_bytes: int = TARGET_BYTES,
    widened: Sequence[tuple[str, pa.DataType]] = (),
    work_rows: int | None = None,
) -> list[Unit]:
    """Cut a file at row groups into units of about equal bytes, in order, or where rows are much work, of about equal rows.

    Row groups that are empty, all deleted, or that the statistics rule out are left out. The cut depends on this file, these
    filters and what the columns are alone, so that scored units are found again whatever else the pool holds, and on any machine.

    Args:
        footer: the file's, with statistics of the filters' columns.
        filters: what its hive folders left undecided.
        target_bytes: uncompressed bytes that a unit should have.
        widened: as `ReadSpec.widened`.
        work_rows: rows that a unit should have at most, if a row's bytes don't tell its work; then large row groups are cut, too.
    """
    types = {field.name: field.type for field in footer.schema}
    runs: list[list[int]] = []
    starts = _starts(footer.row_groups)
    deletes = footer.file.deletes
    for index, group in enumerate(footer.row_groups):
        if deletes is not None and deletes.count(starts[index], starts[index + 1]) == group.rows:
            continue
        if not group.rows or not row_group_may_match(filters, dict(group.statistics), group.rows, types):
            continue
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    names = filter_columns(filters)
    weights = [group_bytes(group, names) for group in footer.row_groups]
    least = target_bytes // work_rows if work_rows else 0
    work = [max(weight, group.rows * least) for weight, group in zip(weights, footer.row_groups, strict=True)]
    narrow = casts(footer, widened)
    units = [_unit(footer, part, weights, filters, starts, narrow) for run in runs for part in _parts(run, work, target_bytes)]
    return units if not work_rows else [part for unit in units for part in _within_group(unit, footer, starts, work_rows)]


def _within_group(unit: Unit, footer: Footer, starts: Sequence[int], work_rows: int) -> list[Unit]:
    """Cut a unit of one row group that holds too many rows into parts of equally many; return any other as it is."""
    group = unit.row_groups[0]
    rows = footer.row_groups[group].rows
    count = round(rows / (work_rows * max(1.0, unit.bytes / _READ_AGAIN)))
    if len(unit.row_groups) > 1 or count < 2:
        return [unit]
    edges = [starts[group] + rows * part // count for part in range(count + 1)]
    return [part for low, high in pairwise(edges) if (part := _part(unit, footer, low, high)) is not None]


def _part(unit: Unit, footer: Footer, low: int, high: int) -> Unit | None:
    """Return the rows of a unit at these positions; None if all of them are deleted."""
    deletes = footer.file.deletes
    rows = high - low - (deletes.count(low, high) if deletes else 0)
    group = footer.row_groups[unit.row_groups[0]]
    stored = unit.bytes * (high - low) // group.rows
    return unit._replace(file=footer.file.part(low, high), first_row=low, rows=rows, bytes=stored, span=(low, high)) if rows else None


def units_at(
    footer: Footer,
    positions: Sequence[int],
    id_column: str | None = None,
    target_bytes: int = TARGET_BYTES,
    columns: tuple[str, ...] | None = None,
    widened: Sequence[tuple[str, pa.DataType]] = (),
    work_rows: int | None = None,
) -> list[Unit]:
    """Make units that read these rows of a file and nothing else.

    Args:
        footer: the file's.
        positions: distinct rows of the file, sorted.
        id_column: if it isn't the pool's own.
        target_bytes: of the row groups that one unit opens.
        columns: the input columns read, if they aren't all of the pool's.
        widened: as `ReadSpec.widened`.
        work_rows: rows that a unit should have at most, as of `cut_units`.
    """
    narrow = casts(footer, widened)
    units: list[Unit] = []
    weights = [group.bytes for group in footer.row_groups]
    starts = _starts(footer.row_groups)
    held: dict[int, list[int]] = {}
    group = 0
    for position in positions:
        while position >= starts[group + 1]:
            group += 1
        held.setdefault(group, []).append(position)
    runs: list[list[int]] = []
    for index in held:
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    for run in runs:
        for whole in _parts(run, weights, target_bytes):
            for part in _fewer(whole, held, work_rows):
                first, last = bisect_right(starts, part[0]) - 1, bisect_right(starts, part[-1]) - 1
                stored = sum(weights[first : last + 1])
                file = footer.file.part(starts[first], starts[last + 1])
                groups = tuple(range(first, last + 1))
                units.append(Unit(file, groups, starts[first], len(part), stored, (), part, id_column, columns, narrow))
    return units


def _fewer(groups: Sequence[int], held: dict[int, list[int]], work_rows: int | None) -> list[tuple[int, ...]]:
    """Return the positions that some row groups hold, in runs of about so many."""
    rows = tuple(position for group in groups for position in held[group])
    count = max(1, round(len(rows) / work_rows)) if work_rows else 1
    edges = [len(rows) * part // count for part in range(count + 1)]
    return [rows[low:high] for low, high in pairwise(edges)]


def group_bytes(group: RowGroup, filter_names: Sequence[str]) -> int:
    """Count the uncompressed bytes that reading a row group takes, its filter columns included."""
    return group.bytes + sum(found.bytes for name, found in group.statistics if name in filter_names)


def _parts(run: Sequence[int], weights: Sequence[int], target_bytes: int) -> list[list[int]]:
    """Cut a run where its middle bytes fall, into parts of about the target.

    Row groups near the target stand alone: ten of 0.8 targets make ten units alike, not six of one and two of two.
    """
    total = sum(weights[i] for i in run)
    groups = max(1, round(target_bytes * len(run) / total)) if total else len(run)
    count = -(-len(run) // groups)
    parts: dict[int, list[int]] = {}
    before = 0
    for index in run:
        middle = 2 * before + weights[index]
        parts.setdefault(min(count - 1, middle * count // (2 * total)) if total else 0, []).append(index)
        before += weights[index]
    return list(parts.values())


def _unit(
    footer: Footer,
    part: Sequence[int],
    weights: Sequence[int],
    filters: Filters,
    starts: Sequence[int],
    narrow: tuple[tuple[str, pa.DataType], ...],
) -> Unit:
    first, end = starts[part[0]], starts[part[-1] + 1]
    deleted = footer.file.deletes.count(first, end) if footer.file.deletes else 0
    stored = sum(weights[i] for i in part)
    return Unit(footer.file.part(first, end), tuple(part), first, end - first - deleted, stored, filters, casts=narrow)


def _starts(groups: Sequence[RowGroup]) -> list[int]:
    starts = [0]
    for group in groups:
        starts.append(starts[-1] + group.rows)
    return starts


_COLUMNS = np.dtype(
    [
        *(("file", "<i4"), ("shared", "<i4"), ("group", "<i4"), ("groups", "<i4")),
        *(("first_row", "<i8"), ("rows", "<i8"), ("bytes", "<i8"), ("low", "<i8"), ("high", "<i8")),
    ]
)
_BLOCK = 1 << 10
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
        return self._made(place, self._table[place].item())

    def __iter__(self) -> Iterator[Unit]:
        for start in range(0, len(self), _BLOCK):  # in half the time that it takes to ask for each
            yield from map(self._made, count(start), self._table[start : start + _BLOCK].tolist())

    def _made(self, place: int, row: tuple[int, ...]) -> Unit:
        file, shared, group, groups, first_row, rows, size, low, high = row
        filters, id_, columns, casts = self._shared[shared]
        span = (low, high) if low >= 0 else None
        own = (group,) if groups == 1 else tuple(range(group, group + groups))
        return Unit(self.files[file], own, first_row, rows, size, filters, self._positions.get(place), id_, columns, casts, span)

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

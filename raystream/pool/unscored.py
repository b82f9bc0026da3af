"""The ids and places of rows that are yet to be scored: read from the id and filter columns alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raystream.errors import PoolError
from raystream.pool.files import OutageError, threads_for
from raystream.pool.ids import take_ids
from raystream.pool.reader import ReadSpec, read_unit
from raystream.pool.scan import Places, read_columns_at
from raystream.pool.units import Unit

HELD_BYTES = 512 << 20
"""Up to so much, ids are held; where there are more, they are read again each time that they are looked at."""
_BLOCK_ROWS = 1 << 16
_AT_ONCE = 8
_LARGEST = np.iinfo(np.int32).max


@dataclass(frozen=True)
class ReadIds:
    """The ids of units, read each time that they are looked at."""

    units: tuple[Unit, ...]
    spec: ReadSpec
    rows: int

    @property
    def type(self) -> pa.DataType:
        """Of the ids."""
        return self.spec.id_type

    def __len__(self) -> int:
        return self.rows

    @property
    def chunks(self) -> Iterator[pa.Array]:
        """All of them in order."""
        for unit in self.units:
            yield from (ids for ids, _ in _read(unit, self.spec))


@dataclass(frozen=True)
class UnscoredRows:
    """Every row that is about to be scored, in row order: by path, then by row.

    Attributes:
        units: those that could be read; `missing` counts the others.
        starts: (u,) the number of each unit's first row.
        positions: (n,) int32, in their files, or int64 where these are longer.
        ids: one a row.
    """

    units: tuple[Unit, ...]
    missing: int
    starts: npt.NDArray[np.int64]
    positions: npt.NDArray[np.signedinteger]
    ids: pa.ChunkedArray | ReadIds
    id_name: str

    def __len__(self) -> int:
        return len(self.positions)

    def ids_at(self, rows: npt.NDArray[np.int64]) -> pa.Array:
        """Return the ids of these rows, in the order asked for."""
        if isinstance(self.ids, ReadIds):
            schema = pa.schema([pa.field(self.id_name, self.ids.type)])
            return read_columns_at(self.places(rows), schema).column(0).combine_chunks()
        return take_ids(self.ids, rows)

    def places(self, rows: npt.NDArray[np.int64]) -> Places:
        """Return the file of each of these rows, and its row in it."""
        files = {unit.file.path: unit.file for unit in self.units}
        numbers = {path: number for number, path in enumerate(files)}
        of = np.array([numbers[unit.file.path] for unit in self.units], dtype=np.int32)
        return Places(tuple(files.values()), of[self._unit_of(rows)], self.positions[rows].astype(np.int64))

    def place(self, row: int) -> str:
        """Say where a row stands, for messages."""
        return f"{self.units[int(self._unit_of(np.array([row]))[0])].name} row {self.positions[row]}"

    def _unit_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.searchsorted(self.starts, rows, "right") - 1


def read_unscored(units: Sequence[Unit], spec: ReadSpec) -> UnscoredRows:
    """Read which rows of units pass their filters, and their ids; no input column is read.

    Args:
        units: in row order.
        spec: as they will be read; it names an id column.

    Raises:
        OutageError: a storage is away.
        PoolError: a file or its ids can't be read, and the spec says to fail.
    """
    assert spec.id is not None
    only = replace(spec, columns=(), names=(), prepared=None)
    found: list[tuple[Unit, list[npt.NDArray[np.signedinteger]], list[pa.Array]]] = []
    held = dropped = 0

    def read(unit: Unit) -> tuple[list[npt.NDArray[np.signedinteger]], list[pa.Array]] | None:
        positions: list[npt.NDArray[np.signedinteger]] = []
        ids: list[pa.Array] = []
        try:
            for block, rows in _read(unit, only):
                positions.append(rows.astype(np.int32) if not len(rows) or rows[-1] <= _LARGEST else rows)
                ids.append(block if held <= HELD_BYTES else block.slice(0, 0))
        except PoolError as error:
            if isinstance(error, OutageError) or spec.on_error == "fail":
                raise
            return None  # it may come to be left out
        return positions, ids

    with ThreadPoolExecutor(threads_for([unit.file for unit in units], _AT_ONCE)) as executor:
        for unit, blocks in zip(units, executor.map(read, units), strict=True):
            if blocks is not None:
                held += sum(block.nbytes for block in blocks[1])
                found.append((unit, *blocks))
            if held > HELD_BYTES:
                for _, _, parts in found[dropped:]:
                    parts.clear()
                dropped = len(found)
    counts = np.array([sum(map(len, rows)) for _, rows, _ in found], dtype=np.int64)
    positions = np.concatenate([np.empty(0, np.int32), *(part for _, rows, _ in found for part in rows)])
    readable = tuple(unit for unit, _, _ in found)
    ids: pa.ChunkedArray | ReadIds = ReadIds(readable, only, len(positions))
    if held <= HELD_BYTES:
        ids = pa.chunked_array([part for _, _, parts in found for part in parts], spec.id_type)
    return UnscoredRows(readable, len(units) - len(found), np.cumsum(counts) - counts, positions, ids, spec.id)


def _read(unit: Unit, spec: ReadSpec) -> Iterator[tuple[pa.Array, npt.NDArray[np.int64]]]:
    for rows in read_unit(unit, spec, _BLOCK_ROWS):
        yield rows.ids, rows.rows

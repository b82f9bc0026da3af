"""Rows of units, read: for scoring, and for what is asked before anything is scored.

Reading a unit: row filters, ids and clean input tensors, a batch at a time.

The ids and places of rows that are yet to be scored: read from the id and filter columns alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raystream.errors import PoolError
from raystream.lake.retry import ignore
from raystream.pool.column_types import cast, cast_columns
from raystream.pool.columns import Column, Flaws, decode, known_shape, structural_flaws, text_flaws, value_flaws
from raystream.pool.files import OutageError, check_unchanged, open_parquet, threads_for
from raystream.pool.filters import filter_columns, matching_rows
from raystream.pool.ids import derived_ids, take_ids
from raystream.pool.images import EachRow, decode_images, decode_npy
from raystream.pool.remote import RemoteParquet
from raystream.pool.scan import Places, group_starts, read_columns_at, scan
from raystream.pool.units import WORK_ROWS, Unit

READING = 2
"""Of which rows are read, and as what; part of units' keys. Before 2, rows came twice in units of more than 16,384 rows with filters."""
Tensor = npt.NDArray[np.generic]
Prepare = Callable[[pa.RecordBatch], tuple[tuple[Tensor, ...], Flaws]]
"""A function of the user's that makes the model's tensors of the input columns of some rows, and tells which rows it can't take."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Where a `Prepare` comes from: its import path, and the hash of the source behind it."""

    source: str
    code: str


@dataclass(frozen=True)
class ReadSpec:
    """All that reading needs beside the unit; the same for the whole run, and travels to workers.

    Attributes:
        id: the id column; None derives `path#row`.
        id_type: of the ids that come out.
        columns: the input columns in order; `plan_pool` has put the width of lists into their shapes.
        on_error: fail stops at the first bad row, skip leaves bad rows out and reports them.
        names: what the model calls its inputs, one for each column; empty where it gets them by position.
        prepared: set where a function of the user's makes the tensors, which `read_unit` is then given.
        widened: the id and the columns that go to such a function as they are, where the pool's files hold them in several types:
            names and the wider types. Other columns become tensors of one type anyway.
    """

    id: str | None
    id_type: pa.DataType
    columns: tuple[Column, ...]
    on_error: Literal["fail", "skip"] = "fail"
    names: tuple[str, ...] = ()
    prepared: Prepared | None = None
    widened: tuple[tuple[str, pa.DataType], ...] = field(default=(), compare=False)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the input columns, in order."""
        return tuple(column.name for column in self.columns)

    def only(self, names: Sequence[str] | None) -> ReadSpec:
        """Return the spec cut down to these input columns, in its own order; None leaves all of them."""
        return self if names is None else replace(self, columns=tuple(column for column in self.columns if column.name in names))

    @property
    def stacks(self) -> bool:
        """True if the inputs are scalars without names, which go to the model as one tensor."""
        return bool(self.columns) and self.columns[0].is_scalar and not self.names

    @property
    def decodes_images(self) -> bool:
        """True if any input is made of encoded images."""
        return any(column.image is not None for column in self.columns)

    @property
    def work_rows(self) -> int | None:
        """How many rows a unit should have at most; None where a row's bytes tell its work."""
        heavy = self.prepared is not None or self.decodes_images or any(column.is_text for column in self.columns)
        return WORK_ROWS if heavy else None

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of one row of each tensor that the model gets."""
        return ((len(self.columns),),) if self.stacks else tuple(known_shape(column.shape) for column in self.columns)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtype of each tensor that the model gets."""
        return ("float32",) if self.stacks else tuple(column.dtype for column in self.columns)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that can't be scored: where it is, why, and its id."""

    path: str
    row_group: int
    row: int
    column: str
    reason: str
    id: int | str | bytes | None = None

    def __str__(self) -> str:
        return f"{self.path}#rg{self.row_group} row {self.row}: {self.flaw}"

    @property
    def flaw(self) -> str:
        """The column, and what is wrong in it."""
        return f"column {self.column} {self.reason}"


@dataclass
class UnitRows:
    """Clean rows in the file's order.

    Attributes:
        ids: one a row, of the spec's type; may hold nulls, which only the whole pool can count.
        rows: (n,) int64, positions in the file.
        inputs: the model's tensors, each (n, *shape), or object arrays of str, of `unit.columns` alone where it names some; they
            may be views of read-only memory.
        bad: the rows left out, under `skip`.
    """

    ids: pa.Array
    rows: npt.NDArray[np.int64]
    inputs: tuple[Tensor, ...]
    bad: list[BadRow] = field(default_factory=list)


def read_unit(
    unit: Unit,
    spec: ReadSpec,
    batch_rows: int,
    threads: int = 1,
    prepare: Prepare | None = None,
    note: Callable[[str], None] = ignore,
    passing: Callable[[npt.NDArray[np.int64]], None] | None = None,
) -> Iterator[UnitRows]:
    """Yield a unit's rows that pass its filters, at most `batch_rows` at a time.

    Memory is bounded by a row group as it is stored, by two runs of `pool.remote.READ_AHEAD` bytes of a file in object storage, and by
    the decoded tensors of `batch_rows` rows.

    Args:
        unit: what to read.
        spec: which columns, and what they become.
        batch_rows: the most rows that are decoded at a time.
        threads: that decode images.
        prepare: makes the tensors, where `spec.prepared` says so.
        note: told of each request to object storage that had to be repeated.
        passing: told of the positions of the rows that pass, bad ones included, before they are decoded.

    Raises:
        PoolError: the file is gone, changed or damaged, or holds a bad row and `spec.on_error` is fail.
    """
    spec = spec.only(unit.columns)
    pooled = threads > 1 and spec.decodes_images
    with open_parquet(unit.file, note) as parquet, ThreadPoolExecutor(threads) if pooled else nullcontext() as pool:
        starts = group_starts(parquet)
        if not _is_there(unit, starts):
            raise PoolError(f"{unit.name} is not in the file any more; plan the query again")
        for batch, rows in _selected(unit, spec, parquet, batch_rows, note):
            if passing is not None:
                passing(rows)
            tensors = _Tensors(spec, map if pool is None else pool.map, prepare)
            yield from _clean(unit, tensors, cast_columns(batch, unit.casts, unit.name), rows, np.asarray(starts))
        if not isinstance(parquet, RemoteParquet):
            check_unchanged(unit.file)


def tensors_of(batch: pa.RecordBatch, spec: ReadSpec, prepare: Prepare | None = None) -> tuple[Tensor, ...]:
    """Make the model's tensors of rows that lie in memory, as `read_unit` makes them of a file's.

    Args:
        batch: holds the input columns.
        spec: which columns, and what they become.
        prepare: makes the tensors, where `spec.prepared` says so.

    Raises:
        BadRowsError: a row can't be taken.
    """
    flaws = {column.name: found for column in spec.columns if (found := structural_flaws(batch.column(column.name), column))}
    blocks: list[Tensor] = []
    if not flaws:
        blocks, flaws = _Tensors(spec, map, prepare).of(batch)
    if flaws:
        raise BadRowsError(sorted((row, column, reason) for column, found in flaws.items() for row, reason in found.items()))
    return tuple(blocks)


_FEW_NUMBERS = 1024


def tensors_of_numbers(rows: Sequence[Mapping[str, Any]], spec: ReadSpec) -> tuple[Tensor, ...] | None:
    """Make the tensors that `tensors_of` makes of the same values: of 32 in a fifth of the time, of 1,000 in no less.

    Args:
        rows, spec: values as JSON gives them; which columns, and what they become.

    Returns:
        None where a value isn't as many floats as the model takes, or one that it can't take, and where `tensors_of` takes no longer.
    """
    if spec.prepared is not None or len(rows) * sum(math.prod(known_shape(column.shape)) for column in spec.columns) > _FEW_NUMBERS:
        return None
    blocks: list[Tensor] = []
    for column in spec.columns:
        shape = known_shape(column.shape)
        if not column.dtype.startswith("float") or column.is_encoded or len(shape) > 1:
            return None
        values = [row[column.name] for row in rows]
        lists = values if shape else [values]
        if any(type(some) is not list or (shape and len(some) != shape[0]) or set(map(type, some)) != {float} for some in lists):
            return None
        with np.errstate(over="ignore"):
            blocks.append(np.array(values, np.float64).astype(column.dtype))
    blocks = [_stack(blocks)] if spec.stacks else blocks
    return None if _values(spec, blocks) else tuple(blocks)


class BadRowsError(PoolError):
    """Rows in memory that a model can't take: `flaws` holds the place, the column and the reason of each, in order."""

    def __init__(self, flaws: Sequence[tuple[int, str, str]]) -> None:
        super().__init__("; ".join(f"row {row}: column {column} {reason}" for row, column, reason in flaws[:5]))
        self.flaws = tuple(flaws)

    def __reduce__(self) -> tuple[type[BadRowsError], tuple[object, ...]]:
        return type(self), (self.flaws,)


def _is_there(unit: Unit, starts: Sequence[int]) -> bool:
    """Tell whether the file still holds the unit's row groups where they were."""
    first, last = unit.row_groups[0], unit.row_groups[-1]
    if last >= len(starts) - 1:
        return False
    return starts[first] == unit.first_row if unit.span is None else starts[first] <= unit.span[0] < unit.span[1] <= starts[last + 1]


def _selected(
    unit: Unit, spec: ReadSpec, parquet: pq.ParquetFile | RemoteParquet, batch_rows: int, note: Callable[[str], None]
) -> Iterator[tuple[pa.RecordBatch, npt.NDArray[np.int64]]]:
    """Yield the batches of a unit, cut down to the rows wanted, with their positions in the file."""
    id_column = unit.id or spec.id
    wanted = [*([id_column] if id_column else []), *spec.inputs, *filter_columns(unit.filters)]
    # a question to object storage, which is asked while the last rows are decoded
    then = partial(check_unchanged, unit.file, note)
    positions = None if unit.positions is None else np.asarray(unit.positions, dtype=np.int64)
    low, high = unit.span or (0, None)
    for first, batch in scan(unit.file, parquet, list(dict.fromkeys(wanted)), batch_rows, unit.row_groups, then, unit.name):
        if high is not None:
            if first >= high:
                if isinstance(parquet, RemoteParquet):
                    then()
                return
            skipped = max(0, low - first)
            first, batch = first + skipped, batch.slice(skipped, max(0, high - first - skipped))
        rows = np.arange(first, first + batch.num_rows)
        keep: npt.NDArray[np.int64] | None = None
        if positions is not None:
            begin, end = np.searchsorted(positions, [rows[0], rows[-1] + 1]) if len(rows) else (0, 0)
            keep = positions[begin:end] - first
        elif unit.filters:
            keep = matching_rows(unit.filters, batch, unit.name)
        if unit.file.deletes is not None and positions is None:
            left = unit.file.deletes.kept(first, batch.num_rows)
            keep = left if keep is None else np.intersect1d(keep, left, assume_unique=True)
        if keep is not None and len(keep) < batch.num_rows:
            batch, rows = batch.take(pa.array(keep)), rows[keep]
        if len(rows):
            yield batch, rows


def _clean(
    unit: Unit, tensors: _Tensors, batch: pa.RecordBatch, rows: npt.NDArray[np.int64], group_starts: npt.NDArray[np.int64]
) -> Iterator[UnitRows]:
    """Yield the batch as tensors without its bad rows, provided that anything is left to say."""
    spec = tensors.spec
    bad: list[BadRow] = []
    name = unit.id or spec.id
    ids = cast(batch.column(name), spec.id_type, f"{unit.name}: id column {name}") if name else derived_ids(unit.file.path, rows)

    def report(flaws: dict[str, Flaws], where: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        ok = np.ones(len(where), dtype=bool)
        for row, column, reason in sorted((row, column, reason) for column, of in flaws.items() for row, reason in of.items()):
            group = int(np.searchsorted(group_starts, where[row], side="right")) - 1
            found = BadRow(unit.file.path, group, int(where[row]), column, reason, ids[row].as_py())
            if spec.on_error == "fail":
                raise PoolError(f"{found}; correct the row, or set on_error: skip to leave such rows out")
            if ok[row]:
                bad.append(found)
            ok[row] = False
        return ok

    structure = {column.name: flaws for column in spec.columns if (flaws := structural_flaws(batch.column(column.name), column))}
    if name and (flaws := text_flaws(batch.column(name))):
        structure[name] = structure.get(name, {}) | flaws
        ids = pc.if_else(pa.array(np.isin(np.arange(len(ids)), list(flaws))), pa.scalar(None, ids.type), ids)  # no id that can be told
    if structure:
        ok = report(structure, rows)
        batch, rows, ids = batch.filter(pa.array(ok)), rows[ok], ids.filter(pa.array(ok))
    blocks, values = tensors.of(batch)
    if values:
        ok = report(values, rows)
        ids, rows, blocks = ids.filter(pa.array(ok)), rows[ok], [block[ok] for block in blocks]
    if len(rows) or bad:
        yield UnitRows(ids, rows, tuple(blocks), sorted(bad, key=lambda found: found.row))


@dataclass(frozen=True)
class _Tensors:
    """Makes the model's tensors of structurally sound rows, and tells by column which of them are bad all the same."""

    spec: ReadSpec
    each: EachRow
    prepare: Prepare | None

    def of(self, batch: pa.RecordBatch) -> tuple[list[Tensor], dict[str, Flaws]]:
        """Return the tensors, (n, *shape) each, and the flaws."""
        spec = self.spec
        if spec.prepared is not None:
            return self._prepared(batch)
        pairs = [self._block(batch.column(column.name), column) for column in spec.columns]
        flaws = {column.name: found for column, (_, found) in zip(spec.columns, pairs, strict=True) if found}
        blocks = [_stack([block for block, _ in pairs])] if spec.stacks else [block for block, _ in pairs]
        for name, found in _values(spec, blocks).items():
            flaws[name] = found | flaws.get(name, {})
        return blocks, flaws

    def _block(self, array: pa.Array, column: Column) -> tuple[Tensor, Flaws]:
        if column.image is not None:
            return decode_images(array, column.image, self.each)
        if column.npy:
            return decode_npy(array, known_shape(column.shape), column.dtype)
        return decode(array, column), {}

    def _prepared(self, batch: pa.RecordBatch) -> tuple[list[Tensor], dict[str, Flaws]]:
        assert self.prepare is not None, "whoever reads a spec with a function gives the function"
        names = list(dict.fromkeys(self.spec.inputs))
        blocks, flaws = self.prepare(batch.select(names))
        for block in blocks:
            flaws = {row: f"becomes a tensor that {flaw}" for row, flaw in value_flaws(block).items()} | flaws
        return list(blocks), {", ".join(names): flaws} if flaws else {}


def _stack(blocks: list[Tensor]) -> Tensor:
    with np.errstate(over="ignore"):
        return np.stack([block.astype(np.float32, copy=False) for block in blocks], axis=1)


def _values(spec: ReadSpec, blocks: list[Tensor]) -> dict[str, Flaws]:
    if not spec.stacks:
        # what is decoded from images is finite as it is
        pairs = [(column, block) for column, block in zip(spec.columns, blocks, strict=True) if column.image is None]
        return {column.name: flaws for column, block in pairs if (flaws := value_flaws(block, column.masked))}
    if not value_flaws(blocks[0]):
        return {}
    return {column.name: flaws for i, column in enumerate(spec.columns) if (flaws := value_flaws(blocks[0][:, i].copy()))}


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

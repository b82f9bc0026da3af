"""Planning a pool: which files, which units, which columns; reads footers and no rows, but for the width of list columns.

Where types don't tell what an input column is, as of lists and bytes, a few rows are looked at.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from raystream.errors import PoolError, QueryError
from raystream.lake.uri import TableVersion
from raystream.pool.column_types import is_text, pool_types, widened
from raystream.pool.columns import RAW, Column, Texts, check_mixture, known_shape, plain_type, recognise, row_shapes
from raystream.pool.files import File, open_parquet
from raystream.pool.filters import Filters, check_filters, filter_columns, freeze, partition_types, residual
from raystream.pool.footers import Footer, read_footers
from raystream.pool.images import Decoding, UndecodableError, beginning, cells, format_of, installed_decoder, npy_dtype, npy_header
from raystream.pool.reader import Prepared, ReadSpec
from raystream.pool.scan import scan
from raystream.pool.tables import list_pool
from raystream.pool.units import TARGET_BYTES, WORK_ROWS, Unit, Units, cut_units, group_bytes
from raystream.query import LOGIT_SCORES, Pool, Preprocess
from raystream.query.select import SELECTION_COLUMNS

_SAMPLED_FILES = 8
_SAMPLED_ROWS = 64
Found = tuple[tuple[int, ...], str]
"""The shape and dtype of a row; the query tells those of images, and nobody those of unknown bytes."""
_PICTURE: Found = ((), "image")
_UNKNOWN: Found = ((), "")


def input_columns(
    units: Sequence[Unit],
    inputs: Sequence[tuple[str, pa.DataType]],
    on_error: str,
    texts: Texts = "refused",
    images: Preprocess | None = None,
    named: bool = False,
) -> tuple[Column, ...]:
    """Return the columns as the model sees them, each with a complete shape.

    Args:
        units: of the whole pool.
        inputs: names and types of the columns.
        on_error: fail, or skip, under which damaged files are left to the reader.
        texts: whether the model takes strings.
        images: what becomes of encoded images.
        named: whether the model gets each column by a name of its own, so that numbers may stand beside lists.

    Raises:
        PoolError: a column can't become what the model takes.
        QueryError: there are images, and the query doesn't say what becomes of them, or the other way round.
    """
    columns = tuple(recognise(name, type_, texts) for name, type_ in inputs)
    if not named:
        check_mixture(columns)
    complete = tuple(_complete(units, column, on_error, images) for column in columns)
    if images is not None and not any(column.image for column in complete):
        names = ", ".join(column.name for column in columns)
        raise QueryError(f"model.preprocess decodes images, but no input column holds encoded ones ({names}); remove it")
    return complete


def _complete(units: Sequence[Unit], column: Column, on_error: str, images: Preprocess | None) -> Column:
    if None not in column.shape:
        return column
    shape, dtype = _commonest(units, column, on_error)
    if (shape, dtype) != _PICTURE:
        return dataclasses.replace(column, shape=shape, dtype=dtype, npy=column.is_encoded)
    if images is None:
        raise QueryError(
            f"column {column.name} holds encoded images, but model.preprocess is missing; say what becomes of them, such as "
            "{size: [224, 224], mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}"
        )
    return dataclasses.replace(column, shape=images.shape, dtype="float32", image=Decoding(images, installed_decoder()))


def _commonest(units: Sequence[Unit], column: Column, on_error: str) -> Found:
    """Find what most of the first rows of a few files spread over the pool are; of equals, the earlier.

    One odd row must not decide, as `skip` would then leave out all others.
    """
    first: dict[File, Unit] = {}
    for unit in units:
        first.setdefault(unit.file, unit)
    count = min(_SAMPLED_FILES, len(first))
    sample = [list(first.values())[i * len(first) // count] for i in range(count)]
    found = Counter(row for unit in sample for row in next(_rows(unit, column, on_error), ()))
    # The first rows may all be null; then the first ones that aren't decide.
    more = (rows for unit in units for rows in _rows(unit, column, on_error) if rows)
    found = found or Counter(next(more, ()))
    unknown = found.pop(_UNKNOWN, 0)
    if found:
        return found.most_common(1)[0][0]
    if not column.is_encoded:
        raise PoolError(f"column {column.name} holds no list with values in {len(first)} files; expected lists of one length")
    raise PoolError(
        f"column {column.name} holds {_first_bytes(units, column) if unknown else 'nulls alone'}, expected JPEG, PNG or WebP images "
        "or .npy files; let a function of yours decode anything else, by its import path in model.preprocess"
    )


def _rows(unit: Unit, column: Column, on_error: str) -> Iterator[list[Found]]:
    """Yield what a unit's sound rows are, some rows at a time."""
    for array in _arrays(unit, column, on_error):
        if column.is_encoded:
            yield [_of_bytes(data) for data in cells(array) if data is not None]
        else:
            yield [(shape, column.dtype) for shape in row_shapes(array, column)]


def _of_bytes(data: memoryview) -> Found:
    kind = format_of(data)
    if kind != "npy":
        return _UNKNOWN if kind is None else _PICTURE
    try:
        dtype, shape, _, _ = npy_header(data)
        return shape, npy_dtype(dtype)
    except UndecodableError:
        return _UNKNOWN


def _first_bytes(units: Sequence[Unit], column: Column) -> str:
    arrays = (array for unit in units for array in _arrays(unit, column, "skip"))
    return next(beginning(data) for array in arrays for data in cells(array) if data is not None and _of_bytes(data) == _UNKNOWN)


def _arrays(unit: Unit, column: Column, on_error: str) -> Iterator[pa.Array]:
    """Yield a column of a unit, some rows at a time; under `skip` damage ends it, and is left to the reader."""
    deletes, what = unit.file.deletes, f"column {column.name} of {unit.file.path}"
    with open_parquet(unit.file) as parquet:
        try:
            for group in unit.row_groups:  # one by one: what object storage sends of the others would be thrown away
                for first, batch in scan(unit.file, parquet, [column.name], _SAMPLED_ROWS, [group], what=what):
                    values = batch.column(column.name)
                    if unit.span is not None:
                        skipped = max(0, unit.span[0] - first)
                        first, values = first + skipped, values.slice(skipped, max(0, unit.span[1] - first - skipped))
                    if not pa.types.is_null(values.type):
                        yield values if deletes is None else values.take(pa.array(deletes.kept(first, len(values))))
        except PoolError:
            if on_error == "fail":
                raise


LARGE_ROW_GROUP = 1 << 30
ListedFiles = tuple[list[File], tuple[TableVersion, ...]]
"""Files, and the tables that listed them; see `list_pool`."""
_SHOWN = 3
DERIVED_ID = "id"
_OURS = frozenset({*SELECTION_COLUMNS, *LOGIT_SCORES})


class NoRowsError(PoolError):
    """Files without a row, or without one that the filters let through."""


class NoReadableFileError(NoRowsError):
    """Files none of which can be read, under `on_error: skip`."""


@dataclass(frozen=True)
class PoolPlan:
    """The plan of what a query reads of its pool.

    Attributes:
        footers: of all files that can be read, also of those that the filters leave nothing of, sorted by path.
        units: what is scored, sorted by (path, first row).
        read: how units are read.
        filters: the pool's, frozen.
        partition_types: hive key -> its type.
        keep_schema: the kept columns, and those read for candidates, with their types, as `read_columns_at` takes it.
        warnings: sentences for the user.
        tables: the tables that the files were listed by, each at one version.
        unreadable: how many files were left out, whose footers can't be read.
    """

    footers: tuple[Footer, ...]
    units: Units
    read: ReadSpec
    filters: Filters
    partition_types: dict[str, pa.DataType]
    keep_schema: pa.Schema
    warnings: tuple[str, ...]
    tables: tuple[TableVersion, ...] = ()
    unreadable: int = 0

    @property
    def files(self) -> tuple[File, ...]:
        """All files, sorted by path."""
        return tuple(footer.file for footer in self.footers)

    @property
    def rows(self) -> int:
        """Rows of the pool, before filters."""
        return sum(footer.rows for footer in self.footers)

    @property
    def unit_rows(self) -> int:
        """Rows of the units, before row filters."""
        return int(self.units.rows.sum())

    @property
    def bytes(self) -> int:
        """Uncompressed bytes of what the units read."""
        return int(self.units.bytes.sum())

    @property
    def id_name(self) -> str:
        """The id column of the results."""
        return self.read.id or DERIVED_ID

    @property
    def id_type(self) -> pa.DataType:
        """The type of the ids in the results."""
        return self.read.id_type

    @property
    def snapshot(self) -> list[tuple[str, int, str]]:
        """The identity of every file, as the manifest records it."""
        return [footer.file.identity for footer in self.footers]


def plan_pool(
    pool: Pool,
    columns: Sequence[str] | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    target_bytes: int = TARGET_BYTES,
    threads: int = 16,
    masked: Collection[str] = (),
    also: Sequence[str] = (),
    texts: Texts = "refused",
    images: Preprocess | None = None,
    prepared: Prepared | None = None,
    labels: bool = False,
    listed: ListedFiles | None = None,
) -> PoolPlan:
    """List a pool, read its footers and cut its units.

    Args:
        pool: as the query says it.
        columns: the input columns, if they aren't `pool.inputs`: those that a model of kind columns names.
        on_error: what readers do with bad rows; under `skip`, files whose footer can't be read are left out, too, with a warning.
        target_bytes: uncompressed bytes of a unit.
        threads: footers read at a time.
        masked: input columns in which -inf is a value, such as logits, where it masks a class.
        also: further columns that are read for candidates, such as those of quotas and costs.
        texts: whether the model takes columns of strings, or nothing else.
        images: what becomes of encoded images.
        prepared: the function of the user's that makes tensors of the input columns, whatever these hold.
        labels: whether these are labelled rows, which may stand in files of text, too.
        listed: the files to read, and the tables that listed them; left out, all of the pool's.

    Raises:
        QueryError: a name or a filter of the query can't be used.
        PoolError: the files, their columns or their types can't be used.
        NoRowsError: no row is left.
    """
    inputs = pool.input_columns if columns is None else tuple(columns)
    _check_names(pool)
    filters = freeze(pool.disjunction)
    # Labelled rows count as covered whatever the filters say: then files that the filters leave nothing of are looked at, too.
    files, tables = listed or list_pool(pool.uris, filters=() if pool.labelled else filters, storage=pool.options, texts=labels)
    read = [*([pool.id] if pool.id else []), *inputs]
    later = list(dict.fromkeys([*pool.keep, *also]))
    unreadable: dict[File, str] = {}
    note = unreadable.__setitem__ if on_error == "skip" else None
    footers = read_footers(files, read, filter_columns(filters), later, threads, unreadable=note)
    if not footers:
        raise NoReadableFileError(f"none of the {len(files)} files can be read, first: {unreadable[files[0]]}")
    folders = partition_types([footer.file for footer in footers])
    if not any(footer.rows for footer in footers):
        raise NoRowsError(f"pool.uri {', '.join(pool.uris)} holds no row in {len(files)} files; expected at least one")
    types = pool_types(footers, folders)
    check_filters(filters, types)
    # All else that is read becomes tensors of one type.
    wide = widened(footers, types, [*([pool.id] if pool.id else []), *(inputs if prepared else [])])
    work_rows = WORK_ROWS if _much_work(inputs, types, texts, images, prepared) else None
    units = _cut(footers, filters, folders, target_bytes, wide, work_rows)
    if not units:
        raise NoRowsError(f"no row of {len(files)} files is left after filters {_shown(filters)}; change pool.filters")
    if prepared is not None:
        measured = tuple(Column(name, (), RAW) for name in inputs)
    else:
        measured = input_columns(units, [(name, types[name]) for name in inputs], on_error, texts, images, named=bool(pool.input_names))
    marked = tuple(dataclasses.replace(column, masked=column.name in masked) for column in measured)
    spec = ReadSpec(pool.id, _id_type(pool.id, types), marked, on_error, pool.input_names, prepared, wide)
    keep = pa.schema([pa.field(name, plain_type(types[name])) for name in later])
    warnings = (*_left_out(unreadable), *_large_row_group(footers, units, spec))
    return PoolPlan(tuple(footers), units, spec, filters, folders, keep, warnings, tables, len(unreadable))


def _check_names(pool: Pool) -> None:
    id_name = pool.id or DERIVED_ID
    for key, name in [("pool.id", id_name), *(("pool.keep", name) for name in pool.keep)]:
        if name in _OURS or (key, name) == ("pool.id", "reason"):
            raise QueryError(f"{key} names column {name}, a name that raystream's own results use; rename the column in the pool")
    for name in pool.keep:
        if name == id_name:
            raise QueryError(f"pool.keep names {name}, but the results have an id column of that name anyway; remove it from pool.keep")
        if pool.keep.count(name) > 1:
            raise QueryError(f"pool.keep names column {name} twice; expected each once")


def _id_type(name: str | None, types: dict[str, pa.DataType]) -> pa.DataType:
    if name is None:
        return pa.string()
    type_ = plain_type(types[name])
    accepted = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if any(accept(type_) for accept in accepted) or pa.types.is_fixed_size_binary(type_):
        return type_
    raise PoolError(f"id column {name} is {types[name]}; expected integers, strings or binary, or leave pool.id out")


def _cut(
    footers: Sequence[Footer],
    filters: Filters,
    folders: dict[str, pa.DataType],
    target_bytes: int,
    wide: tuple[tuple[str, pa.DataType], ...],
    work_rows: int | None,
) -> Units:
    left = ((footer, residual(filters, footer.file, folders)) for footer in footers)
    return Units.of(unit for footer, rest in left if rest is not None for unit in cut_units(footer, rest, target_bytes, wide, work_rows))


def _much_work(
    inputs: Sequence[str], types: dict[str, pa.DataType], texts: Texts, images: Preprocess | None, prepared: Prepared | None
) -> bool:
    """Tell whether a row's bytes say little of its work: texts for a network, images to be decoded, the input of the user's function."""
    plain = [plain_type(types[name]) for name in inputs]
    return prepared is not None or images is not None or (texts != "refused" and any(map(is_text, plain)))


def _left_out(unreadable: dict[File, str]) -> tuple[str, ...]:
    """Warn if files can't be read."""
    count = len(unreadable)
    reasons = "; ".join(reason.rpartition("; ")[0] or reason for reason in list(unreadable.values())[:_SHOWN])
    files = "1 file of the pool was" if count == 1 else f"{count} files of the pool were"
    return (f"{files} left out{', first' if count > _SHOWN else ''}: {reasons}",) if count else ()


def _large_row_group(footers: Sequence[Footer], units: Units, spec: ReadSpec) -> tuple[str, ...]:
    """Warn if a row group is so large that a worker needs much memory to read it."""
    # Encoded integers take less room in the file than in memory.
    # Of what is decoded, only a batch is in memory at a time.
    row_bytes = sum(
        math.prod(known_shape(column.shape)) * np.dtype(column.dtype).itemsize
        for column in spec.columns
        if not column.is_encoded and not column.is_raw
    )
    groups_of = {footer.file.path: footer.row_groups for footer in footers}
    size, name = 0, ""
    for unit in units:
        names = filter_columns(unit.filters)
        for index in unit.row_groups:
            group = groups_of[unit.file.path][index]
            size, name = max((size, name), (max(group_bytes(group, names), group.rows * row_bytes), f"{unit.file.path}#rg{index}"))
    if size <= LARGE_ROW_GROUP:
        return ()
    return (
        f"the largest row group, {name}, holds {size / 2**30:.1f} GiB in the columns read, which bounds a worker's memory from below; "
        "write the pool with smaller row groups",
    )


def _shown(filters: Filters) -> str:
    return " or ".join(" and ".join(f"{name} {op} {value!r}" for name, op, value in conjunction) for conjunction in filters)

"""What the input columns are, where their types don't tell: the widths of lists, and what bytes hold; reads a few rows."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence

import pyarrow as pa

from raystream.errors import PoolError, QueryError
from raystream.pool.columns import Column, Texts, check_mixture, recognise, row_shapes
from raystream.pool.encoded import UndecodableError, beginning, cells, format_of, npy_dtype, npy_header
from raystream.pool.files import File, open_parquet
from raystream.pool.images import Decoding, installed_decoder
from raystream.pool.scan import scan
from raystream.pool.units import Unit
from raystream.query import Preprocess

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
    """The columns as the model sees them, each with a complete shape.

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
    """What most of the first rows of a few files spread over the pool are; of equals, the earlier.

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
    """What a unit's sound rows are, some rows at a time."""
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
    """A column of a unit, some rows at a time; under `skip` damage ends it, and is left to the reader."""
    deletes, what = unit.file.deletes, f"column {column.name} of {unit.file.path}"
    with open_parquet(unit.file) as parquet:
        try:
            for group in unit.row_groups:  # one by one: what object storage sends of the others would be thrown away
                for first, batch in scan(unit.file, parquet, [column.name], _SAMPLED_ROWS, [group], what=what):
                    values = batch.column(column.name)
                    if not pa.types.is_null(values.type):
                        yield values if deletes is None else values.take(pa.array(deletes.kept(first, len(values))))
        except PoolError:
            if on_error == "fail":
                raise

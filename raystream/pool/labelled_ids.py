"""Reading the ids of labelled files a batch at a time, since there may be millions of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raystream.errors import LabelsError, did_you_mean
from raystream.pool.files import File, open_parquet, schema_of
from raystream.pool.ids import comparable
from raystream.pool.scan import check_text, scan

_BATCH = 1 << 18


def read_integers(files: Sequence[File], name: str, id_type: pa.DataType, threads: int) -> tuple[pa.Array, int]:
    """The ids of all files, sorted, each once, and how many rows hold one that isn't of the pool's type.

    The ids are decoded into one array and sorted in place: there is never a second copy of them.
    """
    dtype = id_type.to_pandas_dtype()
    with ThreadPoolExecutor(threads) as executor:
        rows = list(executor.map(_rows, files))
        try:
            values = np.empty(sum(rows), dtype)
        except (MemoryError, ValueError):
            most = files[int(np.argmax(rows))].path
            raise LabelsError(f"there is no memory for {sum(rows)} labelled ids, most of them in {most}; check that file") from None
        starts = [0, *accumulate(rows)]

        def fill(number: int) -> int:
            at = starts[number]
            for _, ids in id_batches(files[number], name, id_type):
                inside = within(ids, id_type).drop_null()
                values[at : at + len(inside)] = inside.to_numpy()
                at += len(inside)
            return at

        ends = list(executor.map(fill, range(len(files))))
    values = _close_gaps(values, list(zip(starts, ends, strict=False)))
    outside = sum(rows) - len(values)
    if not (values[1:] > values[:-1]).all():
        values.sort()
        values = _once(values)
    return pa.array(values, id_type), outside


def read_strings(files: Sequence[File], name: str, id_type: pa.DataType, threads: int) -> tuple[pa.Array, int]:
    """The ids of all files, strings or binary with 64-bit offsets, sorted, each once; all of them are of the pool's type."""
    with ThreadPoolExecutor(threads) as executor:
        batches = list(executor.map(lambda file: [ids for _, ids in id_batches(file, name, id_type)], files))
    target = comparable(pa.array([], id_type)).type
    ids = pc.unique(pa.chunked_array([ids for of_file in batches for ids in of_file], target))
    return ids.take(pc.array_sort_indices(ids)), 0


def id_batches(file: File, name: str, id_type: pa.DataType) -> Iterator[tuple[npt.NDArray[np.int64], pa.Array]]:
    """The rows of a labelled file that aren't deleted, in order, and their ids, of the pool's type or integers of any width.

    Raises:
        LabelsError: the column is missing, unreadable, null, or of another kind than the pool's ids.
    """
    with open_parquet(file) as parquet:
        schema = schema_of(file, parquet)
        if name not in schema.names:
            raise LabelsError(f"id column {name} is missing in the labelled file {file.path}{did_you_mean(name, schema.names)}")
        if schema.names.count(name) > 1:
            raise LabelsError(
                f"id column {name} stands {schema.names.count(name)} times in the labelled file {file.path}; rename all but one"
            )
        for start, batch in scan(file, parquet, [name], _BATCH, what=f"id column {name} of {file.path}"):
            ids, rows = comparable(batch.column(name)), np.arange(start, start + batch.num_rows)
            check_text(ids, f"id column {name} of {file.path}")
            if file.deletes is not None:
                kept = file.deletes.kept(start, len(rows))
                ids, rows = ids.take(pa.array(kept)), rows[kept]
            if ids.null_count:
                raise LabelsError(f"id column {name} of {file.path} holds {_nulls(file, name)} nulls; expected an id in every labelled row")
            if _family(ids.type) != _family(comparable(pa.array([], id_type)).type):
                found = schema.field(name).type
                raise LabelsError(f"id column {name} of {file.path} is {found}, but the pool's is {id_type}; write it as {id_type}")
            yield rows, ids


def within(ids: pa.Array, type_: pa.DataType) -> pa.Array:
    """Integers as that type, null where it can't hold them; other ids as they are."""
    if not pa.types.is_integer(type_) or ids.type.equals(type_):
        return ids
    values, limits = ids.to_numpy(), np.iinfo(type_.to_pandas_dtype())
    outside = (values < int(limits.min)) | (values > int(limits.max))
    return pa.array(values.astype(limits.dtype), type_, mask=outside if outside.any() else None)


def _rows(file: File) -> int:
    with open_parquet(file) as parquet:
        return int(parquet.metadata.num_rows) - (len(file.deletes.positions) if file.deletes is not None else 0)


def _nulls(file: File, name: str) -> int:
    with open_parquet(file) as parquet:
        return int(sum(batch.column(name).null_count for _, batch in scan(file, parquet, [name], _BATCH)))


def _family(type_: pa.DataType) -> str:
    return "integer" if pa.types.is_integer(type_) else str(type_)


def _close_gaps(values: npt.NDArray[np.integer], stretches: Sequence[tuple[int, int]]) -> npt.NDArray[np.integer]:
    """The values of these stretches, ascending, moved together in place."""
    end = 0
    for low, high in stretches:
        if low != end:
            values[end : end + high - low] = values[low:high]
        end += high - low
    return values[:end]


def _once(values: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    """Sorted values, each once, moved together in place."""
    new = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=new[1:])
    end = 0
    for start in range(0, len(values), _BATCH):
        kept = values[start : start + _BATCH][new[start : start + _BATCH]]
        values[end : end + len(kept)] = kept
        end += len(kept)
    return values[:end]

"""Ids: those derived from where rows are, and whether ids tell rows apart over the whole pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raystream.errors import PoolError
from raystream.pool.columns import plain
from raystream.pool.id_hashes import BLOCK_ROWS, Ids, Numbers, id_blocks, numbers_of

_SHOWN = 3


def check_unique(
    ids: Ids | pa.Array,
    name: str,
    where: Callable[[int], str] | None = None,
    take: Callable[[npt.NDArray[np.int64]], pa.Array] | None = None,
) -> None:
    """Raise PoolError if ids are null or occur more than once.

    Args:
        ids: of all rows, in row order; looked at twice, and once more if two of them have one number.
        name: the id column's, for messages.
        where: names the place of a row of `ids`, as in `/pool/a.parquet row 17`; left out, the row's number does.
        take: the ids of some rows, if there is a shorter way to them than through all.
    """
    where = where or "row {}".format
    try:
        suspects = _suspects(ids)
    except _NullIds:
        nulls = [start + np.flatnonzero(np.asarray(block.is_null())) for start, block in id_blocks(ids) if block.null_count]
        first = [row for rows in nulls for row in rows[:_SHOWN].tolist()][:_SHOWN]
        raise PoolError(
            f"{sum(map(len, nulls))} ids of column {name} are null, first: {', '.join(map(where, first))}; "
            "expected one id a row, so fill them or leave pool.id out"
        ) from None
    found = comparable(take(suspects) if take is not None and len(suspects) else take_ids(ids, suspects))
    repeated = _repeated(found)
    if len(repeated):
        places = {id_: int(suspects[place]) for id_, place in _first_repeats(found, repeated).items()}
        raise PoolError(
            f"{len(repeated)} ids of column {name} are not unique, first: {', '.join(map(str, places))}, "
            f"met again at {', '.join(map(where, places.values()))}; "
            "expected one id a row, so correct them or leave pool.id out"
        )


class _NullIds(Exception):
    """Some id is null."""


def _whole_blocks(ids: Ids | pa.Array) -> Iterator[tuple[int, pa.Array]]:
    """`id_blocks`, unless an id is null."""
    for start, block in id_blocks(ids):
        if block.null_count:
            raise _NullIds
        yield start, block


def take_ids(ids: Ids | pa.Array, rows: npt.NDArray[np.int64]) -> pa.Array:
    """The ids of these rows, in the order asked for; Arrow would first make one array of all chunks, which may be too long for its type."""
    if not len(rows):
        return pa.array([], ids.type)
    chunks = [ids] if isinstance(ids, pa.Array) else list(ids.chunks)
    starts = np.cumsum([0, *map(len, chunks)])
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    edges = np.searchsorted(ordered, starts)
    pieces = [
        chunk.take(pa.array(ordered[low:high] - start))
        for chunk, start, low, high in zip(chunks, starts, edges, edges[1:], strict=False)
        if low < high
    ]
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return pa.concat_arrays(pieces).take(pa.array(back))


def derived_ids(path: str, rows: npt.NDArray[np.int64]) -> pa.Array:
    """`path#row` for positions in a file: what rows are called when the pool has no id column."""
    return pc.binary_join_element_wise(path, pa.array(rows).cast(pa.string()), "#")


def comparable(ids: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """The same ids in a type that Arrow can sort and look up: dictionaries decoded, strings and binary with 64-bit offsets."""
    ids = plain(ids)
    if pa.types.is_string(ids.type):
        return ids.cast(pa.large_string())
    if pa.types.is_binary(ids.type) or pa.types.is_fixed_size_binary(ids.type):
        return ids.cast(pa.large_binary())
    return ids


def _suspects(ids: Ids | pa.Array) -> npt.NDArray[np.int64]:
    """The rows, ascending, of all ids that some other id has the number of."""
    if pa.types.is_integer(ids.type) and _ascend(ids):
        return np.empty(0, np.int64)
    numbers: Numbers | None = None
    for start, block in _whole_blocks(ids):
        found = numbers_of(block)
        if numbers is None:
            numbers = np.empty(len(ids), found.dtype)
        numbers[start : start + len(found)] = found
    if numbers is None:
        return np.empty(0, np.int64)
    numbers.sort()
    same = [np.empty(0, numbers.dtype)]
    for start in range(0, len(numbers), BLOCK_ROWS):
        run = numbers[start : start + BLOCK_ROWS + 1]
        same.append(run[1:][run[1:] == run[:-1]])
    del numbers
    again = np.unique(np.concatenate(same))
    rows = [np.empty(0, np.int64)]
    for start, array in id_blocks(ids) if len(again) else ():
        found = numbers_of(array)
        at = np.minimum(np.searchsorted(again, found), len(again) - 1)
        rows.append(start + np.flatnonzero(again[at] == found))
    return np.concatenate(rows)


def _ascend(ids: Ids | pa.Array) -> bool:
    """Whether each integer is above the one before, so that there is nothing to sort."""
    last: np.integer | None = None
    for _, block in _whole_blocks(ids):
        values = block.to_numpy()
        if not (values[1:] > values[:-1]).all() or (last is not None and values[0] <= last):
            return False
        last = values[-1]
    return True


def _repeated(ids: pa.Array) -> pa.Array:
    """The ids that occur more than once."""
    counts = pc.value_counts(ids)
    return counts.field("values").filter(pc.greater(counts.field("counts"), 1))


def _first_repeats(ids: pa.ChunkedArray | pa.Array, repeated: pa.Array) -> dict[object, int]:
    """The ids that are met again first, in row order, with the rows where they are."""
    found = pc.index_in(ids, value_set=repeated)
    rows, values = pc.indices_nonzero(found.is_valid()).to_numpy(), found.drop_null().to_numpy()
    again = np.delete(np.arange(len(values)), np.unique(values, return_index=True)[1])
    first = again[np.sort(np.unique(values[again], return_index=True)[1])[:_SHOWN]]
    return {repeated[int(values[i])].as_py(): int(rows[i]) for i in first}

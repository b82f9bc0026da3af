"""Ids: those derived from where rows are, and whether ids tell rows apart over the whole pool."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raystream.errors import PoolError
from raystream.pool.columns import plain

_SHOWN = 3


def check_unique(ids: pa.ChunkedArray | pa.Array, name: str, where: Callable[[int], str] | None = None) -> None:
    """Raise PoolError if ids are null or occur more than once.

    Args:
        ids: of all rows, in row order.
        name: the id column's, for messages.
        where: names the place of a row of `ids`, as in `/pool/a.parquet row 17`; left out, the row's number does.
    """
    where = where or "row {}".format
    if ids.null_count:
        rows = pc.indices_nonzero(ids.is_null())[:_SHOWN].to_pylist()
        raise PoolError(
            f"{ids.null_count} ids of column {name} are null, first: {', '.join(map(where, rows))}; "
            "expected one id a row, so fill them or leave pool.id out"
        )
    ids = comparable(ids)
    repeated = _repeated_integers(ids) if pa.types.is_integer(ids.type) else _repeated_strings(ids)
    if len(repeated):
        first = _first_repeats(ids, repeated)
        raise PoolError(
            f"{len(repeated)} ids of column {name} are not unique, first: {', '.join(map(str, first))}, "
            f"met again at {', '.join(map(where, first.values()))}; "
            "expected one id a row, so correct them or leave pool.id out"
        )


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


def _repeated_integers(ids: pa.ChunkedArray | pa.Array) -> pa.Array:
    values: npt.NDArray[np.integer] = np.array(ids.to_numpy())
    if not (values[1:] > values[:-1]).all():
        values.sort()
    same = values[1:] == values[:-1]
    return pa.array(np.unique(values[1:][same]), ids.type)


def _repeated_strings(ids: pa.ChunkedArray | pa.Array) -> pa.Array:
    if len(pc.unique(ids)) == len(ids):  # six times faster than count_distinct
        return pa.array([], ids.type)
    counts = pc.value_counts(ids)
    return counts.field("values").filter(pc.greater(counts.field("counts"), 1))


def _first_repeats(ids: pa.ChunkedArray | pa.Array, repeated: pa.Array) -> dict[object, int]:
    """The ids that are met again first, in row order, with the rows where they are."""
    found = pc.index_in(ids, value_set=repeated)
    rows, values = pc.indices_nonzero(found.is_valid()).to_numpy(), found.drop_null().to_numpy()
    again = np.delete(np.arange(len(values)), np.unique(values, return_index=True)[1])
    first = again[np.sort(np.unique(values[again], return_index=True)[1])[:_SHOWN]]
    return {repeated[int(values[i])].as_py(): int(rows[i]) for i in first}

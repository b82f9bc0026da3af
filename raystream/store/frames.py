"""Rows in memory as a query's pool: a table or frame, kept in the store as Parquet under the hash of its content.

So rows in memory are a pool like any other: workers read them where they lie, units and their keys are those of a file, and the same rows
again, in this process or another, are the same pool.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from raystream.errors import PoolError, QueryError
from raystream.lake import reason
from raystream.query import Query
from raystream.store.opening import open_store
from raystream.store.queries import TABLES

_LARGE = 1 << 31
"""Bytes that 32-bit offsets don't reach."""
_GROUP_BYTES = 32 << 20
_GROUP_ROWS = 16_384
"""What a row group holds at most: many make units of even size, and workers hold one at a time."""


def with_rows(query: Query, rows: object) -> Query:
    """Return the query over rows in memory, which are in its store afterwards.

    Args:
        query: what `pool.uri` it has is not looked at.
        rows: a pyarrow.Table, a pandas or polars DataFrame, or what else gives Arrow's streams.

    Raises:
        QueryError: `rows` is something else.
        PoolError: they can't be written as Parquet.
        StoreError: the store can't be written.
    """
    table = _plain(_as_table(rows))
    store = open_store(query.store.uri, query.store_options)
    data = _parquet(table)
    name = f"{TABLES}/{xxhash.xxh3_128_hexdigest(data)}.parquet"
    if store.size(name) != len(data):
        store.put(name, data)
    changes = {"uri": store.place(name)}
    if store.remote and query.store.storage:
        return query.derived(pool=query.pool.derived(**changes, storage=query.store.storage))
    return query.derived(pool=query.pool.derived(**changes))


def _as_table(rows: object) -> pa.Table:
    """Make a table of the rows. A pandas index is a column of it if it has a name."""
    kind = type(rows)
    try:
        if isinstance(rows, pa.Table):
            return rows
        if isinstance(rows, pa.RecordBatch):
            return pa.Table.from_batches([rows])
        if kind.__module__.partition(".")[0] == "pandas" and hasattr(rows, "index") and hasattr(rows, "columns"):
            return pa.Table.from_pandas(rows, preserve_index=all(name is not None for name in rows.index.names))
        if hasattr(rows, "to_arrow"):
            found = rows.to_arrow()
            if isinstance(found, pa.Table):
                return found
        elif hasattr(rows, "__arrow_c_stream__"):
            return pa.table(rows)
    except (pa.ArrowException, TypeError, ValueError) as error:
        told = reason(error)
        raise PoolError(f"pool: this {kind.__name__} can't become columns: {told}; give each column values of one type") from None
    hint = "; collect() it first" if hasattr(rows, "collect") else ""
    raise QueryError(f"pool is a {kind.__name__}, expected a pyarrow.Table or a pandas or polars DataFrame{hint}")


def _plain(table: pa.Table) -> pa.Table:
    """Return the same rows, chunks and types as any library would have them."""
    if not table.num_columns or not table.num_rows:
        raise PoolError(f"pool holds {table.num_rows} rows of {table.num_columns} columns; expected at least one row")
    if len(set(table.column_names)) < table.num_columns:
        double = next(name for name in table.column_names if table.column_names.count(name) > 1)
        raise PoolError(f"pool has {table.column_names.count(double)} columns {double}; rename all but one")
    small = table.nbytes < _LARGE
    return table.cast(pa.schema([field.with_type(_plain_type(field.type, small)) for field in table.schema])).combine_chunks()


def _plain_type(type_: pa.DataType, small: bool) -> pa.DataType:
    """Return one spelling of types that hold the same: with 32-bit offsets, in which libraries differ, where these suffice."""
    if type_ == pa.string_view():
        type_ = pa.large_string()
    if type_ == pa.binary_view():
        type_ = pa.large_binary()
    if not small:
        return type_
    if pa.types.is_large_list(type_):
        return pa.list_(type_.value_field.with_type(_plain_type(type_.value_type, small)))
    return {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}.get(type_, type_)


def _parquet(table: pa.Table) -> bytes:
    """Write the same bytes for the same rows, however they are chunked."""
    rows = max(1, min(_GROUP_ROWS, _GROUP_BYTES * table.num_rows // max(1, table.nbytes)))
    sink = pa.BufferOutputStream()
    try:
        pq.write_table(table, sink, row_group_size=rows)
    except pa.ArrowException as error:
        raise PoolError(f"pool can't be written as Parquet: {reason(error)}") from None
    return bytes(sink.getvalue().to_pybytes())

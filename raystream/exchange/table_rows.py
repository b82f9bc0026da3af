"""Rows on their way into a table: read batch by batch, as often as a writer begins anew, in types that all tables have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pyarrow as pa

_PIECE = 4


@dataclass(frozen=True)
class Rows:
    """So many rows of a schema; `batches` begins at the first one each time that it is called.

    `group_rows` is how many a row group may hold, which a writer keeps in memory.
    """

    schema: pa.Schema
    count: int
    batches: Callable[[], Iterator[pa.RecordBatch]] = field(repr=False)
    group_rows: int = 1 << 20

    @classmethod
    def of(cls, table: pa.Table) -> Rows:
        """The rows of a table in memory."""
        return cls(table.schema, table.num_rows, lambda: iter(table.to_batches()))

    def reader(self) -> pa.RecordBatchReader:
        """All rows, to be read once."""
        return pa.RecordBatchReader.from_batches(self.schema, self.batches())

    def pieces(self) -> Iterator[pa.Table]:
        """All rows, as many at a time as a few row groups hold; one table at least."""
        held: list[pa.RecordBatch] = []
        for batch in self.batches():
            if held and sum(map(len, held)) + len(batch) > _PIECE * self.group_rows:
                yield pa.Table.from_batches(held)
                held = []
            held.append(batch)
        yield pa.Table.from_batches(held, self.schema)

    def table(self) -> pa.Table:
        """All rows in memory."""
        return self.reader().read_all()

    def marked(self, name: str, value: str) -> Rows:
        """The rows with a further column that holds one text."""
        schema = self.schema.append(pa.field(name, pa.string()))

        def batches() -> Iterator[pa.RecordBatch]:
            for batch in self.batches():
                marks = pa.repeat(pa.scalar(value, pa.string()), batch.num_rows)
                yield pa.record_batch([*batch.columns, marks], schema=schema)

        return replace(self, schema=schema, batches=batches)

    @property
    def about(self) -> dict[str, str]:
        """What the schema's metadata says of where the rows come from."""
        told = {key.decode(): value.decode() for key, value in (self.schema.metadata or {}).items()}
        return {key: value for key, value in told.items() if key.startswith("raystream.")}

    def portable(self) -> Rows:
        """The rows in types that both kinds of tables have, every value as it was."""
        fields = [pa.field(column.name, _portable_type(column.type)) for column in self.schema]
        schema = pa.schema(fields, metadata=self.schema.metadata)
        return replace(self, schema=schema, batches=lambda: (_cast(batch, schema) for batch in self.batches()))


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    return pa.record_batch([column.cast(to.type) for column, to in zip(batch.columns, schema, strict=True)], schema=schema)


def _portable_type(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(type_):
        return _portable_type(type_.value_type)
    if pa.types.is_unsigned_integer(type_) or pa.types.is_int8(type_) or pa.types.is_int16(type_):
        return pa.int32() if type_.bit_width <= 16 else pa.int64()  # a uint64 beyond int64 is an error of the cast's
    if pa.types.is_float16(type_):
        return pa.float32()
    if pa.types.is_null(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        return pa.string()
    if pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_):
        return pa.binary()
    if pa.types.is_timestamp(type_):
        return pa.timestamp("us", "UTC" if type_.tz else None)
    if pa.types.is_fixed_size_list(type_) or pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return pa.list_(_portable_type(type_.value_type))
    return type_

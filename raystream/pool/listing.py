"""The data files of a table at one of its versions, as the table lists them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from raystream.errors import PoolError
from raystream.figures import of_columns
from raystream.lake import LOCAL, Storage
from raystream.lake.uri import TableVersion
from raystream.pool.files import Deletes, TableFile
from raystream.pool.filters import Filters, filter_columns


@dataclass(frozen=True)
class Listed:
    """A data file as its table lists it.

    Attributes:
        path: a path or URI that `raystream.pool.files` opens.
        file: what the table says of its columns.
        partitions: columns whose one value stands in the table alone, as text.
        deletes: the rows of it that are deleted.
        size: bytes, as the table has them.
    """

    path: str
    file: TableFile
    partitions: tuple[tuple[str, str | None], ...] = ()
    deletes: Deletes | None = None
    size: int | None = None


@dataclass(frozen=True)
class TableListing:
    """A table's data files at one version; `pruned` when its statistics left some of them out; `storage` reaches them."""

    version: TableVersion
    files: list[Listed] = field(default_factory=list)
    pruned: bool = False
    storage: Storage = LOCAL


def check_filter_columns(filters: Filters, types: Sequence[str], name: str) -> None:
    """Raise PoolError for a filter on a column that the table doesn't have."""
    for column in filter_columns(filters):
        if column not in types:
            raise PoolError(f"pool.filters names column {column}, which {name} doesn't hold{of_columns(column, types)}")


def types_of(schema: pa.Schema) -> dict[str, pa.DataType]:
    """Return the columns of a table's schema with their types."""
    return dict(zip(schema.names, schema.types, strict=True))

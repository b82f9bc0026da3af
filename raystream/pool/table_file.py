"""What a table knows of the columns of one of its files, and what of it the file contradicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from raystream.errors import PoolError, did_you_mean

_FIELD_ID = b"PARQUET:field_id"


@dataclass(frozen=True, slots=True)
class TableFile:
    """A table's columns as they hold for one file; only planning needs it.

    Attributes:
        name: the table, for messages.
        types: of the table's columns.
        ids: of the columns, by which Iceberg knows them when they are renamed; Delta has none.
        constants: columns that the file needn't hold because the table knows their one value, as text.
        defaults: columns that rows written before the column was added are given a value for.
    """

    name: str
    types: Mapping[str, pa.DataType]
    ids: Mapping[str, int] = field(default_factory=dict)
    constants: Mapping[str, str | None] = field(default_factory=dict)
    defaults: frozenset[str] = frozenset()

    def absent(self, path: str, schema: pa.Schema, names: Sequence[str]) -> list[tuple[str, str | None]]:
        """Those of the columns that the file doesn't hold, with the one value that its rows have.

        A column that was added after the file was written is null there.

        Raises:
            PoolError: a column isn't the table's, or was renamed, or replaced by another of its name, after the file was written.
        """
        found: list[tuple[str, str | None]] = []
        in_file = {int(f.metadata[_FIELD_ID]): f.name for f in schema if f.metadata and _FIELD_ID in f.metadata}
        for name in dict.fromkeys(names):
            if name not in self.types:
                raise PoolError(f"column {name} is not in {self.name}{did_you_mean(name, self.types)}")
            here = in_file.get(self.ids.get(name, -1))
            if here is not None and here != name:
                self._refuse(path, name, f"was renamed after {path} was written, where it is {here}")
            if name in schema.names:
                if here is None and name in in_file.values() and self.ids:
                    self._refuse(path, name, f"is another one than the column of that name in {path}, which the table has dropped since")
                continue
            if name in self.defaults and name not in self.constants:
                self._refuse(path, name, f"was added after {path} was written, with a default value")
            found.append((name, self.constants.get(name)))
        return found

    def _refuse(self, path: str, name: str, what: str) -> None:
        raise PoolError(f"column {name} of {self.name} {what}; rewrite the table's files (compaction does), then run the query again")

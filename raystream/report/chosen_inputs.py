"""What the model saw of chosen rows: an input column of theirs, read from the pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raystream.errors import RaystreamError
from raystream.lake import storage_from
from raystream.pool import File, read_columns_at, read_footers
from raystream.pool.columns import plain_type
from raystream.pool.files import known_files, open_parquet, schema_of
from raystream.store.result import Result

_READ_BYTES = 192 << 20
"""Row groups are read whole, and a report must not take longer than the query: about 0.3 s for this much."""


@dataclass(frozen=True)
class ChosenInputs:
    """Values of an input column.

    Attributes:
        field: the column's, as the first file declares it.
        ranks: of the rows, ascending.
        values: (len(ranks),).
        asked: of how many rows they were wanted.
    """

    field: pa.Field
    ranks: list[int]
    values: pa.ChunkedArray
    asked: int

    def note(self, what: str) -> str:
        """Say that rows are missing, which are called so; nothing where none are."""
        if len(self.ranks) == self.asked:
            return ""
        return f"{what} of {len(self.ranks)} of these {self.asked} rows: the others lie in row groups too large to read for a report."


class GoneError(Exception):
    """The rows can't be read any more; the message says why."""


def chosen_inputs(result: Result, count: int, accepts: Callable[[pa.Field], bool]) -> ChosenInputs | None:
    """Return the first input column that is accepted, of the first `count` chosen rows; None if there is none.

    Raises:
        GoneError: the pool can't be read, or isn't what it was.
    """
    return inputs_of(result, result.selection.slice(0, count), accepts)


def inputs_of(result: Result, rows: pa.Table, accepts: Callable[[pa.Field], bool]) -> ChosenInputs | None:
    """Read the first input column that is accepted, of rows of a query's pool; None without one. Ranks are places among the rows.

    Args:
        result: the query.
        rows: with the columns `path` and `row`.
        accepts: whether a column is wanted.

    Raises:
        GoneError: the pool can't be read, or isn't what it was.
    """
    inputs = result.manifest.resolved["pool"]["inputs"]
    names = list(dict.fromkeys(inputs.values() if isinstance(inputs, dict) else inputs))
    if not names or not rows.num_rows:
        return None
    storage = storage_from(result.manifest.resolved["pool"].get("storage", {}))
    files = {file.path: file for file in known_files(result.manifest.files, storage)}
    places = [(files[path], row) for path, row in zip(rows.column("path").to_pylist(), rows.column("row").to_pylist(), strict=True)]
    try:
        with open_parquet(places[0][0]) as file:
            schema = schema_of(places[0][0], file)
        field = next((schema.field(name) for name in names if name in schema.names and accepts(schema.field(name))), None)
        if field is None:
            return None
        ranks = _affordable(places, field.name)
        stored = pa.schema([pa.field(field.name, plain_type(field.type))])
        return ChosenInputs(field, ranks, read_columns_at([places[rank] for rank in ranks], stored).column(0), len(places))
    except (RaystreamError, OSError, pa.ArrowException) as error:
        raise GoneError(str(error)) from error


def _affordable(places: Sequence[tuple[File, int]], column: str) -> list[int]:
    """Return the ranks whose row groups may be read, the first ones first; always at least one."""
    ranks: list[int] = []
    spent = 0
    bought: set[tuple[str, int]] = set()
    groups: dict[str, tuple[npt.NDArray[np.int64], list[int]]] = {}
    for rank, (file, row) in enumerate(places):
        if file.path not in groups:
            groups[file.path] = _row_groups(file, column)
        starts, sizes = groups[file.path]
        group = int(np.searchsorted(starts, row, "right")) - 1
        if (file.path, group) not in bought:
            if bought and spent + sizes[group] > _READ_BYTES:
                continue
            spent += sizes[group]
            bought.add((file.path, group))
        ranks.append(rank)
    return ranks


def _row_groups(listed: File, column: str) -> tuple[npt.NDArray[np.int64], list[int]]:
    """Find where a file's row groups start, and the bytes of a column in each."""
    [footer] = read_footers([listed], [column])
    starts = [0, *accumulate(group.rows for group in footer.row_groups)][:-1]
    return np.array(starts, dtype=np.int64), [group.bytes for group in footer.row_groups]

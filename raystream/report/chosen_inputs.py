"""What the model saw of chosen rows: an input column of theirs, read from the pool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from threading import Lock

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raystream.errors import RaystreamError
from raystream.lake import storage_from
from raystream.pool import read_columns_at, read_footers
from raystream.pool.columns import plain_type
from raystream.pool.files import known_files, open_parquet, schema_of
from raystream.pool.scan import Places
from raystream.store.result import Result

_READ_BYTES = 192 << 20
"""Row groups are read whole, and a report must not take longer than the query: about 0.3 s for this much."""
_KEPT_BYTES = 96 << 20
"""Values of later runs that are kept until they are asked for."""

Accepts = Callable[[pa.Field], bool]
"""Tells whether an input column is wanted."""


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


def inputs_of(result: Result, rows: pa.Table, accepts: Accepts) -> ChosenInputs | None:
    """Read the first input column that is accepted, of rows of a query's pool; None without one. Ranks are places among the rows.

    Args:
        result: the query.
        rows: with the columns `path` and `row`.
        accepts: whether a column is wanted.

    Raises:
        GoneError: the pool can't be read, or isn't what it was.
    """
    return RunsOfInputs(result, rows, max(1, rows.num_rows)).read(0, accepts)


def is_text(field: pa.Field) -> bool:
    """Tell whether a column holds texts."""
    return bool(pa.types.is_string(field.type) or pa.types.is_large_string(field.type))


_Part = tuple[npt.NDArray[np.int64], pa.Array]
"""Ranks, and their values."""


class RunsOfInputs:
    """An input column of rows of a query's pool, read in runs of so many rows, each row group once.

    What a row group that is read holds of other runs is kept until they are asked for: rows of a batch lie all over the pool, and a run
    of it touches nearly all row groups that the batch does. Threads may ask at the same time.

    Args:
        result: the query.
        rows: with the columns `path` and `row`; ranks are places among them.
        run: rows that are read at a time.
    """

    def __init__(self, result: Result, rows: pa.Table, run: int) -> None:
        pool = result.manifest.resolved["pool"]
        self._names = list(dict.fromkeys(pool["inputs"].values() if isinstance(pool["inputs"], dict) else pool["inputs"]))
        self._run, self._lock = run, Lock()
        files = {file.path: file for file in known_files(result.manifest.files, storage_from(pool.get("storage", {})))}
        paths = rows.column("path").combine_chunks().dictionary_encode()
        self._places = Places(
            tuple(files[path] for path in paths.dictionary.to_pylist()), paths.indices.to_numpy(), rows.column("row").to_numpy()
        )
        self._schema: pa.Schema | None = None
        self._asked: set[tuple[str, int]] = set()
        self._kept: dict[tuple[str, int], list[_Part]] = {}
        self._room = _KEPT_BYTES

    def read(self, number: int, accepts: Accepts) -> ChosenInputs | None:
        """Return the first input column that is accepted, of the rows of a run; None if there is no such column or no such run.

        Raises:
            GoneError: the pool can't be read, or isn't what it was.
        """
        if not self._names or not 0 <= number * self._run < len(self._places):
            return None
        ranks = np.arange(number * self._run, min((number + 1) * self._run, len(self._places)))
        with self._lock:
            try:
                field = self._field(accepts)
                if field is None:
                    return None
                found, values = self._values(field, number, ranks)
            except (RaystreamError, OSError, pa.ArrowException) as error:
                raise GoneError(str(error)) from error
        return ChosenInputs(field, found.tolist(), values, len(ranks))

    def _field(self, accepts: Accepts) -> pa.Field | None:
        if self._schema is None:
            first, _ = self._places[0]
            with open_parquet(first) as file:
                self._schema = schema_of(first, file)
        there = [self._schema.field(name) for name in self._names if name in self._schema.names]
        return next((field for field in there if accepts(field)), None)

    def _values(self, field: pa.Field, number: int, ranks: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], pa.ChunkedArray]:
        """Return the ranks of a run that may be read, and their values."""
        parts = self._kept.pop((field.name, number), [])
        self._room += sum(values.nbytes for _, values in parts)
        self._asked.add((field.name, number))
        wanted, others = self._affordable(np.setdiff1d(ranks, np.concatenate([part for part, _ in parts]) if parts else []), field.name)
        others = others[[(field.name, run) not in self._asked for run in (others // self._run).tolist()]]
        if len(wanted):
            read = np.concatenate([wanted, others])
            places = Places(self._places.files, self._places.of[read], self._places.rows[read])
            stored = pa.schema([pa.field(field.name, plain_type(field.type))])
            values = read_columns_at(places, stored).column(0)
            parts += [(wanted, values.slice(0, len(wanted)))]
            self._keep(field.name, others, values.slice(len(wanted)))
        found = np.concatenate([part for part, _ in parts])
        order = np.argsort(found)
        chunks = [chunk for _, values in parts for chunk in (values.chunks if isinstance(values, pa.ChunkedArray) else [values])]
        return found[order], pa.chunked_array(chunks).take(pa.array(order))

    def _keep(self, column: str, ranks: npt.NDArray[np.int64], values: pa.ChunkedArray) -> None:
        """Keep the values of later runs, those of the nearest runs first, as far as there is room."""
        for run in np.unique(ranks // self._run).tolist():
            places = np.flatnonzero(ranks // self._run == run)
            part = values.take(pa.array(places)).combine_chunks()
            if part.nbytes > self._room:
                return
            self._room -= part.nbytes
            self._kept.setdefault((column, run), []).append((ranks[places], part))

    def _affordable(self, ranks: npt.NDArray[np.int64], column: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return those of some ranks whose row groups may be read, the first ones first, at least one; and which others lie in these."""
        of, rows = self._places.of, self._places.rows
        numbers = np.unique(of[ranks])
        footers = read_footers([self._places.files[number] for number in numbers.tolist()], [column]) if len(numbers) else []
        groups = np.full(len(of), -1)  # of all ranks in the files at hand; a row group has one number among those of these files
        sizes: list[int] = []
        for number, footer in zip(numbers.tolist(), footers, strict=True):
            starts = [0, *accumulate(group.rows for group in footer.row_groups)][:-1]
            here = of == number
            groups[here] = len(sizes) + np.searchsorted(starts, rows[here], "right") - 1
            sizes += [group.bytes for group in footer.row_groups]
        bought, spent = set[int](), 0
        for group in dict.fromkeys(groups[ranks].tolist()):
            if not bought or spent + sizes[group] <= _READ_BYTES:
                bought.add(group)
                spent += sizes[group]
        held = np.isin(groups, list(bought))
        mine = np.zeros(len(of), bool)
        mine[ranks] = True
        return np.flatnonzero(held & mine), np.flatnonzero(held & ~mine)

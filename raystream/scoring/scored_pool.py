"""Joins the units' outputs into one view of the pool, in row order: by path, then by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Protocol

import numpy as np
import pyarrow as pa

from raystream.pool import File, LabelledMarks, Places
from raystream.pool.ids import take_ids
from raystream.store.protocol import Store, StoredFile
from raystream.store.receipt_table import ReceiptTable
from raystream.store.receipts import EMBEDDINGS, PROBABILITIES, UnitOutputs
from raystream.store.unit_columns import ScoredUnits, check_same_model, read_columns
from raystream.store.vectors import Embeddings, VectorFiles
from raystream.threads import each

HELD_ROWS = 1 << 21
"""Up to so many rows, ids are held; of more, they are read again by whoever looks at all of them later."""
_THREADS = 8
"""That look at ids at a time, each at those of a unit."""
_FILES = 8
"""Of which a few rows are read at a time there, each by several requests."""
_UNLIMITED = 1 << 62
"""Bytes that may be held of what is held anyway."""


@dataclass(frozen=True)
class StoredIds:
    """The ids of units, read again each time that they are looked at: of many rows, they would take more memory than all else."""

    store: Store
    units: ScoredUnits
    name: str
    type: pa.DataType
    rows: int

    def __len__(self) -> int:
        return self.rows

    @property
    def chunks(self) -> Iterator[pa.Array]:
        """All of them in order, those of one unit at a time."""
        for table in read_columns(self.store, _filled(self.units), [self.name]):
            yield from table.column(0).chunks


@dataclass(frozen=True)
class ScoredPool:
    """Every scored row of the pool: what is read of it, and where the rest lies.

    `labelled` says which rows are, and `hashes` (n,) are those of the ids, where somebody asked for them while the ids came by.

    Row i belongs to unit `np.searchsorted(starts, i, "right") - 1`; `starts` has one entry a unit. `files` are the pool's, and `file_of`
    has the place among them of each unit's.
    """

    store: Store
    units: ScoredUnits
    files: tuple[File, ...]
    file_of: np.ndarray
    starts: np.ndarray
    ids: pa.ChunkedArray | StoredIds
    score: np.ndarray | None
    labelled: LabelledMarks | None = None
    hashes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def ids_at(self, rows: np.ndarray) -> pa.Array:
        """Read the ids of these rows of the pool, in the order asked for."""
        if isinstance(self.ids, StoredIds):
            return self.columns_at(rows, [self.ids.name]).column(0).combine_chunks()
        return take_ids(self.ids, rows)

    def columns_at(self, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Read further columns of the scores, for these rows of the pool, in the order asked for."""
        if not len(rows):
            unit = self.units[int(np.argmax(self.unit_rows > 0))]
            return next(read_columns(self.store, [unit], columns)).slice(0, 0)
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        units, first = np.unique(self.unit_of(ordered), return_index=True)
        pieces = []
        tables = read_columns(self.store, (self.units[unit] for unit in units), columns)
        for table, unit, low, high in zip(tables, units, first, [*first[1:], len(ordered)], strict=True):
            pieces.append(table.take(pa.array(ordered[low:high] - self.starts[unit])))
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return pa.concat_tables(pieces).take(pa.array(back))

    def with_output(self, table: ReceiptTable, score: str | None) -> ScoredPool:
        """Return the same rows with a further output of their units, and ranked by a column of it, unless it is None."""
        pool = replace(self, units=self.units.and_also(table))
        return pool if score is None else replace(pool, score=pool.column(score))

    @property
    def unit_rows(self) -> np.ndarray:
        """(m,) rows of each unit."""
        return np.diff(self.starts, append=len(self))

    def column(self, name: str) -> np.ndarray:
        """Read (n,) one score of all rows."""
        tables = read_columns(self.store, _filled(self.units), [name])
        return np.concatenate([np.empty(0, np.float32), *(table.column(0).to_numpy() for table in tables)])

    def places(self, rows: np.ndarray) -> Places:
        """Find the file of each of these rows, and its row in it."""
        files = {file.path: file for file in self.files}
        numbers = {path: number for number, path in enumerate(files)}
        of = np.array([numbers[file.path] for file in self.files], dtype=np.int32)[self.file_of]
        return Places(tuple(files.values()), of[self.unit_of(rows)], self.columns_at(rows, ["row"]).column("row").to_numpy())

    def place(self, row: int) -> str:
        """Say where a row of the pool stands, for messages."""
        unit = int(self.unit_of(np.array([row]))[0])
        file_row = self.columns_at(np.array([row]), ["row"]).column("row")[0].as_py()
        return f"{self.units[unit].unit} row {file_row}"

    def unit_of(self, rows: np.ndarray) -> np.ndarray:
        """Find the number of the unit that holds each row."""
        return np.searchsorted(self.starts, rows, "right") - 1

    @property
    def dimension(self) -> int:
        """The embeddings' width; 0 if there are none."""
        return next(
            (receipt.width or 0 for receipt in self.units.of_models() if receipt.kind == EMBEDDINGS and receipt.file is not None), 0
        )

    def holds(self, kind: str) -> bool:
        """Tell whether any unit has outputs of a kind."""
        return any(receipt.kind == kind and receipt.file is not None for receipt in self.units.of_models())

    def embeddings(self, rows: np.ndarray | None, memory: int = 0) -> tuple[list[Embeddings], list[np.ndarray | None]]:
        """Open the embeddings of these rows of the pool, given in ascending order; of all rows for None.

        Args:
            rows: int64.
            memory: bytes that may be held: where few rows of a file are wanted, these are read now, and not the rest.

        Returns:
            The parts that hold any of them, and for each part the positions in it (None: the whole part).
        """
        return self._vectors(EMBEDDINGS, rows, memory)

    def probabilities(self, rows: np.ndarray | None, memory: int = 0) -> tuple[list[Embeddings], list[np.ndarray | None]]:
        """Open the class probabilities, as `embeddings` opens embeddings."""
        return self._vectors(PROBABILITIES, rows, memory)

    def samples(self, kind: str, rows: np.ndarray | None) -> np.ndarray:
        """Read (m, k, c) float32 log-probabilities of that kind, for these rows in ascending order; of all rows for None."""
        classes = next(receipt.classes for receipt in self.units.of_models() if receipt.classes is not None)
        found = self._held(kind, rows)
        return found.astype(np.float32, copy=False).reshape(len(found), -1, classes)

    def embeddings_of(self, rows: np.ndarray) -> np.ndarray:
        """Read (m, d) stored embeddings of these rows of the pool, given in any order."""
        return self._vectors_of(EMBEDDINGS, rows)

    def probabilities_of(self, rows: np.ndarray) -> np.ndarray:
        """Read (m, c) stored class probabilities of these rows of the pool, given in any order."""
        return self._vectors_of(PROBABILITIES, rows)

    def _vectors(self, kind: str, rows: np.ndarray | None, memory: int) -> tuple[list[Embeddings], list[np.ndarray | None]]:
        """Open the vectors of a kind; see `embeddings`."""
        parts: list[Embeddings] = []
        positions: list[np.ndarray | None] = []
        vectors = VectorFiles(self.store)
        wanted = list(self._wanted(kind, rows))
        for (file, count, inside), held in zip(wanted, self._few(vectors, wanted, memory), strict=True):
            if held is not None:
                parts.append(held)
                positions.append(None)
                continue
            start = 0
            for part in vectors.parts(file, count):
                if inside is None:
                    parts.append(part)
                    positions.append(None)
                else:
                    low, high = np.searchsorted(inside, [start, start + part.rows])
                    if low < high:
                        parts.append(part)
                        positions.append(None if high - low == part.rows else inside[low:high] - start)
                start += part.rows
        return parts, positions

    def _wanted(self, kind: str, rows: np.ndarray | None) -> Iterator[tuple[StoredFile, int, np.ndarray | None]]:
        """Yield the files that hold any of these rows of the pool, how many rows each has, and which of them are wanted; None: all."""
        touched = range(len(self.units)) if rows is None else np.unique(self.unit_of(rows)).tolist()
        for index in touched:
            unit, start = self.units[index], self.starts[index]
            receipt = unit.of(kind)
            if receipt is None or receipt.file is None:
                continue
            inside: np.ndarray | None = None
            if rows is not None:
                low, high = np.searchsorted(rows, [start, start + unit.rows])
                if low == high:
                    continue
                inside = rows[low:high] - start
            kept = unit.kept.get(receipt.output)
            if kept is not None:  # some rows of the file are left out of other kinds
                inside = kept if inside is None else kept[inside]
            yield receipt.file, receipt.rows, inside

    def _few(
        self, vectors: VectorFiles, wanted: Sequence[tuple[StoredFile, int, np.ndarray | None]], memory: int
    ) -> list[Embeddings | None]:
        """Read of each file the wanted rows alone, where that is worth it, and all of them together fit the memory; else None."""
        size = sum(file.size * (count if inside is None else len(inside)) // max(count, 1) for file, count, inside in wanted)
        if size > memory:
            return [None] * len(wanted)

        def read(found: tuple[StoredFile, int, np.ndarray | None]) -> Embeddings | None:
            file, count, inside = found
            return None if inside is None else vectors.few(file, count, inside)

        with ThreadPoolExecutor(_FILES if self.store.remote else 1) as threads:
            return list(threads.map(read, wanted))

    def _held(self, kind: str, rows: np.ndarray | None) -> np.ndarray:
        """Read the vectors of these rows, in ascending order, as one array; (0, 0) where there are none."""
        pieces = []
        for part, inside in zip(*self._vectors(kind, rows, _UNLIMITED), strict=True):
            pieces.append(np.array(part.array if inside is None else part.array[inside]))
            part.release()
        return np.concatenate(pieces) if pieces else np.empty((0, 0), np.float16)

    def _vectors_of(self, kind: str, rows: np.ndarray) -> np.ndarray:
        order = np.argsort(rows, kind="stable")
        found = self._held(kind, rows[order])
        result = np.empty_like(found)
        result[order] = found
        return result


class Watch(Protocol):
    """Looks at ids as they come by, so that they needn't be read again."""

    def add(self, row: int, ids: pa.Array) -> None:
        """Take the ids of the rows from this one on; several threads may, in any order."""


def merge(
    store: Store,
    units: ScoredUnits,
    files: Sequence[File],
    file_of: np.ndarray,
    id_name: str,
    score: str | None,
    watch: Sequence[Watch] = (),
) -> ScoredPool:
    """Read the ids and one score of all units, once, several units at a time.

    Args:
        store: holds the units.
        units: in row order.
        files: of the pool.
        file_of: (m,) the place among these of each unit's.
        id_name: the id column.
        score: the score column that ranks; None if the choice needs none.
        watch: what is told of all ids.

    Raises:
        ModelError: workers ran different models, or the model's outputs differ in shape.
    """
    check_same_model(units)
    counts = units.rows
    starts = np.cumsum(counts) - counts
    rows = int(counts.sum())
    held = rows <= HELD_ROWS
    of_ids = [id_name] if held or watch else []
    wanted = [*of_ids, *([] if score is None else [score])]
    scores = np.empty(rows, np.float32) if score else None

    def see(unit: tuple[int, pa.Table]) -> list[pa.Array]:
        row, table = unit
        if scores is not None:
            scores[row : row + table.num_rows] = table.column(len(of_ids)).to_numpy()
        chunks = table.column(0).chunks if of_ids else []
        for chunk in chunks:
            for one in watch:
                one.add(row, chunk)
            row += len(chunk)
        return chunks if held else []

    tables = read_columns(store, _filled(units), wanted) if wanted else ()
    found = each(zip(starts[counts > 0].tolist(), tables, strict=False), lambda: see, most=_THREADS)
    if held:
        chunks = list(chain.from_iterable(found))
        ids = pa.chunked_array(chunks) if chunks else pa.chunked_array([pa.array([], pa.string())])
    else:
        first = next(read_columns(store, islice(_filled(units), 1), [id_name]))
        ids = StoredIds(store, units, id_name, first.column(0).type, rows)
    return ScoredPool(store, units, tuple(files), file_of, starts, ids, scores)


def holds_column(units: ScoredUnits, name: str) -> bool:
    """Tell whether a table of any unit has a column: scores of several opinions are there only where the model gave these."""
    return any(name in receipt.columns for receipt in units.of_models())


def _filled(units: ScoredUnits) -> Iterator[UnitOutputs]:
    """Yield the units that have rows."""
    return (units[index] for index in np.flatnonzero(units.rows).tolist())


def unit_vectors(store: Store, units: Sequence[UnitOutputs], kind: str) -> list[np.ndarray]:
    """Read all vectors of a kind, (n, d) for each unit that has some, in the order of the units."""
    files, found = VectorFiles(store), []
    for unit in units:
        receipt = unit.of(kind)
        if receipt is not None and receipt.file is not None:
            found.append(files.at(receipt.file, receipt.rows, unit.kept.get(receipt.output)))
    return found

"""Joins the units' scores into one view of the pool, in row order: by path, then by row."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raystream.engine.damage import check_file, reading
from raystream.engine.embeddings import Embeddings, VectorFiles
from raystream.engine.receipt import Receipt
from raystream.engine.store import LocalStore, StoredFile
from raystream.engine.stores import Store
from raystream.errors import ModelError
from raystream.pool.ids import take_ids

_REQUESTS = 16
"""At a time, to an object store."""
_FILES = 8
"""Of which a few rows are read at a time there, each by several requests."""
_UNLIMITED = 1 << 62
"""Bytes that may be held of what is held anyway."""


@dataclass(frozen=True)
class ScoredPool:
    """Every scored row of the pool: what is read of it, and where the rest lies.

    `further` are the receipts of the units' EPIG, if there is any, None for units without rows.
    Row i belongs to unit `np.searchsorted(starts, i, "right") - 1`; `starts` has one entry a unit.
    """

    store: Store
    receipts: tuple[Receipt, ...]
    starts: np.ndarray
    ids: pa.ChunkedArray
    score: np.ndarray | None
    further: tuple[Receipt | None, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def ids_at(self, rows: np.ndarray) -> pa.Array:
        """The ids of these rows of the pool, in the order asked for."""
        return take_ids(self.ids, rows)

    def columns_at(self, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Further columns of the scores, for these rows of the pool, in the order asked for."""
        if not len(rows):
            unit = next((i for i, receipt in enumerate(self.receipts) if receipt.rows), 0)
            return next(self._tables([unit], columns)).slice(0, 0)
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        units, first = np.unique(self.unit_of(ordered), return_index=True)
        pieces = []
        tables = self._tables(units.tolist(), columns)
        for table, unit, low, high in zip(tables, units, first, [*first[1:], len(ordered)], strict=True):
            pieces.append(table.take(pa.array(ordered[low:high] - self.starts[unit])))
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return pa.concat_tables(pieces).take(pa.array(back))

    def _tables(self, units: Sequence[int], columns: Sequence[str]) -> Iterator[pa.Table]:
        """Columns of all rows of these units, one after the other."""
        receipts = [self.receipts[unit] for unit in units]
        further = [self.further[unit] for unit in units] if self.further and "epig" in columns else []
        if not all(further) or not further:
            yield from read_all(self.store, receipts, columns)
            return
        tables = read_all(self.store, receipts, [name for name in columns if name != "epig"])
        scores = read_all(self.store, [receipt for receipt in further if receipt is not None], ["epig"])
        for table, score in zip(tables, scores, strict=True):
            yield table.append_column("epig", score.column(0))

    def further_column(self, name: str) -> np.ndarray:
        """(n,) a score of all rows that came after the others."""
        tables = read_all(self.store, [receipt for receipt in self.further if receipt is not None], [name])
        return np.concatenate([table.column(0).to_numpy() for table in tables])

    def place(self, row: int) -> str:
        """Where a row of the pool stands, for messages."""
        unit = int(self.unit_of(np.array([row]))[0])
        file_row = self.columns_at(np.array([row]), ["row"]).column("row")[0].as_py()
        return f"{self.receipts[unit].unit} row {file_row}"

    def unit_of(self, rows: np.ndarray) -> np.ndarray:
        """The number of the unit that holds each row."""
        return np.searchsorted(self.starts, rows, "right") - 1

    @property
    def dimension(self) -> int:
        """The embeddings' width; 0 if there are none."""
        return next((receipt.dimension or 0 for receipt in self.receipts if receipt.embeddings is not None), 0)

    def embeddings(self, rows: np.ndarray | None, memory: int = 0) -> tuple[list[Embeddings], list[np.ndarray | None]]:
        """The embeddings of these rows of the pool, given in ascending order; of all rows for None.

        Args:
            rows: int64.
            memory: bytes that may be held: where few rows of a file are wanted, these are read now, and not the rest.

        Returns:
            The parts that hold any of them, and for each part the positions in it (None: the whole part).
        """
        return self._vectors([receipt.embeddings for receipt in self.receipts], rows, memory)

    def probabilities(self, rows: np.ndarray | None, memory: int = 0) -> tuple[list[Embeddings], list[np.ndarray | None]]:
        """The class probabilities, as `embeddings` gives embeddings."""
        return self._vectors([receipt.probabilities for receipt in self.receipts], rows, memory)

    def samples(self, rows: np.ndarray | None) -> np.ndarray:
        """(m, k, c) float32 log-probabilities of the members, for these rows in ascending order; of all rows for None."""
        members = next(receipt.members for receipt in self.receipts if receipt.members is not None)
        found = self._held([receipt.samples for receipt in self.receipts], rows)
        return found.astype(np.float32, copy=False).reshape(len(found), members, -1)

    def embeddings_of(self, rows: np.ndarray) -> np.ndarray:
        """(m, d) stored embeddings of these rows of the pool, given in any order."""
        return self._vectors_of([receipt.embeddings for receipt in self.receipts], rows)

    def probabilities_of(self, rows: np.ndarray) -> np.ndarray:
        """(m, c) stored class probabilities of these rows of the pool, given in any order."""
        return self._vectors_of([receipt.probabilities for receipt in self.receipts], rows)

    def _vectors(
        self, files: Sequence[StoredFile | None], rows: np.ndarray | None, memory: int
    ) -> tuple[list[Embeddings], list[np.ndarray | None]]:
        """The vectors in these files, one for each unit; see `embeddings`."""
        parts: list[Embeddings] = []
        positions: list[np.ndarray | None] = []
        vectors = VectorFiles(self.store)
        wanted = list(self._wanted(files, rows))
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

    def _wanted(
        self, files: Sequence[StoredFile | None], rows: np.ndarray | None
    ) -> Iterator[tuple[StoredFile, int, np.ndarray | None]]:
        """The files that hold any of these rows of the pool, how many rows each has, and which of them are wanted; None: all."""
        for receipt, file, start in zip(self.receipts, files, self.starts, strict=True):
            if file is None:
                continue
            if rows is None:
                yield file, receipt.rows, None
                continue
            low, high = np.searchsorted(rows, [start, start + receipt.rows])
            if low < high:
                yield file, receipt.rows, rows[low:high] - start

    def _few(
        self, vectors: VectorFiles, wanted: Sequence[tuple[StoredFile, int, np.ndarray | None]], memory: int
    ) -> list[Embeddings | None]:
        """Of each file the wanted rows alone, where that is worth it, and all of them together fit the memory; else None."""
        size = sum(file.size * (count if inside is None else len(inside)) // max(count, 1) for file, count, inside in wanted)
        if size > memory:
            return [None] * len(wanted)

        def read(found: tuple[StoredFile, int, np.ndarray | None]) -> Embeddings | None:
            file, count, inside = found
            return None if inside is None else vectors.few(file, count, inside)

        with ThreadPoolExecutor(_FILES if self.store.remote else 1) as threads:
            return list(threads.map(read, wanted))

    def _held(self, files: Sequence[StoredFile | None], rows: np.ndarray | None) -> np.ndarray:
        """The vectors of these rows, in ascending order, as one array; (0, 0) where there are none."""
        pieces = []
        for part, inside in zip(*self._vectors(files, rows, _UNLIMITED), strict=True):
            pieces.append(np.array(part.array if inside is None else part.array[inside]))
            part.release()
        return np.concatenate(pieces) if pieces else np.empty((0, 0), np.float16)

    def _vectors_of(self, files: Sequence[StoredFile | None], rows: np.ndarray) -> np.ndarray:
        order = np.argsort(rows, kind="stable")
        found = self._held(files, rows[order])
        result = np.empty_like(found)
        result[order] = found
        return result


def merge(store: Store, receipts: Sequence[Receipt], id_name: str, score: str | None) -> ScoredPool:
    """Read the ids and one score of all units.

    Args:
        store: holds the units.
        receipts: of the units in row order.
        id_name: the id column.
        score: the score column that ranks; None if the choice needs none.

    Raises:
        ModelError: workers ran different models, or the model's outputs differ in shape.
    """
    check_same_model(receipts)
    counts = np.array([receipt.rows for receipt in receipts], dtype=np.int64)
    starts = np.cumsum(counts) - counts
    wanted = [id_name] + ([score] if score else [])
    chunks: list[pa.Array] = []
    scores = np.empty(int(counts.sum()), np.float32) if score else None
    filled = [(receipt, start) for receipt, start in zip(receipts, starts, strict=True) if receipt.rows]
    tables = read_all(store, [receipt for receipt, _ in filled], wanted)
    for table, (receipt, start) in zip(tables, filled, strict=True):
        chunks += table.column(0).chunks
        if scores is not None:
            scores[start : start + receipt.rows] = table.column(1).to_numpy()
    ids = pa.chunked_array(chunks) if chunks else pa.chunked_array([pa.array([], pa.string())])
    return ScoredPool(store, tuple(receipts), starts, ids, scores)


def check_same_model(receipts: Sequence[Receipt]) -> None:
    """Refuse units that different models scored, or one model with outputs of different shapes."""
    for what, values in (
        ("the model's state", {r.unit: r.state_hash for r in receipts}),
        ("the embedding's width", {r.unit: r.dimension for r in receipts if r.embeddings is not None}),
        ("the number of classes", {r.unit: r.classes for r in receipts if r.classes is not None}),
    ):
        if len(set(values.values())) > 1:
            first = next(iter(values))
            other = next(unit for unit, value in values.items() if value != values[first])
            raise ModelError(
                f"{what} differs between units {first} and {other}: the factory does not build the same model every time; "
                "make it deterministic or give model.weights"
            )


def read_all(store: Store, receipts: Sequence[Receipt], columns: Sequence[str]) -> Iterator[pa.Table]:
    """These columns of the units' scores, one table after the other; read ahead where each request takes its time."""
    if not store.remote:
        yield from (_read(store, receipt, columns) for receipt in receipts)
        return
    with ThreadPoolExecutor(_REQUESTS) as threads:
        ahead: deque[Future[pa.Table]] = deque()
        for receipt in receipts:
            if len(ahead) == _REQUESTS:  # what nobody has taken yet is in memory
                yield ahead.popleft().result()
            ahead.append(threads.submit(_read, store, receipt, columns))
        while ahead:
            yield ahead.popleft().result()


def _read(store: Store, receipt: Receipt, columns: Sequence[str]) -> pa.Table:
    if isinstance(store, LocalStore):
        check_file(store.path(receipt.scores.name), receipt.scores)
    with reading(store, receipt.scores):
        # `read_table` would import pandas, where that is installed: a quarter of a second of every query.
        return pq.ParquetFile(store.source(receipt.scores), pre_buffer=False).read(list(columns)).select(list(columns))

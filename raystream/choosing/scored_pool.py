"""Joins the units' scores into one view of the pool, in row order: by path, then by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from raystream.errors import ModelError, PoolError
from raystream.model import check_classes
from raystream.pool import check_unique
from raystream.pool.ids import take_ids
from raystream.query import MEMBER_SCORES
from raystream.scoring.plan import Prepared
from raystream.scoring.session import Session
from raystream.store.protocol import Store, StoredFile
from raystream.store.receipts import Receipt, check_same_model
from raystream.store.unit_columns import read_all
from raystream.store.vectors import Embeddings, VectorFiles

if TYPE_CHECKING:
    pass

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








def scored_pool(prepared: Prepared, receipts: Sequence[Receipt], session: Session) -> ScoredPool:
    """The merged pool, once it is known to be sound: rows to choose from, unique ids, outputs of one shape."""
    query = prepared.query
    if not receipts:
        reason = f": {session.warnings[0]}" if session.warnings else ""
        raise PoolError(f"no unit of {', '.join(query.pool.uris)} could be scored{reason}")
    lacking = next((receipt.unit for receipt in receipts if receipt.rows and receipt.members is None), None)
    asked = [score for score in query.acquire.asked if score in (*MEMBER_SCORES, "epig")]
    if lacking and (asked or query.select.traits.samples):
        raise ModelError(
            f"{asked[0] if asked else query.select.strategy} compares several opinions of a row, but the model gave one in unit {lacking}; "
            "use a committee, such as a forest, or MC dropout"
        )
    stored = query.needs_score and query.acquire.score != "epig"
    pool = merge(prepared.store, receipts, query.pool.id or "id", query.acquire.column if stored else None)
    _check(prepared, pool)
    _check_calibrated(prepared, pool)
    return pool



def flat_scores(prepared: Prepared, pool: ScoredPool) -> list[str]:
    """A warning where the score ranks nothing."""
    query = prepared.query
    if not query.needs_score or pool.score is None or len(pool) < 2:
        return []
    least, most = float(pool.score.min()), float(pool.score.max())
    if least < most:
        return []
    return [f"all {len(pool):,} rows have the same {query.acquire.score}, {least:.4g}, so it ranks nothing; look at the model's outputs"]



def _check(prepared: Prepared, pool: ScoredPool) -> None:
    if not len(pool):
        reasons = [reason for receipt in pool.receipts for reason in receipt.quarantine_reasons]
        first = f"; the first of the rows left out: {reasons[0]}" if reasons else ""
        raise PoolError(f"no row of {', '.join(prepared.query.pool.uris)} is left to choose from after pool.filters and on_error{first}")
    check_unique(pool.ids, prepared.query.pool.id or "id", pool.place)
    classes = next((receipt.classes for receipt in pool.receipts if receipt.classes is not None), None)
    if prepared.classes is not None and classes is not None:
        check_classes(prepared.classes, classes)
    if prepared.query.needs_embedding and not any(receipt.embeddings for receipt in pool.receipts):
        raise ModelError("the model gave no embedding; name the module in model.embedding")



def _check_calibrated(prepared: Prepared, pool: ScoredPool) -> None:
    """Refuse a temperature of another model than the one that scored the pool."""
    calibration = prepared.calibration
    if calibration is not None and any(receipt.state_hash != calibration.state_hash for receipt in pool.receipts):
        raise ModelError(
            "the model that scored the pool isn't the one that model.temperature was fitted with: the factory does not build the same "
            "model every time; make it deterministic or give model.weights"
        )

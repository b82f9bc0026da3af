"""Stored embeddings as arrays: mapped from the store when looked at, let go of afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from raystream.engine.damage import check_file, check_files, damaged, reading
from raystream.engine.pages import read_vectors
from raystream.engine.store import LocalStore, StoredFile
from raystream.engine.stores import Store
from raystream.errors import StoreError

EMBEDDING_BLOCK_BYTES = 8 << 20
"""Embeddings that are written at once; a block is one piece of the memory map that selection reads."""
_HEAD_BYTES = 1 << 16
"""More than the schema of a file of embeddings takes."""
_FETCHED_AT_A_TIME = 4


class Embeddings(Protocol):
    """A run of embeddings (n, d) in a file of a store."""

    @property
    def rows(self) -> int:
        """n."""

    @property
    def dimension(self) -> int:
        """d."""

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, dimension), for which nothing is read."""

    @property
    def array(self) -> np.ndarray:
        """The embeddings, (rows, dimension) of float16 or float32; writing to them changes nothing in the store."""

    def release(self) -> None:
        """Unmap the file, once nobody else holds `array`."""


@dataclass
class MappedEmbeddings:
    """A run of embeddings (n, d) in a file of the store.

    The file is open only between a look at `array` and `release`: a pool has more units than a process may have
    open files, and mapped pages count as this process's memory. `written` is what the file must be when it is looked at; None: whatever.
    """

    path: Path
    offset: int
    rows: int
    dimension: int
    dtype: str
    written: StoredFile | None = None
    _array: np.ndarray | None = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.dimension

    @property
    def array(self) -> np.ndarray:
        """The embeddings, (rows, dimension) of `dtype`; writing to them changes nothing on disk."""
        if self._array is None:
            if self.written is not None:
                check_file(self.path, self.written)
            self._array = np.memmap(self.path, self.dtype, mode="c", offset=self.offset, shape=(self.rows, self.dimension))
        return self._array

    def __getstate__(self) -> dict[str, object]:
        """Where the embeddings are, not the embeddings: another process maps the file for itself."""
        return self.__dict__ | {"_array": None}

    def release(self) -> None:
        """Unmap the file, once nobody else holds `array`."""
        self._array = None


def map_embeddings(path: Path, written: StoredFile | None = None) -> list[MappedEmbeddings]:
    """The embeddings in an Arrow file that a worker wrote, a part for each of its record batches, in row order."""
    parts: list[MappedEmbeddings] = []
    with pa.memory_map(str(path)) as file:
        whole = file.read_buffer()
        with pa.ipc.open_file(whole) as reader:
            for index in range(reader.num_record_batches):
                column = reader.get_batch(index).column(0)
                if not len(column):
                    continue  # it holds the hashes of pages
                values = column.values
                offset = values.buffers()[1].address - whole.address
                dtype = np.dtype(values.type.to_pandas_dtype()).name
                parts.append(MappedEmbeddings(path, offset, len(column), column.type.list_size, dtype, written))
    return parts


@dataclass
class FetchedEmbeddings:
    """A run of embeddings in a file of an object store, which is copied to this machine when it is first looked at.

    Whoever only passes them on, to selection actors on other machines, moves none.
    """

    store: Store
    file: StoredFile
    batch: int
    rows: int
    dimension: int
    _mapped: MappedEmbeddings | None = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.dimension

    @property
    def array(self) -> np.ndarray:
        """The embeddings, (rows, dimension); writing to them changes nothing in the store."""
        if self._mapped is None:
            path = self.store.local(self.file)
            here = _mapped_once(path)
            if self.batch >= len(here) or here[self.batch].shape != self.shape:
                raise StoreError(f"store: {self.store.place(self.file.name)} has other blocks than this version writes; remove it")
            self._mapped = replace(here[self.batch])
        return self._mapped.array

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_mapped": None}

    def release(self) -> None:
        """Unmap the file, once nobody else holds `array`."""
        self._mapped = None


@dataclass(frozen=True)
class HeldEmbeddings:
    """Embeddings of a few rows that were read into memory, (rows, dimension)."""

    array: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.array)

    @property
    def dimension(self) -> int:
        return int(self.array.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.dimension

    def release(self) -> None:
        """Nothing to drop."""


@lru_cache(maxsize=1 << 14)
def _mapped_once(path: Path) -> tuple[MappedEmbeddings, ...]:
    """The parts of a copy; a name stands for its content, so they stay true when it is brought again."""
    return tuple(map_embeddings(path))


class VectorFiles:
    """Files of one column of vectors in a store, all of one width and dtype.

    Args:
        store: holds them.
        checked: whether files in a folder are hashed before they are looked at.
    """

    def __init__(self, store: Store, *, checked: bool = True) -> None:
        self._store, self._checked = store, checked
        self._type: pa.FixedSizeListType | None = None

    def parts(self, file: StoredFile, rows: int) -> list[Embeddings]:
        """The embeddings in a file of so many rows, a part for each block that was written, in row order.

        Of an object store, nothing is read but the first file's schema: which blocks there are follows from it.

        Raises:
            StoreError: the file isn't one of so many rows.
        """
        if isinstance(self._store, LocalStore):
            with reading(self._store, file):
                parts = map_embeddings(self._store.local(file), file if self._checked else None)
            if sum(part.rows for part in parts) != rows:
                raise damaged(self._store.place(file.name))
            return list(parts)
        if self._type is None:
            # Arrow's file format is its stream behind eight bytes.
            head = self._store.head(file, _HEAD_BYTES)
            with reading(self._store, file):
                self._type = pa.ipc.read_schema(pa.BufferReader(head[8:])).field(0).type
        width = self._type.list_size
        block = block_rows(width, np.dtype(self._type.value_type.to_pandas_dtype()).itemsize)
        starts = range(0, rows, block)
        return [FetchedEmbeddings(self._store, file, i, min(block, rows - start), width) for i, start in enumerate(starts)]


    def few(self, file: StoredFile, rows: int, wanted: np.ndarray) -> HeldEmbeddings | None:
        """The embeddings of some rows of a file, int64, ascending; None where it is better read whole.

        Raises:
            StoreError: the file can't be read, or isn't what was written where these rows are.
        """
        found = read_vectors(self._store, file, rows, wanted, block_rows)
        return None if found is None else HeldEmbeddings(found)


def block_rows(dimension: int, itemsize: int) -> int:
    """Rows of one block of a file of vectors."""
    return max(1, EMBEDDING_BLOCK_BYTES // (dimension * itemsize))


def fetch(parts: Sequence[Embeddings]) -> None:
    """Copy what lies in an object store to this machine, and hash what lies in a folder: it is about to be looked at.

    Raises:
        StoreError: a file isn't what was written.
    """
    check_files({part.path: part.written for part in parts if isinstance(part, MappedEmbeddings) and part.written}.items())
    files = {(part.file.name): part for part in parts if isinstance(part, FetchedEmbeddings)}
    if files:
        with ThreadPoolExecutor(_FETCHED_AT_A_TIME) as threads:
            list(threads.map(lambda part: part.store.local(part.file), files.values()))

"""Stored vectors as arrays: embeddings, probabilities and samples, mapped from the store when looked at and let go of afterwards.

A file of vectors is an Arrow file whose blocks are cut into pages of whole rows, about 4 KiB each. The hashes of all pages are the
metadata of an empty block at its end, which other readers of Arrow pass over: so a few rows are read and checked without the rest.
"""

from __future__ import annotations

import base64
import mmap
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import xxhash

from raystream.errors import StoreError
from raystream.lake.ranges import RangeReader
from raystream.store.integrity import check_file, check_files, damaged, reading
from raystream.store.local import LocalStore
from raystream.store.protocol import Store, StoredFile

PAGE_BYTES = 1 << 12
KEY = "raystream.pages"
_HASH_BYTES = 8
_TAIL_BYTES = 1 << 16
"""More than the end of most files takes, in which it says where its blocks are."""
_WHOLE_BYTES = 1 << 20
"""Files up to this size are read whole: where a request takes its time, they are there as fast."""
_REMOTE_GAP = 1 << 18
"""Bytes between two pages that are read along in object storage, where another request takes longer."""
_REQUESTS = 4
"""For one file; several files are read at a time."""
_BLOCK = np.dtype([("offset", "<i8"), ("head", "<i4"), ("padding", "<i4"), ("body", "<i8")])
"""A record batch in the footer of an Arrow file."""


def page_rows(row_bytes: int) -> int:
    """Return how many rows a page has."""
    return max(1, PAGE_BYTES // row_bytes)


def page_hashes(vectors: np.ndarray) -> bytes:
    """Hash the pages of a block of vectors (n, d), which lie in one piece."""
    content = vectors.data.cast("B")
    size = page_rows(vectors.shape[1] * vectors.itemsize) * vectors.shape[1] * vectors.itemsize
    return b"".join(xxhash.xxh3_64_digest(content[start : start + size]) for start in range(0, len(content), size))


def as_metadata(hashes: bytes) -> dict[str, bytes]:
    """Make the metadata that the empty block at the end of a file is written with."""
    return {KEY: base64.b64encode(hashes)}


@dataclass(frozen=True)
class Pages:
    """Where the vectors of a file are.

    Attributes:
        offsets: (b,) of each block's first byte in the file.
        block_rows: of every block but the last.
        width: of a vector.
        dtype: of a number.
        hashes: (p, 8) uint8, of all pages in order.
    """

    offsets: np.ndarray
    block_rows: int
    width: int
    dtype: np.dtype
    hashes: np.ndarray


def read_vectors(store: Store, file: StoredFile, rows: int, wanted: np.ndarray) -> np.ndarray | None:
    """Read the vectors (m, d) of some rows of a file; None where it is better read whole, as when most of it is wanted.

    Args:
        store: holds it.
        file: as its receipt names it.
        rows: how many it holds.
        wanted: (m,) int64 rows, ascending.

    Raises:
        StoreError: the file can't be read, or a page isn't what was written.
    """
    if file.size <= _WHOLE_BYTES or not len(wanted):
        return None
    pages = _read_pages(store, file, rows)
    if pages is None:
        return None
    row_bytes = pages.width * pages.dtype.itemsize
    size = page_rows(row_bytes)
    in_block = -(-pages.block_rows // size)
    block, row = np.divmod(wanted, pages.block_rows)
    page = block * in_block + row // size  # ascending, as the rows are
    needed = np.unique(page)
    first = needed // in_block * pages.block_rows + needed % in_block * size
    count = np.minimum(size, np.minimum((needed // in_block + 1) * pages.block_rows, rows) - first)
    begin = pages.offsets[needed // in_block] + needed % in_block * size * row_bytes
    end = begin + count * row_bytes
    gap = _REMOTE_GAP if store.remote else 0
    cuts = np.flatnonzero(begin[1:] - end[:-1] > gap) + 1
    if 2 * int((end[np.append(cuts - 1, len(needed) - 1)] - begin[np.append(0, cuts)]).sum()) > file.size:
        return None
    blocks = np.flatnonzero(np.diff(needed // in_block)) + 1
    if not store.remote:  # mapped, so that what lies between two pages costs nothing
        cuts = blocks
    runs = list(zip([0, *cuts.tolist()], [*cuts.tolist(), len(needed)], strict=True))
    found = np.empty((len(wanted), pages.width), pages.dtype)
    edges = np.searchsorted(page, np.append(needed, needed[-1] + 1)).tolist()
    starts, ends, hashes = begin.tolist(), end.tolist(), pages.hashes[needed].tobytes()
    read = _range_reader(store, file)

    def take(run: tuple[int, int]) -> None:
        low, high = run
        start, stop = starts[low], ends[high - 1]
        content = memoryview(read(start, stop - start))
        if len(content) != stop - start:
            raise damaged(store.place(file.name))
        for i in range(low, high):
            held = content[starts[i] - start : ends[i] - start]
            if xxhash.xxh3_64_digest(held) != hashes[_HASH_BYTES * i : _HASH_BYTES * (i + 1)]:
                raise damaged(store.place(file.name))
        inside = blocks[slice(*np.searchsorted(blocks, [low + 1, high]))].tolist()
        for some, others in zip([low, *inside], [*inside, high], strict=True):  # of one block each, whose rows lie side by side
            here = slice(edges[some], edges[others])
            numbers = np.frombuffer(content[starts[some] - start : ends[others - 1] - start], pages.dtype)
            found[here] = numbers.reshape(-1, pages.width)[wanted[here] - first[some]]

    if store.remote:
        with ThreadPoolExecutor(_REQUESTS) as threads:
            list(threads.map(take, runs))
    else:
        for run in runs:
            take(run)
    return found


def _range_reader(store: Store, file: StoredFile) -> Callable[[int, int], bytes | memoryview]:
    """Return what reads some bytes of a file, given where they start and how many they are; a file in a folder is opened once for all."""
    if not isinstance(store, LocalStore):
        return lambda start, length: store.range(file, start, length)
    with reading(store, file), store.path(file.name).open("rb") as content:
        mapped = mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_RANDOM)  # or a disk would read thirty pages for each that is looked at
    view = memoryview(mapped)
    return lambda start, length: view[start : start + length]


def _read_pages(store: Store, file: StoredFile, rows: int) -> Pages | None:
    """Read how a file is laid out, from its end; None where it has no hashes of pages."""
    with reading(store, file):
        tail = store.range(file, file.size - min(file.size, _TAIL_BYTES), min(file.size, _TAIL_BYTES))
        blocks = _blocks(tail)
        start = int(blocks["offset"][-1]) if len(blocks) else file.size
        if start < file.size - len(tail):
            tail = store.range(file, start, file.size - start)
        begins = file.size - len(tail)

        def fetch(at: int, length: int) -> bytes:
            return tail[at - begins : at - begins + length] if at >= begins else store.range(file, at, length)

        with pa.ipc.open_file(pa.PythonFile(RangeReader(fetch, file.size), "r")) as reader:
            last, metadata = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
            kind = reader.schema.field(0).type
        if last.num_rows or metadata is None or KEY.encode() not in metadata:
            return None
        width, dtype = kind.list_size, np.dtype(kind.value_type.to_pandas_dtype())
        in_block = block_rows(width, dtype.itemsize)
        size = page_rows(width * dtype.itemsize)
        full, rest = divmod(rows, in_block)
        count = full * -(-in_block // size) + -(-rest // size)
        hashes = np.frombuffer(base64.b64decode(metadata[KEY.encode()], validate=True), np.uint8).reshape(-1, _HASH_BYTES)
        offsets = (blocks["offset"] + blocks["head"])[:-1]
        if len(hashes) != count or len(offsets) != full + (rest > 0):
            raise damaged(store.place(file.name))
        return Pages(offsets, in_block, width, dtype, hashes)


def _blocks(tail: bytes) -> np.ndarray:
    """List the record batches that the footer at the end of an Arrow file lists.

    Raises:
        ValueError: there is no such footer.
    """
    try:
        return _listed(tail)
    except struct.error as error:
        raise ValueError(str(error)) from None


def _listed(tail: bytes) -> np.ndarray:
    # the footer is a table of flatbuffers, and its field 3 a vector of these structures
    (length,) = struct.unpack_from("<i", tail, len(tail) - 10)
    if not 0 < length <= len(tail) - 10:
        raise ValueError("no footer, or one of more blocks than a file has")
    footer = tail[len(tail) - 10 - length : len(tail) - 10]
    (table,) = struct.unpack_from("<I", footer, 0)
    (back,) = struct.unpack_from("<i", footer, table)
    fields = table - back
    (size,) = struct.unpack_from("<H", footer, fields)
    field = struct.unpack_from("<H", footer, fields + 4 + 2 * 3)[0] if size >= 4 + 2 * 4 else 0
    if not field:
        return np.empty(0, _BLOCK)
    at = table + field
    vector = at + struct.unpack_from("<I", footer, at)[0]
    (count,) = struct.unpack_from("<I", footer, vector)
    return np.frombuffer(footer, _BLOCK, count, vector + 4)


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
        """Pickle where the embeddings are, not the embeddings: another process maps the file for itself."""
        return self.__dict__ | {"_array": None}

    def release(self) -> None:
        """Unmap the file, once nobody else holds `array`."""
        self._array = None


def map_embeddings(path: Path, written: StoredFile | None = None) -> list[MappedEmbeddings]:
    """Map the embeddings in an Arrow file that a worker wrote, a part for each of its record batches, in row order."""
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
        """Do nothing: there is nothing to drop."""


@lru_cache(maxsize=1 << 14)
def _mapped_once(path: Path) -> tuple[MappedEmbeddings, ...]:
    """Map the parts of a copy; a name stands for its content, so they stay true when it is brought again."""
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
        """Open the embeddings in a file of so many rows, a part for each block that was written, in row order.

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
        """Read the embeddings of some rows of a file, int64, ascending; None where it is better read whole.

        Raises:
            StoreError: the file can't be read, or isn't what was written where these rows are.
        """
        found = read_vectors(self._store, file, rows, wanted)
        return None if found is None else HeldEmbeddings(found)

    def at(self, file: StoredFile, count: int, rows: np.ndarray | None = None) -> np.ndarray:
        """Read (m, d) the vectors of some rows of a file, int64, ascending, into memory of their own; of all for None.

        Raises:
            StoreError: see `parts` and `few`.
        """
        held = None if rows is None else self.few(file, count, rows)
        return held.array if held is not None else taken(self.parts(file, count), np.arange(count) if rows is None else rows)


def taken(parts: Sequence[Embeddings], rows: np.ndarray) -> np.ndarray:
    """Take (m, d) the vectors of ascending rows of the parts of a file, in memory of their own; (0, d) where there are none."""
    found, start = [], 0
    for part in parts:
        low, high = np.searchsorted(rows, [start, start + part.rows])
        if low < high:
            found.append(np.array(part.array[rows[low:high] - start]))
            part.release()
        start += part.rows
    return np.concatenate(found) if found else np.empty((0, parts[0].dimension if parts else 0), np.float16)


def block_rows(dimension: int, itemsize: int) -> int:
    """Return how many rows one block of a file of vectors has."""
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

"""Vectors of a few rows of a file, read and checked without the rest of it.

A file of vectors is an Arrow file whose blocks are cut into pages of whole rows, about 4 KiB each. The hashes of all pages are the
metadata of an empty block at its end, which other readers of Arrow pass over.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import xxhash

from raystream.engine.bucket_files import RangeReader
from raystream.engine.damage import damaged, reading
from raystream.engine.store import StoredFile
from raystream.engine.stores import Store

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
    """Rows of a page."""
    return max(1, PAGE_BYTES // row_bytes)


def page_hashes(vectors: np.ndarray) -> bytes:
    """The hashes of the pages of a block of vectors (n, d), which lie in one piece."""
    content = vectors.data.cast("B")
    size = page_rows(vectors.shape[1] * vectors.itemsize) * vectors.shape[1] * vectors.itemsize
    return b"".join(xxhash.xxh3_64_digest(content[start : start + size]) for start in range(0, len(content), size))


def as_metadata(hashes: bytes) -> dict[str, bytes]:
    """What the empty block at the end of a file is written with."""
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


def read_vectors(store: Store, file: StoredFile, rows: int, wanted: np.ndarray, block_rows: Callable[[int, int], int]) -> np.ndarray | None:
    """The vectors (m, d) of some rows of a file; None where it is better read whole, as when most of it is wanted.

    Args:
        store: holds it.
        file: as its receipt names it.
        rows: how many it holds.
        wanted: (m,) int64 rows, ascending.
        block_rows: of a block of vectors, by their width and the bytes of a number.

    Raises:
        StoreError: the file can't be read, or a page isn't what was written.
    """
    if file.size <= _WHOLE_BYTES or not len(wanted):
        return None
    pages = _read_pages(store, file, rows, block_rows)
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
    runs = list(zip(np.concatenate([[0], cuts]).tolist(), np.concatenate([cuts, [len(needed)]]).tolist(), strict=True))
    if 2 * sum(int(end[high - 1] - begin[low]) for low, high in runs) > file.size:
        return None
    found = np.empty((len(wanted), pages.width), pages.dtype)
    edges = np.searchsorted(page, np.append(needed, needed[-1] + 1))

    def take(run: tuple[int, int]) -> None:
        low, high = run
        start = int(begin[low])
        content = memoryview(store.range(file, start, int(end[high - 1]) - start))
        if len(content) != int(end[high - 1]) - start:
            raise damaged(store.place(file.name))
        for i in range(low, high):
            held = content[int(begin[i]) - start : int(end[i]) - start]
            if xxhash.xxh3_64_digest(held) != pages.hashes[needed[i]].tobytes():
                raise damaged(store.place(file.name))
            here = slice(edges[i], edges[i + 1])
            found[here] = np.frombuffer(held, pages.dtype).reshape(-1, pages.width)[wanted[here] - first[i]]

    if store.remote:
        with ThreadPoolExecutor(_REQUESTS) as threads:
            list(threads.map(take, runs))
    else:
        for run in runs:
            take(run)
    return found


def _read_pages(store: Store, file: StoredFile, rows: int, block_rows: Callable[[int, int], int]) -> Pages | None:
    """How a file is laid out, from its end; None where it has no hashes of pages."""
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
    """The record batches that the footer at the end of an Arrow file lists.

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

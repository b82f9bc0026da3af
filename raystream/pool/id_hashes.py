"""Ids as numbers of 64 bits, by which millions of them are compared in no more memory than the numbers take.

Two ids of the same number may differ: whoever finds some compares the ids themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from raystream.pool.columns import plain

BLOCK_ROWS = 1 << 16
"""Ids that are looked at together: what is made of them on the way is small beside the ids."""
_LONG = 256
"""Bytes of an id from which a call for each id is cheaper than a step for every eight bytes of all."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)

Numbers = npt.NDArray[np.integer]


class Ids(Protocol):
    """Ids of one type in order, in pieces: an Arrow chunked array, or what reads them again each time that they are looked at."""

    @property
    def type(self) -> pa.DataType: ...

    @property
    def chunks(self) -> Iterable[pa.Array]: ...

    def __len__(self) -> int: ...


def id_blocks(ids: Ids | pa.Array) -> Iterator[tuple[int, pa.Array]]:
    """Runs of ids in order, in their plain type, each with the number of its first row."""
    row = 0
    for chunk in [ids] if isinstance(ids, pa.Array) else ids.chunks:
        for start in range(0, len(chunk), BLOCK_ROWS):
            block = plain(chunk.slice(start, BLOCK_ROWS))
            yield row, block
            row += len(block)


def id_numbers(ids: Ids | pa.Array) -> Numbers:
    """(n,) equal for equal ids: integers themselves, uint64 hashes of strings and bytes. No id may be null."""
    numbers: Numbers | None = None
    for start, block in id_blocks(ids):
        found = numbers_of(block)
        if numbers is None:
            numbers = np.empty(len(ids), found.dtype)
        numbers[start : start + len(found)] = found
    return np.empty(0, np.uint64) if numbers is None else numbers


def numbers_of(block: pa.Array) -> Numbers:
    """`id_numbers` of one block."""
    if pa.types.is_integer(block.type):
        values: Numbers = block.to_numpy()
        return values
    return _hashes(*id_bytes(block))


def id_bytes(block: pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The bytes of some ids, one after the other as they lie in Arrow's buffer, and (n + 1,) where each begins and the last ends."""
    if pa.types.is_fixed_size_binary(block.type):
        block = block.cast(pa.binary())
    wide = pa.types.is_large_string(block.type) or pa.types.is_large_binary(block.type)
    _, where, content = block.buffers()
    dtype = np.int64 if wide else np.int32
    offsets = np.frombuffer(where, dtype, len(block) + 1, block.offset * dtype().itemsize) if len(block) else np.zeros(1, dtype)
    data = np.frombuffer(content, np.uint8) if content is not None and content.size else np.empty(0, np.uint8)
    return data, offsets.astype(np.int64)


def _hashes(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """(n,) uint64 hashes of the bytes between these offsets: eight bytes of all ids at a time are mixed into them."""
    length = np.diff(offsets)
    hashes = length.astype(np.uint64) * _FACTOR
    if len(data) < 8:
        data = np.concatenate([data, np.zeros(8, np.uint8)])
    words = np.ndarray(len(data) - 7, "<u8", data, strides=(1,))
    last = len(words) - 1
    rows = np.flatnonzero((length > 0) & (length < _LONG))
    begin, left = offsets[rows], length[rows]
    while len(rows):
        at = np.minimum(begin, last)
        word = words[at] >> ((begin - at).astype(np.uint64) << np.uint64(3))  # at the very end, eight bytes that begin earlier
        unused = np.maximum(8 - left, 0).astype(np.uint64) << np.uint64(3)
        mixed = (hashes[rows] ^ (word << unused)) * _FACTOR
        hashes[rows] = mixed ^ (mixed >> _SHIFT)
        going = left > 8
        if not going.all():
            rows, begin, left = rows[going], begin[going], left[going]
        begin, left = begin + 8, left - 8
    view = data.data
    for row in np.flatnonzero(length >= _LONG).tolist():
        hashes[row] = xxhash.xxh3_64_intdigest(view[offsets[row] : offsets[row + 1]])
    return hashes

"""Numbers for rows that depend on the seed and the row's id alone, never on where the row is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from raystream.errors import QueryError
from raystream.selection.rows import Array


def row_hash(seed: int, ids: Array | Sequence[str] | Sequence[bytes]) -> Array:
    """Return (n,) uint64, one hash a row.

    Integers go through splitmix64 (Steele et al., 2014), whatever their width; strings and bytes through
    BLAKE2b keyed by the seed.

    Args:
        seed: what makes one draw differ from another.
        ids: integers of any signed or unsigned type, or strings, or bytes.
    """
    if not isinstance(ids, np.ndarray) and len(ids) and isinstance(ids[0], str | bytes):
        return _blake2b(seed, map(_encoded, ids))  # as an array they would take as much room each as the longest of them
    array = np.asarray(ids)
    if array.dtype.kind in "iu":
        wide = array.astype(np.int64).view(np.uint64) if array.dtype.kind == "i" else array.astype(np.uint64)
        return _splitmix64(wide ^ _splitmix64(np.asarray([seed % 2**64], dtype=np.uint64)))
    return _blake2b(seed, map(_encoded, ids))


def bytes_hash(seed: int, data: Array, offsets: Array) -> Array:
    """Return the `row_hash` of strings and bytes that lie one after the other: (n,) uint64.

    Args:
        seed: as there.
        data: uint8, the bytes of all ids.
        offsets: (n + 1,) where each begins, and the last ends.
    """
    view, places = data.data, offsets.tolist()
    return _blake2b(seed, (view[begin:end] for begin, end in pairwise(places)))


def _encoded(id_: object) -> bytes:
    if not isinstance(id_, str | bytes):
        raise QueryError(f"id {id_!r} is a {type(id_).__name__}, expected integers, strings or bytes")
    return id_.encode() if isinstance(id_, str) else id_


def _blake2b(seed: int, ids: Iterable[bytes | memoryview]) -> Array:
    keyed = hashlib.blake2b(digest_size=8, key=(seed % 2**64).to_bytes(8, "little"))

    def digest(id_: bytes | memoryview) -> bytes:
        hashed = keyed.copy()  # half the time of making one anew
        hashed.update(id_)
        return hashed.digest()

    return np.frombuffer(b"".join(map(digest, ids)), "<u8").astype(np.uint64)


def _splitmix64(x: Array) -> Array:
    z = x + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: Array = z ^ (z >> np.uint64(31))
    return result


def draw(keys: Array, purpose: str) -> Array:
    """Return (n,) uint64 from the keys of `row_hash`: another draw for each purpose, each a function of (seed, purpose, row)."""
    salt = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")
    return _splitmix64(np.asarray(keys, dtype=np.uint64) ^ np.uint64(salt))


def uniform(keys: Array, purpose: str) -> Array:
    """Return (n,) float64 strictly between 0 and 1, one draw a row: the middle of one of 2^52 steps."""
    result: Array = ((draw(keys, purpose) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return result


def philox(seed: int, purpose: str, start: int, count: int) -> Array:
    """Return (count, 2) uint64: two words for each draw from `start` on, by the counter-based Philox 4x64 (Salmon et al., 2011)."""
    salt = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")
    words = np.random.Philox(key=(salt << 64) + seed % 2**64, counter=start).random_raw(4 * count)
    result: Array = words.reshape(count, 4)[:, :2]
    return result

"""Numbers for rows that strategies draw by and weigh with.

Numbers for rows that depend on the seed and the row's id alone, never on where the row is read.

Acquisition scores as weights: what a score must be to multiply a distance or to pull a centre.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

from raystream.errors import QueryError
from raystream.selection.rows import Array
from raystream.strings import words

_TOGETHER = 1 << 14
"""Short ids that are hashed at a time, in 5 MB: so many that threads seldom wait for each other between two operations."""
_FEW = 2048
"""Fewer than so many are hashed one by one: the operations on many would take longer to begin than to do."""
_BLOCK_BYTES, _KEY_BYTES = 128, 8


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
    result = np.empty(len(offsets) - 1, np.uint64)
    for start in range(0, len(result), _TOGETHER):
        block, where = result[start : start + _TOGETHER], offsets[start : start + _TOGETHER + 1]
        length = np.diff(where)
        if len(block) >= _FEW and length.min() > 0 and length.max() <= _BLOCK_BYTES:
            keyed = _keyed(seed % 2**64)
            message = np.zeros((_BLOCK_BYTES // 8, len(block)), np.uint64)
            for place, (rows, word) in enumerate(words(data, where)):
                message[place, rows] = word
            first, _, third, _ = _compressed(keyed, message, length.astype(np.uint64) + np.uint64(_BLOCK_BYTES), last=True)
            np.bitwise_xor(first[0], third[0], out=block)
            block ^= keyed[0]
        else:
            view = data.data
            block[:] = _blake2b(seed, (view[begin:end] for begin, end in pairwise(where.tolist())))
    return result


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


_START = np.array(
    [
        0x6A09E667F3BCC908, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1,
        0x510E527FADE682D1, 0x9B05688C2B3E6C1F, 0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179,
    ],
    np.uint64,
)  # fmt: skip
"""BLAKE2b's initial values, and the orders in which its rounds take the words of a block (RFC 7693)."""
_ORDERS = np.array(
    [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
        [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
        [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
        [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
        [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
        [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
        [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
        [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
        [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
    ]
)
_TURNS = ((1, (1, 2, 3, 0)), (2, (2, 3, 0, 1)), (3, (3, 0, 1, 2)))
"""By how much the rows of the state are turned between columns and diagonals."""


@lru_cache(8)
def _keyed(seed: int) -> Array:
    """Return the (8,) uint64 state of BLAKE2b with 8 bytes of digest once it has taken the seed as its key."""
    state = _START.copy()
    state[0] ^= np.uint64(0x01010000 ^ _KEY_BYTES << 8 ^ 8)
    block = np.zeros((_BLOCK_BYTES // 8, 1), np.uint64)
    block[0] = seed
    first, second, third, fourth = _compressed(state, block, np.full(1, _BLOCK_BYTES, np.uint64), last=False)
    state[:4] ^= (first ^ third)[:, 0]
    state[4:] ^= (second ^ fourth)[:, 0]
    return state


def _compressed(state: Array, message: Array, taken: Array, *, last: bool) -> list[Array]:
    """Mix one block each of n messages into the same state, by BLAKE2b; other threads run meanwhile, as they can't beside `hashlib`.

    Args:
        state: (8,) uint64.
        message: (16, n) uint64, the words of the blocks.
        taken: (n,) uint64 bytes of each message up to the end of its block.
        last: whether the messages end here.

    Returns:
        The four rows of the mixed state, (4, n) uint64 each.
    """
    rows = [np.repeat(part[:, None], message.shape[1], axis=1) for part in (state[:4], state[4:], _START[:4], _START[4:])]
    rows[3][0] ^= taken
    if last:
        np.invert(rows[3][2], out=rows[3][2])
    room, word = np.empty_like(rows[0]), np.empty_like(rows[0])

    def mix(into: int, other: int, bits: int) -> None:
        """Replace a row by (itself ^ another), turned right by so many bits."""
        x = rows[into]
        np.bitwise_xor(x, rows[other], out=x)
        np.left_shift(x, np.uint64(64 - bits), out=room)
        np.right_shift(x, np.uint64(bits), out=x)
        np.bitwise_or(x, room, out=x)

    def add(into: int, other: Array) -> None:
        np.add(rows[into], other, out=rows[into])

    def turn(row: int, order: Array) -> None:
        nonlocal room
        np.take(rows[row], order, axis=0, out=room, mode="clip")
        rows[row], room = room, rows[row]

    forth = [(row, np.array(order)) for row, order in _TURNS]
    back = [(row, np.argsort(order)) for row, order in forth]
    for number in range(12):
        for half, turns in ((_ORDERS[number % 10][:8], forth), (_ORDERS[number % 10][8:], back)):
            for words_of, right, then in ((half[::2], 32, 24), (half[1::2], 16, 63)):
                add(0, rows[1])
                add(0, np.take(message, words_of, axis=0, out=word, mode="clip"))
                mix(3, 0, right)
                add(2, rows[3])
                mix(1, 2, then)
            for row, order in turns:
                turn(row, order)
    return rows


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


def checked_weights(score: Array, n: int) -> Array:
    """Check (n,) scores that can be weights, and return them as float64; see `check_weights`."""
    check_weights(score, n)
    return np.ascontiguousarray(score, dtype=np.float64)


def check_weights(score: Array, n: int) -> None:
    """See that (n,) scores can be weights: finite and at least 0.

    Raises:
        QueryError: another shape, or scores that are negative or not finite.
    """
    score = np.asarray(score)
    if score.shape != (n,):
        raise QueryError(f"`score` has shape {score.shape}, expected ({n},), one for each candidate")
    negative = int(np.count_nonzero(score < 0))
    if negative:
        raise QueryError(
            f"{negative} of {n} candidates have a negative score, the lowest {np.nanmin(score):g}; a score used as a weight must be >= 0, "
            "and energy can be negative: take another `score`"
        )
    bad = n - int(np.count_nonzero(np.isfinite(score)))
    if bad:
        raise QueryError(f"{bad} of {n} candidates have a score that is NaN or infinite; a score used as a weight must be a finite number")

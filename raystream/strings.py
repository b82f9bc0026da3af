"""Strings and bytes as they lie in Arrow's buffers, one after the other: read a word of all of them at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]


def words(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> Iterator[tuple[slice | npt.NDArray[np.int64], Words]]:
    """Yield the first eight bytes of strings as little-endian numbers, then the next eight, and so on; there are zeros behind their ends.

    Args:
        data: bytes.
        offsets: (n + 1,) where each string begins in them, and the last ends.

    Yields:
        The strings that go on there, ascending, all of them as a slice; and (m,) their numbers.
    """
    length = np.diff(offsets)
    if not len(length):
        return
    most = int(length.max())
    if len(data) < 8:
        data = np.concatenate([data, np.zeros(8, np.uint8)])
    if most >= 8 and int(length.min()) == most:  # at even distances: nothing has to be looked up
        for place in range(0, most, 8):
            beyond = max(place + 8 - most, 0)
            word = np.ndarray(len(length), "<u8", data, int(offsets[0]) + place - beyond, (most,))
            yield slice(None), word >> np.uint64(8 * beyond)
        return
    every = np.ndarray(len(data) - 7, "<u8", data, strides=(1,))
    rows = np.flatnonzero(length)
    begin, left = offsets[:-1][rows], length[rows]
    while len(rows):
        at = np.minimum(begin, len(every) - 1)
        word = every[at] >> ((begin - at).astype(np.uint64) << np.uint64(3))  # at the very end, eight bytes that begin earlier
        beyond_end = np.maximum(8 - left, 0).astype(np.uint64) << np.uint64(3)
        yield rows, (word << beyond_end) >> beyond_end
        going = left > 8
        rows, begin, left = rows[going], begin[going] + 8, left[going] - 8

"""Byte ranges of a remote file: fetched at the same time, joined where they lie close, asked for again where a connection breaks."""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar

from raystream.lake.filesystem import REMOTE_THREADS
from raystream.lake.retry import LASTING, ignore, retried

_Result = TypeVar("_Result")
Range = tuple[int, int]
"""First byte, and the one after the last."""
HOLE = 64 << 10
"""Unwanted bytes that are read rather than paying for another request."""
PIECE = 8 << 20
"""Bytes of one request: one connection alone doesn't fill the link, and what breaks costs no more than this."""


def joined(ranges: Iterable[Range], hole: int = HOLE) -> list[Range]:
    """Return the ranges in order, those with at most `hole` bytes between them made one."""
    result: list[Range] = []
    for start, stop in sorted(ranges):
        if result and start <= result[-1][1] + hole:
            result[-1] = (result[-1][0], max(stop, result[-1][1]))
        else:
            result.append((start, stop))
    return result


class Fetching:
    """Ranges of a file on their way; `wait` gives them as a file to read from.

    Args:
        read_at: `read_at(bytes, offset)` of the remote file; called from several threads.
        size: of the file.
        ranges: those wanted.
        note: told of each request that is repeated.
        place: where it lies, for people.
    """

    def __init__(
        self,
        read_at: Callable[[int, int], bytes],
        size: int,
        ranges: Iterable[Range],
        note: Callable[[str], None] = ignore,
        place: str = "object storage",
    ) -> None:
        self._size, self._note, self._read_at, self._place = size, note, read_at, place
        self._ranges = joined(ranges)

        def fetch(start: int, stop: int) -> bytes:
            data = read_at(stop - start, start)
            if len(data) != stop - start:
                raise OSError(f"{len(data)} bytes came of {stop - start}")
            return data

        def ask(start: int, stop: int) -> Future[bytes]:
            return in_another_thread(lambda: retried(lambda: fetch(start, stop), note, patience=LASTING, place=place))

        self._pieces = [[ask(at, min(at + PIECE, stop)) for at in range(start, stop, PIECE)] for start, stop in self._ranges]

    def wait(self) -> Fetched:
        """Return the bytes, once all are there.

        Raises:
            OSError: a piece didn't come in spite of all attempts.
        """
        # Pieces stay apart: joining them would hold Python's lock for as long as copying megabytes takes, and the model's thread with it.
        blocks = [piece.result() for pieces in self._pieces for piece in pieces]
        starts = [at for start, stop in self._ranges for at in range(start, stop, PIECE)]
        self._pieces = []
        rest = lambda start, length: retried(lambda: self._read_at(length, start), self._note, patience=LASTING, place=self._place)  # noqa: E731
        return Fetched(starts, blocks, self._size, rest)

    def cancel(self) -> None:
        """Forget what hasn't begun."""
        for pieces in self._pieces:
            for piece in pieces:
                piece.cancel()


class RangeReader(io.RawIOBase):
    """A read-only file of which ranges are asked for as they are read, as pyarrow reads it.

    Args:
        fetch: the bytes of a range, by its start and length.
        size: of the file.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._fetch, self._size, self._at = fetch, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def size(self) -> int:
        """Return the bytes of the whole file."""
        return self._size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> Any:
        left = self._size - self._at
        length = left if size is None or size < 0 else min(size, left)
        if length <= 0:
            return b""
        data = self._range(self._at, length)
        self._at += len(data)
        return data

    def _range(self, start: int, length: int) -> Any:
        return self._fetch(start, length)


class Fetched(RangeReader):
    """A read-only file of which some ranges are there; what lies elsewhere is asked for one by one.

    `failed` says whether any of that didn't come in spite of all attempts.
    """

    failed = False

    def __init__(self, starts: Sequence[int], blocks: Sequence[bytes], size: int, rest: Callable[[int, int], bytes]) -> None:
        super().__init__(rest, size)
        self._starts, self._blocks = starts, blocks

    def _range(self, start: int, length: int) -> Any:
        """Return these bytes, without a copy where they are there."""
        parts = self._parts(start, length)
        if parts is None:
            try:
                return super()._range(start, length)
            except OSError:
                self.failed = True
                raise
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _parts(self, at: int, count: int) -> list[memoryview] | None:
        """Return these bytes where they lie; None unless all of them are there."""
        index = bisect_right(self._starts, at) - 1
        parts: list[memoryview] = []
        while count:
            if not 0 <= index < len(self._blocks) or not 0 <= at - self._starts[index] < len(self._blocks[index]):
                return None
            offset = at - self._starts[index]
            parts.append(memoryview(self._blocks[index])[offset : offset + count])
            at, count, index = at + len(parts[-1]), count - len(parts[-1]), index + 1
        return parts


def in_another_thread(call: Callable[[], _Result]) -> Future[_Result]:
    """Start a request, through the same threads as all of the process's others."""
    return _threads(os.getpid()).submit(call)


@lru_cache(maxsize=1)
def _threads(process: int) -> ThreadPoolExecutor:
    """Return the process's own; `process` makes sure of it after a fork."""
    return ThreadPoolExecutor(REMOTE_THREADS, thread_name_prefix="raystream-lake")

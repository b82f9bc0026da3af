"""Files of a bucket as pyarrow wants them: one to write piece by piece, one to read at any place."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import xxhash


class HashingWriter:
    """Passes on what is written and knows its size and hash."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._digest = xxhash.xxh3_128()
        self.size = 0
        self.closed = False

    @property
    def xxh3(self) -> str:
        """Of all that was written."""
        return self._digest.hexdigest()

    def write(self, data: Any) -> int:
        content = memoryview(data).cast("B")
        # A copy: parts are sent later, from where they lie, and whoever writes may fill the same buffer again meanwhile.
        self._writer.write(bytes(content))
        self._digest.update(content)
        self.size += len(content)
        return len(content)

    def flush(self) -> None:
        """Nothing: a part is sent when it is full."""

    def close(self) -> None:
        """Nothing yet: whoever writes may be leaving because of an error."""
        self.closed = True

    def finish(self) -> None:
        """Send the rest; the file is there, whole, when this returns."""
        self._writer.close()


class RangeReader(io.RawIOBase):
    """A file that is read by ranges.

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

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        length = self._size - self._at if size is None or size < 0 else min(size, self._size - self._at)
        if length <= 0:
            return b""
        data = self._fetch(self._at, length)
        self._at += len(data)
        return data

    def size(self) -> int:
        return self._size

"""The protocol that every store keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from raystream.errors import StoreUnreachable
from raystream.lake import Storage


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that was written whole: its name in the store, size in bytes and XXH3 (128 bits, against damage, not malice)."""

    name: str
    size: int
    xxh3: str


class Entry(NamedTuple):
    """A file of the store as listed: its name in the store, size in bytes, and when it was written, in seconds since the epoch."""

    name: str
    size: int
    modified: float


class WriteBroken(StoreUnreachable):
    """A file was being written piece by piece when its storage went away; it must be written anew."""


class Store(Protocol):
    """The questions that a store is asked; `LocalStore` answers them for a folder, `ObjectStore` for a bucket.

    Stores are cheap to make and can be pickled; they touch nothing until they are asked something.
    """

    @property
    def uri(self) -> str:
        """Where it is, without secrets: another process that is given it and `storage` has the same store."""

    @property
    def storage(self) -> Storage:
        """Options of the file system, without secrets."""

    @property
    def remote(self) -> bool:
        """True if each request takes its time, so that it is worth making many at once."""

    def place(self, name: str) -> str:
        """Return the path or URI of a file, for people and for `--json`."""

    @property
    def free_bytes(self) -> int | None:
        """How much may still be written; None where that is unlimited, or nobody knows."""

    def exists(self, name: str) -> bool: ...

    def size(self, name: str) -> int | None:
        """Return the size in bytes, or None if there is no such file."""

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        """Return the sizes in bytes of several files, None for each that isn't there."""

    def read(self, name: str) -> bytes: ...

    def read_if_there(self, name: str) -> bytes | None: ...

    def put_if_absent(self, name: str, data: bytes, *, wait: bool = True) -> bool:
        """Write a file whole unless it is there; False if somebody else's is there already."""

    def put(self, name: str, data: bytes) -> None:
        """Write a file whole, in place of any that is there. For what only informs: plans, events, reports."""

    def append(self, name: str, data: bytes) -> None:
        """Add to the end of a file; there at the latest after `flush`."""

    def flush(self) -> None:
        """See that all that was appended is in the store."""

    def writing(self, name: str) -> AbstractContextManager[pa.NativeFile]:
        """Open a large file to write piece by piece: whole when the block ends, gone if it ends in an error."""

    def stored(self, name: str) -> StoredFile:
        """Describe a file that has been written, as a receipt does."""

    def discard(self, name: str) -> None:
        """Remove a file that no receipt names, if it is there; in a bucket, whatever is left by that is not worth failing for."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there, or raise StoreError."""

    def walk(self, *folders: str) -> Iterator[Entry]:
        """Yield every file below folders of the store, those that are removed meanwhile left out; in no particular order."""

    def discard_folder(self, folder: str) -> None:
        """Remove a folder that is empty; one that isn't stays."""

    def names(self, folder: str) -> list[str]:
        """List the entries of a folder of the store, sorted; none if there is no such folder."""

    def check_commits(self) -> None:
        """Refuse a store that can't be written, or that lets a second writer win."""

    def source(self, file: StoredFile) -> Any:
        """Return the path or file that pyarrow reads a Parquet file of the store from."""

    def head(self, file: StoredFile, size: int) -> bytes:
        """Read the first bytes of a file."""

    def range(self, file: StoredFile, start: int, length: int) -> bytes:
        """Read some bytes of a file."""

    def local(self, file: StoredFile) -> Path:
        """Return a file of this machine with the content of one of the store, to be mapped; brought here if it must be."""

    def is_whole(self, file: StoredFile) -> bool:
        """Tell whether the store holds what was written, by reading all of it; where that can't be found, StoreError says why."""

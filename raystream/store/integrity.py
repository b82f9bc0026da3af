"""Files of the store that are not what was written: what is said of them, and hashes that find them out before they are looked at.

Damage to numbers doesn't show in them. So a file in a folder is hashed once a process, and again when somebody wrote to it; a copy of
one in a bucket is hashed when it is brought here. A million rows of 256 are hashed in 0.03 s from memory. Where few vectors of a file
are wanted, only the pages that hold them are hashed; see `raystream.store.vectors`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import xxhash

from raystream.errors import RaystreamError, StoreError
from raystream.lake.retry import on_disk
from raystream.store.local import LocalStore
from raystream.store.protocol import Store, StoredFile

_HASH_THREADS = 4
_MOST_KNOWN = 1 << 17

# invariant: path -> what `_state` said of it when its content was, or had just been written as, what its receipt says
_known: dict[str, tuple[int, int]] = {}


def damaged(place: str) -> StoreError:
    """Make the error for a file of a unit that is not what was written."""
    return StoreError(
        f"store: {place} is damaged: its content is not what was written; remove its folder and run raystream score with the query's "
        "query.yaml to have it again"
    )


@contextmanager
def reading(store: Store, file: StoredFile) -> Iterator[None]:
    """Name a unit's file if Arrow can't make sense of it, or can't open it.

    Raises:
        StoreError: for whatever Arrow raises.
    """
    try:
        yield
    except RaystreamError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise StoreError(f"store: {store.place(file.name)} can't be read: {error.strerror or error}; run the command again") from None
        raise damaged(store.place(file.name)) from None


def check_files(files: Iterable[tuple[Path, StoredFile]]) -> None:
    """Hash files that are about to be looked at, several at a time.

    Raises:
        StoreError: one of them isn't what was written.
    """
    with ThreadPoolExecutor(_HASH_THREADS) as threads:
        list(threads.map(lambda found: check_file(*found), files))


def check_file(path: Path, file: StoredFile) -> None:
    """Hash a file, unless this process has done so and nobody has written to it since.

    Raises:
        StoreError: it isn't what was written, or can't be read.
    """

    name = str(path)

    def look() -> tuple[tuple[int, int], bool]:
        state = _state(name)
        if _known.get(name) == state:
            return state, True
        with pa.memory_map(name) as content:
            return state, content.size() == file.size and xxhash.xxh3_128_hexdigest(content.read_buffer()) == file.xxh3

    try:
        state, whole = on_disk(look, f"the disk of {path}")
    except OSError as error:
        raise StoreError(f"store: {path} can't be read: {error.strerror or error}; run the command again") from None
    if not whole:
        raise damaged(name)
    _remember(name, state)


def just_written(store: Store, files: Iterable[StoredFile]) -> None:
    """Note that these files were written a moment ago: they need no hashing until somebody writes to them."""
    if isinstance(store, LocalStore):
        for file in files:
            path = f"{store.root}/{file.name}"
            with suppress(FileNotFoundError):
                _remember(path, _state(path))


def _remember(path: str, state: tuple[int, int]) -> None:
    if len(_known) >= _MOST_KNOWN:
        _known.clear()
    _known[path] = state


def _state(path: str) -> tuple[int, int]:
    """Return a file's state: another one as soon as the file is written to, whatever becomes of its times."""
    found = os.stat(path)
    return found.st_mtime_ns, found.st_ctime_ns

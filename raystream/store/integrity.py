"""Files that are what was written: hashes, and copies of remote ones that are checked.

Files of the store that are not what was written: what is said of them, and hashes that find them out before they are looked at.

Damage to numbers doesn't show in them. So a file in a folder is hashed once a process, and again when somebody wrote to it; a copy of
one in a bucket is hashed when it is brought here. A million rows of 256 are hashed in 0.03 s from memory. Where few vectors of a file
are wanted, only the pages that hold them are hashed; see `raystream.store.vectors`.

Files of an object store that are mapped: brought to this machine once a process, checked, and removed with it.

The copies lie in a folder of the process's own below the system's temporary one (`TMPDIR`). It is removed at exit; what
a killed process left behind, the next one removes. They never fill the disk: the copy that was asked for longest ago goes first.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
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
MOST_KNOWN = 1 << 17
"""Files that are remembered."""

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
            try:
                state = _state(path)
            except FileNotFoundError:
                continue
            _remember(path, state)


def _remember(path: str, state: tuple[int, int]) -> None:
    if len(_known) >= MOST_KNOWN:
        _known.clear()
    _known[path] = state


def _state(path: str) -> tuple[int, int]:
    """Return a file's state: another one as soon as the file is written to, whatever becomes of its times."""
    found = os.stat(path)
    return found.st_mtime_ns, found.st_ctime_ns


_RESERVE_BYTES = 1 << 30
"""What is left free on the disk, or a tenth of it where that is less."""


class LocalCopies:
    """The copies of one process.

    Args:
        parent: the folder in which those of all processes of this user lie.
        limit: bytes that all copies may take; left out, as much as the disk has room for.
    """

    def __init__(self, parent: Path, limit: int | None = None) -> None:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if parent.stat().st_uid != os.getuid():
            raise StoreError(f"{parent} belongs to another user; set TMPDIR to a folder of your own")
        with (parent / "lock").open("w") as one_at_a_time:
            fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
            _remove_abandoned(parent)
            self._folder = Path(tempfile.mkdtemp(dir=parent))
            # Held for as long as the process lives, however it ends.
            self._alive = os.open(self._folder / "lock", os.O_CREAT | os.O_RDWR)
            fcntl.flock(self._alive, fcntl.LOCK_EX)
        self._limit = limit
        self._guard = threading.Lock()
        self._fetching: dict[str, threading.Lock] = {}
        # invariant: name -> size of the copies that are whole, the one asked for longest ago first
        self._sizes: OrderedDict[str, int] = OrderedDict()

    def path(self, store: str, file: StoredFile, content: Callable[[], Iterator[bytes]], anew: bool = False) -> Path:
        """Return the path of a file's copy; made from `content` if there is none, or `anew`.

        Raises:
            StoreError: the content isn't what was written, or there is no room for it.
        """
        name = f"{xxhash.xxh3_64_hexdigest(f'{store}/{file.name}'.encode())}-{file.xxh3}"
        path = self._folder / name
        with self._guard:
            fetching = self._fetching.setdefault(name, threading.Lock())
        with fetching:
            with self._guard:
                if name in self._sizes and not anew:
                    self._sizes.move_to_end(name)
                    return path
                if self._sizes.pop(name, None) is not None:
                    path.unlink(missing_ok=True)
            self._make_room(file)
            _write(path, f"{store}/{file.name}", file, content)
            with self._guard:
                self._sizes[name] = file.size
        return path

    def remove(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._alive)

    def _make_room(self, file: StoredFile) -> None:
        with self._guard:
            while self._free() < file.size:
                if not self._sizes:
                    raise StoreError(
                        f"{self._folder.parent} has no room for a copy of {file.name} ({file.size:,} bytes); free some or set TMPDIR"
                    )
                oldest, _ = self._sizes.popitem(last=False)
                # Whoever has it mapped keeps it until then; whoever looks again has it brought again.
                (self._folder / oldest).unlink(missing_ok=True)

    def _free(self) -> int:
        if self._limit is not None:
            return self._limit - sum(self._sizes.values())
        disk = shutil.disk_usage(self._folder)
        return disk.free - min(_RESERVE_BYTES, disk.total // 10)


def _write(path: Path, place: str, file: StoredFile, content: Callable[[], Iterator[bytes]]) -> None:
    digest, size = xxhash.xxh3_128(), 0
    try:
        with path.open("xb") as copy:
            for piece in content():
                copy.write(piece)
                digest.update(piece)
                size += len(piece)
        if size != file.size or digest.hexdigest() != file.xxh3:
            raise StoreError(f"store: {place} is damaged: {size} bytes that are not the {file.size} written; remove it and run again")
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders of processes that are gone."""
    for folder in parent.iterdir():
        with suppress(OSError), (folder / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


_own: LocalCopies | None = None
_own_guard = threading.Lock()


def local_copies() -> LocalCopies:
    """Return this process's copies."""
    global _own
    with _own_guard:
        if _own is None:
            _own = LocalCopies(Path(tempfile.gettempdir()) / f"raystream-copies-{os.getuid()}")
            atexit.register(_own.remove)
        return _own

"""Files of an object store that are mapped: brought to this machine once a process, checked, and removed with it.

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
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import xxhash

from raystream.errors import StoreError
from raystream.store.protocol import StoredFile

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

"""The store: scored units and committed queries in a folder or a bucket, and the one way in which things are committed.

Everything durable goes through `put_if_absent`: of any number of writers exactly one wins, and what it wrote is
whole. Files that a receipt or manifest does not name do not exist for a reader. Names are relative, with slashes.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pyarrow as pa
import xxhash

from raystream.errors import QueryError, StoreError
from raystream.lake import LOCAL

if TYPE_CHECKING:
    pass

FORMAT = 1
"""The version of what this raystream writes; a store of a newer one is refused."""


@dataclass(frozen=True)
class StoredFile:
    """A file that was written whole: its name in the store, size in bytes and XXH3 (128 bits, against damage, not malice)."""

    name: str
    size: int
    xxh3: str


@dataclass(frozen=True)
class Entry:
    """A file of the store as listed: its name in the store, size in bytes, and when it was written, in seconds since the epoch."""

    name: str
    size: int
    modified: float


class LocalStore:
    """A store in a folder of a local or shared file system.

    Args:
        uri: the folder; made if it isn't there.

    Raises:
        QueryError: the URI is of another kind of store.
        StoreError: the folder can't be made or written.
        StoreVersionError: it was written by a newer raystream.
    """

    def __init__(self, uri: str) -> None:
        path = unquote(uri.removeprefix("file://")) if uri.startswith("file://") else uri
        if "://" in path:
            raise QueryError(f"store.uri {uri} is not a local folder; this version keeps its store on a file system")
        self.root = Path(path).expanduser().absolute()

    storage = LOCAL
    remote = False

    @property
    def uri(self) -> str:
        return str(self.root)

    def place(self, name: str) -> str:
        return str(self.path(name))

    def path(self, name: str) -> Path:
        """Where a file of the store lies."""
        return self.root / name

    def exists(self, name: str) -> bool:
        return self.path(name).exists()

    def size(self, name: str) -> int | None:
        try:
            return self.path(name).stat().st_size
        except OSError:
            return None

    def read(self, name: str) -> bytes:
        with self._explained(name, "read"):
            return self.path(name).read_bytes()

    def read_if_there(self, name: str) -> bytes | None:
        try:
            return self.path(name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _explain(error, self.path(name), "read") from error

    def put_if_absent(self, name: str, data: bytes, *, wait: bool = True) -> bool:
        """Write a file whole unless it is there; False if somebody else's is there already.

        With `wait`, its name is on disk, too, when this returns: a crash of the machine can't undo it.
        """
        path = self.path(name)
        with self._explained(name, "written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._write_temporary(path, data)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            finally:
                temporary.unlink()
            if wait:
                _sync(path.parent)
        return True

    def put(self, name: str, data: bytes) -> None:
        """Write a file whole, in place of any that is there. For what only informs: plans, events, reports."""
        path = self.path(name)
        with self._explained(name, "written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self._write_temporary(path, data), path)

    def append(self, name: str, data: bytes) -> None:
        path = self.path(name)
        with self._explained(name, "written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(data)

    def flush(self) -> None:
        """Nothing is held back."""

    @contextmanager
    def writing(self, name: str) -> Iterator[pa.NativeFile]:
        path = self.path(name)
        with self._explained(name, "written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with pa.OSFile(str(path), "wb") as file:
                    yield file
                _sync(path)
            except BaseException:
                path.unlink(missing_ok=True)
                raise

    def stored(self, name: str) -> StoredFile:
        with pa.memory_map(str(self.path(name))) as file:
            content = file.read_buffer()
            return StoredFile(name, content.size, xxhash.xxh3_128_hexdigest(content))

    def discard(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._explained(name, "removed"):
            self.path(name).unlink(missing_ok=True)

    remove = discard

    def names(self, folder: str) -> list[str]:
        path = self.path(folder)
        return sorted(p.name for p in path.iterdir()) if path.is_dir() else []

    def check_commits(self) -> None:
        """Every file system that has `os.link` keeps its promise; whether the folder can be written shows when it is."""

    def source(self, file: StoredFile) -> Path:
        return self.path(file.name)

    def head(self, file: StoredFile, size: int) -> bytes:
        with self._explained(file.name, "read"), self.path(file.name).open("rb") as content:
            return content.read(size)

    def range(self, file: StoredFile, start: int, length: int) -> bytes:
        with self._explained(file.name, "read"):
            descriptor = os.open(self.path(file.name), os.O_RDONLY)
            try:
                return os.pread(descriptor, length, start)
            finally:
                os.close(descriptor)

    def local(self, file: StoredFile) -> Path:
        return self.path(file.name)

    def is_whole(self, file: StoredFile) -> bool:
        with self._explained(file.name, "read"):
            return self.stored(file.name) == file

    def walk(self, folder: str) -> Iterator[Entry]:
        """Every file below a folder of the store, those that are removed meanwhile left out; in no particular order."""
        for parent, _, names in os.walk(self.path(folder)):
            for name in names:
                path = Path(parent, name)
                try:
                    found = path.stat()
                except FileNotFoundError:
                    continue
                yield Entry(path.relative_to(self.root).as_posix(), found.st_size, found.st_mtime)

    def discard_folder(self, folder: str) -> None:
        """Remove a folder that is empty; one that isn't stays."""
        with suppress(OSError):
            self.path(folder).rmdir()

    @contextmanager
    def _explained(self, name: str, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, StoreError) or error.errno is None:
                raise
            raise _explain(error, self.path(name), what) from error

    @staticmethod
    def _write_temporary(path: Path, data: bytes) -> Path:
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return temporary


def _explain(error: OSError, path: Path, what: str) -> StoreError:
    hint = {
        errno.ENOSPC: "; free some space and run again",
        errno.EACCES: "; give write permission or set another store.uri",
        errno.EROFS: "; set another store.uri",
        errno.ENOTDIR: "; a file stands where a folder is needed, set another store.uri",
        errno.EEXIST: "; a file stands where a folder is needed, set another store.uri",
    }.get(error.errno or 0, "")
    return StoreError(f"store: {path} can't be {what}: {error.strerror}{hint}")


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

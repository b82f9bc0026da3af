"""The store: scored units and committed queries in a folder or a bucket, and the one way in which things are committed.

Everything durable goes through `put_if_absent`: of any number of writers exactly one wins, and what it wrote is
whole. Files that a receipt or manifest does not name do not exist for a reader. Names are relative, with slashes.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

import pyarrow as pa
import xxhash
from pyarrow.fs import FileInfo, LocalFileSystem

from raystream.errors import QueryError, StoreError, StoreUnreachable
from raystream.lake import LOCAL
from raystream.lake.retry import LASTING, Patience, Place, in_words, is_no_outage, is_outage
from raystream.store.protocol import Entry, StoredFile, WriteBroken

_Result = TypeVar("_Result")


class LocalStore:
    """A store in a folder of a local or shared file system.

    Args:
        uri: the folder; made if it isn't there.
        patience: with a shared file system whose server is away.

    Raises:
        QueryError: the URI is of another kind of store.
        StoreError: the folder can't be made or written.
        StoreVersionError: it was written by a newer raystream.
    """

    def __init__(self, uri: str, patience: Patience = LASTING) -> None:
        path = unquote(uri.removeprefix("file://")) if uri.startswith("file://") else uri
        if "://" in path:
            raise QueryError(f"store.uri {uri} is not a local folder; this version keeps its store on a file system")
        self.root = Path(path).expanduser().absolute()
        self._place = Place(str(self.root), patience)

    storage = LOCAL
    remote = False

    @property
    def uri(self) -> str:
        return str(self.root)

    @property
    def free_bytes(self) -> int | None:
        folder = next(place for place in (self.root, *self.root.parents) if place.exists())
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            return None

    def place(self, name: str) -> str:
        return str(self.path(name))

    def path(self, name: str) -> Path:
        """Return the path of a file of the store."""
        return self.root / name

    def exists(self, name: str) -> bool:
        return self._ask(self.path(name).exists, name, "read")

    def size(self, name: str) -> int | None:
        return self._if_there(lambda: self.path(name).stat().st_size, name)

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        if not names:
            return []
        paths = [f"{self.root}/{name}" for name in names]
        try:
            return [found.size for found in self._ask(lambda: _looked_at(paths), names[0], "read")]
        except UnicodeError:  # names that only Python has
            return [self.size(name) for name in names]

    def read(self, name: str) -> bytes:
        return self._ask(self.path(name).read_bytes, name, "read")

    def read_if_there(self, name: str) -> bytes | None:
        return self._if_there(self.path(name).read_bytes, name)

    def put_if_absent(self, name: str, data: bytes, *, wait: bool = True) -> bool:
        """Write a file whole unless it is there; False if somebody else's is there already.

        A link that was made may be told to be refused: NFS asks again when an answer got lost, and finds the name taken. A file that
        holds exactly `data` therefore counts as one's own. What writers race for names their attempt and differs.
        With `wait`, its name is on disk, too, when this returns: a crash of the machine can't undo it.
        """
        return self._ask(lambda: self._create(self.path(name), data, wait), name, "written")

    def _create(self, path: Path, data: bytes, wait: bool) -> bool:
        temporary = self._write_temporary(path, data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            with _asked_again_if_gone():
                if path.read_bytes() != data:
                    return False
        finally:
            temporary.unlink(missing_ok=True)
        if wait:
            _sync(path.parent)
        return True

    def put(self, name: str, data: bytes) -> None:
        """Write a file whole, in place of any that is there. For what only informs: plans, events, reports."""
        self._ask(lambda: self._replace(self.path(name), data), name, "written")

    def _replace(self, path: Path, data: bytes) -> None:
        temporary = self._write_temporary(path, data)
        try:
            os.replace(temporary, path)
        except FileNotFoundError:
            # A rename whose answer got lost finds nothing to rename the second time.
            with _asked_again_if_gone():
                if path.read_bytes() != data:
                    raise

    def append(self, name: str, data: bytes) -> None:
        def add() -> None:
            path = self.path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(data)

        self._ask(add, name, "written")

    def flush(self) -> None:
        """Do nothing: nothing is held back."""

    @contextmanager
    def writing(self, name: str) -> Iterator[pa.NativeFile]:
        path = self.path(name)
        with self._explained(name, "written", broken=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with pa.OSFile(str(path), "wb") as file:
                    yield file
                _sync(path)
            except BaseException:
                with suppress(OSError):
                    path.unlink()
                raise

    def stored(self, name: str) -> StoredFile:
        def hashed() -> StoredFile:
            with pa.memory_map(str(self.path(name))) as file:
                content = file.read_buffer()
                return StoredFile(name, content.size, xxhash.xxh3_128_hexdigest(content))

        return self._ask(hashed, name, "read")

    def discard(self, name: str) -> None:
        """Remove a file, if it is there."""
        self._ask(lambda: self.path(name).unlink(missing_ok=True), name, "removed")

    remove = discard

    def names(self, folder: str) -> list[str]:
        def listed() -> list[str]:
            try:
                return sorted(os.listdir(self.path(folder)))
            except NotADirectoryError:
                return []

        return self._if_there(listed, folder) or []

    def check_commits(self) -> None:
        """Do nothing: every file system that has `os.link` keeps its promise; whether the folder can be written shows when it is."""

    def source(self, file: StoredFile) -> Path:
        return self.path(file.name)

    def head(self, file: StoredFile, size: int) -> bytes:
        def beginning() -> bytes:
            with self.path(file.name).open("rb") as content:
                return content.read(size)

        return self._ask(beginning, file.name, "read")

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
        return self.stored(file.name) == file

    def walk(self, *folders: str) -> Iterator[Entry]:
        """Yield every file below folders of the store, those that are removed meanwhile left out; in no particular order."""
        yield from self._walk_units(folders) if all(map(_UNITS.fullmatch, folders)) else self._walk(folders)

    def _walk(self, folders: Sequence[str]) -> Iterator[Entry]:
        left, root = list(folders), f"{self.root}/"
        while left:
            some = left[-_FOLDERS_AT_ONCE:]
            del left[-_FOLDERS_AT_ONCE:]
            files, below = self._ask(lambda some=some: _listed(root, some), some[0], "read")  # type: ignore[misc]
            left += below
            yield from files

    def _walk_units(self, folders: Sequence[str]) -> Iterator[Entry]:
        """Walk folders of units' folders, one after the other: while one is read, the files of the one before are looked at.

        A unit's folder may be a link.
        """
        root = f"{self.root}/"

        def looked_at(folder: str, names: list[str]) -> tuple[list[Entry], list[str]]:
            return self._ask(lambda: _entries(root, names), folder, "read")

        with ThreadPoolExecutor(1) as beside:
            waiting: Future[tuple[list[Entry], list[str]]] | None = None
            for folder in folders:
                names = self._ask(lambda folder=folder: _names_in_units(root, folder), folder, "read")  # type: ignore[misc]
                last, waiting = waiting, beside.submit(looked_at, folder, names)
                if last is not None:
                    files, below = last.result()
                    yield from chain(files, self._walk(below))
            if waiting is not None:
                files, below = waiting.result()
                yield from chain(files, self._walk(below))

    def discard_folder(self, folder: str) -> None:
        """Remove a folder that is empty; one that isn't stays."""
        with suppress(OSError):
            self.path(folder).rmdir()

    def _ask(self, call: Callable[[], _Result], name: str, what: str) -> _Result:
        """Make a call of the file system and return what it gives; an outage is waited for."""
        with self._explained(name, what):
            return self._place.ask(call, final=is_no_outage)

    def _if_there(self, call: Callable[[], _Result], name: str) -> _Result | None:
        """Return the same, or None if there is nothing of that name."""

        def asked() -> _Result | None:
            try:
                return call()
            except FileNotFoundError:
                return None

        return self._ask(asked, name, "read")

    @contextmanager
    def _explained(self, name: str, what: str, *, broken: bool = False) -> Iterator[None]:
        """Turn what the file system raises inside into an error of the store's; `broken`: of what is written piece by piece."""
        try:
            yield
        except OSError as error:
            if isinstance(error, StoreError) or error.errno is None:
                raise
            text = f"store: {self.path(name)} can't be {what}: {error.strerror}"
            if is_outage(error):
                waited = self._place.patience.seconds
                asked = f"waited for it for {in_words(waited)}, " if waited and not broken else ""
                raise (WriteBroken if broken else StoreUnreachable)(f"{text}; {asked}run again to resume") from error
            raise StoreError(f"{text}{_HINTS.get(error.errno, '')}") from error

    @staticmethod
    def _write_temporary(path: Path, data: bytes) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        return temporary


_HINTS = {
    errno.ENOSPC: "; free some space and run again",
    errno.EDQUOT: "; free some space and run again",
    errno.EACCES: "; give write permission or set another store.uri",
    errno.EROFS: "; set another store.uri",
    errno.ENOTDIR: "; a file stands where a folder is needed, set another store.uri",
    errno.EEXIST: "; a file stands where a folder is needed, set another store.uri",
}


@contextmanager
def _asked_again_if_gone() -> Iterator[None]:
    """Raise what is asked again for a name that was taken and is gone, or not seen yet by this machine: it may be free then."""
    try:
        yield
    except FileNotFoundError as error:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), error.filename) from None


_FOLDERS_AT_ONCE = 256
"""Folders that are listed by one question."""


_UNITS = re.compile("units/[^/]+")
_FILES = LocalFileSystem()


def _looked_at(paths: list[str]) -> list[FileInfo]:
    """Ask Arrow for sizes and times of files, without the interpreter's lock; those that aren't there have no size, as folders don't.

    Raises:
        OSError: as Python says it.
    """
    try:
        found: list[FileInfo] = _FILES.get_file_info(paths)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno)) from error
    return found


def _names_in_units(root: str, folder: str) -> list[str]:
    """Name what is in the folders in this one, and the files beside them."""
    names: list[str] = []
    try:
        units = [f"{folder}/{unit}" for unit in os.listdir(root + folder)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    for unit in units:
        try:
            names += [f"{unit}/{name}" for name in os.listdir(root + unit)]
        except NotADirectoryError:
            names.append(unit)
        except FileNotFoundError:
            continue
    return names


def _entries(root: str, names: list[str]) -> tuple[list[Entry], list[str]]:
    """Look at what has these names: the files, without those that are gone, and the folders, without links to some."""
    try:
        infos: list[FileInfo | None] = [*_looked_at([root + name for name in names])]
    except UnicodeError:
        infos = [None] * len(names)
    files, folders = [], []
    for name, info in zip(names, infos, strict=True):
        size, modified = (None, None) if info is None else (info.size, info.mtime_ns)
        if size is not None and modified is not None and modified >= 0:
            files.append(Entry(name, size, modified / 1e9))
            continue
        # a folder, a pipe, a name that is no text, from before 1970 or after 2262, or gone
        with suppress(FileNotFoundError, NotADirectoryError):
            found = os.stat(root + name)
            if not stat.S_ISDIR(found.st_mode):
                files.append(Entry(name, found.st_size, found.st_mtime))
            elif not os.path.islink(root + name):
                folders.append(name)
    return files, folders


def _listed(root: str, folders: list[str]) -> tuple[list[Entry], list[str]]:
    """List the files in some folders of the store, and the folders in them; nothing of what is removed meanwhile."""
    files: list[Entry] = []
    below: list[str] = []
    for folder in folders:
        try:
            entries = os.scandir(root + folder)
        except (FileNotFoundError, NotADirectoryError):
            continue
        with entries:
            for entry in entries:
                try:
                    if entry.is_file(follow_symlinks=False) or not entry.is_dir():
                        found = entry.stat()
                        files.append(Entry(f"{folder}/{entry.name}", found.st_size, found.st_mtime))
                    elif not entry.is_symlink():
                        below.append(f"{folder}/{entry.name}")
                except FileNotFoundError:
                    continue
    return files, below


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Which Parquet files a pool consists of, and the only place where a path becomes (file system, path)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raystream.errors import PoolError, QueryError
from raystream.lake import LOCAL, Location, Storage, filesystem_of, is_final, is_remote, own_reason, parse, reason, redacted, with_options
from raystream.lake.filesystem import REMOTE_THREADS
from raystream.lake.reason import is_no_folder
from raystream.lake.retry import ATTEMPTS, ignore, retried
from raystream.pool.deletes import Deletes
from raystream.pool.remote import RemoteParquet, open_remote
from raystream.pool.table_file import TableFile

_EXTENSIONS = (".parquet", ".parq", ".pq")
_WITHOUT = " without "
"""Between a file's version and the digest of its deleted rows, in its identity."""
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_CREDENTIALS = "check the name, the options of storage, and the credentials in the environment"
MAGIC = re.compile(r"[*?\[]")


class UnreadableFileError(PoolError):
    """A file that is there but isn't Parquet, or not all of it."""


class UnreachableError(PoolError):
    """A storage that didn't answer, or not in full, in spite of all attempts; another time it may."""


@dataclass(frozen=True, slots=True)
class File:
    """One file of the pool, as it was when listed; it travels to workers inside units.

    Attributes:
        path: absolute on this machine, else its URI.
        size: bytes.
        version: changes whenever the content may have: mtime in nanoseconds; in object storage the ETag, once `pinned`.
        partitions: hive folders below the listed root; None is Hive's null. Of a table's file, columns that it doesn't hold itself.
        deletes: of the table that lists the file, if there are any; in a unit, those among its rows.
        table: what that table says of the columns, while planning.
        storage: how to reach it.
    """

    path: str
    size: int
    version: str
    partitions: tuple[tuple[str, str | None], ...] = ()
    deletes: Deletes | None = None
    table: TableFile | None = field(default=None, compare=False, repr=False)
    storage: Storage = LOCAL

    @property
    def identity(self) -> tuple[str, int, str]:
        """What keys hash: another content under the same path, or the same path in another storage, gives another identity."""
        version = self.version if self.deletes is None else f"{self.version}{_WITHOUT}{self.deletes.digest}"
        return (f"{self.path}?{self.storage.place}" if self.storage.place else self.path, self.size, version)

    def part(self, low: int, high: int) -> File:
        """The file as a unit of these row positions carries it, `high` not included: the same file, with no more than is needed."""
        if self.deletes is None and self.table is None:
            return self
        return replace(self, deletes=self.deletes and self.deletes.within(low, high), table=None)


def list_files(uris: Sequence[str], key: str = "pool.uri", storage: Storage = LOCAL) -> list[File]:
    """The Parquet files under files, folders, globs (`*`, `?`, `[..]`, `**`) and URIs, sorted by path, each once.

    Folders are read recursively; names that begin with `_` or `.` and files of other types are left out.

    Args:
        uris: what to list.
        key: the query's key that they stand in, for messages.
        storage: how to reach what isn't on this machine.

    Raises:
        QueryError: there is no URI, or one is empty or in a place that raystream can't read.
        PoolError: something is missing or refused, nothing was found, or the hive folders of two files have different names.
    """
    if not uris:
        raise QueryError(f"{key} is empty; give a path")
    found: dict[str, File] = {}
    for uri in uris:
        empty = True
        for file in _list_one(uri, key, storage):
            empty = False
            known = found.get(file.path)
            if known is None or len(file.partitions) > len(known.partitions):
                found[file.path] = file
        if empty:
            raise PoolError(f"{key} {redacted(uri)} holds no Parquet file; expected names that end in {', '.join(_EXTENSIONS)}")
    files = [found[path] for path in sorted(found)]
    _same_partition_names(files, key)
    return files


def known_files(identities: Iterable[tuple[str, int, str]], storage: Storage = LOCAL) -> list[File]:
    """The files that a manifest records by their identities.

    Args:
        identities: as `File.identity` gives them.
        storage: what else is needed to reach them.
    """
    found = ((path, size, version.partition(_WITHOUT)[0]) for path, size, version in identities)
    places = [(parse(path) if is_remote(path) else None, path, size, version) for path, size, version in found]
    return [
        File(location.uri, size, version, storage=with_options(location, storage)) if location else File(path, size, version)
        for location, path, size, version in places
    ]


def open_parquet(file: File, note: Callable[[str], None] = ignore) -> pq.ParquetFile | RemoteParquet:
    """Open a file and read its footer, provided that it is still the one that was listed.

    Args:
        file: as listed.
        note: told of each request to object storage that had to be repeated.

    Raises:
        PoolError: the file is gone or was changed; UnreadableFileError if it isn't Parquet, UnreachableError if it didn't come.
    """
    try:
        if not is_remote(file.path):
            check_unchanged(file)
            # Pre-buffering would hold every row group of a unit at once; without it, one at a time.
            return pq.ParquetFile(file.path, filesystem=filesystem_of(file.path)[0], pre_buffer=False)
        source, now = _opened(file, note)
        _same(file, now)
        return RemoteParquet(source, now.identity, note)
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, PoolError):
            raise
        if is_remote(file.path) and not isinstance(error, pa.ArrowInvalid):
            raise unreadable(file, f"{file.path} can't be read", error) from None
        raise UnreadableFileError(f"{file.path} can't be read as Parquet: {one_line(error)}; repair or remove the file") from None


def check_unchanged(file: File, note: Callable[[str], None] = ignore) -> None:
    """Raise PoolError when the file is gone or isn't the one that was listed; `note` is told of each request that is repeated."""
    if is_remote(file.path):
        source, now = _opened(file, note)
        source.close()
        _same(file, now)
        return
    filesystem, path = filesystem_of(file.path)
    info = filesystem.get_file_info(path)
    if info.type != pafs.FileType.File:
        raise PoolError(f"{file.path} has vanished since the pool was listed; restore it or run the query again")
    _same(file, replace(file, size=info.size, version=str(info.mtime_ns)))


def pinned(file: File, parquet: pq.ParquetFile | RemoteParquet) -> File:
    """The file as it was when opened: of one in object storage, whose listing knows no more than the time, with its ETag."""
    return replace(file, version=parquet.version[2]) if isinstance(parquet, RemoteParquet) else file


def unreadable(file: File, what: str, error: BaseException) -> PoolError:
    """The error for a file that Arrow or a storage wouldn't read; `what` names it and says what couldn't be done."""
    if not is_remote(file.path) or not isinstance(error, OSError):
        return PoolError(f"{what}: {one_line(error)}; repair or remove the file")
    if isinstance(error, FileNotFoundError):
        hint = "restore it or run the query again" if file.table is None else f"{file.table.name} lists it, so read a newer version"
        return PoolError(f"{file.path} has vanished since the pool was listed; {hint}")
    if is_final(error):
        return PoolError(f"{what}: {one_line(error)}; {_CREDENTIALS}")
    return UnreachableError(f"{what}, asked {ATTEMPTS} times: {one_line(error)}; run the query again once the storage answers")


def threads_for(files: Sequence[File], threads: int) -> int:
    """How many files to open at a time: in object storage, where each takes two round trips, as many as there are connections."""
    return max(1, min(REMOTE_THREADS if any(is_remote(file.path) for file in files) else threads, len(files)))


def one_line(error: BaseException) -> str:
    """The first line of an error of Arrow's or a storage's, without its full stop."""
    return reason(error)


def _opened(file: File, note: Callable[[str], None]) -> tuple[pa.NativeFile, File]:
    """A remote file, opened, and what it is now."""
    filesystem, path = filesystem_of(file.path, file.storage)
    try:
        source, tag = open_remote(filesystem, path, note)
        size = source.size()
    except OSError as error:
        raise unreadable(file, f"{file.path} can't be opened", own_reason(filesystem, path, error)) from None
    return source, replace(file, size=size, version=f"etag:{tag}" if tag else file.version)


def _same(file: File, now: File) -> None:
    """Raise PoolError unless the file is still what it was; one that was only listed has no ETag yet."""
    changed = now.version != file.version and (file.version.startswith("etag:") or not now.version.startswith("etag:"))
    if now.size != file.size or changed:
        raise PoolError(f"{file.path} was changed after it was listed ({file.size} bytes then, {now.size} now); run the query again")


def _list_one(uri: str, key: str, storage: Storage) -> Iterator[File]:
    location = parse(uri, key)
    storage = with_options(location, storage, key)
    filesystem, path = filesystem_of(location.uri, storage, key)
    try:
        yield from (
            _file(info, root, location, storage) for info, root in _infos(filesystem, path, key, redacted(uri), location.scheme == "file")
        )
    except OSError as error:
        if isinstance(error, PoolError):
            raise
        if location.scheme == "file":
            raise PoolError(f"{key} {uri} can't be listed: {one_line(error)}") from None
        hint = _CREDENTIALS if is_final(error) else "run the query again once the storage answers"
        raise PoolError(f"{key} {redacted(uri)} can't be listed: {one_line(own_reason(filesystem, path, error))}; {hint}") from None


def _infos(filesystem: pafs.FileSystem, path: str, key: str, shown: str, local: bool) -> Iterator[tuple[pafs.FileInfo, str]]:
    """The Parquet files of a path or pattern, each with the root below which hive folders count."""
    if MAGIC.search(path) and not (local and filesystem.get_file_info(path).type != pafs.FileType.NotFound):
        parts = path.split("/")
        fixed = next(i for i, part in enumerate(parts) if MAGIC.search(part))
        root = "/".join(parts[:fixed]) or "/"
        below = _below(filesystem, root, glob_pattern(parts[fixed:]))
        if below is None:
            raise PoolError(f"{key} {shown}: the folder {root} does not exist")
        yield from ((info, root) for info in below)
        return
    # Object storage tells why it refuses when asked for a list, but not when asked for one object.
    below = None if local and filesystem.get_file_info(path).type == pafs.FileType.File else _below(filesystem, path, None)
    if below is not None:
        yield from ((info, path) for info in below)
        return
    info = retried(lambda: filesystem.get_file_info(path))
    if info.type != pafs.FileType.File:
        raise PoolError(f"{key} {shown} does not exist; expected a Parquet file, a folder or a pattern")
    yield info, path


def _below(filesystem: pafs.FileSystem, root: str, pattern: re.Pattern[str] | None) -> Iterator[pafs.FileInfo] | None:
    """The Parquet files below a folder; None if there is no such folder."""
    try:
        infos = retried(lambda: filesystem.get_file_info(pafs.FileSelector(root, recursive=True)))
    except OSError as error:
        if not is_no_folder(error):
            raise
        return None

    def wanted(info: pafs.FileInfo) -> bool:
        names = info.path[len(root) :].strip("/").split("/")
        if info.type != pafs.FileType.File or not info.path.endswith(_EXTENSIONS) or any(n.startswith(("_", ".")) for n in names):
            return False
        # A pattern that matches a folder stands for all that is in it.
        return pattern is None or any(pattern.fullmatch("/".join(names[:depth])) for depth in range(1, len(names) + 1))

    return (info for info in infos if wanted(info))


def _file(info: pafs.FileInfo, root: str, location: Location, storage: Storage) -> File:
    folders = info.path[len(root) :].strip("/").split("/")[:-1]
    pairs = (folder.partition("=") for folder in folders)
    keys = [(unquote(name), None if value == _NULL_PARTITION else unquote(value)) for name, equals, value in pairs if equals and name]
    return File(location.at(info.path), info.size, str(info.mtime_ns), tuple(keys), storage=storage)


def glob_pattern(parts: Iterable[str]) -> re.Pattern[str]:
    """A regular expression for the parts of a glob; `**` stands for any number of folders."""
    pattern = ""
    for part in parts:
        if part == "**":
            pattern += "(?:[^/]+/)*"
            continue
        text = re.sub(r"\[[!^]?\]?[^\]]*\]|.", lambda m: _glob_piece(m[0]), part, flags=re.DOTALL)
        pattern += f"{text}/"
    # A trailing `**` matches a folder's whole content, every other part ends without the slash.
    return re.compile(pattern.removesuffix("/") if not pattern.endswith(")*") else pattern + "[^/]+", re.DOTALL)


def _glob_piece(piece: str) -> str:
    if piece == "*":
        return "[^/]*"
    if piece == "?":
        return "[^/]"
    if len(piece) > 1:
        inside = piece[1:-1].replace("\\", "\\\\").replace("[", "\\[")
        return f"[^/{inside[1:]}]" if inside.startswith(("!", "^")) else f"[{inside}]"
    return re.escape(piece)


def _same_partition_names(files: Sequence[File], key: str) -> None:
    first: File | None = None
    for file in files:
        if not file.partitions:
            continue
        first = first or file
        names, expected = (sorted(name for name, _ in f.partitions) for f in (file, first))
        if names != expected or len(set(names)) != len(names):
            raise PoolError(
                f"{key}: the hive folders of {file.path} are named {', '.join(names)}, those of {first.path} {', '.join(expected)}; "
                "expected the same names for every file"
            )

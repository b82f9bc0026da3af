"""Which Parquet files a pool consists of, and the only place where a path becomes (file system, path)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raystream.errors import PoolError, QueryError
from raystream.lake import LOCAL, Storage, filesystem_of

_EXTENSIONS = (".parquet", ".parq", ".pq")
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_MAGIC = re.compile(r"[*?\[]")


class UnreadableFileError(PoolError):
    """A file that is there but isn't Parquet, or not all of it."""


@dataclass(frozen=True, slots=True)
class File:
    """One file of the pool, as it was when listed; it travels to workers inside units.

    Attributes:
        path: absolute.
        size: bytes.
        version: changes whenever the content may have: mtime in nanoseconds.
        partitions: hive folders below the listed root; None is Hive's null.
    """

    path: str
    size: int
    version: str
    partitions: tuple[tuple[str, str | None], ...] = ()

    @property
    def identity(self) -> tuple[str, int, str]:
        """What keys hash: another content under the same path gives another identity."""
        return (self.path, self.size, self.version)


def resolve(uri: str, key: str = "pool.uri", storage: Storage = LOCAL) -> tuple[pafs.FileSystem, str]:
    """The file system that holds a path or URI, and its path there.

    Raises:
        QueryError: the URI is empty, holds credentials, or its scheme is one that raystream can't read.
    """
    return filesystem_of(uri, storage, key)


def list_files(uris: Sequence[str], key: str = "pool.uri") -> list[File]:
    """The Parquet files under files, folders, globs (`*`, `?`, `[..]`, `**`) and file:// URIs, sorted by path, each once.

    Folders are read recursively; names that begin with `_` or `.` and files of other types are left out.

    Args:
        uris: what to list.
        key: the query's key that they stand in, for messages.

    Raises:
        QueryError: there is no URI, or one is empty or in a place that raystream can't read.
        PoolError: something is missing, nothing was found, or the hive folders of two files have different names.
    """
    if not uris:
        raise QueryError(f"{key} is empty; give a path")
    found: dict[str, File] = {}
    for uri in uris:
        empty = True
        for file in _list_one(uri, key):
            empty = False
            known = found.get(file.path)
            if known is None or len(file.partitions) > len(known.partitions):
                found[file.path] = file
        if empty:
            raise PoolError(f"{key} {uri} holds no Parquet file; expected names that end in {', '.join(_EXTENSIONS)}")
    files = [found[path] for path in sorted(found)]
    _same_partition_names(files, key)
    return files


def open_parquet(file: File) -> pq.ParquetFile:
    """Open a file and read its footer, provided that it is still the one that was listed.

    Raises:
        PoolError: the file is gone or was changed; UnreadableFileError if it isn't Parquet.
    """
    check_unchanged(file)
    filesystem, path = resolve(file.path)
    try:
        # Pre-buffering would hold every row group of a unit at once; without it, one at a time.
        return pq.ParquetFile(path, filesystem=filesystem, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise UnreadableFileError(f"{file.path} can't be read as Parquet: {one_line(error)}; repair or remove the file") from None


def check_unchanged(file: File) -> None:
    """Raise PoolError when the file is gone or isn't the one that was listed."""
    filesystem, path = resolve(file.path)
    info = filesystem.get_file_info(path)
    if info.type != pafs.FileType.File:
        raise PoolError(f"{file.path} has vanished since the pool was listed; restore it or run the query again")
    if (info.size, str(info.mtime_ns)) != (file.size, file.version):
        raise PoolError(f"{file.path} was changed after it was listed ({file.size} bytes then, {info.size} now); run the query again")


def one_line(error: Exception) -> str:
    """The first line of an error of Arrow's, without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")


def _list_one(uri: str, key: str) -> Iterator[File]:
    filesystem, path = resolve(uri, key)
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.File:
        yield _file(info, path)
    elif info.type == pafs.FileType.Directory:
        yield from _below(filesystem, path, None, key)
    elif _MAGIC.search(path):
        parts = path.split("/")
        fixed = next(i for i, part in enumerate(parts) if _MAGIC.search(part))
        root = "/".join(parts[:fixed]) or "/"
        if filesystem.get_file_info(root).type != pafs.FileType.Directory:
            raise PoolError(f"{key} {uri}: the folder {root} does not exist")
        yield from _below(filesystem, root, _glob(parts[fixed:]), key)
    else:
        raise PoolError(f"{key} {uri} does not exist; expected a Parquet file, a folder or a pattern")


def _below(filesystem: pafs.FileSystem, root: str, pattern: re.Pattern[str] | None, key: str) -> Iterator[File]:
    try:
        infos = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    except OSError as error:
        raise PoolError(f"{key}: the folder {root} can't be listed: {one_line(error)}") from None
    for info in infos:
        names = info.path[len(root) :].strip("/").split("/")
        if info.type != pafs.FileType.File or not info.path.endswith(_EXTENSIONS) or any(n.startswith(("_", ".")) for n in names):
            continue
        # A pattern that matches a folder stands for all that is in it.
        if pattern is None or any(pattern.fullmatch("/".join(names[:depth])) for depth in range(1, len(names) + 1)):
            yield _file(info, root)


def _file(info: pafs.FileInfo, root: str) -> File:
    folders = info.path[len(root) :].strip("/").split("/")[:-1]
    pairs = (folder.partition("=") for folder in folders)
    keys = [(unquote(name), None if value == _NULL_PARTITION else unquote(value)) for name, equals, value in pairs if equals and name]
    return File(info.path, info.size, str(info.mtime_ns), tuple(keys))


def _glob(parts: Iterable[str]) -> re.Pattern[str]:
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

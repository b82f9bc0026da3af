"""One Parquet file of a pool: what it was when listed, opening it, and whether it is still the same.

A file that was written just now can't be told from the same file rewritten, so it is waited for. A file of a table brings what the
table knows of it: the columns' types, and which rows are deleted although the file still holds them.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raystream.errors import PoolError
from raystream.figures import of_columns
from raystream.lake import LOCAL, Storage, filesystem_at, is_final, is_remote, located, own_reason, reason, with_options
from raystream.lake.filesystem import REMOTE_THREADS
from raystream.lake.retry import ATTEMPTS, LASTING, ignore, in_words, is_outage, on_disk, retried
from raystream.pool.footer_bytes import EncryptedFooterError, footer_bytes
from raystream.pool.remote import READ_AS, RemoteParquet, open_remote
from raystream.pool.text_files import TextIds, TextParquet, open_text, text_format

_FIELD_ID = b"PARQUET:field_id"


@dataclass(frozen=True, slots=True)
class TableFile:
    """A table's columns as they hold for one file; only planning needs it.

    Attributes:
        name: the table, for messages.
        types: of the table's columns.
        ids: of the columns, by which Iceberg knows them when they are renamed; Delta has none.
        constants: columns that the file needn't hold because the table knows their one value, as text.
        defaults: columns that rows written before the column was added are given a value for.
    """

    name: str
    types: Mapping[str, pa.DataType]
    ids: Mapping[str, int] = field(default_factory=dict)
    constants: Mapping[str, str | None] = field(default_factory=dict)
    defaults: frozenset[str] = frozenset()

    def absent(self, path: str, schema: pa.Schema, names: Sequence[str]) -> list[tuple[str, str | None]]:
        """Find those of the columns that the file doesn't hold, with the one value that its rows have.

        A column that was added after the file was written is null there.

        Raises:
            PoolError: a column isn't the table's, or was renamed, or replaced by another of its name, after the file was written.
        """
        found: list[tuple[str, str | None]] = []
        in_file = {int(f.metadata[_FIELD_ID]): f.name for f in schema if f.metadata and _FIELD_ID in f.metadata}
        for name in dict.fromkeys(names):
            if name not in self.types:
                raise PoolError(f"column {name} is not in {self.name}{of_columns(name, self.types)}")
            here = in_file.get(self.ids.get(name, -1))
            if here is not None and here != name:
                self._refuse(path, name, f"was renamed after {path} was written, where it is {here}")
            if name in schema.names:
                if here is None and name in in_file.values() and self.ids:
                    self._refuse(path, name, f"is another one than the column of that name in {path}, which the table has dropped since")
                continue
            if name in self.defaults and name not in self.constants:
                self._refuse(path, name, f"was added after {path} was written, with a default value")
            found.append((name, self.constants.get(name)))
        return found

    def _refuse(self, path: str, name: str, what: str) -> None:
        raise PoolError(f"column {name} of {self.name} {what}; rewrite the table's files (compaction does), then run the query again")


Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Deletes:
    """The deleted rows of one file, or of a run of its rows.

    Two are equal when they belong to equal deletes of the whole file: what a unit carries of them is no part of its identity.

    Attributes:
        digest: of all deleted positions of the file.
        positions: (n,) int64, sorted, each once; positions in the file.
    """

    digest: str
    positions: Positions = field(compare=False, repr=False)

    @classmethod
    def of(cls, parts: Sequence[npt.ArrayLike]) -> Deletes | None:
        """Return the union of several lists of positions, in any order; None if nothing is deleted."""
        positions = np.unique(np.concatenate([np.asarray(part, dtype=np.int64) for part in parts] or [np.empty(0, np.int64)]))
        return cls(hashlib.sha256(positions.astype("<i8").tobytes()).hexdigest()[:16], positions) if len(positions) else None

    def within(self, low: int, high: int) -> Deletes:
        """Return the deletes from position `low` up to, but not including, `high`."""
        first, end = np.searchsorted(self.positions, [low, high])
        return Deletes(self.digest, self.positions[first:end].copy())

    def count(self, low: int, high: int) -> int:
        """Count the deleted positions from `low` up to, but not including, `high`."""
        first, end = np.searchsorted(self.positions, [low, high])
        return int(end - first)

    def kept(self, first: int, rows: int) -> Positions:
        """Find the offsets of the rows that are left among `rows` rows from position `first` on."""
        keep = np.ones(rows, dtype=bool)
        keep[self.within(first, first + rows).positions - first] = False
        return np.flatnonzero(keep)


_WITHOUT = " without "
"""Between a file's version and the digest of its deleted rows, in its identity."""
FOREIGN = (pa.ArrowException, OSError, ValueError, LookupError, TypeError, ArithmeticError, MemoryError, RecursionError)
"""What reading bytes that others wrote may raise: pyarrow's own errors, and Python's, where names and extension types are taken apart."""
CREDENTIALS_HINT = "check the name, the options of storage, and the credentials in the environment"


class NothingThereError(PoolError):
    """A path under which there is no file yet."""


class UnreadableFileError(PoolError):
    """A file that is there but isn't Parquet, or not all of it, or is encrypted."""


class UnreachableError(PoolError):
    """A storage that didn't answer, or not in full, in spite of all attempts; another time it may."""


class OutageError(UnreachableError):
    """A storage that is away: it is to be waited for, and says nothing about the file."""


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
        ids: of a file of text, how its column of ids is read.
    """

    path: str
    size: int
    version: str
    partitions: tuple[tuple[str, str | None], ...] = ()
    deletes: Deletes | None = None
    table: TableFile | None = field(default=None, compare=False, repr=False)
    storage: Storage = LOCAL
    ids: TextIds | None = None

    @property
    def identity(self) -> tuple[str, int, str]:
        """The identity that keys hash: another content under the same path, or the same path in another storage, gives another one."""
        version = self.version if self.deletes is None else f"{self.version}{_WITHOUT}{self.deletes.digest}"
        return (f"{self.path}?{self.storage.place}" if self.storage.place else self.path, self.size, version)

    def part(self, low: int, high: int) -> File:
        """Return the file as a unit of these row positions carries it, `high` not included: the same file, with no more than is needed."""
        if self.deletes is None and self.table is None:
            return self
        return replace(self, deletes=self.deletes and self.deletes.within(low, high), table=None)


def known_files(identities: Iterable[tuple[str, int, str]], storage: Storage = LOCAL) -> list[File]:
    """Return the files that a manifest records by their identities.

    Args:
        identities: as `File.identity` gives them.
        storage: what else is needed to reach them.
    """
    found = ((path, size, version.partition(_WITHOUT)[0]) for path, size, version in identities)
    places = [(located(path) if is_remote(path) else None, path, size, version) for path, size, version in found]
    return [
        File(path, size, version, storage=with_options(location, storage) if location else LOCAL)
        for location, path, size, version in places
    ]


def open_parquet(file: File, note: Callable[[str], None] = ignore) -> pq.ParquetFile | RemoteParquet:
    """Open a file and read its footer, provided that it is still the one that was listed; one of text is read and made into Parquet.

    Args:
        file: as listed.
        note: told of each request to object storage that had to be repeated.

    Raises:
        PoolError: the file is gone or was changed; UnreadableFileError if it isn't Parquet, UnreachableError if it didn't come.
    """
    try:
        if text_format(file.path):
            return _open_text(file, note)
        if not is_remote(file.path):
            return on_disk(lambda: _opened_here(file), f"the disk of {file.path}")
        source, now = _opened(file, note)
        _same(file, now)
        return RemoteParquet(source, now.identity, note)
    except PoolError:
        raise
    except FOREIGN as error:
        if is_outage(error) or (is_remote(file.path) and isinstance(error, OSError) and not isinstance(error, pa.ArrowInvalid)):
            raise unreadable(file, f"{file.path} can't be read", error) from None
        raise _not_parquet(file, error) from None


def schema_of(file: File, parquet: pq.ParquetFile | RemoteParquet) -> pa.Schema:
    """Return an opened file's schema as Arrow's.

    Raises:
        UnreadableFileError: it has none.
    """
    try:
        return parquet.schema_arrow
    except FOREIGN as error:
        raise UnreadableFileError(f"{file.path} has a schema that can't be read: {reason(error)}; write the file anew") from None


def footer_of(file: File, parquet: pq.ParquetFile | RemoteParquet) -> tuple[bytes, int]:
    """Return the bytes from where an opened file's footer begins, and the file's size; of a damaged file, whatever stands there.

    Raises:
        EncryptedFooterError: they can't be read without a key.
        OSError: they can't be read.
    """
    if isinstance(parquet, TextParquet):
        return parquet.footer
    if isinstance(parquet, RemoteParquet):
        return parquet.footer, file.size
    return on_disk(lambda: _local_footer(file), f"the disk of {file.path}"), file.size


def _local_footer(file: File) -> bytes:
    with open(located(file.path).path, "rb") as source:

        def read_at(count: int, at: int) -> bytes:
            source.seek(at)
            return source.read(count)

        return footer_bytes(read_at, source.seek(0, os.SEEK_END))


def _not_parquet(file: File, error: BaseException) -> UnreadableFileError:
    """Return the error for what pyarrow won't open."""
    try:
        if not is_remote(file.path):
            _local_footer(file)  # pyarrow doesn't say plainly that a file is encrypted
    except EncryptedFooterError as encrypted:
        error = encrypted
    except OSError:
        pass
    if isinstance(error, EncryptedFooterError):
        return UnreadableFileError(f"{file.path} can't be read: {error}; write it without encryption")
    return UnreadableFileError(f"{file.path} can't be read as Parquet: {reason(error)}; repair or remove the file")


def check_unchanged(file: File, note: Callable[[str], None] = ignore) -> None:
    """Raise PoolError when the file is gone or isn't the one that was listed; `note` is told of each request that is repeated."""
    if is_remote(file.path):
        source, now = _opened(file, note)
        source.close()
        _same(file, now)
        return
    filesystem, path = filesystem_at(located(file.path))
    info = filesystem.get_file_info(path)
    if info.type != pafs.FileType.File:
        raise PoolError(f"{file.path} has vanished since the pool was listed; restore it or run the query again")
    _same(file, replace(file, size=info.size, version=str(info.mtime_ns)))


def pinned(file: File, parquet: pq.ParquetFile | RemoteParquet) -> File:
    """Return the file as it was when opened: of one in object storage, whose listing knows no more than the time, with its ETag."""
    return replace(file, version=parquet.version[2]) if isinstance(parquet, RemoteParquet | TextParquet) else file


def unreadable(file: File, what: str, error: BaseException) -> PoolError:
    """Return the error for a file that Arrow or a storage wouldn't read; `what` names it and says what couldn't be done."""
    if "decrypt" in str(error):
        return PoolError(f"{what}: it is encrypted, and raystream holds no keys; write it without encryption")
    if is_outage(error):
        waited = f", waited for it for {in_words(LASTING.seconds)}" if is_remote(file.path) else ""
        return OutageError(f"{what}: {reason(error)}{waited}; run the query again once the storage answers")
    if not is_remote(file.path) or not isinstance(error, OSError):
        return PoolError(f"{what}: {reason(error)}; repair or remove the file")
    if isinstance(error, FileNotFoundError):
        hint = "restore it or run the query again" if file.table is None else f"{file.table.name} lists it, so read a newer version"
        return PoolError(f"{file.path} has vanished since the pool was listed; {hint}")
    if is_final(error):
        return PoolError(f"{what}: {reason(error)}; {CREDENTIALS_HINT}")
    return UnreachableError(f"{what}, asked {ATTEMPTS} times: {reason(error)}; run the query again once the storage answers")


def threads_for(files: Sequence[File], threads: int) -> int:
    """Choose how many files to open at a time: in object storage, where each takes two round trips, as many as there are connections."""
    return max(1, min(REMOTE_THREADS if any(is_remote(file.path) for file in files) else threads, len(files)))



def _opened_here(file: File) -> pq.ParquetFile:
    check_unchanged(file)
    # Pre-buffering would hold every row group of a unit at once; without it, one at a time.
    return pq.ParquetFile(file.path, filesystem=filesystem_at(located(file.path))[0], pre_buffer=False, **READ_AS)


def _open_text(file: File, note: Callable[[str], None]) -> TextParquet:
    if not is_remote(file.path):
        check_unchanged(file)
        with filesystem_at(located(file.path))[0].open_input_file(located(file.path).path) as local:
            return open_text((file.path, file.size, file.version), file.ids, local.read)
    source, now = _opened(file, note)
    with source:
        _same(file, now)

        def read() -> bytes:
            data: bytes = retried(lambda: source.read_at(now.size, 0), note, patience=LASTING, place=now.path)
            return data

        return open_text((now.path, now.size, now.version), file.ids, read)


def _opened(file: File, note: Callable[[str], None]) -> tuple[pa.NativeFile, File]:
    """Open a remote file, and say what it is now."""
    filesystem, path = filesystem_at(located(file.path), file.storage)
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


FINE = 20_000_000
"""Nanoseconds between two times that a kernel gives to files at least: a tick of its clock, 10 ms at most, and some."""
COARSE = 2_000_000_000
"""The same for file systems that keep whole seconds, or every second one."""


def settle(files: Iterable[File]) -> None:
    """Wait until files that may be scored can be told from the same files rewritten: those of a pool, of labels, of targets."""
    time.sleep(unsettled(files, time.time_ns()) / 1e9)


def unsettled(files: Iterable[File], now: int) -> int:
    """Return the nanoseconds to wait until a rewrite of any of these local files, of the same size, gives it another mtime.

    A file read within the tick in which it was written, and rewritten within it, would keep its name, size and mtime:
    its old scores would stand for its new rows.

    Args:
        files: as listed.
        now: the time in nanoseconds since the epoch.
    """
    longest = 0
    for file in files:
        if "://" in file.path or not file.version.isdigit():
            continue  # object storage gives every content a version of its own
        written = int(file.version)
        age = now - written
        tick = FINE if written % 1_000_000_000 else COARSE
        if 0 <= age < tick:
            longest = max(longest, tick - age)
    return longest

"""Decisions that were answered and have no file of their own yet: one file that grows, a record for each batch of requests.

    streams/<name>/log/00000012.open      grows: decisions that will be `decisions/00000012.parquet`; or says that these come whole
    streams/<name>/log/00000012.sealed    the same once somebody else folds it: what is appended from then on doesn't count

A file of decisions a batch would cost two files, four waits for the disk, and a file that stays. A record costs one wait. Whoever makes
the `.open` file, put if absent, is the only one to append to it. Anybody may seal it, alive or not: its name is taken away, and then it
is read. So a record counts if the name was still there after the record was on disk; that is looked at before anything is answered, and
a record for which it was gone is in the file of decisions by chance or is decided on again. No lock is needed, and no clock.

A record is its length, a checksum that goes on from that of the record before, and its content. What the last writer had not written
wholly when it died fails its checksum and ends the log: it never was answered. Records are written over zeros, so that the disk has only
them to take, and not a file's new size each time: of that, it says much later that it has it when others write, too.

That holds where all who look at a folder see the same at once, as on a machine's own disk; elsewhere, decisions go into files at once.
"""

from __future__ import annotations

import json
import os
import struct
import threading
import uuid
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import xxhash

from raystream.errors import StoreError
from raystream.loop.streams.decided import Decided, Numbers
from raystream.store.protocol import Store

_FRAME = struct.Struct("<IQ")
_AHEAD = 1 << 20
"""Zeros that are written at a time, over which records come to lie."""
_as_json = json.JSONEncoder(separators=(",", ":")).encode
_LENGTH = struct.Struct("<I")
_IDS = ["ids"]
_MAGIC = b"raystream decisions 2\n"
WHOLE = b"raystream decisions 1\nwhole\n"
"""What an `.open` file holds where nobody appends, since the decisions are put as one file: the same whoever says so."""
_OWN_DISKS = frozenset({"apfs", "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "hfs", "overlay", "tmpfs", "xfs", "zfs"})
"""File systems of one machine."""


@dataclass(frozen=True)
class Begun:
    """How a segment begins.

    Attributes:
        epoch, model: of all of its rows, as in `Progress`.
        classes: of the model.
        schema: of its rows, as a file of decisions has them.
    """

    epoch: int
    model: str
    classes: int | None
    schema: pa.Schema


@dataclass(frozen=True)
class Record:
    """What was decided together.

    Attributes:
        requests: as `said_of` writes them: their ids, what was asked, and how many rows each has.
        decided: their rows, with scores as they were compared: a file of decisions may have them rounded to the type of those before.
        vectors: (n, d) embeddings that were compared, where some were.
    """

    requests: str
    decided: Decided
    vectors: Numbers | None


def said_of(requests: Sequence[tuple[str, str, int]]) -> str:
    """Write requests as a record, and a file of decisions in its metadata, names them."""
    return _as_json(requests)[1:-1]


def may_append(store: Store) -> bool:
    """Tell whether all who use a store see what one of them writes at once, by the kind of file system that it lies on."""
    if store.remote:
        return False
    place = Path(store.place("")).resolve()
    kinds = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    return next((kinds[folder] in _OWN_DISKS for folder in (place, *place.parents) if folder in kinds), False)


class Segment:
    """The file that this process appends to; one thread appends, any may wait for the disk.

    Args:
        path: of the `.open` file, which this process has just made.
        first: what it holds.
        begun: the same.

    Raises:
        StoreError: it can't be opened; it was sealed already, and another may have its name.
    """

    def __init__(self, path: Path, first: bytes, begun: Begun) -> None:
        self.begun = begun
        self._path, self._end, self._sum = path, len(first), _sum_of(first)
        self._size = self._end  # of the file: from `_end` on it holds zeros
        self._lock = threading.Lock()
        self._kept = False
        self.lost = False
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._descriptor)
            ours = os.pread(self._descriptor, len(first) + 1, 0) == first
        except OSError as error:
            raise _refused(path, error) from error
        if not ours:
            raise StoreError(f"store: {path} was sealed before anything was appended; ask again")
        self._inode = os.fstat(self._descriptor).st_ino

    def append(self, record: Record) -> None:
        """Add a record, which is on disk after `sync`.

        Raises:
            StoreError: it can't be written; then nothing more may be appended.
        """
        frame, after = _framed(_content(record), self._sum)
        data, at = memoryview(frame), self._end
        try:
            if at + len(data) > self._size:
                self._size = at + len(data) + os.pwrite(self._descriptor, bytes(_AHEAD), at + len(data))
            while data:
                written = os.pwrite(self._descriptor, data, at)
                data, at = data[written:], at + written
        except OSError as error:
            self.lost = True
            raise _refused(self._path, error) from error
        self._end, self._sum = at, after

    def sync(self) -> bool:
        """Wait until all that was appended is on disk; False if it may not count, since somebody has sealed the file.

        Raises:
            StoreError: the disk doesn't take it; whether it counts shows when the file is folded.
        """
        try:
            _to_disk(self._descriptor)
        except OSError as error:
            self.lost = True
            raise _refused(self._path, error) from error
        with self._lock:
            if not self._kept and not self.is_open():
                self.lost = True
            return not self.lost

    def is_open(self) -> bool:
        """Tell whether nobody has sealed the file."""
        try:
            return os.stat(self._path).st_ino == self._inode
        except OSError:
            return False

    def finish(self) -> bool:
        """Append nothing more: wait for the disk, after which whoever seals or folds the file finds all of it; False as of `sync`.

        Raises:
            StoreError: as of `sync`.
        """
        self._kept = self.sync()
        return self._kept


def beginning(begun: Begun) -> bytes:
    """Make what a segment's file holds at first; no two are the same."""
    about = {"epoch": begun.epoch, "model": begun.model, "classes": begun.classes, "of": uuid.uuid4().hex}
    frame, _ = _framed(_joined(about, begun.schema.serialize()), 0)
    return _MAGIC + frame


def read_segment(data: bytes) -> tuple[Begun, list[Record]]:
    """Read what a segment's file holds: its records up to the first that isn't whole.

    Raises:
        ValueError: it is none.
    """
    if not data.startswith(_MAGIC):
        other = data.startswith(_MAGIC[:-2]) and len(data) >= len(_MAGIC)
        raise ValueError(f"it {'was written by another version' if other else 'does not begin as a log of decisions does'}")
    found: list[bytes] = []
    at, before = len(_MAGIC), 0
    while len(data) - at >= _FRAME.size:
        length, checksum = _FRAME.unpack_from(data, at)
        if not length:
            break  # zeros, over which nothing came to lie
        content = data[at + _FRAME.size : at + _FRAME.size + length]
        if len(content) < length or xxhash.xxh3_64_intdigest(content, before) != checksum:
            break
        found.append(content)
        at, before = at + _FRAME.size + length, checksum
    if not found:
        raise ValueError("its beginning is not whole")
    about, schema = _parted(found[0])
    begun = Begun(about["epoch"], about["model"], about["classes"], pa.ipc.read_schema(pa.py_buffer(schema)))
    return begun, [_record(content, begun) for content in found[1:]]


def seal(store: Store, opened: str, sealed: str) -> None:
    """Take a segment's name away, so that nothing appended from now on counts; done by several at once, or done again, it is the same.

    Raises:
        StoreError: it can't be.
    """
    path = Path(store.place(opened))
    try:
        with suppress(FileExistsError, FileNotFoundError):  # somebody else is at it, or is done
            os.link(path, store.place(sealed))
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _refused(path, error) from error


def _to_disk(descriptor: int) -> None:
    """Wait until a file's content is on disk, and of what is known of it as much as reading it takes, where that may be asked for."""
    (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(descriptor)


def _framed(content: bytes, before: int) -> tuple[bytes, int]:
    checksum = xxhash.xxh3_64_intdigest(content, before)
    return _FRAME.pack(len(content), checksum) + content, checksum


def _sum_of(first: bytes) -> int:
    return int(_FRAME.unpack_from(first, len(_MAGIC))[1])


def _content(record: Record) -> bytes:
    decided, vectors = record.decided, record.vectors
    head = f'{{"requests":[{record.requests}],"rows":{len(decided)},"width":{"null" if vectors is None else vectors.shape[1]}}}'.encode()
    columns = (decided.scores, decided.thresholds, decided.seen, decided.chosen, *(() if vectors is None else (vectors,)))
    ids = pa.RecordBatch.from_arrays([decided.ids], _IDS).serialize()
    return b"".join([_LENGTH.pack(len(head)), head, *(column.tobytes() for column in columns), memoryview(ids)])


def _record(content: bytes, begun: Begun) -> Record:
    about, rest = _parted(content)
    count, width = about["rows"], about["width"]
    at = 0

    def column(dtype: type[np.generic], size: int) -> Any:
        nonlocal at
        values = np.frombuffer(rest, dtype, size, at)
        at += values.nbytes
        return values

    scores, thresholds, seen, chosen = (column(kind, count) for kind in (np.float64, np.float64, np.int64, np.bool_))
    vectors = None if width is None else column(np.float64, count * width).reshape(count, width)
    ids = pa.ipc.read_record_batch(pa.py_buffer(rest[at:]), pa.schema([(_IDS[0], begun.schema.field(0).type)])).column(0)
    return Record(said_of(about["requests"]), Decided(ids, scores, thresholds, chosen, seen, begun.epoch), vectors)


def _joined(about: dict[str, Any], part: pa.Buffer) -> bytes:
    head = _as_json(about).encode()
    return b"".join([_LENGTH.pack(len(head)), head, memoryview(part)])


def _parted(content: bytes) -> tuple[dict[str, Any], bytes]:
    end = _LENGTH.size + _LENGTH.unpack_from(content)[0]
    about: dict[str, Any] = json.loads(content[_LENGTH.size : end])
    return about, content[end:]


def _refused(path: Path, error: OSError) -> StoreError:
    return StoreError(f"store: {path} can't be written: {error.strerror or error}")

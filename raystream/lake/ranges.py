"""Remote files in this process and on this machine: byte ranges of them, and whole copies.

Byte ranges of a remote file: fetched at the same time, joined where they lie close, asked for again where a connection breaks.

Copies of remote files on this machine, each made once a version, for what can be read from a disk alone: models.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import tempfile
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from raystream.errors import ModelError
from raystream.lake.filesystem import REMOTE_THREADS, filesystem_of, with_options
from raystream.lake.retry import BRIEF, LASTING, Patience, ignore, is_final, is_no_folder, own_reason, reason, retried
from raystream.lake.uri import LOCAL, Storage, is_remote, parse, redacted

if TYPE_CHECKING:
    import pyarrow.fs as pafs

_Result = TypeVar("_Result")
Range = tuple[int, int]
"""First byte, and the one after the last."""
HOLE = 64 << 10
"""Unwanted bytes that are read rather than paying for another request."""
PIECE = 8 << 20
"""Bytes of one request: one connection alone doesn't fill the link, and what breaks costs no more than this."""


def joined(ranges: Iterable[Range], hole: int = HOLE) -> list[Range]:
    """Return the ranges in order, those with at most `hole` bytes between them made one."""
    result: list[Range] = []
    for start, stop in sorted(ranges):
        if result and start <= result[-1][1] + hole:
            result[-1] = (result[-1][0], max(stop, result[-1][1]))
        else:
            result.append((start, stop))
    return result


class Fetching:
    """Ranges of a file on their way; `wait` gives them as a file to read from.

    Args:
        read_at: `read_at(bytes, offset)` of the remote file; called from several threads.
        size: of the file.
        ranges: those wanted.
        note: told of each request that is repeated.
        place: where it lies, for people.
    """

    def __init__(
        self,
        read_at: Callable[[int, int], bytes],
        size: int,
        ranges: Iterable[Range],
        note: Callable[[str], None] = ignore,
        place: str = "object storage",
    ) -> None:
        self._size, self._note, self._read_at, self._place = size, note, read_at, place
        self._ranges = joined(ranges)

        def fetch(start: int, stop: int) -> bytes:
            data = read_at(stop - start, start)
            if len(data) != stop - start:
                raise OSError(f"{len(data)} bytes came of {stop - start}")
            return data

        def ask(start: int, stop: int) -> Future[bytes]:
            return in_another_thread(lambda: retried(lambda: fetch(start, stop), note, patience=LASTING, place=place))

        self._pieces = [[ask(at, min(at + PIECE, stop)) for at in range(start, stop, PIECE)] for start, stop in self._ranges]

    def wait(self) -> Fetched:
        """Return the bytes, once all are there.

        Raises:
            OSError: a piece didn't come in spite of all attempts.
        """
        # Pieces stay apart: joining them would hold Python's lock for as long as copying megabytes takes, and the model's thread with it.
        blocks = [piece.result() for pieces in self._pieces for piece in pieces]
        starts = [at for start, stop in self._ranges for at in range(start, stop, PIECE)]
        self._pieces = []
        rest = lambda start, length: retried(lambda: self._read_at(length, start), self._note, patience=LASTING, place=self._place)  # noqa: E731
        return Fetched(starts, blocks, self._size, rest)

    def cancel(self) -> None:
        """Forget what hasn't begun."""
        for pieces in self._pieces:
            for piece in pieces:
                piece.cancel()


class RangeReader(io.RawIOBase):
    """A read-only file of which ranges are asked for as they are read, as pyarrow reads it.

    Args:
        fetch: the bytes of a range, by its start and length.
        size: of the file.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._fetch, self._size, self._at = fetch, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def size(self) -> int:
        """Return the bytes of the whole file."""
        return self._size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> Any:
        left = self._size - self._at
        length = left if size is None or size < 0 else min(size, left)
        if length <= 0:
            return b""
        data = self._range(self._at, length)
        self._at += len(data)
        return data

    def _range(self, start: int, length: int) -> Any:
        return self._fetch(start, length)


class Fetched(RangeReader):
    """A read-only file of which some ranges are there; what lies elsewhere is asked for one by one.

    `failed` says whether any of that didn't come in spite of all attempts.
    """

    failed = False

    def __init__(self, starts: Sequence[int], blocks: Sequence[bytes], size: int, rest: Callable[[int, int], bytes]) -> None:
        super().__init__(rest, size)
        self._starts, self._blocks = starts, blocks

    def _range(self, start: int, length: int) -> Any:
        """Return these bytes, without a copy where they are there."""
        parts = self._parts(start, length)
        if parts is None:
            try:
                return super()._range(start, length)
            except OSError:
                self.failed = True
                raise
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _parts(self, at: int, count: int) -> list[memoryview] | None:
        """Return these bytes where they lie; None unless all of them are there."""
        index = bisect_right(self._starts, at) - 1
        parts: list[memoryview] = []
        while count:
            if not 0 <= index < len(self._blocks) or not 0 <= at - self._starts[index] < len(self._blocks[index]):
                return None
            offset = at - self._starts[index]
            parts.append(memoryview(self._blocks[index])[offset : offset + count])
            at, count, index = at + len(parts[-1]), count - len(parts[-1]), index + 1
        return parts


def in_another_thread(call: Callable[[], _Result]) -> Future[_Result]:
    """Start a request, through the same threads as all of the process's others."""
    return _threads(os.getpid()).submit(call)


@lru_cache(maxsize=1)
def _threads(process: int) -> ThreadPoolExecutor:
    """Return the process's own; `process` makes sure of it after a fork."""
    return ThreadPoolExecutor(REMOTE_THREADS, thread_name_prefix="raystream-lake")


_PIECE = 8 << 20
_Ask = Callable[[Callable[[], Any]], Any]


def local_copy(uri: str, storage: Storage = LOCAL, key: str = "model.weights", patience: Patience = BRIEF) -> str:
    """Return the path of a copy of a remote file or folder; a plain path as it is.

    The copy lies in the system's folder for temporary files under a name made of the URI and of each file's size and ETag
    or time, so that what was replaced is fetched again and what wasn't is not.

    Args:
        uri: of the file or folder.
        storage: how to reach it.
        key: the query's key that names it, for messages.
        patience: with a server that is away before anything is known to be there; what was listed is always waited for.

    Raises:
        QueryError: the URI can't be used.
        ModelError: nothing is there, or it can't be fetched.
    """
    if not is_remote(uri):
        return uri
    location = parse(uri, key)
    storage = with_options(location, storage, key)
    filesystem, path = filesystem_of(location.uri, storage, key)
    try:
        files = dict(_files(filesystem, path, partial(retried, patience=patience, place=redacted(uri))))
        if not files:
            raise ModelError(f"{key} {redacted(uri)} does not exist; give the URI of a file or folder that every worker can read")
        digest = hashlib.sha256(repr((location.uri, storage.place, sorted(files.items()))).encode()).hexdigest()[:32]
        target = _cache() / digest / path.rpartition("/")[2]
        if not target.exists():
            _fetch(filesystem, path, files, target, partial(retried, patience=LASTING, place=redacted(uri)))
    except OSError as error:
        if isinstance(error, ModelError):
            raise
        hint = "check the name, the options of storage, and the credentials in the environment"
        told = own_reason(filesystem, path, error)
        raise ModelError(
            f"{key} {redacted(uri)} can't be fetched: {reason(told)}; {hint if is_final(told) else 'run the query again once it answers'}"
        ) from None
    return str(target)


def _files(filesystem: pafs.FileSystem, path: str, ask: _Ask) -> Iterator[tuple[str, tuple[int, str]]]:
    """Yield the files of a folder, or the one file, by what follows the path: their sizes and versions."""
    import pyarrow.fs as pafs

    try:
        infos = ask(lambda: filesystem.get_file_info(pafs.FileSelector(path, recursive=True)))
    except OSError as error:
        if not is_no_folder(error):
            raise
        infos = []
    for info in infos or [ask(lambda: filesystem.get_file_info(path))]:
        if info.type == pafs.FileType.File:
            with ask(partial(filesystem.open_input_file, info.path)) as file:
                facts = {str(name).lower(): value for name, value in (file.metadata() or {}).items()}
            yield info.path[len(path) :].lstrip("/"), (info.size, str(facts.get("etag") or info.mtime_ns))


def _fetch(filesystem: pafs.FileSystem, path: str, files: dict[str, tuple[int, str]], target: Path, ask: _Ask) -> None:
    """Copy beside the target, then rename: what is there is whole, whoever else fetches it at the same time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part-{uuid.uuid4().hex}")
    try:
        for name, (size, _) in files.items():
            to = part / name if name else part
            to.parent.mkdir(parents=True, exist_ok=True)
            source = f"{path}/{name}" if name else path
            with ask(partial(filesystem.open_input_file, source)) as file, open(to, "wb") as out:
                for at in range(0, size, _PIECE):
                    out.write(ask(partial(file.read_at, min(_PIECE, size - at), at)))
            if to.stat().st_size != size:
                raise OSError(f"{to.stat().st_size} bytes came of {size}")
        os.replace(part, target)
    except OSError:
        if not target.exists():  # else somebody else was faster
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)


def _cache() -> Path:
    """Return a folder of this user's alone: a model that anybody could put there would be run."""
    folder = Path(tempfile.gettempdir()) / f"raystream-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    info = os.lstat(folder)
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o022:
        raise ModelError(f"{folder} isn't this user's alone, so no model is fetched into it; remove it or set TMPDIR")
    return folder / "models"

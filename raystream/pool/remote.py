"""Parquet in object storage: the wanted column chunks of some row groups at a time, fetched while those before are decoded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import chain
from threading import Lock
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raystream.lake.ranges import Fetched, Fetching, Range, in_another_thread
from raystream.lake.retry import LASTING, ignore, retried
from raystream.pool.footer_bytes import GroupChunks, find_groups, footer_bytes

READ_AHEAD = 16 << 20
"""Bytes fetched at a time, unless one row group is more; while they are decoded, as many are on their way."""
READ_AS: dict[str, Any] = {"coerce_int96_timestamp_unit": "us", "page_checksum_verification": True}
"""How pyarrow reads columns, wherever the file is. Nanoseconds, its own choice for INT96, end in 2262 and begin anew in 1677."""
_FOOTERS_KEPT = 4
_footers: OrderedDict[tuple[str, int, str], _RemoteFooter] = OrderedDict()
_footers_lock = Lock()


class _RemoteFooter:
    """A file's footer, as pyarrow has it and as bytes, and where its columns' pages lie."""

    def __init__(self, data: bytes, size: int) -> None:
        self.data, self._size = data, size
        try:
            self.metadata: pq.FileMetaData = pq.read_metadata(pa.BufferReader(data))
        except OSError as error:  # which is what pyarrow calls bytes that are no footer, too
            raise pa.ArrowInvalid(str(error)) from None
        self._groups: dict[tuple[int, ...], list[GroupChunks]] = {}

    def groups(self, leaves: Sequence[int]) -> list[GroupChunks]:
        """Return the row groups with the chunks of these leaf columns."""
        key = tuple(leaves)
        if key not in self._groups:
            paths = {leaf: self.metadata.schema.column(leaf).path for leaf in leaves}
            self._groups = {key: find_groups(self.data, paths, self.metadata, self._size)}
        return self._groups[key]


class RemoteParquet:
    """A remote file with the part of `pyarrow.parquet.ParquetFile` that raystream uses.

    Args:
        source: as opened by its file system.
        version: path, size and version: the footer of a file that was read lately isn't fetched again.
        note: told of each request that had to be repeated.

    Raises:
        OSError: the footer didn't come in spite of all attempts.
        pa.ArrowInvalid: this isn't Parquet.
        EncryptedFooterError: it can't be read without a key.
    """

    def __init__(self, source: pa.NativeFile, version: tuple[str, int, str], note: Callable[[str], None] = ignore) -> None:
        self._source, self._note, self._size, self.version = source, note, version[1], version
        self._footer = _footer(source, version, note)
        self.metadata, self.footer = self._footer.metadata, self._footer.data

    @property
    def schema_arrow(self) -> pa.Schema:
        """The file's schema as Arrow's.

        Raises:
            pa.ArrowException: it has none.
        """
        with pq.ParquetFile(pa.BufferReader(b""), metadata=self.metadata, **READ_AS) as parquet:
            return parquet.schema_arrow

    def __enter__(self) -> RemoteParquet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._source.close()

    def iter_batches(
        self,
        batch_size: int = 65536,
        row_groups: Sequence[int] | None = None,
        columns: Sequence[str] | None = None,
        then: Callable[[], None] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Yield batches in order; at most two runs of row groups are held, as they are stored.

        `then` is called once all bytes have come, while the last are decoded; what it raises is raised after the last batch.
        """
        groups = range(self.metadata.num_row_groups) if row_groups is None else row_groups
        leaves = self._leaves(columns)
        ahead: Fetching | None = None
        ended: Future[None] | None = None
        runs = self._runs(groups, leaves)
        try:
            for at, run in enumerate(runs):
                fetched = (ahead or self._fetch(run, leaves)).wait()
                ahead = self._fetch(runs[at + 1], leaves) if at + 1 < len(runs) else None
                if then and ahead is None:
                    ended = in_another_thread(then)
                with pq.ParquetFile(fetched, metadata=self.metadata, pre_buffer=False, **READ_AS) as parquet:
                    batches = parquet.iter_batches(batch_size, row_groups=run, columns=None if columns is None else list(columns))
                    while (batch := _next(batches, fetched)) is not None:
                        yield batch
            if ended:
                ended.result()
        finally:
            if ahead is not None:
                ahead.cancel()

    def _leaves(self, columns: Sequence[str] | None) -> list[int]:
        """Return the leaf columns that hold the wanted ones."""
        schema = self.metadata.schema
        roots = [schema.column(i).path.partition(".")[0] for i in range(self.metadata.num_columns)]
        whole = [schema.column(i).path for i in range(self.metadata.num_columns)]
        wanted = None if columns is None else set(columns)
        return [i for i, root in enumerate(roots) if wanted is None or root in wanted or _within(whole[i], wanted)]

    def _runs(self, groups: Sequence[int], leaves: Sequence[int]) -> list[list[int]]:
        """Return the row groups in order, as many together as READ_AHEAD holds."""
        runs: list[list[int]] = []
        held = 0
        for group in groups:
            stored = sum(stop - start for start, stop in self._ranges(group, leaves))
            if not runs or held + stored > READ_AHEAD:
                runs.append([])
                held = 0
            runs[-1].append(group)
            held += stored
        return runs

    def _ranges(self, group: int, leaves: Sequence[int]) -> list[Range]:
        found = self._footer.groups(leaves)[group]
        return [(chunk.start, chunk.start + chunk.stored) for chunk in found.chunks.values()] if found.rows else []

    def _fetch(self, run: Sequence[int], leaves: Sequence[int]) -> Fetching:
        wanted = chain.from_iterable(self._ranges(group, leaves) for group in run)
        return Fetching(self._source.read_at, self._size, wanted, self._note, _bucket(self.version[0]))


def _next(batches: Iterator[pa.RecordBatch], fetched: Fetched) -> pa.RecordBatch | None:
    """Return the next batch, None after the last.

    Raises:
        OSError: bytes didn't come.
        pa.ArrowInvalid: they came, and are damaged, which pyarrow calls an OSError as well.
    """
    try:
        return next(batches, None)
    except OSError as error:
        if fetched.failed:
            raise
        raise pa.ArrowInvalid(str(error)) from None


def _within(path: str, names: set[str]) -> bool:
    """Tell whether a leaf lies in one of the columns, whose own names may hold dots."""
    return any(path == name or path.startswith(f"{name}.") for name in names)


def _footer(source: pa.NativeFile, version: tuple[str, int, str], note: Callable[[str], None]) -> _RemoteFooter:
    with _footers_lock:
        known = _footers.get(version)
    if known is None:
        size = version[1]

        def read_at(count: int, at: int) -> bytes:
            data: bytes = retried(lambda: source.read_at(count, at), note, patience=LASTING, place=_bucket(version[0]))
            return data

        known = _RemoteFooter(footer_bytes(read_at, size), size)
        with _footers_lock:
            _footers[version] = known
            while len(_footers) > _FOOTERS_KEPT:
                _footers.popitem(last=False)
    return known


def _bucket(path: str) -> str:
    """Name what is waited for when a file doesn't come, by the file's path or URI."""
    return f"bucket {path.rpartition('://')[2].partition('/')[0]}"


def open_remote(filesystem: pafs.FileSystem, path: str, note: Callable[[str], None] = ignore) -> tuple[pa.NativeFile, str | None]:
    """Open a remote file, and return what tells its content from another one's: its ETag, where the storage gives one.

    Raises:
        FileNotFoundError: there is none.
        OSError: it can't be opened in spite of all attempts.
    """
    # Whoever opens a file has listed it, so its storage is there, and is waited for.
    source = retried(lambda: filesystem.open_input_file(path), note, patience=LASTING, place=_bucket(path))
    facts = {str(key).lower(): value for key, value in (source.metadata() or {}).items()}
    tag = facts.get("etag")
    return source, (tag.decode() if isinstance(tag, bytes) else tag).strip('"') if tag else None

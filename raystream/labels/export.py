"""A committed batch as files that a tool imports as they are."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raystream.errors import QueryError, StoreError, did_you_mean
from raystream.labels.batch import Batch, presigned, read_batch
from raystream.labels.tools import TOOLS
from raystream.lake import is_remote, redacted
from raystream.pool import refuse_among
from raystream.store.opening import refuse_in_store
from raystream.store.result import Result


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        query: the batch's.
        tool: for which.
        rows: how many.
        out: the file or folder.
        files: names of what is there now, below `out` or `out` itself; pictures aside.
        pictures: how many were written beside.
        notes: what the tool can't hold, and what is left to do; sentences.
    """

    query: str
    tool: str
    rows: int
    out: str
    files: tuple[str, ...]
    pictures: int
    notes: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return asdict(self)


def export_batch(
    result: Result, tool: str, out: str, *, classes: Sequence[str] | None = None, show: str | None = None, presign: float | None = None
) -> Exported:
    """Write a committed batch for a tool; writing it again changes nothing.

    A file that is there already and holds something else is never replaced: it may hold people's work.

    Args:
        result: the committed query.
        tool: one of `TOOLS`.
        out: a file for csv, jsonl and parquet, else a folder.
        classes: what the file holds that the query's `model.classes` names, if it names one.
        show: the column that people see; see `read_batch`.
        presign: seconds for which links into buckets are to be valid without credentials; None writes the links as they are.

    Raises:
        QueryError: the tool is unknown, can't show what the query has, or the place can't be used.
        StoreError: it can't be written.
    """
    if tool not in TOOLS:
        raise QueryError(f"--to {tool} is no tool that raystream exports to{did_you_mean(tool, TOOLS)}")
    if is_remote(out):
        raise QueryError(f"--out {redacted(out)} is not on this machine; name a local file or folder, and copy it there")
    refuse_in_store(out, result.store.uri, "--out")
    uris = result.manifest.resolved["pool"]["uri"]
    refuse_among(out, {"pool.uri": [uris] if isinstance(uris, str) else uris}, "--out", "batch.parquet")
    batch = read_batch(result, classes, show)
    if presign is not None:
        batch = presigned(batch, presign, result.manifest.resolved["pool"].get("storage") or {})
    writer = TOOLS[tool].write
    written = writer(batch)
    root, files = _places(Path(out).expanduser().absolute(), written.files, written.single)
    pictures = {}
    if written.pictures:
        beside = (root.parent if written.single else root) / "images"
        pictures = {beside / batch.file_name(item): item.data for item in batch.items if item.data is not None}
    _write({**files, **pictures})
    names = tuple(sorted(path.name if path == root else str(path.relative_to(root)) for path in files))
    return Exported(batch.query, tool, len(batch.items), str(root), names, len(pictures), (*written.notes, *_counted(batch)))


def _counted(batch: Batch) -> list[str]:
    """Return what is to be said of rows without anything to show."""
    if batch.kind is None:
        return []
    missing = sum(not (item.text or item.url or item.data) for item in batch.items)
    return [f"{missing:,} of {len(batch.items):,} rows have nothing in column {batch.column} to show"] if missing else []


def _places(out: Path, files: dict[str, bytes], single: bool) -> tuple[Path, dict[Path, bytes]]:
    """Return the root, and where each file goes."""
    if not single:
        return out, {out / name: data for name, data in files.items()}
    [(name, data)] = files.items()
    target = out / name if out.is_dir() or not out.suffix else out
    return target, {target: data}


def _write(files: dict[Path, bytes | None]) -> None:
    """Write them all, none over anything else than itself."""
    new = []
    try:
        for path, data in files.items():
            if data is None or (path.exists() and path.read_bytes() == data):
                continue
            if path.exists():
                raise QueryError(
                    f"--out: {path} is there and differs from what would be written; it may hold people's work, so name another place"
                )
            new.append((path, data))
        for path, data in new:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
            try:
                temporary.write_bytes(data)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"--out {error.filename or ''} can't be written: {error.strerror}; name another place or free space") from None

"""Where the table of labels lies: read, merged and written as one step, so that two who add to it at once lose nothing.

On this machine, a lock of the folder keeps others waiting. In a bucket, the new table replaces the one that was read and no other: whoever
comes second reads again.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raystream.errors import LabelsError, QueryError, RaystreamError, StoreError
from raystream.labels.ids import IdColumn
from raystream.labels.label_table import LabelTable, empty, parsed_table
from raystream.lake import LOCAL, Location, is_remote, parse, reason, redacted, with_options
from raystream.lake.retry import server_reason

NAME = "labels.parquet"
"""What a folder gets."""
_ATTEMPTS = 20
Change = Callable[[LabelTable], LabelTable]


def table_place(out: str) -> str:
    """Return the file that `--out` names: itself, or `labels.parquet` in a folder.

    Raises:
        QueryError: it is a place that no table of labels can be at.
    """
    if out.startswith(("delta+", "iceberg:")):
        raise QueryError(f"--out {redacted(out)} is a table of another kind; name a file that ends in .parquet, or a folder")
    location = parse(out, "--out")
    if location.path.endswith(".parquet"):
        return out
    path = Path(location.path)
    if location.scheme == "file" and path.suffix and not path.is_dir():
        raise QueryError(f"--out {out} must end in .parquet or be a folder, since labels are written as Parquet")
    plain, mark, options = out.partition("?") if is_remote(out) else (out, "", "")
    return f"{plain.rstrip('/')}/{NAME}{mark}{options}"


def update_table(place: str, ids: IdColumn, task: str, change: Change) -> LabelTable:
    """Change the table at a place, an empty one where there is none, and write what comes out.

    Args:
        place: as `table_place` gives it.
        ids: what ids are.
        task: `model.task`.
        change: from the table that is there to the one that is to be there; called again if another one was written meanwhile.

    Raises:
        QueryError: what is there is no table of labels, or one of other ids or another task.
        LabelsError: it can't be read.
        StoreError: it can't be written.
    """
    location = parse(place, "--out")
    return _in_folder(Path(location.path), ids, task, change) if location.scheme == "file" else _in_bucket(location, ids, task, change)


def read_table(path: Path, ids: IdColumn, task: str) -> LabelTable:
    """Read the table in a file of this machine; an empty one where there is none."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return empty(ids, task)
    except OSError as error:
        raise LabelsError(f"--out {path} can't be read: {error.strerror}; name another place") from None
    return parsed_table(data, str(path), ids, task)


def written(table: LabelTable) -> bytes:
    """Return the table as a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.to_arrow(), sink)
    return bytes(sink.getvalue().to_pybytes())


def _in_folder(path: Path, ids: IdColumn, task: str, change: Change) -> LabelTable:
    with _alone(path):
        table = change(read_table(path, ids, task))
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with temporary.open("wb") as file:
                file.write(written(table))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            what = error.strerror or reason(error)
            raise StoreError(f"--out {path} can't be written: {what}; name another place or free some space") from None
        finally:
            temporary.unlink(missing_ok=True)
    return table


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes of this machine waiting that change tables in the same folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise StoreError(f"--out {path} can't be written: {error.strerror}; name another place") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _in_bucket(location: Location, ids: IdColumn, task: str, change: Change) -> LabelTable:
    from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PreconditionError

    from raystream.lake.bucket import bucket_of

    folder, _, name = location.path.rpartition("/")
    storage = with_options(location, LOCAL, "--out")
    bucket: Any = bucket_of(Location(location.scheme, folder, location.account).uri, storage, "--out")
    try:
        for _ in range(_ATTEMPTS):
            mode: Any = "create"
            try:
                found = bucket.get(name)
                known = {"e_tag": found.meta["e_tag"], "version": found.meta["version"]}
                data, mode = bytes(found.bytes()), {key: value for key, value in known.items() if value is not None}
            except (FileNotFoundError, NotFoundError):
                data = None
            table = change(empty(ids, task) if data is None else parsed_table(data, location.uri, ids, task))
            try:
                bucket.put(name, written(table), mode=mode)
            except (AlreadyExistsError, PreconditionError):
                continue
            return table
    except (BaseError, OSError) as error:
        if isinstance(error, RaystreamError):
            raise
        what = f"--out {location.uri} can't be written: {server_reason(error)}"
        raise StoreError(f"{what}; check the bucket, the options and the credentials in the environment") from None
    raise StoreError(f"--out {location.uri} was changed by others {_ATTEMPTS} times while labels were merged; run it again")

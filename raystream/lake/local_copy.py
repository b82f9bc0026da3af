"""Copies of remote files on this machine, each made once a version, for what can be read from a disk alone: models."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raystream.errors import ModelError
from raystream.lake.filesystem import filesystem_of, with_options
from raystream.lake.retry import BRIEF, LASTING, Patience, is_final, is_no_folder, own_reason, reason, retried
from raystream.lake.storage import LOCAL, Storage
from raystream.lake.uri import is_remote, parse, redacted

if TYPE_CHECKING:
    import pyarrow.fs as pafs

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

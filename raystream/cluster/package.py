"""The working directory as a job gets it: a zip file, the same for the same files, without pool, store, environments and history."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raystream.errors import QueryError
from raystream.figures import in_bytes

LARGEST = 100 << 20
"""Bytes in all: every node fetches them from the head's memory."""
_LEFT_OUT = (
    ".git", ".hg", ".svn", ".venv", "venv", "node_modules", "__pycache__", "*.pyc", ".*_cache", ".ipynb_checkpoints", ".tox", ".nox",
    "*.egg-info", ".env", ".ssh", ".aws", ".DS_Store",
)  # fmt: skip
_DATA = ("*.parquet", "*.arrow", "*.feather", "*.lance", "*.zip", "*.tar", "*.tar.gz", "*.tgz")
"""Rows and archives travel only where the spec names them."""
_ENVIRONMENT, _STORE = "pyvenv.cfg", "format.json"
_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Package:
    """A working directory that has been packed.

    Attributes:
        path: of the zip file.
        digest: of what is in it, names and contents, that which was added left out.
        files: how many there are.
        bytes: of these, before they were packed.
    """

    path: Path
    digest: str
    files: int
    bytes: int


def pack(
    folder: Path, to: Path, *, named: Sequence[str], without: Sequence[Path], added: Mapping[str, bytes], exclude: Sequence[str]
) -> Package:
    """Pack a folder.

    Args:
        folder: the working directory.
        to: the zip file to write.
        named: paths below it that the spec names; they are packed whatever they are.
        without: files and folders that stay, such as the pool.
        added: further files, by their names in the package.
        exclude: shell patterns of names or paths that stay, too.

    Raises:
        QueryError: it is too large, or something can't be read.
    """
    paths = dict(_travelling(folder, named, {path.resolve() for path in without}, exclude))
    try:
        sizes = {name: path.stat().st_size for name, path in paths.items()}
        total = sum(sizes.values())
        if total > LARGEST:
            largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
            shown = ", ".join(f"{name} ({in_bytes(sizes[name])})" for name in largest)
            raise QueryError(
                f"--working-dir {folder} holds {in_bytes(total)} in {len(sizes):,} files, more than the {in_bytes(LARGEST)} that travel "
                f"with a job (the largest: {shown}); leave some out by --exclude, or put weights where all nodes see them"
            )
        digest = hashlib.sha256()
        with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name in sorted({*paths, *added}):
                data = added[name] if name in added else paths[name].read_bytes()
                executable = name not in added and os.access(paths[name], os.X_OK)
                entry = zipfile.ZipInfo(name, _TIME)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (0o100755 if executable else 0o100644) << 16
                archive.writestr(entry, data)
                if name not in added:
                    digest.update(f"{name}\0{len(data)}\0{executable}\0".encode() + hashlib.sha256(data).digest())
    except OSError as error:
        raise QueryError(f"--working-dir {folder}: {error.filename or folder} can't be read: {error.strerror}") from error
    return Package(to, digest.hexdigest(), len({*paths, *added}), total)


def _travelling(folder: Path, named: Sequence[str], without: set[Path], exclude: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Yield the names and places of the files that are packed; links are followed, once each."""
    wanted = {os.path.normpath(name) for name in named}
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        below = os.path.relpath(root, folder)
        kept = []
        for name in sorted(folders):
            path = os.path.normpath(os.path.join(below, name))
            if _is_named(path, wanted) or (_goes(name, path, exclude, _LEFT_OUT) and not _is_own(Path(root, name), without)):
                kept.append(name)
        folders[:] = kept
        for name in sorted(files):
            path, place = os.path.normpath(os.path.join(below, name)), Path(root, name)
            ours = _is_named(path, wanted) or _goes(name, path, exclude, (*_LEFT_OUT, *_DATA))
            if ours and place.is_file() and place.resolve() not in without:
                yield path, place


def _goes(name: str, path: str, exclude: Sequence[str], left_out: Sequence[str]) -> bool:
    return not any(fnmatch.fnmatch(name, pattern) for pattern in left_out) and not any(
        fnmatch.fnmatch(name, pattern.rstrip("/")) or fnmatch.fnmatch(path, pattern.rstrip("/")) for pattern in exclude
    )


def _is_named(path: str, wanted: set[str]) -> bool:
    """Tell whether the spec names a path, something below it, or a folder above it."""
    return any(path == name or name.startswith(f"{path}/") or path.startswith(f"{name}/") for name in wanted)


def _is_own(folder: Path, without: set[Path]) -> bool:
    """Tell whether a folder is an environment, a store or one of those that stay."""
    if folder.resolve() in without or (folder / _ENVIRONMENT).is_file() or (folder / "conda-meta").is_dir():
        return True
    return (folder / _STORE).is_file() and any((folder / inner).is_dir() for inner in ("units", "queries", "loops"))

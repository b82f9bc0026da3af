"""A model's fingerprint: what its outputs depend on, hashed without running or importing it.

Batch size, precision, temperature and the embedding module are not part of it: they stand next to it in a unit's key.

Of source code it covers

* the top-level package that holds `source`: all its Python files, also through symbolic links to folders;
* a module of one file: that file, and the modules and whole packages of the same folder that it imports by name, directly
  or through each other.

Of a `source` that is a file or a folder it covers the content, with names relative to the folder: a model that is moved stays
the same. Of a kind that another package registers: that package's code, and `source` as whichever of the two it is.

It doesn't cover other packages, what is imported by computed names, and, for a module of one file that is installed or
Python's own, what lies beside it; `model.version` can stand for those.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raystream import query
from raystream.errors import ModelError, QueryError
from raystream.imports import is_import_path, split_path
from raystream.model.weights import contents
from raystream.query.catalogue import REGISTERED, entry_point, kind_of


def fingerprint(spec: query.Model) -> str:
    """Hash the weights, `args`, `version` and what is behind `source`, as this module's docstring lists it: sha256, in hex.

    Of several weights, all in their order; of a committee of members, each one's fingerprint. For kind columns: of the kind and
    the columns' names.

    Raises:
        ModelError: the weights or the top-level module are not there.
        QueryError: `args` holds what YAML can't express.
    """
    digest = _Digest()
    if spec.members is not None:
        for member in spec.members:
            digest.add("member", fingerprint(member).encode())
        return digest.hex()
    digest.add("kind", spec.kind.encode())
    kind = kind_of(spec.kind)
    if kind.carried:
        for key, column in (("logits", spec.logits), ("probabilities", spec.probabilities), ("embedding", spec.embedding)):
            digest.add(key, (column or "").encode())
        if spec.samples is not None:
            digest.add("samples", spec.samples.encode())
        return digest.hex()
    digest.add("source", (spec.source or "").encode() if kind.imported else b"")
    digest.add("args", _canonical(spec.args))
    digest.add("version", (spec.version or "").encode())
    for path in [spec.weights] if isinstance(spec.weights, str) else spec.weights or []:
        digest.add("weights", _file_hash(path, f"model.weights {os.path.abspath(path)}"))
    if kind.imported:
        _add_sources(digest, spec.source or "", f"model.source {spec.source}")
    elif kind is REGISTERED:
        _add_registered(digest, spec)
    else:
        _add_contents(digest, spec.source or "")
    return digest.hex()


def code_hash(source: str, key: str) -> str:
    """Hash the source files behind an import path, as this module's docstring lists them: sha256, in hex.

    Args:
        source: `module:attribute`.
        key: of the query that holds it, for messages.
    """
    digest = _Digest()
    digest.add("source", source.encode())
    _add_sources(digest, source, f"{key} {source}")
    return digest.hex()


def _add_contents(digest: _Digest, path: str) -> None:
    """Add what a file or folder holds, wherever it lies."""
    for name, file in contents(path):
        digest.add(f"content {name}", _file_hash(str(file), f"model.source {path}: {file}"))


def _add_registered(digest: _Digest, spec: query.Model) -> None:
    """Add a kind of another package: the code that loads it, and `source` as the path or import path that it seems to be."""
    loader = entry_point(spec.kind).value
    digest.add("loader", loader.encode())
    _add_sources(digest, loader, f"model.kind {spec.kind}")
    source = spec.source or ""
    if Path(source).exists():
        _add_contents(digest, source)
        return
    digest.add("source", source.encode())
    if is_import_path(source):
        _add_sources(digest, source, f"model.source {source}")


def _add_sources(digest: _Digest, source: str, what: str) -> None:
    top = split_path(source, "model.source")[0].partition(".")[0]
    for name, content in _sources(top, what):
        digest.add(f"file {name}", content)


class _Digest:
    """sha256 over named parts, each framed by its length, so that no two lists of parts collide."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def add(self, name: str, content: bytes) -> None:
        for part in (name.encode(), content):
            self._sha256.update(len(part).to_bytes(8, "little"))
            self._sha256.update(part)

    def hex(self) -> str:
        return self._sha256.hexdigest()


def _canonical(args: dict[str, Any]) -> bytes:
    try:
        return json.dumps(args, sort_keys=True, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise QueryError(f"model.args can't be written as JSON ({error}); use numbers, strings, lists and mappings") from None


def _file_hash(path: str, what: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise ModelError(f"{what} can't be read: {error.strerror}; every machine that runs the query needs it") from None


def _sources(top: str, what: str) -> Iterator[tuple[str, bytes]]:
    """Yield the name and hash of every file that makes up a top-level module, in a fixed order."""
    spec = _top_level(top, what)
    if spec.submodule_search_locations is not None:
        # A package without __init__ lies in a folder once for each time that sys.path names the folder above it.
        folders = dict.fromkeys(map(os.path.abspath, spec.submodule_search_locations))
        files = [(name, path) for folder in folders for name, path in _package_files(Path(folder))]
    elif spec.has_location and spec.origin:
        files = _module_files(Path(spec.origin))
    else:
        files = []
    for name, path in sorted(files):
        yield name, _file_hash(str(path), f"{what}: {path}")
    if not files:
        yield top, _distribution(top).encode()


def _top_level(top: str, what: str) -> importlib.machinery.ModuleSpec:
    """Find a top-level module; for such a name, find_spec imports nothing."""
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # __main__ has no spec
        raise ModelError(f"{what}: {top} can't be imported elsewhere; put it into a module file of its own") from None
    if spec is None:
        raise ModelError(f"{what}: there is no module {top!r}; run from the project's folder or install the package")
    return spec


def _package_files(folder: Path) -> list[tuple[str, Path]]:
    """Return the Python sources below a package; where there are none, its compiled modules."""
    found = list(_files_below(folder, ()))
    for suffixes in ((".py",), tuple(importlib.machinery.all_suffixes())):
        chosen = [path for path in found if path.name.endswith(suffixes)]
        if chosen:
            return [(path.relative_to(folder).as_posix(), path) for path in chosen]
    return []


def _files_below(folder: Path, passed: tuple[Path, ...]) -> Iterator[Path]:
    """Yield all files, also those behind links to folders, unless the link leads back to where the walk came from."""
    real = folder.resolve()
    if any(parent.is_relative_to(real) for parent in passed):
        return
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if not entry.is_dir():
            yield Path(entry.path)
        elif entry.name != "__pycache__" and not entry.name.startswith("."):  # no packages, and may be vast
            yield from _files_below(Path(entry.path), (*passed, real))


def _module_files(module: Path) -> list[tuple[str, Path]]:
    """List a module's file and those of the modules and packages beside it that it imports, directly or through each other."""
    found = {module.name: module}
    todo = [] if _is_installed(module.parent) else [module]
    while todo:
        for name in _imported(todo.pop()):
            for relative, path in _beside(module.parent, name):
                if relative not in found:
                    found[relative] = path
                    todo.append(path)
    return list(found.items())


def _is_installed(folder: Path) -> bool:
    """Tell whether a folder is one that pip or Python itself fills, where everything lies beside everything."""
    return folder.name in ("site-packages", "dist-packages", "lib-dynload") or str(folder) in sysconfig.get_paths().values()


def _beside(folder: Path, name: str) -> list[tuple[str, Path]]:
    """Return the files of the module or package of that name in a folder, as Python's import would choose between them."""
    module, package = folder / f"{name}.py", folder / name
    if module.is_file() and not (package / "__init__.py").is_file():
        return [(module.name, module)]
    return [(f"{name}/{relative}", path) for relative, path in _package_files(package)] if package.is_dir() else []


def _imported(path: Path) -> set[str]:
    """Return the top-level names that a Python file imports anywhere; of a file that isn't valid, none."""
    try:
        nodes = list(ast.walk(ast.parse(path.read_bytes())))
    except (OSError, SyntaxError, ValueError):
        return set()
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return {name.partition(".")[0] for name in names}


def _distribution(top: str) -> str:
    """Return the versions of what was installed under that name; for what is built into Python, Python's."""
    names = importlib.metadata.packages_distributions().get(top, [])
    return " ".join(sorted(f"{name} {importlib.metadata.version(name)}" for name in set(names))) or sys.version

"""Models that are a file or a folder: whether it is there and what its kind says, and what its fingerprint covers.

One whose files lie in object storage is used as one whose files lie here.
"""

from __future__ import annotations

import mmap
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from raystream import query
from raystream.errors import ModelError
from raystream.lake import LOCAL, Storage, local_copy
from raystream.lake.retry import BRIEF, Patience
from raystream.query.catalogue import kind_of

_ZIPPED = (
    ("archive_format", "a torch.export archive"),
    ("serialized_exported_program.json", "a torch.export archive"),  # before torch 2.7
    ("constants.pkl", "a TorchScript archive"),
    ("schema.json", "a skops file"),
    ("data.pkl", "a torch checkpoint"),
)
"""A file that only such an archive holds, in whatever folder of it; the first that is there decides."""
_PICKLE_NAMES = (".pkl", ".pickle", ".joblib", ".jbl")
_LOCATION = re.compile(rb"\x0a\x08location\x12(?:([\x01-\x7f])|([\x80-\xff][\x01-\x7f]))")
"""In an ONNX file, before the name of a file of weights: a protobuf pair of strings whose key is `location`, and its value's length."""


def find_file(path: str, expected: str, instead: str) -> Path:
    """Return the file that `model.source` names.

    Args:
        path: as the query says it.
        expected: what it must hold, as `what_file` puts it.
        instead: what to do if it doesn't.

    Raises:
        ModelError: it isn't there, isn't a file, or holds something else.
    """
    file = Path(path)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "is not there"
        raise ModelError(f"model.source {path} {what}, expected {expected}; give the path of a file that every worker can read")
    found = what_file(file)
    if found != expected and not (found == "something else" and expected == "an ONNX model"):
        raise ModelError(f"model.source {path} is {found}, expected {expected}; {instead}")
    return file


def find_folder(path: str, marker: str, instead: str) -> Path:
    """Return the folder that `model.source` names; `marker` is a file that it must hold.

    Raises:
        ModelError: it isn't there, isn't a folder, or lacks the marker.
    """
    folder = Path(path)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise ModelError(f"model.source {path} {what}, expected a folder on this machine; {instead}")
    if not (folder / marker).is_file():
        raise ModelError(f"model.source {path} holds no {marker}, expected a model's folder; {instead}")
    return folder


def what_file(path: Path) -> str:
    """Say in words what a file holds, told from its first bytes and its names."""
    try:
        with open(path, "rb") as file:
            start = file.read(2)
        if start == b"PK":
            with zipfile.ZipFile(path) as archive:
                names = {name.rpartition("/")[2] for name in archive.namelist()}
            return next((what for name, what in _ZIPPED if name in names), "a zip file")
    except zipfile.BadZipFile:
        return "a zip file that is cut short"
    except OSError as error:
        raise ModelError(f"model.source {path} can't be read: {error.strerror}") from None
    if is_pickle(path, start):
        return "a pickle"
    return "an empty file" if not start else "something else"


def is_pickle(path: Path, start: bytes) -> bool:
    """Tell whether a file is a pickle, compressed or not, by its name or by the two bytes that it starts with."""
    return path.suffix.lower() in _PICKLE_NAMES or (start[:1] == b"\x80" and start[1:] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def contents(path: str) -> Iterator[tuple[str, Path]]:
    """Yield the files that make up a model, with names that don't depend on where it lies, in a fixed order.

    Of a folder all files, but for those and folders whose names start with a dot; of a file itself, and the files of
    weights that an ONNX model names.

    Raises:
        ModelError: nothing is there.
    """
    top = Path(path)
    if top.is_dir():
        files = (Path(folder) / name for folder, _, names in os.walk(top, followlinks=True) for name in names)
        named = ((file.relative_to(top).as_posix(), file) for file in files)
        yield from sorted((name, file) for name, file in named if not any(part.startswith(".") for part in name.split("/")))
    elif top.is_file():
        yield "", top
        if top.suffix.lower() == ".onnx":
            beside = ((name, top.parent / name) for name in _onnx_weights(top))
            yield from ((name, file) for name, file in beside if file.is_file())
    else:
        raise ModelError(f"model.source {path} is not there; give the path of a file or folder that every worker can read")


def _onnx_weights(path: Path) -> list[str]:
    """Return the files beside an ONNX model that hold its weights. Found without a parser: a name too many does no harm."""
    if not path.stat().st_size:
        return []
    names = set()
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for found in _LOCATION.finditer(data):
            one, two = found.groups()
            length = one[0] if one else (two[0] & 0x7F) | two[1] << 7
            names.add(data[found.end() : found.end() + length].decode(errors="replace"))
    return sorted(name for name in names if "\0" not in name)


def with_local_files(spec: query.Model, storage: Storage = LOCAL, patience: Patience = BRIEF) -> query.Model:
    """Return the `model` section with remote weights, sources and lists of classes replaced by copies on this machine.

    Its fingerprint is the same as that of the same files on a disk.

    Args:
        spec: the section.
        storage: how to reach them.
        patience: with a server that is away; whoever knows that it is there waits for it.

    Raises:
        ModelError: something can't be fetched.
    """
    changes: dict[str, object] = {}
    if isinstance(spec.weights, list):
        changes["weights"] = [local_copy(path, storage, "model.weights", patience) for path in spec.weights]
    elif spec.weights is not None:
        changes["weights"] = local_copy(spec.weights, storage, "model.weights", patience)
    if spec.source is not None and not kind_of(spec.kind).imported:
        changes["source"] = local_copy(spec.source, storage, "model.source", patience)
    if isinstance(spec.classes, str):
        changes["classes"] = local_copy(spec.classes, storage, "model.classes", patience)
    if spec.members is not None:
        changes["members"] = [with_local_files(member, storage, patience) for member in spec.members]
    changed = {name: value for name, value in changes.items() if value != getattr(spec, name)}
    return spec.derived(**changed) if changed else spec

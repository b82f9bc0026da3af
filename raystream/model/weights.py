"""A model's files: artefacts found and fetched, weights loaded and hashed.

Weights: read a file of tensors, as trainers write them, fit it to a network strictly, hash what came of it.

Models that are a file or a folder: whether it is there and what its kind says, and what its fingerprint covers.

One whose files lie in object storage is used as one whose files lie here.
"""

from __future__ import annotations

import argparse
import hashlib
import mmap
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

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


_TORCH_FILES = (".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".pt.tar")
_ENTRIES = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts nest the state in a checkpoint: Lightning, timm, the tutorials of torch."""
_HARMLESS = [argparse.Namespace]
"""What trainers put beside the tensors, and holds nothing but what is in the file."""
_COMPILED = "_orig_mod."
"""In the names of a network of which torch.compile wrapped a part."""
_NO_STATE = {
    "a TorchScript archive": "save model.state_dict() as safetensors, or give the file in model.source with kind: torchscript",
    "a torch.export archive": "save model.state_dict() as safetensors, or give the file in model.source with kind: export",
}
"""Files of torch's that are no checkpoint, and what to do."""


def load_weights(network: nn.Module, path: str, trust: Literal["safe", "pickle"] = "safe") -> tuple[str, ...]:
    """Fill a network from a file; every tensor of both must fit, by its name or without a prefix that all of the file's have.

    Args:
        network: to be filled.
        path: of the file.
        trust: whether a torch checkpoint may be a pickle, which can run code.

    Returns:
        what the user should know: which prefix was left out.

    Raises:
        ModelError: the file is missing, unreadable or holds more than tensors, or its tensors don't fit.
    """
    tensors = _read(path, trust == "pickle")
    expected = network.state_dict()
    problem = _misfit(expected, tensors)
    notes: tuple[str, ...] = ()
    if problem:
        for left_out, renamed in _without_prefix(tensors):
            if len(renamed) == len(tensors) and not _misfit(expected, renamed):
                tensors, notes = renamed, (f"model.weights {path}: {left_out!r} was left out of the names of its {len(renamed)} tensors",)
                break
        else:
            raise ModelError(f"model.weights {path} does not fit the model: {problem}; check model.source and model.args")
    network.load_state_dict(tensors, strict=False)  # strict by _misfit, which knows tied weights
    return notes


def state_hash(network: nn.Module) -> str:
    """Hash the names, dtypes, shapes and bytes of all parameters and buffers by sha256.

    Raises:
        ModelError: a tensor has no values yet.
    """
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if not isinstance(value, Tensor):
            digest.update(f"{name}\0{type(value).__name__}\0".encode())
            continue
        if is_lazy(value) or value.is_meta:
            raise ModelError(
                f"the model's tensor {name} has no values yet (a lazy or meta module); give model.weights or build it with its sizes"
            )
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: str, trusted: bool) -> dict[str, Tensor]:
    name = Path(path).name.lower()
    suffix = next((known for known in (".safetensors", *_TORCH_FILES) if name.endswith(known)), Path(path).suffix)
    if suffix != ".safetensors" and suffix not in _TORCH_FILES:
        known = ", ".join((".safetensors", *_TORCH_FILES))
        raise ModelError(f"model.weights {path} ends in {suffix!r}, expected one of {known}; save the state dict in such a file")
    if not Path(path).is_file():
        raise ModelError(f"model.weights {path} is not there or not a file; give the path of a checkpoint that every worker can read")
    try:
        if suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        found = what_file(Path(path))
        if found in _NO_STATE:
            raise ModelError(f"model.weights {path} is {found}, expected a state dict, names to tensors; {_NO_STATE[found]}")
        with warnings.catch_warnings():
            # torch warns of pickle protocols that it then refuses; the refusal is what the user needs to read.
            warnings.simplefilter("ignore", UserWarning)
            with _harmless():
                return _tensors(torch.load(path, map_location="cpu", weights_only=not trusted), path)
    except pickle.UnpicklingError as error:
        if trusted:
            raise ModelError(f"model.weights {path} is no checkpoint: {error}; save model.state_dict() as safetensors") from None
        raise ModelError(
            f"model.weights {path} holds more than tensors (or no checkpoint at all), and raystream does not load pickles, "
            "which can run code; save model.state_dict() as safetensors, or set model.trust to pickle if you trust whoever wrote it"
        ) from None
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"model.weights {path} is a pickle that can't be loaded here: {error}; save model.state_dict() as safetensors"
        ) from None
    except ModelError:
        raise
    except (OSError, safetensors.SafetensorError, RuntimeError, EOFError, LookupError, ValueError) as error:
        first_line = str(error).partition("\n")[0]
        raise ModelError(f"model.weights {path} can't be read: {type(error).__name__}: {first_line}; save the checkpoint again") from None


def _harmless() -> AbstractContextManager[object]:
    """Let torch.load, which otherwise takes tensors and plain values alone, take what holds nothing else."""
    allowed = getattr(torch.serialization, "safe_globals", None)  # torch 2.5
    return nullcontext() if allowed is None else allowed(_HARMLESS)


def _tensors(content: object, path: str) -> dict[str, Tensor]:
    if isinstance(content, nn.Module):  # a whole pickled model, loaded because it is trusted
        content = content.state_dict()
    while isinstance(content, Mapping) and (entries := [key for key in _ENTRIES if isinstance(content.get(key), Mapping | nn.Module)]):
        if len(entries) > 1:
            raise ModelError(
                f"model.weights {path} holds {' and '.join(entries)}, expected one state; save that of the model alone, as safetensors"
            )
        entry = content[entries[0]]
        content = entry.state_dict() if isinstance(entry, nn.Module) else entry
    if not isinstance(content, Mapping):
        raise ModelError(f"model.weights {path} holds {type(content).__name__}, expected a state dict, names to tensors")
    for name, value in content.items():
        if not isinstance(value, Tensor) and not str(name).endswith("_extra_state"):
            raise ModelError(f"model.weights {path} holds {type(value).__name__} at {name!r}, expected a state dict, names to tensors")
    return dict(content)


def _without_prefix(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield all ways to leave out what trainers put before every name, the shortest first, each with the tensors so renamed."""
    parts = [name.split(".")[:-1] for name in tensors]
    depth = 0
    while parts and all(len(of) > depth for of in parts) and len({of[depth] for of in parts}) == 1:
        depth += 1
    prefixes = [".".join(parts[0][:place]) + "." for place in range(1, depth + 1)]
    for prefix in prefixes:
        yield prefix, {name.removeprefix(prefix): values for name, values in tensors.items()}
    for prefix in ("", *prefixes):
        renamed = {name.removeprefix(prefix).replace(_COMPILED, ""): values for name, values in tensors.items()}
        yield f"{prefix} and {_COMPILED}" if prefix else _COMPILED, renamed


def _misfit(expected: Mapping[str, object], given: Mapping[str, object]) -> str:
    """Say what is missing, unexpected or wrongly shaped; an empty string if nothing is."""
    present = {_place(value) for name, value in expected.items() if name in given and _sized(value)}
    missing = [
        f"{name} {_shape(value)}"
        for name, value in expected.items()
        if name not in given and isinstance(value, Tensor) and not (_sized(value) and _place(value) in present)
    ]
    unexpected = [f"{name} {_shape(value)}" for name, value in given.items() if name not in expected]
    wrong = [
        f"{name} {_shape(given[name])} instead of {_shape(value)}"
        for name, value in expected.items()
        if name in given and _sized(value) and _shape(given[name]) != _shape(value)
    ]
    problems = (("missing", missing), ("unexpected", unexpected), ("wrongly shaped", wrong))
    return "; ".join(f"{kind} {_first_three(names)}" for kind, names in problems if names)


def _first_three(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _sized(value: object) -> bool:
    return isinstance(value, Tensor) and not is_lazy(value)


def _shape(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"({type(value).__name__})"
    return str(tuple(value.shape)) if _sized(value) else "(lazy)"


def _place(value: object) -> tuple[object, ...]:
    """Return what is equal for tied tensors: files keep one of them."""
    assert isinstance(value, Tensor)
    if value.is_meta or value.numel() == 0:
        return (id(value),)
    return (value.data_ptr(), value.dtype, tuple(value.shape), value.stride())

"""From an import path, `module:callable`, to the network that it makes.

A fingerprint hashes files, and Python imports a file once: in a process that lives on while its source is edited, such
as a notebook's, old code would be stored under the new code's fingerprint, so that is refused. Packages that only some kinds
of model need are imported here, or named where they are missing.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import inspect
import random
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from raystream.errors import ModelError, did_you_mean
from raystream.imports import find as find_import
from raystream.imports import split_path
from raystream.model.batches import is_device_failure

_FACTORY_SEED = 0
"""Of what a factory draws, the same in every process; part of what a fingerprint means, so it never changes."""
_OTHER_SEED = 1
_LARGEST_REBUILT = 1 << 30
"""Bytes of parameters beyond which a network isn't made a second time: a worker may have no room for two."""


def build_network(source: str, args: Mapping[str, Any]) -> nn.Module:
    """Return the network that a source makes: `build`, and a check of what came of it.

    Raises:
        ModelError: it can't be imported or called, or what it makes is no module.
    """
    made = build(source, args)
    if not isinstance(made, nn.Module):
        raise ModelError(f"model.source {source} returned {type(made).__name__}, expected a torch.nn.Module")
    return plain_network(made)


def plain_network(network: nn.Module) -> nn.Module:
    """Return the network without what torch.compile put around it, or around parts of it."""
    while _is_compiled(network):
        network = network.get_submodule("_orig_mod")
    for module in network.modules():
        module.__dict__.pop("_compiled_call_impl", None)  # of `module.compile()`
        for name, child in list(module.named_children()):
            if _is_compiled(child):
                setattr(module, name, plain_network(child))
    return network


def _is_compiled(module: nn.Module) -> bool:
    """Tell by its name whether a module is compiled: importing torch's compiler takes a second."""
    return type(module).__name__ == "OptimizedModule" and "_orig_mod" in dict(module.named_children())


def untrained(network: nn.Module, source: str, args: Mapping[str, Any]) -> tuple[str, ...]:
    """Note it if a network that was given no weights has none of its own: its factory draws its parameters anew for every seed.

    Args:
        network: as `build_network` made it.
        source: of it.
        args: of it.
    """
    size = sum(values.numel() * values.element_size() for values in network.parameters() if not is_lazy(values))
    if not size or size > _LARGEST_REBUILT or isinstance(find(source, "model.source"), nn.Module):
        return ()  # a module that was made when its file was imported can't be made again
    try:
        again = build(source, args, _OTHER_SEED)
    except ModelError:
        return ()  # it can't be called twice
    others = dict(plain_network(again).named_parameters()) if isinstance(again, nn.Module) else {}
    drawn = [name for name, values in network.named_parameters() if name not in others or not _alike(values, others[name])]
    if not drawn:
        return ()
    own = [name for name, values in network.named_parameters() if name not in drawn and bool((values != values.flatten()[:1]).any())]
    shown = ", ".join(drawn[:3]) + (f" and {len(drawn) - 3} more" if len(drawn) > 3 else "")
    what = f"{shown} of its parameters are drawn at random" if own else "its parameters are drawn at random"
    return (f"model.weights is not given, and {what} by model.source {source}: its scores are those of a random network; give its weights",)


def _alike(one: Tensor, other: Tensor) -> bool:
    return not is_lazy(one) and not is_lazy(other) and one.shape == other.shape and torch.equal(one, other)


def build(source: str, args: Mapping[str, Any], seed: int = _FACTORY_SEED) -> object:
    """Import the source and call it with `args`, under a fixed seed; the random generators stay as they were.

    Args:
        source: `module:attribute` of a class or factory, or of an instance of `nn.Module`, which is copied.
        args: keyword arguments of the class or factory.
        seed: of what it draws.

    Raises:
        ModelError: it can't be imported or called.
    """
    with _fixed_seed():
        factory = find_import(source, "model.source", ModelError)
    with _fixed_seed(seed):  # anew: the import draws only if it is the process's first
        return _call(factory, source, args)


def find(source: str, key: str) -> object:
    """Import what an import path names, and return it as it is.

    Args:
        source: `module:attribute`.
        key: of the query that holds it, for messages.

    Raises:
        ModelError: it can't be imported, or isn't there.
    """
    with _fixed_seed():
        return find_import(source, key, ModelError)


def _call(factory: object, source: str, args: Mapping[str, Any]) -> object:
    if isinstance(factory, nn.Module):
        if args:
            raise ModelError(f"model.args has {', '.join(args)}, but model.source {source} is a module already; remove them")
    elif callable(factory):
        _check_args(factory, source, args)
    else:
        raise ModelError(f"model.source {source} is {type(factory).__name__}, expected a class, a factory or a torch.nn.Module")
    try:
        return copy.deepcopy(plain_network(factory)) if isinstance(factory, nn.Module) else factory(**args)
    except (Exception, SystemExit) as error:
        if is_device_failure(error):
            raise
        raise ModelError(f"model.source {source} raised {_told(error)} when called with model.args {dict(args)}") from error


def _check_args(factory: Any, source: str, args: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return  # written in C: the call itself will tell
    try:
        signature.bind(**args)
    except TypeError as error:
        unknown = [name for name in args if name not in signature.parameters]
        hint = did_you_mean(unknown[0], signature.parameters) if unknown else ""
        raise ModelError(f"model.args do not fit {source}{signature}: {error}{hint}") from None


_one_at_a_time = threading.RLock()
"""The generators are the process's: two models that are made at the same time would draw from each other's."""


@contextmanager
def _fixed_seed(seed: int = _FACTORY_SEED) -> Iterator[None]:
    with _one_at_a_time, seeded(seed):
        yield


@contextmanager
def seeded(seed: int, devices: Sequence[int] | None = None) -> Iterator[None]:
    """Put the seed into all generators, which come back as they were.

    Args:
        seed: theirs.
        devices: the GPUs whose generators come back, by their numbers; left out, all where CUDA is in use.
    """
    python, numpy = random.getstate(), np.random.get_state()
    if devices is None:
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=list(devices)):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


_seen: dict[str, tuple[ModuleSpec, str]] = {}
"""By module: the spec it was imported by, which a reload replaces, and its file's hash when a model was first loaded from it."""


def check_imported(source: str, key: str = "model.source") -> None:
    """Refuse a source whose modules were edited after this process imported them.

    Args:
        source: `module:attribute`, imported already.
        key: of the query that holds it, for messages.

    Raises:
        ModelError: a module of its top-level package is older here than on disk.
    """
    top = split_path(source, key)[0].partition(".")[0]
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        if spec is None or not (name == top or name.startswith(f"{top}.")) or not (spec.origin or "").endswith(".py"):
            continue
        try:
            content = hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()
        except OSError:
            continue
        known = _seen.get(name)
        if known is not None and known[0] is spec and known[1] != content:
            raise ModelError(
                f"{key} {source}: {spec.origin} was edited after this process imported it, so what would run is the old code; "
                "restart the process, or reload the module"
            )
        _seen[name] = (spec, content)


def optional(module: str, kind: str, extra: str) -> Any:
    """Import a module of an extra.

    Args:
        module: its full name.
        kind: of the model that needs it.
        extra: of raystream that installs it.

    Raises:
        ModelError: it isn't installed, or its import fails.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == package:
            raise ModelError(f"model.kind {kind} needs {package}, which is not installed; pip install 'raystream[{extra}]'") from None
        reason = str(error)
    except ImportError as error:
        reason = str(error)
    first = reason.strip().partition("\n")[0]
    raise ModelError(f"model.kind {kind} needs {package}, whose import failed: {first}; reinstall it: pip install 'raystream[{extra}]'")

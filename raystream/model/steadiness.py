"""What in a network of torch's makes an output depend on chance, or on the other rows of the batch, although it is in evaluation mode.

Both are seen where operations reach torch's dispatcher, whoever calls them: modules, functions, scripted and exported code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from raystream.model.dropout_calls import running_modules

_BATCH_NORMS = ("batch_norm", "native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm", "miopen_batch_norm")


class Watch(TorchDispatchMode):
    """Notes the first operation of each sort while it is entered; changes nothing.

    Attributes:
        draws: where a random number was drawn; empty if none was.
        mixes: where batch norm took the statistics of the batch; empty if nowhere.
    """

    def __init__(self, network: nn.Module, running: list[nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._network, self._running = network, running
        self.draws = self.mixes = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if not self.draws and torch.Tag.nondeterministic_seeded in func.tags and _is_on(func, args, kwargs):
            self.draws = self._place(func)
        if not self.mixes and _name(func) in _BATCH_NORMS and _is_on(func, args, kwargs):
            self.mixes = self._place(func)
        return func(*args, **kwargs)

    def _place(self, func: Any) -> str:
        """The innermost module that is running, and the operation."""
        name, kind = "", ""
        if self._running:
            module = self._running[-1]
            name = next(name for name, known in self._network.named_modules() if known is module)
            kind = type(module).__name__
        if isinstance(self._network, torch.fx.GraphModule):
            name, kind = _exported_place(self._network, func) or ("", "")
        where = f"module {name} ({kind})" if name else "its forward"
        return f"{where} calls {_name(func)}"


@contextmanager
def watched(network: nn.Module) -> Iterator[Watch]:
    """Watch what a network does."""
    scripted = isinstance(network, torch.jit.ScriptModule)  # its modules have no hooks
    with running_modules(nn.Module() if scripted else network) as running, Watch(network, running) as watch:
        yield watch


def _name(func: Any) -> str:
    return str(func._schema.name).removeprefix("aten::")


def _is_on(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call does what is watched for: its flags of training are set, and its p isn't 0."""
    values = {of.name: of.default_value for of in func._schema.arguments if of.has_default_value()}
    values |= dict(zip((of.name for of in func._schema.arguments), args, strict=False)) | kwargs
    flags = [values[flag] for flag in ("train", "training") if flag in values]
    return all(flag is not False for flag in flags) and all(values.get(p) != 0 for p in ("p", "dropout_p"))


def _exported_place(network: torch.fx.GraphModule, func: Any) -> tuple[str, str] | None:
    """The module that the first call of an operation was in, as torch.export wrote it down."""
    for node in network.graph.nodes:
        if node.op == "call_function" and node.target is func and _is_on(func, node.args, node.kwargs):
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            if stack and stack[-1][0]:
                path, kind = stack[-1]
                return path, str(getattr(kind, "__name__", kind)).rpartition(".")[2]
            return None
    return None

"""What in a network of torch's makes an output depend on chance, or on the other rows of the batch, although it is in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from raystream.model.device import is_device_failure, is_out_of_memory
from raystream.model.dropout_calls import running_modules

_BATCH_NORMS = (F.batch_norm, torch.batch_norm, torch.native_batch_norm)
_TRAINING = 5
"""The place of the flag among their arguments, and those of the operation that they all become."""


def batch_statistics(network: nn.Module, run: Callable[[], object]) -> str:
    """Where batch norm takes the statistics of the batch, as words for a message; empty if nowhere.

    Args:
        network: in evaluation mode.
        run: runs it on some rows.
    """
    if isinstance(network, torch.jit.ScriptModule):
        graph: Any = network.inlined_graph
        flags = [list(node.inputs())[_TRAINING] for node in graph.findAllNodes("aten::batch_norm")]
        return "its graph calls batch_norm" if any(flag.toIValue() for flag in flags if flag.node().kind() == "prim::Constant") else ""
    if isinstance(network, torch.fx.GraphModule):
        return _exported_place(network, torch.ops.aten.batch_norm.default)
    with running_modules(network) as running:
        mode = _Norms(network, running)
        try:
            with mode:
                run()
        except Exception as error:  # of code that can't be watched
            if is_device_failure(error) or is_out_of_memory(error):
                raise
        return mode.place


def draws(network: nn.Module, run: Callable[[], object]) -> str:
    """Where a random number is drawn, as words for a message; empty if torch draws none, or it can't be told.

    Whoever calls it is seen, scripted and exported code too, where it reaches torch's dispatcher. To watch that imports torch's
    compiler, for seconds, so it isn't for networks of which nothing is wrong.
    """
    scripted = isinstance(network, torch.jit.ScriptModule)  # its modules have no hooks
    with running_modules(nn.Module() if scripted else network) as running:
        mode = _Draws(network, running)
        try:
            with mode:
                run()
        except Exception as error:
            if is_device_failure(error) or is_out_of_memory(error):
                raise
        return mode.place


class _Norms(TorchFunctionMode):
    """Notes the first batch norm that looks at its batch."""

    def __init__(self, network: nn.Module, running: list[nn.Module]) -> None:
        super().__init__()
        self._network, self._running = network, running
        self.place = ""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if not self.place and func in _BATCH_NORMS and (args[_TRAINING] if len(args) > _TRAINING else kwargs.get("training")):
            self.place = _place(self._network, self._running, "batch_norm")
        return func(*args, **kwargs)


class _Draws(TorchDispatchMode):
    """Notes the first operation that draws a random number."""

    def __init__(self, network: nn.Module, running: list[nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._network, self._running = network, running
        self.place = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if not self.place and torch.Tag.nondeterministic_seeded in func.tags and _is_on(func, args, kwargs):
            exported = isinstance(self._network, torch.fx.GraphModule) and _exported_place(self._network, func)
            self.place = exported or _place(self._network, self._running, _name(func))
        return func(*args, **kwargs)


def _place(network: nn.Module, running: list[nn.Module], operation: str) -> str:
    """The innermost module that is running, and the operation."""
    module = running[-1] if running else network
    name = next((name for name, known in network.named_modules() if known is module), "")
    return f"module {name} ({type(module).__name__}) calls {operation}" if name else f"its forward calls {operation}"


def _exported_place(network: torch.fx.GraphModule, func: Any) -> str:
    """The module that the first such call of an operation was in, as torch.export wrote it down; empty if there is none."""
    for node in network.graph.nodes:
        if node.op == "call_function" and node.target is func and _is_on(func, node.args, node.kwargs):
            path, kind = [("", ""), *(node.meta.get("nn_module_stack") or {}).values()][-1]
            kind = str(getattr(kind, "__name__", kind)).rpartition(".")[2]
            return f"module {path} ({kind}) calls {_name(func)}" if path else f"its forward calls {_name(func)}"
    return ""


def _name(func: Any) -> str:
    return str(func._schema.name).removeprefix("aten::")


def _is_on(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call does what is looked for: its flags of training are set, and its p isn't 0."""
    values = {of.name: of.default_value for of in func._schema.arguments if of.has_default_value()}
    values |= dict(zip((of.name for of in func._schema.arguments), args, strict=False)) | kwargs
    flags = [values[flag] for flag in ("train", "training") if flag in values]
    return all(flag is not False for flag in flags) and all(values.get(p) != 0 for p in ("p", "dropout_p"))

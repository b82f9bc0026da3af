"""Dropout in scripted TorchScript, whose calls no function mode sees: found where they reach torch's dispatcher.

Each call is replaced as `DropoutMode` does it, whatever its flag says, so that a sample is one fixed sub-network here too. torch.vmap
can't run such code, so samples run one after another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from raystream.errors import ModelError
from raystream.model.dropout_calls import FEW, MORE, Forward, Probe, call_shape, unsteady
from raystream.model.dropout_mode import DropoutCall

_NAMES = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
_CALLS: dict[Any, tuple[str, bool]] = {
    getattr(torch.ops.aten, name + suffix).default: (name, bool(suffix)) for name in _NAMES for suffix in ("", "_")
}
"""By operation: its name, and whether it writes into its input."""
_INSTEAD = "script the model with torch.jit.script, use kind torch or export, or give a committee in model.members"


class ScriptedDropoutMode(TorchDispatchMode):
    """Replaces dropout in scripted code while it is entered, in torch.inference_mode.

    Args:
        replace: is given each dropout call and its input, and returns what takes the place of the output.
    """

    def __init__(self, replace: Callable[[DropoutCall, Tensor], Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._replace = replace
        self._calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func not in _CALLS:
            return func(*args, **(kwargs or {}))
        name, in_place = _CALLS[func]
        values, p = args[0], float(args[1])
        call = DropoutCall(self._calls, p, 1 if name.startswith("feature") else None, "alpha" in name)
        self._calls += 1
        made = self._replace(call, values)
        return values.copy_(made) if in_place else made


def probe_scripted(run: Forward, inputs: tuple[Tensor, ...], who: str) -> Probe:
    """What the dropout calls of scripted code look like: found by running it on one row, taken two times and three times.

    Raises:
        ModelError: the shape of what is dropped doesn't follow from the number of rows.
    """
    few, more = (_noted(run, tuple(torch.cat([values[:1]] * rows) for values in inputs)) for rows in (FEW, MORE))
    if [call for call, _ in few] != [call for call, _ in more]:
        raise unsteady(who)
    return Probe(tuple(call_shape(call, old, new, who) for (call, old), (_, new) in zip(few, more, strict=True)), 1)


def check_scripted(network: Any, who: str) -> None:
    """Whether dropout of scripted code can be switched on.

    Raises:
        ModelError: it has none, as once it is frozen, or flags that tracing made constants.
    """
    graph = network.inlined_graph
    nodes = [node for name in _NAMES for suffix in ("", "_") for node in graph.findAllNodes(f"aten::{name}{suffix}")]
    if not nodes:
        raise ModelError(
            f"{who}: acquire.mc_samples is given, but its graph holds no dropout: it had none, or torch.jit.freeze removed it; {_INSTEAD}"
        )
    flags = [list(node.inputs())[2] for node in nodes]
    if all(flag.node().kind() == "prim::Constant" and not flag.toIValue() for flag in flags):
        raise ModelError(
            f"{who}: acquire.mc_samples is given, but the model was traced, with its dropout switched off for good; {_INSTEAD}"
        )
    for name, module in network.named_modules():
        if module.original_name in ("LSTM", "GRU", "RNN") and getattr(module, "dropout", 0) > 0 and getattr(module, "num_layers", 1) > 1:
            raise ModelError(
                f"{who}: {name or 'it'} is {module.original_name} with dropout between its layers, which can't be switched on; "
                "put torch.nn.Dropout between single layers, set its dropout to 0, or give a committee in model.members"
            )


def _noted(run: Forward, inputs: tuple[Tensor, ...]) -> list[tuple[DropoutCall, tuple[int, ...]]]:
    calls: list[tuple[DropoutCall, tuple[int, ...]]] = []

    def note(call: DropoutCall, values: Tensor) -> Tensor:
        calls.append((call, tuple(values.shape)))
        return values

    with ScriptedDropoutMode(note):
        run(inputs)
    return calls

"""Find what the dropout calls of a network look like, by running it on one row, taken two times and three times.

The axis that holds the rows is the one that grows with them, wherever it stands: first, or second in a network whose
sequences come first. An axis may hold several numbers for each row, such as attention heads or windows; the rows are then
taken to be its outer part. Where no axis grows, what is dropped is the same for all rows, such as a position's embedding.

Calls in scripted TorchScript, which no function mode sees, are found where they reach torch's dispatcher, and are replaced as
`DropoutMode` does it. torch.vmap can't run such code, so its samples run one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from raystream.errors import ModelError
from raystream.model.batches import is_device_failure, is_out_of_memory
from raystream.model.dropout_mode import DropoutCall, DropoutMode

Forward = Callable[[tuple[Tensor, ...]], object]
"""A network's forward pass: from its inputs, each (n_rows, ...), to its output."""
FEW, MORE = 2, 3
"""How many times the row is taken in the two trial runs."""
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class CallShape:
    """The shape of one dropout call's input, and the call's p."""

    p: float
    axis: int | None
    """Of the rows; None where no axis grows with them."""
    per_row: int
    """Numbers that each row has along it."""

    @property
    def active(self) -> bool:
        """True if its samples can differ."""
        return 0 < self.p < 1

    def mask(self, call: DropoutCall, values: Tensor, rows: int, who: str) -> list[int]:
        """Return the shape of its mask, which has `per_row` in place of the rows, and 1 wherever one draw holds for all."""
        shape = list(values.shape)
        if self.axis is not None:
            if self.axis >= len(shape) or shape[self.axis] != rows * self.per_row:
                raise unsteady(who)
            shape[self.axis] = self.per_row
        if call.channels is not None:
            shape[call.channels + 1 :] = [1] * (len(shape) - call.channels - 1)
        return shape

    def over_rows(self, mask: Tensor, rows: int) -> Tensor:
        """Return the mask as it meets the input: an axis with several numbers a row repeats them for each row."""
        if self.axis is None or self.per_row == 1:
            return mask
        shape = list(mask.shape)
        wide = mask.unsqueeze(self.axis).expand(*shape[: self.axis], rows, *shape[self.axis :])
        return wide.flatten(self.axis, self.axis + 1)


@dataclass(frozen=True)
class Probe:
    """The findings of the trial runs."""

    calls: tuple[CallShape, ...]
    bytes_per_row: int
    """Of the largest tensor made after the first active dropout, for one row of one sample."""

    def shape_of(self, call: DropoutCall, who: str) -> CallShape:
        """Look up the shape of a call of a later run.

        Raises:
            ModelError: it made no such call in the trial runs.
        """
        if call.number >= len(self.calls) or self.calls[call.number].p != call.p:
            raise unsteady(who)
        return self.calls[call.number]


@dataclass(frozen=True)
class _TrialRun:
    output: object
    calls: list[tuple[DropoutCall, tuple[int, ...], nn.Module | None]]
    """Each with the shape of its input and the module that was running."""
    largest: int


class _Watching(DropoutMode):
    """Replaces nothing, and notes the size of what is made after the first active dropout."""

    def __init__(self, replace: Callable[[DropoutCall, Tensor], Tensor]) -> None:
        super().__init__(lambda call, values: self._note(call, replace(call, values)))
        self.largest = 1
        self._begun = False

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        made = super().__torch_function__(func, types, args, kwargs)
        if self._begun and isinstance(made, Tensor):
            self.largest = max(self.largest, made.numel() * made.element_size())
        return made

    def _note(self, call: DropoutCall, values: Tensor) -> Tensor:
        self._begun = self._begun or 0 < call.p < 1
        return values


def probe(network: nn.Module, run: Forward, inputs: tuple[Tensor, ...], who: str) -> Probe:
    """Run a network on one row, a few times over.

    A module that gives dropout its p only while training, as attention in transformers does, is put into training mode
    by itself, if its deterministic output stays the same.

    Args:
        network: in evaluation mode.
        run: its forward pass.
        inputs: at least one row.
        who: names the network in errors.

    Raises:
        ModelError: the shape of what is dropped doesn't follow from the number of rows, or dropout can't be switched on.
    """
    few, more = (tuple(torch.cat([values[:1]] * rows) for values in inputs) for rows in (FEW, MORE))
    first = _watched(network, run, few)
    for module in {id(owner): owner for call, _, owner in first.calls if call.p == 0 and owner is not None}.values():
        _switch_on(network, run, few, module, first.output, who)
    before, after = _watched(network, run, few), _watched(network, run, more)
    if [call for call, *_ in before.calls] != [call for call, *_ in after.calls]:
        raise unsteady(who)
    shapes = [call_shape(call, old, new, who) for (call, old, _), (_, new, _) in zip(before.calls, after.calls, strict=True)]
    return Probe(tuple(shapes), -(-after.largest // MORE))


def _switch_on(
    network: nn.Module,
    run: Forward,
    inputs: tuple[Tensor, ...],
    module: nn.Module,
    expected: object,
    who: str,
) -> None:
    """Put one module into training mode, if that and nothing else gives its dropout a p."""
    if module.training:
        return
    module.training = True
    try:
        found = _watched(network, run, inputs)
    except Exception as error:
        module.training = False
        if is_out_of_memory(error) or is_device_failure(error):
            raise
        return
    if not any(call.p > 0 for call, _, owner in found.calls if owner is module):
        module.training = False
    elif not _close(found.output, expected):
        module.training = False
        name = next(name for name, known in network.named_modules() if known is module)
        raise ModelError(
            f"{who}: {name or 'it'} ({type(module).__name__}) has dropout only in training mode, in which it also computes something "
            "else; pass its p to dropout whatever self.training is, or give a committee in model.weights"
        )


def _close(output: object, expected: object) -> bool:
    if not (isinstance(output, Tensor) and isinstance(expected, Tensor) and output.shape == expected.shape):
        return False
    return torch.allclose(output.float(), expected.float(), rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)


def _watched(network: nn.Module, run: Forward, inputs: tuple[Tensor, ...]) -> _TrialRun:
    calls: list[tuple[DropoutCall, tuple[int, ...], nn.Module | None]] = []
    with running_modules(network) as modules:

        def note(call: DropoutCall, values: Tensor) -> Tensor:
            calls.append((call, tuple(values.shape), modules[-1] if modules else None))
            return values

        with _Watching(note) as mode:
            output = run(inputs)
    return _TrialRun(output, calls, mode.largest)


@contextmanager
def running_modules(network: nn.Module) -> Iterator[list[nn.Module]]:
    """Follow the modules whose forward pass is under way, the innermost last."""
    stack: list[nn.Module] = []

    def leave(*_: object) -> None:
        stack.pop()

    handles = []
    for module in network.modules():
        handles.append(module.register_forward_pre_hook(lambda module, _: stack.append(module)))
        handles.append(module.register_forward_hook(leave))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


def call_shape(call: DropoutCall, few: tuple[int, ...], more: tuple[int, ...], who: str) -> CallShape:
    """Find the shape of a call's input from its shapes with FEW and with MORE rows."""
    if call.p == 0:
        return CallShape(call.p, None, 1)
    if len(few) != len(more):
        raise unsteady(who)
    grown = [axis for axis, (old, new) in enumerate(zip(few, more, strict=True)) if old != new]
    if len(grown) > 1 or any(few[axis] * MORE != more[axis] * FEW for axis in grown):
        raise unsteady(who)
    return CallShape(call.p, grown[0], few[grown[0]] // FEW) if grown else CallShape(call.p, None, 1)


def unsteady(who: str) -> ModelError:
    """Make the error for a network whose masks can't be fixed ones."""
    return ModelError(
        f"{who}: what its dropout calls drop does not follow from the number of rows alone, so no sample would be one fixed sub-network; "
        "call dropout on tensors with one axis of rows, always in the same order, or give a committee in model.weights"
    )


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
    """Find what the dropout calls of scripted code look like, by running it on one row, taken two times and three times.

    Raises:
        ModelError: the shape of what is dropped doesn't follow from the number of rows.
    """
    few, more = (_noted(run, tuple(torch.cat([values[:1]] * rows) for values in inputs)) for rows in (FEW, MORE))
    if [call for call, _ in few] != [call for call, _ in more]:
        raise unsteady(who)
    return Probe(tuple(call_shape(call, old, new, who) for (call, old), (_, new) in zip(few, more, strict=True)), 1)


def check_scripted(network: Any, who: str) -> None:
    """Check that dropout of scripted code can be switched on.

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

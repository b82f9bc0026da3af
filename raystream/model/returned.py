"""What a forward pass returned, out of whatever it is wrapped in: a tensor, a mapping, a dataclass, a tuple."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from raystream.errors import ModelError
from raystream.query import TASKS

PROBABILITIES = "probabilities"
_NAMES = ("logits", PROBABILITIES, "out")
"""What outputs that are scored are called, the first that is there; `out` by torchvision's networks."""
_SHOWN = 4


def scored_name(names: Iterable[str]) -> str | None:
    """Which of several outputs is the one to score, by its name; None if none is called so."""
    known = set(names)
    return next((name for name in _NAMES if name in known), None)


def named(output: object) -> dict[str, Any] | None:
    """The parts of what has names: a mapping, a dataclass, a named tuple. Those that are None are left out; else None."""
    if isinstance(output, Mapping):
        pairs = [(str(name), value) for name, value in output.items()]
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        pairs = [(field.name, getattr(output, field.name)) for field in dataclasses.fields(output)]
    elif isinstance(output, tuple) and hasattr(output, "_fields"):
        pairs = list(zip(output._fields, output, strict=True))
    else:
        return None
    return {name: value for name, value in pairs if value is not None}


def opened(output: object, who: str, task: str) -> tuple[object, object, bool]:
    """The output to score, the mask beside it, and whether its name says that it is probabilities.

    Of what has names it is `logits`, `probabilities` or `out`, or all there is; of a tuple the only one, or of a dense task the
    first of two, whose second is the mask. Any other tuple could be read in two ways.

    Args:
        output: what the model returned.
        who: names the model in errors.
        task: `model.task`.

    Raises:
        ModelError: which output is meant can't be told.
    """
    dense = TASKS[task].dense
    parts = named(output)
    if parts is not None:
        mask = parts.pop("mask", None) if dense else None
        name = scored_name(parts) or (next(iter(parts)) if len(parts) == 1 else None)
        if name is None:
            raise ModelError(f"{who} returned {_kind(output)}, expected {_wanted(task)}; it holds {told(output)}: name one of them logits")
        return parts[name], mask, name == PROBABILITIES
    if isinstance(output, tuple | list):
        if len(output) == 1:
            return output[0], None, False
        if dense and len(output) == 2:
            return output[0], output[1], False
        raise ModelError(
            f"{who} returned {_kind(output)}, expected {_wanted(task)}; it holds {told(output)}: return the logits alone, or as a mapping "
            "in which they are called logits"
        )
    return output, None, False


def told(output: object) -> str:
    """What something is, in words: the dtypes and shapes of tensors, and of what holds them the names."""
    if isinstance(output, Tensor):
        return f"{str(output.dtype).removeprefix('torch.')} {tuple(output.shape)}"
    parts = named(output)
    if parts is not None:
        shown = [f"{name} {told(value)}" for name, value in parts.items()]
    elif isinstance(output, tuple | list):
        shown = [told(value) for value in output]
    else:
        return _kind(output)
    return ", ".join(shown[:_SHOWN]) + (f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else "") or f"an empty {_kind(output)}"


def _kind(output: object) -> str:
    return type(output).__name__


def _wanted(task: str) -> str:
    if task == "classes":
        return "one tensor of logits, (rows, classes)"
    return f"a floating tensor {TASKS[task].output} for model.task {task}{' or (logits, mask)' if TASKS[task].dense else ''}"

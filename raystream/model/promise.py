"""The promise that a model of any kind makes of its outputs, and the one place that holds every output to it.

* **Shape**: as `model.task` says, for as many rows as went in; floating, handed on as float32.
* **Logits or probabilities**: `model.output` says which, and an output's own name may (`probabilities`). Probabilities become
  logits here, their logarithms or of labels their log-odds, so that no second softmax is taken. Of classes they are a distribution a
  row, of labels each a number from 0 to 1; rows of which this isn't true are bad rows.
* **One column** of classes, (rows,) or (rows, 1), is the second of two: a probability p is (1 - p, p), a logit z is (0, z).
* **The same outputs for the same batch**, whoever runs it, and for the whole query either logits or probabilities: only running the
  model can tell, see `raystream.model.probe`.

A forward pass may return a tensor, a mapping, a dataclass or a tuple; of pixels and tokens the task says which of them count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raystream.errors import ModelError
from raystream.query import TASKS

AXES = {"classes": (2,), "multi_label": (2,), "regression": (2,), "tokens": (3,), "segmentation": (4, 5)}
"""How many axes a task's logits have; a single one of two is given the second."""


class WrongShapeError(ModelError):
    """An output has a shape that its task hasn't; whoever knows what the model was given adds that."""


def class_axis(task: str) -> int:
    """Find the axis of the classes in the logits of a batch."""
    return 2 if task == "tokens" else 1


def check_mask(mask: object, logits: Tensor, who: str, task: str) -> Tensor | None:
    """Return the mask of the elements that count, bool (rows, tokens) or (rows, height, width); None if all do.

    Raises:
        ModelError: it has another shape, or isn't of booleans or integers.
    """
    if mask is None:
        return None
    shape = tuple(size for axis, size in enumerate(logits.shape) if axis != class_axis(task))
    if not isinstance(mask, Tensor) or mask.is_floating_point() or tuple(mask.shape) != shape:
        got = f"{str(mask.dtype).removeprefix('torch.')} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ModelError(f"{who} returned a mask of {got}, expected booleans or integers {shape}, 0 at what doesn't count")
    return mask.bool()


def pooled(value: Tensor, mask: Tensor | None, task: str, who: str) -> Tensor:
    """Pool an embedding of rows that may have several positions to float32 (rows, dimensions).

    Of a dense task, the mean over the positions that count: (rows, positions, dimensions) over its second axis, and
    (rows, dimensions, height, width) over all but the first two. A feature map that is coarser than the mask is averaged
    whole. Of other tasks, all numbers of a row.

    Raises:
        ModelError: a sequence has another length than the mask.
    """
    value = value.float()
    if not TASKS[task].dense or value.ndim == 2:
        return value.flatten(1)
    if value.ndim > 3:
        value, fits = value.flatten(2).transpose(1, 2), mask is not None and value.shape[2:] == mask.shape[1:]
    else:
        fits = mask is not None and value.shape[1] == mask.flatten(1).shape[1]
        if task == "tokens" and mask is not None and not fits:
            raise ModelError(
                f"{who} gives {value.shape[1]} vectors a row for {mask.shape[1]} tokens, so the mask doesn't fit; name another module"
            )
    if mask is None or not fits:
        return value.mean(dim=1)
    counts = mask.flatten(1).unsqueeze(2)
    kept = torch.where(counts, value, torch.zeros((), dtype=value.dtype, device=value.device))  # what doesn't count may be NaN
    return kept.sum(dim=1) / counts.sum(dim=1).clamp(min=1)


def padded(pieces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pad parts of predictions of tokens to one length with tokens that don't count."""
    longest = max(piece["mask"].shape[1] for piece in pieces)

    def longer(piece: dict[str, Any]) -> dict[str, Any]:
        more = longest - piece["mask"].shape[1]
        pads = {"logits": (0, 0, 0, more), "samples": (0, 0, 0, more), "mask": (0, more)}
        widened = {name: torch.nn.functional.pad(piece[name], pad) for name, pad in pads.items() if piece[name] is not None and more}
        return piece | widened

    return [longer(piece) for piece in pieces]


PROBABILITIES = "probabilities"
_NAMES = ("logits", PROBABILITIES, "out")
"""What outputs that are scored are called, the first that is there; `out` by torchvision's networks."""
_SHOWN = 4


def scored_name(names: Iterable[str]) -> str | None:
    """Find which of several outputs is the one to score, by its name; None if none is called so."""
    known = set(names)
    return next((name for name in _NAMES if name in known), None)


def named(output: object) -> dict[str, Any] | None:
    """Return the parts of what has names: a mapping, a dataclass, a named tuple. Those that are None are left out; else None."""
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
    """Return the output to score, the mask beside it, and whether its name says that it is probabilities.

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
    """Describe something in words: the dtypes and shapes of tensors, and of what holds them the names."""
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


NOT_FINITE = "the model's output holds NaN or infinity"
NO_DISTRIBUTION = "the probabilities are negative or don't sum to 1"
_NO_PROBABILITY = "a probability is NaN, or not between 0 and 1"
_TOLERANCE = 1e-3
"""By how much a sum of probabilities may miss 1, beside what rounding to their dtype does."""
_SURE = 1000.0
"""The log-odds of a label with a probability of 0 or 1: finite, and its sigmoid is exact in float64."""


@dataclass(frozen=True)
class CheckedOutput:
    """The output of a forward pass, held to the promise."""

    raw: Tensor
    """The very tensor that the model returned."""
    logits: Tensor
    """float32, in the shape of the task."""
    mask: Tensor | None
    """Which elements of a dense output count; None: all."""


class Promise:
    """The promise that one model's outputs are held to.

    Args:
        who: names the model, and what returned it, in errors.
        task: `model.task`.
        output: `model.output`, logits or probabilities.
        verb: what `who` does with an output, for messages.
    """

    def __init__(self, who: str, task: str = "classes", output: str = "logits", verb: str = "returned") -> None:
        self.who, self.task = who, task
        self.probabilities = output == "probabilities"
        self._verb = verb

    def read(self, output: object, rows: int) -> CheckedOutput:
        """Read what a forward pass returned for so many rows. Nothing here depends on the numbers: it may run under torch.vmap.

        Raises:
            ModelError: which output is meant can't be told, or it has another shape or dtype than the task's.
        """
        values, mask, named_so = opened(output, self.who, self.task)
        self.probabilities = self.probabilities or named_so
        logits = self.logits(values, rows)
        assert isinstance(values, Tensor)  # or there would be no logits
        return CheckedOutput(values, logits, check_mask(mask, logits, self.who, self.task))

    def logits(self, values: object, rows: int) -> Tensor:
        """Return an output as float32 logits in the shape of the task.

        Of probabilities of classes that are no distribution all logits are +inf, of labels that have none NaN: bad rows to whoever
        looks for such.

        Args:
            values: floating tensor (rows, ...).
            rows: how many were given to the model.

        Raises:
            ModelError: it is something else.
        """
        values = self._shaped(values, rows)
        if self.task == "regression":
            return values.float()
        if self.task == "multi_label":
            return _log_odds(values) if self.probabilities else values.float()
        axis = class_axis(self.task)
        if values.shape[axis] == 1:
            return _of_two(values, axis) if self.probabilities else torch.cat([torch.zeros_like(values), values], dim=axis).float()
        return _logarithms(values, axis) if self.probabilities else values.float()

    def members(self, values: Tensor) -> Tensor:
        """Return the outputs of several members, (rows, members, ...), each as `logits` makes it."""
        flat = self.logits(values.flatten(0, 1), values.shape[0] * values.shape[1])
        return flat.reshape(*values.shape[:2], *flat.shape[1:])

    def reason(self, *logits: Tensor | None) -> str:
        """Say what is wrong with the rows of these logits of which anything is wrong."""
        if self.probabilities and self.task == "multi_label":
            return _NO_PROBABILITY
        wrong = self.probabilities and any(bool((values == torch.inf).any()) for values in logits if values is not None)
        return NO_DISTRIBUTION if wrong else NOT_FINITE

    def _shaped(self, values: object, rows: int) -> Tensor:
        """Return the output with an axis of classes, labels or numbers, provided that it is one of the task's."""
        if not isinstance(values, Tensor):
            raise ModelError(f"{self.who} {self._verb} {told(values)}, expected {self._expected(rows)}")
        shape = tuple(values.shape)
        if values.ndim == 1 and 2 in AXES[self.task]:
            values = values.unsqueeze(1)
        if values.ndim not in AXES[self.task] or shape[0] != rows or 0 in shape[1:]:
            got = f"{told(values)} for {rows} rows"
            raise WrongShapeError(f"{self.who} {self._verb} {got}, expected {self._expected(rows)}{self._hint(shape, rows)}")
        if not values.is_floating_point():
            raise ModelError(f"{self.who} {self._verb} {told(values)}, expected {self._expected(rows)}: floating numbers, not classes")
        return values

    def _expected(self, rows: int) -> str:
        if self.task != "classes":
            return f"a floating tensor {TASKS[self.task].output} for model.task {self.task}"
        return f"{'probabilities' if self.probabilities else 'logits'} of shape ({rows}, classes)"

    def _hint(self, shape: tuple[int, ...], rows: int) -> str:
        """Hint at the task that has outputs of this shape, if another one has."""
        other = next((task for task, axes in AXES.items() if len(shape) in axes), None)
        if other is None or shape[0] != rows or 0 in shape or len(shape) in AXES[self.task]:
            return "; check model.task, or wrap the model so that it returns this"
        return f"; that is what model.task {other} takes: set it, or return what {self.task} takes"


def tolerance(dtype: torch.dtype) -> float:
    """Return by how much probabilities of this dtype may miss their sum, or exceed 1."""
    return _TOLERANCE + 2 * torch.finfo(dtype).eps


def _logarithms(values: Tensor, axis: int) -> Tensor:
    exact = _exact(values)
    wrong = (exact < 0).any(dim=axis, keepdim=True) | ((exact.sum(dim=axis, keepdim=True) - 1).abs() > tolerance(values.dtype))
    return exact.log().masked_fill(wrong, torch.inf).float()


def _of_two(values: Tensor, axis: int) -> Tensor:
    """Return (log(1 - p), log p)."""
    exact, wrong = _clipped(values)
    return torch.cat([torch.log1p(-exact), exact.log()], dim=axis).masked_fill(wrong, torch.inf).float()


def _log_odds(values: Tensor) -> Tensor:
    exact, wrong = _clipped(values)
    return (exact.log() - torch.log1p(-exact)).clamp(-_SURE, _SURE).masked_fill(wrong, torch.nan).float()


def _exact(values: Tensor) -> Tensor:
    """Return it in float64, where the device has it: 1 - p keeps its digits."""
    return values.float() if values.device.type == "mps" else values.double()


def _clipped(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return exact probabilities, rounding above 1 cut off, and bool of the same shape where they are none."""
    exact = _exact(values)
    return exact.clamp(max=1), (exact < 0) | (exact > 1 + tolerance(values.dtype))

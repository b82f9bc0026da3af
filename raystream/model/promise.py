"""What a model of any kind promises of its outputs, and the one place that holds every output to it.

* **Shape**: as `model.task` says, for as many rows as went in; floating, handed on as float32.
* **Logits or probabilities**: `model.output` says which, and an output's own name may (`probabilities`). Probabilities become
  logits here, their logarithms or of labels their log-odds, so that no second softmax is taken. Of classes they are a distribution a
  row, of labels each a number from 0 to 1; rows of which this isn't true are bad rows.
* **One column** of classes, (rows,) or (rows, 1), is the second of two: a probability p is (1 - p, p), a logit z is (0, z).
* **The same outputs for the same batch**, whoever runs it, and for the whole query either logits or probabilities: only running the
  model can tell, see `raystream.model.probe`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raystream.errors import ModelError
from raystream.model.returned import opened, told
from raystream.model.task_output import AXES, check_mask, class_axis
from raystream.query import TASKS

NOT_FINITE = "the model's output holds NaN or infinity"
NO_DISTRIBUTION = "the probabilities are negative or don't sum to 1"
_NO_PROBABILITY = "a probability is NaN, or not between 0 and 1"
_TOLERANCE = 1e-3
"""By how much a sum of probabilities may miss 1, beside what rounding to their dtype does."""
_SURE = 1000.0
"""The log-odds of a label with a probability of 0 or 1: finite, and its sigmoid is exact in float64."""


@dataclass(frozen=True)
class Read:
    """What a forward pass returned, held to the promise."""

    raw: Tensor
    """The very tensor that the model returned."""
    logits: Tensor
    """float32, in the shape of the task."""
    mask: Tensor | None
    """Which elements of a dense output count; None: all."""


class Promise:
    """What one model's outputs are to be.

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

    def read(self, output: object, rows: int) -> Read:
        """What a forward pass returned for so many rows. Nothing here depends on the numbers: it may run under torch.vmap.

        Raises:
            ModelError: which output is meant can't be told, or it has another shape or dtype than the task's.
        """
        values, mask, named_so = opened(output, self.who, self.task)
        self.probabilities = self.probabilities or named_so
        logits = self.logits(values, rows)
        assert isinstance(values, Tensor)  # or there would be no logits
        return Read(values, logits, check_mask(mask, logits, self.who, self.task))

    def logits(self, values: object, rows: int) -> Tensor:
        """An output as float32 logits in the shape of the task.

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
        """The outputs of several members, (rows, members, ...), each as `logits` makes it."""
        flat = self.logits(values.flatten(0, 1), values.shape[0] * values.shape[1])
        return flat.reshape(*values.shape[:2], *flat.shape[1:])

    def reason(self, *logits: Tensor | None) -> str:
        """What is wrong with the rows of these logits of which anything is wrong."""
        if self.probabilities and self.task == "multi_label":
            return _NO_PROBABILITY
        wrong = self.probabilities and any(bool((values == torch.inf).any()) for values in logits if values is not None)
        return NO_DISTRIBUTION if wrong else NOT_FINITE

    def _shaped(self, values: object, rows: int) -> Tensor:
        """The output with an axis of classes, labels or numbers, provided that it is one of the task's."""
        if not isinstance(values, Tensor):
            raise ModelError(f"{self.who} {self._verb} {told(values)}, expected {self._expected(rows)}")
        shape = tuple(values.shape)
        if values.ndim == 1 and 2 in AXES[self.task]:
            values = values.unsqueeze(1)
        if values.ndim not in AXES[self.task] or shape[0] != rows or 0 in shape[1:]:
            got = f"{told(values)} for {rows} rows"
            raise ModelError(f"{self.who} {self._verb} {got}, expected {self._expected(rows)}{self._hint(shape, rows)}")
        if not values.is_floating_point():
            raise ModelError(f"{self.who} {self._verb} {told(values)}, expected {self._expected(rows)}: floating numbers, not classes")
        return values

    def _expected(self, rows: int) -> str:
        if self.task != "classes":
            return f"a floating tensor {TASKS[self.task].output} for model.task {self.task}"
        return f"{'probabilities' if self.probabilities else 'logits'} of shape ({rows}, classes)"

    def _hint(self, shape: tuple[int, ...], rows: int) -> str:
        """Which task has outputs of this shape, if another one has."""
        other = next((task for task, axes in AXES.items() if len(shape) in axes), None)
        if other is None or shape[0] != rows or 0 in shape or len(shape) in AXES[self.task]:
            return "; check model.task, or wrap the model so that it returns this"
        return f"; that is what model.task {other} takes: set it, or return what {self.task} takes"


def tolerance(dtype: torch.dtype) -> float:
    """By how much probabilities of this dtype may miss their sum, or exceed 1."""
    return _TOLERANCE + 2 * torch.finfo(dtype).eps


def _logarithms(values: Tensor, axis: int) -> Tensor:
    exact = _exact(values)
    wrong = (exact < 0).any(dim=axis, keepdim=True) | ((exact.sum(dim=axis, keepdim=True) - 1).abs() > tolerance(values.dtype))
    return exact.log().masked_fill(wrong, torch.inf).float()


def _of_two(values: Tensor, axis: int) -> Tensor:
    """(log(1 - p), log p)."""
    exact, wrong = _clipped(values)
    return torch.cat([torch.log1p(-exact), exact.log()], dim=axis).masked_fill(wrong, torch.inf).float()


def _log_odds(values: Tensor) -> Tensor:
    exact, wrong = _clipped(values)
    return (exact.log() - torch.log1p(-exact)).clamp(-_SURE, _SURE).masked_fill(wrong, torch.nan).float()


def _exact(values: Tensor) -> Tensor:
    """In float64, where the device has it: 1 - p keeps its digits."""
    return values.float() if values.device.type == "mps" else values.double()


def _clipped(values: Tensor) -> tuple[Tensor, Tensor]:
    """Exact probabilities, rounding above 1 cut off, and bool of the same shape where they are none."""
    exact = _exact(values)
    return exact.clamp(max=1), (exact < 0) | (exact > 1 + tolerance(values.dtype))

"""Check what acquisition functions accept, once at their public edge: lists, NumPy arrays and tensors.

They answer in kind, a tensor on its device where one was given and NumPy else, without a gradient. What is behind the edge
takes tensors of float32 or float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from raystream.arrays import numbers
from raystream.errors import LabelsError, QueryError

InKind: TypeAlias = Any
"""A tensor where one was given, else a NumPy array."""

_SLACK = 0.01
"""How far probabilities may be from summing to 1: bfloat16 is some thousandths off."""
_EXACT = 1e-4
"""How close to 1 numbers that are called logits have to sum to be taken for probabilities; `_SLACK` in half precision."""
_MANY = 32
"""So many rows of zeros and ones, or numbers between 0 and 1 of labels, are no logits."""
_HALF = (torch.float16, torch.bfloat16, np.float16)


def in_kind(scores: Tensor, *given: object) -> InKind:
    """Return `scores` as a tensor if any of what was given is one, else as a NumPy array."""
    return scores if any(isinstance(one, Tensor) for one in given) else scores.cpu().numpy()


def given_logits(logits: ArrayLike | None, probabilities: ArrayLike | None) -> Tensor:
    """Return (rows, classes) logits from either argument, detached, in float32 at least; the logarithm of probabilities are logits.

    Raises:
        QueryError: both or none of the two, another shape, or the one given for the other.
    """
    if probabilities is not None:
        _refuse_both(logits, "logits")
        values = _floating(probabilities, "probabilities", "(rows, classes)")
        if values.ndim != 2 or values.shape[1] < 2:
            raise QueryError(f"probabilities have the shape {tuple(values.shape)}, expected (rows, classes) with at least two classes")
        return logarithm(values)
    values = checked_logits(_required(logits, "logits"))
    refuse_probabilities(values, logits)
    return values


def given_members(log_probs: ArrayLike | None, probabilities: ArrayLike | None) -> Tensor:
    """Return (rows, members, classes) log-probabilities from either argument, detached, in float32 at least."""
    if probabilities is not None:
        _refuse_both(log_probs, "log_probs")
        return logarithm(checked_members(probabilities, "probabilities"))
    return checked_members(_required(log_probs, "log_probs"), "log-probabilities")


def given_outputs(logits: ArrayLike | None, probabilities: ArrayLike | None, axis_of: Callable[[Tensor], int]) -> Tensor:
    """Return logits of any shape from either argument, detached; `axis_of` finds their axis of classes, or refuses them."""
    if probabilities is not None:
        _refuse_both(logits, "logits")
        values = _floating(probabilities, "probabilities", "as of logits")
        return logarithm(values, axis_of(values))
    values = _floating(_required(logits, "logits"), "logits", "(rows, tokens, classes) or (rows, classes, height, width)")
    refuse_probabilities(values, logits, axis_of(values))
    return values


def given_label_logits(logits: ArrayLike | None, probabilities: ArrayLike | None) -> Tensor:
    """Return (rows, labels) logits, one sigmoid each, from either argument, detached, in float32 at least."""
    if probabilities is None:
        values = checked_label_logits(_required(logits, "logits"))
        if values.numel() >= _MANY and bool(((values >= 0) & (values <= 1)).all()) and bool(((values > 0) & (values < 1)).any()):
            raise QueryError(
                "logits holds probabilities, since all of its numbers lie between 0 and 1; give them as probabilities=, "
                "or if they are logits indeed, their sigmoid as that"
            )
        return values
    _refuse_both(logits, "logits")
    values = checked_label_logits(probabilities, "probabilities")
    wrong = torch.nonzero((values < -_SLACK) | (values > 1 + _SLACK))
    if len(wrong):
        row, label = wrong[0].tolist()
        raise QueryError(f"the probability of row {row}, label {label} is {float(values[row, label]):.6g}, expected a number from 0 to 1")
    return torch.logit(values.clamp(min=0, max=1))


def logarithm(probabilities: Tensor, axis: int = -1) -> Tensor:
    """Return the logarithms of probabilities that sum to 1 along an axis; -inf for 0, NaN for NaN."""
    total = probabilities.sum(dim=axis, dtype=torch.float64)
    wrong = torch.nonzero(((total - 1).abs() > _SLACK) | (probabilities < -_SLACK).any(dim=axis))
    if len(wrong):
        row = int(wrong[0, 0])
        raise QueryError(
            f"the probabilities of row {row} sum to {float(total[tuple(wrong[0])]):.6g}, expected numbers from 0 to 1 that sum to 1; "
            "if they are logits, give them as such"
        )
    return probabilities.clamp(min=0).log_()


def refuse_probabilities(logits: Tensor, given: object, axis: int = -1) -> None:
    """Raise QueryError if what is called logits, `given` as it came, are probabilities, since all are at least 0 and sum to 1.

    Rows that are equal in all classes mean the same as either, and a few rows of zeros and ones may well be somebody's logits.
    """
    slack = _SLACK if getattr(given, "dtype", None) in _HALF else _EXACT
    # the first row tells nearly always that they aren't
    if not logits.numel() or not _sum_to_one(logits[:1], axis, slack) or not _sum_to_one(logits, axis, slack):
        return
    if bool((logits == logits.amax(dim=axis, keepdim=True)).all()):
        return
    if len(logits) < _MANY and bool(((logits == 0) | (logits == 1)).all()):
        return
    raise QueryError(
        "logits holds probabilities, since each row's numbers lie between 0 and 1 and sum to 1; give them as probabilities=, "
        "or if they are logits indeed, their log_softmax"
    )


def _sum_to_one(values: Tensor, axis: int, slack: float) -> bool:
    return bool((values >= 0).all()) and bool(((values.sum(dim=axis, dtype=torch.float64) - 1).abs() <= slack).all())


def _required(values: ArrayLike | None, name: str) -> ArrayLike:
    if values is None:
        raise QueryError(f"{name} is missing; give {name} or probabilities=")
    return values


def _refuse_both(values: ArrayLike | None, name: str) -> None:
    if values is not None:
        raise QueryError(f"both {name} and probabilities are given; give one of them")


def checked_logits(logits: ArrayLike) -> Tensor:
    """Check (rows, classes) logits, and return them detached, in float32 at least."""
    logits = _floating(logits, "logits", "(rows, classes)")
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise QueryError(f"logits have the shape {tuple(logits.shape)}, expected (rows, classes) with at least two classes")
    return logits


def checked_members(samples: ArrayLike, what: str) -> Tensor:
    """Check (rows, members, classes) logits or log-probabilities, and return them detached, in float32 at least."""
    samples = _floating(samples, what, "(rows, members, classes)")
    if samples.ndim != 3 or samples.shape[1] < 1 or samples.shape[2] < 2:
        expected = "(rows, members, classes) with at least one member and two classes"
        raise QueryError(f"{what} have the shape {tuple(samples.shape)}, expected {expected}")
    return samples


def checked_label_logits(logits: ArrayLike, what: str = "logits") -> Tensor:
    """Check (rows, labels) logits, one sigmoid each, and return them detached, in float32 at least."""
    logits = _floating(logits, what, "(rows, labels)")
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise QueryError(f"{what} have the shape {tuple(logits.shape)}, expected (rows, labels) with at least one label")
    return logits


def checked_label_samples(samples: ArrayLike) -> Tensor:
    """Check (rows, members, labels) logits, one sigmoid each, and return them detached, in float32 at least."""
    samples = _floating(samples, "samples", "(rows, members, labels)")
    if samples.ndim != 3 or 0 in samples.shape[1:]:
        expected = "(rows, members, labels) with at least one member and one label"
        raise QueryError(f"samples have the shape {tuple(samples.shape)}, expected {expected}")
    return samples


def checked_predictions(predictions: ArrayLike) -> Tensor:
    """Check (rows, members) or (rows, members, outputs) numbers, and return them detached, in float32 at least."""
    predictions = _floating(predictions, "predictions", "(rows, members) or (rows, members, outputs)")
    if predictions.ndim not in (2, 3) or 0 in predictions.shape[1:]:
        expected = "(rows, members) or (rows, members, outputs) with at least one member"
        raise QueryError(f"predictions have the shape {tuple(predictions.shape)}, expected {expected}")
    return predictions


def checked_embedding(h: ArrayLike, rows: int) -> Tensor:
    """Check (rows, dimensions) inputs of the last layer, and return them detached, in float32 at least."""
    h = _floating(h, "the inputs of the last layer", "(rows, dimensions)")
    if h.ndim != 2 or len(h) != rows:
        raise QueryError(
            f"the inputs of the last layer have the shape {tuple(h.shape)} beside {rows} rows of logits, expected ({rows}, dimensions)"
        )
    return h


def checked_temperature(temperature: float) -> float:
    """Check T in p = softmax(z / T)."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise QueryError(f"temperature is {temperature}, expected a finite number above 0")
    return temperature


def checked_labels(labels: ArrayLike, rows: int, classes: int) -> Tensor:
    """Check (rows,) int64 classes, each in 0 .. classes - 1."""
    labels = tensor_of(labels, "labels")
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != (rows,):
        got = f"a tensor of {labels.dtype}, shape {tuple(labels.shape)}"
        raise QueryError(f"labels are {got}, expected ({rows},) integers, one class per row")
    labels = labels.long()
    unknown = torch.nonzero((labels < 0) | (labels >= classes)).flatten()
    if len(unknown):
        row = int(unknown[0])
        raise LabelsError(
            f"the label of row {row} is {int(labels[row])}, and {len(unknown)} labels are outside 0 .. {classes - 1}, the model's classes"
        )
    return labels


def tensor_of(values: ArrayLike, what: str) -> Tensor:
    """Turn what holds numbers into a tensor, detached; a list of integers means numbers, not classes, and becomes float64."""
    if isinstance(values, Tensor):
        return values.detach()
    array = numbers(values, what)
    if not array.dtype.isnative or not array.flags.writeable or any(stride < 0 for stride in array.strides):  # torch takes none of these
        array = np.array(array, dtype=array.dtype.newbyteorder("="))
    if array.dtype == np.longdouble:
        array = array.astype(np.float64)
    return torch.from_numpy(array)


def _floating(values: ArrayLike, what: str, shape: str) -> Tensor:
    tensor = tensor_of(values, what)
    if isinstance(values, list | tuple) and not tensor.is_floating_point():
        tensor = tensor.double()
    if not tensor.is_floating_point():
        raise QueryError(f"{what} are a tensor of {tensor.dtype}, expected a floating tensor of shape {shape}; convert them first")
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()

"""What acquisition functions accept, checked once at their public edge."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raystream.errors import LabelsError, QueryError


def checked_logits(logits: Tensor) -> Tensor:
    """(rows, classes) logits, detached, in float32 at least."""
    logits = _floating(logits, "logits", "(rows, classes)")
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise QueryError(f"logits have the shape {tuple(logits.shape)}, expected (rows, classes) with at least two classes")
    return logits


def checked_members(samples: Tensor, what: str) -> Tensor:
    """(rows, members, classes) logits or log-probabilities, detached, in float32 at least."""
    samples = _floating(samples, what, "(rows, members, classes)")
    if samples.ndim != 3 or samples.shape[1] < 1 or samples.shape[2] < 2:
        expected = "(rows, members, classes) with at least one member and two classes"
        raise QueryError(f"{what} have the shape {tuple(samples.shape)}, expected {expected}")
    return samples


def checked_label_logits(logits: Tensor) -> Tensor:
    """(rows, labels) logits, one sigmoid each, detached, in float32 at least."""
    logits = _floating(logits, "logits", "(rows, labels)")
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise QueryError(f"logits have the shape {tuple(logits.shape)}, expected (rows, labels) with at least one label")
    return logits


def checked_label_samples(samples: Tensor) -> Tensor:
    """(rows, members, labels) logits, one sigmoid each, detached, in float32 at least."""
    samples = _floating(samples, "samples", "(rows, members, labels)")
    if samples.ndim != 3 or 0 in samples.shape[1:]:
        expected = "(rows, members, labels) with at least one member and one label"
        raise QueryError(f"samples have the shape {tuple(samples.shape)}, expected {expected}")
    return samples


def checked_predictions(predictions: Tensor) -> Tensor:
    """(rows, members) or (rows, members, outputs) numbers, detached, in float32 at least."""
    predictions = _floating(predictions, "predictions", "(rows, members) or (rows, members, outputs)")
    if predictions.ndim not in (2, 3) or 0 in predictions.shape[1:]:
        expected = "(rows, members) or (rows, members, outputs) with at least one member"
        raise QueryError(f"predictions have the shape {tuple(predictions.shape)}, expected {expected}")
    return predictions


def checked_embedding(h: Tensor, rows: int) -> Tensor:
    """(rows, dimensions) inputs of the last layer, detached, in float32 at least."""
    h = _floating(h, "the inputs of the last layer", "(rows, dimensions)")
    if h.ndim != 2 or len(h) != rows:
        raise QueryError(
            f"the inputs of the last layer have the shape {tuple(h.shape)} beside {rows} rows of logits, expected ({rows}, dimensions)"
        )
    return h


def checked_temperature(temperature: float) -> float:
    """T in p = softmax(z / T)."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise QueryError(f"temperature is {temperature}, expected a finite number above 0")
    return temperature


def checked_labels(labels: Tensor, rows: int, classes: int) -> Tensor:
    """(rows,) int64 classes, each in 0 .. classes - 1."""
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != (rows,):
        got = f"a tensor of {labels.dtype}, shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise QueryError(f"labels are {got}, expected ({rows},) integers, one class per row")
    unknown = torch.nonzero((labels < 0) | (labels >= classes)).flatten()
    if len(unknown):
        row = int(unknown[0])
        raise LabelsError(
            f"the label of row {row} is {int(labels[row])}, and {len(unknown)} labels are outside 0 .. {classes - 1}, the model's classes"
        )
    return labels.long()


def _floating(values: Tensor, what: str, shape: str) -> Tensor:
    if not isinstance(values, Tensor) or not values.is_floating_point():
        got = f"a tensor of {values.dtype}" if isinstance(values, Tensor) else type(values).__name__
        raise QueryError(f"{what} are {got}, expected a floating tensor of shape {shape}; convert them first")
    values = values.detach()
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values

"""Several models with the same classes that run on the same rows: a committee (Seung, Opper and Sompolinsky, Query by Committee, 1992)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from raystream import query
from raystream.errors import ModelError
from raystream.model.batches import join
from raystream.model.prediction import Prediction, Predictor
from raystream.model.promise import class_axis


def member_specs(spec: query.Model) -> list[query.Model]:
    """Return the members of a committee, each as a model of its own; of a model that is none, an empty list.

    What says how to run, rather than what, is that of the committee; its `embedding` is the first member's.
    """
    if isinstance(spec.weights, list):
        members = [spec.derived(weights=path) for path in spec.weights]
    else:
        shared = ("batch_size", "device", "precision", "task", "temperature")
        members = [member.derived(**{key: getattr(spec, key) for key in shared}) for member in spec.members or []]
    return [member.derived(embedding=None if position else spec.embedding) for position, member in enumerate(members)]


def member_names(spec: query.Model) -> list[str]:
    """Name the members as errors call them."""
    if isinstance(spec.weights, list):
        return [f"model.weights {path}" for path in spec.weights]
    return [f"model.members {position} ({member.source or member.kind})" for position, member in enumerate(spec.members or [])]


class Committee:
    """Runs its members on the same rows, and takes the mean of their probabilities.

    With p_k = softmax(z_k / T) of member k, at temperature T, a prediction's `logits` are T log mean_k p_k: their softmax at
    that temperature is the mean, and at T = 1 they are its logarithm. They are normalised, so their energy says nothing.
    `samples` are the members' own logits z_k. The embedding is the first member's.

    Args:
        members: ready to predict; the first gives embeddings, if any are wanted.
        names: of the members, for errors.
        temperature: T.
        task: `model.task`, which all share; of regression, the mean is that of the numbers.
    """

    def __init__(self, members: Sequence[Predictor], names: Sequence[str], temperature: float = 1.0, task: str = "classes") -> None:
        self.device = members[0].device
        _check_different(members, names)
        self.class_labels = _same_classes(members, names)
        self.state_hash = hashlib.sha256("\0".join(member.state_hash for member in members).encode()).hexdigest()
        self._members, self._names, self._temperature, self._task = list(members), list(names), temperature, task

    @property
    def batch_size(self) -> int:
        """The most rows that run at once, in any member: one that ran out of memory halves the batch of all."""
        return min(member.batch_size for member in self._members)

    def predict(self, inputs: tuple[Tensor, ...]) -> Prediction:
        """See `Predictor.predict`.

        Raises:
            ModelError: two members have different numbers of classes.
        """
        rows = len(inputs[0])
        pieces: list[Prediction] = []
        start = 0
        while start < rows or not pieces:
            size = self.batch_size
            pieces.append(self._piece(tuple(values[start : start + size] for values in inputs)))
            start += size
        return join(pieces)

    def _piece(self, inputs: tuple[Tensor, ...]) -> Prediction:
        """Return the members' logits, (n_rows, n_members, n_classes), their mean, and the first one's embedding and mask."""
        made = [member.predict(inputs) for member in self._members]
        for name, prediction in zip(self._names, made, strict=True):
            self._check_like(made[0], prediction, name)
        logits = [prediction.logits.to(self.device) for prediction in made if prediction.logits is not None]
        samples = torch.stack(logits, dim=1)
        return Prediction(mean_outputs(samples, self._temperature, self._task), made[0].embedding, samples=samples, mask=made[0].mask)

    def _check_like(self, first: Prediction, prediction: Prediction, name: str) -> None:
        """Raise ModelError unless a member's output is of the first one's shape, with the same elements that count."""
        assert first.logits is not None  # only kind columns may have none, and is no member
        assert prediction.logits is not None
        axis = class_axis(self._task)
        classes, others = first.logits.shape[axis], prediction.logits.shape[axis]
        if classes != others:
            raise ModelError(
                f"{self._names[0]} has {classes} classes, but {name} has {others}; a committee needs the same classes in the same order"
            )
        same = first.logits.shape == prediction.logits.shape and (first.mask is None) == (prediction.mask is None)
        if not same or (first.mask is not None and not torch.equal(first.mask, prediction.mask.to(first.mask.device))):  # type: ignore[union-attr]
            raise ModelError(
                f"{self._names[0]} and {name} give different elements for the same rows ({tuple(first.logits.shape)} and "
                f"{tuple(prediction.logits.shape)}, or masks that differ); a committee needs the same tokens or pixels"
            )


def _check_different(members: Sequence[Predictor], names: Sequence[str]) -> None:
    """Raise ModelError if two weights of one network are the same: such members agree on every row."""
    seen: dict[str, str] = {}
    for member, name in zip(members, names, strict=True):
        if not name.startswith("model.weights "):
            return
        if member.state_hash and member.state_hash in seen:
            raise ModelError(f"{seen[member.state_hash]} and {name} are the same, so they agree on every row; give members that differ")
        seen[member.state_hash] = name


def _same_classes(members: Sequence[Predictor], names: Sequence[str]) -> tuple[Any, ...] | None:
    """Return what the members call their classes, if any of them does.

    Raises:
        ModelError: two of them call them otherwise, or in another order.
    """
    told = [(name, labels) for name, member in zip(names, members, strict=True) if (labels := getattr(member, "class_labels", None))]
    for name, labels in told:
        if labels != told[0][1]:
            shown = " and ".join(f"{which} has the classes {', '.join(map(repr, of[:5]))}" for which, of in (told[0], (name, labels)))
            raise ModelError(f"{shown}; a committee needs the same classes in the same order, so fit its members on the same labels")
    return told[0][1] if told else None


def mean_outputs(samples: Tensor, temperature: float = 1.0, task: str = "classes") -> Tensor:
    """Return the output that stands for all members: logits of the mean of their probabilities, or the mean of their numbers.

    Args:
        samples: floating (n_rows, n_members, ...), each member's output.
        temperature: T.
        task: `model.task`.

    Returns:
        float32 (n_rows, ...).
    """
    if task == "regression":
        return samples.double().mean(dim=1).float()
    if task == "multi_label":
        z = samples.double() / temperature
        odds = torch.nn.functional.logsigmoid(z).logsumexp(dim=1) - torch.nn.functional.logsigmoid(-z).logsumexp(dim=1)
        return (temperature * odds).float()
    return mean_logits(samples, temperature, class_axis(task) + 1)


def mean_logits(samples: Tensor, temperature: float = 1.0, axis: int = 2) -> Tensor:
    """Compute T log mean_k softmax(z_k / T) of logits z_k: their softmax at temperature T is the members' mean.

    Args:
        samples: floating (n_rows, n_members, n_classes), or with further axes.
        temperature: T.
        axis: of the classes.

    Returns:
        float32 (n_rows, n_classes), or with further axes; NaN where a member has no distribution.
    """
    each = torch.log_softmax(samples.double() / temperature, dim=axis)
    return (temperature * (each.logsumexp(dim=1) - math.log(samples.shape[1]))).float()

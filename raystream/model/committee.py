"""Several models with the same classes that run on the same rows: a committee (Seung, Opper and Sompolinsky, Query by Committee, 1992)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from raystream import query
from raystream.errors import ModelError
from raystream.model.prediction import Prediction, Predictor


def member_specs(spec: query.Model) -> list[query.Model]:
    """The members of a committee, each as a model of its own; of a model that is none, an empty list.

    What says how to run, rather than what, is that of the committee; its `embedding` is the first member's.
    """
    if isinstance(spec.weights, list):
        members = [spec.model_copy(update={"weights": path}) for path in spec.weights]
    else:
        shared = ("batch_size", "device", "precision", "temperature")
        members = [member.model_copy(update={key: getattr(spec, key) for key in shared}) for member in spec.members or []]
    return [member.model_copy(update={"embedding": None if position else spec.embedding}) for position, member in enumerate(members)]


def member_names(spec: query.Model) -> list[str]:
    """What to call the members in errors."""
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
    """

    def __init__(self, members: Sequence[Predictor], names: Sequence[str], temperature: float = 1.0) -> None:
        self.device = members[0].device
        self.state_hash = hashlib.sha256("\0".join(member.state_hash for member in members).encode()).hexdigest()
        self._members, self._names, self._temperature = list(members), list(names), temperature

    @property
    def batch_size(self) -> int:
        """The most rows that run at once, in any member: one that ran out of memory halves the batch of all."""
        return min(member.batch_size for member in self._members)

    def predict(self, inputs: tuple[Tensor, ...]) -> Prediction:
        """See `Predictor.predict`.

        Raises:
            ModelError: two members have different numbers of classes.
        """
        rows = inputs[0].shape[0]
        pieces: list[tuple[Tensor, Tensor | None]] = []
        start = 0
        while start < rows or not pieces:
            size = self.batch_size
            pieces.append(self._piece(tuple(values[start : start + size] for values in inputs)))
            start += size
        samples = torch.cat([piece[0] for piece in pieces])
        embeddings = [piece[1] for piece in pieces if piece[1] is not None]
        return Prediction(mean_logits(samples, self._temperature), torch.cat(embeddings) if embeddings else None, samples=samples)

    def _piece(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        """The members' logits, (n_rows, n_members, n_classes), and the embedding."""
        logits: list[Tensor] = []
        embedding = None
        for position, member in enumerate(self._members):
            made = member.predict(inputs)
            assert made.logits is not None  # only kind columns may have none, and is no member
            if logits and made.logits.shape[1] != logits[0].shape[1]:
                raise ModelError(
                    f"{self._names[0]} has {logits[0].shape[1]} classes, but {self._names[position]} has {made.logits.shape[1]}; "
                    "a committee needs the same classes in the same order"
                )
            logits.append(made.logits.to(self.device))
            embedding = made.embedding if position == 0 else embedding
        return torch.stack(logits, dim=1), embedding


def mean_logits(samples: Tensor, temperature: float = 1.0) -> Tensor:
    """T log mean_k softmax(z_k / T) of logits z_k: their softmax at temperature T is the members' mean.

    Args:
        samples: floating (n_rows, n_members, n_classes).
        temperature: T.

    Returns:
        float32 (n_rows, n_classes); NaN where a member has no distribution.
    """
    each = torch.log_softmax(samples.double() / temperature, dim=2)
    return (temperature * (each.logsumexp(dim=1) - math.log(samples.shape[1]))).float()

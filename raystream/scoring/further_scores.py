"""The scores of a unit that a query asks for beyond those that every unit holds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raystream.acquisition.gradients import expected_length, top_length
from raystream.acquisition.weights import weighted
from raystream.errors import ModelError, QueryError, did_you_mean
from raystream.model import Prediction
from raystream.query import MEMBER_SCORES
from raystream.scoring.asked import Asked
from raystream.scoring.class_labels import ClassLabel, number_of_class
from raystream.scoring.users_scores import UsersScore


class FurtherScores:
    """Scores of gradients and of the user's functions, block by block of one unit, and all scores weighted by class.

    Args:
        asked: which.
        functions: the user's, loaded.
        temperature: of the softmax.
        labels: what the model calls its classes, if it does.
    """

    def __init__(
        self, asked: Asked, functions: Sequence[UsersScore], temperature: float, labels: Sequence[ClassLabel] | None = None
    ) -> None:
        self._asked, self._functions, self._temperature, self._labels = asked, functions, temperature, labels
        self._lengths: list[Tensor] = []
        self._gradients: list[Tensor] = []
        self._bias = True

    def add(self, prediction: Prediction) -> None:
        """Keep what a batch has for later beside its logits: one or two numbers a row."""
        if self._asked.gradients:
            assert prediction.embedding is not None  # the worker asks for it
            self._lengths.append(torch.linalg.vector_norm(prediction.embedding, dim=1, keepdim=True))
            self._bias = prediction.bias if self._asked.bias is None else self._asked.bias
        if self._asked.egl_classes is not None:
            assert prediction.gradient_lengths is not None
            self._gradients.append(prediction.gradient_lengths)

    def complete(self, columns: dict[str, Tensor], logits: Tensor, log_probs: Tensor | None, log_mean: Tensor | None) -> None:
        """Add the columns of the rows added since the last call, in place, and weight all of them that are scores.

        Args:
            columns: the scores that every unit holds, each (n,).
            logits: (n, c), before temperature.
            log_probs: (n, k, c) log-probabilities of several opinions, with `log_mean` (n, c); None for one.

        Raises:
            ModelError, QueryError: a function's scores can't be used, or can't be weighted.
        """
        if self._asked.gradients:
            lengths, self._lengths = torch.cat(self._lengths), []
            if not bool(lengths.sum().isfinite()):
                raise ModelError("the input of the last layer is too large for its length to be a float32; scale it, or take entropy")
            columns["egl"] = expected_length(logits, lengths, self._bias, self._temperature)
            columns["badge_norm"] = top_length(logits, lengths, self._bias, self._temperature)
        if self._asked.egl_classes is not None:
            columns["egl_parameters"], self._gradients = torch.cat(self._gradients), []
        for function in self._functions:
            columns[function.column] = function(logits / self._temperature, log_probs)
        if self._asked.class_weights is not None:
            self._weight(columns, logits, log_mean)

    def _weight(self, columns: dict[str, Tensor], logits: Tensor, log_mean: Tensor | None) -> None:
        """Multiply every score by the weight that the model expects of the row's class; members' scores by what they say together."""
        of_members = {*MEMBER_SCORES, *(function.column for function in self._functions if function.given != "logits")}
        weights = class_weights(self._asked, logits.shape[1], self._labels)
        for name in columns.keys() - {"energy", "prediction", "confidence"}:  # energy may be negative, and isn't asked for
            if log_mean is not None and name in of_members:
                weighted = _weighted(name, columns[name], log_mean, weights, 1.0)
            else:
                weighted = _weighted(name, columns[name], logits, weights, self._temperature)
            columns[name] = weighted.to(columns[name].dtype)


def class_weights(asked: Asked, classes: int, labels: Sequence[ClassLabel] | None = None) -> Tensor:
    """(classes,) float64, the weight of each class.

    Raises:
        QueryError: weights that don't fit the model's classes.
    """
    given = asked.class_weights
    assert given is not None
    pairs = [pair for pair in given if isinstance(pair, tuple)]
    if not pairs:
        if len(given) != classes:
            raise QueryError(f"acquire.class_weights holds {len(given)} weights, but the model has {classes} classes; give one for each")
        return torch.tensor(given, dtype=torch.float64)
    weights = torch.ones(classes, dtype=torch.float64)
    for key, weight in pairs:
        index = key if isinstance(key, int) else number_of_class(key, labels or range(classes))
        if index is None:
            known = [str(label) for label in labels or range(classes)]
            raise QueryError(f"acquire.class_weights names class {key!r}, which is none of the model's{did_you_mean(str(key), known)}")
        if index >= classes:
            raise QueryError(f"acquire.class_weights names class {index}, but the model has {classes}, 0 to {classes - 1}")
        weights[index] = weight
    return weights


def _weighted(name: str, scores: Tensor, logits: Tensor, weights: Tensor, temperature: float) -> Tensor:
    try:
        return weighted(scores, logits.to(scores.device), weights.to(scores.device), temperature)
    except QueryError as error:
        raise QueryError(f"acquire.class_weights can't weight {name}: {error}") from None

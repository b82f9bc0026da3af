"""Weights of classes: as a query gives them, and scores multiplied by what the model expects of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raystream.acquisition.weights import weighted
from raystream.errors import QueryError, did_you_mean
from raystream.query import LOGIT_SCORES, Query
from raystream.query.catalogue import SCORES
from raystream.scoring.class_labels import ClassLabel, number_of_class

Weights = tuple[float, ...] | tuple[tuple[int | str, float], ...]
"""A weight for each class, or pairs of class and weight, the others being 1; a class is an index, or where only the model knows the
names of its classes, one of these."""


def class_weights_of(query: Query, classes: Sequence[str] | None) -> Weights | None:
    """What a query asks for, the names of its classes looked up; None if no score is weighted.

    Raises:
        QueryError: a class is unknown, or the number of weights isn't that of the classes.
    """
    given, named_later = query.acquire.class_weights, query.names_classes
    if given is None:
        return None
    if isinstance(given, list):
        if classes is not None and len(given) != len(classes):
            raise QueryError(f"acquire.class_weights holds {len(given)} weights, but model.classes names {len(classes)} classes")
        return tuple(given)
    if classes is None and named_later:
        return tuple(sorted((str(key), weight) for key, weight in given.items()))
    weights: dict[int, float] = {}
    for key, weight in given.items():
        index = _index(key, classes)
        if index in weights:
            raise QueryError(f"acquire.class_weights names class {index} twice, once by its name; give it one weight")
        weights[index] = weight
    return tuple(sorted(weights.items()))


def _index(key: int | str, classes: Sequence[str] | None) -> int:
    if isinstance(key, str) and classes is not None and key in classes:
        return list(classes).index(key)
    if isinstance(key, str) and not key.isdigit():
        raise QueryError(f"acquire.class_weights names class {key!r}, which is not one of model.classes{did_you_mean(key, classes or ())}")
    index = int(key)
    if index < 0 or (classes is not None and index >= len(classes)):
        most = f"0 to {len(classes) - 1}" if classes is not None else "0 or more"
        raise QueryError(f"acquire.class_weights names class {index}, expected {most}, or a name in model.classes")
    return index


def weigh(
    columns: dict[str, Tensor],
    weights: Weights,
    logits: Tensor,
    together: Tensor | None,
    temperature: float,
    labels: Sequence[ClassLabel] | None,
) -> dict[str, Tensor]:
    """Columns whose scores are multiplied by the weight that the model expects of the row's class.

    Args:
        columns: each (n,).
        weights: of the query.
        logits: (n, c), before temperature.
        together: (n, c) log-probabilities, but for a constant, of what several members say together, by which their scores are weighted.
        temperature: of the softmax.
        labels: what the model itself calls its classes, if it does.

    Raises:
        QueryError: weights that don't fit the model's classes, or a score that can't be weighted.
    """
    of_class = weights_by_class(weights, logits.shape[1], labels)
    found = {}
    for name, scores in columns.items():
        if name in ("prediction", "confidence") or (name in SCORES and SCORES[name].signed):  # which isn't asked for
            found[name] = scores
            continue
        by_members = together is not None and name not in LOGIT_SCORES
        by, divisor = (together, 1.0) if together is not None and by_members else (logits, temperature)
        try:
            result = weighted(scores, by.to(scores.device), of_class.to(scores.device), divisor)
        except QueryError as error:
            raise QueryError(f"acquire.class_weights can't weight {name}: {error}") from None
        found[name] = result.to(scores.dtype)
    return found


def weights_by_class(given: Weights, classes: int, labels: Sequence[ClassLabel] | None = None) -> Tensor:
    """(classes,) float64, the weight of each class.

    Raises:
        QueryError: weights that don't fit the model's classes.
    """
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

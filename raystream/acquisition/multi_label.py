"""Scores of models with one sigmoid per label: `(n_rows, n_labels) -> (n_rows,)`, higher = label sooner."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from raystream.acquisition.inputs import (
    InKind,
    checked_label_logits,
    checked_label_samples,
    checked_temperature,
    given_label_logits,
    in_kind,
)
from raystream.acquisition.members import member_scores, softened
from raystream.errors import QueryError, did_you_mean
from raystream.query.catalogue import label_formulas


def multi_label_scores(
    logits: ArrayLike | None = None,
    score: str = "entropy",
    *,
    probabilities: ArrayLike | None = None,
    reduce: str = "mean",
    temperature: float = 1.0,
) -> InKind:
    """Score each label as the two-class problem that it is, p = sigmoid(z / T), then reduce over labels.

    With a = |z| / T, so that sigmoid(-a) is the smaller of p and 1 - p, and nothing cancels for sure labels:

        entropy            log(1 + e^-a) + a sigmoid(-a), in nats; at most log 2
        least_confidence   sigmoid(-a), at most 1/2
        margin             2 sigmoid(-a), that is 1 - |p - (1 - p)|; at most 1

    `sum` and `mean` favour rows of which many labels are unsure, `max` rows with one label that is very unsure.

    Args:
        logits: (n_rows, n_labels) with at least one label; +inf and -inf are sure and score 0.
        score: entropy, least_confidence or margin.
        probabilities: (n_rows, n_labels) of each label, instead of logits.
        reduce: mean, max or sum, over labels.
        temperature: T.

    Returns:
        (n_rows,), float32 or the wider dtype of the logits; NaN where a row holds NaN. A tensor where one is given, else a NumPy array.

    References:
        Reyes, Morell and Ventura, Effective active learning strategy for multi-label learning, 2018 (uncertainty by label).
    """
    return in_kind(label_scores(given_label_logits(logits, probabilities), score, reduce, temperature), logits, probabilities)


def label_scores(logits: Tensor, score: str, reduce: str, temperature: float) -> Tensor:
    """Compute `multi_label_scores` of a block of a model's outputs, whatever they are."""
    formulas = label_formulas()
    for name, known, what in ((score, formulas, "score"), (reduce, _REDUCTIONS, "reduce")):
        if name not in known:
            raise QueryError(f"{what} {name!r} is not one for labels{did_you_mean(name, known)}")
    sure = (checked_label_logits(logits) / checked_temperature(temperature)).abs().clamp_(max=_SURE)
    return _REDUCTIONS[reduce](formulas[score](sure))


def multi_label_member_scores(
    samples: ArrayLike, names: Sequence[str], *, reduce: str = "mean", temperature: float = 1.0
) -> dict[str, Tensor]:
    """Compute scores of members, label by label as the two-class problem that it is, reduced over labels, as tensors.

    Args:
        samples: logits, (n_rows, n_members, n_labels).
        names: of the scores of `member_scores`.
        reduce: mean, max or sum, over labels.
        temperature: T in p = sigmoid(z / T).

    Returns:
        by name, float32 (n_rows,).
    """
    if reduce not in _REDUCTIONS:
        raise QueryError(f"reduce {reduce!r} is not one for labels{did_you_mean(reduce, _REDUCTIONS)}")
    checked = checked_label_samples(samples)
    n, members, labels = checked.shape
    logits = checked.transpose(1, 2).reshape(n * labels, members, 1)
    pairs = torch.cat([torch.zeros_like(logits), logits], dim=2)  # softmax over (0, z) is the sigmoid of z
    found = member_scores(softened(pairs, checked_temperature(temperature)), names).scores
    return {name: _REDUCTIONS[reduce](values.double().view(n, labels)).float() for name, values in found.items()}


_SURE = 1000.0
"""A label that is as good as certain: the scores of it are 0 in float64; being finite, it makes a sigmoid(-a) come out as 0."""


def entropy_of_label(a: Tensor) -> Tensor:
    """Compute `entropy` of labels of absolute logit a, under temperature."""
    return (-a).exp().log1p() + a * (-a).sigmoid()


def least_confidence_of_label(a: Tensor) -> Tensor:
    """Compute `least_confidence` of labels of absolute logit a, under temperature."""
    return (-a).sigmoid()


def margin_of_label(a: Tensor) -> Tensor:
    """Compute `margin` of labels of absolute logit a, under temperature."""
    return 2 * (-a).sigmoid()


_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda values: values.mean(dim=1),
    "max": lambda values: values.amax(dim=1),
    "sum": lambda values: values.sum(dim=1),
}

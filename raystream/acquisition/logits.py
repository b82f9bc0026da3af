"""Scores from one model's outputs: of classes, of classes by weight, of several labels a row.

Scores that need nothing but the logits of one model: `(n_rows, n_classes) -> (n_rows,)`, higher = label sooner.

With z the logits, z1 >= z2 the two largest of a row and p = softmax(z), everything follows from three numbers
that keep their digits under any offset and for any confidence:

    gap    = z2 - z1                          <= 0
    rest   = sum exp(z_c - z1) but the top    so p1 = 1 / (1 + rest) and logsumexp(z) = z1 + log1p(rest)
    spread = sum exp(z_c - z1) (z_c - z1)     <= 0

float16 and bfloat16 logits are computed in float32. A logit of -inf is a masked class: its probability is 0. A row
that holds NaN or +inf, or nothing but -inf, scores NaN everywhere.

Scores that need every class take the softmax as odds against the likeliest class, in float64. With j the likeliest class, the lowest at
a tie, and T the temperature:

    w_c = exp((z_c - z_j) / T),  w_j = 0;   rest = sum w;   square = sum w²;   whole = 1 + rest
    p_c = w_c / whole,  p_j = 1 / whole,  1 - p_j = rest / whole

float64 costs little beside a forward pass, and leaves rows in their order that are surer than float32 can say.

Scores weighted by class, for pools in which some classes matter more.

Scores of models with one sigmoid per label: `(n_rows, n_labels) -> (n_rows,)`, higher = label sooner.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from raystream.acquisition.inputs import (
    InKind,
    checked_label_logits,
    checked_label_samples,
    checked_logits,
    checked_temperature,
    given_label_logits,
    given_logits,
    in_kind,
    tensor_of,
)
from raystream.acquisition.members import member_scores, softened
from raystream.errors import QueryError, did_you_mean
from raystream.query.catalogue import formulas, label_formulas

_UNDERFLOW = -1000.0
"""exp() of it is 0 even in float64; being finite, it makes 0 * log 0 come out as 0."""


@dataclass(frozen=True)
class LogitScores:
    """Every score from logits, of one block of rows."""

    scores: dict[str, Tensor]
    """By name, in the order of the catalogue, `raystream.query.LOGIT_SCORES`; each float32 (n_rows,)."""
    prediction: Tensor
    """The likeliest class, the lowest at a tie; int32 (n_rows,)."""
    confidence: Tensor
    """The probability of that class after temperature; float32 (n_rows,)."""


@dataclass(frozen=True)
class Parts:
    """The numbers that all scores share, under temperature; each `(n_rows,)`, `prediction` in int64."""

    top: Tensor  # z1 itself, not divided by the temperature
    prediction: Tensor
    gap: Tensor
    rest: Tensor
    spread: Tensor
    temperature: float


def entropy(logits: ArrayLike | None = None, *, probabilities: ArrayLike | None = None, temperature: float = 1.0) -> InKind:
    """Compute the entropy of the predicted classes in nats, -sum p log p: 0 when certain, log(n_classes) when uniform.

    Args:
        logits: (n_rows, n_classes) with at least two classes: a list, a NumPy array or a tensor.
        probabilities: (n_rows, n_classes) that sum to 1, instead of logits.
        temperature: T in p = softmax(z / T).

    Returns:
        (n_rows,), float32 or the wider dtype of what is given; a tensor where a tensor is, else a NumPy array.

    Raises:
        QueryError: another shape, or probabilities given as logits.

    References:
        Shannon, A Mathematical Theory of Communication, 1948; Settles, Active Learning Literature Survey, 2009.
    """
    return in_kind(entropy_of(_parts(given_logits(logits, probabilities), checked_temperature(temperature))), logits, probabilities)


def least_confidence(logits: ArrayLike | None = None, *, probabilities: ArrayLike | None = None, temperature: float = 1.0) -> InKind:
    """Compute one minus the top probability: 0 when certain, 1 - 1/n_classes when uniform.

    Args and Returns as `entropy`; exact down to the smallest floats, where 1 - p would be 0.

    References:
        Lewis and Gale, A Sequential Algorithm for Training Text Classifiers, 1994.
    """
    parts = _parts(given_logits(logits, probabilities), checked_temperature(temperature))
    return in_kind(least_confidence_of(parts), logits, probabilities)


def margin(logits: ArrayLike | None = None, *, probabilities: ArrayLike | None = None, temperature: float = 1.0) -> InKind:
    """Compute one minus the gap between the two largest probabilities, 1 - (p1 - p2): 0 when certain, 1 at a tie.

    Args as `entropy`.

    Returns:
        float64 (n_rows,), computed in float64, since rows are ranked by it and crowd near 1; else as `entropy`.

    References:
        Scheffer, Decomain and Wrobel, Active Hidden Markov Models for Information Extraction, 2001.
    """
    parts = _parts(given_logits(logits, probabilities).double(), checked_temperature(temperature))
    return in_kind(margin_of(parts), logits, probabilities)


def ratio(logits: ArrayLike | None = None, *, probabilities: ArrayLike | None = None, temperature: float = 1.0) -> InKind:
    """Return the second largest probability over the largest, p2 / p1: 0 when certain, 1 at a tie.

    Args and Returns as `entropy`.

    References:
        Settles, Active Learning Literature Survey, 2009.
    """
    return in_kind(ratio_of(_parts(given_logits(logits, probabilities), checked_temperature(temperature))), logits, probabilities)


def energy(logits: ArrayLike, *, temperature: float = 1.0) -> InKind:
    """Free energy -T logsumexp(z / T): high where all logits are low, so far from what was trained on.

    It depends on the offset of the logits, which probabilities have lost, and may be negative. Args and Returns as `entropy`.

    References:
        Liu, Wang, Owens and Li, Energy-based Out-of-distribution Detection, 2020.
    """
    return in_kind(energy_of(_parts(given_logits(logits, None), checked_temperature(temperature))), logits)


def logit_scores(logits: ArrayLike, temperature: float = 1.0) -> LogitScores:
    """Compute all scores, the prediction and the confidence, in one pass, as tensors.

    Args:
        logits: (n_rows, n_classes) with at least two classes.
        temperature: T in p = softmax(z / T); the prediction doesn't depend on it.

    Raises:
        QueryError: another shape, or probabilities given as logits.
    """
    return block_scores(given_logits(logits, None), checked_temperature(temperature))


def block_scores(logits: Tensor, temperature: float) -> LogitScores:
    """Compute `logit_scores` of a block of a model's outputs, whatever they are."""
    parts = _parts(checked_logits(logits), temperature)
    return LogitScores(
        scores={name: formula(parts).float() for name, formula in formulas("logits").items()},
        prediction=parts.prediction.int(),
        confidence=(1 / (1 + parts.rest)).float(),
    )


def block_score(logits: Tensor, temperature: float, name: str) -> Tensor:
    """Compute one of the scores of `block_scores`, the same."""
    scores: Tensor = formulas("logits")[name](_parts(checked_logits(logits), temperature))
    return scores.float()


def _parts(logits: Tensor, temperature: float) -> Parts:
    """Compute the parts in one pass over checked logits; in place on its own copy, since the block is large and this is the hot path."""
    top, prediction = logits.max(dim=1, keepdim=True)
    top = top + top * 0  # NaN when not finite, and so is all that follows
    below = logits - top
    if temperature != 1.0:
        below /= temperature
    below.scatter_(1, prediction, -math.inf)
    gap = below.amax(dim=1)
    below.clamp_(min=_UNDERFLOW)
    weights = below.exp()
    rest = weights.sum(dim=1)
    spread = weights.mul_(below).sum(dim=1)
    return Parts(top.squeeze(1), prediction.squeeze(1), gap, rest, spread, temperature)


def entropy_of(parts: Parts) -> Tensor:
    """Compute `entropy` from the parts."""
    return torch.log1p(parts.rest) - parts.spread / (1 + parts.rest)  # two terms >= 0: nothing cancels


def least_confidence_of(parts: Parts) -> Tensor:
    """Compute `least_confidence` from the parts."""
    return parts.rest / (1 + parts.rest)


def margin_of(parts: Parts) -> Tensor:
    """Compute `margin` from the parts: 1 - (p1 - p2) as (rest + p2/p1) / (1 + rest): full precision near 0 and near 1."""
    rest = parts.rest.double()
    return (rest + parts.gap.double().exp()) / (1 + rest)


def ratio_of(parts: Parts) -> Tensor:
    """Compute `ratio` from the parts."""
    return parts.gap.exp()


def energy_of(parts: Parts) -> Tensor:
    """Compute `energy` from the parts."""
    return -(parts.top + parts.temperature * torch.log1p(parts.rest))


_BLOCK = 1 << 16
"""Numbers of a block of logits, which stay in a processor's cache."""


@dataclass(frozen=True)
class Odds:
    """The odds of a block of b rows, float64; NaN in rows that hold NaN or +inf, or nothing but -inf."""

    weights: Tensor  # (b, c), w
    winner: Tensor  # (b, 1), j
    rest: Tensor  # (b, 1)
    square: Tensor  # (b, 1)
    whole: Tensor  # (b, 1)


def by_blocks(function: Callable[[Odds], Tensor], logits: Tensor, temperature: float) -> Tensor:
    """Compute a function of the odds of (n, c) logits, blocks of rows joined, in float32 or the wider dtype of the logits."""
    logits = checked_logits(logits)
    checked_temperature(temperature)
    blocks = torch.split(logits, max(64, _BLOCK // logits.shape[1]))
    return torch.cat([function(_odds(block, temperature)).to(logits.dtype) for block in blocks])


def _odds(logits: Tensor, temperature: float) -> Odds:
    top, winner = logits.max(dim=1, keepdim=True)
    top = top.double()
    below = logits.double() - (top + top * 0)  # NaN when not finite, and so is all that follows
    if temperature != 1.0:
        below /= temperature
    weights = below.exp_().scatter_(1, winner, 0.0)
    rest = weights.sum(dim=1, keepdim=True)
    return Odds(weights, winner, rest, weights.square().sum(dim=1, keepdim=True), 1 + rest)


def class_weighted(
    scores: ArrayLike,
    logits: ArrayLike | None,
    weights: ArrayLike,
    *,
    probabilities: ArrayLike | None = None,
    temperature: float = 1.0,
) -> InKind:
    """Multiply a score by the weight that the model expects of the row's class: score * sum_c p_c w_c.

    Equal weights of 1 change nothing, a weight of 0 silences rows that surely are of its class, and the scores of rows between
    classes lie between.

    Args:
        scores: (n_rows,), >= 0, since a larger weight must not lower a score: `energy` won't do; NaN stays NaN.
        logits: (n_rows, n_classes); for members their `log_mean`; None with probabilities.
        weights: (n_classes,), finite and >= 0.
        probabilities: (n_rows, n_classes) that sum to 1, instead of logits.
        temperature: T in p = softmax(z / T).

    Returns:
        (n_rows,), the widest dtype of scores and logits, float32 at least; a tensor where one is given, else a NumPy array.

    Raises:
        QueryError: a negative score or weight, or shapes that don't fit.
    """
    z, found, of_class = given_logits(logits, probabilities), tensor_of(scores, "scores"), tensor_of(weights, "class weights")
    return in_kind(weighted(found, z, of_class, temperature), scores, logits, probabilities)


def weighted(scores: Tensor, logits: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Compute `class_weighted` of a block of a model's outputs, whatever they are."""
    if weights.shape != logits.shape[1:] or not bool((weights.isfinite() & (weights >= 0)).all()):
        got = weights.tolist() if weights.numel() <= 20 else f"of shape {tuple(weights.shape)}"
        raise QueryError(f"class weights are {got}, expected {tuple(logits.shape[1:])} finite numbers >= 0, one for each class")
    if scores.shape != logits.shape[:1]:
        raise QueryError(f"scores have the shape {tuple(scores.shape)} beside {len(logits)} rows of logits, expected ({len(logits)},)")
    negative = torch.nonzero(scores < 0).flatten()
    if len(negative):
        row = int(negative[0])
        raise QueryError(
            f"the score of row {row} is {float(scores[row]):.6g}, expected scores >= 0 where they are weighted; take another score"
        )
    wide = weights.double()

    def expected(odds: Odds) -> Tensor:
        return (wide[odds.winner] + (odds.weights * wide).sum(dim=1, keepdim=True)).div_(odds.whole).squeeze(1)

    return scores * by_blocks(expected, logits, temperature)


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

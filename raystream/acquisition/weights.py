"""Scores weighted by class, for pools in which some classes matter more."""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from raystream.acquisition.inputs import InKind, given_logits, in_kind, tensor_of
from raystream.acquisition.logits import Odds, by_blocks
from raystream.errors import QueryError


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

"""Scores of models with many outputs per row, one for each pixel or token: score each element, then reduce over them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from raystream.acquisition.inputs import InKind, checked_temperature, given_outputs, in_kind, tensor_of
from raystream.acquisition.logits import block_score, block_scores
from raystream.acquisition.members import member_scores, softened
from raystream.errors import PoolError, QueryError, did_you_mean
from raystream.query.catalogue import LOGIT_SCORES, MEMBER_SCORES

_BLOCK = 1 << 22
"""Numbers of a block of rows; one row is always computed whole."""


def dense_scores(
    logits: ArrayLike | None = None,
    score: str | Callable[[Tensor], Tensor] = "entropy",
    *,
    probabilities: ArrayLike | None = None,
    members: bool = False,
    mask: ArrayLike | None = None,
    reduce: str = "mean",
    top: float = 0.1,
    temperature: float = 1.0,
) -> InKind:
    """Score every element of a row, then reduce over its valid elements.

    `mean` compares rows of any length; `sum` favours long rows; `max` goes by one element, so by outliers; `top_mean`, the mean of the
    highest `top` of a row's elements, finds rows with an unsure part, however large the sure rest.

    Args:
        logits: (n_rows, n_tokens, n_classes), or (n_rows, n_classes, height, width) and further dimensions.
        score: a score of `logit_scores`, with `members` one of `member_scores`, or a function from (n_elements, n_classes) logits,
            with `members` from (n_elements, n_members, n_classes) log-probabilities, to (n_elements,).
        probabilities: of these shapes, which sum to 1 over classes, instead of logits.
        members: whether the second axis of logits is that of members: (n_rows, n_members, n_tokens, n_classes) and so on.
        mask: bool or integers, (n_rows, n_tokens) or (n_rows, height, width): the elements that count, as an attention mask. What
            the others hold doesn't matter, NaN neither. None: all count.
        reduce: mean, max, sum or top_mean.
        top: the part of the valid elements that `top_mean` takes, above 0, at most 1; at least one element.
        temperature: T in p = softmax(z / T).

    Returns:
        float32 (n_rows,); a tensor where one is given, else a NumPy array.

    Raises:
        PoolError: rows without any valid element.
        QueryError: names that are unknown, shapes that don't fit, or probabilities given as logits.

    References:
        Settles and Craven, An Analysis of Active Learning Strategies for Sequence Labeling Tasks, 2008 (total and mean token entropy).
    """
    _check_reduction(reduce, top)
    function = _function(score, members, checked_temperature(temperature))
    z = given_outputs(logits, probabilities, lambda values: _class_axis(values, members))
    elements, valid = _elements_first(z, members), _valid(mask, z, members)
    found = _reduced(elements, valid, lambda block: {"score": function(block)}, lambda _: reduce, top)
    return in_kind(found["score"], logits, probabilities)


@dataclass(frozen=True)
class DenseScores:
    """Every score of rows with many elements, and what they predict."""

    scores: dict[str, Tensor]
    """By name; each float32 (n_rows,)."""
    prediction: Tensor
    """The class that most valid elements predict, the lowest at a tie; int32 (n_rows,)."""
    confidence: Tensor
    """The mean over valid elements of the probability of the class that each predicts; float32 (n_rows,)."""


def all_dense_scores(
    logits: Tensor,
    samples: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    reduce: str = "mean",
    top: float = 0.1,
    temperature: float = 1.0,
) -> DenseScores:
    """Compute all scores of `logit_scores` and, with samples, of `member_scores`, each as `dense_scores` reduces it, in one pass.

    Args:
        logits: as of `dense_scores`.
        samples: logits of members, (n_rows, n_members, n_tokens, n_classes) and so on; None for none.
        mask, reduce, top, temperature: as of `dense_scores`.
    """
    _check_reduction(reduce, top)
    checked_temperature(temperature)
    elements, valid = _elements_first(logits, False), _valid(mask, logits, False)

    def of_one(block: Tensor) -> dict[str, Tensor]:
        found = block_scores(block, temperature)
        return {**found.scores, _CONFIDENCE: found.confidence, _CLASS: found.prediction}

    made = _reduced(elements, valid, of_one, lambda name: "mean" if name == _CONFIDENCE else reduce, top)
    confidence, prediction = made.pop(_CONFIDENCE), made.pop(_CLASS).int()
    if samples is not None:
        made |= _reduced(
            _elements_first(samples, True),
            valid,
            lambda block: member_scores(softened(block, temperature), MEMBER_SCORES).scores,
            lambda _: reduce,
            top,
        )
    return DenseScores(made, prediction, confidence)


_CONFIDENCE, _CLASS = "of the likeliest class", "the likeliest class"


def _reduced(
    elements: Tensor,
    valid: Tensor,
    function: Callable[[Tensor], dict[str, Tensor]],
    reduction: Callable[[str], str],
    top: float,
) -> dict[str, Tensor]:
    """Apply a function to the valid elements, and reduce what it gives over those of each row; float32 (n,) by name.

    Classes become the commonest one instead.
    """
    empty = torch.nonzero(~valid.any(dim=1)).flatten().tolist()
    if empty:
        named = ", ".join(map(str, empty[:3])) + (f" and {len(empty) - 3} others" if len(empty) > 3 else "")
        raise PoolError(f"of rows {named} no element is valid, expected at least one to score; leave them out, or look at the mask")
    n, count = elements.shape[:2]
    out: dict[str, list[Tensor]] = {}
    size = max(1, _BLOCK // max(1, elements[:1].numel()))
    for start in range(0, max(n, 1), size):
        block, counted = elements[start : start + size], valid[start : start + size]
        for name, found in function(block[counted]).items():
            if found.shape != (int(counted.sum()),):
                raise QueryError(
                    f"the score gave the shape {tuple(found.shape)} for {int(counted.sum())} elements, expected one number each"
                )
            if name == _CLASS:
                out.setdefault(name, []).append(_commonest(found, counted, elements.shape[-1]))
                continue
            values = torch.full((len(block), count), -math.inf, dtype=torch.float64, device=elements.device)
            values[counted] = found.double()
            out.setdefault(name, []).append(_REDUCTIONS[reduction(name)](values, counted, top).float())
    return {name: torch.cat(parts) for name, parts in out.items()}


def _commonest(classes: Tensor, counted: Tensor, count: int) -> Tensor:
    """Return the class that most of a row's elements have, the lowest at a tie; float32 (b,)."""
    rows = torch.nonzero(counted)[:, 0]
    votes = torch.bincount(rows * count + classes.long(), minlength=len(counted) * count).view(len(counted), count)
    return votes.max(dim=1).indices.float()


def _check_reduction(reduce: str, top: float) -> None:
    if reduce not in _REDUCTIONS:
        raise QueryError(f"reduce {reduce!r} is unknown{did_you_mean(reduce, _REDUCTIONS)}")
    if not 0 < top <= 1:
        raise QueryError(f"top is {top}, expected the part of the elements that counts, above 0 and at most 1")


def _function(score: str | Callable[[Tensor], Tensor], members: bool, temperature: float) -> Callable[[Tensor], Tensor]:
    """Return what takes logits of elements to their scores."""
    if callable(score):
        if members:
            return lambda logits: score(softened(logits, temperature))
        return lambda logits: score(logits if temperature == 1.0 else logits.float() / temperature)
    if members:
        return lambda logits: member_scores(softened(logits, temperature), [score]).scores[score]
    if score not in LOGIT_SCORES:
        raise QueryError(f"score {score!r} is not one of logits{did_you_mean(score, LOGIT_SCORES)}")
    return lambda logits: block_score(logits, temperature, score)


def _elements_first(logits: Tensor, members: bool) -> Tensor:
    """Return (n, elements, c), or (n, elements, k, c); a view where it can be."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        got = f"a tensor of {logits.dtype}" if isinstance(logits, Tensor) else type(logits).__name__
        raise QueryError(f"logits are {got}, expected a floating tensor; convert them first")
    if _class_axis(logits, members) == -1:
        return logits.detach().movedim(-2, 1)
    return logits.detach().flatten(2 + members).movedim(-1, 1)


def _class_axis(logits: Tensor, members: bool) -> int:
    """Find the axis of the classes: last of tokens, else behind rows and members."""
    axes = 1 + members
    if logits.ndim - axes >= 2:
        return -1 if logits.ndim - axes == 2 else axes
    expected = (
        "(rows, members, tokens, classes) or (rows, members, classes, height, width)"
        if members
        else ("(rows, tokens, classes) or (rows, classes, height, width)")
    )
    raise QueryError(f"logits have the shape {tuple(logits.shape)}, expected {expected}")


def _valid(mask: ArrayLike | None, logits: Tensor, members: bool) -> Tensor:
    """Return bool (n, elements), true for elements that count."""
    rest = logits.shape[1 + members :]
    shape = (len(logits), *(rest[:-1] if len(rest) == 2 else rest[1:]))
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=logits.device).flatten(1)
    counted = tensor_of(mask, "the mask")
    if counted.is_floating_point() or counted.shape != shape:
        got = f"a tensor of {counted.dtype}, shape {tuple(counted.shape)}"
        raise QueryError(f"the mask is {got}, expected bool or integers of shape {shape}, 0 where an element doesn't count")
    return counted.to(logits.device).bool().flatten(1)


def _sum(values: Tensor, valid: Tensor, top: float) -> Tensor:
    return values.where(valid, 0.0).sum(dim=1)


def _mean(values: Tensor, valid: Tensor, top: float) -> Tensor:
    return _sum(values, valid, top) / valid.sum(dim=1)


def _max(values: Tensor, valid: Tensor, top: float) -> Tensor:
    return values.amax(dim=1)


def _top_mean(values: Tensor, valid: Tensor, top: float) -> Tensor:
    count = (valid.sum(dim=1, keepdim=True) * top - 1e-9).ceil()  # 30 x 0.1 is a little more than 3, and means 3
    ordered = values.sort(dim=1, descending=True).values
    kept = torch.arange(values.shape[1], device=values.device) < count.clamp(min=1)
    return _mean(ordered, kept, top)


_REDUCTIONS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"max": _max, "mean": _mean, "sum": _sum, "top_mean": _top_mean}
"""From float64 (b, elements) scores, -inf at those that don't count, bool (b, elements) and the part of the top, to (b,)."""

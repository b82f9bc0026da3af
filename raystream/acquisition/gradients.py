"""Scores from the gradient of the last layer, in closed form: `logits` and the layer's inputs, no backward pass.

With p = softmax(z / T) and label y, the gradient of -log p_y in the last layer's weights is (p - e_y) ⊗ h / T, and in weights and
bias (p - e_y) ⊗ h~ / T, h~ = [h; 1]; its length is ‖p - e_y‖ ‖h~‖ / T. With j the likeliest class and the odds w of the others:

    ‖p - e_j‖ = sqrt(rest² + square) / whole
    ‖p - e_y‖ = sqrt(1 + square - 2 w_y whole + whole²) / whole       which is at least 1/2: nothing cancels

Over all parameters of a model, or some of them, expected gradient lengths come from per-row gradients instead.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from raystream.acquisition.inputs import InKind, checked_embedding, checked_logits, checked_temperature, given_logits, in_kind
from raystream.acquisition.logits import Odds, by_blocks
from raystream.errors import ModelError, QueryError, did_you_mean


def egl(
    logits: ArrayLike | None,
    h: ArrayLike,
    *,
    probabilities: ArrayLike | None = None,
    bias: bool = True,
    temperature: float = 1.0,
) -> InKind:
    """Compute the expected gradient length of the last layer, sum_y p_y ‖p - e_y‖ ‖h~‖ / T: how far a step would move the model.

    Args:
        logits: (n_rows, n_classes) with at least two classes, before temperature; None with probabilities.
        h: (n_rows, n_dimensions), the inputs of the layer that gave the logits; or their lengths, (n_rows, 1), which are all
            that counts of them and little to keep until many rows are scored at once.
        probabilities: (n_rows, n_classes) that sum to 1, instead of logits.
        bias: whether that layer has a bias: h~ = [h; 1], else h~ = h.
        temperature: T in p = softmax(z / T).

    Returns:
        (n_rows,), the widest dtype of logits and h, float32 at least; NaN where a row's logits hold NaN or +inf. A tensor where one is
        given, else a NumPy array.

    References:
        Settles, Craven and Ray, Multiple-Instance Active Learning, 2008.
    """
    return in_kind(expected_length(given_logits(logits, probabilities), h, bias, temperature), logits, h, probabilities)


def expected_length(logits: Tensor, h: ArrayLike, bias: bool, temperature: float) -> Tensor:
    """Compute `egl` of a block of a model's outputs, whatever they are."""
    return by_blocks(_expected_factor, logits, temperature) * _length(checked_embedding(h, len(logits)), bias) / temperature


def badge_norm(
    logits: ArrayLike | None,
    h: ArrayLike,
    *,
    probabilities: ArrayLike | None = None,
    bias: bool = True,
    temperature: float = 1.0,
) -> InKind:
    """Compute the length of BADGE's gradient embedding, ‖p - e_top‖ ‖h~‖: the gradient if the prediction were the label.

    It is the length of `badge_factors` ⊗ h~, and like them not divided by T. Args and Returns as `egl`.

    References:
        Ash, Zhang, Krishnamurthy, Langford and Agarwal, Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds, 2020.
    """
    return in_kind(top_length(given_logits(logits, probabilities), h, bias, temperature), logits, h, probabilities)


def top_length(logits: Tensor, h: ArrayLike, bias: bool, temperature: float) -> Tensor:
    """Compute `badge_norm` of a block of a model's outputs, whatever they are."""
    return by_blocks(_top_factor, logits, temperature) * _length(checked_embedding(h, len(logits)), bias)


def badge_factors(logits: ArrayLike | None = None, *, probabilities: ArrayLike | None = None, temperature: float = 1.0) -> InKind:
    """Return the first factor of BADGE's gradient embedding a ⊗ h~: a = p - e_top, top the likeliest class, the lowest at a tie.

    The top class holds -rest / (1 + rest), exact down to the smallest floats, where p - 1 would be 0.

    Args:
        logits: (n_rows, n_classes) with at least two classes.
        probabilities: (n_rows, n_classes) that sum to 1, instead of logits.
        temperature: T in p = softmax(z / T).

    Returns:
        (n_rows, n_classes), float32 or the wider dtype of the logits; each row sums to 0. A tensor where one is given, else a NumPy array.

    References:
        Ash, Zhang, Krishnamurthy, Langford and Agarwal, 2020.
    """
    return in_kind(by_blocks(factors, given_logits(logits, probabilities), temperature), logits, probabilities)


def _expected_factor(odds: Odds) -> Tensor:
    """Compute sum_y p_y ‖p - e_y‖, (b,)."""
    others = (odds.weights * -2).mul_(odds.whole).add_(1 + odds.square + odds.whole.square()).sqrt_().mul_(odds.weights)
    top = (odds.rest.square() + odds.square).sqrt()
    return ((top + others.sum(dim=1, keepdim=True)) / odds.whole.square()).squeeze(1)


def _top_factor(odds: Odds) -> Tensor:
    """Compute ‖p - e_j‖, (b,)."""
    return ((odds.rest.square() + odds.square).sqrt() / odds.whole).squeeze(1)


def factors(odds: Odds) -> Tensor:
    """Compute p - e_j, (b, c)."""
    return odds.weights.scatter(1, odds.winner, -odds.rest).div_(odds.whole)


def _length(h: Tensor, bias: bool) -> Tensor:
    """Compute ‖h~‖, (n,)."""
    length = torch.linalg.vector_norm(h, dim=1)
    return torch.hypot(length, length.new_ones(())) if bias else length


def egl_parameters(
    model: nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    *,
    classes: int = 10,
    parameters: Collection[str] | None = None,
    temperature: float = 1.0,
    memory: int = 256 << 20,
    names: Sequence[str] = (),
) -> Tensor:
    """Compute the expected gradient length over parameters, sum over the likeliest y of p_y ‖grad of -log p_y‖.

    With all classes over the last layer it equals `egl`, which is far cheaper. Fewer classes leave out terms that are >= 0 and
    carry little probability. One forward and `classes` backward passes a row, vectorised over rows.

    Args:
        model: gives (n_rows, n_classes) logits, treats rows independently (in evaluation mode batch norm does) and is left as it was.
        inputs: (n_rows, ...), one tensor per argument of the model.
        classes: how many of the likeliest classes count, `egl_classes` of a query; more than there are means all.
        parameters: names as in `model.named_parameters()`; None: all of them, those that don't require a gradient too.
        temperature: T in p = softmax(z / T).
        names: the arguments of the model that the inputs are; empty: by position.
        memory: bytes that the gradients of rows computed together may take; one row is always computed.

    Returns:
        (n_rows,), the dtype of the logits, float32 at least; NaN where a row's logits hold NaN or +inf.

    Raises:
        ModelError: the model can't be differentiated row by row.

    References:
        Settles, Craven and Ray, Multiple-Instance Active Learning, 2008.
    """
    checked_temperature(temperature)
    if classes < 1:
        raise QueryError(f"classes is {classes}, expected at least 1 of the likeliest classes")
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    chosen = _chosen(model, parameters)
    numbers = sum(values.numel() for values in chosen.values())
    rows = max(1, memory // (8 * classes * numbers))  # each gradient, and as much again while it is made
    blocks = zip(*(torch.split(values, rows) for values in inputs), strict=True)
    with torch.inference_mode(False), torch.no_grad():
        return torch.cat([_lengths(model, chosen, block, classes, temperature, names) for block in blocks])


def _chosen(model: nn.Module, names: Collection[str] | None) -> dict[str, Tensor]:
    known = {name: values.detach() for name, values in model.named_parameters()}
    if names is None:
        names = known
    for name in names:
        if name not in known:
            raise QueryError(f"parameter {name!r} is not one of the model's{did_you_mean(name, known)}")
    if not names:
        raise QueryError("there are no parameters, expected at least one of the model's, along which gradients are taken")
    return {name: known[name] for name in names}


def _lengths(
    model: nn.Module, chosen: dict[str, Tensor], inputs: tuple[Tensor, ...], classes: int, temperature: float, names: Sequence[str]
) -> Tensor:
    """Return the score of one block of rows."""
    inputs = tuple(values.clone() if values.is_inference() else values for values in inputs)  # those can't be differentiated

    def run(parameters: dict[str, Tensor], given: tuple[Tensor, ...]) -> Tensor:
        by_name = dict(zip(names, given, strict=True)) if names else None
        output: Tensor = functional_call(model, parameters, () if names else given, by_name)
        return output

    logits = checked_logits(run({}, inputs))
    if not len(logits):
        return logits.new_empty(0)
    ordered = (logits / temperature).softmax(dim=1).sort(dim=1, descending=True, stable=True)
    likeliest, weights = ordered.indices[:, :classes], ordered.values[:, :classes]
    steps = nn.functional.one_hot(likeliest, logits.shape[1]).to(logits.dtype)
    # e_top - e_y first: exactly 0 for y = top, so that p - e_top keeps its digits
    residuals = (steps[:, :1] - steps) + by_blocks(factors, logits, temperature).unsqueeze(1)

    def lengths_of_row(residuals: Tensor, *row: Tensor) -> Tensor:
        def logits_of(parameters: dict[str, Tensor]) -> Tensor:
            return run(parameters, tuple(values.unsqueeze(0) for values in row)).squeeze(0)

        _, pull_back, *_ = vjp(logits_of, chosen)
        gradients = vmap(lambda residual: pull_back(residual)[0])(residuals)
        lengths = torch.stack([torch.linalg.vector_norm(values.flatten(1), dim=1) for values in gradients.values()])
        whole: Tensor = torch.linalg.vector_norm(lengths, dim=0)
        return whole

    try:
        lengths: Tensor = vmap(lengths_of_row)(residuals, *inputs)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{type(model).__name__} can't be differentiated row by row ({reason}); put it into evaluation mode, "
            "or take egl, which needs its last layer alone"
        ) from error
    scores: Tensor = (lengths * weights).sum(dim=1) / temperature
    return scores

"""A temperature for the mean of several opinions: each is softened before the mean is taken, as a committee's confidence has it.

With members' logits z_k, log p_mean = logsumexp_k log softmax(z_k / T) - log K. One opinion is the plain case, fitted by
`fit_temperature`; several are no convex problem in 1 / T, so a grid brackets the best and golden sections find it.
"""

from __future__ import annotations

import math

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from raystream.acquisition.calibration import HIGHEST, LEAST_ROWS, LOWEST, TemperatureFit, expected_calibration_error, fitted
from raystream.acquisition.inputs import InKind, checked_labels, checked_members, checked_temperature, in_kind
from raystream.errors import LabelsError

_GRID = 25
_GOLDEN = (math.sqrt(5) - 1) / 2
_STEPS = 32
"""Each cuts the bracket of two grid steps to 0.62 of itself: 1e-7 of the temperature in the end."""
_BLOCK = 1 << 22
"""Numbers of a block of rows in float64: 32 MiB."""
_CURVATURE_STEP = 0.02


def mean_log_probabilities(samples: ArrayLike, temperature: float = 1.0) -> InKind:
    """log p_mean of opinions that are softened first, log mean_k softmax(z_k / T).

    Args:
        samples: floating, (n_rows, n_members, n_classes), logits or log-probabilities; -inf masks a class.
        temperature: T.

    Returns:
        float64 (n_rows, n_classes) on the processor; -inf where every member masks the class. A tensor where one is given, else NumPy's.
    """
    members = checked_members(samples, "logits")
    checked_temperature(temperature)
    each = (members.double().cpu() / temperature).log_softmax(dim=2)
    return in_kind(each.logsumexp(dim=1) - math.log(members.shape[1]), samples)


def fit_mean_temperature(samples: ArrayLike, labels: ArrayLike) -> TemperatureFit:
    """The temperature under which labels are likeliest for the mean of the members' probabilities.

    Of one member it is that of `fit_temperature`. Of several, it softens each member, as `mean_log_probabilities` does; the mean
    softens by itself, so it is lower than that of the members alone.

    Args:
        samples: floating, (n_rows, n_members, n_classes), logits or log-probabilities of rows that no member was trained on.
        labels: integers, (n_rows,), in 0 .. n_classes - 1.

    Raises:
        LabelsError: too few rows, a label that is no class, or one that every member masks.
    """
    z = checked_members(samples, "logits").cpu()
    if z.shape[1] == 1:
        return fitted(z[:, 0], labels)
    return _fit_members(z, checked_labels(labels, z.shape[0], z.shape[2]).cpu())


def _fit_members(samples: Tensor, labels: Tensor) -> TemperatureFit:
    if len(samples) < LEAST_ROWS:
        raise LabelsError(f"there are {len(samples)} labelled rows to fit a temperature on, expected at least {LEAST_ROWS}; label more")
    if not math.isfinite(mean_loss(samples, labels, 1.0)):
        raise LabelsError("a label is of a class that every member rules out, or logits are not finite; expected finite ones of its class")
    temperature = _fit(samples, labels)
    before, after = (mean_log_probabilities(samples, t).exp() for t in (1.0, temperature))
    return TemperatureFit(
        temperature,
        nll_before=mean_loss(samples, labels, 1.0),
        nll_after=mean_loss(samples, labels, temperature),
        ece_before=expected_calibration_error(before, labels),
        ece_after=expected_calibration_error(after, labels),
        at_bound=temperature in (LOWEST, HIGHEST),
    )


def mean_loss(samples: Tensor, labels: Tensor, temperature: float) -> float:
    """Mean negative log-likelihood of labels (n_rows,) under `mean_log_probabilities`, in nats."""
    n, members, classes = samples.shape
    rows = max(1, _BLOCK // (members * classes))
    total = 0.0
    for start in range(0, n, rows):
        scaled = samples[start : start + rows].double() / temperature
        here = labels[start : start + rows].view(-1, 1, 1).expand(-1, members, 1)
        true = (scaled.gather(2, here).squeeze(2) - scaled.logsumexp(dim=2)).logsumexp(dim=1)
        total -= float(true.sum())
    return total / n + math.log(members)


def relative_error(samples: ArrayLike, labels: ArrayLike, temperature: float) -> float | None:
    """The standard error of a fitted temperature as a part of it, from the curvature of the loss; None where that is not positive.

    With L the mean loss of n rows in u = log T, it is 1 / sqrt(n L''(u)). As `temperature`, the one fitted on these rows.
    """
    z = checked_members(samples, "logits")
    true = checked_labels(labels, z.shape[0], z.shape[2])
    below, at, above = (mean_loss(z, true, temperature * math.exp(step * _CURVATURE_STEP)) for step in (-1, 0, 1))
    curvature = (below - 2 * at + above) / _CURVATURE_STEP**2
    return 1 / math.sqrt(len(z) * curvature) if curvature > 0 else None


def _fit(samples: Tensor, labels: Tensor) -> float:
    grid = torch.linspace(math.log(LOWEST), math.log(HIGHEST), _GRID, dtype=torch.float64).tolist()
    losses = [mean_loss(samples, labels, math.exp(u)) for u in grid]
    best = min(range(_GRID), key=losses.__getitem__)
    low, high = grid[max(0, best - 1)], grid[min(_GRID - 1, best + 1)]
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = (mean_loss(samples, labels, math.exp(u)) for u in (left, right))
    for _ in range(_STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = mean_loss(samples, labels, math.exp(left))
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = mean_loss(samples, labels, math.exp(right))
    found = min(at_left, at_right)
    if losses[best] <= found and best in (0, _GRID - 1):
        return LOWEST if best == 0 else HIGHEST
    return math.exp(left if at_left <= at_right else right)

"""Probabilities that mean what they say: one temperature for all logits, fitted on labelled rows, and how far off they are.

References:
    Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks, 2017.

Several opinions have one temperature, too: each is softened before the mean is taken. With members' logits z_k, log p_mean = logsumexp_k
log softmax(z_k / T) - log K. One opinion is the plain case, fitted by `fit_temperature`; several are no convex problem in 1 / T, so a
grid brackets the best and golden sections find it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from raystream.acquisition.inputs import InKind, checked_labels, checked_logits, checked_members, checked_temperature, given_logits, in_kind
from raystream.errors import LabelsError, QueryError

LOWEST, HIGHEST = 0.05, 20.0
"""Bounds of a fitted temperature."""

LEAST_ROWS = 10
"""Labelled rows below which a temperature would be noise."""

_MASKED = -1e30
"""Stands for a logit of -inf: its probability is 0 at any temperature within the bounds, and 0 times it is 0."""


@dataclass(frozen=True)
class TemperatureFit:
    """A fitted temperature, with what it did to the labelled rows that it was fitted on."""

    temperature: float
    nll_before: float
    """Mean negative log-likelihood of the labels at T = 1, in nats."""
    nll_after: float
    ece_before: float
    """`expected_calibration_error` at T = 1."""
    ece_after: float
    at_bound: bool
    """Whether the temperature is `LOWEST` or `HIGHEST`, since the best is beyond it or nowhere, as where every row is predicted right:
    don't trust it, fit on more rows or on rows that the model was not trained on."""


@dataclass(frozen=True)
class ReliabilityBins:
    """A reliability diagram: rows binned by confidence; float64 on the processor."""

    edges: Tensor
    """(n_bins + 1,), 0 to 1; bin b holds confidences above edges[b], at most edges[b + 1]."""
    count: Tensor
    """(n_bins,) int64."""
    confidence: Tensor
    """(n_bins,), the mean in the bin; NaN where it is empty."""
    accuracy: Tensor
    """(n_bins,), the part predicted right; NaN where the bin is empty."""

    @property
    def error(self) -> float:
        """Mean over rows of |accuracy - confidence| of their bin."""
        gaps = (self.accuracy - self.confidence).abs().nan_to_num(nan=0.0)
        return float((gaps * self.count).sum() / self.count.sum())


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> TemperatureFit:
    """Return the temperature under which labels are likeliest, by safeguarded Newton steps in 1 / T, in which the problem is convex.

    It multiplies with the logits: T of s z is s times T of z, within the bounds. No prediction changes.

    Args:
        logits: floating, (n_rows, n_classes), of rows that the model was not trained on; -inf masks a class.
        labels: integers, (n_rows,), in 0 .. n_classes - 1.

    Raises:
        LabelsError: fewer than `LEAST_ROWS` rows, a label that is no class or a masked one, or logits that are NaN or +inf.
    """
    return fitted(given_logits(logits, None), labels)


def fitted(logits: Tensor, labels: ArrayLike) -> TemperatureFit:
    """Call `fit_temperature` for a model's outputs, whatever they are."""
    z = checked_logits(logits).double().cpu()
    classes = checked_labels(labels, *z.shape).cpu()
    if len(z) < LEAST_ROWS:
        raise LabelsError(f"there are {len(z)} labelled rows to fit a temperature on, expected at least {LEAST_ROWS}; label more")
    below = z - z.amax(dim=1, keepdim=True)
    true = below.gather(1, classes.unsqueeze(1))
    bad = torch.nonzero(~true.isfinite().squeeze(1)).flatten()
    if len(bad):
        row = int(bad[0])
        raise LabelsError(
            f"the logits of row {row} are {_shown(z[row])} with the label {int(classes[row])}, expected a finite one of its class"
        )
    below = below.clamp_(min=_MASKED)
    temperature = _fit(below, true)
    return TemperatureFit(
        temperature,
        nll_before=_loss(below, true, 1.0),
        nll_after=_loss(below, true, temperature),
        ece_before=expected_calibration_error(below.softmax(dim=1), classes),
        ece_after=expected_calibration_error((below / temperature).softmax(dim=1), classes),
        at_bound=temperature in (LOWEST, HIGHEST),
    )


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Measure how far confidence is from accuracy, mean over rows by bins of equal width: 0 is calibrated, at most 1.

    Args and Raises as `reliability_bins`.

    References:
        Naeini, Cooper and Hauskrecht, Obtaining Well Calibrated Probabilities Using Bayesian Binning, 2015; Guo et al., 2017.
    """
    return reliability_bins(probabilities, labels, bins).error


def reliability_bins(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> ReliabilityBins:
    """Measure confidence and accuracy of the predictions, by bins of confidence of equal width.

    Args:
        probabilities: floating, (n_rows, n_classes), each row summing to 1.
        labels: integers, (n_rows,), in 0 .. n_classes - 1.
        bins: how many.

    Raises:
        LabelsError: no rows, or a label that is no class.
        QueryError: what is no probability.
    """
    p = checked_logits(probabilities).double().cpu()
    true = checked_labels(labels, *p.shape).cpu()
    if bins < 1:
        raise QueryError(f"bins is {bins}, expected at least 1")
    if not len(p):
        raise LabelsError("there are no labelled rows, expected some to compare predictions with")
    bad = torch.nonzero(~((p >= 0).all(dim=1) & ((p.sum(dim=1) - 1).abs() < 0.01))).flatten()
    if len(bad):
        row = int(bad[0])
        raise QueryError(f"row {row} holds {_shown(p[row])}, expected probabilities that sum to 1; take the softmax of logits")
    confidence, prediction = p.max(dim=1)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    where = torch.searchsorted(edges[1:-1], confidence)
    count = torch.bincount(where, minlength=bins)
    sums = [torch.bincount(where, weights=values, minlength=bins) for values in (confidence, (prediction == true).double())]
    return ReliabilityBins(edges, count, *(values / count for values in sums))


def _fit(below: Tensor, true: Tensor) -> float:
    """Return the best temperature within the bounds, to about 1e-11 of itself or better.

    The loss in b = 1 / T is mean (logsumexp(b z) - b z_label), its slope mean (E z - z_label), its curvature mean Var z.
    """
    low, high = 1 / HIGHEST, 1 / LOWEST
    if _slope(below, true, low)[0] > 0:
        return HIGHEST
    if _slope(below, true, high)[0] < 0:
        return LOWEST
    b = 1.0
    for _ in range(100):
        slope, curvature = _slope(below, true, b)
        if slope == 0:
            break
        low, high = (b, high) if slope < 0 else (low, b)
        step = b - slope / curvature if curvature > 0 else low
        if not low < step < high:
            step = (low * high) ** 0.5
        done = abs(step - b) <= 1e-11 * b
        b = step
        if done:
            break
    return 1 / b


def _slope(below: Tensor, true: Tensor, b: float) -> tuple[float, float]:
    p = (below * b).softmax(dim=1)
    mean = (p * below).sum(dim=1, keepdim=True)
    return float((mean - true).mean()), float((p * (below - mean).square()).sum(dim=1).mean())


def _loss(below: Tensor, true: Tensor, temperature: float) -> float:
    return float(((below / temperature).logsumexp(dim=1, keepdim=True) - true / temperature).mean())


def _shown(row: Tensor) -> str:
    values = [f"{value:.6g}" for value in row[:6].tolist()]
    return f"[{', '.join(values)}{', ...' if len(row) > 6 else ''}]"


_GRID = 25
_GOLDEN = (math.sqrt(5) - 1) / 2
_STEPS = 32
"""Each cuts the bracket of two grid steps to 0.62 of itself: 1e-7 of the temperature in the end."""
_BLOCK = 1 << 22
"""Numbers of a block of rows in float64: 32 MiB."""
_CURVATURE_STEP = 0.02


def mean_log_probabilities(samples: ArrayLike, temperature: float = 1.0) -> InKind:
    """Compute log p_mean of opinions that are softened first, log mean_k softmax(z_k / T).

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
    """Return the temperature under which labels are likeliest for the mean of the members' probabilities.

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
    temperature = _fit_mean(samples, labels)
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
    """Compute the mean negative log-likelihood of labels (n_rows,) under `mean_log_probabilities`, in nats."""
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
    """Return the standard error of a fitted temperature as a part of it, from the curvature of the loss; None where that is not positive.

    With L the mean loss of n rows in u = log T, it is 1 / sqrt(n L''(u)). As `temperature`, the one fitted on these rows.
    """
    z = checked_members(samples, "logits")
    true = checked_labels(labels, z.shape[0], z.shape[2])
    below, at, above = (mean_loss(z, true, temperature * math.exp(step * _CURVATURE_STEP)) for step in (-1, 0, 1))
    curvature = (below - 2 * at + above) / _CURVATURE_STEP**2
    return 1 / math.sqrt(len(z) * curvature) if curvature > 0 else None


def _fit_mean(samples: Tensor, labels: Tensor) -> float:
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

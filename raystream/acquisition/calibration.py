"""Probabilities that mean what they say: one temperature for all logits, fitted on labelled rows, and how far off they are.

References:
    Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks, 2017.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from raystream.acquisition.inputs import checked_labels, checked_logits, given_logits
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
    """The temperature under which labels are likeliest, by safeguarded Newton steps in 1 / T, in which the problem is convex.

    It multiplies with the logits: T of s z is s times T of z, within the bounds. No prediction changes.

    Args:
        logits: floating, (n_rows, n_classes), of rows that the model was not trained on; -inf masks a class.
        labels: integers, (n_rows,), in 0 .. n_classes - 1.

    Raises:
        LabelsError: fewer than `LEAST_ROWS` rows, a label that is no class or a masked one, or logits that are NaN or +inf.
    """
    return fitted(given_logits(logits, None), labels)


def fitted(logits: Tensor, labels: ArrayLike) -> TemperatureFit:
    """`fit_temperature` of a model's outputs, whatever they are."""
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
    """How far confidence is from accuracy, mean over rows by bins of equal width: 0 is calibrated, at most 1.

    Args and Raises as `reliability_bins`.

    References:
        Naeini, Cooper and Hauskrecht, Obtaining Well Calibrated Probabilities Using Bayesian Binning, 2015; Guo et al., 2017.
    """
    return reliability_bins(probabilities, labels, bins).error


def reliability_bins(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> ReliabilityBins:
    """Confidence and accuracy of the predictions, by bins of confidence of equal width.

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
    """The best temperature within the bounds, to about 1e-11 of itself or better.

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

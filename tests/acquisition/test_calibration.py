import dataclasses
import math

import numpy as np
import pytest
import torch
from acquisition.reference import softmax

from raystream.acquisition import TemperatureFit, expected_calibration_error, fit_temperature, reliability_bins
from raystream.errors import LabelsError, QueryError


def labelled(n=400, c=5, temperature=2.5, seed=0):
    """Logits and labels drawn from softmax(z / temperature)."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 4, (n, c))
    labels = [rng.choice(c, p=p) for p in softmax(z / temperature)]
    return torch.from_numpy(z), torch.tensor(labels)


def nll(z, labels, temperature):
    return -np.log(softmax(z.numpy() / temperature)[np.arange(len(z)), labels.numpy()]).mean()


def ece(p, labels, bins):
    """By the definition, one bin at a time."""
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    total = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            total += inside.sum() / len(p) * abs(right[inside].mean() - confidence[inside].mean())
    return total


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 12.0])
def test_it_is_the_best_of_a_fine_grid(temperature):
    """No temperature of a fine grid is better, the neighbours are worse, and the one that drew the labels is about found."""
    z, labels = labelled(temperature=temperature)
    found = fit_temperature(z, labels)
    assert found.temperature == pytest.approx(temperature, rel=0.25)
    grid = np.geomspace(0.05, 20, 4001)
    losses = [nll(z, labels, t) for t in grid]
    assert found.nll_after <= min(losses) + 1e-12
    assert abs(math.log(found.temperature / grid[np.argmin(losses)])) <= math.log(grid[1] / grid[0])
    assert not found.at_bound


def test_what_it_reports():
    """Loss and calibration error before and after are those of T = 1 and of the fitted temperature."""
    z, labels = labelled()
    found = fit_temperature(z, labels)
    assert found.nll_before == pytest.approx(nll(z, labels, 1.0), rel=1e-12)
    assert found.nll_after == pytest.approx(nll(z, labels, found.temperature), rel=1e-12)
    assert found.ece_before == pytest.approx(ece(softmax(z.numpy()), labels.numpy(), 15), rel=1e-9)
    assert found.ece_after == pytest.approx(ece(softmax(z.numpy() / found.temperature), labels.numpy(), 15), rel=1e-9)
    assert found.nll_after < found.nll_before
    assert found.ece_after < found.ece_before
    assert [field.name for field in dataclasses.fields(TemperatureFit)] == [
        "temperature", "nll_before", "nll_after", "ece_before", "ece_after", "at_bound",
    ]  # fmt: skip


@pytest.mark.parametrize("scale", [0.1, 0.5, 3.0, 7.0])
def test_it_scales_with_the_logits(scale):
    """The temperature of s z is s times that of z: to 1e-9, since the calibrated probabilities are the same."""
    z, labels = labelled()
    assert fit_temperature(scale * z, labels).temperature == pytest.approx(scale * fit_temperature(z, labels).temperature, rel=1e-9)
    assert fit_temperature(z + 1e4, labels).temperature == pytest.approx(fit_temperature(z, labels).temperature, rel=1e-6)


def test_predictions_stay():
    """Under the fitted temperature every row keeps its predicted class, and so its accuracy."""
    z, labels = labelled()
    assert torch.equal((z / fit_temperature(z, labels).temperature).argmax(dim=1), z.argmax(dim=1))


def test_bounds_are_flagged():
    """Where all rows are right no temperature is low enough, where labels are the least likely none high enough: the bound, flagged."""
    z, _ = labelled()
    right, wrong = fit_temperature(z, z.argmax(dim=1)), fit_temperature(z, z.argmin(dim=1))
    assert (right.temperature, right.at_bound) == (0.05, True)
    assert (wrong.temperature, wrong.at_bound) == (20.0, True)


def test_logits_that_say_nothing():
    """Equal logits are as good at any temperature: 1, unflagged."""
    found = fit_temperature(torch.zeros(20, 3), torch.arange(20) % 3)
    assert (found.temperature, found.at_bound) == (1.0, False)
    assert found.nll_after == pytest.approx(math.log(3))


def test_masked_classes_count_for_nothing():
    """A class of logit -inf changes nothing; float16 and int32 are taken as they come."""
    z, labels = labelled()
    masked = torch.cat([z, torch.full((len(z), 1), -math.inf, dtype=z.dtype)], dim=1)
    assert fit_temperature(masked, labels).temperature == pytest.approx(fit_temperature(z, labels).temperature, rel=1e-12)
    assert fit_temperature(z.half(), labels.int()).temperature == pytest.approx(fit_temperature(z, labels).temperature, rel=1e-2)


def test_what_can_not_be_fitted_is_refused():
    """Too few rows, unknown classes, labels of masked classes and NaN are errors that name the row."""
    z, labels = labelled()
    with pytest.raises(LabelsError, match=r"there are 9 labelled rows .* at least 10"):
        fit_temperature(z[:9], labels[:9])
    for label in (5, -1):
        wrong = labels.clone()
        wrong[7] = label
        with pytest.raises(LabelsError, match=rf"label of row 7 is {label}, .*outside 0 \.\. 4"):
            fit_temperature(z, wrong)
    for bad in (math.nan, math.inf, -math.inf):
        spoilt = z.clone()
        spoilt[3, labels[3]] = bad
        with pytest.raises(LabelsError, match="logits of row 3 are"):
            fit_temperature(spoilt, labels)
    with pytest.raises(QueryError, match=r"labels are a tensor of torch\.float64"):
        fit_temperature(z, labels.double())
    with pytest.raises(QueryError, match=r"shape \(399,\), expected \(400,\)"):
        fit_temperature(z, labels[1:])


@pytest.mark.parametrize("bins", [1, 2, 10, 15])
def test_calibration_error_by_the_definition(bins):
    """It is the count-weighted gap of accuracy and confidence, over bins open below and closed above."""
    z, labels = labelled()
    p = torch.from_numpy(softmax(z.numpy()))
    assert expected_calibration_error(p, labels, bins) == pytest.approx(ece(p.numpy(), labels.numpy(), bins), rel=1e-9)
    found = reliability_bins(p, labels, bins)
    assert found.edges.tolist() == pytest.approx([b / bins for b in range(bins + 1)])
    assert int(found.count.sum()) == len(z)
    assert found.error == expected_calibration_error(p, labels, bins)


def test_reliability_of_known_rows():
    """Two rows of confidence 0.9, one of them right, and a sure one that is right, in ten bins."""
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.0, 1.0]], dtype=torch.float64)
    found = reliability_bins(p, torch.tensor([0, 0, 1]), bins=10)
    assert found.count.tolist() == [0] * 8 + [2, 1]
    assert found.confidence[8:].tolist() == pytest.approx([0.9, 1.0])
    assert found.accuracy[8:].tolist() == [0.5, 1.0]
    assert found.accuracy[:8].isnan().all()
    assert found.error == pytest.approx(2 / 3 * 0.4)


def test_what_is_no_probability_is_refused():
    """Logits in the place of probabilities, NaN, no rows and no bins are errors that say so."""
    z, labels = labelled()
    p = z.softmax(dim=1)
    with pytest.raises(QueryError, match=r"row 0 holds \[.*take the softmax"):
        expected_calibration_error(z, labels)
    p[2, 0] = math.nan
    with pytest.raises(QueryError, match=r"row 2 holds \[nan"):
        expected_calibration_error(p, labels)
    with pytest.raises(LabelsError, match="no labelled rows"):
        expected_calibration_error(p[:0], labels[:0])
    with pytest.raises(QueryError, match="bins is 0"):
        expected_calibration_error(p, labels, bins=0)

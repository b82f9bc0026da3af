import math

import numpy as np
import pytest
import torch
from acquisition.reference import softmax

from raystream.acquisition import fit_mean_temperature, fit_temperature, mean_log_probabilities, relative_error
from raystream.acquisition.calibration import mean_loss
from raystream.errors import LabelsError, QueryError


def committee(n=500, k=3, c=4, scale=3.0, seed=0):
    """Logits of members that are over-confident around a common opinion, and labels drawn from that opinion."""
    rng = np.random.default_rng(seed)
    common = rng.normal(0, 1.5, (n, c))
    labels = [rng.choice(c, p=p) for p in softmax(common)]
    return torch.from_numpy(scale * (common[:, None] + rng.normal(0, 0.7, (n, k, c)))), torch.tensor(labels)


def nll(z, labels, temperature):
    """By the definition: the mean of the members' probabilities, each softened by itself."""
    p = np.stack([softmax(z[:, member].numpy() / temperature) for member in range(z.shape[1])]).mean(axis=0)
    return -np.log(p[np.arange(len(z)), labels.numpy()]).mean()


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_it_is_the_best_of_a_fine_grid(scale):
    """No temperature of a fine grid has a lower loss of the mean, before and after are by the definition."""
    z, labels = committee(scale=scale)
    found = fit_mean_temperature(z, labels)
    losses = [nll(z, labels, t) for t in np.geomspace(0.05, 20, 600)]
    assert found.nll_after <= min(losses) + 1e-10
    assert found.nll_after == pytest.approx(nll(z, labels, found.temperature), rel=1e-10)
    assert found.nll_before == pytest.approx(nll(z, labels, 1.0), rel=1e-10)
    assert not found.at_bound


def test_it_multiplies_with_the_logits():
    """T(s z) = s T(z): the unit of the logits doesn't matter."""
    z, labels = committee()
    assert fit_mean_temperature(1.7 * z, labels).temperature == pytest.approx(1.7 * fit_mean_temperature(z, labels).temperature, rel=1e-5)


def test_equal_members_are_one():
    """Three times the same opinion has the temperature of that opinion, and one opinion that of `fit_temperature`."""
    z, labels = committee(k=1)
    plain = fit_temperature(z[:, 0], labels)
    assert fit_mean_temperature(z, labels) == plain
    thrice = fit_mean_temperature(z.expand(-1, 3, -1), labels)
    assert thrice.temperature == pytest.approx(plain.temperature, rel=1e-6)
    assert thrice.ece_after == pytest.approx(plain.ece_after, abs=1e-6)


def test_log_probabilities_serve_as_logits():
    """A shift of a member's logits is no opinion: what is stored of them, normalised in float32, gives the same fit."""
    z, labels = committee()
    stored = torch.log_softmax(z, dim=2).float()
    assert fit_mean_temperature(stored, labels).temperature == pytest.approx(fit_mean_temperature(z, labels).temperature, rel=1e-5)


def test_the_mean_is_of_softened_members():
    """By hand, two members of two classes; a class that one of them masks keeps the other's share, one that both mask none."""
    z = torch.tensor([[[2.0, 0.0, -math.inf], [0.0, -math.inf, -math.inf]]], dtype=torch.float64)
    p = mean_log_probabilities(z, 2.0).exp()[0]
    first = math.exp(1) / (math.exp(1) + 1)
    assert p.tolist() == pytest.approx([(first + 1) / 2, (1 - first) / 2, 0.0], abs=1e-12)


def test_blocks_of_rows_change_nothing(monkeypatch):
    """The loss is a sum over rows, however many are held at once."""
    z, labels = committee(n=37)
    whole = mean_loss(z, labels, 1.3)
    monkeypatch.setattr("raystream.acquisition.calibration._BLOCK", 60)
    assert mean_loss(z, labels, 1.3) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("k", [1, 3])
def test_the_standard_error_is_the_spread_of_many_fits(k):
    """As a part of the temperature; it shrinks as one over the root of the rows."""
    fits, errors = [], []
    for seed in range(60):
        z, labels = committee(n=150, k=k, seed=seed)
        fits.append(math.log(fit_mean_temperature(z, labels).temperature))
        errors.append(relative_error(z, labels, math.exp(fits[-1])))
    assert np.median(errors) == pytest.approx(np.std(fits), rel=0.4)
    z, labels = committee(n=2400, k=k)
    assert relative_error(z, labels, math.exp(np.mean(fits))) == pytest.approx(np.median(errors) / 4, rel=0.2)


@pytest.mark.parametrize("right", [True, False])
def test_bounds_are_flagged(right):
    """Where all members are right on every row, or wrong, the best temperature is nowhere."""
    z = torch.zeros(20, 2, 3)
    z[:, :, 0] = 1.0
    found = fit_mean_temperature(z, torch.full((20,), 0 if right else 1))
    assert (found.temperature, found.at_bound) == (0.05 if right else 20.0, True)


def test_what_is_wrong_is_said():
    """Too few rows, labels that are no class or that all members mask, one opinion a row where members belong."""
    z, labels = committee(n=30)
    with pytest.raises(LabelsError, match="there are 9 labelled rows"):
        fit_mean_temperature(z[:9], labels[:9])
    with pytest.raises(LabelsError, match="is 7"):
        fit_mean_temperature(z, torch.full((30,), 7))
    masked = z.clone()
    masked[:, :, 0] = -math.inf
    with pytest.raises(LabelsError, match="every member rules out"):
        fit_mean_temperature(masked, torch.zeros(30, dtype=torch.long))
    with pytest.raises(QueryError, match=r"\(rows, members, classes\)"):
        fit_mean_temperature(z[:, 0], labels)

import math

import numpy as np
import pytest
import torch

from raystream.acquisition import entropy, least_confidence, margin, multi_label_scores, regression_variance
from raystream.errors import QueryError

TWO_CLASS = {"entropy": entropy, "least_confidence": least_confidence, "margin": margin}


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("reduce", ["mean", "max", "sum"])
@pytest.mark.parametrize("score", list(TWO_CLASS))
def test_each_label_is_a_two_class_problem(score, reduce, temperature):
    """It reduces the score that (0, z) logits have by the textbook, label by label, and keeps the digits of sure labels."""
    z = np.random.default_rng(1).normal(0, 6, (40, 7))
    p = 1 / (1 + np.exp(-z / temperature))
    by_label = {
        "entropy": -p * np.log(p) - (1 - p) * np.log1p(-p),
        "least_confidence": 1 - np.maximum(p, 1 - p),
        "margin": 1 - np.abs(2 * p - 1),
    }[score]
    expected = getattr(by_label, reduce)(axis=1)
    found = multi_label_scores(torch.from_numpy(z), score, reduce=reduce, temperature=temperature)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)
    single = torch.from_numpy(z[:, :1])
    pairs = torch.cat([torch.zeros_like(single), single], dim=1) / temperature
    torch.testing.assert_close(multi_label_scores(single, score, temperature=temperature), TWO_CLASS[score](pairs), rtol=1e-12, atol=0)


def test_sure_labels_keep_their_digits_in_float32():
    """Float32 labels that are surer than 1 - p can say score exp(-|z|) and its like, on both sides."""
    for z in (-60.0, 60.0):
        label, small = torch.tensor([[z]]), math.exp(-60)
        assert multi_label_scores(label, "entropy").item() == pytest.approx(61 * small, rel=1e-5, abs=0)
        assert multi_label_scores(label, "least_confidence").item() == pytest.approx(small, rel=1e-5, abs=0)
        assert multi_label_scores(label, "margin").item() == pytest.approx(2 * small, rel=1e-5, abs=0)


def test_infinite_nan_half_and_no_rows():
    """Infinite logits are sure, NaN spoils its own row, half precision is float32, no rows give no scores."""
    logits = torch.tensor([[math.inf, -math.inf], [1e4, -1e4], [math.nan, 0.0], [0.0, 0.0]])
    found = multi_label_scores(logits)
    assert found[:2].tolist() == [0, 0]
    assert found[3].item() == pytest.approx(math.log(2))
    assert found.isnan().tolist() == [False, False, True, False]
    assert multi_label_scores(logits.half()).dtype == torch.float32
    assert multi_label_scores(logits[:0]).shape == (0,)


def test_what_does_not_fit_is_refused():
    """Unknown scores and reductions, other shapes and bad temperatures are errors that say what came."""
    logits = torch.zeros(2, 3)
    with pytest.raises(QueryError, match=r"score 'margins' .*did you mean 'margin'"):
        multi_label_scores(logits, "margins")
    with pytest.raises(QueryError, match="reduce 'top_mean'"):
        multi_label_scores(logits, reduce="top_mean")
    with pytest.raises(QueryError, match=r"shape \(2,\)"):
        multi_label_scores(logits[:, 0])
    with pytest.raises(QueryError, match="at least one label"):
        multi_label_scores(logits[:, :0])
    with pytest.raises(QueryError, match="temperature"):
        multi_label_scores(logits, temperature=-1.0)


def test_regression_variance():
    """It is the population variance over members, summed over outputs, in float64, exactly 0 where they agree."""
    values = np.random.default_rng(2).normal(1e3, 1, (30, 5, 3))
    found = regression_variance(torch.from_numpy(values))
    np.testing.assert_allclose(found.numpy(), values.var(axis=1).sum(axis=1), rtol=1e-9)
    np.testing.assert_allclose(regression_variance(torch.from_numpy(values[:, :, 0])).numpy(), values[:, :, 0].var(axis=1), rtol=1e-9)
    assert regression_variance(torch.full((2, 3), 0.1)).tolist() == [0, 0]
    assert regression_variance(torch.tensor([[1.0, 3.0]], dtype=torch.float16)).tolist() == [1]
    assert regression_variance(torch.zeros(0, 3)).shape == (0,)
    assert regression_variance(torch.tensor([[math.nan, 0.0], [math.inf, 0.0], [1.0, 1.0]])).isnan().tolist() == [True, True, False]


def test_what_is_no_prediction_of_members_is_refused():
    """Other shapes and types are errors that say what came."""
    for bad, message in ((torch.zeros(3), r"shape \(3,\)"), (torch.zeros(3, 0), "at least one member"), (torch.zeros(3, 2).int(), "int32")):
        with pytest.raises(QueryError, match=message):
            regression_variance(bad)

import math

import numpy as np
import pytest
import torch
from acquisition.reference import softmax

from raystream.acquisition import class_weighted, energy, entropy
from raystream.errors import QueryError


def test_a_score_times_the_expected_weight():
    """It is score * sum_c p_c w_c, from float64 and float32 logits, under temperature too."""
    z = np.random.default_rng(0).normal(0, 4, (300, 5))
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5, 10.0])
    logits = torch.from_numpy(z)
    scores = entropy(logits)
    for temperature in (1.0, 2.0):
        expected = scores.numpy() * (softmax(z / temperature) * weights.numpy()).sum(axis=1)
        np.testing.assert_allclose(class_weighted(scores, logits, weights, temperature=temperature).numpy(), expected, rtol=1e-12)
        found = class_weighted(scores.float(), logits.float(), weights, temperature=temperature)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_even_weights_change_nothing_and_zero_silences():
    """Weights of 1 leave scores as they are; a row surely of a class of weight 0 scores 0, down to what p leaves over."""
    logits = torch.tensor([[50.0, 0.0, 0.0], [0.0, 50.0, 0.0], [0.0, 0.0, -math.inf]])
    scores = torch.tensor([1.0, 1.0, 1.0])
    torch.testing.assert_close(class_weighted(scores, logits, torch.ones(3)), scores)
    found = class_weighted(scores, logits, torch.tensor([0.0, 1.0, 1.0]))
    assert found.tolist() == pytest.approx([2 * math.exp(-50), 1, 0.5], rel=1e-6, abs=0)


def test_bad_rows_stay_nan():
    """A NaN score, or logits that hold NaN, give NaN in their own row."""
    logits = torch.tensor([[0.0, 0.0], [0.0, math.nan], [0.0, 0.0]])
    assert class_weighted(torch.tensor([math.nan, 1.0, 1.0]), logits, torch.ones(2)).isnan().tolist() == [True, True, False]


def test_what_does_not_fit_is_refused():
    """Negative or infinite weights, as many as classes no more no less, negative scores and other rows are errors."""
    logits, scores = torch.zeros(3, 2), torch.ones(3)
    for weights in ([1.0], [1.0, -1.0], [1.0, math.inf], [1.0, math.nan]):
        with pytest.raises(QueryError, match=r"class weights are \[.*\], expected \(2,\) finite numbers >= 0"):
            class_weighted(scores, logits, torch.tensor(weights))
    with pytest.raises(QueryError, match=r"score of row 0 is -0\.693147.*take another score"):
        class_weighted(energy(logits), logits, torch.ones(2))
    with pytest.raises(QueryError, match=r"shape \(2,\) beside 3 rows"):
        class_weighted(scores[:2], logits, torch.ones(2))

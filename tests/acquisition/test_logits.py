import inspect
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from acquisition.reference import may_be_logits
from hypothesis import assume, given, settings
from hypothesis.extra.numpy import arrays

import raystream.acquisition as acquisition
from raystream.acquisition import energy, entropy, least_confidence, logit_scores, margin, ratio
from raystream.acquisition.logits import block_score, block_scores
from raystream.errors import DataError, QueryError
from raystream.query import LOGIT_SCORES

FUNCTIONS = {name: getattr(acquisition, name) for name in LOGIT_SCORES}

rows = st.tuples(st.integers(1, 5), st.integers(2, 5)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.floats(-60, 60, allow_nan=False)).filter(may_be_logits)
)


def logits_of(*probabilities):
    return torch.tensor([probabilities], dtype=torch.float64).log()


def reference(z):
    """The textbook formulas on float64 probabilities; good to 1e-9 for logits of moderate size."""
    p = np.exp(z - z.max(axis=1, keepdims=True))
    total = p.sum(axis=1, keepdims=True)
    p /= total
    ordered = np.sort(p, axis=1)
    log_p = np.log(np.where(p > 0, p, 1))
    return {
        "entropy": -(p * log_p).sum(axis=1),
        "least_confidence": 1 - ordered[:, -1],
        "margin": 1 - (ordered[:, -1] - ordered[:, -2]),
        "ratio": ordered[:, -2] / ordered[:, -1],
        "energy": -(z.max(axis=1) + np.log(total[:, 0])),
    }


@pytest.mark.parametrize(
    ("function", "logits", "expected"),
    [
        (entropy, torch.zeros(1, 10), 2.302585),
        (entropy, logits_of(0.5, 0.25, 0.25), 1.039721),
        (entropy, logits_of(0.7, 0.2, 0.1), 0.801819),
        (entropy, torch.tensor([[2.0, 1.0, 0.0]]), 0.832396),
        (entropy, torch.tensor([[2.0, 1.0, 0.0]]) + 1e4, 0.832396),
        (least_confidence, torch.tensor([[2.0, 1.0, 0.0]]), 0.334759),
        (least_confidence, torch.tensor([[2.0, 1.0, 0.0]]) + 1e4, 0.334759),
        (margin, torch.tensor([[2.0, 1.0, 0.0]]), 1 - 0.420512),
        (margin, torch.tensor([[2.0, 1.0, 0.0]]) + 1e4, 1 - 0.420512),
        (ratio, torch.tensor([[2.0, 1.0, 0.0]]), 0.367879),
        (ratio, torch.tensor([[2.0, 1.0, 0.0]]) + 1e4, 0.367879),
        (energy, torch.zeros(1, 10), -2.302585),
        (energy, torch.tensor([[2.0, 1.0, 0.0]]), -2.407606),
    ],
)
def test_expected_values(function, logits, expected):
    """Each function gives the published values to six digits, in float32 and under an offset of ten thousand."""
    assert function(logits).item() == pytest.approx(expected, abs=6e-7)


def test_energy_under_temperature():
    """Energy divides the logits by the temperature and multiplies the result by it."""
    assert energy(torch.tensor([[2.0, 1.0, 0.0]]), temperature=2.0).item() == pytest.approx(-3.360539, abs=6e-7)


def test_temperature_softens_every_score():
    """With T = 2, all scores are those of half the logits, and the prediction stays."""
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    found = logit_scores(logits, temperature=2.0)
    assert found.scores["entropy"].item() == pytest.approx(1.020191, abs=6e-7)
    for name in ("entropy", "least_confidence", "margin", "ratio"):
        torch.testing.assert_close(found.scores[name], FUNCTIONS[name](logits / 2).float())
    assert found.scores["energy"].item() == pytest.approx(-3.360539, abs=6e-7)
    assert found.confidence.item() == pytest.approx(1 - least_confidence(logits / 2).item(), abs=1e-6)
    assert found.prediction.item() == 0


def test_confident_rows_keep_their_order_in_float32():
    """A float32 row that is surer than float32 can say by 1 - p still scores 4.1223e-9, not 0."""
    sure = torch.tensor([[20.0, 0.0, 0.0]])
    assert least_confidence(sure).item() == pytest.approx(4.1223e-9, rel=1e-4)
    assert margin(sure).item() == pytest.approx(3 * math.exp(-20) / (1 + 2 * math.exp(-20)), rel=1e-12)
    assert logit_scores(sure).scores["margin"].item() == pytest.approx(6.18346e-9, rel=1e-4)


def test_near_ties_are_told_apart_by_margin():
    """Margin is float64, and tells apart rows nearer to a tie than float32 numbers near 1 are to each other."""
    logits = torch.tensor([[1e-9, 0.0, -5.0], [2e-9, 0.0, -5.0]])
    near, far = margin(logits)
    assert near.dtype == torch.float64
    assert 1 > near > far
    assert (1 - far).item() == pytest.approx(2 * (1 - near).item(), rel=1e-5)


@settings(deadline=None, max_examples=50)
@given(rows)
def test_agrees_with_the_textbook_formulas(z):
    """In float64, every score equals its textbook formula to 1e-6."""
    logits = torch.from_numpy(z)
    shared = logit_scores(logits)
    for name, expected in reference(z).items():
        np.testing.assert_allclose(FUNCTIONS[name](logits).numpy(), expected, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(shared.scores[name].numpy(), expected, rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(rows, st.randoms(use_true_random=False))
def test_permuting_rows_and_classes(z, random):
    """Permuting rows permutes the scores exactly; permuting classes changes nothing but rounding."""
    logits = torch.from_numpy(z)
    order, classes = list(range(z.shape[0])), list(range(z.shape[1]))
    random.shuffle(order)
    random.shuffle(classes)
    for function in FUNCTIONS.values():
        assert torch.equal(function(logits[order]), function(logits)[order])
        torch.testing.assert_close(function(logits[:, classes]), function(logits), rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(rows, st.floats(-1e4, 1e4))
def test_an_offset_moves_energy_alone(z, offset):
    """Adding a constant to the logits of a row changes none of the scores but energy, which falls by it."""
    assume(may_be_logits(z + offset))
    logits = torch.from_numpy(z)
    for name, function in FUNCTIONS.items():
        expected = function(logits) - (offset if name == "energy" else 0)
        torch.testing.assert_close(function(logits + offset), expected, rtol=1e-6, atol=1e-9)


@settings(deadline=None, max_examples=50)
@given(rows)
def test_scores_stay_in_their_range(z):
    """Entropy lies in [0, log c], the other three in [0, 1], and the confidence in [1/c, 1]."""
    found = logit_scores(torch.from_numpy(z).float())
    classes = z.shape[1]
    highest = {"entropy": math.log(classes), "least_confidence": 1 - 1 / classes, "margin": 1.0, "ratio": 1.0}
    for name, limit in highest.items():
        assert found.scores[name].min() >= 0
        assert found.scores[name].max() <= limit + 1e-6
    assert found.confidence.min() >= 1 / classes - 1e-6
    assert found.confidence.max() <= 1


def test_the_uncertain_row_scores_higher():
    """Higher means label sooner, for every one of the scores."""
    logits = torch.tensor([[9.0, 0.0, 0.0], [3.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    for name in LOGIT_SCORES:
        for scores in (FUNCTIONS[name](logits), logit_scores(logits).scores[name]):
            assert torch.equal(scores.argsort(), torch.arange(4)), name


def test_names_dtypes_and_ties():
    """logit_scores holds all names in the query's order, float32 scores and the lowest class at a tie."""
    found = logit_scores(torch.tensor([[0.0, 1.0, 1.0], [5.0, 5.0, 5.0]], dtype=torch.float64))
    assert tuple(found.scores) == LOGIT_SCORES
    assert {values.dtype for values in found.scores.values()} == {torch.float32}
    assert found.prediction.dtype == torch.int32
    assert found.prediction.tolist() == [1, 0]
    assert found.confidence.dtype == torch.float32
    assert found.confidence[1].item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    """Half precision logits score as the same numbers in float32 do."""
    logits = (torch.randn(50, 6, generator=torch.Generator().manual_seed(1)) * 4).to(dtype)
    for name, function in FUNCTIONS.items():
        assert torch.equal(function(logits), function(logits.float())), name
        assert function(logits).dtype == (torch.float64 if name == "margin" else torch.float32)


def test_a_masked_class_counts_for_nothing():
    """A logit of -inf leaves the scores that the other classes have alone, and gives no NaN."""
    without = torch.tensor([[2.0, 1.0, 0.0], [0.5, 0.5, -3.0]])
    masked = torch.cat([torch.full((2, 1), -math.inf), without], dim=1)
    for function in FUNCTIONS.values():
        torch.testing.assert_close(function(masked), function(without))
    only = logit_scores(torch.tensor([[-math.inf, 3.0]]))
    assert {name: only.scores[name].item() for name in LOGIT_SCORES} == {**dict.fromkeys(LOGIT_SCORES, 0), "energy": -3}
    assert only.prediction.item() == 1
    assert only.confidence.item() == 1


@pytest.mark.parametrize(
    "bad",
    [[math.nan, 0.0, 1.0], [0.0, math.inf, 1.0], [math.inf, math.inf, 0.0], [-math.inf] * 3, [math.nan, math.inf, 0.0]],
)
def test_bad_rows_come_out_as_nan(bad):
    """NaN, +inf and a row of nothing but -inf give NaN in every score of that row, and of no other."""
    logits = torch.tensor([[1.0, 0.0, 0.0], bad])
    found = logit_scores(logits)
    for name in LOGIT_SCORES:
        for scores in (FUNCTIONS[name](logits), found.scores[name]):
            assert scores.isnan().tolist() == [False, True], name
    assert found.confidence.isnan().tolist() == [False, True]


def test_inputs_stay_as_they_were():
    """The logits are never written to, under a temperature neither, and need no gradient."""
    logits = torch.randn(7, 3, requires_grad=True)
    before = logits.detach().clone()
    found = logit_scores(logits, temperature=3.0)
    assert torch.equal(logits, before)
    assert not any(values.requires_grad for values in found.scores.values())


def test_no_rows_give_no_scores():
    """An empty block is a block."""
    assert logit_scores(torch.zeros(0, 4)).scores["margin"].shape == (0,)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.zeros(3), r"shape \(3,\)"),
        (torch.zeros(3, 1), r"shape \(3, 1\).*at least two classes"),
        (torch.zeros(3, 2, 2), r"shape \(3, 2, 2\)"),
        (torch.zeros(3, 2, dtype=torch.int64), r"torch\.int64"),
        ([["a", "b"]], "real numbers"),
        (None, "logits is missing"),
    ],
)
def test_what_is_not_logits_is_refused(logits, message):
    """Anything but a floating (rows, classes) tensor is an error that says what came."""
    for function in (*FUNCTIONS.values(), logit_scores):
        with pytest.raises((QueryError, DataError), match=message):
            function(logits)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_temperature_must_be_positive(temperature):
    """A temperature that is no finite number above 0 is refused."""
    with pytest.raises(QueryError, match="temperature"):
        logit_scores(torch.zeros(2, 2), temperature)


def test_the_public_names_are_listed():
    """`__all__` is sorted and holds exactly what the package offers."""
    assert acquisition.__all__ == sorted(acquisition.__all__)
    modules = {name for name, value in vars(acquisition).items() if inspect.ismodule(value)}
    assert {name for name in vars(acquisition) if not name.startswith("_")} - modules == set(acquisition.__all__)
    assert {*FUNCTIONS, "LogitScores", "logit_scores"} <= set(acquisition.__all__)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_score_alone_is_the_one_of_all(temperature: float) -> None:
    logits = torch.randn(200, 7, generator=torch.Generator().manual_seed(0)) * 5
    logits[3, 2] = -math.inf
    logits[4] = math.nan
    together = block_scores(logits, temperature).scores
    for name, scores in together.items():
        assert torch.equal(block_score(logits, temperature, name).nan_to_num(-1), scores.nan_to_num(-1))

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from acquisition.reference import may_be_logits, softmax
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from raystream.acquisition import badge_factors, badge_norm, egl
from raystream.errors import QueryError

ONE = torch.ones(1, 1, dtype=torch.float64)

layers = st.tuples(st.integers(1, 5), st.integers(2, 6)).flatmap(
    lambda shape: st.tuples(
        arrays(np.float64, shape, elements=st.floats(-30, 30, allow_nan=False)).filter(may_be_logits),
        arrays(np.float64, (shape[0], 3), elements=st.floats(-9, 9, allow_nan=False)),
    )
)


def logits_of(*probabilities):
    return torch.tensor([probabilities], dtype=torch.float64).log()


def reference(z, h, bias, temperature=1.0):
    """(egl, badge_norm, identity) from whole gradient matrices in float64, one row and label at a time."""
    results = []
    for row, inputs in zip(softmax(z / temperature), h, strict=True):
        wide = np.append(inputs, 1.0) if bias else inputs
        gradients = [np.outer(row - label, wide) for label in np.eye(len(row))]
        lengths = np.array([np.sqrt(np.square(gradient).sum()) for gradient in gradients])
        results.append(
            ((row * lengths).sum() / temperature, lengths[row.argmax()], (row * lengths**2).sum() - (1 - (row**2).sum()) * (wide**2).sum())
        )
    return tuple(np.array(column) for column in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("function", "probabilities", "expected"),
    [
        (egl, (0.5, 0.5), 0.707107),
        (egl, (0.9, 0.1), 0.254558),
        (egl, (0.7, 0.2, 0.1), 0.591216),
        (badge_norm, (0.9, 0.1), 0.141421),
        (badge_norm, (0.7, 0.2, 0.1), 0.374166),
    ],
)
def test_expected_values(function, probabilities, expected):
    """The first factor has the published values to six digits; a bias makes an input of 1 one of sqrt(2)."""
    logits = logits_of(*probabilities)
    assert function(logits, ONE, bias=False).item() == pytest.approx(expected, abs=6e-7)
    assert function(logits.float(), ONE.float(), bias=False).item() == pytest.approx(expected, abs=6e-7)
    assert function(logits, ONE).item() == pytest.approx(expected * math.sqrt(2), abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(layers, st.booleans(), st.sampled_from([0.5, 1.0, 3.0]))
def test_agrees_with_whole_gradients(layer, bias, temperature):
    """Both equal the lengths of the gradient matrices themselves, and E|grad|² is (1 - sum p²) |h~|²."""
    z, h = layer
    logits, inputs = torch.from_numpy(z), torch.from_numpy(h)
    expected, top, identity = reference(z, h, bias, temperature)
    np.testing.assert_allclose(egl(logits, inputs, bias=bias, temperature=temperature).numpy(), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(badge_norm(logits, inputs, bias=bias, temperature=temperature).numpy(), top, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(identity, 0, atol=1e-10)


@settings(deadline=None, max_examples=60)
@given(layers)
def test_factors_of_badge(layer):
    """badge_factors is p - e_top, sums to 0, and its length times that of h~ is badge_norm, under temperature too."""
    logits, inputs = (torch.from_numpy(values) for values in layer)
    a = badge_factors(logits, temperature=2.0)
    p = softmax(layer[0] / 2)
    expected = p - np.eye(p.shape[1])[layer[0].argmax(axis=1)]
    np.testing.assert_allclose(a.numpy(), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(a.sum(dim=1).numpy(), 0, atol=1e-15)
    product = a.norm(dim=1) * inputs.norm(dim=1)
    torch.testing.assert_close(badge_norm(logits, inputs, bias=False, temperature=2.0), product, rtol=1e-9, atol=1e-14)


def test_the_lowest_class_is_the_top_at_a_tie():
    """At a tie, the one-hot is taken off the lowest class."""
    assert badge_factors(torch.tensor([[0.0, 1.0, 1.0], [2.0, 2.0, 2.0]])).argmin(dim=1).tolist() == [1, 0]


def test_confident_rows_keep_their_order_in_float32():
    """Float32 rows that are surer than float32 can say by 1 - p score as the analysis says, under an offset too, down to 1e-35."""
    for gap in (20.0, 40.0, 80.0):
        rest = 2 * math.exp(-gap)
        for offset in (0.0, 4096.0):
            sure = torch.tensor([[gap, 0.0, 0.0]]) + offset
            a = badge_factors(sure)[0]
            assert a.dtype == torch.float32
            assert a.tolist() == pytest.approx([-rest, rest / 2, rest / 2], rel=1e-6, abs=0)
            assert badge_norm(sure, ONE, bias=False).item() == pytest.approx(rest * math.sqrt(1.5), rel=1e-6, abs=0)
            # the top term, and that of the two others, whose gradients have the length sqrt(2)
            assert egl(sure, ONE, bias=False).item() == pytest.approx(rest * (math.sqrt(1.5) + math.sqrt(2)), rel=1e-6, abs=0)


def test_many_classes_and_rows():
    """Blocks change nothing: each row scores exactly as it does alone, with many classes too."""
    generator = torch.Generator().manual_seed(0)
    for n, c in ((20_000, 10), (400, 300)):
        logits, h = torch.randn(n, c, generator=generator) * 3, torch.randn(n, 4, generator=generator)
        found, factors = egl(logits, h), badge_factors(logits)
        for row in (0, 65, n // 2, n - 1):
            alone = slice(row, row + 1)
            assert egl(logits[alone], h[alone]).item() == found[row].item()
            assert torch.equal(badge_factors(logits[alone])[0], factors[row])
        some = slice(0, n, n // 10)
        expected, _, _ = reference(logits[some].double().numpy(), h[some].double().numpy(), True)
        np.testing.assert_allclose(found[some].numpy(), expected, rtol=2e-6)


def test_the_uncertain_row_and_the_longer_input_score_higher():
    """Higher means label sooner: unsure rows move the model more, and so do rows with larger inputs."""
    logits = torch.tensor([[9.0, 0.0, 0.0], [3.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    for function in (egl, badge_norm):
        assert torch.equal(function(logits, torch.ones(4, 2)).argsort(), torch.arange(4))
        assert torch.equal(function(logits[:1].expand(4, -1), torch.arange(4.0).unsqueeze(1)).argsort(), torch.arange(4))


def test_lengths_are_all_that_counts_of_the_inputs():
    """The lengths of the layer's inputs, as one column, score as the inputs do, with a bias and without."""
    generator = torch.Generator().manual_seed(0)
    logits, h = torch.randn(50, 4, generator=generator), torch.randn(50, 9, generator=generator)
    for function in (egl, badge_norm):
        for bias in (True, False):
            torch.testing.assert_close(function(logits, h.norm(dim=1, keepdim=True), bias=bias), function(logits, h, bias=bias))


def test_masked_and_bad_rows():
    """A masked class counts for nothing; NaN, +inf and nothing but -inf make their own row NaN."""
    h = torch.ones(2, 3)
    without = torch.tensor([[2.0, 1.0, 0.0], [0.5, 0.5, -3.0]])
    masked = torch.cat([without, torch.full((2, 1), -math.inf)], dim=1)
    for function in (egl, badge_norm):
        torch.testing.assert_close(function(masked, h), function(without, h))
        bad = torch.tensor([[1.0, 0.0], [math.nan, 0.0], [math.inf, 0.0], [-math.inf, -math.inf]])
        assert function(bad, torch.ones(4, 3)).isnan().tolist() == [False, True, True, True]
    assert badge_factors(masked)[:, 3].tolist() == [0, 0]
    assert badge_factors(torch.tensor([[math.nan, 0.0], [1.0, 0.0]])).isnan().tolist() == [[True, True], [False, False]]


def test_dtypes_inputs_and_no_rows():
    """Half precision counts as float32, the wider dtype wins, nothing is written to, no rows give no scores."""
    logits, h = torch.randn(5, 3), torch.randn(5, 2)
    before = logits.clone(), h.clone()
    assert egl(logits, h, temperature=2.0).dtype == torch.float32
    assert egl(logits, h.double()).dtype == torch.float64
    torch.testing.assert_close(egl(logits.half(), h.half()), egl(logits.half().float(), h.half().float()))
    transposed = logits.t().contiguous().t()
    torch.testing.assert_close(badge_factors(transposed), badge_factors(logits))
    assert torch.equal(transposed, logits)
    assert torch.equal(logits, before[0])
    assert torch.equal(h, before[1])
    assert egl(logits[:0], h[:0]).shape == (0,)
    assert badge_factors(logits[:0]).shape == (0, 3)


def test_what_does_not_fit_is_refused():
    """Inputs of other rows, of another shape or type, bad logits and bad temperatures are errors that say what came."""
    logits, h = torch.zeros(3, 2), torch.zeros(3, 4)
    for function in (egl, badge_norm):
        with pytest.raises(QueryError, match=r"shape \(2, 4\) beside 3 rows"):
            function(logits, h[:2])
        with pytest.raises(QueryError, match=r"inputs of the last layer are a tensor of torch\.int64"):
            function(logits, h.long())
        with pytest.raises(QueryError, match="two classes"):
            function(logits[:, :1], h)
        with pytest.raises(QueryError, match="temperature"):
            function(logits, h, temperature=0.0)

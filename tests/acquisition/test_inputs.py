"""Acquisition functions as a library: whatever holds numbers, probabilities beside logits, and what is mistaken for the other."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from acquisition.reference import entropy_of, member_scores_of, softmax

from raystream import acquisition as a
from raystream.errors import DataError, QueryError

RNG = np.random.default_rng(0)
Z = RNG.integers(-64, 65, (20, 5)) / 16.0
"""(20, 5) float64 logits that bfloat16 holds."""
MEMBERS = RNG.integers(-64, 65, (20, 3, 5)) / 16.0
H = RNG.integers(-8, 9, (20, 4)) / 4.0
ONE_MODEL = {
    "entropy": a.entropy,
    "least_confidence": a.least_confidence,
    "margin": a.margin,
    "ratio": a.ratio,
    "badge_factors": a.badge_factors,
    "egl": lambda logits=None, **more: a.egl(logits, H, **more),
    "badge_norm": lambda logits=None, **more: a.badge_norm(logits, H, bias=False, **more),
    "class_weighted": lambda logits=None, **more: a.class_weighted(np.ones(20), logits, [1, 2, 3, 4, 5], **more),
}
COMMITTEE = {name: getattr(a, name) for name in ("bald", "consensus_entropy", "vote_entropy", "variation_ratio", "mean_std", "variance")}
FORMS = {
    "a list": np.ndarray.tolist,
    "float32": lambda x: x.astype(np.float32),
    "float16": lambda x: x.astype(np.float16),
    "big-endian": lambda x: x.astype(">f8"),
    "read-only": lambda x: np.broadcast_to(x, x.shape),
    "backwards": lambda x: x[::-1].copy()[::-1],
    "no mask": np.ma.masked_array,
    "a tensor": torch.from_numpy,
    "bfloat16": lambda x: torch.from_numpy(x).bfloat16(),
    "half": lambda x: torch.from_numpy(x).half(),
    "with a gradient": lambda x: torch.from_numpy(x).float().requires_grad_(),
    "a list of tensors": lambda x: [torch.from_numpy(row).requires_grad_() for row in x],
}
forms = pytest.mark.parametrize("form", FORMS)


def same_kind(found, given):
    """A tensor for a tensor, without a gradient, else NumPy."""
    assert isinstance(found, torch.Tensor) == isinstance(given, torch.Tensor)
    assert isinstance(found, torch.Tensor | np.ndarray)
    assert not isinstance(found, torch.Tensor) or not found.requires_grad
    return np.asarray(found)


@forms
@pytest.mark.parametrize("name", [*ONE_MODEL, "energy"])
def test_logits_in_any_form(name, form):
    """The same scores, in kind; half precision is computed in float32."""
    function, given = ONE_MODEL.get(name, a.energy), FORMS[form](Z)
    np.testing.assert_allclose(same_kind(function(given), given), function(torch.from_numpy(Z)).numpy(), rtol=2e-6, atol=1e-12)
    soft = function(given, temperature=2.0)
    np.testing.assert_allclose(same_kind(soft, given), function(torch.from_numpy(Z), temperature=2.0).numpy(), rtol=2e-6, atol=1e-12)


@forms
@pytest.mark.parametrize("name", COMMITTEE)
def test_log_probabilities_in_any_form(name, form):
    """As of log-probabilities that are -1 / log 2 powers of two, which every dtype holds."""
    p = np.zeros((6, 2, 4))
    p[:, :, :2] = [[0.5, 0.5], [0.25, 0.75]]
    given = FORMS[form](np.log(np.where(p > 0, p, 1)) - 1e4 * (p == 0))
    coarse = form in ("float16", "half", "bfloat16")
    expected = member_scores_of(p)[name]
    np.testing.assert_allclose(same_kind(COMMITTEE[name](given), given), expected, rtol=5e-2 if coarse else 1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ONE_MODEL)
def test_probabilities_beside_logits(name):
    """softmax(z) says what z says, under temperature, too; zeros are classes that are out of the question."""
    p = softmax(Z)
    for temperature in (1.0, 0.5):
        expected = ONE_MODEL[name](Z, temperature=temperature)
        np.testing.assert_allclose(ONE_MODEL[name](probabilities=p, temperature=temperature), expected, rtol=1e-9, atol=1e-12)
    assert isinstance(ONE_MODEL[name](probabilities=torch.from_numpy(p)), torch.Tensor)
    masked = np.where(np.arange(5) == 2, -np.inf, Z)
    np.testing.assert_allclose(ONE_MODEL[name](probabilities=softmax(masked)), ONE_MODEL[name](masked), rtol=1e-9, atol=1e-12)
    nothing = np.where(np.arange(20)[:, None] == 3, np.nan, p)
    assert np.isnan(ONE_MODEL[name](probabilities=nothing)[3]).all()


@pytest.mark.parametrize("name", COMMITTEE)
def test_probabilities_of_members(name):
    """Beside log-probabilities; temperature softens each member."""
    p = softmax(MEMBERS)
    np.testing.assert_allclose(COMMITTEE[name](probabilities=p), member_scores_of(p)[name], rtol=1e-9, atol=1e-12)
    soft = member_scores_of(softmax(MEMBERS / 2))[name]
    np.testing.assert_allclose(COMMITTEE[name](np.log(p), temperature=2.0), soft, rtol=1e-9, atol=1e-12)
    for wrong in (MEMBERS, p):
        for temperature in (1.0, 2.0):
            with pytest.raises(QueryError, match="give log-probabilities"):
                COMMITTEE[name](wrong, temperature=temperature)
    with pytest.raises(QueryError, match=r"the probabilities of row 0 sum to .* if they are logits, give them as such"):
        COMMITTEE[name](probabilities=MEMBERS)


def test_probabilities_of_epig_labels_and_dense_outputs():
    """The other functions of logits and of members."""
    p, targets = softmax(MEMBERS), softmax(MEMBERS[:4] * 2)
    expected = a.epig(np.log(p), np.log(targets))
    np.testing.assert_allclose(a.epig(None, targets, probabilities=p), expected, rtol=1e-9)
    np.testing.assert_allclose(a.epig(None, a.epig_targets(probabilities=targets), probabilities=p.tolist()), expected, rtol=1e-9)
    assert isinstance(a.epig(torch.from_numpy(np.log(p)), np.log(targets)), torch.Tensor)
    sigmoid = 1 / (1 + np.exp(-Z))
    np.testing.assert_allclose(a.multi_label_scores(probabilities=sigmoid), a.multi_label_scores(Z), rtol=1e-9)
    np.testing.assert_allclose(a.multi_label_scores(Z.tolist()), a.multi_label_scores(torch.from_numpy(Z)), rtol=1e-9)
    assert a.multi_label_scores(probabilities=[[0.0, 1.0]]).tolist() == [0.0]
    tokens, pixels = RNG.standard_normal((6, 7, 3)), RNG.standard_normal((6, 3, 2, 4))
    for values, axis in ((tokens, -1), (pixels, 1)):
        p = np.moveaxis(softmax(np.moveaxis(values, axis, -1)), -1, axis)
        expected = a.dense_scores(values)
        assert isinstance(expected, np.ndarray)
        np.testing.assert_allclose(a.dense_scores(probabilities=p), expected, rtol=1e-5)
        np.testing.assert_allclose(a.dense_scores(torch.from_numpy(values)).numpy(), expected)
        with pytest.raises(QueryError, match="logits holds probabilities"):
            a.dense_scores(p)
    mask = np.ones((6, 7), dtype=bool)
    mask[:, 3:] = False
    np.testing.assert_allclose(a.dense_scores(tokens, mask=mask), a.dense_scores(tokens[:, :3]), rtol=1e-6)


def test_the_rest_takes_arrays_too():
    """Blocks of scores, calibration, numbers of regression."""
    labels = RNG.integers(0, 5, 20)
    assert a.fit_temperature(Z, labels) == a.fit_temperature(torch.from_numpy(Z), torch.from_numpy(labels).int())
    assert a.fit_mean_temperature(MEMBERS.tolist(), labels.tolist()) == a.fit_mean_temperature(MEMBERS, labels)
    assert a.expected_calibration_error(softmax(Z), labels.tolist()) == a.expected_calibration_error(torch.from_numpy(softmax(Z)), labels)
    assert a.relative_error(MEMBERS, labels, 1.0) == a.relative_error(torch.from_numpy(MEMBERS), labels, 1.0)
    assert isinstance(a.mean_log_probabilities(MEMBERS), np.ndarray)
    assert a.log_probabilities(MEMBERS).shape == MEMBERS.shape
    np.testing.assert_array_equal(a.logit_scores(Z).scores["entropy"], a.logit_scores(torch.from_numpy(Z)).scores["entropy"])
    p = softmax(MEMBERS)
    np.testing.assert_allclose(a.member_scores(np.log(p), ["bald"]).scores["bald"], member_scores_of(p)["bald"], rtol=1e-5)
    assert a.regression_variance([[1, 3], [2, 2]]).tolist() == [1.0, 0.0]
    assert a.entropy([[0, 0]]).tolist() == [pytest.approx(math.log(2))]


@pytest.mark.parametrize("name", [*ONE_MODEL, "energy", "logit_scores", "log_probabilities", "fit_temperature"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_probabilities_that_are_called_logits_are_noticed(name, dtype):
    """Of one row or many, of two classes or many, in half precision too."""
    fit = partial(a.fit_temperature, labels=np.arange(20) % 5)
    functions = {"logit_scores": a.logit_scores, "energy": a.energy, "fit_temperature": fit}
    function = ONE_MODEL.get(name) or functions.get(name) or a.log_probabilities
    p = torch.from_numpy(softmax(MEMBERS if name == "log_probabilities" else Z)).to(dtype)
    with pytest.raises(QueryError, match="logits holds probabilities"):
        function(p)
    if name in ("entropy", "margin", "energy", "logit_scores", "badge_factors"):
        for some in (p[:1], p[:, :2] / p[:, :2].sum(1, keepdim=True), torch.eye(5, dtype=dtype).repeat(10, 1)):
            with pytest.raises(QueryError, match="logits holds probabilities"):
                function(some)


def test_logits_that_might_be_probabilities_are_logits():
    """What is the same as either, or a few zeros and ones, is taken as it is called."""
    assert a.entropy([[0.5, 0.5], [0.5, 0.5]]).tolist() == pytest.approx([math.log(2)] * 2)
    np.testing.assert_allclose(a.entropy([[1.0, 0.0], [0.0, 1.0]]), entropy_of(softmax(np.eye(2))))
    assert a.entropy([[0.25, 0.75], [0.5, 2.0]]).shape == (2,)
    assert a.entropy(np.zeros((0, 3))).shape == (0,)
    assert a.multi_label_scores(np.zeros((40, 3))).tolist() == pytest.approx([math.log(2)] * 40)
    with pytest.raises(QueryError, match="logits holds probabilities, since all of its numbers lie between 0 and 1"):
        a.multi_label_scores(1 / (1 + np.exp(-Z)))


def test_refusals():
    """Both arguments, none, masked values, what holds no numbers, probabilities that are none."""
    with pytest.raises(QueryError, match="both logits and probabilities are given"):
        a.entropy(Z, probabilities=softmax(Z))
    with pytest.raises(QueryError, match="logits is missing"):
        a.entropy()
    with pytest.raises(QueryError, match="log_probs is missing"):
        a.bald()
    masked = np.ma.masked_array(Z, np.arange(100).reshape(20, 5) == 7)
    for function in (a.entropy, partial(a.egl, h=H), a.multi_label_scores):
        with pytest.raises(DataError, match=r"`logits` has 1 masked values, first at \[1, 2\]"):
            function(masked)
    with pytest.raises(DataError, match="masked"):
        a.entropy(probabilities=masked)
    with pytest.raises(DataError, match="real numbers"):
        a.entropy(Z.astype(complex))
    with pytest.raises(DataError, match="rows of one length"):
        a.entropy([[1.0, 2.0], [3.0]])
    with pytest.raises(QueryError, match=r"row 1 sum to 1\.5"):
        a.entropy(probabilities=[[0.5, 0.5], [0.75, 0.75]])
    with pytest.raises(QueryError, match="row 0 sum to 1, expected numbers from 0 to 1"):
        a.margin(probabilities=[[-0.5, 1.5]])
    with pytest.raises(QueryError, match=r"row 0, label 1 is 1\.5"):
        a.multi_label_scores(probabilities=[[0.5, 1.5]])
    with pytest.raises(QueryError, match="temperature is 0"):
        a.entropy(Z, temperature=0)

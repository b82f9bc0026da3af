import itertools
from functools import partial

import pytest
import torch

from raystream import acquisition
from raystream.acquisition import check_acquisition, entropy
from raystream.errors import AcquisitionContractError, DataError, QueryError
from raystream.query import LOGIT_SCORES

TARGETS = acquisition.epig_targets(acquisition.log_probabilities(torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(9))))
TWO_TARGETS = acquisition.epig_targets(acquisition.log_probabilities(torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(9))))


def embedding_of(z):
    return torch.cat([z.float().clamp(min=-5, max=5).cos(), z.float().exp().clamp(max=3)], dim=1)


FROM_LOGITS = {
    **{name: getattr(acquisition, name) for name in LOGIT_SCORES},
    "energy_under_temperature": partial(acquisition.energy, temperature=2.0),
    "egl": lambda z: acquisition.egl(z, embedding_of(z)),
    "badge_norm": lambda z: acquisition.badge_norm(z, embedding_of(z), bias=False, temperature=0.5),
    "badge_factors": lambda z: acquisition.badge_factors(z).norm(dim=1),
    "logit_scores": lambda z: acquisition.logit_scores(z, 3.0).scores["entropy"],
    "class_weighted": lambda z: acquisition.class_weighted(entropy(z), z, torch.arange(float(z.shape[1]))),
    **{f"labels_{score}": partial(acquisition.multi_label_scores, score=score) for score in ("entropy", "least_confidence", "margin")},
    **{f"tokens_{reduce}": (lambda z, r=reduce: acquisition.dense_scores(z[:, None], reduce=r)) for reduce in ("mean", "top_mean")},
}
FROM_MEMBERS = {
    **{
        name: getattr(acquisition, name)
        for name in ("bald", "consensus_entropy", "vote_entropy", "variation_ratio", "mean_std", "variance")
    },
    "member_scores": lambda x: acquisition.member_scores(x, ["bald"]).scores["bald"],
    "log_mean": lambda x: entropy(acquisition.member_scores(x, []).log_mean),
    "epig": lambda x: acquisition.epig(x, TARGETS if x.shape[2] == 7 else TWO_TARGETS),
    "regression_variance": lambda x: acquisition.regression_variance(x.float().exp()),
}


@pytest.mark.parametrize("name", list(FROM_LOGITS))
def test_our_own_functions_of_logits_keep_the_contract(name):
    """Every one of our scores of logits keeps every promise."""
    check_acquisition(FROM_LOGITS[name])


@pytest.mark.parametrize("name", list(FROM_MEMBERS))
def test_our_own_functions_of_members_keep_the_contract(name):
    """Every one of our scores of members keeps every promise."""
    check_acquisition(FROM_MEMBERS[name], "log_probs")


def writes(z):
    z.sub_(z.amax(dim=1, keepdim=True))
    return entropy(z)


def forgets(calls=itertools.count()):  # noqa: B008
    return lambda z: entropy(z) + next(calls)


def naive_entropy(z):
    e = z.exp()
    p = e / e.sum(dim=1, keepdim=True)
    return -(p * p.log()).sum(dim=1)


def half_entropy(z):
    p = z.log_softmax(dim=1)
    return -(p.exp() * p).nan_to_num(0).sum(dim=1).float()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda z: z.softmax(dim=1), r"must return a floating tensor of shape \(24,\), but returned torch.float32 of shape \(24, 7\)"),
        (lambda z: z.argmax(dim=1), r"must return a floating tensor .* returned torch.int64 of shape \(24,\)"),
        (lambda z: entropy(z).numpy(), "must return a floating tensor .* returned a ndarray"),
        (lambda z: entropy(z).mean(), r"returned torch.float32 of shape \(\)"),
        (writes, r"writes must leave what it is given as it was, but wrote into it \(on 24 ordinary rows of float32\)"),
        (forgets(), "must give the same scores when asked again, but gave row 0"),
        (lambda z: entropy(z) + torch.rand(len(z)), "must give the same scores when asked again"),
        (lambda z: entropy(z) - entropy(z).sum(), "must score a row by itself, .* in two halves"),
        (lambda z: entropy(z) + torch.arange(len(z)), "must score a row by itself, .* in another order"),
        (lambda z: entropy(z) if len(z) != 1 else entropy(z) * 2, "must score a row by itself, .* alone"),
        (lambda z: entropy(z) / entropy(z).amax(), r"must not fail, but raised RuntimeError.*\(on no rows\)"),
        (lambda z: entropy(z.squeeze(0)), r"must not fail, .*QueryError.*\(on one row\)"),
        (lambda z: entropy(z).log(), "must give finite scores, but gave row 0 -inf"),
        (lambda z: z.double().topk(3).values[:, 2], r"must not fail, .*\(on rows of two classes\)"),
        (lambda z: 1 / (z - z.amin(dim=1, keepdim=True)).sum(dim=1), r"but gave row 0 inf \(on rows that are all equal in every class\)"),
        (naive_entropy, r"naive_entropy must give finite scores, but gave row 0 nan \(on sure rows"),
        (lambda z: (z.float() / 100).exp().sum(dim=1), r"\(on logits with \+10000 added\)"),
        (lambda z: z.sum(dim=1), r"must give finite scores, but gave row 0 -inf \(on rows with a masked class, -inf\)"),
        (lambda z: 1 / ((z > -1e9).sum(dim=1) - 1), r"but gave row 0 inf \(on rows with all classes but one masked"),
        (lambda z: entropy(z) if z.dtype == torch.float32 else entropy(z) * 2, "must score torch.float64 as the same numbers in float32"),
        (half_entropy, "must score torch.bfloat16 as the same numbers in float32"),
        (lambda z: entropy(z) + (z.dtype == torch.float16), r"must score torch.float16 .*\(on the same rows in float16\)"),
    ],
)
def test_every_promise_is_checked(broken, message):
    """A function that breaks one promise is told which one, and on which data."""
    with pytest.raises(AcquisitionContractError, match=message) as caught:
        check_acquisition(broken)
    assert isinstance(caught.value, DataError)
    assert isinstance(caught.value, AssertionError)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda x: -(x.exp().mean(1) * x.exp().mean(1).log()).sum(1), r"but gave row 0 nan \(on sure rows"),
        (lambda x: acquisition.bald(x) * len(x), "must score a row by itself, .* in two halves"),
        (lambda x: acquisition.bald(x)[:, None], r"shape \(24,\), but returned torch.float64 of shape \(24, 1\)"),
    ],
)
def test_functions_of_members_are_checked(broken, message):
    """So is a function of log-probabilities of members."""
    with pytest.raises(AcquisitionContractError, match=message):
        check_acquisition(broken, given="log_probs")


def test_the_kind_of_input_must_be_known():
    """Anything but logits and log_probs is an error."""
    with pytest.raises(QueryError, match="given is 'probabilities'"):
        check_acquisition(entropy, "probabilities")

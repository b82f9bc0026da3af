import math
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from acquisition.reference import THREE, TWO, may_be_logits, member_scores_of, members_of, softmax
from hypothesis import assume, given, settings
from hypothesis.extra.numpy import arrays

from raystream import acquisition
from raystream.acquisition import (
    bald,
    consensus_entropy,
    log_probabilities,
    logit_scores,
    mean_std,
    member_scores,
    variance,
    variation_ratio,
    vote_entropy,
)
from raystream.acquisition.members import row_blocks
from raystream.errors import QueryError
from raystream.query import MEMBER_SCORES

FUNCTIONS = {name: getattr(acquisition, name) for name in MEMBER_SCORES}
CERTAIN = [(1.0, 0.0), (0.0, 1.0)]


samples = (
    st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(2, 5))
    .flatmap(lambda shape: arrays(np.float64, shape, elements=st.floats(-30, 30, allow_nan=False)))
    .filter(may_be_logits)
)


def voting(*votes):
    """One row whose members vote for the classes given."""
    classes = max(votes) + 1
    return members_of([[0.6 if c == vote else 0.4 / (classes - 1) for c in range(classes)] for vote in votes])


@pytest.mark.parametrize(
    ("function", "log_probs", "expected"),
    [
        (bald, members_of(TWO), 0.368064),
        (bald, members_of(CERTAIN), 0.693147),
        (bald, members_of(THREE), 0.156974),
        (consensus_entropy, members_of(THREE), 0.990835),
        (vote_entropy, voting(0, 0, 1), 0.636514),
        (vote_entropy, voting(0, 0, 1, 2), 1.039721),
        (variation_ratio, voting(0, 1, 0), 0.333333),
        (mean_std, members_of(THREE), 0.175211),
        (mean_std, members_of(TWO), 0.4),
        (variance, members_of(TWO), 0.32),
    ],
)
def test_expected_values(function, log_probs, expected):
    """Each function gives the published values to six digits, from float32 as well."""
    assert function(log_probs).dtype == torch.float64
    assert function(log_probs).item() == pytest.approx(expected, abs=6e-7)
    assert function(log_probs.float()).item() == pytest.approx(expected, abs=6e-7)


@settings(deadline=None, max_examples=60)
@given(samples)
def test_agrees_with_the_textbook_formulas(z):
    """All scores equal their textbook formulas in float64, one by one and in one pass."""
    log_probs = log_probabilities(torch.from_numpy(z))
    together = member_scores(log_probs, FUNCTIONS)
    assert list(together.scores) == list(FUNCTIONS)
    for name, expected in member_scores_of(softmax(z)).items():
        # a mean over classes of standard deviations sees the root of what rounding leaves of a variance
        tolerance = 1e-7 if name == "mean_std" else 1e-11
        np.testing.assert_allclose(FUNCTIONS[name](log_probs).numpy(), expected, rtol=1e-9, atol=tolerance, err_msg=name)
        assert torch.equal(together.scores[name], FUNCTIONS[name](log_probs).float()), name


@settings(deadline=None, max_examples=60)
@given(samples)
def test_log_probabilities_are_those_of_softmax(z):
    """They are the logarithm of the softmax, under temperature of z / T, and leave the logits alone."""
    logits = torch.from_numpy(z)
    before = logits.clone()
    np.testing.assert_allclose(log_probabilities(logits).exp().numpy(), softmax(z), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(log_probabilities(logits, 2.5).exp().numpy(), softmax(z / 2.5), rtol=1e-12, atol=1e-15)
    assert torch.equal(logits, before)


def test_log_probabilities_keep_their_digits():
    """A sure float32 row gives the top class -4.1223e-9 and not 0, under an offset too."""
    sure = torch.tensor([[[20.0, 0.0, 0.0], [10020.0, 10000.0, 10000.0]]])
    assert log_probabilities(sure)[0, :, 0].tolist() == pytest.approx([-4.1223e-9] * 2, rel=1e-4)
    assert log_probabilities(sure.half()[:, :1]).dtype == torch.float32


def test_log_probabilities_of_masked_and_bad_members():
    """-inf stays -inf; NaN, +inf and nothing but -inf make their own member NaN and no other."""
    rows = torch.tensor([[[0.0, -math.inf, 0.0], [math.nan, 0.0, 0.0]], [[math.inf, 0.0, 0.0], [-math.inf] * 3]])
    found = log_probabilities(rows)
    assert found[0, 0].tolist() == pytest.approx([-math.log(2), -math.inf, -math.log(2)])
    assert found.isnan().all(dim=2).tolist() == [[False, True], [True, True]]


@settings(deadline=None, max_examples=60)
@given(samples, st.integers(1, 7))
def test_equal_members_disagree_by_exactly_nothing(z, members):
    """Equal members give exactly 0 in every score but consensus_entropy, which is then the entropy of one of them."""
    assume(may_be_logits(z[:, :1]))
    one = log_probabilities(torch.from_numpy(z[:, :1]))
    same = one.expand(-1, members, -1)
    for name, function in FUNCTIONS.items():
        if name != "consensus_entropy":
            assert function(same).tolist() == [0.0] * len(z), name
    torch.testing.assert_close(consensus_entropy(same), consensus_entropy(one), rtol=1e-12, atol=1e-14)


def test_nearly_equal_members_keep_their_digits():
    """A disagreement of 1e-10 is found to five digits, where the difference of two entropies has none left."""
    step = 1e-5
    z = torch.tensor([[[0.0, 0.0], [step, -step]]], dtype=torch.float64)
    # to second order BALD is the variance of the logit difference over 2, times p (1 - p)
    assert bald(log_probabilities(z)).item() == pytest.approx((2 * step) ** 2 / 4 / 2 / 4, rel=1e-5, abs=0)
    assert variance(log_probabilities(z)).item() == pytest.approx(2 * (step / 4) ** 2, rel=1e-5, abs=0)


@settings(deadline=None, max_examples=60)
@given(samples)
def test_scores_stay_in_their_range(z):
    """Nothing is negative; BALD and vote entropy are at most min(log k, log c), BALD never above consensus entropy."""
    log_probs = log_probabilities(torch.from_numpy(z))
    _, members, classes = z.shape
    highest = min(math.log(members), math.log(classes)) + 1e-12
    limits = {"bald": highest, "vote_entropy": highest, "consensus_entropy": math.log(classes) + 1e-12}
    for name, function in FUNCTIONS.items():
        assert function(log_probs).min() >= 0, name
        assert function(log_probs).max() <= limits.get(name, 1), name
    assert (bald(log_probs) <= consensus_entropy(log_probs) + 1e-12).all()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=5))
def test_members_of_zeros_and_ones(votes):
    """Members with probabilities 0 and 1 give no NaN, and make bald, consensus_entropy and vote_entropy equal."""
    p = torch.nn.functional.one_hot(torch.tensor(votes), 4).double()
    found = member_scores(p.log(), FUNCTIONS)
    for name, expected in member_scores_of(p.numpy()).items():
        np.testing.assert_allclose(found.scores[name].numpy(), expected, rtol=1e-6, atol=1e-7, err_msg=name)
    for function in (consensus_entropy, vote_entropy):
        torch.testing.assert_close(function(p.log()), bald(p.log()), rtol=1e-14, atol=1e-15)


@settings(deadline=None, max_examples=40)
@given(samples, st.randoms(use_true_random=False))
def test_permuting_rows_members_and_classes(z, random):
    """Permuting rows permutes the scores exactly; permuting members or classes changes nothing but rounding."""
    log_probs = log_probabilities(torch.from_numpy(z))
    rows, members, classes = (random.sample(range(size), size) for size in z.shape)
    for name, function in FUNCTIONS.items():
        assert torch.equal(function(log_probs[rows]), function(log_probs)[rows]), name
        if name not in ("vote_entropy", "variation_ratio"):  # a tied member votes for its lowest class
            torch.testing.assert_close(function(log_probs[:, :, classes]), function(log_probs), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(function(log_probs[:, members]), function(log_probs), rtol=1e-9, atol=1e-12)


def test_a_row_scores_the_same_in_any_company():
    """Every bit of a score is the row's own: in a block of 1 or of thousands, over several blocks, in any memory order."""
    z = torch.randn(3001, 13, 11, generator=torch.Generator().manual_seed(2)) * 3
    log_probs = log_probabilities(z)
    whole = member_scores(log_probs, FUNCTIONS)
    copy = member_scores(log_probs.contiguous(), FUNCTIONS)
    some = [0, 1, 7, 1832, 1833, 3000]
    for row in some:
        assert torch.equal(log_probabilities(z[row : row + 1]), log_probs[row : row + 1])
        alone = member_scores(log_probs[row : row + 1], FUNCTIONS)
        for name in FUNCTIONS:
            assert alone.scores[name].item() == whole.scores[name][row].item() == copy.scores[name][row].item(), name
        assert torch.equal(alone.log_mean[0], whole.log_mean[row])
    np.testing.assert_allclose(bald(log_probs).numpy(), member_scores_of(softmax(z.double().numpy()))["bald"], rtol=1e-4, atol=1e-7)


def test_what_the_members_say_together():
    """log_mean is the logarithm of the mean probability; prediction its top class, the lowest at a tie; confidence its probability."""
    found = member_scores(members_of(THREE, [(0.2, 0.4, 0.4), (0.4, 0.3, 0.3), (0.1, 0.0, 0.9)]), [])
    assert found.scores == {}
    mean = torch.tensor([[1.4, 1.2, 0.4], [0.7, 0.7, 1.6]]) / 3
    torch.testing.assert_close(found.log_mean, mean.log())
    assert found.prediction.tolist() == [0, 2]
    torch.testing.assert_close(found.confidence, mean.amax(dim=1))
    assert [found.prediction.dtype, found.confidence.dtype, found.log_mean.dtype] == [torch.int32, torch.float32, torch.float32]
    assert member_scores(members_of(TWO), []).prediction.item() == 0
    scores = logit_scores(member_scores(members_of(THREE), []).log_mean).scores
    assert scores["entropy"].item() == pytest.approx(0.990835, abs=6e-7)


def test_the_disagreeing_row_scores_higher():
    """Higher means label sooner, for every one of the scores."""
    rows = [[(0.9, 0.1)] * 3, [(0.9, 0.1), (0.9, 0.1), (0.3, 0.7)], [(0.9, 0.1), (0.1, 0.9), (0.1, 0.9)]]
    for name, function in FUNCTIONS.items():
        first, second, third = function(members_of(*rows))
        assert first < second, name
        assert second < third or name in ("vote_entropy", "variation_ratio"), name


def test_bad_rows_come_out_as_nan():
    """A member that holds NaN or +inf gives NaN in every score of its row, and of no other."""
    log_probs = members_of(TWO, TWO, TWO)
    log_probs[1, 1, 0], log_probs[2, 0, 1] = math.nan, math.inf
    found = member_scores(log_probs, FUNCTIONS)
    for name in FUNCTIONS:
        assert found.scores[name].isnan().tolist() == [False, True, True], name
    assert found.confidence.isnan().tolist() == [False, True, True]


def test_inputs_stay_as_they_were():
    """Log-probabilities are never written to, in whatever order they lie in memory, and need no gradient."""
    for log_probs in (members_of(TWO, TWO), log_probabilities(members_of(TWO, TWO)), members_of(TWO)):
        before = log_probs.clone()
        found = member_scores(log_probs.requires_grad_(), FUNCTIONS)
        assert torch.equal(log_probs, before)
        assert not any(values.requires_grad for values in found.scores.values())


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_inference_mode_change_nothing(threads):
    """Blocks are shared out among threads, in inference mode too, whose tensors may not be written to outside of it."""
    logits = torch.randn(9000, 3, 20, generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    expected = member_scores(log_probabilities(logits), FUNCTIONS).scores
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            found = member_scores(log_probabilities(logits.clone()), FUNCTIONS).scores
            one = bald(log_probabilities(logits, 2.0))
    finally:
        torch.set_num_threads(before)
    for name, scores in expected.items():
        assert torch.equal(scores, found[name])
    assert torch.equal(one, bald(log_probabilities(logits, 2.0)))


def test_no_rows_give_no_scores():
    """An empty block is a block."""
    nothing = log_probabilities(torch.zeros(0, 3, 4))
    found = member_scores(nothing, FUNCTIONS)
    assert {values.shape for values in found.scores.values()} == {(0,)}
    assert found.log_mean.shape == (0, 4)
    assert bald(nothing).shape == (0,)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        (torch.zeros(3, 2), r"shape \(3, 2\)"),
        (torch.zeros(3, 0, 2), r"shape \(3, 0, 2\).*at least one member"),
        (torch.zeros(3, 2, 1), r"two classes"),
        (torch.zeros(3, 2, 2, dtype=torch.int64), r"torch\.int64"),
        (np.zeros((3, 2, 2), dtype=np.int32), r"torch\.int32"),
    ],
)
def test_what_is_not_members_is_refused(given_, message):
    """Anything but a floating (rows, members, classes) tensor is an error that says what came."""
    for function in (*FUNCTIONS.values(), log_probabilities):
        with pytest.raises(QueryError, match=message):
            function(given_)


def test_what_is_no_log_probability_is_refused():
    """Probabilities or logits in the place of log-probabilities are an error that names the row and the remedy."""
    good = members_of(TWO, TWO)
    for wrong in (good.exp(), good + 1):
        with pytest.raises(QueryError, match=r"row 1 sum to .*expected 1; give log-probabilities"):
            bald(torch.cat([good[:1], wrong[1:]]))
    assert bald(good.bfloat16()).tolist() == pytest.approx([0.368064] * 2, abs=2e-2)


def test_unknown_names_are_refused():
    """A name that is no score of members is an error that proposes one."""
    with pytest.raises(QueryError, match=r"'vote_entrop' .*did you mean 'vote_entropy'"):
        member_scores(members_of(TWO), ["bald", "vote_entrop"])


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_temperature_must_be_positive(temperature):
    """A temperature that is no finite number above 0 is refused."""
    with pytest.raises(QueryError, match="temperature"):
        log_probabilities(torch.zeros(2, 2, 2), temperature)


@pytest.mark.parametrize("layout", ["natural", "rows innermost"])
def test_many_classes(layout):
    """3,000 classes: the scores of the textbook, a row scored as it is alone, and blocks that don't grow with the classes."""
    z = torch.randn(40, 6, 3000, generator=torch.Generator().manual_seed(0)).double() * 2
    log_probs = torch.log_softmax(z, 2) if layout == "natural" else log_probabilities(z)
    expected = member_scores_of(softmax(z.numpy()))
    found = member_scores(log_probs, FUNCTIONS)
    for name, function in FUNCTIONS.items():
        scores = function(log_probs)
        np.testing.assert_allclose(scores.numpy(), expected[name], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.scores[name].numpy(), expected[name], rtol=1e-6, atol=1e-9)
        for row in (0, 7, 39):
            assert function(log_probs[row : row + 1].clone()).item() == scores[row].item()
    for classes in (10, 1000, 11_000):
        step = 10 * classes if layout == "natural" else 1
        samples = SimpleNamespace(shape=(4000, 10, classes), stride=lambda _, step=step: step, device=torch.device("cpu"))
        longest = max(rows.stop - rows.start for rows in row_blocks(samples))
        assert longest * 10 * classes <= max(1 << 18, (1 if layout == "natural" else 16) * 10 * classes)

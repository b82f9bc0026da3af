"""Deciding row by row: the written definitions on a short stream, the promised figures on a long one, chunks, resumes, bad input."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import raystream as rs
from raystream.errors import QueryError
from raystream.loop.streams.managers import MANAGERS, Draws, RecentRows
from raystream.query.simulate import BY_UNCERTAINTY, Manager
from raystream.selection.hashing import philox

SCORES = np.array([((37 * i) % 101) / 202 for i in range(1, 31)])
VECTORS = np.array([(17 * i % 23, 11 * i % 19) for i in range(1, 31)])
TIED = np.array([0.25 if i % 5 in (0, 2, 3) else SCORES[i - 1] for i in range(1, 31)])
GAPS = np.array([math.nan if i in (2, 8, 9) else SCORES[i - 1] for i in range(1, 31)])
WRITTEN = [
    ("fixed", SCORES, False, {}, [5, 8, 16, 19, 27, 30]),
    ("fixed", SCORES, True, {}, [5, 8, 16, 19, 27, 30]),
    ("variable", SCORES, False, {}, [1, 2, 4, 5, 7, 10, 16, 19, 24, 30]),
    ("variable", SCORES, True, {}, [1, 7, 12, 16, 21, 27]),
    ("quantile", SCORES, False, {}, [1, 2, 5, 8, 13, 16, 19, 27, 30]),
    ("quantile", SCORES, True, {}, [1, 8, 16, 19, 27, 30]),
    ("quantile", np.full(30, 0.3), False, {}, [*range(1, 14), 16, 21, 26]),
    ("quantile", np.full(30, 0.3), True, {}, [1, 6, 11, 16, 21, 26]),
    ("quantile", TIED, False, {}, [1, 2, 3, 5, 7, 8, 10, 12, 13, 15, 16, 19]),
    ("quantile", TIED, True, {}, [1, 7, 12, 16, 21]),
    ("quantile", GAPS, False, {}, [1, 4, 5, 10, 13, 16, 19, 27, 30]),
    ("quantile", GAPS, True, {}, [1, 10, 16, 19, 27, 30]),
    ("quantile", SCORES, False, {"budget": 0.1, "window": 100}, [1, 2, 5, 8, 19, 30]),
    ("quantile", SCORES, True, {"budget": 0.1, "window": 100}, [1, 19, 30]),
    ("density", SCORES, False, {}, [2, 5, 8, 13, 16, 19, 27, 30]),
    ("density", SCORES, True, {}, [2, 8, 13, 16, 27, 30]),
]


def sampler(manager, strict=True, **changes):
    return rs.StreamSampler(manager, **{"budget": 0.2, "strict": strict, "window": 20, "step": 0.1, "classes": 2, **changes})


@pytest.mark.parametrize(("manager", "scores", "strict", "changes", "expected"), WRITTEN)
def test_decisions_are_those_that_the_definitions_give(manager, scores, strict, changes, expected):
    """On 30 rows, worked out apart from this code."""
    found = sampler(manager, strict, **changes).decide(scores, VECTORS if manager == "density" else None)
    assert (np.flatnonzero(found) + 1).tolist() == expected


@pytest.mark.parametrize(("strict", "threshold"), [(False, 0.561550), (True, 0.707348)])
def test_the_threshold_of_variable_stays_while_nothing_may_be_spent(strict, threshold):
    """Its value after the same rows."""
    used = sampler("variable", strict)
    used.decide(SCORES)
    assert used.state["threshold"] == pytest.approx(threshold, abs=1e-6)


def test_typical_rows():
    """All but rows 1, 3 and 7 are nearer to some row than any before them."""
    rows = RecentRows(20)
    assert [i + 1 for i, vector in enumerate(VECTORS.astype(float)) if not rows.add(vector)] == [1, 3, 7]


def literal_typical(vectors, window):
    """The same, written as it reads: nothing is kept but the rows."""
    least, found = {}, []
    for i, vector in enumerate(vectors):
        others = range(max(0, i - window + 1), i)
        distances = {j: float(((vectors[j] - vector) ** 2).sum()) for j in others}
        found.append(any(distances[j] < least[j] for j in others))
        for j in others:
            least[j] = min(least[j], distances[j])
        least[i] = min(distances.values(), default=math.inf)
    return found


@given(st.integers(2, 6), st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), max_size=30))
def test_typical_rows_past_the_window(window, points):
    """Rows that left the window count no more, whatever of them is ties."""
    vectors = np.array(points, dtype=float).reshape(-1, 2)
    rows = RecentRows(window)
    assert [rows.add(vector) for vector in vectors] == literal_typical(vectors, window)


# share, most in any 100, in the first 300, mean score of the labelled; what was measured, with room for another draw
LONG = [
    ("fixed", False, 0.0864, 14, 28, 0.475),
    ("variable", False, 0.1034, 20, 41, 0.373),
    ("variable", True, 0.1000, 11, 30, 0.373),
    ("split", True, 0.1000, 12, 30, 0.368),
    ("random", False, 0.1006, 21, 33, 0.247),
    ("quantile", True, 0.0999, 16, 29, 0.470),
    ("density", True, 0.0999, 16, 29, 0.443),
]


@pytest.mark.parametrize(("manager", "strict", "share", "most", "first", "mean"), LONG)
def test_long_streams(manager, strict, share, most, first, mean):
    """20,000 scores uniform on [0, 0.5], a tenth to be labelled: the promised share, evenness and uncertainty."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 0.5, 20_000)
    vectors = rng.standard_normal((20_000, 8)) if manager == "density" else None
    found = rs.StreamSampler(manager, 0.1, strict, classes=2).decide(scores, vectors)
    assert found.mean() == pytest.approx(share, abs=0.005)
    assert np.convolve(found, np.ones(100), "valid").max() <= most + 4
    assert found[:300].sum() == pytest.approx(first, abs=9)
    assert scores[found].mean() == pytest.approx(mean, abs=0.025)


def test_the_default_holds_on_scores_that_jump_or_are_tied():
    """The best rows of each level are found, where a threshold on values finds those of the highest alone."""
    rng = np.random.default_rng(1)
    jumping = np.concatenate([rng.uniform(low, low + 0.1, 1000) for low in (0.3, 0.0, 0.4, 0.1, 0.2)])
    found = rs.StreamSampler(budget=0.1).decide(jumping)
    assert found.mean() == pytest.approx(0.1, abs=0.005)
    tied = rng.choice([0.0, 0.2, 0.5], 5000, p=[0.7, 0.2, 0.1])
    found = rs.StreamSampler(budget=0.1).decide(tied)
    assert tied[found].mean() > 0.4


chunks = st.lists(st.integers(1, 40), min_size=1, max_size=12)
everything = st.sampled_from(sorted(MANAGERS))
few_scores = st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.3, math.nan, math.inf])), max_size=120).map(np.array)


@given(everything, st.booleans(), few_scores, chunks, st.integers(0, 3))
def test_the_same_decisions_for_any_chunks_and_after_any_resume(manager, strict, scores, sizes, seed):
    """At each cut the state goes through JSON into a new sampler."""
    vectors = np.stack([np.cos(np.arange(len(scores))), np.arange(len(scores)) % 7.0], axis=1)
    given_ = (lambda part: vectors[part]) if manager == "density" else (lambda part: None)
    scores = np.where(np.isinf(scores), np.nan, scores)
    options = {"manager": manager, "budget": 0.2, "strict": strict, "seed": seed, "classes": 3, "window": 7, "step": 0.1}
    whole = rs.StreamSampler(**options).decide(scores, given_(slice(None)))
    found, at, state = [], 0, None
    for size in [*sizes, len(scores)]:
        used = rs.StreamSampler(**options, state=state)
        part = slice(at, at + size)
        found += used.decide(scores[part], given_(part)).tolist()
        state, at = json.loads(json.dumps(used.state)), at + size
    assert found == whole.tolist()
    one = rs.StreamSampler(**options)
    assert [bool(one.decide(scores[i : i + 1], given_(slice(i, i + 1)))[0]) for i in range(len(scores))] == whole.tolist()


@given(everything, st.fractions(Fraction(1, 40), 1), st.lists(st.floats(0, 1), max_size=150))
def test_a_strict_share_exceeds_the_budget_by_less_than_one_row(manager, budget, scores):
    """For every number of rows."""
    used = rs.StreamSampler(manager, budget, classes=2, window=10)
    found = used.decide(scores, np.arange(len(scores))[:, None] if manager == "density" else None)
    for seen, labelled in enumerate(np.cumsum(found).tolist(), 1):
        assert labelled < budget * seen + 1


def test_the_budget_is_the_decimal_as_written():
    """0.1 is a tenth, not the binary number beside it: the eleventh row may be the second, the tenth may not."""
    found = rs.StreamSampler("variable", 0.1).decide(np.full(11, 1.0))
    assert np.flatnonzero(found).tolist() == [0, 10]


def test_rows_without_a_finite_score_change_nothing():
    """Neither the counts nor the state; nor does an embedding that isn't finite."""
    used = rs.StreamSampler(budget=0.5)
    used.decide(SCORES)
    before = used.state
    assert not used.decide([math.nan, math.inf, -math.inf]).any()
    assert used.state == before
    dense = rs.StreamSampler("density", 0.5)
    dense.decide(SCORES, VECTORS)
    before = dense.state
    assert not dense.decide([0.4, 0.4], [[math.nan, 1], [math.inf, 2]]).any()
    assert dense.state == before
    assert dense.seen == 30


def test_draws_go_by_the_number_of_the_row():
    """Past a block of draws, too: those of Philox at that number, between 0 and 1."""
    draws = Draws(7, "split")
    for number in (1, 511, 512, 513, 5):
        words = philox(7, "stream split", number, 1)[0]
        assert draws.at(number) == tuple(int(word >> np.uint64(11)) / 2**53 for word in words)


def test_a_row_that_must_not_be_labelled_counts_as_seen():
    """It is in the window and in n; the threshold of `variable` stays."""
    used = rs.StreamSampler("variable", 0.5, False)
    asked = []
    found = used.decide_all(np.full(4, 0.9), barred=lambda row: asked.append(row) or row < 2)
    assert [decision.chosen for decision in found] == [False, False, True, True]
    assert asked == [0, 1, 2, 3]
    assert [decision.threshold for decision in found] == [1, 1, 1, 0.99]
    assert (used.seen, used.labelled) == (4, 2)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"manager": "quantil"}, "did you mean 'quantile'?"),
        ({"budget": 0}, "budget is 0; expected the share"),
        ({"budget": 1.5}, "above 0 and at most 1"),
        ({"budget": "a lot"}, "budget is 'a lot'"),
        ({"manager": "fixed"}, "manager fixed needs the number of classes"),
        ({"window": 1}, "window is 1"),
        ({"step": 1.0}, "step is 1.0"),
        ({"state": {}}, "state is none of a StreamSampler's"),
        ({"state": rs.StreamSampler(budget=0.2).state}, "differs in budget (1/5 then, 1/20 now)"),
    ],
)
def test_arguments_that_are_wrong(options, told):
    """One sentence, the name of the argument in it."""
    with pytest.raises(QueryError) as raised:
        rs.StreamSampler(**options)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("manager", "scores", "embeddings", "told"),
    [
        ("quantile", [[0.1]], None, "scores have shape (1, 1); expected (n,)"),
        ("quantile", ["a"], None, "scores hold what is no number"),
        ("variable", [0.1, 1.5], None, "the score of row 1 is 1.5; manager variable compares least_confidence"),
        ("density", [0.1], None, "needs the rows' embeddings"),
        ("density", [0.1], [[1.0], [2.0]], "expected (1, d)"),
    ],
)
def test_rows_that_are_wrong(manager, scores, embeddings, told):
    """Nothing of them is decided."""
    used = rs.StreamSampler(manager)
    with pytest.raises(QueryError) as raised:
        used.decide(scores, embeddings)
    assert told in str(raised.value)
    assert used.seen == 0


def test_embeddings_of_another_width_are_refused():
    """Those of another model can't be compared with those before."""
    used = rs.StreamSampler("density")
    used.decide([0.1], [[1.0, 2.0]])
    with pytest.raises(QueryError, match="have 3 columns, those before had 2"):
        used.decide([0.1], [[1.0, 2.0, 3.0]])


def test_the_spec_names_the_managers_that_there_are():
    """And those that need a score between 0 and 1."""
    assert set(Manager.__args__) == set(MANAGERS)
    assert set(MANAGERS) > BY_UNCERTAINTY

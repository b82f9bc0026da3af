"""Drift of a stream's scores: against scipy, found where there is some, not where there is none, whatever the chunks."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from raystream.loop.streams.decisions import LIMIT, WINDOW, Drift, kolmogorov_smirnov

samples = st.lists(st.sampled_from(np.linspace(0, 1, 12).tolist()), min_size=1, max_size=80).map(np.array)


@given(samples, samples)
def test_distance_and_its_limit(first, second):
    """The distance at each value, the limit as scipy has it; ties included."""
    distance, p_value = kolmogorov_smirnov(first, second)
    assert distance == pytest.approx(max(abs((first <= at).mean() - (second <= at).mean()) for at in [*first, *second]))
    scaled = distance * np.sqrt(len(first) * len(second) / (len(first) + len(second)))
    assert p_value == pytest.approx(stats.kstwobign.sf(scaled), abs=1e-10)


def literal_page_hinkley(scores, tolerated):
    """Sums of deviations above their least value, and below their largest, as the test is written."""
    deviation = np.std(scores[:WINDOW])
    means = np.cumsum(scores) / np.arange(1, len(scores) + 1)
    moved = (scores - means)[WINDOW:] / deviation
    up, down = np.cumsum(moved - tolerated), np.cumsum(moved + tolerated)
    return up[-1] - min(0, up.min()), max(0, down.max()) - down[-1]


def test_page_hinkley_as_it_is_written():
    """Both ways."""
    scores = np.random.default_rng(0).normal(0.3, 0.1, 3000)
    for sign in (1, -1):
        drift = Drift()
        drift.add((sign * np.append(scores, scores[:800] + 0.03)).tolist())
        up, down = literal_page_hinkley(sign * np.append(scores, scores[:800] + 0.03), 0.2)
        assert (drift.up, drift.down) == pytest.approx((up, down), abs=1e-6)


def test_a_stream_that_stays_as_it_is_has_no_drift():
    """Whatever its distribution; constant scores, too."""
    rng = np.random.default_rng(1)
    for scores in (rng.uniform(0, 0.5, 30_000), rng.exponential(1, 30_000), np.full(3000, 0.25)):
        drift = Drift()
        drift.add(scores.tolist())
        assert drift.warnings == []
        assert drift.figures["page_hinkley"] < LIMIT / 2


def test_what_moved_is_said_with_numbers():
    """The mean, by Page-Hinkley, soon after it moved; the spread alone, by Kolmogorov and Smirnov."""
    rng = np.random.default_rng(2)
    drift = Drift()
    drift.add(np.append(rng.normal(0.3, 0.1, 5000), rng.normal(0.4, 0.1, 1000)).tolist())
    assert 5000 < drift.since < 5200
    assert f"at row {drift.since:,} of this model's" in drift.warnings[0]
    drift = Drift()
    drift.add(np.append(rng.normal(0.3, 0.1, 5000), rng.normal(0.3, 0.2, 1000)).tolist())
    assert drift.since is None
    assert drift.figures["kolmogorov_smirnov"] > 0.1
    assert "distance of Kolmogorov and Smirnov" in drift.warnings[0]


def test_too_few_rows_tell_nothing():
    """Before a window is full, and before there are two."""
    drift = Drift()
    drift.add([0.1] * (WINDOW - 1))
    assert drift.figures["page_hinkley"] is None
    drift.add([0.1] * 2)
    assert drift.figures["page_hinkley"] == 0
    assert drift.figures["kolmogorov_smirnov"] is None


@settings(max_examples=20)
@given(st.lists(st.integers(1, 700), min_size=1, max_size=6))
def test_the_same_for_any_chunks_and_after_any_resume(sizes):
    """The state goes through JSON."""
    scores = np.random.default_rng(3).normal(size=sum(sizes)).tolist()
    whole, parts, at = Drift(), Drift(), 0
    whole.add(scores)
    for size in sizes:
        parts.add(scores[at : at + size])
        parts, at = Drift.of(json.loads(json.dumps(parts.state))), at + size
    assert parts == whole

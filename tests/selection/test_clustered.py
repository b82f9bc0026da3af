"""k-means and what goes by it over rows that are not gathered: the same to the last bit as over rows in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import data, distances_to

from raystream.errors import DataError, QueryError
from raystream.selection import ArrayPart, Candidates, LocalShards, bounds, choose
from raystream.selection.clustered import HeldRows, Spread
from raystream.selection.clusters import fit_centres
from raystream.selection.lloyd import BLOCK
from raystream.selection.strategies.k_means import cluster

SHARDS = (1, 2, 7, 64)
ROOM = 1 << 40


def spread(x, shards=1, *, cuts=(), memory=ROOM, piece=1 << 30, metric="euclidean"):
    """The rows in parts that end at `cuts`, of which every other one is named by positions, in so many stretches."""
    parts = np.split(x, sorted(cuts))
    padded = [np.repeat(part, 2, axis=0) if i % 2 else part for i, part in enumerate(parts)]
    rows = [np.arange(0, len(part), 2) if i % 2 else None for i, part in enumerate(padded)]
    held = LocalShards([ArrayPart(part) for part in padded], rows, metric=metric, memory=piece, shards=shards)
    return Spread(held, memory, "k_means")


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(SHARDS),
    st.lists(st.integers(0, 3 * BLOCK + 77), max_size=4),
    st.sampled_from(["normal", "clustered", "duplicated", "offset", "counts"]),
    st.sampled_from([np.float16, np.float32]),
    st.sampled_from(["euclidean", "cosine"]),
    st.sampled_from([0, 1 << 30]),
)
def test_rows_anywhere_answer_as_rows_in_memory(shards, cuts, kind, dtype, metric, piece):
    """Distances, nearest centres and iterations, with weights and without, encoded rows kept and not, past every block."""
    stored = data(kind, 3 * BLOCK + 77, 5, 0).astype(dtype)
    away = spread(stored, shards, cuts=cuts, piece=piece, metric=metric)
    x = away.take()
    here = HeldRows(x)
    assert (len(away), away.width, away.largest) == (len(here), here.width, here.largest)
    rng = np.random.default_rng(0)
    some = np.sort(rng.choice(len(x), 50, replace=False))
    centres, encoding = x[some].copy(), here.encoding()
    np.testing.assert_array_equal(away.take(some), here.take(some))
    assert vars(away.encoding()).keys() == vars(encoding).keys()
    np.testing.assert_array_equal(away.encoding().shift, encoding.shift)
    np.testing.assert_array_equal(away.squared_to(centres[0]), here.squared_to(centres[0]))
    nearest = here.nearest(centres)
    np.testing.assert_array_equal(away.nearest(centres), nearest)
    np.testing.assert_array_equal(away.squared_to_own(centres, nearest), here.squared_to_own(centres, nearest))
    for weight in (np.ones(len(x)), rng.random(len(x))):
        found, expected = away.iterate(weight, encoding, centres, 3), here.iterate(weight, encoding, centres, 3)
        np.testing.assert_array_equal(found.centres, expected.centres)
        assert found.gained == expected.gained
    gone = rng.random(len(x)) < 0.5
    squared = distances_to(x, centres[0])
    expected = np.lexsort((np.arange(len(x)), squared))
    np.testing.assert_array_equal(away.closest(centres[0], gone, 20)[1], expected[~gone[expected]][:20])


@pytest.mark.parametrize("count", [30, 5000])
def test_rows_that_are_encoded_find_the_same_centres(count):
    """Past several blocks, and with more centres than are compared at once; what was encoded is let go of with the look."""
    x = data("clustered", 50_001, 3, 0)
    centres = x[:: len(x) // count][:count].copy()
    centres[-1] = centres[0]
    here = HeldRows(x)
    here.points(np.ones(len(x)), here.encoding())
    assert here._points is not None
    np.testing.assert_array_equal(here.nearest(centres), HeldRows(x).nearest(centres))
    assert here._points is None


def test_centres_without_rows_and_tiny_numbers():
    """Centres that many copies leave without rows move to the same rows; numbers whose squares vanish are scaled, wherever they are."""
    x = np.repeat(data("normal", 30, 3, 0), 400, axis=0)
    rng = np.random.default_rng(0)
    weight = rng.integers(0, 3, len(x)).astype(np.float64)
    centres = x[::300].copy()
    here = HeldRows(x).iterate(weight, HeldRows(x).encoding(), centres, 4)
    for shards in SHARDS:
        away = spread(x, shards, cuts=(100, 5000))
        np.testing.assert_array_equal(away.iterate(weight, away.encoding(), centres, 4).centres, here.centres)
    tiny = np.ldexp(data("clustered", 9000, 3, 0), -100)
    expected = fit_centres(tiny, np.ones(9000), 12, 0, 6, fit_on=3000)
    assert len(np.unique(expected, axis=0)) == 12
    for shards in SHARDS:
        np.testing.assert_array_equal(fit_centres(spread(tiny, shards, cuts=(4000,)), np.ones(9000), 12, 0, 6, fit_on=3000), expected)


@pytest.mark.parametrize("strategy", ["k_means", "cluster_margin", "typiclust"])
@pytest.mark.parametrize("kind", ["normal", "copies"])
def test_strategies_beyond_memory_choose_the_same(monkeypatch, strategy, kind):
    """From 1, 2, 7 and 64 stretches as from rows in memory: rows, gains and facts, near-duplicates and constraints included."""
    monkeypatch.setattr("raystream.selection.clusters._POINTS", 3000)
    rng = np.random.default_rng(3)
    x = data("normal", 9000, 4, 1)
    if kind == "copies":  # most rows are one of 60, so that clusters are left without rows of their own
        x = np.where(rng.random(len(x))[:, None] < 0.9, x[rng.integers(0, 60, len(x))], x)
    score = np.where(rng.random(len(x)) < 0.2, 0, rng.random(len(x)))
    options = {"strategy": strategy, "budget": 40, "seed": 5, "near_duplicates": False if kind == "copies" else 0.99}
    if strategy == "cluster_margin":
        options["args"] = {"clusters": 40}  # of the default, 2 x budget, the sample is more than half of all rows

    def chosen(shards, memory):
        held = LocalShards([ArrayPart(part) for part in np.split(x, (1000, 1001, 5000))], memory=memory, shards=shards)
        return choose(Candidates(score=score, shards=held, labelled=x[:3]), memory=memory, **options)

    expected = chosen(1, ROOM)
    assert len(expected.rows) == 40
    for shards in SHARDS:
        found = chosen(shards, 100_000)
        np.testing.assert_array_equal(found.rows, expected.rows)
        np.testing.assert_array_equal(found.gain, expected.gain)
        assert found.facts == expected.facts


def test_two_levels_threads_and_units_change_nothing(monkeypatch):
    """Coarse clusters first and centres within them, from any number of threads, stretches and from products in either precision."""
    monkeypatch.setattr("raystream.selection.clusters._POINTS", 3000)
    x = data("clustered", 9000, 4, 0)
    before = torch.get_num_threads()
    expected = cluster(LocalShards.of_array(x), 30, seed=1, one_level=10, memory=ROOM).rows
    try:
        for threads, shards, units in ((1, 1, True), (4, 7, False), (2, 64, True)):
            torch.set_num_threads(threads)
            monkeypatch.setattr(bounds, "has_bfloat16_units", lambda units=units: units)
            held = LocalShards.of_array(x, shards=shards)
            np.testing.assert_array_equal(cluster(held, 30, seed=1, one_level=10, memory=100_000).rows, expected)
    finally:
        torch.set_num_threads(before)


def test_what_is_too_much_to_gather_is_said(monkeypatch):
    """A sample, or a cluster, that doesn't fit memory: a sentence that says what to do; NaN is named with its row."""
    monkeypatch.setattr("raystream.selection.clusters._POINTS", 3000)
    x = data("clustered", 9000, 4, 0)
    candidates = Candidates(score=np.ones(9000), shards=LocalShards.of_array(x))
    for strategy, memory, args, says in (
        ("k_means", 40_000, {}, "k_means looks at 3000 of its 9000 candidates at a time, which takes 48000 bytes, but `memory` is 40000"),
        ("typiclust", 100_000, {"clusters": 1}, "typiclust looks at 9000 of its 9000 candidates at a time, which takes 144000 bytes"),
    ):
        with pytest.raises(QueryError, match=says):
            choose(candidates, strategy=strategy, budget=10, memory=memory, args=args, near_duplicates=False)
    x[7000, 2] = np.nan
    with pytest.raises(DataError, match="rows 7000"):
        Spread(LocalShards.of_array(x, shards=7), 100_000, "k_means")

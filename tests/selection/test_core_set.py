from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import KINDS, data, distances_to, greedy, pools, unit

from raystream.errors import DataError, QueryError
from raystream.selection import ArrayPart, LocalShards, core_set, farthest_first
from raystream.selection.constraints import Constraints, Quota
from raystream.selection.lazy_bounds import Gain
from raystream.selection.repeats import NearDuplicates, cosines
from raystream.selection.strategies.core_set import covering_radius, score_weights

quick = settings(max_examples=60, deadline=None)
precisions = pytest.mark.parametrize("precision", ["float32", "bfloat16"])


def chosen(x, k, *, shards=1, block=64, memory=1 << 30, **options):
    return farthest_first(LocalShards.of_array(x, shards=shards, block=block, memory=memory), k, **options)


@quick
@given(pools(), st.sampled_from([1, 2, 7, 64]), st.sampled_from(["float32", "bfloat16"]), st.integers(1, 70), st.booleans())
def test_order_is_that_of_sequential_float64_greedy(pool, shards, precision, leaders, cached):
    """Whatever the data, the sharding, the precision of the bounds and the number of leaders, rows come in float64 greedy's order."""
    x, k = pool
    result = chosen(x, k, shards=shards, block=5, memory=1 << 30 if cached else 0, precision=precision, leaders=leaders)
    rows, gain, distance = greedy(x, k)
    np.testing.assert_array_equal(result.rows, rows)
    np.testing.assert_array_equal(result.distance, distance)
    np.testing.assert_allclose(result.gain, gain, rtol=1e-12)


@precisions
@pytest.mark.parametrize("kind", KINDS)
def test_order_holds_on_larger_data(kind, precision):
    """Several passes, blocks and refinements later the order is still that of float64 greedy."""
    x = data(kind, 1500, 24, 1)
    result = chosen(x, 120, shards=3, leaders=48, block=100, precision=precision)
    np.testing.assert_array_equal(result.rows, greedy(x, 120)[0])


@pytest.mark.parametrize("kind", ["unit", "duplicated"])
def test_any_threads_and_stretches_past_every_block(kind):
    """More rows, centres and leaders than are looked at a time, by 1, 2 and 4 threads, in 1, 2 and 7 stretches: float64 greedy's order."""
    x, threads = data(kind, 6000, 9, 3), torch.get_num_threads()
    labelled = x[:1100] + np.float32(0.5)
    expected = greedy(x, 150, labelled=labelled)[0]
    try:
        for count, shards, leaders, precision in [(1, 7, 16384, "float32"), (2, 1, 1500, "bfloat16"), (4, 2, 16384, "bfloat16")]:
            torch.set_num_threads(count)
            found = chosen(x, 150, labelled=labelled, shards=shards, leaders=leaders, precision=precision)
            np.testing.assert_array_equal(found.rows, expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", ["normal", "one_hot", "duplicated", "equal"])
def test_many_tied_leaders(kind):
    """A thousand returned rows with equal gains are told apart by row, within one pass."""
    x = data(kind, 1000, 10, 2)
    result = chosen(x, 400)
    np.testing.assert_array_equal(result.rows, greedy(x, 400)[0])
    assert result.passes == 1


@quick
@given(pools(), st.integers(0, 6), st.floats(0.0, 3.0), st.sampled_from([1, 2, 7]), st.integers(0, 10**6))
def test_weights_with_zeros_and_labelled_rows(pool, m, weight, shards, seed):
    """score^weight * distance decides, zero scores included, and labelled rows are the first centres."""
    x, k = pool
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 4, len(x)).astype(np.float32) / 3
    labelled = x[rng.integers(0, len(x), m)]
    factor = score_weights(score, weight, len(x))
    result = chosen(x, k, shards=shards, block=7, leaders=8, gain=Gain(factor), labelled=labelled)
    rows, gain, distance = greedy(x, k, weight=factor, labelled=labelled)
    np.testing.assert_array_equal(result.rows, rows)
    np.testing.assert_allclose(result.gain, gain, rtol=1e-12)
    np.testing.assert_array_equal(result.distance, distance)


@quick
@given(pools(), st.sampled_from([0.3, 0.9, 0.999, 1.0]), st.integers(0, 10**6))
def test_near_duplicates_are_passed_over_and_are_no_centres(pool, threshold, seed):
    """A row too like a chosen or labelled one is skipped for good; the order of the others is unchanged."""
    x, k = pool
    rng = np.random.default_rng(seed)
    labelled = x[rng.integers(0, len(x), 2)]
    result = chosen(
        x, k, leaders=6, labelled=labelled, constraints=Constraints(k, near_duplicates=NearDuplicates(threshold, x.shape[1], labelled))
    )
    rows, _, _ = greedy(x, k, labelled=labelled, blocks=lambda a, b: cosines(a, b) >= threshold)
    np.testing.assert_array_equal(result.rows, rows)


@quick
@given(pools(), st.integers(0, 10**6))
def test_excluded_rows_are_never_chosen(pool, seed):
    """Excluded rows don't come back, are no centres, and everything else does come back."""
    x, k = pool
    exclude = np.flatnonzero(np.random.default_rng(seed).integers(0, 2, len(x))).astype(np.int64)
    np.testing.assert_array_equal(chosen(x, k, exclude=exclude, leaders=4).rows, greedy(x, k, exclude=exclude)[0])


@quick
@given(pools(), st.integers(0, 4), st.integers(1, 70), st.sampled_from([1, 2, 7, 64]), st.integers(0, 10**6))
def test_any_gain_that_shrinks(pool, m, leaders, shards, seed):
    """offset + weight * distance decides, negative offsets and zero weights included, in the order of float64 greedy."""
    x, k = pool
    rng = np.random.default_rng(seed)
    scale = np.sqrt(distances_to(x, x.mean(axis=0)).max()) or 1.0
    weight = rng.integers(0, 3, len(x)) / 2 / scale
    offset = rng.integers(-2, 3, len(x)) / 3
    labelled = x[rng.integers(0, len(x), m)]
    result = chosen(x, k, shards=shards, block=7, leaders=leaders, gain=Gain(weight, offset), labelled=labelled)
    rows, gain, distance = greedy(x, k, weight=weight, offset=offset, labelled=labelled)
    np.testing.assert_array_equal(result.rows, rows)
    np.testing.assert_array_equal(result.distance, distance)
    np.testing.assert_allclose(result.gain, gain, rtol=1e-9, atol=1e-9)


@quick
@given(
    pools(), st.integers(0, 4), st.sampled_from([1, 2, 5, 100]), st.sampled_from([1, 2, 7, 64]), st.integers(1, 70), st.integers(0, 10**6)
)
def test_outliers_are_passed_over(pool, m, outliers, shards, leaders, seed):
    """At each step the first rows in order are passed over and stay candidates; the last one is taken when no more are left."""
    x, k = pool
    rng = np.random.default_rng(seed)
    labelled = x[rng.integers(0, len(x), m)]
    result = chosen(x, k, shards=shards, block=7, leaders=leaders, outliers=outliers, labelled=labelled)
    rows, gain, _ = greedy(x, k, outliers=outliers, labelled=labelled)
    assert len(rows) == min(k, len(x))
    np.testing.assert_array_equal(result.rows, rows)
    np.testing.assert_allclose(result.gain, gain, rtol=1e-12)
    threshold = Constraints(k, near_duplicates=NearDuplicates(0.9, x.shape[1], labelled))
    result = chosen(x, k, leaders=leaders, shards=shards, outliers=outliers, labelled=labelled, constraints=threshold)
    rows, _, _ = greedy(x, k, outliers=outliers, labelled=labelled, blocks=lambda a, b: cosines(a, b) >= 0.9)
    np.testing.assert_array_equal(result.rows, rows)


@precisions
@pytest.mark.parametrize("kind", KINDS)
def test_outliers_on_larger_data(kind, precision):
    """Several passes and refinements later the rows passed over are still those of float64 greedy."""
    x = data(kind, 1000, 16, 4)
    result = chosen(x, 60, shards=3, leaders=24, block=100, precision=precision, outliers=20)
    np.testing.assert_array_equal(result.rows, greedy(x, 60, outliers=20)[0])


def test_outliers_are_not_chosen():
    """Rows far from all others, as many as are passed over, don't come back; without that they come first."""
    x = np.concatenate([data("normal", 200, 4, 0), 100 * np.eye(4, dtype=np.float32)[:3]])
    assert set(range(200, 203)) <= set(core_set(x, 10).tolist())
    assert not set(range(200, 203)) & set(core_set(x, 10, outliers=3).tolist())


@quick
@given(pools(), st.integers(0, 70), st.integers(0, 4), st.sampled_from([1, 7]))
def test_covering_radius_without_the_farthest_rows(pool, outliers, m, shards):
    """The distance of the row that comes after the farthest ones, to the nearest centre or else to the mean."""
    x, _ = pool
    centres = x[:m] + x[-1]
    squared = [distances_to(x, c) for c in centres] or [distances_to(x, x.astype(np.float64).mean(axis=0))]
    expected = np.sort(np.sqrt(np.min(squared, axis=0)))[::-1]
    found = covering_radius(LocalShards.of_array(x, shards=shards), centres, outliers=outliers)
    np.testing.assert_allclose(found, expected[outliers] if outliers < len(x) else 0.0, rtol=1e-12)


def test_a_gain_is_checked():
    """Weights that are negative, or numbers that are not finite or not one a row, are refused by name."""
    x = data("normal", 5, 2, 0)
    with pytest.raises(QueryError, match=r"gain\.weight is negative"):
        chosen(x, 2, gain=Gain(np.array([1.0, 1.0, -1.0, 1.0, 1.0])))
    with pytest.raises(QueryError, match=r"gain\.offset has shape \(5,\), expected \(5,\) finite"):
        chosen(x, 2, gain=Gain(offset=np.full(5, np.nan)))
    with pytest.raises(QueryError, match=r"gain\.weight has shape \(4,\)"):
        chosen(x, 2, gain=Gain(np.ones(4)))
    with pytest.raises(QueryError, match=r"`outliers` is -1"):
        core_set(x, 2, outliers=-1)


def test_the_first_row_obeys_the_constraints():
    """With nothing labelled, a first row that is blocked is passed over as any other."""
    x = data("normal", 200, 3, 0)
    order = greedy(x, 1)[0]
    group = np.zeros(200, dtype=np.int32)
    group[order] = 1
    quota = Quota("split", group, ("a", "b"), np.array([200, 0]), np.array([0, 0]))
    result = chosen(x, 5, constraints=Constraints(5, quotas=(quota,)))
    np.testing.assert_array_equal(result.rows, greedy(x, 5, exclude=order)[0])


@pytest.mark.parametrize("kind", ["normal", "duplicated", "binary"])
def test_float16_cosine_parts_and_positions(kind):
    """Parts of float16, of which only some positions are candidates, in the cosine metric, as if it were one float32 array of unit rows."""
    x = data(kind, 300, 8, 3).astype(np.float16)
    positions = [np.arange(0, 100, 3), None, np.arange(5, 90)]
    parts = [ArrayPart(part) for part in np.split(x, [100, 180])]
    shards = LocalShards(parts, positions, metric="cosine", shards=4, block=11)
    kept = np.concatenate([x[:100][positions[0]], x[100:180], x[180:][positions[2]]])
    np.testing.assert_array_equal(farthest_first(shards, 60, leaders=32).rows, greedy(unit(kept), 60)[0])
    np.testing.assert_array_equal(core_set(kept, 60, metric="cosine"), greedy(unit(kept), 60)[0])


@given(st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_radius_is_at_most_twice_the_optimum(seed):
    """Gonzalez' guarantee, against every set of three rows out of twelve."""
    x = data("normal", 12, 2, seed)
    distance = np.sqrt([distances_to(x, row) for row in x])
    best = min(distance[list(c)].min(axis=0).max() for c in itertools.combinations(range(12), 3))
    assert distance[core_set(x, 3)].min(axis=0).max() <= 2 * best


def test_labelled_rows_equal_to_the_pool_leave_only_distance_zero():
    """When every candidate is covered already, rows still come back, in row order."""
    x = data("normal", 20, 4, 0)
    result = chosen(x, 5, labelled=x)
    np.testing.assert_array_equal(result.rows, np.arange(5))
    np.testing.assert_array_equal(result.distance, 0)


def test_a_row_of_weight_zero_comes_back_once():
    """A chosen row doesn't return when all gains are zero: being taken is no value of the distance."""
    x = data("normal", 10, 3, 0)
    score = np.zeros(10)
    score[7] = 1.0
    np.testing.assert_array_equal(core_set(x, 10, score=score, weight=1.0), [7, 0, 1, 2, 3, 4, 5, 6, 8, 9])


def test_scores_that_are_all_zero_mean_distance_alone():
    """Weights that tell nothing apart are no reason to take rows 0, 1, 2; those of excluded rows don't count."""
    x = data("normal", 100, 3, 0)
    np.testing.assert_array_equal(core_set(x, 20, score=np.zeros(100), weight=2.0), greedy(x, 20)[0])
    exclude = np.array([3, 50])
    score = np.zeros(100)
    score[exclude] = 1.0
    result = chosen(x, 20, gain=Gain(score_weights(score, 1.0, 100)), exclude=exclude)
    rows, gain, _ = greedy(x, 20, exclude=exclude)
    np.testing.assert_array_equal(result.rows, rows)
    np.testing.assert_allclose(result.gain, gain, rtol=1e-12)


def test_all_equal_rows_come_in_row_order_and_end():
    """More rows than distinct ones are asked for: no endless loop, and ties go to the lower row."""
    np.testing.assert_array_equal(core_set(np.ones((50, 3), dtype=np.float32), 80), np.arange(50))


def test_empty_inputs():
    """No candidates, or nothing asked for, is an empty answer."""
    assert len(core_set(np.empty((0, 4), dtype=np.float32), 3)) == 0
    assert len(core_set(np.ones((3, 4), dtype=np.float32), 0)) == 0
    assert len(core_set(np.ones((3, 4), dtype=np.float32), 2, labelled=np.empty((0, 4)))) == 2


def test_counts_need_no_refinement():
    """On a grid the float32 product is the distance itself, so that ties by the thousand cost no float64."""
    result = chosen(data("binary", 4000, 16, 0), 200, leaders=64)
    assert result.refinements == 0


def test_ties_off_the_grid_are_refined():
    """Unit rows of 0/1 data tie by the hundred, which only exact distances can tell: the loop gets there."""
    x = unit(data("binary", 600, 12, 0))
    result = chosen(x, 150, leaders=4, precision="bfloat16")
    assert result.refinements > 0
    np.testing.assert_array_equal(result.rows, greedy(x, 150)[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_embeddings_that_are_not_finite(value):
    """The error says how many rows are bad, and which come first."""
    x = data("normal", 40, 3, 0)
    x[[4, 9, 20, 30], 1] = value
    with pytest.raises(DataError, match=r"4 rows of `x` hold .* rows 4, 9, 20"):
        core_set(x, 3)
    with pytest.raises(DataError, match="1 labelled"):
        core_set(x[:4], 3, labelled=x[4:5])


def test_wrong_widths_and_scores():
    """Labelled rows of another width, and scores that can't be weights, are refused by name."""
    x = data("normal", 10, 3, 0)
    with pytest.raises(DataError, match="width 3"):
        core_set(x, 3, labelled=np.ones((2, 4)))
    with pytest.raises(QueryError, match="energy can be negative"):
        core_set(x, 3, score=np.arange(10) - 2.5, weight=1.0)
    with pytest.raises(QueryError, match=r"3 of 10 candidates have a negative score, the lowest -2\.5;"):
        core_set(x, 3, score=np.arange(10) - 2.5, weight=1.0)
    with pytest.raises(QueryError, match="2 of 10 candidates have a score that is NaN or infinite"):
        core_set(x, 3, score=[1, 2, 3, np.nan, np.inf, 1, 1, 1, 1, 1], weight=1.0)
    with pytest.raises(QueryError, match=r"1e\+200, to the power of 2 is beyond float64; lower `weight`"):
        core_set(x, 3, score=np.full(10, 1e200), weight=2.0)
    with pytest.raises(QueryError, match=r"`weight` is -1"):
        core_set(x, 3, score=np.ones(10), weight=-1.0)
    with pytest.raises(QueryError, match="needs a `score`"):
        core_set(x, 3, weight=1.0)


def test_streaming_releases_every_part():
    """Parts that don't fit the memory are streamed, released, and give the same rows."""
    released = []

    class Mapped(ArrayPart):
        def release(self):
            released.append(len(self.array))

    x = data("normal", 500, 6, 0)
    shards = LocalShards([Mapped(part) for part in np.split(x, [100, 300])], memory=100)
    np.testing.assert_array_equal(farthest_first(shards, 40, leaders=32).rows, greedy(x, 40)[0])
    assert set(released) == {100, 200}


@pytest.mark.parametrize("k", [1990, 2000])
def test_as_many_rows_as_there_are_in_the_order_of_greedy(k):
    """Past the front of leaders, where more rows are gone than left, the order is still that of sequential greedy."""
    x = np.random.default_rng(0).standard_normal((2000, 3)).astype(np.float32)
    np.testing.assert_array_equal(core_set(x, k), greedy(x, k)[0])


def test_a_centre_farther_out_than_all_before():
    """A row is brought up to date although the centre's products err by more than those of all centres before."""
    x = np.array([[0, 1], [1, 0], [0, 1], [1, 1], [0, 1], [1, 1], [1, 1], [1, 0], [1, 0], [1, 1], [1, 1], [0, 0]], dtype=np.float32)
    result = farthest_first(LocalShards.of_array(x, metric="cosine"), 2, labelled=unit(x[:1] + np.float32(0.5)))
    assert result.rows.tolist() == [1, 11]
    assert result.distance[1] == 1.0  # to the first of the two; the labelled row lies 2e-8 farther

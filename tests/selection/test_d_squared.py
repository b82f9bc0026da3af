from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import chi_squared, critical, sequences
from oracle import KINDS, data, distances_to, pools, unit

from raystream.errors import DataError
from raystream.selection import Candidates, LocalShards, Quota, Shards, choose, d_squared, k_means_pp
from raystream.selection.bounds import Encoding
from raystream.selection.constraints import Constraints
from raystream.selection.d_squared import DSquaredPiece
from raystream.selection.geometry import Euclidean, nearest_squared
from raystream.selection.hashing import philox
from raystream.selection.repeats import NearDuplicates
from raystream.selection.rows import as_rows
from raystream.selection.shards import LocalPieces
from raystream.selection.strategies.k_means_pp import sample

quick = settings(max_examples=40, deadline=None)
SHARDS = (1, 2, 7, 64)


def drawn(x, k, *, labelled=None, shards=1, block=4, memory=1 << 30, **options):
    fixed = x[:0] if labelled is None else labelled
    return sample(LocalShards.of_array(x, shards=shards, memory=memory), k, labelled=fixed, block=block, **options)


def euclidean(x, precision="float32"):
    return Euclidean(Encoding.fit(x.mean(axis=0, dtype=np.float64), float(np.abs(x).max()), on_grid=False, precision=precision))


def matrix(x):
    return np.array([distances_to(x, row) for row in x])


def counts(x, k, seeds, *, precision="float32", centres=None, constraints=None):
    """How often each sequence of k rows is drawn."""
    geometry, found = euclidean(x, precision), {}
    pieces = LocalPieces(DSquaredPiece, [(as_rows(x),)])
    fixed = x[:0] if centres is None else centres
    for seed in range(seeds):
        given = None if constraints is None else constraints()
        result = d_squared.d_squared(pieces, len(x), k, geometry, seed=seed, centres=(fixed,), constraints=given, block=4)
        sequence = tuple(result.rows.tolist())
        found[sequence] = found.get(sequence, 0) + 1
    return found


POINTS = np.array([[0, 0], [1, 0], [0.3, 1.1], [4, 0.2], [4.1, 0.9], [2, 5], [2, 5]], dtype=np.float32) + np.float32(0.05)


@pytest.mark.parametrize(("fewest", "precision"), [(32, "float32"), (1, "bfloat16")])
def test_law_is_that_of_sequential_sampling(monkeypatch, fewest, precision):
    """Triples come as often as sequential D-squared sampling draws them, however often bounds are refreshed; D^4 is told apart."""
    monkeypatch.setattr(d_squared, "_FEWEST_PROPOSALS", fewest)
    found = counts(POINTS, 3, 800, precision=precision)
    squared = matrix(POINTS)
    statistic, freedom = chi_squared(found, sequences(squared, 3))
    assert statistic < critical(freedom)
    wrong, freedom = chi_squared(found, sequences(squared**2, 3))
    assert wrong > 2 * critical(freedom)


def test_labelled_rows_are_covered_from_the_start():
    """With labelled rows the first pick is drawn by the distance to them, not uniformly."""
    labelled = POINTS[[0, 5]] + np.float32(0.1)
    found = counts(POINTS, 2, 800, centres=labelled)
    start = np.min([distances_to(POINTS, row) for row in labelled], axis=0)
    statistic, freedom = chi_squared(found, sequences(matrix(POINTS), 2, start=start))
    assert statistic < critical(freedom)
    wrong, freedom = chi_squared(found, sequences(matrix(POINTS), 2))
    assert wrong > 2 * critical(freedom)


def test_law_among_rows_that_are_not_blocked():
    """With a full group the law is sequential sampling among the other rows."""
    group = np.array([0, 0, 0, 1, 1, 1, 1], dtype=np.int32)
    quota = Quota("g", group, ["a", "b"], np.array([1, 9]), np.array([0, 0]))
    found = counts(POINTS, 3, 800, constraints=lambda: Constraints(3, quotas=[quota]))
    law = sequences(matrix(POINTS), 3, blocked=lambda row, chosen: group[row] == 0 and any(group[other] == 0 for other in chosen))
    statistic, freedom = chi_squared(found, law)
    assert statistic < critical(freedom)


def test_potential_is_that_of_sequential_sampling():
    """Over many seeds the mean squared distance to the batch is within 1% of sequential sampling's."""
    x = data("clustered", 300, 4, 0)
    squared = matrix(x)
    rng = np.random.default_rng(0)
    ours, theirs = [], []
    for seed in range(150):
        ours.append(squared[drawn(x, 12, seed=seed, block=64).rows].min(axis=0).mean())
        for _ in range(8):
            rows = [int(rng.integers(300))]
            nearest = squared[rows[0]].copy()
            while len(rows) < 12:
                rows.append(int(rng.choice(300, p=nearest / nearest.sum())))
                np.minimum(nearest, squared[rows[-1]], out=nearest)
            theirs.append(nearest.mean())
    assert abs(np.mean(ours) / np.mean(theirs) - 1) < 0.01


@quick
@given(pools(), st.integers(0, 5), st.sampled_from(["float32", "bfloat16"]), st.booleans(), st.integers(0, 10**6))
def test_batches_are_sound_whatever_the_data(pool, m, precision, cached, seed):
    """Distinct rows that differ from each other, as many as there are; gain is D by definition; any sharding draws the same."""
    x, k = pool
    labelled = x[np.random.default_rng(seed).integers(0, len(x), m)]
    runs = [
        drawn(x, k, labelled=labelled, shards=shards, precision=precision, seed=seed, memory=1 << 30 if cached else 0) for shards in SHARDS
    ]
    rows, gain = runs[0].rows, runs[0].gain
    for other in runs[1:]:
        np.testing.assert_array_equal(rows, other.rows)
        np.testing.assert_array_equal(gain, other.gain)
    fixed = len(np.unique(labelled + 0.0, axis=0))
    possible = len(np.unique(x + 0.0, axis=0)) - fixed
    assert len(np.unique(x[rows] + 0.0, axis=0)) == len(rows) == min(k, possible)
    assert runs[0].distinct == (possible < min(k, len(x)))
    for i, row in enumerate(rows):
        before = np.concatenate([labelled, x[rows[:i]]])
        np.testing.assert_equal(gain[i], distances_to(before, x[row]).min() if len(before) else np.nan)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_bounds_are_never_below_the_distance(kind, precision):
    """In a piece, after several passes, every bound is at least D by the definition; refined ones are D."""
    x = data(kind, 500, 19, 3)
    geometry = euclidean(x, precision)
    piece = DSquaredPiece(as_rows(x))
    piece.begin(geometry, 1 << 30, 64)
    for centres in (x[:1], x[100:140], x[200:203]):
        piece.advance((centres,), np.empty(0, dtype=np.int64))
    true = np.min([distances_to(x, row) for row in x[[0, *range(100, 140), *range(200, 203)]]], axis=0)
    assert (piece._upper >= true).all()
    piece.refine()
    np.testing.assert_array_equal(piece._upper, true)


@quick
@given(pools(most=30), st.integers(0, 10**6))
def test_pruned_distances_are_the_definition(pool, seed):
    """Estimates rule out no centre that is the nearest, whatever the data."""
    x, k = pool
    geometry = euclidean(x)
    centres = x[np.random.default_rng(seed).integers(0, len(x), k)]
    chunks = [geometry.wide((some,)) for some in np.array_split(centres, min(3, k))]
    found = nearest_squared(geometry, geometry.wide((x,)), chunks)
    np.testing.assert_array_equal(found, np.min([distances_to(x, centre) for centre in centres], axis=0))


@pytest.mark.parametrize("parts", [[], [10, 11, 300], [64, 128]])
def test_parts_of_any_length(parts):
    """Blocks are whole by the number of the row, so that how rows lie in files changes no draw."""
    x = data("normal", 400, 5, 0)
    one = sample(LocalShards.of_array(x), 30, labelled=x[:0], block=64)
    rows = LocalShards([as_rows(part).parts[0] for part in np.split(x, parts)], shards=3, memory=0)
    np.testing.assert_array_equal(sample(rows, 30, labelled=x[:0], block=64).rows, one.rows)


class Elsewhere(LocalPieces):
    """Pieces that are told and answer in bytes, as those in other processes are; the largest message is kept."""

    largest = 0

    def _sent(self, value):
        data = pickle.dumps(value)
        Elsewhere.largest = max(Elsewhere.largest, len(data))
        return pickle.loads(data)

    def call(self, method, *args, apart=None):
        return self._sent(super().call(method, *self._sent(args), apart=self._sent(apart)))


def test_pieces_may_lie_in_other_processes():
    """All that passes between driver and pieces can be pickled, is small beside the rows, and the draws are the same."""
    x = data("normal", 20000, 32, 0)
    labelled = x[:5] * 2
    group = (np.arange(20000) % 2).astype(np.int32)

    def constraints():
        near = NearDuplicates(0.999, 32, labelled)
        return Constraints(50, near_duplicates=near, quotas=[Quota("g", group, ["a", "b"], np.array([10, 99]), np.array([0, 0]))])

    rows = as_rows(x)
    here = sample(Shards(rows, 1, LocalPieces, memory=1 << 30), 50, labelled=labelled, constraints=constraints())
    there = sample(Shards(rows, 3, Elsewhere, memory=1 << 30), 50, labelled=labelled, constraints=constraints())
    np.testing.assert_array_equal(here.rows, there.rows)
    assert 0 < Elsewhere.largest < x.nbytes / 10


def test_equal_rows_are_drawn_once():
    """More rows than distinct ones are asked for: the batch ends with a note, no loop, and labelled rows are never repeated."""
    assert len(k_means_pp(np.ones((50, 3)), 80)) == 1
    x = unit(data("one_hot", 300, 5, 0) + np.float32(0.123))
    result = choose(Candidates(shards=LocalShards.of_array(x)), strategy="k_means_pp", budget=20, near_duplicates=False)
    assert len(result.rows) == 5
    assert result.note == "only 5 rows differ from each other and from those already covered"
    assert len(k_means_pp(x, 20, labelled=x)) == 0


def test_all_rows():
    """k = n draws every row of a pool without repeats, and so does k > n."""
    x = data("normal", 200, 3, 0)
    for k in (200, 300):
        assert sorted(k_means_pp(x, k)) == list(range(200))


def test_few_passes_over_continuous_data():
    """Hundreds of picks take a handful of passes, and no distance has to be made exact."""
    result = drawn(data("normal", 4000, 16, 0), 300, block=4096)
    assert result.passes <= 6
    assert result.refinements == 0
    assert result.proposals < 4 * 300


def test_a_pool_that_is_nearly_all_blocked_ends():
    """Caps that leave a handful of rows, far from where the weight is, and near-duplicates of labelled rows: the batch is complete."""
    x = data("normal", 3000, 4, 0) * np.where(np.arange(3000) % 500 == 7, np.float32(0.01), np.float32(1))[:, None]
    quota = Quota("g", (np.arange(3000) % 500 == 7).astype(np.int32), ["a", "b"], np.array([2, 9]), np.array([0, 0]))
    candidates = Candidates(shards=LocalShards.of_array(x), labelled=x[:3] * 2)
    result = choose(candidates, strategy="k_means_pp", budget=20, quotas=[quota])
    assert len(result.rows) == 8
    assert "are in groups of g that are full (a)" in result.note
    floor = Quota("g", quota.group, ["a", "b"], np.array([99, 99]), np.array([0, 5]))
    found = choose(candidates, strategy="k_means_pp", budget=6, quotas=[floor], must_include=np.array([1000]))
    assert (quota.group[found.rows] == 1).sum() == 5
    assert found.rows[0] == 1000


def test_seeds_draw_differently_and_repeatably():
    """The same seed draws the same rows, another one others; a seed may be negative."""
    x = data("normal", 100, 3, 0)
    np.testing.assert_array_equal(k_means_pp(x, 20, seed=-3), k_means_pp(x, 20, seed=-3))
    assert not np.array_equal(k_means_pp(x, 20, seed=1), k_means_pp(x, 20, seed=2))


def test_draws_are_numbered():
    """A draw is a function of the seed, the purpose and its number, wherever one begins to draw; every bit is used."""
    words = philox(5, "a", 0, 2000)
    np.testing.assert_array_equal(philox(5, "a", 17, 3), words[17:20])
    assert not (philox(5, "b", 0, 9) == words[:9]).any()
    assert not (philox(6, "a", 0, 9) == words[:9]).any()
    share = np.unpackbits(words.view(np.uint8), axis=1).mean(axis=0)
    assert (abs(share - 0.5) < 0.06).all()


def test_weights_stay_within_integers():
    """Bounds of any size give weights of at least 1 where they are positive, whose total fits 63 bits."""
    x = np.concatenate([data("huge", 40, 3, 0), data("tiny", 40, 3, 0)])
    piece = DSquaredPiece(as_rows(x))
    piece.begin(euclidean(x), 1 << 30, 16)
    largest = piece.advance((x[:1],), np.array([0]))
    power = 61 - (80).bit_length() - int(np.frexp(largest)[1])
    sums = piece.weigh(power)
    assert (piece._weight[1:] >= 1).all()
    assert piece._weight[0] == 0
    assert sum(map(int, sums)) == sum(map(int, piece._weight)) < 2**62
    assert (piece._weight >= np.ldexp(piece._upper, power)).all()


def test_proposals_fall_where_prefix_sums_say():
    """An offset into a block's weights finds the row by brute force, in the piece that holds the block."""
    x = data("normal", 50, 3, 0)
    pieces = [DSquaredPiece(as_rows(x).slice(a, b)) for a, b in ((0, 16), (16, 16), (16, 50))]
    for piece in pieces:
        piece.begin(euclidean(x), 1 << 30, 8)
        piece.advance((x[:2],), np.array([0, 1]))
        piece.weigh(2)
    weight = np.concatenate([piece._weight for piece in pieces])
    total = int(weight.sum())
    where = np.searchsorted(np.cumsum(weight), np.arange(total), side="right")
    sums = np.array([weight[i : i + 8].sum() for i in range(0, 50, 8)])
    blocks = where // 8
    offsets = np.arange(total) - np.concatenate([[0], np.cumsum(sums)])[blocks]
    found = [piece.propose(blocks, offsets) for piece in pieces]
    np.testing.assert_array_equal(np.concatenate([some.which for some in found]), np.arange(total))
    np.testing.assert_array_equal(np.concatenate([some.rows for some in found]), where)
    np.testing.assert_array_equal(np.concatenate([some.weight for some in found]), weight[where])
    np.testing.assert_array_equal(np.concatenate([some.vectors[0] for some in found]), x[where])


def test_embeddings_that_are_not_finite():
    """The error says how many rows are bad, and which."""
    x = data("normal", 40, 3, 0)
    x[[4, 9], 1] = np.nan
    with pytest.raises(DataError, match=r"2 rows of `x` hold .* rows 4, 9"):
        k_means_pp(x, 3)


def test_nothing_to_draw_from():
    """An empty pool or a budget of 0 is an empty batch."""
    assert len(k_means_pp(np.empty((0, 3)), 3)) == 0
    assert len(k_means_pp(np.ones((4, 3)), 0)) == 0

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import chi_squared, critical, sequences
from oracle import KINDS, data, pools

from raystream.errors import DataError, QueryError
from raystream.selection import Candidates, LocalShards, badge, choose, d_squared
from raystream.selection.d_squared import DSquaredPiece
from raystream.selection.geometry import nearest_squared
from raystream.selection.rows import as_rows
from raystream.selection.shards import LocalPieces
from raystream.selection.strategies.badge import Gradients, sample

quick = settings(max_examples=25, deadline=None)
FEW = tuple(kind for kind in KINDS if kind not in ("tiny", "huge"))


def residuals(p):
    a = p.astype(np.float64)
    a[np.arange(len(a)), p.argmax(axis=1)] -= 1
    return a


def explicit(p, h, *, bias=True, one_hot=True):
    """(n, c * d) float64: the gradients written out."""
    a = residuals(p) if one_hot else p.astype(np.float64)
    wide = h.astype(np.float64)
    if bias:
        wide = np.concatenate([wide, np.ones((len(h), 1))], axis=1)
    return (a[:, :, None] * wide[:, None, :]).reshape(len(h), -1)


def matrix(g):
    return np.square(g[:, None] - g[None]).sum(axis=-1)


def probabilities(n, c, seed, kind="soft"):
    """(n, c) float32 of soft, saturated (half of the rows exactly one-hot) or repeated predictions."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(c, 0.5), n)
    if kind == "saturated":
        p[::2] = np.eye(c)[rng.integers(0, c, len(p[::2]))]
    elif kind == "confident":
        p = np.eye(c)[rng.integers(0, c, n)] * (1 - 1e-6) + 1e-6 / c
    elif kind == "repeated":
        p = p[rng.integers(0, max(n // 4, 1), n)]
    return p.astype(np.float32)


@st.composite
def predictions(draw, most=40, kinds=FEW):
    """(p, h, k): predictions and embeddings of some kind."""
    h, k = draw(pools(most=most, kinds=kinds))
    kind = draw(st.sampled_from(["soft", "saturated", "confident", "repeated"]))
    return probabilities(len(h), draw(st.integers(1, 6)), draw(st.integers(0, 10**6)), kind), h, k


def geometry_of(p, h, *, bias=True, bfloat16=False):
    return Gradients.fit(p.shape[1], h.shape[1], float(np.abs(h).max()), bias=bias, bfloat16=bfloat16)


def drawn(p, h, k, *, shards=1, block=8, memory=1 << 30, centres=None, **options):
    fixed = (p[:0], h[:0]) if centres is None else centres
    return sample(LocalShards.of_array(h, shards=shards, memory=memory), as_rows(p), k, centres=fixed, block=block, **options)


@quick
@given(predictions(), st.booleans())
def test_factorised_distances_are_those_of_explicit_gradients(prediction, bias):
    """To 1e-5 of the size of the gradients and far better, whatever the data; exactly 0 for equal rows and between rows with a = 0."""
    p, h, _ = prediction
    geometry, g = geometry_of(p, h, bias=bias), explicit(p, h, bias=bias)
    n = len(h)
    i, j = np.divmod(np.arange(n * n), n)
    wide = geometry.wide((p, h))
    rows, centres = tuple(part[i] for part in wide), tuple(part[j] for part in wide)
    found = geometry.squared(rows, centres).reshape(n, n)
    norm = np.square(g).sum(axis=1)
    # 1e-12 of the terms of the formula: rows with h of very different lengths lose digits
    a, length = np.square(residuals(p)).sum(axis=1), np.square(h.astype(np.float64)).sum(axis=1) + bias
    terms = norm[:, None] + norm + 2 * a[:, None] * length
    assert (np.abs(found - matrix(g)) <= 1e-12 * terms).all()
    same = (p[:, None] == p[None]).all(axis=-1) & (h[:, None] == h[None]).all(axis=-1)
    zero = ~residuals(p).any(axis=1)
    assert (found[same | (zero[:, None] & zero)] == 0).all()
    estimate, error = geometry.estimate(wide, wide)
    assert (np.abs(estimate - found) <= error[:, None]).all()


def test_distances_keep_their_digits_near_equality():
    """Rows that differ in the sixth digit: 1e-5 relative to explicit gradients, where |g_i|^2 + |g_j|^2 - 2 g_i.g_j has none left."""
    p, h = probabilities(40, 10, 0), data("normal", 40, 64, 0)
    rng = np.random.default_rng(1)
    near_p, near_h = (x * (1 + 1e-6 * rng.standard_normal(x.shape)).astype(np.float32) for x in (p, h))
    true = np.square(explicit(p, h) - explicit(near_p, near_h)).sum(axis=1)
    geometry = geometry_of(p, h)
    np.testing.assert_allclose(geometry.squared(geometry.wide((p, h)), geometry.wide((near_p, near_h))), true, rtol=1e-5)


@pytest.mark.parametrize("bfloat16", [False, True])
@settings(max_examples=80, deadline=None)
@given(predictions(kinds=KINDS), st.booleans(), st.integers(0, 10**6))
def test_bounds_are_never_below_the_distance_and_close_to_it(bfloat16, prediction, bias, seed):
    """Every bound by one centre is at least the float64 distance, within 3% of the gradients' sizes in bfloat16 and 1e-3 in float32."""
    p, h, k = prediction
    geometry = geometry_of(p, h, bias=bias, bfloat16=bfloat16)
    wide, operands = geometry.wide((p, h)), geometry.rows((p, h))
    for j in np.random.default_rng(seed).integers(0, len(h), min(k, 5)):
        upper = geometry.bounds((p[j : j + 1], h[j : j + 1]))()(operands)
        centre = tuple(np.repeat(part[j : j + 1], len(h), axis=0) for part in wide)
        true = geometry.squared(wide, centre)
        assert (upper >= true).all()
        size = np.sqrt(wide[2] * wide[3]) + np.sqrt(centre[2] * centre[3])
        floor = 1e-12 * float(np.abs(h).max() + bias) ** 2 * h.shape[1] + 1e-30
        assert (
            upper <= np.square(np.sqrt(true) + (0.02 if bfloat16 else 3e-4) * size) * 1.001 + 1e-3 * (not bfloat16) * size**2 + floor
        ).all()


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 150])
def test_bounds_by_many_centres(kind, count, bfloat16):
    """The bound by many centres is never below the distance to the nearest, and on spread data seldom far above it."""
    p, h = probabilities(300, 7, 0), data(kind, 300, 24, 1)
    geometry = geometry_of(p, h, bfloat16=bfloat16)
    wide = geometry.wide((p, h))
    upper = geometry.bounds((p[:count], h[:count]))()(geometry.rows((p, h)))
    true = nearest_squared(geometry, wide, [tuple(part[:count] for part in wide)])
    assert (upper >= true).all()
    if kind == "normal":
        assert np.median(upper[count:] / true[count:]) < (1.05 if bfloat16 else 1.001)


def counts(p, h, k, seeds, **options):
    """How often each sequence of k rows is drawn."""
    geometry, found = geometry_of(p, h, **options), {}
    for seed in range(seeds):
        pieces = LocalPieces(DSquaredPiece, [(as_rows(h), as_rows(p))])
        centres = p[:0], h[:0]
        result = d_squared.d_squared(pieces, len(h), k, geometry, seed=seed, centres=centres, origin=geometry.origin, block=4)
        sequence = tuple(result.rows.tolist())
        found[sequence] = found.get(sequence, 0) + 1
    return found


@pytest.mark.parametrize(("fewest", "bfloat16", "bias"), [(32, False, True), (1, True, False)])
def test_law_is_that_of_sequential_sampling_of_gradients(monkeypatch, fewest, bfloat16, bias):
    """Batches come as often as sampling explicit gradients draws them; D squared twice, or p without the one-hot, would be noticed."""
    monkeypatch.setattr(d_squared, "_FEWEST_PROPOSALS", fewest)
    p, h = probabilities(7, 3, 4), data("normal", 7, 2, 5)
    p[3], h[3] = p[2], h[2]
    g = explicit(p, h, bias=bias)
    first = int(np.argmax(np.square(g).sum(axis=1)))
    found = counts(p, h, 3, 600, bias=bias, bfloat16=bfloat16)
    statistic, freedom = chi_squared(found, sequences(matrix(g), 3, first=first))
    assert statistic < critical(freedom)
    for wrong in (matrix(g) ** 2, matrix(explicit(p, h, bias=bias, one_hot=False))):
        statistic, freedom = chi_squared(found, sequences(wrong, 3, first=first))
        assert statistic > 1.5 * critical(freedom)


def test_first_pick_is_the_largest_gradient():
    """Deterministic, the lowest row at a tie; which needs the one-hot to be subtracted: the largest |p||h| is another row."""
    p = np.array([[0.98, 0.01, 0.01], [0.4, 0.3, 0.3], [0.4, 0.3, 0.3]], dtype=np.float32)
    h = np.array([[2, 0], [1, 1], [1, 1]], dtype=np.float32)
    for seed in range(5):
        assert badge(h, 1, probabilities=p, seed=seed)[0] == 1
    large_p, large_h = probabilities(3000, 4, 0), data("normal", 3000, 5, 0)
    norm = np.square(explicit(large_p, large_h)).sum(axis=1)
    found = drawn(large_p, large_h, 2, shards=3, block=256)
    assert found.rows[0] == np.argmax(norm)
    np.testing.assert_allclose(found.gain[0], norm.max(), rtol=1e-12)


@quick
@given(predictions(), st.sampled_from(["float32", "bfloat16"]), st.booleans(), st.booleans(), st.integers(0, 10**6))
def test_batches_are_sound_whatever_the_data(prediction, precision, bias, cached, seed):
    """Distinct gradients, as many as there are; gain is D of explicit gradients; any sharding draws the same."""
    p, h, k = prediction
    runs = [
        drawn(p, h, k, shards=shards, precision=precision, bias=bias, seed=seed, memory=1 << 30 if cached else 0)
        for shards in (1, 2, 7, 64)
    ]
    rows = runs[0].rows
    for other in runs[1:]:
        np.testing.assert_array_equal(rows, other.rows)
        np.testing.assert_array_equal(runs[0].gain, other.gain)
    g = explicit(p, h, bias=bias)
    assert len(set(rows.tolist())) == len(rows) <= k
    if bias:  # without one, equal gradients of different rows may be told apart by rounding
        assert len(rows) == min(k, len(np.unique(g + 0.0, axis=0)))
    scale = np.square(g).sum(axis=1).max()
    for i, row in enumerate(rows):
        before = g[rows[:i]] if i else np.zeros((1, g.shape[1]))
        np.testing.assert_allclose(runs[0].gain[i], np.square(before - g[row]).sum(axis=1).min(), rtol=1e-6, atol=1e-9 * scale + 1e-300)


def test_sure_rows_are_one_point():
    """Rows with p one-hot have no gradient: one of them at most, whatever their embeddings, and the note says why."""
    p, h = np.eye(3, dtype=np.float32)[np.arange(30) % 3], data("normal", 30, 4, 0)
    p[:4] = probabilities(4, 3, 0)
    candidates = Candidates(shards=LocalShards.of_array(h), probabilities=as_rows(p))
    result = choose(candidates, strategy="badge", budget=10)
    assert len(result.rows) == 5
    assert (result.rows >= 4).sum() == 1
    assert "only 5 rows differ" in result.note
    assert badge(h[4:], 10, probabilities=p[4:]).tolist() == [0]


def test_labelled_rows_are_covered_only_if_asked():
    """In the paper labelled rows are no centres; `covered` makes them so, and needs their probabilities; rows of the batch always are."""
    p, h = probabilities(60, 4, 0, "repeated"), data("normal", 60, 3, 0)
    h = h[[np.flatnonzero((p == row).all(axis=1))[0] for row in p]]
    shards, labelled = LocalShards.of_array(h), np.arange(40)
    plain = Candidates(shards=shards, probabilities=as_rows(p), labelled=h[labelled])
    everything = len(np.unique(p, axis=0))
    assert len(choose(plain, strategy="badge", budget=60, near_duplicates=False).rows) == everything
    with pytest.raises(QueryError, match="`covered` is true, which needs `labelled_probabilities`"):
        choose(plain, strategy="badge", budget=60, near_duplicates=False, args={"covered": True})
    known = Candidates(shards=shards, probabilities=as_rows(p), labelled=h[labelled], labelled_probabilities=p[labelled])
    left = everything - len(np.unique(p[labelled], axis=0))
    assert left > 0
    assert len(choose(known, strategy="badge", budget=60, near_duplicates=False, args={"covered": True}).rows) == left
    assert len(badge(h, 60, probabilities=p, labelled=h[labelled], labelled_probabilities=p[labelled])) == left
    assert len(badge(h, 60, probabilities=p, labelled=h, labelled_probabilities=p)) == 0
    found = choose(plain, strategy="badge", budget=60, near_duplicates=False, must_include=np.array([7])).rows
    assert found[0] == 7
    assert (p[found] == p[7]).all(axis=1).sum() == 1


def test_k_is_n():
    """Every row of a pool of distinct rows comes back once."""
    assert sorted(badge(data("normal", 150, 3, 0), 400, probabilities=probabilities(150, 5, 0))) == list(range(150))


def test_few_passes():
    """Hundreds of picks take a handful of passes."""
    result = drawn(probabilities(4000, 10, 0), data("normal", 4000, 16, 0), 300, block=4096)
    assert result.passes <= 8
    assert result.refinements == 0


def test_refusals():
    """Missing, misshapen or impossible probabilities are named."""
    h = data("normal", 10, 3, 0)
    p = probabilities(10, 3, 0)
    with pytest.raises(QueryError, match="needs class `probabilities`"):
        choose(Candidates(shards=LocalShards.of_array(h)), strategy="badge", budget=2)
    with pytest.raises(DataError, match="9 candidates have probabilities and 10 have embeddings"):
        badge(h, 2, probabilities=p[:9])
    with pytest.raises(DataError, match="are they logits"):
        badge(h, 2, probabilities=p * 5)
    with pytest.raises(DataError, match=r"1 rows of `probabilities` hold NaN or infinite values, first at rows 3"):
        badge(h, 2, probabilities=np.where(np.arange(10)[:, None] == 3, np.float32(np.nan), p))
    with pytest.raises(DataError, match="2 labelled rows have probabilities and 0 have embeddings"):
        badge(h, 2, probabilities=p, labelled_probabilities=p[:2])
    assert len(badge(h[:0], 3, probabilities=p[:0])) == 0

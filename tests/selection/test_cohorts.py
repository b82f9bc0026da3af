from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import data, distances_to, unit

from raystream.selection import ArrayPart, Constraints, LocalShards, Rows
from raystream.selection.coverage import Coverage
from raystream.selection.kernels import Cosine, Gaussian
from raystream.selection.lazy_greedy import Cohorts, LazyGreedy
from raystream.selection.rows import as_rows

N, TARGETS = 3000, 400
KERNELS = [Cosine(), Gaussian(0.8)]


@pytest.fixture(params=[True, False], ids=["coarse", "float32"])
def units(request, monkeypatch):
    """Whether the processor is taken to have bfloat16 units."""
    monkeypatch.setattr("raystream.selection.lazy_greedy.has_bfloat16_units", lambda: request.param)
    return request.param


def similarities(kernel, x, targets):
    """(n, m) by the definition."""
    return np.array([kernel.of(distances_to(unit(x), target)) for target in targets]).T


def gains(alike, best, weight):
    return (np.maximum(alike - best, 0) * weight).sum(axis=1)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("memory", [0, 1 << 30])
@pytest.mark.parametrize("kind", ["normal", "clustered"])
def test_bounds_are_lowered_and_never_too_far(units, kernel, memory, kind):
    """Whatever is asked and whenever: no bound is below what a row adds, most reach the floor, few products are made.

    Some are made exact meanwhile by others, as the lazy greedy does: what the operands say is below that.
    """
    x, rng = data(kind, N, 16, 0), np.random.default_rng(1)
    x[7] = 0
    targets, weight = unit(x[:TARGETS]), np.random.default_rng(0).random(TARGETS)
    weight[7] = 0
    alike = similarities(kernel, x, targets)
    alike[7] = 0
    coverage = Coverage(targets, weight, kernel)
    cohorts = Cohorts(Rows([ArrayPart(x[:99]), ArrayPart(x[99:])]), coverage, memory)
    assert cohorts.pairs.coarse == units
    bound = cohorts.bounds(np.arange(N))
    assert bound[7] == 0
    best = np.zeros(TARGETS)
    fresh = 0
    for pick in range(40):
        true = gains(alike, best, weight)
        assert (bound >= true * (1 - 1e-12)).all()
        floor = float(true.max())
        stale = np.flatnonzero(bound > floor)
        if pick % 3 == 0 and len(stale):
            bound[stale], made = cohorts.lower(stale, bound[stale], floor)
            assert ((bound[stale] <= floor) | made).all()
            fresh += made.sum()
        some = np.sort(rng.choice(N, 700, replace=False))
        bound[some] = np.minimum(bound[some], true[some])
        cohorts.now(some)
        row = int(true.argmax())
        coverage.add(unit(x)[row])
        best = np.maximum(best, alike[row])
    assert cohorts.read == N if memory else cohorts.read > N
    assert fresh < 8 * N


def test_dull_rows_cost_a_part_of_the_targets(units):
    """Most bounds come below the floor by the targets that changed most: those multiplied with all of them are few."""
    x = data("normal", N, 32, 0)
    coverage = Coverage(unit(x[:TARGETS]), np.ones(TARGETS), Cosine())
    cohorts = Cohorts(as_rows(x), coverage, 1 << 30)
    bound = cohorts.bounds(np.arange(N))
    first = int(bound.argmax())
    coverage.add(unit(x)[first])
    floor = max(coverage.gain(row) for row in unit(x)[np.argsort(-bound)[:200]])
    lowered, made = cohorts.lower(np.arange(N), bound, floor)
    assert (lowered <= floor).mean() > 0.9
    assert made.mean() < 0.3


@pytest.mark.parametrize(
    "kind", ["normal", "one_hot", pytest.param("clustered", marks=pytest.mark.slow), pytest.param("duplicated", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_order_is_plain_greedys_past_every_size(units, kind, kernel, monkeypatch):
    """More candidates than a block, a front and a cohort's least, more targets than a part: rows and gains of plain greedy in float64."""
    monkeypatch.setattr("raystream.selection.lazy_greedy._FRONT", 500)
    x, k = data(kind, N, 24, 1), 25
    weight = np.random.default_rng(1).integers(1, 4, TARGETS) / 4.0
    targets = unit(x[:TARGETS])
    alike = similarities(kernel, x, targets)
    lazy = LazyGreedy(LocalShards.of_array(x, shards=3), Coverage(targets, weight, kernel), Constraints(k))
    lazy.run(k)
    best, taken = np.zeros(TARGETS), np.zeros(N, dtype=bool)
    for number in range(k):
        gain = np.where(taken, 0, gains(alike, best, weight))
        if gain.max() <= 0:
            assert len(lazy.rows) == number
            break
        row = lazy.rows[number]
        # sums in another order differ in the last bits
        assert gain[row] >= gain.max() * (1 - 1e-12)
        np.testing.assert_allclose(lazy.gain[number], gain[row], rtol=1e-12)
        taken[row] = True
        best = np.maximum(best, alike[row])


def test_threads_and_memory_change_nothing():
    """The same rows from 1, 2 and 4 threads, with operands kept and made again and again."""
    x = data("clustered", N, 24, 2)
    found = []
    before = torch.get_num_threads()
    for threads, memory in ((1, 0), (2, 1 << 30), (4, 1 << 30)):
        torch.set_num_threads(threads)
        try:
            coverage = Coverage(unit(x[:TARGETS]), np.ones(TARGETS), Cosine())
            lazy = LazyGreedy(LocalShards.of_array(x, memory=memory), coverage, Constraints(30))
            lazy.run(30)
        finally:
            torch.set_num_threads(before)
        found.append((lazy.rows, lazy.gain))
    assert found[0] == found[1] == found[2]

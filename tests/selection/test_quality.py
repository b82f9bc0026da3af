from __future__ import annotations

from functools import cache

import pytest

from benchmarks.curves import PROTOCOLS
from benchmarks.quality import measure

pytestmark = pytest.mark.slow
SEEDS = 20
"""Twice to four times the tables' number: with 6 seeds the difference of two means has a standard error above 1 point."""


@cache
def accuracy(table, name, labels):
    """Mean accuracy in percent, by the benchmark's protocol over more seeds."""
    return measure(table, name, SEEDS)[list(PROTOCOLS[table].at).index(labels)][0]


def test_margin_beats_chance_on_digits():
    """With 200 labels the margin is at least 2.5 points above random."""
    assert accuracy("digits", "margin", 200) >= accuracy("digits", "random", 200) + 2.5


def test_uncertainty_herding_needs_few_labels():
    """With 50 labels it is at least 4 points above random."""
    assert accuracy("digits", "u_herding", 50) >= accuracy("digits", "random", 50) + 4


def test_redundancy_ruins_the_highest_entropies():
    """Four copies of each row: the top by entropy fall at least 10 points below random."""
    assert accuracy("redundant", "entropy", 100) <= accuracy("redundant", "random", 100) - 10


@pytest.mark.parametrize("name", ["margin, 10 x, k_means", "u_herding", "margin, 10 x, core_set", "cluster_margin"])
def test_diverse_batches_stand_redundancy(name):
    """Four copies of each row: what looks at distances is at least 3 points above random."""
    assert accuracy("redundant", name, 100) >= accuracy("redundant", "random", 100) + 3


@pytest.mark.parametrize("name", ["badge", "prob_cover"])
def test_these_stand_redundancy_less_well(name):
    """Four copies of each row: they stay above random; BADGE over 80 seeds by 1.75 points, with a standard error of 0.24."""
    assert accuracy("redundant", name, 100) >= accuracy("redundant", "random", 100) + 1


def test_the_least_certain_rows_of_clusters_beat_chance_on_digits():
    """With 200 labels they are at least 2.5 points above random, as the highest scores alone are."""
    assert accuracy("digits", "cluster_margin", 200) >= accuracy("digits", "random", 200) + 2.5

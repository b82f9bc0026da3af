import math

import numpy as np
import pytest
import torch
from acquisition.reference import TWO, members_of

from raystream.acquisition import bald, epig, epig_targets, log_probabilities
from raystream.errors import QueryError


def random_samples(n, k, c, seed):
    """(n, k, c) float64 log-probabilities."""
    return log_probabilities(torch.randn(n, k, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2)


def epig_of(p, targets):
    """By the definition: the mutual information of each row's label and each target's, one pair at a time."""
    scores = np.zeros(len(p))
    for row, own in enumerate(p):
        for target in targets:
            joint = np.einsum("ka,kb->ab", own, target) / len(own)
            apart = np.outer(joint.sum(axis=1), joint.sum(axis=0))
            scores[row] += (joint * np.log(joint / apart)).sum() / len(targets)
    return scores


def test_expected_value():
    """With itself as its target, the row of two members has the published value to six digits."""
    row = members_of(TWO)
    assert epig(row, row).item() == pytest.approx(0.221754, abs=6e-7)
    assert epig(row.float(), epig_targets(row.float())).item() == pytest.approx(0.221754, abs=6e-7)


@pytest.mark.parametrize(("n", "m", "k", "c"), [(7, 5, 3, 4), (300, 40, 6, 3), (3, 3, 2, 600), (5, 2, 1, 2)])
def test_agrees_with_the_definition(n, m, k, c):
    """It is the mean mutual information of a row's label and a target's, over any number of blocks of either."""
    rows, targets = random_samples(n, k, c, 0), random_samples(m, k, c, 1)
    prepared = epig_targets(targets)
    assert len(prepared) == m
    found = epig(rows, prepared)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), epig_of(rows.exp().numpy(), targets.exp().numpy()), rtol=1e-9, atol=1e-13)
    assert torch.equal(found, epig(rows, targets))


def test_at_most_what_a_label_tells_about_the_members():
    """It lies between 0 and BALD, and is 0 where the members agree, of the row or of the targets."""
    rows, targets = random_samples(50, 5, 3, 2), random_samples(20, 5, 3, 3)
    assert (epig(rows, targets) >= 0).all()
    assert (epig(rows, targets) <= bald(rows) + 1e-12).all()
    for some, other in ((rows[:, :1].expand(-1, 5, -1), targets), (rows, targets[:, :1].expand(-1, 5, -1))):
        torch.testing.assert_close(epig(some, other), torch.zeros(50, dtype=torch.float64), rtol=0, atol=1e-13)


def test_members_must_be_in_the_same_order():
    """A row told about by the targets scores high only while member k is the same model for both."""
    row = members_of([(0.9, 0.1), (0.1, 0.9), (0.9, 0.1), (0.1, 0.9)])
    assert epig(row, row[:, [1, 0, 3, 2]]).item() == pytest.approx(0.221754, abs=6e-7)  # the classes' names don't matter
    assert epig(row, row[:, [0, 2, 1, 3]]).item() == pytest.approx(0, abs=1e-13)


def test_members_of_zeros_and_ones():
    """Probabilities of 0 and 1 give no NaN: what the targets' members know, the row's label tells."""
    row = members_of([(1.0, 0.0), (0.0, 1.0)])
    assert epig(row, row).item() == pytest.approx(math.log(2), abs=1e-12)


def test_a_row_scores_the_same_in_any_company():
    """Scores don't depend on the rows beside, but for what a matrix product may round differently; none of no rows."""
    rows, targets = random_samples(400, 4, 3, 4), epig_targets(random_samples(30, 4, 3, 5))
    whole = epig(rows, targets)
    for some in (slice(0, 1), slice(169, 172), slice(399, 400)):
        torch.testing.assert_close(epig(rows[some], targets), whole[some], rtol=1e-12, atol=1e-14)
    assert epig(rows[:0], targets).shape == (0,)


def test_bad_rows_come_out_as_nan_and_bad_targets_are_refused():
    """NaN and +inf spoil their own row, and are an error among targets, each of which counts for every row."""
    rows, targets = members_of(TWO, TWO, TWO), members_of(TWO, TWO)
    rows[1, 0, 0], rows[2, 1, 1] = math.nan, math.inf
    assert epig(rows, targets).isnan().tolist() == [False, True, True]
    targets[1, 0, 0] = math.nan
    with pytest.raises(QueryError, match="target 1 holds NaN"):
        epig_targets(targets)


def test_what_does_not_fit_is_refused():
    """Other members or classes than the targets', no targets, and what holds no log-probabilities are errors that say so."""
    row = members_of(TWO)
    with pytest.raises(QueryError, match="2 members and 2 classes, targets 3 and 2"):
        epig(row, random_samples(1, 3, 2, 0))
    with pytest.raises(QueryError, match="no targets"):
        epig_targets(row[:0])
    with pytest.raises(QueryError, match="row 0 sum to"):
        epig(row.exp(), row)
    with pytest.raises(QueryError, match="row 0 sum to"):
        epig_targets(row.exp())

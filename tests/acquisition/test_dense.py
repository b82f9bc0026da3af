import math

import numpy as np
import pytest
import torch
from acquisition.reference import softmax

from raystream.acquisition import bald, dense_scores, entropy, log_probabilities, margin
from raystream.acquisition import dense as module
from raystream.errors import PoolError, QueryError

REDUCTIONS = ("mean", "max", "sum", "top_mean")


def reduced(values, reduce, top):
    """One row's valid element scores, by the definition."""
    if reduce == "top_mean":
        # in whole per cents, so that this side needs no rounding of its own
        count = max(1, -(-len(values) * round(top * 100) // 100))
        return np.sort(values)[::-1][:count].mean()
    return {"mean": np.mean, "max": np.max, "sum": np.sum}[reduce](values)


def tokens(n=6, t=30, c=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(n, t, generator=generator) < 0.6
    mask[:, 0] = True
    mask[0] = True
    return torch.randn(n, t, c, generator=generator) * 3, mask


@pytest.mark.parametrize("top", [0.1, 0.25, 1.0])
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_tokens_with_padding(reduce, top):
    """Each row's score is the reduction of its own valid tokens' scores; what padding holds doesn't matter, NaN neither."""
    logits, mask = tokens()
    expected = [reduced(margin(row[valid]).numpy(), reduce, top) for row, valid in zip(logits, mask, strict=True)]
    logits[~mask] = math.nan
    for form in (mask, mask.long()):
        found = dense_scores(logits, "margin", mask=form, reduce=reduce, top=top)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 4, 5, 2)])
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_segmentation(reduce, shape):
    """In (n, c, h, w) the classes stand second, and further dimensions are further elements."""
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    mask = torch.rand(shape[0], *shape[2:], generator=torch.Generator().manual_seed(2)) < 0.5
    p = softmax(np.moveaxis(logits.double().numpy(), 1, -1))
    by_element = -(p * np.log(p)).sum(axis=-1)
    found, masked = dense_scores(logits, reduce=reduce), dense_scores(logits, reduce=reduce, mask=mask)
    for row in range(shape[0]):
        assert found[row].item() == pytest.approx(reduced(by_element[row].ravel(), reduce, 0.1), rel=1e-5)
        assert masked[row].item() == pytest.approx(reduced(by_element[row][mask[row].numpy()], reduce, 0.1), rel=1e-5)


def test_members():
    """With members, each element is scored from all of them, in both layouts, and by a function of log-probabilities too."""
    logits = torch.randn(3, 5, 7, 4, generator=torch.Generator().manual_seed(3)) * 2
    expected = [bald(log_probabilities(row.transpose(0, 1), 2.0)).mean().item() for row in logits]
    for score in ("bald", bald):
        assert dense_scores(logits, score, members=True, temperature=2.0).tolist() == pytest.approx(expected, rel=1e-5)
    images = logits.movedim(3, 2).unflatten(3, (7, 1))
    assert dense_scores(images, "bald", members=True, temperature=2.0).tolist() == pytest.approx(expected, rel=1e-5)


def test_temperature_and_functions():
    """A function sees the elements' logits after temperature, as the named scores do."""
    logits, mask = tokens()
    named = dense_scores(logits, "entropy", mask=mask, temperature=3.0)
    torch.testing.assert_close(dense_scores(logits, entropy, mask=mask, temperature=3.0), named)
    torch.testing.assert_close(dense_scores(logits / 3, "entropy", mask=mask), named)


def test_top_mean_takes_the_part_that_it_says():
    """A tenth of 30 elements is 3, not 4 by rounding; a tenth of 5, at least 1; a tenth of 11, 2."""
    for count, taken in ((30, 3), (5, 1), (11, 2), (10, 1)):
        values = torch.arange(float(count)).flip(0)
        logits = torch.zeros(1, count, 2)
        found = dense_scores(logits, lambda z, values=values: values, reduce="top_mean")
        assert found.item() == pytest.approx(values[:taken].mean().item()), count


def test_blocks_change_nothing(monkeypatch):
    """Rows scored one at a time, or all at once, score the same, and leave the logits alone; no rows give no scores."""
    logits, mask = tokens()
    before = logits.clone()
    whole = [dense_scores(logits, mask=mask, reduce=reduce) for reduce in REDUCTIONS]
    monkeypatch.setattr(module, "_BLOCK", 1)
    for reduce, expected in zip(REDUCTIONS, whole, strict=True):
        assert torch.equal(dense_scores(logits, mask=mask, reduce=reduce), expected)
    assert torch.equal(logits, before)
    assert dense_scores(logits[:0], mask=mask[:0]).shape == (0,)


def test_bad_elements_make_their_row_nan():
    """NaN in an element that counts makes its own row NaN, whatever the reduction."""
    logits, mask = tokens()
    logits[1, 0] = math.nan
    for reduce in REDUCTIONS:
        assert dense_scores(logits, mask=mask, reduce=reduce).isnan().tolist() == [False, True, False, False, False, False]


def test_rows_without_valid_elements_are_named():
    """They are an error of the pool that says which rows: the first three and how many more."""
    logits, mask = tokens()
    mask[2] = False
    with pytest.raises(PoolError, match="of rows 2 no element is valid"):
        dense_scores(logits, mask=mask)
    mask[1:] = False
    with pytest.raises(PoolError, match="of rows 1, 2, 3 and 2 others no element"):
        dense_scores(logits, mask=mask)
    with pytest.raises(PoolError, match="of rows 0, 1 no element"):
        dense_scores(torch.zeros(2, 0, 3))


def test_what_does_not_fit_is_refused():
    """Unknown names, other shapes, masks of other shapes or types, and functions that don't score elements are errors."""
    logits, mask = tokens()
    with pytest.raises(QueryError, match=r"reduce 'top_means'.*did you mean 'top_mean'"):
        dense_scores(logits, reduce="top_means")
    with pytest.raises(QueryError, match="top is 0"):
        dense_scores(logits, top=0)
    with pytest.raises(QueryError, match="'bald' is not one of logits"):
        dense_scores(logits, "bald")
    with pytest.raises(QueryError, match="'margin' is not one of members"):
        dense_scores(logits.unsqueeze(1), "margin", members=True)
    with pytest.raises(QueryError, match=r"shape \(6, 4\), expected \(rows, tokens, classes\)"):
        dense_scores(logits[:, 0])
    with pytest.raises(QueryError, match=r"shape \(6, 30, 4\), expected \(rows, members, tokens, classes\)"):
        dense_scores(logits, "bald", members=True)
    with pytest.raises(QueryError, match=r"the mask is .*shape \(6, 29\), expected .*\(6, 30\)"):
        dense_scores(logits, mask=mask[:, 1:])
    with pytest.raises(QueryError, match=r"the mask is a tensor of torch\.float32"):
        dense_scores(logits, mask=mask.float())
    with pytest.raises(QueryError, match=r"gave the shape \(180, 4\) for 180 elements"):
        dense_scores(logits, lambda z: z)
    with pytest.raises(QueryError, match=r"logits are a tensor of torch\.int64"):
        dense_scores(logits.long())

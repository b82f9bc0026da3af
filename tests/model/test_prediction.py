import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from raystream.errors import ModelError
from raystream.model import Prediction, bad_output_rows
from raystream.model.promise import Promise

numbers = st.one_of(st.floats(allow_nan=False, allow_infinity=False, width=32), st.sampled_from([math.nan, math.inf, -math.inf]))


def is_bad(logits, embedding):
    bad = any(math.isnan(z) or z == math.inf for z in logits) or all(z == -math.inf for z in logits)
    return bad or not all(map(math.isfinite, embedding))


@settings(deadline=None)
@given(arrays(np.float32, (4, 3), elements=numbers), arrays(np.float32, (4, 2), elements=numbers))
def test_bad_rows_are_those_of_the_definition(logits, embedding):
    """Bad are NaN, +inf and nothing but -inf in logits, and what isn't finite in embeddings; huge sums are fine."""
    expected = [is_bad(*row) for row in zip(logits.tolist(), embedding.tolist(), strict=True)]
    found = bad_output_rows(Prediction(torch.from_numpy(logits), torch.from_numpy(embedding)))
    assert (found.tolist() if found is not None else [False] * 4) == expected
    assert found is None or any(expected)


def test_bad_rows_of_half_a_prediction():
    """Logits or embeddings may be missing."""
    bad = torch.tensor([[0.0, 0.0], [math.nan, 0.0]])
    assert bad_output_rows(Prediction(bad, None)).tolist() == [False, True]
    assert bad_output_rows(Prediction(None, bad)).tolist() == [False, True]
    assert bad_output_rows(Prediction(torch.zeros(2, 2), None)) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_become_float32(dtype):
    """Logits of any floating dtype come out as float32."""
    assert Promise("m").logits(torch.ones(2, 3, dtype=dtype), 2).dtype == torch.float32


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"a": torch.zeros(2, 3), "b": torch.zeros(2)}, r"m returned dict, expected one tensor.* a float32 \(2, 3\), b float32 \(2,\)"),
        ((torch.zeros(2, 3), torch.zeros(2, 5)), r"m returned tuple.* float32 \(2, 3\), float32 \(2, 5\)"),
        (torch.zeros(3, 2), r"float32 \(3, 2\) for 2 rows"),
        (torch.zeros(2, 3, 4), r"\(2, 3, 4\) for 2 rows, expected logits of shape \(2, classes\); that is what model.task tokens"),
        (torch.zeros(2, 3, dtype=torch.int64), r"int64 \(2, 3\), expected logits .* floating numbers, not classes"),
        ("three", "m returned str"),
    ],
)
def test_what_is_not_logits_is_refused(output, message):
    """Any output in which no floating (rows, classes) tensor can be told is an error that says what came."""
    with pytest.raises(ModelError, match=message):
        Promise("m").read(output, 2)

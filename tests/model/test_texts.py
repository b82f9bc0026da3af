import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystream.errors import ModelError
from raystream.model.huggingface import by_length, text_columns


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 20), st.integers(1, 500))
def test_every_row_is_in_one_batch_of_its_length(lengths, most_rows, most_tokens):
    """Rows are neither lost nor doubled, no batch is larger than allowed unless it is one row, and lengths never grow."""
    batches = by_length(lengths, most_rows, most_tokens)
    order = np.concatenate(batches).tolist() if batches else []
    assert sorted(order) == list(range(len(lengths)))
    assert all(len(batch) <= most_rows for batch in batches)
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= most_tokens for batch in batches)
    assert [lengths[i] for i in order] == sorted(lengths, reverse=True)


def test_equal_lengths_keep_their_order():
    """Ties are decided by position, so that the cut is the same everywhere."""
    assert np.concatenate(by_length([3, 5, 3, 5, 3], 2, 100)).tolist() == [1, 3, 0, 2, 4]


def test_too_many_columns_of_texts():
    """A model of one text a row refuses two columns, and says how many there are."""
    values = np.array(["a", "b"], dtype=object)
    assert text_columns((values, values), 2, "model.source m") == [["a", "b"]] * 2
    with pytest.raises(ModelError, match=r"model.source m takes at most 1 column of texts, but pool.inputs gives 2"):
        text_columns((values, values), 1, "model.source m")

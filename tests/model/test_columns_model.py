import math

import pytest
import torch

from raystream.errors import ModelError
from raystream.model import bad_output_rows, input_columns, load
from raystream.query import Model


def test_columns_come_in_a_fixed_order():
    """Logits or probabilities come first, the embedding last."""
    assert input_columns(Model(kind="columns", logits="z", embedding="e")) == ("z", "e")
    assert input_columns(Model(kind="columns", embedding="e", probabilities="p")) == ("p", "e")
    assert input_columns(Model(kind="columns", embedding="e")) == ("e",)
    assert input_columns(Model(source="a:b", embedding="e")) == ("e",)


def test_logits_and_embedding_pass_through():
    """The model is the identity, in float32, and has no state."""
    model = load(Model(kind="columns", logits="z", embedding="e", batch_size=7), embedding=True)
    logits, embedding = torch.randn(30, 4, dtype=torch.float64), torch.randn(30, 2, 3).half()
    found = model.predict((logits, embedding))
    assert torch.equal(found.logits, logits.float())
    assert torch.equal(found.embedding, embedding.float().flatten(1))
    assert (model.state_hash, model.batch_size, model.device) == ("", 7, torch.device("cpu"))


def test_an_embedding_alone():
    """A pool of embeddings without logits gives no logits."""
    found = load(Model(kind="columns", embedding="e"), embedding=True).predict((torch.ones(3, 2),))
    assert found.logits is None
    assert found.embedding.tolist() == [[1, 1]] * 3


def test_an_embedding_that_is_not_wanted_is_left_out():
    """Without a wish for embeddings the column is ignored."""
    model = load(Model(kind="columns", logits="z", embedding="e"), embedding=False)
    assert model.predict((torch.ones(3, 2), torch.ones(3, 2))).embedding is None


def test_probabilities_become_logarithms():
    """Probabilities give back the same softmax; a zero is -inf, which is no bad output."""
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0], [1e-30, 0.5, 0.5]], dtype=torch.float64)
    found = load(Model(kind="columns", probabilities="p"), embedding=False).predict((probabilities,))
    torch.testing.assert_close(found.logits.softmax(dim=1), probabilities.float())
    assert found.logits[1].tolist() == [0, -math.inf, -math.inf]
    assert found.logits[2, 0].item() == pytest.approx(math.log(1e-30))
    assert bad_output_rows(found) is None


@pytest.mark.parametrize("row", [[0.5, 0.6], [1.5, -0.5], [0.0, 0.0]])
def test_what_is_no_distribution_is_bad_output(row):
    """Rows with negative numbers or sums away from 1 are bad, with a reason of their own; the others are what they were."""
    model = load(Model(kind="columns", probabilities="p"), embedding=False)
    found = model.predict((torch.tensor([[0.5, 0.5009], row, [0.0, 1.0]]),))
    assert bad_output_rows(found).tolist() == [False, True, False]
    assert found.reason == "the probabilities are negative or don't sum to 1"
    assert found.logits[2].tolist() == [-math.inf, 0]


def test_nan_probabilities_are_bad_output():
    """NaN is left to the check of outputs, as it is for logits."""
    found = load(Model(kind="columns", probabilities="p"), embedding=False).predict((torch.tensor([[0.5, 0.5], [math.nan, 0.5]]),))
    assert bad_output_rows(found).tolist() == [False, True]
    assert found.reason == "the model's output holds NaN or infinity"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.ones(3, 2),), "1 input columns came, expected 2: z, e"),
        ((torch.ones(3, 2, 2), torch.ones(3, 2)), r"column z \(model.logits\) holds float32 \(3, 2, 2\) for 3 rows"),
        ((torch.ones(3, 2), torch.ones(3)), r"column e \(model.embedding\) has the shape \(3,\)"),
    ],
)
def test_columns_of_another_shape(inputs, message):
    """Columns that hold no vectors are named."""
    with pytest.raises(ModelError, match=message):
        load(Model(kind="columns", logits="z", embedding="e"), embedding=True).predict(inputs)


def test_a_wanted_embedding_needs_a_column():
    """Wanting an embedding without a column for it fails at once."""
    with pytest.raises(ModelError, match=r"model\.embedding names no column"):
        load(Model(kind="columns", logits="z"), embedding=True)

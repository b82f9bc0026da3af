import pytest
import torch
from torch import nn

from raystream.errors import ModelError
from raystream.model.huggingface import HiddenState

MASK = torch.tensor([[1, 1, 0], [1, 0, 0]])
TOKENS = torch.arange(12.0).reshape(2, 3, 2)


class Net(nn.Module):
    """Passes what its body gives."""

    def __init__(self, output):
        super().__init__()
        self.body = nn.Identity()
        self.output = output

    @property
    def base_model(self):
        return self.body

    def forward(self):
        return self.body(self.output)


@pytest.mark.parametrize("output", [TOKENS, (TOKENS, None), {"last_hidden_state": TOKENS, "pooler_output": None}])
@pytest.mark.parametrize("name", [None, "body"])
def test_tokens_are_averaged_without_padding(output, name):
    """One vector a token becomes their mean over the row's own tokens, whatever they come wrapped in."""
    net = Net(output)
    hidden = HiddenState(net, name)
    net()
    assert hidden.take(MASK).tolist() == [[1, 2], [6, 7]]


def test_one_vector_a_row_stays():
    """What is pooled already is taken as it is, in float32."""
    net = Net(torch.ones(2, 5, dtype=torch.float16))
    hidden = HiddenState(net, "body")
    net()
    assert hidden.take(MASK).tolist() == [[1] * 5] * 2


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (torch.ones(3, 3, 2), r"model.embedding body gives torch.float32 \(3, 3, 2\), expected"),
        (torch.ones(2, 4, 2), "gives 4 vectors for 3 tokens"),
        (torch.ones(2, 3, 2).long(), "torch.int64"),
        ("text", "gives str"),
    ],
)
def test_what_is_no_hidden_state(output, says):
    """Another number of rows or tokens, integers and other things are named."""
    net = Net(output)
    hidden = HiddenState(net, "body")
    net()
    with pytest.raises(ModelError, match=says):
        hidden.take(MASK)

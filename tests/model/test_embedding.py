import pytest
import torch
from torch import nn

from raystream.errors import ModelError
from raystream.model.signature import EmbeddingTap


def run(network, tap, rows):
    """One batch as the predictor runs it: logits and embedding."""
    with torch.inference_mode():
        tap.prepare(lambda inputs: network(*inputs), (rows,))
        logits = network(rows)
        return logits, tap.take(logits, rows.shape[0])


class Branches(nn.Module):
    """The head runs before an auxiliary Linear, and twice."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.aside = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, rows):
        features = self.body(rows)
        self.head(features + 100)
        logits = self.head(features)
        self.aside(features * 2)
        self.head(features - 100)
        return logits


class Fused(nn.Module):
    """Takes another path when a layer inside is hooked, as torch's transformer layers do; here the difference is plain."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, rows):
        return self.head(self.body(rows) + (1 if self.body._forward_hooks else 0))


def hooked(network):
    return [name for name, module in network.named_modules() if module._forward_hooks]


def test_the_input_of_the_layer_that_made_the_logits():
    """By default the embedding is the input of that very call of a Linear whose output is the logits, in every batch."""
    network = Branches().eval()
    tap = EmbeddingTap(network, None)
    for size in (5, 1, 3):
        rows = torch.randn(size, 4)
        logits, embedding = run(network, tap, rows)
        with torch.no_grad():
            assert torch.equal(embedding, network.body(rows))
            assert torch.equal(logits, network.head(embedding))


def test_later_batches_hook_one_layer():
    """All Linear layers are hooked on the first batch, that of the logits alone afterwards."""
    network = Branches().eval()
    tap = EmbeddingTap(network, None)
    assert hooked(network) == []
    run(network, tap, torch.randn(5, 4))
    assert hooked(network) == ["head"]


def test_the_first_batch_is_computed_like_the_others():
    """A worker's first batch gives bit for bit what it would give later, though fused layers see hooks."""
    network = Fused().eval()
    tap = EmbeddingTap(network, None)
    rows = torch.randn(3, 4)
    first, second = run(network, tap, rows), run(network, tap, rows)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize(("name", "width"), [("0", 8 * 16), ("2", 8), ("4", 3)])
def test_a_named_module_is_flattened(name, width):
    """A named module's output is the embedding, (n, d), whatever its shape."""
    network = nn.Sequential(nn.Conv1d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    rows = torch.randn(5, 1, 16)
    logits, embedding = run(network, EmbeddingTap(network, name), rows)
    assert torch.equal(embedding, network[: int(name) + 1](rows).flatten(1))
    assert logits.shape == (5, 3)
    assert embedding.shape == (5, width)


def test_an_activation_in_place_does_not_reach_the_embedding():
    """A named module's output is what it gave, also when the next module overwrites it."""
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 2)).eval()
    rows = torch.randn(9, 4)
    _, embedding = run(network, EmbeddingTap(network, "0"), rows)
    assert torch.equal(embedding, network[0](rows))
    assert embedding.min() < 0


def test_a_module_that_returns_several_tensors():
    """Of a tuple the first tensor counts, as for recurrent layers."""

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, rows):
            return self.head(self.cell(rows)[0][:, -1])

    network = Recurrent().eval()
    rows = torch.randn(3, 6, 4)
    _, embedding = run(network, EmbeddingTap(network, "cell"), rows)
    torch.testing.assert_close(embedding, network.cell(rows)[0].flatten(1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layer3.conv", "did you mean .*'layer3.conv1'"),
        ("zzzz", "it has layer3.conv1, layer3.conv2, head"),
        ("", "no module"),
    ],
)
def test_an_unknown_name_is_told_the_nearest(name, message):
    """A module that isn't there is an error that names those nearest to it, or the last ones."""
    network = nn.ModuleDict({"layer3": nn.ModuleDict({"conv1": nn.Conv1d(1, 1, 1), "conv2": nn.Conv1d(1, 1, 1)}), "head": nn.Linear(1, 2)})
    with pytest.raises(ModelError, match=message):
        EmbeddingTap(network, name)


def test_logits_that_no_linear_made():
    """Without a last Linear there is no default; the error asks for model.embedding and names modules. No hook is left."""
    network = nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(dim=1)).eval()
    with pytest.raises(ModelError, match=r"name a module in model\.embedding, such as 0, 1"):
        run(network, EmbeddingTap(network, None), torch.randn(5, 4))
    assert hooked(network) == []


def test_a_module_that_does_not_run():
    """A named module that the forward pass leaves out is an error, not an old embedding."""
    network = Branches().eval()
    network.unused = nn.Linear(1, 1)
    with pytest.raises(ModelError, match=r"model\.embedding unused did not run"):
        run(network, EmbeddingTap(network, "unused"), torch.randn(5, 4))


def test_an_embedding_of_another_shape():
    """A module whose output has no row for each row is refused with its shape."""
    network = nn.Sequential(nn.Linear(4, 3), nn.Flatten(0), nn.Unflatten(0, (-1, 3))).eval()
    with pytest.raises(ModelError, match=r"model.embedding 1 gives torch.float32 of shape \(15,\) for 5 rows"):
        run(network, EmbeddingTap(network, "1"), torch.randn(5, 4))

import inspect
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raystream.errors import ModelError
from raystream.model import load
from raystream.model.dropout_mode import keep_mask
from raystream.model.source import build_network
from raystream.model.torch_model import TorchPredictor
from raystream.query import Model

SAMPLES, SEED = 4, 11


class Net(nn.Module):
    """Dropout as a module, of whole channels, and functional, with batch norm between."""

    def __init__(self, p=0.4):
        super().__init__()
        self.conv, self.norm, self.channels = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Dropout2d(0.3 if p else 0.0)
        self.drop, self.head, self.p = nn.Dropout(p), nn.Linear(54, 3), p

    def forward(self, image):
        hidden = self.channels(torch.relu(self.norm(self.conv(image)))).flatten(1)
        hidden = self.drop(hidden)
        return self.head(F.dropout(hidden, self.p / 2, self.training)), hidden


class Attention(nn.Module):
    """Its attention drops weights in training only, and what follows drops, too."""

    def __init__(self):
        super().__init__()
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x):
        made = F.scaled_dot_product_attention(x, x, x, dropout_p=0.5 if self.training else 0.0)
        return self.head(self.drop(made.mean(1)))


def exported(network, path, example, decompose=False):
    rows = torch.export.Dim("rows")
    program = torch.export.export(network.eval(), (example,), dynamic_shapes=({0: rows},))
    torch.export.save(program.run_decompositions() if decompose else program, path)
    return str(path)


@pytest.fixture
def network():
    """With statistics of batch norm that a batch in training mode would change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net()
        net(torch.randn(64, 2, 5, 5) * 3)
        yield net.eval()


def by_hand(net, image, sample):
    """The reference: one sub-network, each call multiplied by its own mask; sample None drops nothing."""

    def drop(values, call, shape, p):
        return values if sample is None else values * torch.from_numpy(keep_mask(SEED, sample, call, shape, p)) / (1 - p)

    with torch.no_grad():
        hidden = drop(torch.relu(net.norm(net.conv(image))), 0, (1, 6, 1, 1), 0.3).flatten(1)
        hidden = drop(hidden, 1, (1, 54), 0.4)
        return net.head(drop(hidden, 2, (1, 54), 0.2)), hidden


@pytest.mark.parametrize("batch_size", [3, 100])
def test_the_flags_that_say_off_are_overruled(network, tmp_path, batch_size):
    """Each sample is one fixed sub-network for every row and batch; logits and embedding are those without dropout."""
    source = exported(network, tmp_path / "net.pt2", torch.randn(4, 2, 5, 5))
    model = load(Model(kind="export", source=source, batch_size=batch_size), embedding=True, mc_samples=SAMPLES, seed=SEED)
    image = torch.randn(10, 2, 5, 5)
    found = model.predict((image,))
    logits, hidden = by_hand(network, image, None)
    torch.testing.assert_close(found.logits, logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.embedding, hidden, atol=1e-5, rtol=1e-5)
    expected = torch.stack([by_hand(network, image, sample)[0] for sample in range(SAMPLES)], dim=1)
    torch.testing.assert_close(found.samples, expected, atol=1e-5, rtol=1e-5)
    assert load(Model(kind="export", source=source), embedding=False).predict((image,)).samples is None


def test_the_torch_kind_gives_the_same_samples(tmp_path, write_module):
    """A program is the model that it was exported from, sample by sample."""
    source = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n\n" + inspect.getsource(Net)
    write_module("dropping.py", source.replace("self.training)), hidden", "self.training))"))
    net = build_network("dropping:Net", {})
    path = exported(net, tmp_path / "same.pt2", torch.randn(4, 2, 5, 5))
    image = torch.randn(6, 2, 5, 5)
    one, other = (
        load(spec, embedding=False, mc_samples=SAMPLES, seed=SEED).predict((image,)).samples
        for spec in (Model(kind="export", source=path), Model(source="dropping:Net"))
    )
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_attention_that_was_exported_without_dropout_keeps_none(tmp_path):
    """The other dropout of the program is on; the samples are those of the head's dropout alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = Attention()
    source = exported(net, tmp_path / "attention.pt2", torch.randn(2, 5, 4))
    x = torch.randn(6, 5, 4)
    found = load(Model(kind="export", source=source), embedding=False, mc_samples=SAMPLES, seed=SEED).predict((x,))
    with torch.no_grad():
        made = F.scaled_dot_product_attention(x, x, x).mean(1)
        number = 1  # the attention is call 0
        masks = [torch.from_numpy(keep_mask(SEED, sample, number, (1, 4), 0.5)) for sample in range(SAMPLES)]
        expected = torch.stack([net.head(made * mask / 0.5) for mask in masks], dim=1)
    torch.testing.assert_close(found.samples, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_program_without_dropout_is_refused(network, tmp_path):
    """What run_decompositions removed, and p = 0, are an error with the reason, not a column of zeros."""
    example = torch.randn(4, 2, 5, 5)
    removed = exported(network, tmp_path / "removed.pt2", example, decompose=True)
    with pytest.raises(ModelError, match=r"its graph holds no dropout.*run_decompositions"):
        load(Model(kind="export", source=removed), embedding=False, mc_samples=SAMPLES)
    none = exported(Net(p=0.0), tmp_path / "none.pt2", example)
    with pytest.raises(ModelError, match=r"no dropout"):
        load(Model(kind="export", source=none), embedding=False, mc_samples=SAMPLES).predict((example,))


def scripted(network, path, how=torch.jit.script):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        how(network).save(str(path))
    return str(path)


@pytest.mark.parametrize("batch_size", [3, 100])
def test_scripted_code_draws_the_same_masks(network, tmp_path, batch_size):
    """Modules and functional calls of scripted code are on, each sample one fixed sub-network; the plain outputs stay what they are."""
    source = scripted(network, tmp_path / "net.pt")
    model = load(Model(kind="torchscript", source=source, batch_size=batch_size), embedding=True, mc_samples=SAMPLES, seed=SEED)
    for image in torch.randn(2, 10, 2, 5, 5):
        before = image.clone()
        found = model.predict((image,))
        logits, hidden = by_hand(network, image, None)
        torch.testing.assert_close(found.logits, logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.embedding, hidden, atol=1e-5, rtol=1e-5)
        expected = torch.stack([by_hand(network, image, sample)[0] for sample in range(SAMPLES)], dim=1)
        torch.testing.assert_close(found.samples, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(image, before)


class InPlace(nn.Module):
    """Drops its own input in place, and alpha dropout later."""

    def __init__(self):
        super().__init__()
        self.first, self.late, self.head = nn.Dropout(0.5, inplace=True), nn.AlphaDropout(0.3), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.late(self.first(x)))


def test_scripted_dropout_in_place(tmp_path):
    """The input of one sample is not what another has left; samples equal those of the module in Python."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        net = InPlace()
    x = torch.randn(7, 5)
    source = scripted(net, tmp_path / "in_place.pt")
    found = load(Model(kind="torchscript", source=source), embedding=False, mc_samples=SAMPLES, seed=SEED).predict((x,))
    plain = TorchPredictor(net, source="n:N", device=torch.device("cpu"), batch_size=9, mc_samples=SAMPLES, seed=SEED).predict((x,))
    torch.testing.assert_close(found.samples, plain.samples, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.logits, plain.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (
            lambda net: torch.jit.trace(net, torch.randn(4, 2, 5, 5)),
            r"was traced, with its dropout switched off for good; script the model",
        ),
        (
            lambda net: torch.jit.freeze(torch.jit.script(net)),
            r"its graph holds no dropout: .*torch.jit.freeze removed it; script the model",
        ),
    ],
)
def test_traced_and_frozen_graphs_are_refused_with_the_reason(network, tmp_path, how, says):
    """Neither has a flag to overrule; what to do instead is said."""
    source = scripted(network, tmp_path / "net.pt", how)
    with pytest.raises(ModelError, match=says):
        load(Model(kind="torchscript", source=source), embedding=False, mc_samples=SAMPLES)


def test_scripted_recurrent_dropout_is_refused(tmp_path):
    """What happens between an LSTM's layers can't be replaced, and isn't left out in silence."""

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells, self.drop, self.head = nn.LSTM(4, 5, 2, batch_first=True, dropout=0.3), nn.Dropout(0.5), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.drop(self.cells(x)[0][:, -1]))

    source = scripted(Recurrent().eval(), tmp_path / "recurrent.pt")
    with pytest.raises(ModelError, match=r"cells is LSTM with dropout between its layers"):
        load(Model(kind="torchscript", source=source), embedding=False, mc_samples=SAMPLES)

import importlib

import numpy as np
import pytest
import safetensors.torch
import torch
from pools import pool_table
from torch import nn

from raystream import run
from raystream.errors import ModelError, QueryError
from raystream.model import fingerprint, load
from raystream.model.committee import Committee
from raystream.model.prediction import Prediction
from raystream.model.source import build_network
from raystream.model.torch_model import TorchPredictor
from raystream.query import Model

CPU = torch.device("cpu")


@pytest.fixture
def files(nets, tmp_path):
    """Weights of three members of `nets:Net`, and the networks themselves."""
    paths, networks = [], []
    with torch.random.fork_rng(devices=[]):
        for seed in range(3):
            torch.manual_seed(seed)
            networks.append(importlib.import_module(nets).Net().eval())
            paths.append(str(tmp_path / f"w{seed}.safetensors"))
            safetensors.torch.save_file(networks[-1].state_dict(), paths[-1])
    return paths, networks


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_several_weights_are_a_committee(nets, files, temperature):
    """Samples are the members' logits; at the temperature, the softmax of the logits is the mean of the members' probabilities."""
    paths, networks = files
    model = load(Model(source=f"{nets}:Net", weights=paths, device="cpu", temperature=temperature), embedding=True)
    rows = torch.randn(9, 6)
    found = model.predict((rows,))
    with torch.no_grad():
        expected = torch.stack([network(rows) for network in networks], dim=1)
        torch.testing.assert_close(found.samples, expected)
        torch.testing.assert_close(found.embedding, networks[0].body(rows))
    mean = torch.stack([torch.softmax(expected[:, k].double() / temperature, 1) for k in range(3)]).mean(0)
    torch.testing.assert_close(torch.softmax(found.logits.double() / temperature, 1), mean, atol=1e-6, rtol=1e-6)
    assert found.logits.dtype == found.samples.dtype == torch.float32
    if temperature == 1:
        torch.testing.assert_close(found.logits.double(), mean.log(), atol=1e-6, rtol=1e-6)


def test_the_first_member_gives_the_embedding(nets, files):
    """Only it is hooked; with a named module too; without, there is none."""
    model = load(Model(source=f"{nets}:Net", weights=files[0], embedding="body", device="cpu"), embedding=True)
    rows = torch.randn(4, 6)
    torch.testing.assert_close(model.predict((rows,)).embedding, files[1][0].body(rows).detach())
    assert [any(m._forward_hooks for m in member._model.network.modules()) for _, member in model._members] == [True, False, False]
    assert load(Model(source=f"{nets}:Net", weights=files[0], device="cpu"), embedding=False).predict((rows,)).embedding is None


def test_members_of_different_sources(nets, files, write_module):
    """Members may be different networks with the same classes; how they run is said once, for all."""
    write_module("flat.py", "from torch import nn\n\n\ndef flat(classes=3):\n    return nn.Sequential(nn.Linear(6, classes))\n")
    members = [{"source": "flat:flat"}, {"source": f"{nets}:Net", "weights": files[0][1]}]
    model = load(Model(members=members, batch_size=4, device="cpu"), embedding=True)
    rows = torch.randn(9, 6)
    found = model.predict((rows,))
    assert model.batch_size == 4
    assert torch.equal(found.embedding, rows)
    torch.testing.assert_close(found.samples[:, 1], files[1][1](rows).detach())


def test_members_with_other_classes(nets, write_module):
    """Two members that don't have the same number of classes are an error that names both."""
    write_module("flat.py", "from torch import nn\n\n\ndef flat(classes=3):\n    return nn.Sequential(nn.Linear(6, classes))\n")
    members = [{"source": f"{nets}:Net"}, {"source": "flat:flat", "args": {"classes": 5}}]
    model = load(Model(members=members, device="cpu"), embedding=False)
    with pytest.raises(ModelError, match=r"model\.members 0 \(nets:Net\) has 3 classes, but model\.members 1 \(flat:flat\) has 5"):
        model.predict((torch.randn(2, 6),))


class Limited(nn.Module):
    """Refuses batches above a size, as a device with little memory does."""

    def __init__(self, limit):
        super().__init__()
        self.head, self.limit, self.sizes = nn.Linear(4, 3), limit, []

    def forward(self, rows):
        self.sizes.append(len(rows))
        if len(rows) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.head(rows)


def test_a_member_without_memory_halves_the_batch_of_all():
    """Once one member ran out of memory, all run in smaller batches; the same logits come out."""
    networks = [Limited(100), Limited(5)]
    members = [TorchPredictor(network, source="n:N", device=CPU, batch_size=16) for network in networks]
    model = Committee(members, ["one", "two"])
    rows = torch.randn(40, 4)
    found = model.predict((rows,))
    for member, network in enumerate(networks):
        torch.testing.assert_close(found.samples[:, member], network.head(rows).detach(), atol=1e-6, rtol=1e-6)
    assert model.batch_size == 4
    assert networks[0].sizes == [16] + [4] * 6
    assert model.predict((rows[:0],)).samples.shape == (0, 2, 3)


def test_certain_members_and_masked_classes():
    """Probabilities of 0 come out as 0, and NaN stays NaN."""
    inf = torch.inf
    logits = torch.tensor([[[0.0, -inf, -inf], [-inf, 0.0, -inf]], [[0.0, 0.0, 0.0], [torch.nan, 0.0, 0.0]]])

    class Fixed:
        device, state_hash, batch_size = CPU, "", 8

        def __init__(self, member):
            self.member = member

        def predict(self, inputs):
            return Prediction(logits[:, self.member], None)

    found = Committee([Fixed(0), Fixed(1)], ["one", "two"]).predict((torch.zeros(2, 1),))
    assert torch.softmax(found.logits[0], 0).tolist() == pytest.approx([0.5, 0.5, 0.0])
    assert found.logits[1].isnan().all()


def test_a_committee_has_no_dropout_samples(nets, files):
    """Its members are the samples; asking for both is an error."""
    with pytest.raises(ModelError, match="the model is a committee, whose members are the samples"):
        load(Model(source=f"{nets}:Net", weights=files[0]), embedding=False, mc_samples=5)


def test_the_state_is_that_of_all_members_in_order(nets, files):
    """Another member, or another order, is another state and another fingerprint; the fingerprint needs no import."""
    paths = files[0]
    orders = [paths, paths[::-1], paths[:2], [paths[0], paths[2]]]
    specs = [Model(source=f"{nets}:Net", weights=order, device="cpu") for order in orders]
    specs += [Model(members=[{"source": f"{nets}:Net", "weights": path} for path in order], device="cpu") for order in orders]
    specs += [Model(source=f"{nets}:Net", weights=paths[0])]
    assert len({fingerprint(spec) for spec in specs}) == len(specs)
    assert len({load(spec, embedding=False).state_hash for spec in specs[:4]}) == 4
    again = Model(source=f"{nets}:Net", weights=paths, batch_size=3, temperature=2.0)
    assert fingerprint(again) == fingerprint(specs[0])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"source": "a:b", "weights": ["one.pt"]}, r"model\.weights"),
        ({"source": "a:b", "members": [{"source": "a:b"}, {"source": "a:c"}]}, r"model\.source and model\.members are both given"),
        ({"members": [{"source": "a:b"}]}, r"model\.members"),
        ({"members": [{"source": "a:b"}, {"kind": "columns", "logits": "z"}]}, r"model\.members\.1 is of kind columns"),
        ({"members": [{"source": "a:b"}, {"source": "a:b", "weights": ["1.pt", "2.pt"]}]}, r"model\.members\.1 is a committee itself"),
        ({"members": [{"source": "a:b"}, {"source": "a:b", "precision": "float16"}]}, r"members\.1\.precision is the same for all members"),
        ({"members": [{"source": "a:b"}, {"args": {}}]}, r"model\.source is missing"),
    ],
)
def test_a_query_that_is_no_committee(model, message):
    """Wrong members and lists are errors of the query that name the key."""
    with pytest.raises(QueryError, match=message):
        Model(**model)


def test_a_query_with_a_committee(make_query, workplace):
    """The query runs on the mean of the members' probabilities, and another member is another query."""
    net = build_network("user_nets:net", {})
    states = []
    for scale in (1.0, -2.0, 3.0):
        states.append(str(workplace / f"w{scale}.safetensors"))
        safetensors.torch.save_file({name: value * scale for name, value in net.state_dict().items()}, states[-1])
    one, two = (
        run(make_query(model__weights=weights, select__strategy="top_k", acquire__score="entropy")) for weights in (states[:2], states)
    )
    assert one.query != two.query
    rows = torch.from_numpy(np.concatenate([pool_table(300, 300 * file)["x"].combine_chunks().flatten().to_numpy() for file in range(4)]))
    with torch.no_grad():
        probabilities = []
        for path in states[:2]:
            net.load_state_dict(safetensors.torch.load_file(path))
            probabilities.append(torch.softmax(net.eval()(rows.view(-1, 8)).double(), 1))
    mean = torch.stack(probabilities).mean(0)
    best = torch.sort(-(mean * mean.log()).sum(1), descending=True).values[:12]
    assert one.selection["score"].to_pylist() == pytest.approx(best.tolist(), abs=1e-5)


def test_the_same_weights_twice_are_no_committee(nets, files, tmp_path):
    """Members that agree on every row would give scores of zero: the two are named, whatever their files are called."""
    paths, networks = files
    copy = str(tmp_path / "copy.safetensors")
    safetensors.torch.save_file(networks[1].state_dict(), copy)
    with pytest.raises(ModelError, match=rf"{paths[1]} and model.weights {copy} are the same, so they agree on every row"):
        load(Model(source=f"{nets}:Net", weights=[*paths, copy], device="cpu"), embedding=False)

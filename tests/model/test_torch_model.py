import hashlib
import importlib
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import safetensors.torch
import torch
from torch import nn

from raystream.errors import ModelError
from raystream.model import Predictor, load
from raystream.model.signature import EmbeddingTap
from raystream.model.torch_model import TorchPredictor
from raystream.query import Model

CPU = torch.device("cpu")


class Limited(nn.Module):
    """Refuses batches above a size, as a device with little memory does."""

    def __init__(self, limit, error=None):
        super().__init__()
        self.head, self.limit, self.sizes = nn.Linear(4, 3), limit, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    def forward(self, rows):
        self.sizes.append(len(rows))
        if len(rows) > self.limit:
            raise self.error
        return self.head(rows)


def predictor(network, batch_size=16, **options):
    return TorchPredictor(network, source="nets:Net", device=CPU, batch_size=batch_size, **options)


def test_logits_and_embedding_of_a_query_model(nets, tmp_path):
    """The network of the query, with its weights, in evaluation mode, gives its logits and the input of its head."""
    trained = importlib.import_module(nets).Net(hidden=4).eval()
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(trained.state_dict(), path)
    spec = Model(source=f"{nets}:Net", args={"hidden": 4}, weights=str(path), device="cpu")
    model: Predictor = load(spec, embedding=True)
    rows = torch.randn(7, 6)
    for _ in range(2):
        found = model.predict((rows,))
        torch.testing.assert_close(found.logits, trained(rows).detach())
        torch.testing.assert_close(found.embedding, trained.body(rows).detach())
    assert model.device == CPU
    assert model.batch_size == 1024
    assert len(model.state_hash) == hashlib.sha256().digest_size * 2


def test_without_embedding_no_hook_is_set(nets):
    """When embeddings aren't wanted there are none, and nothing slows the network, even with a name that is wrong."""
    model = load(Model(source=f"{nets}:Net", embedding="nowhere"), embedding=False)
    assert model.predict((torch.randn(2, 6),)).embedding is None
    assert not any(module._forward_hooks for module in model._model.network.modules())


def test_a_network_without_weights_is_the_same_everywhere(nets):
    """Two workers that build a network by a factory get the same state and the same logits."""
    one, two = (load(Model(source=f"{nets}:random_bias", device="cpu"), embedding=False) for _ in range(2))
    rows = torch.randn(3, 6)
    assert one.state_hash == two.state_hash
    assert torch.equal(one.predict((rows,)).logits, two.predict((rows,)).logits)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_mixed_precision_comes_out_as_float32(nets, precision):
    """Under autocast logits and embeddings are near those of float32 and upcast to it."""
    rows = torch.randn(5, 6)
    exact = load(Model(source=f"{nets}:Net", device="cpu"), embedding=True).predict((rows,))
    found = load(Model(source=f"{nets}:Net", device="cpu", precision=precision), embedding=True).predict((rows,))
    assert found.logits.dtype == found.embedding.dtype == torch.float32
    assert not torch.equal(found.logits, exact.logits)
    torch.testing.assert_close(found.logits, exact.logits, atol=0.05, rtol=0.05)
    torch.testing.assert_close(found.embedding, exact.embedding, atol=0.05, rtol=0.05)


def test_more_rows_than_the_batch_size_run_in_pieces():
    """batch_size bounds what runs at once, and no row is dropped or moved."""
    network = Limited(limit=16)
    rows = torch.randn(53, 4)
    found = predictor(network).predict((rows,))
    assert network.sizes == [16, 16, 16, 5]
    torch.testing.assert_close(found.logits, network.head(rows).detach())


@pytest.mark.parametrize(
    "error",
    [
        None,
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
@pytest.mark.parametrize("embedding", [False, True])
def test_memory_that_ran_out_halves_the_batch(error, embedding):
    """A batch that doesn't fit is halved until it does, for good; the same rows come out, equal to 1e-6."""
    network = Limited(limit=3, error=error)
    tap = EmbeddingTap(network, None) if embedding else None
    model = predictor(network, embedding=tap)
    rows = torch.randn(16, 4)
    found = model.predict((rows,))
    torch.testing.assert_close(found.logits, network.head(rows).detach(), atol=1e-6, rtol=1e-6)
    assert model.batch_size == 2
    assert not embedding or torch.equal(found.embedding, rows)
    network.sizes.clear()
    model.predict((rows,))
    assert network.sizes == [2] * 8


def test_a_small_batch_that_does_not_fit_halves_its_own_size():
    """What is halved is the number of rows that failed, not a limit far above it."""
    model = predictor(Limited(limit=5), batch_size=1024)
    model.predict((torch.randn(9, 4),))
    assert model.batch_size == 4


def test_one_row_that_does_not_fit_is_an_error():
    """Halving ends at one row, with an error that gives the cause."""
    with pytest.raises(ModelError, match=r"one row does not fit into the memory of cpu \(CUDA out of memory\. Tried.*GiB\)") as caught:
        predictor(Limited(limit=0)).predict((torch.randn(4, 4),))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_lost_device_is_not_hidden():
    """A CUDA error other than memory comes through as it is, for the worker to end its process."""
    error = torch.AcceleratorError("CUDA error: device-side assert triggered")
    with pytest.raises(torch.AcceleratorError) as caught:
        predictor(Limited(limit=0, error=error)).predict((torch.randn(4, 4),))
    assert caught.value is error


def test_inputs_that_the_network_refuses():
    """A forward pass that raises is the model's error and says what it was given; nothing is retried."""
    network = Limited(limit=9)
    with pytest.raises(ModelError, match=r"nets:Net raised RuntimeError: mat1.*on inputs float32 \(4, 7\); check that pool.inputs"):
        predictor(network).predict((torch.randn(4, 7),))
    with pytest.raises(ModelError, match=r"TypeError.*float32 \(4, 4\), int64 \(4,\)"):
        predictor(network).predict((torch.randn(4, 4), torch.arange(4)))
    assert network.sizes == [4]


def test_several_inputs_are_passed_in_order():
    """Each input column is one argument of forward."""

    class Two(nn.Module):
        def forward(self, left, right):
            return torch.stack([left, right], dim=1)

    found = predictor(Two(), batch_size=2).predict((torch.arange(5.0), torch.arange(5.0) * 10))
    assert found.logits.tolist() == [[n, n * 10] for n in range(5)]


class Tall(nn.Module):
    """Gives each number as a row of its own."""

    def forward(self, rows):
        return rows.reshape(-1, 1)


def test_an_output_that_is_not_logits_names_the_source():
    """The model that gives something else than logits is named, and what it was given: several columns may come as one tensor."""
    with pytest.raises(ModelError, match=r"^model\.source nets:Net returned float32 \(16, 1\) for 4 rows, expected logits") as raised:
        predictor(Tall()).predict((torch.randn(4, 4),))
    assert str(raised.value).endswith("; it was given float32 (4, 4)")


def test_no_rows_give_no_logits():
    """An empty batch runs and gives no rows."""
    found = predictor(Limited(limit=9), embedding=None).predict((torch.zeros(0, 4),))
    assert found.logits.shape == (0, 3)


def test_a_named_embedding_that_is_not_there_fails_at_once(nets):
    """A wrong module name is found when the model is loaded, before any row is read."""
    with pytest.raises(ModelError, match=r"model\.embedding is 'haed'.*did you mean 'head'"):
        load(Model(source=f"{nets}:Net", embedding="haed"), embedding=True)


def test_models_made_at_the_same_time_are_the_same(nets):
    """Factories draw from the process's generators, one after the other: in threads, too, each gives what it gives alone."""
    alone = load(Model(source=f"{nets}:Net", device="cpu"), embedding=False).state_hash
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: load(Model(source=f"{nets}:Net", device="cpu"), embedding=False).state_hash, range(40)))
    assert set(made) == {alone}

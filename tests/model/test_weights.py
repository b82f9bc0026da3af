import argparse
import pickle
import zipfile
from collections import OrderedDict

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raystream.errors import ModelError
from raystream.model.weights import load_weights, state_hash


def network(hidden=4):
    return nn.Sequential(nn.Linear(3, hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, 2))


def save(state, path):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
def test_weights_are_loaded(tmp_path, suffix):
    """A file of any known format makes the network equal to the one that was saved, buffers included."""
    trained = network()
    trained[1].running_mean += 3
    other = network()
    load_weights(other, save(trained.state_dict(), tmp_path / f"w{suffix}"))
    assert state_hash(other) == state_hash(trained)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict"])
def test_a_checkpoint_may_nest_the_state(tmp_path, key):
    """A training script's checkpoint is looked into for its state."""
    trained, other = network(), network()
    load_weights(other, save({"epoch": 3, key: trained.state_dict()}, tmp_path / "w.pt"))
    assert state_hash(other) == state_hash(trained)


def test_one_of_tied_weights_is_enough(tmp_path):
    """safetensors keep one of tied tensors; that is no missing weight."""
    trained, other = Tied(), Tied()
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_model(trained, str(path))
    load_weights(other, str(path))
    assert torch.equal(other.second.weight, trained.first.weight)


def test_a_lazy_module_takes_its_sizes_from_the_weights(tmp_path):
    """A lazy layer is filled by weights; without them it has no state to hash."""
    lazy = nn.Sequential(nn.LazyLinear(2))
    with pytest.raises(ModelError, match=r"has no values yet"):
        state_hash(lazy)
    trained = nn.Sequential(nn.Linear(3, 2))
    load_weights(lazy, save(trained.state_dict(), tmp_path / "w.safetensors"))
    assert torch.equal(lazy[0].weight, trained[0].weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("2.bias"), r"missing 2\.bias \(2,\)"),
        (lambda s: s.update(extra=torch.zeros(4, 5)), r"unexpected extra \(4, 5\)"),
        (lambda s: s.update({"2.weight": torch.zeros(9, 4)}), r"wrongly shaped 2\.weight \(9, 4\) instead of \(2, 4\)"),
        (lambda s: [s.pop(name) for name in list(s)], r"missing 0\.weight \(4, 3\), 0\.bias \(4,\), 1\.weight \(4,\) and 6 more"),
    ],
)
def test_every_tensor_must_fit(tmp_path, change, message):
    """What is missing, unexpected or wrongly shaped is named with its shape, three of each, and nothing is loaded."""
    state = dict(network().state_dict())
    change(state)
    other = network()
    before = state_hash(other)
    with pytest.raises(ModelError, match=message):
        load_weights(other, save(state, tmp_path / "w.safetensors"))
    assert state_hash(other) == before


class Runs:
    def __reduce__(self):
        return (print, ("this ran",))


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    """Loading a checkpoint runs nothing: whole modules and other objects are refused with the reason."""
    for content in (Runs(), {"a": Runs()}, network()):
        with pytest.raises(ModelError, match="does not load pickles, which can run code; save"):
            load_weights(network(), save(content, tmp_path / "w.pt"))
    path = tmp_path / "raw.bin"
    path.write_bytes(pickle.dumps(Runs(), protocol=2))
    with pytest.raises(ModelError, match="does not load pickles"):
        load_weights(network(), str(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.safetensors", None, "is not there"),
        ("w.safetensors", b"12345678garbage", "can't be read: SafetensorError"),
        ("w.pt", b"hello", "can't be read|holds more than tensors"),
        ("w.pt", b"", "can't be read: EOFError"),
        ("w.npz", b"", r"ends in '\.npz', expected one of \.safetensors, \.pt"),
    ],
)
def test_what_is_no_checkpoint_is_explained(tmp_path, name, content, message):
    """Missing, broken and unknown files give an error that names the file."""
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        load_weights(network(), str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("content", "message"), [([torch.zeros(1)], "holds list"), ({"a": 3}, "holds int at 'a'")])
def test_what_is_no_state_is_explained(tmp_path, content, message):
    """A checkpoint of harmless objects that isn't a state dict says what it holds."""
    with pytest.raises(ModelError, match=message):
        load_weights(network(), save(content, tmp_path / "w.pt"))


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([name for name in network().state_dict()]), st.integers(0, 100))
def test_the_hash_sees_every_tensor(name, position):
    """Changing one number of any parameter or buffer changes the state's hash; copying doesn't."""
    one, two = network(), network()
    two.load_state_dict(one.state_dict())
    assert state_hash(one) == state_hash(two)
    flat = two.state_dict()[name].view(-1)
    flat[position % flat.numel()] += 1
    assert state_hash(one) != state_hash(two)


def test_the_hash_sees_names_dtypes_and_shapes():
    """Equal bytes under another name, dtype or shape are another state."""

    def with_buffer(name, value):
        module = nn.Module()
        module.register_buffer(name, value)
        return state_hash(module)

    zeros = torch.zeros(4)
    variants = [with_buffer("a", zeros), with_buffer("b", zeros), with_buffer("a", zeros.view(2, 2)), with_buffer("a", zeros.int())]
    others = (torch.zeros(8, dtype=torch.bfloat16), torch.tensor(0.0), torch.zeros(0))
    variants += [with_buffer("a", other) for other in others]
    assert len(set(variants)) == len(variants)


class Pickled:
    """Anything that weights_only refuses."""


def test_a_checkpoint_with_objects_is_loaded_if_it_is_trusted(tmp_path):
    """model.trust: pickle loads checkpoints with objects beside the tensors, and whole pickled models; safe refuses both."""
    source, target = nn.Linear(2, 3), nn.Linear(2, 3)
    path = tmp_path / "w.pt"
    for content in ({"state_dict": source.state_dict(), "settings": Pickled()}, source):
        torch.save(content, path)
        with pytest.raises(ModelError, match=r"raystream does not load pickles.* or set model.trust to pickle"):
            load_weights(target, str(path))
        load_weights(target, str(path), "pickle")
        assert torch.equal(target.weight, source.weight)
        nn.init.zeros_(target.weight)
    path.write_bytes(b"\x80\x02garbage")
    with pytest.raises(ModelError, match=r"w\.pt is no checkpoint|can't be"):
        load_weights(target, str(path), "pickle")


def test_an_archive_of_a_whole_model_is_no_checkpoint(tmp_path):
    """TorchScript is named with what to do, instead of torch's own advice to run what is in it."""
    path = tmp_path / "scripted.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("scripted/constants.pkl", b"")  # what torch.jit.save writes beside the code
    with pytest.raises(ModelError, match=r"is a TorchScript archive, expected a state dict.*kind: torchscript") as found:
        load_weights(nn.Linear(2, 2), str(path))
    assert "weights_only" not in str(found.value)


PREFIXES = ["module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "model.net.", "_orig_mod.module.model.", "students.first."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_prefix_that_every_tensor_has_is_left_out(tmp_path, prefix, suffix):
    """As DataParallel, torch.compile and trainers write it, in any combination; what was left out is said."""
    trained, other = network(), network()
    path = save({prefix + name: values for name, values in trained.state_dict().items()}, tmp_path / f"w{suffix}")
    assert load_weights(other, path) == (f"model.weights {path}: {prefix!r} was left out of the names of its 9 tensors",)
    assert state_hash(other) == state_hash(trained)
    assert load_weights(other, save(trained.state_dict(), tmp_path / f"plain{suffix}")) == ()


def test_a_prefix_that_belongs_to_the_network_stays(tmp_path):
    """Names that fit are left alone, and no more is left out than is needed; what fits in no way is refused by its own names."""
    whole = nn.ModuleDict({"model": network()})
    trained = nn.ModuleDict({"model": network()})
    assert load_weights(whole, save(trained.state_dict(), tmp_path / "a.pt")) == ()
    assert state_hash(whole) == state_hash(trained)
    doubled = {f"model.{name}": values for name, values in trained.state_dict().items()}
    assert "'model.' was" in load_weights(whole, save(doubled, tmp_path / "b.pt"))[0]
    some = {(f"model.{name}" if "0" in name else name): values for name, values in network().state_dict().items()}
    with pytest.raises(ModelError, match=r"unexpected model\.0\.weight"):
        load_weights(network(), save(some, tmp_path / "c.pt"))


def test_a_network_of_which_a_part_was_compiled(tmp_path):
    """torch.compile puts its name in the middle, then; the network that it is loaded into is the plain one."""
    trained, other = network(), network()
    state = {name.replace("0.", "0._orig_mod."): values for name, values in trained.state_dict().items()}
    assert "'_orig_mod.' was left out" in load_weights(other, save(state, tmp_path / "w.pt"))[0]
    assert state_hash(other) == state_hash(trained)
    assert "'module. and _orig_mod.'" in load_weights(other, save({f"module.{k}": v for k, v in state.items()}, tmp_path / "m.pt"))[0]


LIGHTNING = {"epoch": 3, "global_step": 40, "pytorch-lightning_version": "2.4.0", "loops": {}, "callbacks": {}, "optimizer_states": [{}]}
TIMM = {"epoch": 3, "arch": "resnet", "optimizer": {"state": {}}, "metric": 0.7, "args": argparse.Namespace(model="resnet", lr=0.1)}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("last.ckpt", lambda state: {**LIGHTNING, "state_dict": OrderedDict({f"model.{key}": values for key, values in state.items()})}),
        ("model_best.pth.tar", lambda state: {**TIMM, "state_dict": state, "state_dict_ema": state}),
        ("checkpoint.pth", lambda state: {"model": {f"module.{key}": values for key, values in state.items()}, "lr_scheduler": {}}),
        ("both.pt", lambda state: {"model": {"state_dict": state}}),
    ],
)
def test_checkpoints_as_trainers_write_them(tmp_path, name, content):
    """Lightning's, timm's and torchvision's are opened without running code."""
    trained, other = network(), network()
    load_weights(other, save(content(trained.state_dict()), tmp_path / name))
    assert state_hash(other) == state_hash(trained)


def test_a_checkpoint_with_two_states_is_refused(tmp_path):
    """Which one is meant can't be told."""
    state = network().state_dict()
    with pytest.raises(ModelError, match="holds state_dict and model, expected one state"):
        load_weights(network(), save({"state_dict": state, "model": state}, tmp_path / "w.pt"))

"""kinds export and torchscript: a compiled network gives what the network itself gives."""

import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from raystream.errors import ModelError
from raystream.model import fingerprint, load
from raystream.query import Model


class Net(nn.Module):
    def __init__(self, mode: str = "dict", inputs: int = 6):
        super().__init__()
        self.body = nn.Linear(inputs, 5)
        self.norm = nn.BatchNorm1d(5)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(5, 3)

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.norm(self.body(rows)).relu()
        return self.head(self.drop(hidden)), hidden


class Alone(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, rows):
        return self.net(rows)[0]


def exported(network, path, axis=True):
    batch = torch.export.Dim("batch")
    program = torch.export.export(network.eval(), (torch.randn(4, 6),), dynamic_shapes=({0: batch},) if axis else None)
    torch.export.save(program, path)
    return str(path)


def scripted(network, path, how=torch.jit.script):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        how(network).save(str(path))
    return str(path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The network, and a model of each kind that was made of it; the scripted one was left in training mode."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    network = Net()
    network(torch.randn(64, 6))  # moves the running statistics
    script = scripted(network.train(), folder / "net.pt")
    files = {"export": exported(network, folder / "net.pt2"), "torchscript": script}
    return network.eval(), {kind: Model(kind=kind, source=path, batch_size=4) for kind, path in files.items()}


@pytest.mark.parametrize("kind", ["export", "torchscript"])
def test_outputs_are_the_networks(saved, kind):
    """Logits and embedding equal the network's in evaluation mode, for one row, a whole batch and a ragged last one."""
    network, models = saved
    model = load(models[kind], embedding=True)
    for rows in (1, 4, 11):
        values = torch.randn(rows, 6)
        with torch.no_grad():
            logits, hidden = network(values)
        found = model.predict((values,))
        torch.testing.assert_close(found.logits, logits)
        torch.testing.assert_close(found.embedding, hidden)
    assert load(models[kind], embedding=False).predict((values,)).embedding is None
    assert (model.device.type, model.batch_size, len(model.state_hash)) == ("cpu", 4, 64)


@pytest.mark.parametrize("kind", ["export", "torchscript"])
def test_inputs_that_do_not_fit(saved, kind):
    """A wrong width and a wrong number of inputs are one sentence each, with what was given."""
    model = load(saved[1][kind], embedding=False)
    with pytest.raises(ModelError, match=r"float32 \(2, 7\)"):
        model.predict((torch.randn(2, 7),))
    with pytest.raises(ModelError, match=r"takes 1 inputs.* but pool.inputs gives 2"):
        model.predict((torch.randn(2, 6), torch.randn(2, 6)))


def test_the_exports_input_is_named_with_its_shape(saved):
    """An export says what it expects."""
    with pytest.raises(ModelError, match=r"input rows float32 \(any, 6\) got float32 \(2, 7\)"):
        load(saved[1]["export"], embedding=False).predict((torch.randn(2, 7),))


def test_an_embedding_that_is_not_there(saved, tmp_path):
    """Logits alone: the error says how to export an embedding; a wrong name: which outputs there are."""
    spec = Model(kind="export", source=exported(Alone(), tmp_path / "alone.pt2"))
    assert load(spec, embedding=False).predict((torch.randn(2, 6),)).logits.shape == (2, 3)
    with pytest.raises(ModelError, match=r"gives logits alone, but an embedding is needed; return \(logits, embedding\) from forward and"):
        load(spec, embedding=True).predict((torch.randn(2, 6),))
    named = saved[1]["torchscript"].model_copy(update={"embedding": "body"})
    with pytest.raises(ModelError, match=r"model.embedding is 'body', which is no output of model.source .*; it has 0, 1"):
        load(named, embedding=True).predict((torch.randn(2, 6),))


def test_an_export_of_one_batch_size(tmp_path):
    """Exported without a dynamic axis, it is refused before a row is read."""
    path = exported(Net(), tmp_path / "fixed.pt2", axis=False)
    with pytest.raises(ModelError, match=r"takes batches of exactly 4 rows"):
        load(Model(kind="export", source=path), embedding=False)


def test_traced_and_frozen_modules_run(saved, tmp_path):
    """TorchScript comes in three forms; all give the same logits."""
    network, _ = saved
    rows = torch.randn(5, 6)

    def frozen(module):
        return torch.jit.freeze(torch.jit.script(module))

    for name, how in (("traced", lambda module: torch.jit.trace(module, rows)), ("frozen", frozen)):
        path = scripted(network, tmp_path / f"{name}.pt", how)
        found = load(Model(kind="torchscript", source=path), embedding=True).predict((rows,))
        torch.testing.assert_close(found.logits, network(rows)[0].detach())


def test_files_of_another_kind(saved, tmp_path):
    """A checkpoint, the other kind's file and garbage are each called what they are."""
    torch.save(Net().state_dict(), tmp_path / "state.pt")
    (tmp_path / "text.pt2").write_text("hello")
    script, program = saved[1]["torchscript"].source, saved[1]["export"].source
    cases = [
        ("torchscript", tmp_path / "state.pt", "is a torch checkpoint, expected a TorchScript archive"),
        ("torchscript", program, "is a torch.export archive, expected a TorchScript archive"),
        ("export", script, "is a TorchScript archive, expected a torch.export archive"),
        ("export", tmp_path / "text.pt2", "is something else, expected a torch.export archive"),
        ("export", tmp_path / "gone.pt2", "is not there"),
    ]
    for kind, path, says in cases:
        with pytest.raises(ModelError, match=says):
            load(Model(kind=kind, source=str(path)), embedding=False)


def test_a_damaged_archive_is_one_sentence(saved, tmp_path):
    """An archive that lacks a part is refused with torch's reason, without its log lines."""
    for kind, lost in (("export", "model.json"), ("torchscript", "data.pkl")):
        damaged = tmp_path / f"damaged.{kind}"
        with zipfile.ZipFile(saved[1][kind].source) as whole, zipfile.ZipFile(damaged, "w") as part:
            for name in whole.namelist():
                if not name.endswith("/" + lost):
                    part.writestr(name, whole.read(name))
        with pytest.raises(ModelError, match=r"can't be loaded by torch [^\n]*again$"):
            load(Model(kind=kind, source=str(damaged)), embedding=False)


def test_the_fingerprint_follows_the_file(saved, tmp_path):
    """Another content is another model; another place isn't; the kind counts."""
    spec = saved[1]["torchscript"]
    moved = tmp_path / "moved.pt"
    content = Path(spec.source).read_bytes()
    moved.write_bytes(content)
    assert fingerprint(spec) == fingerprint(Model(kind="torchscript", source=str(moved)))
    moved.write_bytes(content + b"\0")
    assert fingerprint(spec) != fingerprint(Model(kind="torchscript", source=str(moved)))
    assert fingerprint(spec) != fingerprint(spec.model_copy(update={"kind": "export"}))
    assert fingerprint(spec) != fingerprint(spec.model_copy(update={"version": "2"}))
    with pytest.raises(ModelError, match=r"is not there"):
        fingerprint(Model(kind="export", source=str(tmp_path / "gone.pt2")))

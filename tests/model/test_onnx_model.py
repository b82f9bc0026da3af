import pytest
import torch
from torch import nn

from raystream.errors import ModelError
from raystream.model import fingerprint, load
from raystream.query import Model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def build(path, *, batch="n", kind=FLOAT, hidden_first=False, external=None):
    """hidden = relu(rows @ a), logits = hidden @ b + offset; returns the three arrays."""
    torch.manual_seed(0)
    arrays = [torch.randn(6, 5), torch.randn(5, 3), torch.randn(3)]
    constants = [numpy_helper.from_array(array.numpy(), name) for array, name in zip(arrays, "ab_", strict=True)]
    nodes = [
        helper.make_node("Cast", ["rows"], ["x"], to=FLOAT),
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "b"], ["m"]),
        helper.make_node("Add", ["m", "_"], ["logits"]),
    ]
    outputs = [helper.make_tensor_value_info("logits", FLOAT, [batch, 3]), helper.make_tensor_value_info("hidden", FLOAT, [batch, 5])]
    inputs = [helper.make_tensor_value_info("rows", kind, [batch, 6])]
    graph = helper.make_graph(nodes, "g", inputs, outputs[::-1] if hidden_first else outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    keep = {"save_as_external_data": True, "location": external, "size_threshold": 0} if external else {}
    onnx.save_model(model, str(path), **keep)
    return arrays


@pytest.mark.parametrize("hidden_first", [False, True])
def test_outputs_are_the_graphs(tmp_path, hidden_first):
    """Logits and embedding equal torch on the same arrays; by name they are found in any order."""
    a, b, offset = build(tmp_path / "m.onnx", hidden_first=hidden_first)
    model = load(Model(kind="onnx", source=str(tmp_path / "m.onnx"), batch_size=4), embedding=True)
    for rows in (1, 11):
        values = torch.randn(rows, 6)
        hidden = (values @ a).relu()
        found = model.predict((values,))
        torch.testing.assert_close(found.embedding, hidden, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.logits, hidden @ b + offset, rtol=1e-5, atol=1e-5)
    assert load(Model(kind="onnx", source=str(tmp_path / "m.onnx")), embedding=False).predict((values,)).embedding is None


def test_an_output_that_is_not_there(tmp_path):
    """A wrong name says so when the model is loaded, with the nearest one."""
    build(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"model.embedding is 'hiden', which is no output of .*; did you mean 'hidden'\?"):
        load(Model(kind="onnx", source=str(tmp_path / "m.onnx"), embedding="hiden"), embedding=True)


def test_inputs_that_do_not_fit(tmp_path):
    """Name, dtype and shape expected stand beside those that came; a fixed batch is refused at once."""
    build(tmp_path / "m.onnx")
    model = load(Model(kind="onnx", source=str(tmp_path / "m.onnx")), embedding=False)
    with pytest.raises(ModelError, match=r"m\.onnx: input rows float32 \(n, 6\) got float32 \(2, 7\)"):
        model.predict((torch.ones(2, 7),))
    with pytest.raises(ModelError, match=r"takes 1 inputs \(rows float32 \(n, 6\)\), but pool.inputs gives 2"):
        model.predict((torch.ones(2, 6),) * 2)
    build(tmp_path / "ids.onnx", kind=INT64)
    ids = load(Model(kind="onnx", source=str(tmp_path / "ids.onnx")), embedding=False)
    assert ids.predict((torch.ones(2, 6, dtype=torch.int32),)).logits.shape == (2, 3)
    with pytest.raises(ModelError, match=r"input rows int64 \(n, 6\) got float32 \(2, 6\)"):
        ids.predict((torch.ones(2, 6),))
    build(tmp_path / "one.onnx", batch=1)
    with pytest.raises(ModelError, match=r"takes batches of exactly 1 rows"):
        load(Model(kind="onnx", source=str(tmp_path / "one.onnx")), embedding=False)


def test_files_that_are_no_onnx_models(tmp_path):
    """Garbage is refused with onnxruntime's reason, known formats by their name."""
    (tmp_path / "a.onnx").write_text("hello")
    torch.save({}, tmp_path / "b.onnx")
    with pytest.raises(ModelError, match=r"a\.onnx is no model that onnxruntime [\d.]+ can run: [^\n]+; export it again"):
        load(Model(kind="onnx", source=str(tmp_path / "a.onnx")), embedding=False)
    with pytest.raises(ModelError, match=r"b\.onnx is a torch checkpoint, expected an ONNX model"):
        load(Model(kind="onnx", source=str(tmp_path / "b.onnx")), embedding=False)


def test_weights_beside_the_model_count(tmp_path):
    """Weights in a file of their own are loaded, and change the fingerprint when they change."""
    a, b, offset = build(tmp_path / "m.onnx", external="weights.bin")
    spec = Model(kind="onnx", source=str(tmp_path / "m.onnx"))
    values = torch.randn(3, 6)
    expected = (values @ a).relu() @ b + offset
    torch.testing.assert_close(load(spec, embedding=False).predict((values,)).logits, expected, rtol=1e-5, atol=1e-5)
    before, content = fingerprint(spec), bytearray((tmp_path / "weights.bin").read_bytes())
    content[0] ^= 1
    (tmp_path / "weights.bin").write_bytes(content)
    assert fingerprint(spec) != before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_torch_exports(tmp_path):
    """A network that torch.onnx.export wrote gives what the network gives."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(6, 300), nn.Linear(300, 3)

        def forward(self, rows):
            hidden = self.body(rows).relu()
            return self.head(hidden), hidden

    network, path = Net().eval(), tmp_path / "net.onnx"
    axes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(network, (torch.randn(4, 6),), path, dynamo=True, dynamic_shapes=axes, output_names=["logits", "hidden"])
    values = torch.randn(9, 6)
    found = load(Model(kind="onnx", source=str(path), batch_size=4), embedding=True).predict((values,))
    logits, hidden = network(values)
    torch.testing.assert_close(found.logits, logits.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.embedding, hidden.detach(), rtol=1e-5, atol=1e-5)

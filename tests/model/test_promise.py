"""What a model promises, as a table: every kind against every promise that it can break, by formulas of numpy."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from raystream.errors import ModelError, QueryError
from raystream.model import bad_output_rows, load
from raystream.query import Model

onnx = pytest.importorskip("onnx")
skops_io = pytest.importorskip("skops.io")
transformers = pytest.importorskip("transformers")

X = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
W = np.array([[1.5, -2, 0.5, 0], [0.3, 1, -1, 2], [-1, 0.2, 0.7, -0.4]], np.float32)
Z = X.astype(np.float64) @ W

MODELS = """
import dataclasses
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

W = torch.tensor([[1.5, -2, .5, 0], [.3, 1, -1, 2], [-1, .2, .7, -.4]])


@dataclasses.dataclass
class Output:
    loss: Any
    logits: Any


class Pair(NamedTuple):
    features: Any
    logits: Any


ENDINGS = {
    "logits": lambda z: z,
    "softmax": lambda z: z.softmax(1),
    "one": lambda z: z[:, :1],
    "flat": lambda z: z[:, 0],
    "one sigmoid": lambda z: z[:, :1].sigmoid(),
    "flat sigmoid": lambda z: z[:, 0].sigmoid(),
    "sigmoids": lambda z: z.sigmoid(),
    "random": lambda z: F.dropout(z, 0.5),
    "dict": lambda z: {"features": z * 2, "logits": z},
    "out": lambda z: {"out": z, "aux": z * 2},
    "only": lambda z: {"scores": z},
    "dataclass": lambda z: Output(None, z),
    "named tuple": lambda z: Pair(z * 2, z),
    "tuple": lambda z: (z,),
    "list": lambda z: [z],
    "named probabilities": lambda z: {"probabilities": z.softmax(1)},
    "two": lambda z: (z, z * 2),
    "strange": lambda z: {"a": z, "b": z * 2},
}


class Net(nn.Module):
    def __init__(self, ending="logits", dtype="float32"):
        super().__init__()
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = nn.Parameter(W.T.clone())
        self.ending = ending
        self.to(getattr(torch, dtype))

    def forward(self, x):
        return ENDINGS[self.ending](self.head(x))


class Object:
    def __init__(self, ending="logits", named="logits"):
        self.ending, self.named = ending, named

    def predict(self, inputs):
        made = ENDINGS[self.ending](inputs[0] @ W)
        return {self.named: made} if self.named else made
"""


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def save_onnx(path: Path, ending: str) -> None:
    """The same network as a graph."""
    from onnx import TensorProto, helper, numpy_helper

    constants = [numpy_helper.from_array(values, name) for name, values in (("W", W), ("first", np.array([0])), ("0", np.array(0)))]
    nodes = [helper.make_node("MatMul", ["x", "W"], ["z"])]
    last = "z"

    def then(op: str, *inputs: str, **how: Any) -> None:
        nonlocal last
        nodes.append(helper.make_node(op, [last, *inputs], [f"{last}'"], **how))
        last = f"{last}'"

    if "one" in ending or "flat" in ending:
        then("Gather", "first" if "one" in ending else "0", axis=1)
    if "sigmoid" in ending:
        then("Sigmoid")
    if ending == "softmax":
        then("Softmax", axis=1)
    if ending == "random":
        nodes.append(helper.make_node("RandomNormalLike", ["z"], ["noise"]))
        then("Add", "noise")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value("x", TensorProto.FLOAT, ["n", 3])], [value(last, TensorProto.FLOAT, None)], constants)
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


@pytest.fixture
def make(write_module: Callable[..., Any], tmp_path: Path) -> Callable[..., tuple[Model, tuple[Any, ...]]]:
    """A model of a kind whose outputs end so, and the inputs on which it gives them for the rows X."""
    write_module("promised.py", MODELS)

    def network(ending: str) -> torch.nn.Module:
        import promised

        return promised.Net(ending).eval()

    def made(kind: str, ending: str, **keys: Any) -> tuple[Model, tuple[Any, ...]]:
        args, x = {"ending": ending}, torch.from_numpy(X)
        if kind == "members":
            output = {"output": keys.pop("output")} if "output" in keys else {}
            first = {"source": "promised:Net", "args": args, **output}
            return Model(members=[first, first | {"kind": "python", "source": "promised:Object"}], **keys), (x,)
        if kind == "columns":
            column = {"probabilities": "p"} if keys.get("output") == "probabilities" else {"logits": "z"}
            import promised

            return Model(kind=kind, **column, **keys), (promised.ENDINGS[ending](torch.from_numpy(Z.astype(np.float32))),)
        source = {"torch": "promised:Net", "python": "promised:Object"}.get(kind, str(tmp_path / f"model.{kind}"))
        if kind == "onnx":
            save_onnx(Path(source), ending)
        if kind in ("export", "torchscript"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if kind == "torchscript":
                    torch.jit.trace(network(ending), x, check_trace=False).save(source)
                else:
                    rows = torch.export.Dim("n", min=1)
                    torch.export.save(torch.export.export(network(ending), (x,), dynamic_shapes=({0: rows},)), source)
        return Model(kind=kind, source=source, **({"args": args} if kind in ("torch", "python") else {}), **keys), (x,)

    return made


TENSOR_KINDS = ["torch", "export", "torchscript", "onnx", "python", "columns", "members"]


@pytest.mark.parametrize("kind", TENSOR_KINDS)
def test_logits_are_logits(make: Callable[..., Any], kind: str) -> None:
    """What is called logits stays what it is; of members, their mean."""
    spec, inputs = make(kind, "logits")
    found = load(spec, embedding=False).predict(inputs).logits
    assert found.dtype == torch.float32
    np.testing.assert_allclose(softmax(found.double().numpy()), softmax(Z), atol=1e-6)


@pytest.mark.parametrize("kind", TENSOR_KINDS)
def test_probabilities_get_no_second_softmax(make: Callable[..., Any], kind: str) -> None:
    """With model.output (of columns: in their own key) they come out as they went in; without, they are refused with just that remedy."""
    spec, inputs = make(kind, "softmax", output="probabilities")
    found = load(spec, embedding=False).predict(inputs)
    np.testing.assert_allclose(found.logits.double().softmax(1).numpy(), softmax(Z), atol=1e-6)
    assert bad_output_rows(found) is None
    spec, inputs = make(kind, "softmax")
    remedy = "name it in model.probabilities" if kind == "columns" else "set model.output to probabilities"
    with pytest.raises(ModelError, match=f"probabilities.*{remedy}"):
        load(spec, embedding=False).predict(inputs)


@pytest.mark.parametrize("kind", TENSOR_KINDS)
@pytest.mark.parametrize("ending", ["one", "flat"])
def test_one_output_is_the_second_of_two_classes(make: Callable[..., Any], kind: str, ending: str) -> None:
    """A logit z is (0, z), a probability p is (1 - p, p), be it (rows,) or (rows, 1)."""
    expected = np.stack([1 - sigmoid(Z[:, 0]), sigmoid(Z[:, 0])], 1)
    for squashed, keys in (("", {}), (" sigmoid", {"output": "probabilities"})):
        spec, inputs = make(kind, ending + squashed, **keys)
        found = load(spec, embedding=False).predict(inputs).logits
        np.testing.assert_allclose(found.double().softmax(1).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("kind", TENSOR_KINDS)
def test_probabilities_of_labels_are_no_distribution(make: Callable[..., Any], kind: str) -> None:
    """As classes they are refused with model.task multi_label, as labels taken one by one; what isn't between 0 and 1 is none of either."""
    spec, inputs = make(kind, "sigmoids", output="probabilities")
    with pytest.raises(ModelError, match=r"don't sum to 1 in most .* set model.task to multi_label.* if they are logits"):
        load(spec, embedding=False).predict(inputs)
    spec, inputs = make(kind, "sigmoids", output="probabilities", task="multi_label")
    np.testing.assert_allclose(load(spec, embedding=False).predict(inputs).logits.double().sigmoid().numpy(), sigmoid(Z), atol=1e-6)
    spec, inputs = make(kind, "logits", output="probabilities", task="multi_label")
    with pytest.raises(ModelError, match="numbers beyond 0 and 1"):
        load(spec, embedding=False).predict(inputs)
    spec, inputs = make(kind, "softmax", output="probabilities", task="multi_label")
    with pytest.raises(ModelError, match=r"sum to 1 in each .* model.task is multi_label; set it to classes"):
        load(spec, embedding=False).predict(inputs)


@pytest.mark.parametrize("kind", ["torch", "export", "torchscript", "onnx", "python", "members"])
def test_a_model_that_is_random_is_refused(make: Callable[..., Any], kind: str) -> None:
    """Two passes over the same rows differ; what draws is named where torch can tell."""
    spec, inputs = make(kind, "random")
    place = r": its forward calls dropout;" if kind in ("torch", "export", "torchscript") else ""
    with pytest.raises(ModelError, match=rf"is random in evaluation mode: two passes over 16 rows gave different logits{place}"):
        load(spec, embedding=False).predict(inputs)


@pytest.mark.parametrize("ending", ["dict", "out", "only", "dataclass", "named tuple", "tuple", "list", "named probabilities"])
def test_wrapped_outputs_are_read(make: Callable[..., Any], ending: str) -> None:
    """By their names, or where there is nothing else; with MC dropout's engine and by default embeddings as well."""
    spec, inputs = make("torch", ending)
    found = load(spec, embedding=True).predict(inputs)
    np.testing.assert_allclose(found.logits.double().softmax(1).numpy(), softmax(Z), atol=1e-6)
    np.testing.assert_allclose(found.embedding.numpy(), X, atol=1e-6)


@pytest.mark.parametrize("ending", ["out", "dataclass", "tuple", "named probabilities", "logits"])
def test_wrapped_outputs_of_an_object_are_read(make: Callable[..., Any], ending: str) -> None:
    """By the same names, where they hold nothing that is no part of a prediction; else they are refused with that part."""
    spec, inputs = make("python", ending)
    model = load(spec.model_copy(update={"args": {"ending": ending, "named": ""}}), embedding=False)
    if ending == "out":
        with pytest.raises(ModelError, match="returned 'aux', which is no part of a prediction"):
            model.predict(inputs)
    else:
        np.testing.assert_allclose(model.predict(inputs).logits.double().softmax(1).numpy(), softmax(Z), atol=1e-6)


def test_outputs_that_can_be_read_in_two_ways_are_refused(make: Callable[..., Any]) -> None:
    """With what was returned; and those of another task with its name."""
    told = {"two": r"returned tuple, .*float32 \(40, 4\), float32 \(40, 4\)", "strange": r"returned dict, .* a float32 \(40, 4\)"}
    for ending, says in told.items():
        spec, inputs = make("torch", ending)
        with pytest.raises(ModelError, match=says):
            load(spec, embedding=False).predict(inputs)
    spec, inputs = make("torch", "logits", task="tokens")
    with pytest.raises(ModelError, match=r"that is what model.task classes takes: set it"):
        load(spec, embedding=False).predict(inputs)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_parameters_run_in_float32(make: Callable[..., Any], dtype: str) -> None:
    """Whatever a factory builds, precision float32 is what runs: the same numbers as of the float32 network of these weights."""
    spec, inputs = make("torch", "logits")
    model = load(spec.model_copy(update={"args": {"dtype": dtype}}), embedding=True)
    weights = torch.from_numpy(W).to(getattr(torch, dtype)).float()
    torch.testing.assert_close(model.predict(inputs).logits, inputs[0] @ weights)
    assert {values.dtype for values in model._model.network.parameters()} == {torch.float32}


def test_a_file_runs_as_it_was_saved(make: Callable[..., Any], tmp_path: Path) -> None:
    """TorchScript in half precision takes the pool's float32."""
    import promised

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = promised.Net("logits", "bfloat16").eval()
        torch.jit.trace(network, torch.from_numpy(X).bfloat16()).save(tmp_path / "half.pt")
    found = load(Model(kind="torchscript", source=str(tmp_path / "half.pt")), embedding=False).predict((torch.from_numpy(X),)).logits
    torch.testing.assert_close(found, network(torch.from_numpy(X).bfloat16()).float())


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"kind": "columns", "logits": "z", "output": "probabilities"}, "model.logits names z; name it in model.probabilities"),
        ({"kind": "columns", "probabilities": "p", "output": "logits"}, "model.probabilities names p; name it in model.logits"),
        ({"kind": "sklearn", "source": "m", "output": "logits"}, "kind: sklearn gives probabilities; remove it"),
        ({"kind": "sentence_transformers", "source": "m", "output": "probabilities"}, "gives an embedding alone; remove it"),
        ({"source": "m:n", "task": "regression", "output": "probabilities"}, "model.task is regression"),
        ({"members": [{"source": "m:n"}, {"source": "m:o"}], "output": "probabilities"}, "model.output and model.members are both given"),
        ({"task": "regression", "members": [{"source": "m:n", "output": "probabilities"}, {"source": "m:o"}]}, r"members.0.output is prob"),
        ({"source": "m:n", "output": "probability"}, "model.output is 'probability'"),
    ],
)
def test_what_the_output_can_not_be(keys: dict[str, Any], says: str) -> None:
    """Contradictions are found before anything is loaded."""
    with pytest.raises(QueryError, match=says):
        Model(**keys)


@pytest.mark.parametrize("kind", ["torch", "export", "torchscript", "transformers", "sentence_transformers", "onnx", "sklearn", "python"])
def test_every_kind_that_has_scores_may_say_so(kind: str) -> None:
    """model.output: probabilities is a key of all kinds with scores."""
    if kind != "sentence_transformers":
        assert Model(kind=kind, source="m", output="probabilities").output == "probabilities"


def test_rows_that_are_no_distribution_are_bad_rows(make: Callable[..., Any]) -> None:
    """A few of them are no reason to doubt the others; any dtype's rounding is none at all."""
    p = torch.from_numpy(softmax(Z))
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        rounded = p.to(dtype)
        found = load(Model(kind="columns", probabilities="p"), embedding=False).predict((rounded,))
        assert bad_output_rows(found) is None
    p[3], p[20, 0] = 0.5, torch.nan
    found = load(Model(kind="columns", probabilities="p"), embedding=False).predict((p,))
    assert bad_output_rows(found).nonzero().flatten().tolist() == [3, 20]
    assert found.reason == "the probabilities are negative or don't sum to 1"


@pytest.mark.parametrize("task", ["tokens", "segmentation"])
def test_elements_of_dense_outputs_keep_the_same_promise(task: str) -> None:
    """A softmax over the classes of each element is found, and sigmoids are no distribution; one channel is the second of two classes."""
    z = torch.randn(20, 6, 4) if task == "tokens" else torch.randn(20, 4, 3, 2)
    axis = 2 if task == "tokens" else 1
    spec = Model(kind="columns", logits="z", task=task)
    assert torch.equal(load(spec, embedding=False).predict((z,)).logits, z)
    with pytest.raises(ModelError, match=r"name it in model.probabilities"):
        load(spec, embedding=False).predict((z.softmax(axis),))
    declared = Model(kind="columns", probabilities="p", task=task)
    found = load(declared, embedding=False).predict((z.softmax(axis),)).logits
    torch.testing.assert_close(found.softmax(axis), z.softmax(axis))
    with pytest.raises(ModelError, match="don't sum to 1 in most of its first rows"):
        load(declared, embedding=False).predict((z.sigmoid(),))
    one = z.narrow(axis, 0, 1)
    found = load(spec, embedding=False).predict((one,)).logits
    assert torch.equal(found, torch.cat([torch.zeros_like(one), one], axis))


def test_a_sigmoid_is_doubted() -> None:
    """One output, or labels, all between 0 and 1 may be either: taken as said, with a note."""
    p = torch.rand(30, 1)
    for keys, what in (({}, "its one output"), ({"task": "multi_label"}, "every output")):
        model = load(Model(kind="columns", logits="z", **keys), embedding=False)
        model.predict((p,))
        assert len(model.notes) == 1
        assert f"{what} of the first rows lies between 0 and 1" in model.notes[0]
        model = load(Model(kind="columns", logits="z", **keys), embedding=False)
        model.predict((4 * p - 2,))
        assert model.notes == ()


STEADY = """
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

class Noise(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.randn_like(x)

class Always(nn.BatchNorm1d):
    def train(self, mode=True):
        return super().train(True)

class Functional(nn.BatchNorm1d):
    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, training=True)

class Drops(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.2)

class Numpy(nn.Module):
    def forward(self, x):
        return x + torch.from_numpy(np.random.normal(size=tuple(x.shape)).astype(np.float32))

class InPlace(nn.Module):
    def forward(self, x):
        return x.sub_(1.0)

PARTS = {
    "noise": Noise, "always": lambda: Always(3), "functional": lambda: Functional(3), "drops": Drops, "numpy": Numpy,
    "without": lambda: nn.BatchNorm1d(3, track_running_stats=False), "in place": InPlace, "fine": lambda: nn.BatchNorm1d(3),
    "off": lambda: nn.Dropout(0.5), "zero": lambda: nn.AlphaDropout(0.0).train(),
}

def net(part):
    return nn.Sequential(nn.Identity(), nn.ModuleDict({"part": PARTS[part]()})["part"], nn.Linear(3, 4))
"""


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("noise", r"is random .*: module 1 \(Noise\) calls randn_like"),
        ("drops", r"is random .*: module 1 \(Drops\) calls dropout"),
        ("numpy", r"is random .* gave different logits; pass"),
        ("always", r"takes the statistics of the batch .*: module 1 \(Always\) calls batch_norm"),
        ("functional", r"takes the statistics of the batch .*: module 1 \(Functional\) calls batch_norm"),
        ("without", r"takes the statistics of the batch .*: module 1 \(BatchNorm1d\) calls batch_norm"),
        ("in place", None),
        ("fine", None),
        ("off", None),
        ("zero", None),
    ],
)
def test_what_makes_a_network_unsteady_is_named(write_module: Callable[..., Any], part: str, says: str | None) -> None:
    """The module and what it calls; networks that are none of this, or write into their inputs, pass, and the inputs are left alone."""
    write_module("unsteady.py", STEADY)
    model = load(Model(source="unsteady:net", args={"part": part}), embedding=False)
    rows = torch.from_numpy(X.copy())
    if says is None:
        model.probe((rows,))
        np.testing.assert_array_equal(rows.numpy(), X)
        assert model.predict((rows,)).logits.shape == (40, 4)
    else:
        for _ in range(2):  # refused however often it is tried
            with pytest.raises(ModelError, match=says):
                model.predict((rows,))


def test_dropout_samples_make_random_dropout_steady(write_module: Callable[..., Any]) -> None:
    """Dropout called without `training` is what MC dropout replaces: with samples the model keeps its promise."""
    write_module("unsteady.py", STEADY)
    found = load(Model(source="unsteady:net", args={"part": "drops"}), embedding=False, mc_samples=3).predict((torch.from_numpy(X),))
    assert found.samples.shape == (40, 3, 4)


def test_mc_dropout_of_a_network_that_gives_probabilities(write_module: Callable[..., Any]) -> None:
    """Samples are logarithms of what each sub-network says, and the embedding is found behind the softmax."""
    write_module(
        "soft.py",
        """
        from torch import nn
        def net(softmax):
            parts = [nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 4)]
            return nn.Sequential(*parts, *([nn.Softmax(1)] if softmax else []))
        """,
    )
    x = torch.from_numpy(X)
    plain = load(Model(source="soft:net", args={"softmax": False}), embedding=True, mc_samples=4).predict((x,))
    soft = load(Model(source="soft:net", args={"softmax": True}, output="probabilities"), embedding=True, mc_samples=4).predict((x,))
    torch.testing.assert_close(soft.samples, plain.samples.log_softmax(2), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(soft.logits, plain.logits.log_softmax(1), atol=1e-5, rtol=1e-5)
    assert torch.equal(soft.embedding, plain.embedding)
    lengths = [
        load(Model(source="soft:net", args={"softmax": s}, output=o), embedding=True, last_layer=True, gradient_classes=4).predict((x,))
        for s, o in ((False, "logits"), (True, "probabilities"))
    ]
    torch.testing.assert_close(lengths[0].gradient_lengths, lengths[1].gradient_lengths, atol=1e-4, rtol=1e-4)


def test_samples_of_an_object_are_what_its_output_is(write_module: Callable[..., Any]) -> None:
    """Log-probabilities as always; where model.output is probabilities, such; what is called logits and is none is refused."""
    write_module(
        "opinions.py",
        """
        import numpy as np
        class Opinions:
            def __init__(self, named, log):
                self.named, self.log = named, log
            def predict(self, inputs):
                p = np.stack([np.exp(k * inputs[0].numpy()) for k in (1, 2)], 1)
                p /= p.sum(2, keepdims=True)
                return {self.named: p.mean(1), "samples": np.log(p) if self.log else p}
        """,
    )
    p = np.stack([softmax(k * X.astype(np.float64)) for k in (1, 2)], 1)
    for named, log, keys in (("probabilities", True, {}), ("logits", False, {"output": "probabilities"})):
        model = load(Model(kind="python", source="opinions:Opinions", args={"named": named, "log": log}, **keys), embedding=False)
        found = model.predict((torch.from_numpy(X),))
        np.testing.assert_allclose(found.samples.exp().numpy(), p, atol=1e-6)
        np.testing.assert_allclose(found.logits.exp().numpy(), p.mean(1), atol=1e-6)
    with pytest.raises(ModelError, match=r"set model.output to probabilities"):
        load(Model(kind="python", source="opinions:Opinions", args={"named": "probabilities", "log": False}), embedding=False).predict(
            (torch.from_numpy(X),)
        )


def test_shapes_stay_what_they_were(write_module: Callable[..., Any]) -> None:
    """A model that gives another number of classes for other rows is refused, whatever its kind."""
    write_module(
        "fickle.py",
        """
        import torch
        class Fickle:
            def predict(self, inputs):
                return torch.eye(7)[: len(inputs[0]), : 3 + int(inputs[0].max())] - 2
        """,
    )
    model = load(Model(kind="python", source="fickle:Fickle"), embedding=False)
    model.predict((torch.zeros(5, 1),))
    with pytest.raises(ModelError, match=r"gives logits \(5, 4\), but for others 3 in place of 4"):
        model.predict((torch.ones(5, 1),))


def test_inputs_are_an_embedding(make: Callable[..., Any]) -> None:
    """`embedding: inputs` is all of a row's numbers, for every kind that takes tensors; the default of a bare estimator."""
    for kind in ("torch", "export", "torchscript", "onnx"):
        spec, inputs = make(kind, "logits", embedding="inputs")
        found = load(spec, embedding=True).predict(inputs)
        np.testing.assert_array_equal(found.embedding.numpy(), X)


@pytest.mark.slow  # to import torch's compiler takes seconds
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its own
def test_compiled_networks_are_unwrapped(write_module: Callable[..., Any]) -> None:
    """What torch.compile wraps, whole or in part, runs as the network itself: hooks, dropout samples and state are the plain one's."""
    write_module(
        "compiled.py",
        """
        import torch
        from torch import nn
        def net(how="plain"):
            made = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 4))
            if how == "whole":
                made = torch.compile(made)
            if how == "part":
                made[0] = torch.compile(made[0])
            if how == "in place":
                made.compile()
            return made
        whole = torch.compile(net())
        """,
    )
    x = torch.from_numpy(X)
    plain = load(Model(source="compiled:net"), embedding=True, mc_samples=3)
    expected = plain.predict((x,))
    for source, args in (("net", {"how": "whole"}), ("net", {"how": "part"}), ("net", {"how": "in place"}), ("whole", {})):
        model = load(Model(source=f"compiled:{source}", args=args), embedding=True, mc_samples=3)
        assert model.state_hash == plain.state_hash or source == "whole"
        found = model.predict((x,))
        assert found.samples.shape == (40, 3, 4)
        assert "torch.fx" not in str(type(model._model.network))
        if source != "whole":
            assert torch.equal(found.samples, expected.samples)
            assert torch.equal(found.embedding, expected.embedding)


def test_a_network_that_nobody_trained_is_told(write_module: Callable[..., Any]) -> None:
    """Parameters that change with the seed are drawn at random; those of a factory that loads its own aren't, nor those from weights."""
    write_module(
        "fresh.py",
        """
        import torch
        from torch import nn
        def random():
            return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        def trained():
            net = random()
            net[0].load_state_dict({"weight": torch.arange(12.).view(4, 3), "bias": torch.zeros(4)})
            return net
        def new_head():
            return nn.Sequential(trained(), nn.Linear(4, 2))
        instance = random()
        """,
    )
    notes = {name: load(Model(source=f"fresh:{name}"), embedding=False).notes for name in ("random", "trained", "new_head", "instance")}
    assert notes["trained"] == notes["instance"] == ()
    assert notes["random"] == (
        "model.weights is not given, and its parameters are drawn at random by model.source fresh:random: its scores are those of a random "
        "network; give its weights",
    )
    assert "and 1.weight, 1.bias of its parameters are drawn at random" in notes["new_head"][0]


@pytest.mark.parametrize("task", ["classes", "multi_label"])
def test_scikit_learn_gives_what_the_task_says(tmp_path: Path, task: str) -> None:
    """One-vs-rest fitted on labels is refused for classes and taken label by label; fitted on classes it is a distribution."""
    rng = np.random.default_rng(1)
    labels = (rng.random((40, 4)) < sigmoid(Z)).astype(int)
    model = OneVsRestClassifier(LogisticRegression()).fit(X, labels if task == "multi_label" else Z.argmax(1))
    skops_io.dump(model, tmp_path / "m.skops")
    found = load(Model(kind="sklearn", source=str(tmp_path / "m.skops"), task=task), embedding=False).predict((torch.from_numpy(X),)).logits
    squash = torch.sigmoid if task == "multi_label" else lambda z: z.softmax(1)
    np.testing.assert_allclose(squash(found.double()).numpy(), model.predict_proba(X), atol=1e-6)
    if task == "multi_label":
        with pytest.raises(ModelError, match=r"OneVsRestClassifier fitted on several labels .* is classes; set it to multi_label"):
            load(Model(kind="sklearn", source=str(tmp_path / "m.skops")), embedding=False)

"""Trainers alone: the same rows and seed give the same model, which comes back from its files as it was."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from campaigns import blobs
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from raystream.errors import ModelError, QueryError
from raystream.loop.models import with_paths
from raystream.loop.trainers.by_name import fit, load_fitted, make_trainer, member_rows
from raystream.loop.trainers.torch_trainer import ARGS
from raystream.loop.trainers.training import TrainingRows, held_back
from raystream.model import load as load_model
from raystream.query import Model
from raystream.query.loop import Loop

NETS = """
from torch import nn
def net(d=4, c=3):
    return nn.Sequential(nn.Linear(d, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, c))
class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)
    def forward(self, a, b):
        import torch
        return self.head(torch.cat([a, b], dim=1))
class Counted(nn.Module):
    steps = 0
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
    def forward(self, x):
        Counted.steps += self.training
        return self.head(x)
def frozen():
    made = net()
    for parameter in made.parameters():
        parameter.requires_grad_(False)
    return made
"""
ESTIMATOR = {"estimator": "sklearn.linear_model:LogisticRegression"}


@pytest.fixture(autouse=True)
def _nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trainer_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    import sys

    monkeypatch.delitem(sys.modules, "trainer_nets", raising=False)


def rows(count: int = 60, **changes: Any) -> TrainingRows:
    x, y = blobs(count)
    return TrainingRows(**({"inputs": (x,), "labels": y.astype(np.int64), "classes": (0, 1, 2)} | changes))


def trainer(kind: str, **args: Any) -> Any:
    if kind == "torch":
        return make_trainer("torch", {"least_steps": 60} | args, Model(source="trainer_nets:net"))
    return make_trainer("sklearn", ESTIMATOR | args)


@pytest.mark.parametrize("kind", ["torch", "sklearn"])
@pytest.mark.parametrize("members", [1, 2])
def test_a_model_is_a_function_of_rows_and_seed(kind: str, members: int, tmp_path: Path) -> None:
    """Also what its files give; the process's own generators stay as they were."""
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), torch.get_num_threads()
    made = trainer(kind)
    first, again = (fit(made, rows(), None, 7, members) for _ in range(2))
    x = blobs(20, 5)[0]
    assert np.array_equal(first.predict((x,)).values, again.predict((x,)).values)
    assert np.allclose(first.predict((x,)).values.sum(axis=1), 1)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), torch.get_num_threads()) == state
    if kind == "torch":
        assert not np.array_equal(first.predict((x,)).values, fit(made, rows(), None, 8, members).predict((x,)).values)
    section = with_paths(first.save(tmp_path), lambda path: str(tmp_path / path))
    model = Model(**({"source": "trainer_nets:net"} | section if kind == "torch" else section))
    loaded = load_fitted(made, model, (0, 1, 2))
    assert np.array_equal(loaded.predict((x,)).values, first.predict((x,)).values)
    assert loaded.classes == first.classes == (0, 1, 2)


def test_training_goes_on_from_the_model_before() -> None:
    """A warm start begins at its weights: with a rate of almost nothing they stay where they are."""
    made = trainer("torch")
    before = fit(made, rows(), None, 1)
    slow = make_trainer(
        "torch", {"learning_rate": 1e-12, "weight_decay": 0, "least_steps": 1, "epochs": 1}, Model(source="trainer_nets:net")
    )
    after = fit(slow, rows(), before, 2)
    for name, value in before.native.named_parameters():
        assert torch.allclose(value, dict(after.native.named_parameters())[name], atol=1e-6)
    cold = fit(slow, rows(), None, 2)
    assert not torch.allclose(before.native[0].weight, cold.native[0].weight, atol=1e-3)


def test_training_stops_early() -> None:
    """Once the loss of the rows held back hasn't fallen for `patience` epochs: at a rate of nothing, after the first and two more."""
    import trainer_nets

    args = {"validation": 0.3, "patience": 2, "epochs": 40, "least_steps": 0, "batch_size": 63, "learning_rate": 1e-30, "weight_decay": 0}
    fit(make_trainer("torch", args, Model(source="trainer_nets:Counted")), rows(90), None, 3)
    assert trainer_nets.Counted.steps == 3


def test_class_weights_count_rare_classes_more() -> None:
    """Of two classes of which one is a tenth, and that overlap, the rare one is predicted more often."""
    rng = np.random.default_rng(0)
    y = (np.arange(200) % 10 == 0).astype(np.int64)
    x = (rng.standard_normal((200, 4)) + y[:, None] * 0.7).astype(np.float32)
    counts = []
    for weighted in (False, True):
        made = make_trainer("torch", {"class_weights": weighted, "least_steps": 100}, Model(source="trainer_nets:net", args={"c": 2}))
        fitted = fit(made, rows(inputs=(x,), labels=y, classes=(0, 1)), None, 0)
        counts.append(int((fitted.predict((x,)).values.argmax(axis=1) == 1).sum()))
    assert counts[1] > counts[0] + 10


def test_inputs_may_have_names() -> None:
    """They come by the model's own names, in training and after loading."""
    x = blobs(30)[0]
    made = make_trainer("torch", {"least_steps": 20}, Model(source="trainer_nets:Named"), ("a", "b"))
    fitted = fit(made, rows(30, inputs=(x, x[:, :2]), names=("a", "b")), None, 0)
    assert fitted.predict((x, x[:, :2])).values.shape == (30, 3)


def test_members_see_every_class() -> None:
    """A bootstrap that misses a class gets a row of it, since members must agree on which classes there are."""
    labels = np.array([0] * 30 + [1], dtype=np.int64)
    given = rows(31, labels=labels, inputs=(np.zeros((31, 4), np.float32),), classes=(0, 1))
    for member in range(20):
        drawn = member_rows(given, member, 0)
        assert set(labels[drawn]) == {0, 1}
        assert len(drawn) in (31, 32)


def test_rows_held_back_leave_every_class_one() -> None:
    """A share of all rows, of each class by turns, never the only row of one."""
    labels = np.array([0] * 10 + [1] * 10 + [2])
    mask = held_back(labels, 0.3, 1, by_class=True)
    assert mask.sum() == 6
    assert not mask[20]
    assert held_back(np.arange(4), 0.9, 1, by_class=True).sum() == 0
    assert held_back(np.zeros((10, 2)), 0.2, 1, by_class=False).sum() == 2


def test_bad_arguments_are_named() -> None:
    """Unknown ones with the nearest, wrong ones with what is expected; each default is one that it accepts."""
    with pytest.raises(QueryError, match=r"loop.train.epoch is not an argument of trainer torch; did you mean 'epochs'"):
        trainer("torch", epoch=3)
    with pytest.raises(QueryError, match=r"loop.train.validation is 1.0, expected a number from 0, below 1"):
        trainer("torch", validation=1.0)
    with pytest.raises(QueryError, match=r"give model.source, the import path of its factory"):
        make_trainer("torch", {})
    with pytest.raises(ModelError, match=r"has no parameters to train"):
        fit(make_trainer("torch", {}, Model(source="trainer_nets:frozen")), rows(), None, 0)
    with pytest.raises(ModelError, match=r"gives 3 classes, but a row is labelled as class 4"):
        fit(trainer("torch"), rows(5, labels=np.arange(5), classes=tuple(range(5)), inputs=(np.zeros((5, 4), np.float32),)), None, 0)
    assert all(arg.accepts(arg.default) for arg in ARGS.values())


def test_regressors_embed_as_classifiers_do(tmp_path: Path) -> None:
    """The step before the estimator, or the one that is named, also of the saved file; of an estimator alone its inputs."""
    x, y = blobs(60)
    numbers = TrainingRows((x,), (x @ np.arange(1, 5, dtype=np.float32))[:, None], "regression")
    scaled = ["sklearn.preprocessing:StandardScaler", {"sklearn.decomposition:PCA": {"n_components": 2}}]
    z = StandardScaler().fit_transform(x)
    steps = {"standardscaler": z, "pca": PCA(2, random_state=0).fit(z).transform(z), "inputs": x}
    for task, rows_, estimator in (
        ("regression", numbers, "sklearn.linear_model:Ridge"),
        ("classes", TrainingRows((x,), y.astype(np.int64), "classes", (0, 1, 2)), "sklearn.linear_model:LogisticRegression"),
    ):
        for named, expected in ((None, "pca"), ("standardscaler", "standardscaler"), ("inputs", "inputs")):
            section = loop_model(task, [*scaled, estimator], named)
            fitted = make_trainer("sklearn", {"estimator": [*scaled, estimator]}, section).fit(rows_, None, 0)
            found = fitted.predict(rows_.inputs, embedding=True).embedding
            np.testing.assert_allclose(found, steps[expected], rtol=1e-4, atol=1e-5)
    ridge = "sklearn.linear_model:Ridge"
    alone = make_trainer("sklearn", {"estimator": ridge}, loop_model("regression", ridge, None))
    np.testing.assert_array_equal(alone.fit(numbers, None, 0).predict((x,), embedding=True).embedding, x)
    section = loop_model("regression", [*scaled, ridge], "standardscaler")
    fitted = make_trainer("sklearn", {"estimator": [*scaled, ridge]}, section).fit(numbers, None, 0)
    own_keys = with_paths(fitted.save(tmp_path), lambda path: str(tmp_path / path))
    loaded = load_model(Model(**own_keys, task="regression"), embedding=True)
    np.testing.assert_allclose(loaded.predict((torch.from_numpy(x),)).embedding, steps["standardscaler"], rtol=1e-4, atol=1e-5)


def test_an_unknown_step_of_a_regressor_is_named() -> None:
    """With the nearest."""
    steps = ["sklearn.preprocessing:StandardScaler", "sklearn.linear_model:Ridge"]
    trainer_ = make_trainer("sklearn", {"estimator": steps}, loop_model("regression", steps, "standardscalar"))
    x, _ = blobs(20)
    with pytest.raises(ModelError, match=r"'standardscalar', which is no step of .*; did you mean 'standardscaler'"):
        trainer_.fit(TrainingRows((x,), x[:, :1], "regression"), None, 0)


def loop_model(task: str, estimator: Any, embedding: str | None) -> Model:
    """The section that a loop gives its trainer."""
    loop = Loop(
        pool={"uri": "pool", "id": "rid", "inputs": ["x"], "label": "y"},
        model={"task": task} | ({} if embedding is None else {"embedding": embedding}),
        select={"budget": 1, "strategy": "random"},
        loop={"name": "mine", "oracle": "labels", "trainer": "sklearn", "train": {"estimator": estimator}, "rounds": 1},
    )
    return Model(**loop.trained_model())

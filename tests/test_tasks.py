"""Tasks beyond one class a row, through whole queries, against float64 sums of plain numpy over the nets' own outputs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pools import vectors
from safetensors.torch import save_file

import raystream as rs
from raystream.errors import ModelError, QueryError
from raystream.model.source import build_network
from raystream.run import verify

MakeQuery = Callable[..., rs.Query]
ROWS, TOKENS, SIDE, CLASSES = 70, 6, 5, 3
VARIANCE = {"score": "variance", "mc_samples": 3}

NETS = """
import torch
from torch import nn

class Pixels(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.body, self.drop, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Dropout(dropout), nn.Conv2d(4, 3, 1)

    def forward(self, image):
        return self.head(self.drop(torch.relu(self.body(image))))

class Tokens(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.table, self.drop, self.head = nn.Embedding(9, 4), nn.Dropout(dropout), nn.Linear(4, 3)

    def forward(self, ids):
        mask = ids != 0
        logits = self.head(self.drop(self.table(ids)))
        return torch.where(mask[:, :, None], logits, torch.nan), mask

class TokensAsMapping(Tokens):
    def forward(self, ids):
        return {"logits": self.head(self.drop(self.table(ids))), "mask": ids != 0}

class Numbers(nn.Module):
    def __init__(self, outputs=2, dropout=0.0):
        super().__init__()
        self.body, self.drop, self.head = nn.Linear(5, 4), nn.Dropout(dropout), nn.Linear(4, max(outputs, 1))
        self.flat = outputs == 0

    def forward(self, x):
        made = self.head(self.drop(torch.relu(self.body(x))))
        return made[:, 0] if self.flat else made

class OneOpinion:
    def predict(self, inputs):
        return {"logits": inputs[0][:, :1], "embedding": inputs[0]}
"""


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pa.Table:
    """A pool with images, padded token ids, and vectors; the nets are importable, and the folder is the current one."""
    (tmp_path / "shape_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "shape_nets", raising=False)
    rng = np.random.default_rng(5)
    ids = rng.integers(1, 9, (ROWS, TOKENS))
    lengths = rng.integers(1, TOKENS + 1, ROWS)
    ids[np.arange(TOKENS)[None] >= lengths[:, None]] = 0
    table = pa.table(
        {
            "id": np.arange(ROWS),
            "image": pa.array(
                rng.standard_normal((ROWS, 2, SIDE, SIDE)).astype(np.float32).tolist(), pa.list_(pa.list_(pa.list_(pa.float32())))
            ),
            "ids": pa.array(ids.tolist(), pa.list_(pa.int64(), TOKENS)),
            "x": vectors(rng.standard_normal((ROWS, 5))),
        }
    )
    pq.write_table(table, tmp_path / "shapes.parquet", row_group_size=30)
    return table


def ask(task: str, source: str, inputs: str, **changes: Any) -> rs.Query:
    spec: dict[str, Any] = {
        "pool": {"uri": "shapes.parquet", "id": "id", "inputs": [inputs]},
        "model": {"source": f"shape_nets:{source}", "task": task, "batch_size": 16},
        "select": {"strategy": "top_k", "budget": ROWS},
        "cluster": {"address": "in_process"},
        "store": {"uri": "runs"},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        target = spec.setdefault(section, {}) if name else spec
        target[name or section] = value
    return rs.Query(**spec)


def column(table: pa.Table, name: str) -> torch.Tensor:
    return torch.tensor(np.array(table.column(name).to_pylist()), dtype=torch.int64 if name == "ids" else torch.float32)


def outputs(source: str, given: torch.Tensor, weights: dict[str, torch.Tensor] | None = None, **args: Any) -> np.ndarray:
    """What the net says of all rows at once, in float64."""
    net = build_network(f"shape_nets:{source}", args).eval()
    if weights is not None:
        net.load_state_dict(weights)
    with torch.no_grad():
        made = net(given)
    made = made["logits"] if isinstance(made, dict) else made[0] if isinstance(made, tuple) else made
    return made.double().numpy()


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(p)).sum(-1)


def reduce(values: np.ndarray, how: str, top: float = 0.1) -> float:
    if how == "top_mean":
        return float(np.sort(values)[::-1][: max(1, int(np.ceil(len(values) * top - 1e-9)))].mean())
    return float(getattr(values, how)())


def by_id(result: rs.Result, name: str = "score") -> np.ndarray:
    """A column of the selection, in the order of the pool."""
    order = np.argsort(result.selection.column("id").to_numpy())
    return result.selection.column(name).to_numpy(zero_copy_only=False)[order]


@pytest.mark.parametrize(("how", "top"), [(None, None), ("max", None), ("sum", None), ("top_mean", 0.3)])
def test_segmentation_is_scored_pixel_by_pixel(pool: pa.Table, how: str | None, top: float | None) -> None:
    """Each row's score is its pixels' entropies, reduced; prediction is their commonest class, confidence their mean top probability."""
    acquire = {"score": "entropy", "also": ["margin"]} | ({"reduce": how} if how else {}) | ({"top": top} if top else {})
    result = rs.run(ask("segmentation", "Pixels", "image", acquire=acquire, model__classes=["a", "b", "c"]))
    p = softmax(outputs("Pixels", column(pool, "image")).reshape(ROWS, CLASSES, -1).transpose(0, 2, 1))
    expected = [reduce(row, how or "mean", top or 0.1) for row in entropy(p)]
    np.testing.assert_allclose(by_id(result), expected, atol=1e-6, rtol=1e-6)
    ordered = np.sort(p, -1)
    margins = [reduce(row, how or "mean", top or 0.1) for row in 1 - ordered[:, :, -1] + ordered[:, :, -2]]
    np.testing.assert_allclose(by_id(result, "margin"), margins, atol=1e-6, rtol=1e-6)
    commonest = [int(np.bincount(row, minlength=CLASSES).argmax()) for row in p.argmax(-1)]
    assert by_id(result, "prediction").tolist() == commonest
    assert by_id(result, "prediction_name").tolist() == ["abc"[c] for c in commonest]
    np.testing.assert_allclose(by_id(result, "confidence"), p.max(-1).mean(-1), atol=1e-6)


@pytest.mark.parametrize("source", ["Tokens", "TokensAsMapping"])
def test_padding_does_not_count(pool: pa.Table, source: str) -> None:
    """Only tokens that the mask keeps are scored, and averaged into the embedding, whatever the others hold, NaN included."""
    query = ask("tokens", source, "ids", acquire={"score": "entropy", "reduce": "max"})
    result = rs.run(query)
    ids = column(pool, "ids")
    z, mask = outputs(source, ids), ids.numpy() != 0
    expected = [entropy(softmax(row[keep])).max() for row, keep in zip(z, mask, strict=True)]
    np.testing.assert_allclose(by_id(result), expected, atol=1e-6)


def test_the_embedding_is_the_mean_of_what_counts(pool: pa.Table) -> None:
    """By default the input of the last Linear, over tokens that count: core_set then chooses as by hand on those means."""
    result = rs.run(ask("tokens", "TokensAsMapping", "ids", select={"strategy": "core_set", "budget": 8, "candidates": "all"}))
    ids = column(pool, "ids")
    net = build_network("shape_nets:TokensAsMapping", {})
    with torch.no_grad():
        hidden, keep = net.table(ids).double(), (ids != 0).double()[:, :, None]
    x = ((hidden * keep).sum(1) / keep.sum(1)).half().double().numpy()
    chosen: list[int] = []
    distance = ((x - x.mean(0)) ** 2).sum(1)
    for _ in range(8):
        chosen.append(int(distance.argmax()))
        to_last = ((x - x[chosen[-1]]) ** 2).sum(1)
        distance = to_last if len(chosen) == 1 else np.minimum(distance, to_last)
    assert result.selection.column("id").to_pylist() == chosen


@pytest.mark.parametrize("place", [None, "body"])
def test_the_embedding_of_pixels(pool: pa.Table, place: str | None) -> None:
    """A feature map is averaged over its pixels, whether it is the input of the last convolution or named."""
    changes = {"model__embedding": place} if place else {}
    query = ask("segmentation", "Pixels", "image", select={"strategy": "core_set", "budget": 6, "candidates": "all"}, **changes)
    result = rs.run(query)
    net = build_network("shape_nets:Pixels", {})
    with torch.no_grad():
        feature = net.body(column(pool, "image"))
    x = (feature if place else torch.relu(feature)).double().mean((2, 3)).half().double().numpy()
    chosen = result.selection.column("id").to_numpy()
    assert chosen[0] == ((x - x.mean(0)) ** 2).sum(1).argmax()
    for count in range(1, 6):
        distance = ((x[:, None] - x[chosen[:count]][None]) ** 2).sum(2).min(1)
        assert distance[chosen[count]] == pytest.approx(distance.max(), rel=1e-9)


def members(source: str, count: int = 3, **args: Any) -> tuple[list[str], list[dict[str, torch.Tensor]]]:
    """Weight files of as many nets, and what they hold."""
    states, paths = [], []
    for member in range(count):
        torch.manual_seed(member)
        state = {name: torch.randn_like(values) for name, values in build_network(f"shape_nets:{source}", args).state_dict().items()}
        states.append(state)
        paths.append(f"member{member}.safetensors")
        save_file(state, paths[-1])
    return paths, states


def bald(p: np.ndarray) -> np.ndarray:
    """(k, ..., c) -> (...)."""
    return entropy(p.mean(0)) - entropy(p).mean(0)


def test_committees_of_pixels_and_tokens(pool: pa.Table) -> None:
    """bald of each element, reduced, with the mean prediction's entropy beside it."""
    paths, states = members("Pixels")
    result = rs.run(
        ask("segmentation", "Pixels", "image", model__weights=paths, acquire={"score": "bald", "also": ["entropy"], "reduce": "max"})
    )
    z = np.stack([outputs("Pixels", column(pool, "image"), state) for state in states])
    p = softmax(z.reshape(3, ROWS, CLASSES, -1).transpose(0, 1, 3, 2))
    np.testing.assert_allclose(by_id(result), bald(p).max(-1), atol=1e-6)
    np.testing.assert_allclose(by_id(result, "entropy"), entropy(p.mean(0)).max(-1), atol=1e-6)
    paths, states = members("Tokens")
    result = rs.run(ask("tokens", "Tokens", "ids", model__weights=paths, model__temperature=1.5, acquire={"score": "bald"}))
    ids = column(pool, "ids")
    p = softmax(np.stack([outputs("TokensAsMapping", ids, state) for state in states]) / 1.5)
    expected = [row[keep].mean() for row, keep in zip(bald(p), ids.numpy() != 0, strict=True)]
    np.testing.assert_allclose(by_id(result), expected, atol=1e-6)


@pytest.mark.parametrize(("task", "source", "inputs"), [("segmentation", "Pixels", "image"), ("tokens", "Tokens", "ids")])
def test_mc_dropout_of_dense_outputs(pool: pa.Table, task: str, source: str, inputs: str) -> None:
    """Samples disagree, the plain score beside them is that of the net without dropout, and another batch size says the same."""
    acquire = {"score": "bald", "also": ["entropy"], "mc_samples": 4}
    args = {"dropout": 0.5}
    result = rs.run(ask(task, source, inputs, model__args=args, acquire=acquire))
    other = rs.run(ask(task, source, inputs, model__args=args, acquire=acquire, model__batch_size=7))
    plain = rs.run(ask(task, source, inputs, model__args=args, acquire={"score": "entropy"}))
    assert other.manifest.units_scored > 0
    np.testing.assert_allclose(by_id(result), by_id(other), atol=1e-6)
    np.testing.assert_allclose(by_id(result, "entropy"), by_id(plain), atol=1e-6)
    assert 0 < by_id(result).max() <= np.log(3)


@pytest.mark.parametrize("how", [None, "max", "sum"])
def test_labels_are_scored_one_by_one(pool: pa.Table, how: str | None) -> None:
    """Binary entropies of sigmoids, reduced; the prediction is the likeliest label, with its probability."""
    acquire = {"score": "entropy", "also": ["least_confidence"]} | ({"reduce": how} if how else {})
    result = rs.run(ask("multi_label", "Numbers", "x", model__args={"outputs": 4}, acquire=acquire))
    z = outputs("Numbers", column(pool, "x"), outputs=4)
    p = 1 / (1 + np.exp(-z))
    each = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    np.testing.assert_allclose(by_id(result), [reduce(row, how or "mean") for row in each], atol=1e-6)
    np.testing.assert_allclose(by_id(result, "least_confidence"), [reduce(row, how or "mean") for row in np.minimum(p, 1 - p)], atol=1e-6)
    assert by_id(result, "prediction").tolist() == z.argmax(1).tolist()
    np.testing.assert_allclose(by_id(result, "confidence"), p.max(1), atol=1e-6)


def test_a_committee_of_label_models(pool: pa.Table) -> None:
    """bald of each label's two classes; one output is a label, too; the mean's entropy is that of the mean probability."""
    paths, states = members("Numbers", outputs=1)
    acquire = {"score": "bald", "also": ["entropy"]}
    result = rs.run(ask("multi_label", "Numbers", "x", model__args={"outputs": 1}, model__weights=paths, acquire=acquire))
    z = np.stack([outputs("Numbers", column(pool, "x"), state, outputs=1) for state in states])
    p = 1 / (1 + np.exp(-z))
    pairs = np.stack([p, 1 - p], -1)
    np.testing.assert_allclose(by_id(result), bald(pairs).mean(-1), atol=1e-6)
    np.testing.assert_allclose(by_id(result, "entropy"), entropy(pairs.mean(0)).mean(-1), atol=1e-6)


@pytest.mark.parametrize("count", [0, 2])
def test_regression_is_scored_by_the_members_variance(pool: pa.Table, count: int) -> None:
    """The population variance, summed over outputs; there is neither a prediction nor a confidence. (rows,) is one output."""
    paths, states = members("Numbers", outputs=count)
    query = ask("regression", "Numbers", "x", model__args={"outputs": count}, model__weights=paths)
    assert query.acquire.score == "variance"
    result = rs.run(query)
    made = np.stack([outputs("Numbers", column(pool, "x"), state, outputs=count).reshape(ROWS, -1) for state in states])
    np.testing.assert_allclose(by_id(result), made.var(0).sum(1), rtol=1e-5)
    assert result.selection.column("prediction").null_count == ROWS
    assert result.selection.column("confidence").null_count == ROWS


def test_regression_of_one_model_is_chosen_by_embeddings(pool: pa.Table) -> None:
    """A strategy that needs no score needs no second opinion."""
    result = rs.run(ask("regression", "Numbers", "x", select={"strategy": "lcmd", "budget": 5}))
    assert result.selection.num_rows == 5
    assert result.selection.column("score").null_count == 5


@pytest.mark.parametrize("strategy", ["lcmd", "auto"])
def test_a_second_opinion_is_missed_by_those_who_asked(pool: pa.Table, strategy: str) -> None:
    """Whether a model of kind python has several opinions shows once it has scored: what goes by no score does without, and says none."""
    model = {"model__kind": "python", "model__batch_size": 64}
    result = rs.run(ask("regression", "OneOpinion", "x", **model, select={"strategy": strategy, "budget": 5}))
    assert result.selection.column("score").null_count == result.selection.num_rows == 5
    assert verify(result.store, result.query).rows == 5
    for asked in ({}, {"select": {"strategy": "lcmd", "budget": 6}, "acquire": {"score": "variance"}}):
        with pytest.raises(ModelError, match=r"variance compares several .* or choose by lcmd, or by core_set with candidates all"):
            rs.run(ask("regression", "OneOpinion", "x", **model, **asked))


def test_regression_of_columns(pool: pa.Table) -> None:
    """The members' numbers may be a column of the pool."""
    values = np.random.default_rng(1).standard_normal((ROWS, 4))
    pq.write_table(pool.append_column("y", vectors(values)), "shapes.parquet")
    query = rs.Query(
        pool={"uri": "shapes.parquet", "id": "id"}, model={"kind": "columns", "samples": "y", "task": "regression"},
        acquire={"score": "variance"}, select={"strategy": "top_k", "budget": ROWS}, cluster={"address": "in_process"},
    )  # fmt: skip
    np.testing.assert_allclose(by_id(rs.run(query)), values.var(1), rtol=1e-5)


def test_another_reduction_scores_again_and_the_same_one_does_not(pool: pa.Table) -> None:
    """reduce is part of a unit's key; naming the default, or another score, is not another one."""
    rs.run(ask("tokens", "Tokens", "ids", acquire={"score": "entropy"}))
    assert rs.run(ask("tokens", "Tokens", "ids", acquire={"score": "margin", "reduce": "mean"})).manifest.units_scored == 0
    assert rs.run(ask("tokens", "Tokens", "ids", acquire={"score": "margin", "reduce": "top_mean"})).manifest.units_scored > 0
    again = {"score": "entropy", "reduce": "top_mean", "top": 0.1}
    assert rs.run(ask("tokens", "Tokens", "ids", acquire=again)).manifest.units_scored == 0
    assert rs.run(ask("tokens", "Tokens", "ids", acquire=again | {"top": 0.5})).manifest.units_scored > 0


def test_a_row_without_a_token_is_bad(pool: pa.Table) -> None:
    """It is an error that names the row; with on_error skip it is left out."""
    ids = column(pool, "ids").numpy().copy()
    ids[11] = 0
    table = pool.set_column(pool.column_names.index("ids"), "ids", pa.array(ids.tolist(), pa.list_(pa.int64(), TOKENS)))
    pq.write_table(table, "shapes.parquet")
    with pytest.raises(ModelError, match="row 11: its mask leaves no element to score"):
        rs.run(ask("tokens", "Tokens", "ids"))
    result = rs.run(ask("tokens", "Tokens", "ids", on_error="skip", select__budget=ROWS - 1))
    assert 11 not in result.selection.column("id").to_pylist()


def test_numbers_that_are_nan_are_bad(pool: pa.Table) -> None:
    """A pixel that counts and is NaN spoils its row, by number."""
    images = column(pool, "image").numpy().copy()
    images[4, 0, 2, 2] = np.float32(3e38)  # inf minus inf in the net
    kind = pool.schema.field("image").type
    pq.write_table(pool.set_column(pool.column_names.index("image"), "image", pa.array(images.tolist(), kind)), "shapes.parquet")
    result = rs.run(ask("segmentation", "Pixels", "image", on_error="skip", model__weights=_huge(), select__budget=ROWS - 1))
    assert 4 not in result.selection.column("id").to_pylist()


def _huge() -> str:
    state = {name: values * 100 for name, values in build_network("shape_nets:Pixels", {}).state_dict().items()}
    save_file(state, "huge.safetensors")
    return "huge.safetensors"


@pytest.mark.parametrize(
    ("task", "changes", "says"),
    [
        ("segmentation", {"select": {"strategy": "badge", "budget": 3}}, "badge needs one distribution over .* is segmentation"),
        ("tokens", {"select": {"strategy": "batch_bald", "budget": 3}, "acquire": {"score": "bald", "mc_samples": 3}}, "batch_bald needs"),
        ("multi_label", {"acquire": {"score": "energy"}}, "acquire.score is energy, but model.task multi_label gives entropy"),
        ("multi_label", {"acquire": {"reduce": "top_mean"}}, "expected mean or max or sum for model.task multi"),
        ("tokens", {"acquire": {"reduce": "mena"}}, "did you mean 'mean'"),
        ("tokens", {"acquire": {"top": 0.2}}, "acquire.top is the share of elements that acquire.reduce top_mean takes"),
        ("classes", {"acquire": {"reduce": "mean"}}, r"acquire.reduce is not used .* \(only by segmentation, tokens, multi"),
        ("regression", {}, "scores rows by the variance of several opinions, but the model has one"),
        ("regression", {"acquire": {"mc_samples": 3, "score": "margin"}}, "acquire.score is margin, but model.task regression gives"),
        ("regression", {"acquire": VARIANCE, "model__temperature": 2.0}, "temperature is not used"),
        ("regression", {"acquire": VARIANCE, "select__quotas": [{"by": "prediction", "max": 1}]}, "does not give"),
        ("tokens", {"model": {"kind": "sklearn", "source": "m.skops", "task": "tokens"}}, "sklearn gives classes or multi_label alone"),
        ("dense", {}, "model.task is 'dense', expected"),
    ],
)  # fmt: skip
def test_what_a_task_does_not_give_is_refused(pool: pa.Table, task: str, changes: dict[str, Any], says: str) -> None:
    """Before anything is read, with the key, what was asked and what there is."""
    with pytest.raises(QueryError, match=says):
        ask(task, "Tokens", "ids", **changes)


@pytest.mark.parametrize(
    ("task", "source", "inputs", "says"),
    [
        ("segmentation", "Tokens", "ids", r"returned float32 \(16, 6, 3\) for 16 rows, expected .* \(rows, classes, height, width\)"),
        ("tokens", "Pixels", "image", r"expected a floating tensor \(rows, tokens, classes\) for model.task tokens"),
        ("classes", "Pixels", "image", r"expected logits of shape \(16, classes\)"),
        ("multi_label", "Tokens", "ids", r"returned tuple, expected a floating tensor \(rows, labels\)"),
    ],
)  # fmt: skip
def test_another_shape_than_the_tasks_is_refused(pool: pa.Table, task: str, source: str, inputs: str, says: str) -> None:
    """The model's shape and the task's."""
    with pytest.raises(ModelError, match=says):
        rs.run(ask(task, source, inputs))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["export", "torchscript"])
def test_mc_dropout_of_files_is_that_of_the_module(pool: pa.Table, kind: str) -> None:
    """bald of an exported or scripted model equals that of the same network in Python, through a whole query."""
    net = build_network("shape_nets:Pixels", {"dropout": 0.5}).eval()
    if kind == "export":
        example = torch.randn(3, 2, SIDE, SIDE)
        torch.export.save(torch.export.export(net, (example,), dynamic_shapes=({0: torch.export.Dim("rows")},)), "net.file")
    else:
        torch.jit.script(net).save("net.file")
    acquire = {"score": "bald", "mc_samples": 4, "reduce": "top_mean"}
    model = {"kind": kind, "source": "net.file", "task": "segmentation", "batch_size": 16}
    found = rs.run(ask("segmentation", "", "image", model=model, acquire=acquire))
    plain = rs.run(ask("segmentation", "Pixels", "image", model__args={"dropout": 0.5}, acquire=acquire))
    np.testing.assert_allclose(by_id(found), by_id(plain), atol=1e-6)


def test_a_mask_among_the_outputs_of_a_file(pool: pa.Table) -> None:
    """Of (logits, mask) the mask is the tensor of booleans; embeddings have to be an output of their own."""
    net = build_network("shape_nets:Tokens", {}).eval()
    rows = torch.export.Dim("rows")
    torch.export.save(torch.export.export(net, (torch.ones(3, TOKENS, dtype=torch.int64),), dynamic_shapes=({0: rows},)), "net.file")
    model = {"kind": "export", "source": "net.file", "task": "tokens"}
    found = rs.run(ask("tokens", "", "ids", model=model, acquire={"score": "entropy", "reduce": "sum"}))
    plain = rs.run(ask("tokens", "Tokens", "ids", acquire={"score": "entropy", "reduce": "sum"}))
    np.testing.assert_allclose(by_id(found), by_id(plain), rtol=1e-5)
    with pytest.raises(ModelError, match="gives logits alone, but an embedding is needed"):
        rs.run(ask("tokens", "", "ids", model=model, select={"strategy": "core_set", "budget": 3}))


def test_the_task_is_that_of_the_whole_committee() -> None:
    """A member can't have one of its own."""
    members = [{"source": "a:b"}, {"source": "a:b", "task": "tokens"}]
    with pytest.raises(QueryError, match=r"model.members.1.task is the same for all members; move it to model.task"):
        rs.Query(pool={"uri": "p", "inputs": ["x"]}, model={"members": members}, select={"budget": 1})


def test_names_and_keys_of_other_queries_stay(pool: pa.Table) -> None:
    """The keys that tasks brought are no part of a query's identity while they are at their defaults."""
    from raystream.scoring.output_kinds import query_identity

    plain = rs.Query(pool={"uri": "p", "inputs": ["x"]}, model={"members": [{"source": "a:b"}, {"source": "a:c"}]}, select={"budget": 1})
    parts = query_identity(plain, [], [], None, "")
    assert not {"model.task", "model.samples", "acquire.reduce", "acquire.top"} & set(parts)
    assert "task" not in parts["model.members"]
    assert "model.task" in query_identity(ask("tokens", "Tokens", "ids"), [], [], None, "")

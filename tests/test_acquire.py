"""Scores of gradients, EPIG, weights of classes and functions of the user's own, through whole queries."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pools import logits_and_embeddings, pool_table, vectors
from safetensors.torch import load_file, save_file
from scored import file_of, planned, stored_outputs
from test_run import whole_pool
from torch import Tensor

import raystream as rs
from raystream.errors import ModelError, PoolError, QueryError
from raystream.model.source import build_network
from raystream.query import Cluster
from raystream.report.page import write_report
from raystream.report.stored import pool_scores, stored_pool
from raystream.run import score
from raystream.scoring.class_labels import class_weights_of
from raystream.store.receipts import EMBEDDINGS, SAMPLES
from raystream.store.unit_columns import read_columns

MakeQuery = Callable[..., rs.Query]

SCORES = """
import torch

def tail_margin(z):
    top = z.double().softmax(1).topk(2, dim=1).values
    return (1 - top[:, 0] + top[:, 1]).float()

def spread(samples):
    return samples.exp().std(dim=1, correction=0).sum(dim=1)

def of_logits(z):
    return z.logsumexp(1) - z.mean(1)

of_logits.given = "logits"
spread.given = "log_probs"

def either(values):
    return values.exp().flatten(1).sum(1) * 0 + values.ndim

def broken(z):
    raise RuntimeError("no such class")

def wide(z):
    return z

def infinite(z):
    return torch.where(z[:, 0] > z[:, 1], torch.inf, z[:, 0])

def writes(z):
    z[:] = 0
    return z.sum(1)

def negative(z):
    return -z.logsumexp(1).exp()

def margin(z):
    return z.sum(1)

class Group:
    @staticmethod
    def tail_margin(z):
        return z.sum(1)

number = 3
"""


@pytest.fixture(scope="module")
def own_ray() -> Iterator[None]:
    """A Ray of this machine's own, or the one that other tests of this process have started."""
    from raystream.cluster.connection import connect, disconnect

    ours = connect(Cluster(workers=2))
    yield
    if ours:
        disconnect()


@pytest.fixture
def functions(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of acquisition functions, importable."""
    monkeypatch.delitem(sys.modules, "user_scores", raising=False)
    (workplace / "user_scores.py").write_text(SCORES)
    return workplace / "user_scores.py"


@pytest.fixture
def committee(workplace: Path) -> list[str]:
    """Three weight files for the tests' net."""
    paths = []
    for member in range(3):
        torch.manual_seed(member)
        net = build_network("user_nets:net", {})
        paths.append(str(workplace / f"member{member}.safetensors"))
        save_file({name: torch.randn_like(values) * 0.5 for name, values in net.state_dict().items()}, paths[-1])
    return paths


def stored(query: rs.Query, *columns: str) -> pa.Table:
    """Columns of every row of the pool, as they lie in the store, in row order; the query must have been run."""
    asked, plan = planned(query)
    assert not plan.missing
    return pa.concat_tables(list(read_columns(asked.store, stored_outputs(query), columns)))


def inputs(table: pa.Table) -> Tensor:
    return torch.from_numpy(np.stack(table.column("x").to_pylist()).astype(np.float32))


def member_probabilities(paths: list[str], x: Tensor) -> Tensor:
    """(n, k, c) float64, each net run alone."""
    made = []
    for path in paths:
        net = build_network("user_nets:net", {}).eval()
        net.load_state_dict(load_file(path))
        with torch.inference_mode():
            made.append(torch.softmax(net(x).double(), 1))
    return torch.stack(made, 1)


def expected_lengths(logits: Tensor, h: Tensor, bias: bool = True, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """egl and badge_norm, straight from the definitions, in float64."""
    p = torch.softmax(logits.double() / temperature, 1)
    length = torch.cat([h.double(), torch.ones(len(h), int(bias), dtype=torch.float64)], 1).norm(dim=1)
    residuals = torch.stack([(p - torch.eye(p.shape[1], dtype=torch.float64)[y]).norm(dim=1) for y in range(p.shape[1])], 1)
    top = residuals.gather(1, p.argmax(1, keepdim=True)).squeeze(1)
    return (p * residuals).sum(1) * length / temperature, top * length


def expected_epig(p: Tensor, targets: Tensor) -> Tensor:
    """Mutual information of a row's label and a target's, mean over targets, from the joint's definition, one target at a time."""
    total = torch.zeros(len(p), dtype=torch.float64)
    for target in targets:
        joint = torch.einsum("nkc,kd->ncd", p, target) / p.shape[1]
        apart = joint.sum(2, keepdim=True) * joint.sum(1, keepdim=True)
        total += (joint * (joint.log() - apart.log())).sum((1, 2))
    return total / len(targets)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_egl_and_badge_norm_are_the_formulas(make_query: MakeQuery, workplace: Path, temperature: float) -> None:
    """Of every row, beside margin from the same pass, and the batch is the rows of the largest; no embedding is stored for it."""
    query = make_query(acquire={"score": "egl", "also": ["badge_norm", "margin"]}, select__strategy="top_k", model__temperature=temperature)
    result = rs.run(query)
    logits, h = logits_and_embeddings(whole_pool(workplace))
    egl, norm = expected_lengths(logits, h, temperature=temperature)
    table = stored(query, "egl", "badge_norm", "margin")
    np.testing.assert_allclose(table.column("egl").to_numpy(), egl.numpy(), rtol=1e-6)
    np.testing.assert_allclose(table.column("badge_norm").to_numpy(), norm.numpy(), rtol=1e-6)
    p = torch.softmax(logits.double() / temperature, 1).sort(dim=1, descending=True).values
    np.testing.assert_allclose(table.column("margin").to_numpy(), (1 - p[:, 0] + p[:, 1]).numpy(), atol=1e-6)
    ids = whole_pool(workplace).column("rid").to_pylist()
    assert set(result.selection.column("rid").to_pylist()) == {ids[i] for i in np.argsort(-egl.numpy())[:12]}
    assert {"badge_norm", "margin"} <= set(result.selection.column_names)
    assert not any(unit.of(EMBEDDINGS) for unit in stored_outputs(query))


def test_a_layer_without_bias_and_the_users_word(make_query: MakeQuery, workplace: Path) -> None:
    """The gradient has no part for a bias that isn't there; acquire.args.bias decides for itself, under another key."""
    with (workplace / "user_nets.py").open("a") as file:
        file.write("\ndef unbiased():\n    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4, bias=False))\n")
    net = build_network("user_nets:unbiased", {}).eval()
    x = inputs(whole_pool(workplace))
    with torch.inference_mode():
        h = net[:-1](x)
        logits = net[-1](h)
    for args, bias in (({}, False), ({"bias": True}, True)):
        query = make_query(model__source="user_nets:unbiased", acquire={"score": "egl", "args": args}, select__strategy="top_k")
        assert rs.run(query).manifest.units_scored == 4
        np.testing.assert_allclose(stored(query, "egl").column(0).to_numpy(), expected_lengths(logits, h, bias)[0].numpy(), rtol=1e-6)


def test_egl_of_columns_takes_the_column_that_the_user_names(make_query: MakeQuery, workplace: Path) -> None:
    """Logits and the last layer's input may lie in the pool."""
    logits, h = logits_and_embeddings(whole_pool(workplace))
    pq.write_table(
        pa.table({"rid": np.arange(len(h)), "z": vectors(logits.numpy()), "h": vectors(h.numpy())}), workplace / "columns.parquet"
    )
    query = make_query(
        pool={"uri": "columns.parquet", "id": "rid"},
        model={"kind": "columns", "logits": "z", "embedding": "h"},
        acquire={"score": "egl"},
        select__strategy="top_k",
    )
    rs.run(query)
    np.testing.assert_allclose(stored(query, "egl").column(0).to_numpy(), expected_lengths(logits, h)[0].numpy(), rtol=1e-6)


def test_egl_beside_dropout_is_of_the_network_without_it(make_query: MakeQuery, workplace: Path) -> None:
    """bald, egl, egl_parameters and entropy come from one pass, and the batch's embeddings from the same."""
    query = make_query(
        acquire={"score": "bald", "also": ["egl", "egl_parameters", "entropy"], "mc_samples": 5}, select__strategy="core_set"
    )
    result = rs.run(query)
    assert result.manifest.units_scored == 4
    logits, h = logits_and_embeddings(whole_pool(workplace))
    np.testing.assert_allclose(stored(query, "egl").column(0).to_numpy(), expected_lengths(logits, h)[0].numpy(), rtol=2e-6)
    assert (stored(query, "bald").column(0).to_numpy() > 0).any()
    assert rs.run(make_query(acquire={"score": "egl_parameters", "also": ["margin"]}, select__strategy="top_k")).manifest.units_scored == 4


@pytest.mark.parametrize("classes", [None, 2])
def test_egl_parameters_are_per_row_gradients(make_query: MakeQuery, workplace: Path, classes: int | None) -> None:
    """Of all parameters, one backward pass a row and a class in float64, for the likeliest classes as many as asked for."""
    args = {} if classes is None else {"egl_classes": classes}
    query = make_query(acquire={"score": "egl_parameters", "args": args}, select__strategy="top_k", model__temperature=1.5)
    rs.run(query)
    found = stored(query, "egl_parameters").column(0).to_numpy()
    net = build_network("user_nets:net", {}).eval().double()
    for row, x in enumerate(inputs(whole_pool(workplace))[:20].double()):
        log_p = torch.log_softmax(net(x[None])[0] / 1.5, 0)
        expected = 0.0
        for y in log_p.argsort(descending=True)[:classes].tolist():
            grads = torch.autograd.grad(log_p[y], list(net.parameters()), retain_graph=True)
            expected += float(log_p[y].detach().exp()) * math.sqrt(sum(float(g.square().sum()) for g in grads))
        assert found[row] == pytest.approx(expected, rel=1e-5)


def test_each_kind_is_computed_once(make_query: MakeQuery) -> None:
    """After a query by egl, one by margin over the same model scores nothing; the other way round, gradients alone are written."""
    assert rs.run(make_query(acquire={"score": "egl"}, select__strategy="top_k")).manifest.units_scored == 4
    assert rs.run(make_query(acquire={"score": "margin"}, select__strategy="top_k")).manifest.units_scored == 0
    assert rs.run(make_query(acquire={"score": "badge_norm"}, select__strategy="top_k")).manifest.units_scored == 0


def test_keys_and_names_of_other_queries_stay(make_query: MakeQuery, workplace: Path) -> None:
    """A query that asks for none of this has nothing of it in its identity; weights of 1 for all are something asked for."""
    plain, units = planned(make_query())
    assert not any("class_weights" in name or "acquire.targets" in name or "acquire.args" in name for name in plain.identity)
    weighted, others = planned(make_query(acquire={"class_weights": [1, 1, 1, 1]}))
    assert units.keys[:] == others.keys[:]
    assert len({output.name for plan in (units, others) for output in plan.outputs}) == 3  # the embeddings are the same
    assert plain.name != weighted.name


@pytest.mark.parametrize("source", ["pool", "file"])
def test_epig_is_the_formula(make_query: MakeQuery, workplace: Path, committee: list[str], source: str) -> None:
    """Of every row, against a reference from the joint; targets are a sample of the pool, or the rows of a Parquet file."""
    table = whole_pool(workplace)
    probabilities = member_probabilities(committee, inputs(table))
    acquire: dict[str, Any] = {"score": "epig", "also": ["bald", "entropy"]}
    if source == "file":
        other = pool_table(70, start=5000, seed=3)
        pq.write_table(other, workplace / "targets.parquet", row_group_size=20)
        targets = member_probabilities(committee, inputs(other))
        acquire["targets"] = "targets.parquet"
    else:
        targets = probabilities
        acquire["args"] = {"targets": 5000}  # all that there are
    query = make_query(model__weights=committee, acquire=acquire, select__strategy="top_k")
    result = rs.run(query)
    expected = expected_epig(probabilities, targets).numpy()
    order = {rid: i for i, rid in enumerate(table.column("rid").to_pylist())}
    chosen = [order[rid] for rid in result.selection.column("rid").to_pylist()]
    np.testing.assert_allclose(result.selection.column("score").to_numpy(), expected[chosen], atol=1e-6)
    np.testing.assert_allclose(result.selection.column("bald").to_numpy() >= result.selection.column("score").to_numpy() - 1e-6, True)
    assert set(chosen) == set(np.argsort(-expected, kind="stable")[:12].tolist())
    np.testing.assert_allclose(np.sort(pool_scores(stored_pool(result), "epig")), np.sort(expected), atol=1e-6)
    assert "There is no histogram" not in Path(write_report(result)).read_text()


def test_epig_of_a_sample_does_not_depend_on_sharding(make_query: MakeQuery, workplace: Path, committee: list[str]) -> None:
    """The targets are drawn by the rows' ids and the seed: one file or four, one worker or two, the scores are the same."""
    acquire = {"score": "epig", "args": {"targets": 40}}
    query = make_query(model__weights=committee, acquire=acquire, select__strategy="top_k")
    first = rs.run(query).selection.select(["rid", "score"])
    pq.write_table(whole_pool(workplace), workplace / "whole.parquet", row_group_size=111)
    changes: dict[str, Any] = {"model__weights": committee, "acquire": acquire, "select__strategy": "top_k"}
    whole = make_query(pool__uri="whole.parquet", cluster={"address": "in_process", "workers": 2}, **changes)
    second = rs.run(whole).selection.select(["rid", "score"])
    assert second.column("rid").to_pylist() == first.column("rid").to_pylist()
    np.testing.assert_allclose(second.column("score").to_numpy(), first.column("score").to_numpy(), atol=1e-6)
    reseeded = rs.run(make_query(seed=1, **changes)).selection
    assert not np.allclose(reseeded.column("score").to_numpy(), first.column("score").to_numpy(), atol=1e-7)


def test_epig_again_computes_nothing(make_query: MakeQuery, committee: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was scored is kept by unit: another budget or strategy needs neither the model nor the samples again, nor does `select`."""
    acquire = {"score": "epig", "args": {"targets": 50}}
    first = score(make_query(model__weights=committee, acquire=acquire))
    assert (first.units_scored, first.rows) == (4, 1200)

    def refuse(*_: object) -> None:
        raise AssertionError("nothing is to be scored")

    monkeypatch.setattr("raystream.scoring.session.Session._start", refuse)
    result = rs.run(make_query(model__weights=committee, acquire=acquire, select__budget=7, select__strategy="top_k"), may_score=False)
    assert result.selection.num_rows == 7
    other = make_query(model__weights=committee, acquire={"score": "epig", "args": {"targets": 49}}, select__strategy="top_k")
    with pytest.raises(QueryError, match="epig is not computed yet for 4 units; run raystream query"):
        rs.run(other, may_score=False)


def test_epig_with_dropout_uses_the_same_masks_for_targets(make_query: MakeQuery, workplace: Path) -> None:
    """With targets that are the pool itself a row's EPIG is that of its own stored samples, so masks are shared."""
    query = make_query(acquire={"score": "epig", "mc_samples": 6, "args": {"targets": 2000}}, select__strategy="batch_bald")
    result = rs.run(query)
    samples = []
    for unit in stored_outputs(query):
        with pa.memory_map(str(file_of(query, unit, SAMPLES))) as file:
            column = pa.ipc.open_file(file).read_all().column(0).combine_chunks()
            samples.append(column.values.to_numpy().reshape(len(column), 6, 4))
    p = torch.from_numpy(np.concatenate(samples)).double().exp()
    expected = expected_epig(p, p).numpy()
    order = {rid: i for i, rid in enumerate(whole_pool(workplace).column("rid").to_pylist())}
    for row in result.selection.to_pylist():
        assert row["score"] == pytest.approx(expected[order[row["rid"]]], abs=1e-6)


def test_more_targets_than_wanted_are_a_sample_and_a_warning(make_query: MakeQuery, workplace: Path, committee: list[str]) -> None:
    """A file may hold more rows than EPIG can compare with; those used are said."""
    pq.write_table(pool_table(70, start=5000), workplace / "targets.parquet")
    acquire = {"score": "epig", "targets": ["targets.parquet"], "args": {"targets": 30}}
    result = rs.run(make_query(model__weights=committee, acquire=acquire, select__strategy="top_k"))
    assert any(warning.startswith("30 of the 70 rows of acquire.targets are used") for warning in result.manifest.warnings)
    pq.write_table(pool_table(71, start=5000), workplace / "targets.parquet")
    assert rs.run(make_query(model__weights=committee, acquire=acquire, select__strategy="top_k")).query != result.query


def test_class_weights_by_names_that_are_numerals() -> None:
    """Keys of YAML are numbers there: they are names, as labels are."""
    query = rs.Query(
        pool={"uri": "pool", "inputs": ["x"]}, model={"source": "m:n", "classes": ["1", "2", "3"]}, select={"budget": 1},
        acquire={"class_weights": {1: 2.0, "3": 4.0}},
    )  # fmt: skip
    assert class_weights_of(query, query.model.classes) == ((0, 2.0), (2, 4.0))
    wrong = query.model_copy(update={"acquire": {"class_weights": {0: 2.0}}})
    with pytest.raises(QueryError, match=r"names class 0, which is not one of model.classes"):
        class_weights_of(wrong, wrong.model.classes)


@pytest.mark.parametrize("weights", [[0.0, 1.0, 2.0, 5.0], {0: 0.0, "c": 2.0, "d": 5.0}])
def test_class_weights_multiply_every_score(make_query: MakeQuery, workplace: Path, functions: Path, weights: Any) -> None:
    """By the weight that the model expects of the row's class, whatever the score; classes that aren't named weigh 1."""
    acquire = {"score": "entropy", "also": ["margin", "egl", "user_scores:tail_margin"], "class_weights": weights}
    query = make_query(acquire=acquire, select__strategy="top_k", model__classes=["a", "b", "c", "d"])
    result = rs.run(query)
    logits, h = logits_and_embeddings(whole_pool(workplace))
    p = torch.softmax(logits.double(), 1)
    factor = p @ torch.tensor([0.0, 1.0, 2.0, 5.0], dtype=torch.float64)
    top = p.sort(dim=1, descending=True).values
    expected = {
        "entropy": -(p * p.log()).sum(1) * factor,
        "margin": (1 - top[:, 0] + top[:, 1]) * factor,
        "egl": expected_lengths(logits, h)[0] * factor,
        "tail_margin": (1 - top[:, 0] + top[:, 1]) * factor,
    }
    table = stored(query, *expected, "prediction", "confidence")
    for name, values in expected.items():
        np.testing.assert_allclose(table.column(name).to_numpy(), values.numpy(), rtol=2e-6)
    np.testing.assert_allclose(table.column("confidence").to_numpy(), top[:, 0].numpy(), rtol=1e-6)
    ids = whole_pool(workplace).column("rid").to_pylist()
    assert set(result.selection.column("rid").to_pylist()) == {ids[i] for i in np.argsort(-expected["entropy"].numpy())[:12]}


def test_class_weights_of_a_committee(make_query: MakeQuery, workplace: Path, committee: list[str]) -> None:
    """Members' scores, EPIG among them, are weighted by their mean prediction."""
    acquire = {"score": "epig", "also": ["variance"], "class_weights": {1: 3.0}, "args": {"targets": 5000}}
    query = make_query(model__weights=committee, acquire=acquire, select__strategy="top_k")
    result = rs.run(query)
    p = member_probabilities(committee, inputs(whole_pool(workplace)))
    factor = p.mean(1) @ torch.tensor([1.0, 3.0, 1.0, 1.0], dtype=torch.float64)
    variance = p.var(dim=1, correction=0).sum(1) * factor
    np.testing.assert_allclose(stored(query, "variance").column(0).to_numpy(), variance.numpy(), rtol=1e-5)
    epig = (expected_epig(p, p) * factor).numpy()
    np.testing.assert_allclose(np.sort(pool_scores(stored_pool(result), "epig")), np.sort(epig), atol=1e-6)


def test_a_query_with_weights_is_the_same_from_yaml(make_query: MakeQuery, workplace: Path) -> None:
    """Classes by number survive being written down."""
    query = make_query(acquire={"class_weights": {1: 3.0}})
    (workplace / "query.yaml").write_text(query.to_yaml())
    assert planned(rs.Query.load("query.yaml"))[1].outputs == planned(query)[1].outputs


def test_a_function_of_the_users_own(make_query: MakeQuery, workplace: Path, functions: Path) -> None:
    """Ranks the rows, stands in the selection under its own name, and in the report; another one beside it needs no second pass."""
    query = make_query(acquire={"score": "user_scores:tail_margin", "also": ["margin", "user_scores:of_logits"]}, select__strategy="top_k")
    result = rs.run(query)
    logits, _ = logits_and_embeddings(whole_pool(workplace))
    top = torch.softmax(logits.double(), 1).sort(dim=1, descending=True).values
    expected = (1 - top[:, 0] + top[:, 1]).numpy()
    ids = whole_pool(workplace).column("rid").to_pylist()
    assert set(result.selection.column("rid").to_pylist()) == {ids[i] for i in np.argsort(-expected)[:12]}
    np.testing.assert_allclose(result.selection.column("score").to_numpy(), result.selection.column("margin").to_numpy(), atol=1e-6)
    of_logits = (logits.double().logsumexp(1) - logits.double().mean(1)).numpy()
    np.testing.assert_allclose(stored(query, "of_logits").column(0).to_numpy(), of_logits, rtol=1e-5)
    assert "of_logits" in pq.read_table(result.path).column_names
    page = Path(write_report(result)).read_text()
    assert "tail_margin" in page
    assert "There is no histogram" not in page
    again = make_query(acquire={"score": "user_scores:of_logits", "also": ["user_scores:tail_margin"]}, select__strategy="random")
    assert rs.run(again, may_score=False).manifest.units_scored == 0


def test_a_function_of_samples(make_query: MakeQuery, workplace: Path, committee: list[str], functions: Path) -> None:
    """With several opinions a function is given their log-probabilities, unless it says that it takes logits."""
    also = ["user_scores:of_logits", "user_scores:either"]
    query = make_query(model__weights=committee, acquire={"score": "user_scores:spread", "also": also}, select__strategy="top_k")
    rs.run(query)
    p = member_probabilities(committee, inputs(whole_pool(workplace)))
    table = stored(query, "spread", "of_logits", "either")
    np.testing.assert_allclose(table.column("spread").to_numpy(), p.std(dim=1, correction=0).sum(1).numpy(), rtol=1e-5)
    log_mean = p.mean(1).log()
    np.testing.assert_allclose(
        table.column("of_logits").to_numpy(), (log_mean.logsumexp(1) - log_mean.mean(1)).numpy(), rtol=1e-4, atol=1e-6
    )
    assert set(table.column("either").to_pylist()) == {3.0}
    alone = make_query(acquire={"score": "user_scores:either"}, select__strategy="top_k")
    rs.run(alone)
    assert set(stored(alone, "either").column(0).to_pylist()) == {2.0}


def test_a_function_may_write_into_what_it_is_given(make_query: MakeQuery, functions: Path) -> None:
    """It sees a copy: other scores of the same rows stay what they are."""
    query = make_query(acquire={"score": "margin", "also": ["user_scores:writes", "user_scores:of_logits"]}, select__strategy="top_k")
    rs.run(query)
    assert len(set(stored(query, "of_logits").column(0).to_pylist())) > 1000


def test_an_edited_function_scores_again(make_query: MakeQuery, functions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its source is part of the units' keys and of the query; the old code never runs under the new key."""
    query = make_query(acquire={"score": "user_scores:of_logits"}, select__strategy="top_k")
    first = rs.run(query)
    functions.write_text(SCORES.replace("z.logsumexp(1) - z.mean(1)", "z.logsumexp(1) - z.amin(1)"))
    with pytest.raises(ModelError, match=r"acquisition function user_scores:of_logits: .* was edited after this process imported it"):
        rs.run(query)
    monkeypatch.delitem(sys.modules, "user_scores")
    second = rs.run(query)
    assert (second.manifest.units_scored, second.query == first.query) == (4, False)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"acquire": {"score": "egls"}}, r"'egls', which is no score; did you mean 'egl'"),
        ({"acquire": {"score": "user_scores:"}}, "an import path module:function"),
        ({"acquire": {"score": "egl"}, "model__embedding": "0"}, "egl, which needs .* but model.embedding names 0; leave it out"),
        ({"acquire": {"score": "egl"}, "model": {"source": "user_nets:Nan", "weights": ["a", "b"]}}, "egl, .* a committee has"),
        ({"acquire": {"also": ["badge_norm"]}, "model": {"kind": "onnx", "source": "m.onnx"}}, "badge_norm, .* not known of kind onnx"),
        (
            {"acquire": {"score": "egl"}, "pool__inputs": [], "model": {"kind": "columns", "logits": "z"}, "select__strategy": "top_k"},
            "egl, .* but no column holds it; name the one that does in model.embedding",
        ),
        ({"acquire": {"score": "egl_parameters"}, "model": {"kind": "sklearn", "source": "m"}}, "egl_parameters, .* kind sklearn doesn't"),
        ({"acquire": {"score": "egl_parameters"}, "model__weights": ["a", "b"]}, "egl_parameters, .* a committee has several networks"),
        ({"acquire": {"score": "epig"}}, "acquire asks for epig, which compares several opinions of a row, but the model has one"),
        ({"acquire": {"targets": "x.parquet"}}, "acquire.targets are used by score epig only"),
        ({"acquire": {"args": {"egl_classes": 3}}}, "acquire.args.egl_classes is used by egl_parameters only"),
        ({"acquire": {"score": "egl_parameters", "args": {"egl_classes": 0}}}, "egl_classes is 0, expected a whole number of at least 1"),
        ({"acquire": {"args": {"biass": True}}}, "acquire.args.biass is not a parameter of any score; did you mean 'bias'"),
        ({"acquire": {"class_weights": {"cat": 2}}}, "class_weights names class 'cat', but model.classes gives no names"),
        ({"acquire": {"class_weights": {"ct": 2}}, "model__classes": ["cat", "dog"]}, "'ct', which is not one of .*did you mean 'cat'"),
        ({"acquire": {"class_weights": {"cat": 2, 0: 1}}, "model__classes": ["cat", "dog"]}, "names class 0 twice, once by its name"),
        ({"acquire": {"class_weights": [1, 2]}}, "class_weights holds 2 weights, but the model has 4 classes"),
        ({"acquire": {"class_weights": {9: 2}}}, "class_weights names class 9, but the model has 4, 0 to 3"),
        ({"acquire": {"class_weights": [1, -1, 1, 1]}}, r"acquire.class_weights is \[1.*, -1.*\], expected finite numbers >= 0"),
        ({"acquire": {"class_weights": []}}, "class_weights is .*, expected finite numbers >= 0, at least one"),
        ({"acquire": {"score": "energy", "class_weights": [1, 1, 1, 2]}}, "can't weight energy, which may be negative"),
        ({"acquire": {"score": "user_scores:negative", "class_weights": [1, 1, 1, 2]}}, "can't weight negative: the score of row 0 is -"),
        ({"acquire": {"score": "user_scores:margin"}}, "but margin is the name of a column of raystream's; rename the function"),
        (
            {"acquire": {"score": "user_scores:tail_margin", "also": ["user_scores:Group.tail_margin"]}},
            "which would both be the column tail_margin",
        ),
        ({"acquire": {"score": "user_scores:tail_margin"}, "pool__keep": ["tail_margin"]}, "also a column of the pool"),
        ({"acquire": {"score": "user_scores:tail_margn"}}, "user_scores has no 'tail_margn'; did you mean 'tail_margin'"),
        ({"acquire": {"score": "user_scores:number"}}, "user_scores:number, which is no function"),
        ({"acquire": {"score": "no_scores_here:f"}}, "there is no module 'no_scores_here'"),
        ({"acquire": {"score": "user_scores:spread"}}, r"#rg\S*: .*user_scores:spread takes several opinions of a row, but"),
        ({"acquire": {"score": "user_scores:broken"}}, r"#rg\S*: .*user_scores:broken raised RuntimeError: no such class on"),
        ({"acquire": {"score": "user_scores:wide"}}, r"#rg\S*: .*user_scores:wide returned torch.float32 \(300, 4\) .* expected"),
        ({"acquire": {"score": "user_scores:infinite"}}, r"#rg\S*: .*user_scores:infinite gave \d+ of 300 rows no finite score, first inf"),
    ],
)  # fmt: skip
def test_what_can_not_be_scored_is_said(make_query: MakeQuery, functions: Path, changes: dict[str, Any], says: str) -> None:
    """What was asked for, why it can't be had, and what to do."""
    with pytest.raises((QueryError, ModelError), match=says):
        rs.run(make_query(**changes))


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_network_without_a_last_linear_has_no_egl(make_query: MakeQuery, workplace: Path, on_error: str) -> None:
    """The query is refused, not answered with another layer's input, nor with every unit left out."""
    with (workplace / "user_nets.py").open("a") as file:
        file.write("\ndef doubled():\n    return nn.Sequential(nn.Linear(8, 4), nn.Softplus())\n")
    with pytest.raises(QueryError, match="the logits are not the output of a Linear layer of the model; take another score"):
        rs.run(make_query(model__source="user_nets:doubled", acquire={"score": "egl"}, select__strategy="top_k", on_error=on_error))


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (pa.table({"rid": ["a"], "y": [1.0]}), "acquire.targets targets.parquet: .*column x"),
        (pa.table({"rid": ["a"], "x": vectors(np.ones((1, 5)))}), "acquire.targets targets.parquet: x is of another type or shape"),
        (
            pa.table({"rid": pa.array([1]), "x": vectors(np.ones((1, 8)))}),
            "acquire.targets targets.parquet: the id column is of another type",
        ),
        (None, "acquire.targets"),
    ],
)
def test_targets_that_can_not_be_read(
    make_query: MakeQuery, workplace: Path, committee: list[str], table: pa.Table | None, says: str
) -> None:
    """Targets are rows like the pool's; the message names the key of the query."""
    if table is not None:
        pq.write_table(table, workplace / "targets.parquet")
    acquire = {"score": "epig", "targets": "targets.parquet"}
    with pytest.raises(PoolError, match=says):
        rs.run(make_query(model__weights=committee, acquire=acquire, select__strategy="top_k"))


def test_rows_left_out_are_left_out_of_every_score(make_query: MakeQuery, workplace: Path, functions: Path) -> None:
    """Under on_error skip, scores of gradients and functions stay with their rows when others of the batch are dropped."""
    with (workplace / "user_nets.py").open("a") as file:
        file.write("\nclass Holes(Nan):\n    def forward(self, x):\n        return self.head(torch.where(x[:, :1] > 2.5, torch.nan, x))\n")
    acquire = {"score": "egl", "also": ["egl_parameters", "user_scores:of_logits"], "args": {"egl_classes": 4}}
    query = make_query(model__source="user_nets:Holes", acquire=acquire, select__strategy="top_k", on_error="skip")
    result = rs.run(query)
    x = inputs(whole_pool(workplace))
    good = x[:, 0] <= 2.5
    assert result.manifest.counts.quarantined == int((~good).sum()) > 0
    head = build_network("user_nets:Holes", {}).head
    with torch.inference_mode():
        logits = head(x)
    assert stored(query, "of_logits").num_rows == int(good.sum())
    of_logits = (logits.double().logsumexp(1) - logits.double().mean(1))[good].numpy()
    np.testing.assert_allclose(stored(query, "of_logits").column(0).to_numpy(), of_logits, rtol=1e-5)
    egl = expected_lengths(logits, x)[0][good].numpy()
    np.testing.assert_allclose(stored(query, "egl").column(0).to_numpy(), egl, rtol=1e-5)
    np.testing.assert_allclose(stored(query, "egl_parameters").column(0).to_numpy(), egl, rtol=1e-5)


def test_units_without_rows_have_no_epig(make_query: MakeQuery, workplace: Path, committee: list[str]) -> None:
    """A filter that empties some units leaves the others' EPIG in its place."""
    acquire = {"score": "epig", "args": {"targets": 5000}}
    query = make_query(
        model__weights=committee, acquire=acquire, select__strategy="top_k", select__budget=3, pool__filters=[["url", "in", [
            "https://example.org/7", "https://example.org/11", "https://example.org/650"]]],
    )  # fmt: skip
    result = rs.run(query)
    rows = [7, 11, 650]
    p = member_probabilities(committee, inputs(whole_pool(workplace))[rows])
    found = dict(zip(result.selection.column("rid").to_pylist(), result.selection.column("score").to_pylist(), strict=True))
    assert [found[f"r{row:06d}"] for row in rows] == pytest.approx(expected_epig(p, p).tolist(), abs=1e-6)


@pytest.mark.slow
def test_on_ray(own_ray: None, make_query: MakeQuery, committee: list[str], functions: Path) -> None:
    """Workers in other processes import the function, and compute EPIG, as those of this process do."""
    acquire = {"score": "epig", "also": ["user_scores:spread", "bald"], "args": {"targets": 50}}
    changes: dict[str, Any] = {"model__weights": committee, "acquire": acquire, "select__strategy": "top_k"}
    ours = rs.run(make_query(**changes)).selection
    there = rs.run(make_query(cluster={"address": "auto", "workers": 2}, store={"uri": "other"}, **changes)).selection
    assert there.equals(ours)

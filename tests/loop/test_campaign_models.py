"""Loops with every kind of trainer and task: what a query loads is what was trained, in the process that trained it and in the next."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from campaigns import asked, blobs, history, make_loop, simulated, write_pool
from pools import vectors

from raystream import ActiveLearningLoop, Loop
from raystream.errors import LabelsError, ModelError, QueryError
from raystream.report.loop_page import rounds_as_text
from raystream.store.local import LocalStore
from raystream.store.queries import read_query

NETS = """
import pyarrow as pa
import torch
from torch import nn

def net(d=4, c=3):
    return nn.Sequential(nn.Linear(d, 16), nn.ReLU(), nn.Linear(16, c))

def fit_module(table, previous, seed, args):
    assert table.column_names == ["x", "rid", "label"], table.column_names
    model = net()
    if previous is not None:
        model.load_state_dict(previous.state_dict())
    x = torch.tensor(table["x"].to_pylist())
    y = torch.tensor(table["label"].to_pylist())
    optimizer = torch.optim.Adam(model.parameters(), lr=args["lr"])
    for _ in range(50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model

def fit_estimator(table, previous, seed, args):
    from sklearn.linear_model import LogisticRegression
    return LogisticRegression().fit(table["x"].to_pylist(), table["label"].to_pylist())

def fit_path(table, previous, seed, args):
    import skops.io
    assert previous is None or previous.predict([[0, 0, 0, 0]]).shape == (1,)
    skops.io.dump(fit_estimator(table, None, seed, args), "mine.skops")
    return "mine.skops"

def broken(table, previous, seed, args):
    raise ValueError("no luck")

def nothing(table, previous, seed, args):
    return 7

class Nan(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
    def forward(self, x):
        return self.head(x) * float("nan")
"""


@pytest.fixture
def truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The pool, and modules to import; the current folder."""
    (tmp_path / "loop_nets.py").write_text(textwrap.dedent(NETS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import sys

    monkeypatch.delitem(sys.modules, "loop_nets", raising=False)
    return write_pool(tmp_path)


def torch_loop(folder: Path, **changes: Any) -> Loop:
    given: dict[str, Any] = {
        "model": {"source": "loop_nets:net", "batch_size": 32},
        "loop__trainer": "torch",
        "loop__train": {"least_steps": 120},
        "loop__rounds": 2,
    }
    return simulated(folder, **(given | changes))


@pytest.mark.slow
def test_torch_trains_in_rounds(tmp_path: Path, truth: dict[str, int]) -> None:
    """The network of `model.source`, the same history whoever goes on, and a model that has learnt something."""
    state = ActiveLearningLoop(torch_loop(tmp_path)).step()
    assert state.state == "finished"
    assert state.rows[-1]["accuracy"] > 0.6
    other = torch_loop(tmp_path, store__uri=str(tmp_path / "other"), loop__rounds=1)
    ActiveLearningLoop(other).step()
    resumed = torch_loop(tmp_path, store__uri=str(tmp_path / "other"))
    ActiveLearningLoop(resumed).step()
    drop = "would_stop_rounds"
    assert [row | {drop: None} for row in history(resumed)] == [row | {drop: None} for row in history(torch_loop(tmp_path))]


def test_a_committee_is_calibrated_and_goes_on_warm(tmp_path: Path, truth: dict[str, int]) -> None:
    """Members by bootstrap, whose disagreement scores; a temperature from rows held back; weights of the round before."""
    loop = torch_loop(
        tmp_path,
        loop__committee=2,
        loop__calibrate=True,
        loop__warm_start=True,
        loop__start={"budget": 60},
        select={"budget": 6, "strategy": "top_k"},
        acquire={"score": "vote_entropy"},
    )
    state = ActiveLearningLoop(loop).step()
    assert state.state == "finished"
    trained = ActiveLearningLoop(loop).journal.trained(1)
    assert trained is not None
    assert trained.model is not None
    assert len(trained.model["weights"]) == 2
    assert trained.model["temperature"] > 0
    assert trained.rows == 48  # a fifth of 60 is held back
    batch = pq.read_table(tmp_path / "runs/queries/small-r2/selection.parquet")
    assert batch.column("score").null_count == 0


@pytest.mark.parametrize(
    "trainer", ["fit_module", pytest.param("fit_estimator", marks=pytest.mark.slow), pytest.param("fit_path", marks=pytest.mark.slow)]
)
def test_a_function_of_the_users_own_trains(tmp_path: Path, truth: dict[str, int], trainer: str) -> None:
    """A module, an estimator or a path: workers load it, and the next round's function gets it."""
    model = {"source": "loop_nets:net"} if trainer == "fit_module" else None
    changes: dict[str, Any] = {} if model is None else {"model": model}
    loop = simulated(tmp_path, loop__trainer=f"loop_nets:{trainer}", loop__train={"lr": 0.05}, loop__rounds=1, **changes)
    assert ActiveLearningLoop(loop).step().state == "finished"
    more = simulated(tmp_path, loop__trainer=f"loop_nets:{trainer}", loop__train={"lr": 0.05}, loop__rounds=3, **changes)
    state = ActiveLearningLoop(more).step()
    assert (state.state, len(state.rows)) == ("finished", 3)
    assert state.rows[-1]["accuracy"] > 0.6


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"loop__trainer": "loop_nets:broken", "loop__train": {}}, ModelError, "loop_nets:broken raised ValueError: no luck on 6 labelled"),
        ({"loop__trainer": "loop_nets:nothing", "loop__train": {}}, ModelError, "nothing returned int, expected a torch.nn.Module"),
        ({"loop__trainer": "loop_nets:fit_module", "loop__train": {"lr": 1}}, ModelError, "returned a module, which workers can load only"),
        ({"loop__trainer": "loop_nets:absent", "loop__train": {}}, (QueryError, ModelError), "loop_nets has no 'absent'"),
        ({"loop__trainer": "torhc"}, QueryError, "loop.trainer is 'torhc', expected torch, sklearn, .*; did you mean 'torch'"),
        ({"loop__train": {"estimator": "sklearn.linear_model:LogisticRegresion"}}, QueryError, "did you mean 'LogisticRegression'"),
        ({"loop__train": {"estimator": "sklearn.linear_model:LogisticRegression", "c": 1}}, QueryError, "loop.train.c is not an argument"),
        ({"loop__train": {}}, QueryError, "loop.train.estimator is missing"),
        ({"loop__metrics": ["acuracy"]}, QueryError, "loop.metrics names 'acuracy', .*; did you mean 'accuracy'"),
        ({"loop__stop": {"rules": ["kapa"]}}, QueryError, "loop.stop.rules names 'kapa', which is no rule; did you mean 'kappa'"),
        ({"loop__stop": {"rules": ["target"]}}, QueryError, "target needs value"),
        ({"loop__rounds": None}, QueryError, "loop.rounds is missing from the query; give it, or loop.budget"),
        ({"loop__roundz": 3}, QueryError, "loop.roundz is not a key of the query; did you mean 'rounds'"),
        ({"loop__start": {"strategy": "top_k"}}, QueryError, "loop.start.strategy is top_k, which needs a trained model's scores"),
        ({"loop__name": "Nope!"}, QueryError, "loop.name is 'Nope!', expected lower-case letters"),
        ({"store__query": "mine"}, QueryError, "store.query is given, but a loop names its queries itself"),
        ({"pool__inputs": ["x", "y"]}, QueryError, "pool.label y is among pool.inputs"),
        ({"model": {"kind": "columns", "logits": "x"}}, QueryError, "model.kind is columns, so that no model runs"),
        ({"loop__calibrate": True, "model": {"task": "regression"}}, QueryError, "loop.calibrate fits a temperature"),
        ({"loop__evaluate": "nowhere.parquet"}, LabelsError, "loop.evaluate .*/nowhere.parquet does not exist"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(tmp_path: Path, truth: dict[str, int], changes: dict[str, Any], error: Any, says: str) -> None:
    """What, where, got, expected; nothing is asked for before what can be known."""
    with pytest.raises(error, match=says):
        ActiveLearningLoop(simulated(tmp_path, **changes)).step()


def test_a_model_that_gives_nan_is_refused(tmp_path: Path, truth: dict[str, int]) -> None:
    """Training ends with the reason, and the round can be trained again once it is mended."""
    with pytest.raises(ModelError, match="the training loss is nan"):
        ActiveLearningLoop(torch_loop(tmp_path, model={"source": "loop_nets:Nan"})).step()
    journal = ActiveLearningLoop(torch_loop(tmp_path, model={"source": "loop_nets:Nan"})).journal
    assert journal.closed(1) is not None
    assert journal.trained(1) is None


def ridge_loop(folder: Path, truth: dict[str, int], **changes: Any) -> Loop:
    """A loop over the same rows with numbers as labels."""
    x, _ = blobs()
    table = pa.table({"rid": list(truth), "x": vectors(x), "y": x @ np.array([1, 2, 3, 4], np.float32)})
    pq.write_table(table, folder / "pool" / "a.parquet")
    (folder / "pool" / "b.parquet").unlink()
    given = {
        "model": {"task": "regression"},
        "loop__train": {"estimator": "sklearn.linear_model:Ridge"},
        "loop__evaluate": 0.3,
        "loop__metrics": ["rmse", "r2"],
    }
    return simulated(folder, **(given | changes))


@pytest.mark.parametrize("strategy", ["k_means", "lcmd"])
def test_regression_in_rounds(tmp_path: Path, truth: dict[str, int], strategy: str) -> None:
    """Numbers as labels, curves where lower is better, a committee's variance to choose by without a word of acquire."""
    state = ActiveLearningLoop(ridge_loop(tmp_path, truth, loop__committee=3, select__strategy=strategy)).step()
    assert state.state == "finished"
    assert state.rows[-1]["rmse"] < state.rows[0]["rmse"]
    assert state.rows[-1]["r2"] > 0.9


def test_costs_of_numbers_have_a_curve(tmp_path: Path, truth: dict[str, int]) -> None:
    """The history sums what the labelled rows cost, and the page draws the error over it, in the direction that is better."""
    loop = ridge_loop(tmp_path, truth, select={"strategy": "random", "budget": 6, "cost": {"column": "minutes", "budget": 9.0}})
    minutes = {id_: 1.0 + place % 3 for place, id_ in enumerate(truth)}
    table = pq.read_table(tmp_path / "pool" / "a.parquet")
    pq.write_table(table.append_column("minutes", pa.array(minutes.values())), tmp_path / "pool" / "a.parquet")
    campaign = ActiveLearningLoop(loop)
    state = campaign.step()
    paid = 0.0
    for row in state.rows:
        batch = asked(pq.read_table(tmp_path / f"runs/loops/small/rounds/{row['round']:04d}/selection.parquet"))
        spent = sum(minutes[id_] for id_ in batch)
        assert spent <= 9.0
        paid += spent
        assert row["cost"] == paid
    assert state.report is not None
    page = Path(state.report).read_text()
    assert "rmse by what the labels cost" in page
    assert "Lower is better. By the sum of the pool" in page
    assert "r2 by what the labels cost" in page
    table_ = rounds_as_text(state.summary()["rounds"]).splitlines()
    assert table_[0].split()[:5] == ["round", "labels", "strategy", "cost", "rmse"]
    assert table_[-1].split()[3] == f"{paid:g}"


@pytest.mark.parametrize(
    "strategy", ["core_set", "random", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lcmd", "auto", "k_means_pp"))]
)
def test_regression_by_one_estimator_reads_no_score(tmp_path: Path, truth: dict[str, int], strategy: str, cli: Any) -> None:
    """A strategy that goes by no score needs no second opinion, in any batch; the batch has no score, and its choice is derived again."""
    loop = ridge_loop(tmp_path, truth, select={"strategy": strategy, "budget": 6})
    state = ActiveLearningLoop(loop).step()
    assert (state.state, len(state.rows)) == ("finished", 3)
    batch = pq.read_table(tmp_path / "runs/queries/small-r3/selection.parquet")
    assert (batch.num_rows, batch.column("score").null_count) == (6, 6)
    code, _, err = cli("verify", "small-r3", "--store", tmp_path / "runs")
    assert code == 0, err
    code, out, err = cli("show", "small-r3", "--store", tmp_path / "runs")
    taken = "lcmd" if strategy == "auto" else strategy
    assert (code, f"asked       6 rows by {taken}, of " in out) == (0, True), out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "with strategy k_means, but .* set loop.committee to 2 or more, or choose without a score: by lcmd or core_set"),
        ({"select__strategy": "top_k"}, "select goes by scores, with strategy top_k, but model.task regression"),
        ({"select__strategy": "core_set", "select__candidates": 50}, "a number of select.candidates"),
        ({"select__strategy": "lcmd", "acquire": {"score": "variance"}}, "acquire is given, but"),
        ({"model": {"task": "regression", "source": "m:n"}, "loop__trainer": "torch", "loop__train": {}}, "or acquire.mc_samples"),
    ],
)  # fmt: skip
def test_scores_of_one_opinion_are_refused_at_load(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    """What goes by scores is refused with the loop, not in its second batch."""
    given = {"model": {"task": "regression"}, "loop__train": {"estimator": "sklearn.linear_model:Ridge"}}
    with pytest.raises(QueryError, match=says):
        simulated(tmp_path, **(given | changes))


@pytest.mark.parametrize("committee", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ratings_are_names_of_classes(tmp_path: Path, committee: int) -> None:
    """Numbers of the pool are matched with names that are numerals; an estimator may not have met them all, nor in their order."""
    truth = write_pool(tmp_path)
    for name in ("pool/a.parquet", "pool/b.parquet", "test.parquet"):
        table = pq.read_table(tmp_path / name)
        pq.write_table(table.set_column(2, "y", pc.add(table.column("y"), 1)), tmp_path / name)
    drawn = {"select": {"strategy": "random", "budget": 12}, "loop__start": {"budget": 20}, "loop__rounds": 2}
    loop = simulated(tmp_path, model={"classes": ["3", "2", "1", "0"]}, loop__committee=committee, **drawn)
    state = ActiveLearningLoop(loop).step()
    assert state.state == "finished"
    assert state.rows[-1]["accuracy"] > 0.8
    batch = pq.read_table(tmp_path / "runs/queries/small-r2/selection.parquet")
    right = [str(truth[id_] + 1) == name for id_, name in zip(asked(batch), batch.column("prediction_name").to_pylist(), strict=True)]
    assert sum(right) > 8


def test_many_labels_a_row_in_rounds(tmp_path: Path, truth: dict[str, int]) -> None:
    """Lists of classes as labels, given by people as JSON Lines."""
    loop = make_loop(
        tmp_path,
        model={"task": "multi_label", "classes": ["a", "b", "c"], "source": "loop_nets:net"},
        loop__trainer="torch",
        loop__train={"least_steps": 100},
        loop__evaluate=None,
        loop__rounds=2,
    )
    for number in (1, 2):
        batch = asked(ActiveLearningLoop(loop).step())
        (tmp_path / "labels").mkdir(exist_ok=True)
        rows = [f'{{"rid": "{id_}", "y": {["[]", chr(34).join(["[", "a", "]"]), "[1, 2]"][truth[id_]]}}}' for id_ in batch]
        (tmp_path / "labels" / f"{number}.jsonl").write_text("\n".join(row.replace("[1, 2]", '["b", "c"]') for row in rows) + "\n")
    state = ActiveLearningLoop(loop).step()
    assert (state.state, state.labels) == ("finished", 12)
    trained = ActiveLearningLoop(loop).journal.trained(2)
    assert trained is not None
    assert trained.classes == ["a", "b", "c"]


def text_loop(folder: Path, truth: dict[str, int], **changes: Any) -> Loop:
    """A loop of two rounds over texts, of which every one stands there twice, with a pipeline that embeds them once it is fitted."""
    words = ["red apple pie", "blue ocean wave", "green forest tree"]
    texts = [f"{words[c]} {i}" for i, c in enumerate(truth.values())]
    table = pa.table({"rid": [*truth, *(f"again-{id_}" for id_ in truth)], "t": [*texts, *texts], "y": [*truth.values(), *truth.values()]})
    pq.write_table(table, folder / "texts.parquet")
    steps = [
        "sklearn.feature_extraction.text:TfidfVectorizer",
        {"sklearn.decomposition:TruncatedSVD": {"n_components": 4}},
        "sklearn.linear_model:LogisticRegression",
    ]
    given = {
        "pool__uri": str(folder / "texts.parquet"),
        "pool__inputs": ["t"],
        "loop__train": {"estimator": steps},
        "loop__evaluate": 0.3,
        "loop__rounds": 2,
        "loop__start": {"budget": 20},
    }
    return simulated(folder, **(given | changes))


def test_texts_begin_at_random(tmp_path: Path, truth: dict[str, int]) -> None:
    """A pipeline over texts has no embedding before it is fitted: the first batch is drawn at random, and that is said."""
    state = ActiveLearningLoop(text_loop(tmp_path, truth)).step()
    assert [row["strategy"] for row in state.rows] == ["random", "k_means"]
    assert state.rows[-1]["accuracy"] == 1.0


SVD = {"sklearn.decomposition:TruncatedSVD": {"n_components": 4, "algorithm": "arpack"}}


def prices(folder: Path, truth: dict[str, int], *steps: Any, **changes: Any) -> Loop:
    """A loop over texts with a number each, by a pipeline of these steps between words and numbers."""
    given = {"loop__train": {"estimator": ["sklearn.feature_extraction.text:TfidfVectorizer", *steps, "sklearn.linear_model:Ridge"]}}
    return text_loop(folder, truth, **({"model": {"task": "regression"}} | given | changes))


def test_numbers_of_texts_are_chosen_by_what_the_regressor_sees(tmp_path: Path, truth: dict[str, int], cli: Any) -> None:
    """`lcmd`, which `auto` picks for numbers, spreads the batch over the step before the regressor, and `verify` derives it again."""
    state = ActiveLearningLoop(prices(tmp_path, truth, SVD, select={"strategy": "auto", "budget": 6})).step()
    assert [row["strategy"] for row in state.rows] == ["random", "lcmd"]
    assert "predicts numbers" in state.why
    texts = pq.read_table(tmp_path / "texts.parquet")
    words = dict(zip(texts.column("rid").to_pylist(), texts.column("t").to_pylist(), strict=True))
    batch = [words[id_] for id_ in asked(pq.read_table(tmp_path / "runs/queries/small-r2/selection.parquet"))]
    assert len(set(batch)) == 6  # every text stands there twice, and is the same embedding twice
    code, _, err = cli("verify", "small-r2", "--store", tmp_path / "runs")
    assert code == 0, err


def test_auto_does_without_an_embedding(tmp_path: Path, truth: dict[str, int]) -> None:
    """Words that become sparse rows are none: numbers go by chance, what needs an embedding is told what makes one."""
    state = ActiveLearningLoop(prices(tmp_path, truth, select={"strategy": "auto", "budget": 6})).step()
    assert [row["strategy"] for row in state.rows] == ["random", "random"]
    assert "there is no embedding" in state.why
    with pytest.raises(ModelError, match=r"the Pipeline of loop\.train: step tfidf.* such as TruncatedSVD, .* such as top_k"):
        ActiveLearningLoop(prices(tmp_path, truth, select={"strategy": "lcmd", "budget": 6}, loop__name="other")).step()


def test_classes_of_sparse_texts_go_by_power(tmp_path: Path, truth: dict[str, int]) -> None:
    """As in a simulation: `auto` needs no embedding."""
    steps = ["sklearn.feature_extraction.text:TfidfVectorizer", "sklearn.linear_model:LogisticRegression"]
    loop = text_loop(tmp_path, truth, loop__train={"estimator": steps}, select={"strategy": "auto", "budget": 6})
    state = ActiveLearningLoop(loop).step()
    assert [row["strategy"] for row in state.rows] == ["random", "power"]


def test_texts_keep_near_duplicates_for_later(tmp_path: Path, truth: dict[str, int]) -> None:
    """The first batch, which nothing tells texts apart by, drops `near_duplicates` and says so; from the second on it holds."""
    loop = text_loop(tmp_path, truth, select={"budget": 10, "near_duplicates": 0.9999})
    campaign = ActiveLearningLoop(loop)
    assert campaign.step().state == "finished"
    first, second = (campaign.journal.asked(round_) for round_ in (1, 2))
    assert first is not None
    assert second is not None
    assert (first.strategy, second.strategy) == ("random", "k_means")
    assert "near-duplicates can't be told from texts before a model is trained" in first.why
    assert second.why == ""
    assert [spec_of(tmp_path, f"small-r{round_}").get("near_duplicates") for round_ in (1, 2)] == [None, 0.9999]
    batches = [pq.read_table(tmp_path / f"runs/queries/small-r{round_}/selection.parquet") for round_ in (1, 2)]
    earlier, later = ([id_.removeprefix("again-") for id_ in asked(batch)] for batch in batches)
    assert (len(earlier), len(later)) == (20, len(set(later) - set(earlier)))


def spec_of(folder: Path, query: str) -> dict[str, Any]:
    """The section `select` of a committed query."""
    found: dict[str, Any] = read_query(LocalStore(str(folder / "runs")), query).select.model_dump(exclude_unset=True)
    return found


@pytest.mark.slow
def test_auto_says_what_it_chose(tmp_path: Path, truth: dict[str, int]) -> None:
    """`strategy: auto` goes by labelled rows per class; the history names the strategy, the state says why."""
    state = ActiveLearningLoop(simulated(tmp_path, select={"budget": 6, "strategy": "auto"}, loop__start={"budget": 4})).step()
    assert [row["strategy"] for row in state.rows] == ["typiclust", "typiclust", "k_means"]
    assert "scores count" in state.why


def test_a_query_leaves_the_loop_alone(tmp_path: Path, truth: dict[str, int], cli: Any) -> None:
    """`raystream query` on a loop's file runs the query; `raystream loop` on a query's file says what is missing."""
    import yaml

    loop = make_loop(tmp_path, model={"source": "loop_nets:net"}, loop__trainer="torch", loop__train={})
    (tmp_path / "mine.yaml").write_text(loop.to_yaml())
    code, out, err = cli("query", tmp_path / "mine.yaml", "--json")
    assert code == 0, err
    spec = yaml.safe_load(loop.to_yaml())
    del spec["loop"]
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(spec))
    code, out, err = cli("loop", tmp_path / "plain.yaml")
    assert (code, out) == (2, "")
    assert "has no section loop" in err

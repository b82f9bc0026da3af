"""`raystream simulate`: what is played, kept, joined and said."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pools import vectors

import raystream as rs
import raystream.loop.simulation.run as parallel
import raystream.loop.simulation.run as simulation
from raystream.errors import QueryError
from raystream.loop.simulation.comparison import Curves, compare
from raystream.loop.simulation.run import each_result
from raystream.query.simulate import Simulation
from raystream.service.campaign_views import simulation_view
from raystream.store.opening import open_store

Cli = Callable[..., tuple[int, str, str]]
CENTRES = np.random.default_rng(9).normal(0, 2, (3, 4))
NAMES = np.array(["ant", "bee", "cat"])


def labelled(rows: int, seed: int = 0, first: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    number = rng.integers(0, 3, rows)
    return pa.table(
        {
            "rid": pa.array(range(first, first + rows)),
            "x": vectors(CENTRES[number] + rng.normal(0, 1.5, (rows, 4))),
            "label": NAMES[number],
            "size": rng.normal(size=rows) + number,
            "tags": [[int(i == n), 1] for i, n in enumerate(number)],
            "minutes": 0.5 + np.arange(rows) % 4,
        }
    )


SPEC: dict[str, Any] = {
    "pool": {"uri": "pool.parquet", "id": "rid", "inputs": ["x"], "label": "label"},
    "select": {"budget": 5},
    "loop": {
        "start": {"strategy": "random", "budget": 6},
        "trainer": "sklearn",
        "train": {"estimator": "sklearn.linear_model:LogisticRegression"},
        "evaluate": 0.3,
        "metrics": ["accuracy", "recall"],
        "rounds": 3,
    },
    "simulate": {"strategies": ["k_means", {"name": "margin", "select": {"strategy": "top_k"}}, "auto"], "seeds": 2},
    "store": {"uri": "runs"},
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pq.write_table(labelled(150), tmp_path / "pool.parquet", row_group_size=64)
    pq.write_table(labelled(50, 1, 1000), tmp_path / "test.parquet")
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, **changes: Any) -> None:
    spec = json.loads(json.dumps(SPEC))
    for key, value in changes.items():
        section, _, name = key.partition("__")
        spec.setdefault(section, {})[name] = value
        if value is None:
            del spec[section][name]
    (folder / "ants.yaml").write_text(yaml.safe_dump(spec))


def simulated(cli: Cli, *more: str) -> dict[str, Any]:
    code, out, err = cli("simulate", "ants.yaml", "--json", *more)
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_what_it_prints_and_keeps(place: Path, cli: Cli) -> None:
    """The contract's keys; curves with a row a strategy, seed and round, from which the figures follow; a page."""
    found = simulated(cli)
    assert {"simulation", "curves", "summary", "report", "verdict", "best", "strategies", "ceiling"} <= set(found)
    assert found["simulation"] == "ants"
    assert list(found["strategies"]) == ["random", "k_means", "margin", "auto"]
    assert set(found["strategies"]["auto"]) == {"auc", "auc_se", "final", "labels_saved", "low", "high", "p_value", "verdict"}
    curves = pq.read_table(found["curves"])
    recalls = [f"recall_{name}" for name in NAMES]
    assert curves.column_names == [
        "strategy", "seed", "round", "labels", "accuracy", *recalls, "seconds_query", "seconds_train", "chosen_by"
    ]  # fmt: skip
    rows = curves.to_pylist()
    assert len(rows) == 4 * 2 * 3
    assert [row["labels"] for row in rows[:3]] == [6, 11, 16]
    values = {
        name: np.array([[row["accuracy"] for row in rows if (row["strategy"], row["seed"]) == (name, seed)] for seed in (0, 1)])
        for name in found["strategies"]
    }
    labels = np.array([6, 11, 16])
    for name, figures in found["strategies"].items():
        expected = compare(Curves(labels, values[name]), Curves(labels, values["random"]))
        assert {key: getattr(expected, key) for key in figures} == pytest.approx(figures, nan_ok=True)
        np.testing.assert_array_equal(values[name][:, 0], values["random"][:, 0])  # one start for all
    assert 0.5 < found["ceiling"] <= 1
    assert pq.read_table(found["summary"]).column("strategy").to_pylist() == list(found["strategies"])
    page = Path(found["report"]).read_text()
    assert page.count("<svg") == 2
    assert found["verdict"] in page.replace("&#39;", "'")


def test_numbers_are_names_where_names_are_numerals(place: Path, cli: Cli) -> None:
    """Ratings in a column of integers, of classes 1 to 3, are what they are as texts."""
    ceilings = []
    for type_ in (pa.int32(), pa.string()):
        for name in ("pool.parquet", "test.parquet"):
            table = labelled(150) if name == "pool.parquet" else labelled(50, 1, 1000)
            stars = pa.array([NAMES.tolist().index(each) + 1 for each in table.column("label").to_pylist()]).cast(type_)
            pq.write_table(table.set_column(2, "label", stars), place / name)
        write(place, model__classes=["1", "2", "3"], loop__evaluate="test.parquet", store__uri=f"runs-{type_}")
        found = simulated(cli, "--set", "simulate.seeds=1")
        ceilings.append(found["ceiling"])
        assert "recall_3" in pq.read_table(found["curves"]).column_names
    assert ceilings[0] == ceilings[1] > 0.5


def test_near_duplicates_hold_for_all(place: Path, cli: Cli) -> None:
    """Also for strategies that look at no embedding: nobody labels a row twice."""
    twice = labelled(60)
    copies = twice.set_column(0, "rid", pa.array(range(100, 160)))
    pq.write_table(pa.concat_tables([twice, copies]), place / "pool.parquet")
    write(place, loop__evaluate="test.parquet", loop__rounds=None, loop__budget=100, select__near_duplicates=0.999999, select__budget=30)
    curves = pq.read_table(simulated(cli, "--set", "simulate.seeds=1")["curves"]).to_pylist()
    ends = {name: max(row["labels"] for row in curves if row["strategy"] == name) for name in ("random", "margin", "auto")}
    assert all(labels <= 66 for labels in ends.values()), ends


def test_runs_are_kept_and_more_join(place: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same again plays nothing; more seeds and strategies play what is missing; what is there stays as it was."""
    first = simulated(cli)
    assert (first["runs_played"], first["runs_reused"]) == (10, 0)
    write(place, simulate__seeds=3, simulate__strategies=["k_means", "core_set"])
    kept = {path: path.read_bytes() for path in (place / "runs" / "simulations" / "ants" / "runs").rglob("*.json")}
    more = simulated(cli)
    # three new seeds for random, k_means and all labels, and core_set
    assert (more["runs_played"], more["runs_reused"]) == (6, 6)
    assert all(path.read_bytes() == data for path, data in kept.items())
    monkeypatch.setattr(simulation, "_play", None)
    again = simulated(cli)
    assert (again["runs_played"], again["strategies"]) == (0, more["strategies"])


def test_a_killed_simulation_goes_on(place: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that were committed are not played again, and the outcome is that of an undisturbed one."""
    undisturbed = simulated(cli, "--store", "other")
    played: list[str] = []
    play = simulation._play

    def ends_after_four(bench: Any, run: Any) -> Any:
        played.append(run.place)
        if len(played) == 5:
            raise KeyboardInterrupt
        return play(bench, run)

    monkeypatch.setattr(simulation, "_play", ends_after_four)
    with pytest.raises(KeyboardInterrupt):
        rs.simulate(Simulation.load("ants.yaml"))
    monkeypatch.setattr(simulation, "_play", play)
    found = simulated(cli)
    assert (found["runs_played"], found["runs_reused"]) == (6, 4)
    assert found["strategies"] == undisturbed["strategies"]


def test_another_simulation_of_that_name_is_refused(place: Path, cli: Cli) -> None:
    """With what differs: the trainer's arguments, the pool's files."""
    simulated(cli)
    code, _, err = cli("simulate", "ants.yaml", "--set", "loop.rounds=4")
    assert (code, "loop.rounds" in err) == (2, True), err
    code, _, err = cli("simulate", "ants.yaml", "--set", "loop.train.C=0.1")
    assert (code, "loop.train" in err) == (2, True), err
    pq.write_table(labelled(160), place / "pool.parquet")
    code, _, err = cli("simulate", "ants.yaml")
    assert (code, "the pool's files" in err) == (2, True), err


NEAREST = """
import numpy as np
from sklearn.neighbors import KNeighborsClassifier

def fit(table, previous, seed, args):
    x = np.stack(table.column("input").to_pylist())
    return KNeighborsClassifier(args["neighbours"]).fit(x, table.column("label").to_pylist())
"""


def test_a_trainer_of_ones_own(place: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function by its import path; once its source is another, so is the simulation."""
    (place / "nearest.py").write_text(NEAREST)
    monkeypatch.syspath_prepend(str(place))
    write(place, loop__trainer="nearest:fit", loop__train={"neighbours": 1})
    assert simulated(cli)["runs_played"] == 10
    (place / "nearest.py").write_text(NEAREST + "\n# better\n")
    code, _, err = cli("simulate", "ants.yaml")
    assert (code, "the trainer's source" in err) == (2, True), err


NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
"""


@pytest.mark.slow
def test_a_network(place: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its embeddings are those of each round's model; the first batch goes by the inputs."""
    (place / "ant_nets.py").write_text(NET)
    monkeypatch.syspath_prepend(str(place))
    table = labelled(150)
    number = pa.array([NAMES.tolist().index(name) for name in table.column("label").to_pylist()])
    pq.write_table(table.set_column(2, "label", number), place / "pool.parquet")
    write(place, loop__trainer="torch", loop__train={"epochs": 2, "least_steps": 20}, simulate__strategies=["badge", "auto"])
    spec = yaml.safe_load((place / "ants.yaml").read_text())
    spec["model"] = {"source": "ant_nets:net"}
    spec["loop"]["start"] = {"strategy": "auto", "budget": 4}
    (place / "ants.yaml").write_text(yaml.safe_dump(spec))
    curves = pq.read_table(simulated(cli)["curves"]).to_pylist()
    assert [row["chosen_by"] for row in curves if (row["strategy"], row["seed"]) == ("auto", 0)] == ["typiclust", "typiclust", "k_means"]


def test_rows_to_judge_by_in_a_file(place: Path, cli: Cli) -> None:
    """All of the pool may be chosen then."""
    write(place, loop__evaluate="test.parquet", simulate__strategies=["random"], loop__rounds=None, loop__budget=150)
    curves = pq.read_table(simulated(cli)["curves"])
    assert max(curves.column("labels").to_pylist()) == 150


def test_rows_to_judge_by_are_never_chosen(place: Path, cli: Cli) -> None:
    """Neither where the file names rows of the pool by their ids alone."""
    names = [0, 3, 7, 9, 40, 41, 42, 80]
    pq.write_table(labelled(150).take(pa.array(names)).select(["rid", "label"]), place / "test.parquet")
    write(place, loop__evaluate="test.parquet", simulate__strategies=["random"], loop__rounds=None, loop__budget=150)
    found = simulated(cli)
    assert max(pq.read_table(found["curves"]).column("labels").to_pylist()) == 142
    assert "8 rows of the pool are rows of loop.evaluate, too, and are never chosen" in found["warnings"]


def test_rows_without_a_label_are_left_out(place: Path, cli: Cli) -> None:
    """And counted."""
    table = labelled(150)
    pq.write_table(
        table.set_column(2, "label", pa.array([None if i < 7 else name for i, name in enumerate(table.column("label").to_pylist())])),
        place / "pool.parquet",
    )
    assert "7 rows of the pool without a label in column label were left out" in simulated(cli)["warnings"]


def test_numbers_and_several_labels(place: Path, cli: Cli) -> None:
    """Regression, where lower is better, and multi-label."""
    write(
        place,
        pool__label="size",
        loop__train={"estimator": "sklearn.linear_model:Ridge"},
        loop__metrics=["rmse", "r2"],
        simulate__strategies=["lcmd", "auto"],
    )
    spec = yaml.safe_load((place / "ants.yaml").read_text())
    spec["model"] = {"task": "regression"}
    (place / "ants.yaml").write_text(yaml.safe_dump(spec))
    found = simulated(cli)
    assert found["ceiling"] < found["strategies"]["random"]["auc"]
    spec["model"] = {"task": "multi_label", "classes": ["first", "always"]}
    spec["pool"]["label"] = "tags"
    spec["loop"] |= {"metrics": ["micro_f1"], "train": SPEC["loop"]["train"]}
    spec["simulate"] = {"strategies": ["random"], "seeds": 1, "name": "tags"}
    (place / "ants.yaml").write_text(yaml.safe_dump(spec))
    found = simulated(cli)
    assert found["strategies"]["random"]["auc_se"] is None
    assert not math.isnan(found["ceiling"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"simulate__strategies": ["k_mean"]}, "did you mean 'k_means'"),
        ({"simulate__strategy": ["k_means"]}, "did you mean 'strategies'"),
        ({"simulate__strategies": ["k_means", "k_means"]}, "k_means twice"),
        ({"simulate__strategies": [{"name": "random", "select": {"strategy": "top_k"}}]}, "only random may have that name"),
        ({"simulate__strategies": [{"name": "m", "select": {"strategy": "top_k", "weight": 2.0}}]}, "not used by strategy top_k"),
        ({"simulate__strategies": [{"name": "m", "select": {"strategy": "top_k"}, "score": "bald"}]}, "loop.committee to 2 or more"),
        ({"simulate__strategies": [{"name": "m", "select": {"strategy": "top_k"}, "score": "egl"}]}, "which is not simulated"),
        ({"simulate__strategies": ["batch_bald"]}, "loop.committee to 2 or more"),
        ({"simulate__seeds": 0}, "simulate.seeds is 0"),
        ({"pool__label": None}, "pool.label is missing"),
        ({"loop__evaluate": None}, "loop.evaluate is missing"),
        ({"loop__metrics": ["recall"]}, "one number a class"),
        ({"loop__metrics": ["acuracy"]}, "did you mean 'accuracy'"),
        ({"select__quotas": [{"by": "label", "max": 3}]}, "rounds of a simulation don't know it"),
        ({"simulate__strategies": [{"name": "k_means", "select": {"cost": {"column": "size", "budget": 3}}}]}, "is the same for all"),
        ({"select__cost": {"column": "minutes", "budget": 0.001}}, "select.cost.budget is 0.001; raise it"),
        ({"loop__start": {"strategy": "random", "budget": 105}}, "only 105 may be chosen"),
        ({"acquire__class_weights": {0: 2.0}}, "acquire.class_weights is given"),
        ({"model__temperature": 2.0}, "model.temperature is given"),
        ({"loop__trainer": "sklern"}, "did you mean 'sklearn'"),
    ],
)
def test_what_cant_be_simulated_is_refused(place: Path, cli: Cli, changes: dict[str, Any], said: str) -> None:
    """In one sentence that names the key, before anything is played."""
    write(place, **changes)
    code, out, err = cli("simulate", "ants.yaml")
    assert (code, out) == (2, "")
    assert said in err
    assert err.strip().splitlines()[-1].startswith("raystream: ")


def priced(place: Path, task: str) -> None:
    """A simulation whose rows cost minutes: numbers where lower is better, several labels a row, or classes."""
    own: dict[str, dict[str, Any]] = {
        "classes": {},
        "regression": {"pool__label": "size", "loop__train": {"estimator": "sklearn.linear_model:Ridge"}, "loop__metrics": ["rmse", "r2"],
                       "model__task": task},
        "multi_label": {"pool__label": "tags", "model__task": task, "model__classes": ["first", "always"], "loop__metrics": ["micro_f1"]},
    }  # fmt: skip
    shared = {"select__cost": {"column": "minutes", "budget": 9.0}, "select__budget": 8, "loop__rounds": 5}
    write(place, simulate__strategies=["core_set"], simulate__seeds=3, **shared, **own[task])


@pytest.mark.parametrize("task", ["classes", "regression", "multi_label"])
def test_curves_over_what_labels_cost(place: Path, cli: Cli, task: str) -> None:
    """The figures over costs are those of the curves in the table, by another road; the verdict goes by them; a chart shows them."""
    priced(place, task)
    found = simulated(cli)
    rows = pq.read_table(found["curves"]).to_pylist()
    metric = found["metric"]
    runs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for name in found["strategies"]:
        for seed in range(3):
            own = [row for row in rows if (row["strategy"], row["seed"]) == (name, seed)]
            costs = np.array([row["cost"] for row in own])
            assert (np.diff(costs, prepend=0) <= 9.0).all()
            assert (np.diff(costs, prepend=0) > 0).all()
            runs.setdefault(name, []).append((costs, np.array([row[metric] for row in own])))
    every = [costs for of in runs.values() for costs, _ in of]
    grid = np.unique(np.concatenate(every))
    grid = grid[(grid >= max(costs[0] for costs in every)) & (grid <= min(costs[-1] for costs in every))]
    curves = {name: Curves(grid, np.array([np.interp(grid, *run) for run in of])) for name, of in runs.items()}
    summary = {row["strategy"]: row for row in pq.read_table(found["summary"]).to_pylist()}
    for name, figures in found["strategies"].items():
        expected = compare(curves[name], curves["random"], lower_is_better=metric == "rmse")
        assert (figures["cost_saved"], figures["cost_low"], figures["cost_high"]) == pytest.approx(
            (expected.labels_saved, expected.low, expected.high), nan_ok=True
        )
        assert figures["verdict"] == expected.verdict
        assert summary[name]["cost_gain"] == pytest.approx(expected.gain)
    shown = simulation_view(open_store("runs"), "ants")
    assert (shown["best"], shown["verdict"]) == (found["best"], found["verdict"])
    assert {row["strategy"]: row["verdict"] for row in shown["table"]} == {name: of["verdict"] for name, of in found["strategies"].items()}
    for line in shown["cost_curves"]:
        assert line["x"] == pytest.approx(grid.tolist())
        assert line["y"] == pytest.approx(curves[line["name"]].mean.tolist())
    page = Path(found["report"]).read_text()
    assert page.count("<svg") == 3
    assert f"{metric} by what the labels cost" in page
    assert ("Lower is better." in page) == (metric == "rmse")


def test_equal_costs_say_what_labels_say(place: Path, cli: Cli) -> None:
    """Where every row costs the same, what is saved and the verdict are those by labels."""
    table = labelled(150)
    pq.write_table(table.set_column(table.column_names.index("minutes"), "minutes", pa.array(np.full(150, 0.5))), place / "pool.parquet")
    write(place, select__cost={"column": "minutes", "budget": 100.0})
    code, out, err = cli("simulate", "ants.yaml")
    assert code == 0, err
    assert "cost saved" in out
    found = simulated(cli)
    for row in pq.read_table(found["curves"]).to_pylist():
        assert row["cost"] == row["labels"] / 2
    for row in pq.read_table(found["summary"]).to_pylist():
        for name in ("auc", "gain", "gain_low", "low", "high", "p_value", "verdict"):
            assert row[f"cost_{name}"] == (pytest.approx(row[name]) if isinstance(row[name], float) else row[name])
        assert row["cost_saved"] == pytest.approx(row["labels_saved"])
    documented = (Path(__file__).parents[2] / "docs" / "simulate.md").read_text().partition("`--json` prints")[2].partition("\n## ")[0]
    assert [key for key in [*found, *found["strategies"]["random"]] if f"`{key}`" not in documented] == []


def test_costs_that_are_none_are_refused(place: Path, cli: Cli) -> None:
    """With the first ids; another column of costs, or budget, is another simulation."""
    table = labelled(150)
    bad = np.where(np.arange(150) == 7, np.nan, 1.0)
    at = table.column_names.index("minutes")
    write(place, select__cost={"column": "minutes", "budget": 9.0}, simulate__seeds=1)
    for value in (-1.0, np.nan):
        bad[7] = value
        pq.write_table(table.set_column(at, "minutes", pa.array(bad)), place / "pool.parquet")
        code, _, err = cli("simulate", "ants.yaml")
        assert (code, "null, negative or not finite for 1 row of the pool, first with ids 7; expected costs" in err) == (3, True), err
    pq.write_table(table, place / "pool.parquet")
    simulated(cli)
    code, _, err = cli("simulate", "ants.yaml", "--set", "select.cost.budget=8")
    assert (code, "differs in select.cost;" in err) == (2, True), err


def test_labels_that_cant_be_learnt(place: Path, cli: Cli) -> None:
    """One class alone, and labels that are none, are the pool's fault."""
    pq.write_table(labelled(50).set_column(2, "label", pa.array(["ant"] * 50)), place / "pool.parquet")
    code, _, err = cli("simulate", "ants.yaml")
    assert (code, "one class 'ant'" in err) == (3, True), err
    pq.write_table(labelled(50).set_column(2, "label", pa.array([0.5] * 50)), place / "pool.parquet")
    code, _, err = cli("simulate", "ants.yaml")
    assert (code, "can't be used, first: 0.5" in err) == (3, True), err


def test_a_name_is_needed_from_python() -> None:
    """A file gives its own."""
    with pytest.raises(QueryError, match=r"simulate\.name is missing"):
        Simulation(**SPEC)
    named = SPEC | {"simulate": SPEC["simulate"] | {"name": "ants"}}
    assert Simulation(**named).name == "ants"
    loop = rs.LoopSettings(**SPEC["loop"] | {"evaluate": "test.parquet", "oracle": "labels", "control": 0.1})
    assert Simulation(**named | {"loop": loop, "pool": rs.Pool(**SPEC["pool"])}).loop.column == "label"


def square(shared: int, item: int) -> int:
    return shared * item * item


@pytest.mark.slow
def test_processes_do_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first piece here, to see how long it takes, the others in processes; an error of theirs arrives as it was raised."""
    monkeypatch.setattr(parallel, "WORTH_SECONDS", 0.0)
    found = dict(each_result(square, 3, list(range(20)), 2))
    assert found == {item: 3 * item * item for item in range(20)}
    with pytest.raises(QueryError, match=r"^nothing can be done about 7$"):
        dict(each_result(fails_at_seven, None, list(range(20)), 2))


@pytest.mark.slow
def test_what_processes_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many times what a pipe holds comes whole to each of several; what can't be sent is an error, and nobody waits for it."""
    monkeypatch.setattr(parallel, "WORTH_SECONDS", 0.0)
    numbers = np.arange(1 << 20)
    assert dict(each_result(number_at, numbers, list(range(40)), 4)) == {item: item for item in range(40)}
    with pytest.raises((AttributeError, pickle.PicklingError)):
        dict(each_result(number_at, lambda: numbers, list(range(20)), 2))


def number_at(shared: Any, item: int) -> int:
    return int((shared() if callable(shared) else shared)[item])


def fails_at_seven(shared: None, item: int) -> int:
    if item == 7:
        raise QueryError("nothing can be done about 7")
    return item


@pytest.mark.slow
def test_processes_give_the_same_simulation(place: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves and figures, but for seconds."""
    one = simulated(cli, "--set", "cluster.workers=1", "--store", "one")
    monkeypatch.setattr(parallel, "WORTH_SECONDS", 0.0)
    two = simulated(cli, "--set", "cluster.workers=2", "--store", "two")
    assert one["strategies"] == two["strategies"]
    tables = [pq.read_table(found["curves"]).drop_columns(["seconds_query", "seconds_train"]) for found in (one, two)]
    assert tables[0].equals(tables[1])


@pytest.mark.slow
def test_a_cluster_plays_the_same(place: Path, cli: Cli, own_ray: None) -> None:
    """Runs as tasks of Ray, with the curves of one process; what a run raises arrives as it was raised."""
    from raystream.cluster.task import each_on_cluster

    simulated(cli, "--store", "one", "--set", "cluster.workers=1")
    asked = Simulation.load("ants.yaml", ["store.uri=two"])
    played = list(simulation._played(asked.cluster.model_copy(update={"address": "the cluster of the tests"}), *bench_of(asked)))
    assert len(played) == 10
    for run, found in played:
        kept = json.loads((place / "one" / run.place).read_text())
        seconds = {"seconds_query": 0, "seconds_train": 0}
        assert [played | seconds for played in found.get("rounds", [])] == [played | seconds for played in kept.get("rounds", [])]
        assert found.get("metrics") == kept.get("metrics")
    with pytest.raises(QueryError, match=r"^nothing can be done about 7$"):
        list(each_on_cluster(asked.cluster, fails_at_seven, None, list(range(20)), on_cpu=True))


def bench_of(asked: Simulation) -> tuple[Any, list[Any]]:
    """What `simulate` hands out, and all runs of it."""
    held: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "_played", lambda cluster, bench, runs: held.extend([bench, runs]) or iter(()))
        with pytest.raises(KeyError):
            simulation.simulate(asked)
    return held[0], held[1]

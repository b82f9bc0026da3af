"""What comes out of a model, through whole queries: classes by their names, labels, single columns, and what the first rows decide."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from pools import vectors
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

import raystream as rs
from raystream.errors import LabelsError, ModelError, QueryError
from raystream.run import calibrate, score, verify
from raystream.store.opening import open_store

skops_io = pytest.importorskip("skops.io")

MakeQuery = Callable[..., rs.Query]
ROWS, FILES = 60, 4


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.maximum(p, 1e-300))).sum(-1)


@pytest.fixture
def pool(workplace: Path) -> dict[str, np.ndarray]:
    """Four files of x (60, 4) each, a unit a file; all of x, and the logits of a linear model."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((FILES * ROWS, 4)).astype(np.float32)
    Path("rows").mkdir()
    for file in range(FILES):
        part = slice(ROWS * file, ROWS * (file + 1))
        pq.write_table(pa.table({"id": np.arange(FILES * ROWS)[part], "x": vectors(x[part])}), f"rows/{file}.parquet")
    return {"x": x, "z": x.astype(np.float64) @ rng.standard_normal((4, 3))}


@pytest.fixture
def ask(make_query: MakeQuery, pool: dict[str, np.ndarray]) -> MakeQuery:
    """A query over these rows that takes all of them by score, unless it is told otherwise."""

    def make(**changes: Any) -> rs.Query:
        given = {
            "pool": {"uri": "rows", "id": "id", "inputs": ["x"]},
            "select": {"strategy": "top_k", "budget": FILES * ROWS},
            "acquire": {"score": "entropy"},
        }
        return make_query(**(given | changes))

    return make


def fitted(name: str, model: Any, x: np.ndarray, y: np.ndarray, **keys: Any) -> dict[str, Any]:
    skops_io.dump(model.fit(x, y), f"{name}.skops")
    return {"kind": "sklearn", "source": f"{name}.skops", **keys}


def by_id(result: rs.Result, name: str) -> np.ndarray:
    found: np.ndarray = result.selection.column(name).to_numpy(zero_copy_only=False)
    return found[np.argsort(result.selection.column("id").to_numpy())]


def add_columns(**columns: Any) -> None:
    """Further columns of all rows, in the files that are there."""
    for file in range(FILES):
        table = pq.read_table(f"rows/{file}.parquet")
        for name, values in columns.items():
            part = values[ROWS * file : ROWS * (file + 1)]
            table = table.append_column(name, vectors(part) if part.ndim == 2 else pa.array(part))
        pq.write_table(table, f"rows/{file}.parquet")


def test_the_first_rows_of_the_pool_decide_for_every_worker(ask: MakeQuery, pool: dict[str, np.ndarray]) -> None:
    """One-hot rows elsewhere are logits like the others; where they come first the query is refused, and no worker scores a unit."""
    hot = np.eye(3)[pool["z"].argmax(1)]
    mixed = [np.concatenate([pool["z"][:ROWS], hot[ROWS:]]), np.concatenate([hot[:ROWS], pool["z"][ROWS:]])]
    add_columns(a=mixed[0], b=mixed[1])
    for workers in (1, 3):
        store = {"uri": f"runs{workers}"}
        columns = {"uri": "rows", "id": "id"}
        cluster = {"address": "in_process", "workers": workers}
        result = rs.run(ask(pool=columns, model={"kind": "columns", "logits": "a"}, cluster=cluster, store=store))
        np.testing.assert_allclose(by_id(result, "score"), entropy(softmax(mixed[0])), atol=1e-6)
        before = len(list(Path(store["uri"]).rglob("scores-*.receipt.json")))
        with pytest.raises(ModelError, match=r"rows/0.parquet#rg0: column b \(model.logits\) holds probabilities, .*model.probabilities"):
            rs.run(ask(pool=columns, model={"kind": "columns", "logits": "b"}, cluster=cluster, store=store))
        assert len(list(Path(store["uri"]).rglob("scores-*.receipt.json"))) == before == FILES


def test_bad_rows_and_filters_do_not_hide_the_first_rows(ask: MakeQuery, pool: dict[str, np.ndarray]) -> None:
    """The probe takes the first clean rows that the filters keep, of whichever unit; the others are dealt with where they are scored."""
    p = softmax(pool["z"])
    p[: ROWS + 3] = np.nan
    add_columns(p=p, keep=np.arange(FILES * ROWS) % 7 == 0)
    query = ask(
        pool={"uri": "rows", "id": "id", "filters": [["keep", "==", True]]}, model={"kind": "columns", "logits": "p"}, on_error="skip"
    )
    with pytest.raises(ModelError, match=r"name it in model.probabilities instead"):
        rs.run(query)


def test_a_model_that_fails_on_some_rows_may_still_be_skipped(ask: MakeQuery, workplace: Path) -> None:
    """What it raises on the first rows is the first unit's failure, as before; the others are scored."""
    first = float(pq.read_table("rows/0.parquet").column("x")[0].as_py()[0])
    Path("picky.py").write_text(
        "class Picky:\n    def predict(self, inputs):\n"
        f"        if float(inputs[0][0, 0]) == {first!r}:\n            raise KeyError('token')\n"
        "        return inputs[0][:, :3] * 2\n"
    )
    result = rs.run(ask(model={"kind": "python", "source": "picky:Picky"}, on_error="skip", max_quarantined=1.0))
    assert sorted(result.selection.column("id").to_pylist()) == list(range(ROWS, FILES * ROWS))
    assert "raised KeyError" in result.manifest.warnings[0]


@pytest.mark.parametrize("names", [["cat", "ant", "bee"], [3, 7, 20]])
def test_a_bare_forest_as_it_is(ask: MakeQuery, pool: dict[str, np.ndarray], names: list[Any]) -> None:
    """The default strategy runs on its inputs; predictions are places, named by its own classes, which quotas and weights go by, too."""
    x, y = pool["x"], np.array(names)[pool["z"].argmax(1)]
    forest = RandomForestClassifier(20, max_depth=3, random_state=0)
    model = fitted("forest", forest, x, y)
    default = {"select": {"budget": 9, "quotas": [{"by": "prediction", "value": names[0], "max": 2}]}, "acquire": {"score": "margin"}}
    result = rs.run(ask(model=model, **default))
    chosen = result.selection
    assert chosen.schema.field("prediction").type == pa.int32()
    expected = forest.predict(x[chosen.column("id").to_numpy()])
    assert chosen.column("prediction_name").to_pylist() == [str(name) for name in expected]
    assert chosen.column("prediction").to_pylist() == [sorted(names).index(name) for name in expected]
    assert chosen.column("prediction_name").to_pylist().count(str(names[0])) <= 2
    assert verify(open_store("runs"), result.query).rows == 9
    whole = rs.run(ask(model=model, acquire={"score": "entropy", "class_weights": {names[0]: 5}}))
    p = forest.predict_proba(x)
    weights = np.where(forest.classes_ == names[0], 5.0, 1.0)
    np.testing.assert_allclose(by_id(whole, "score"), entropy(p) * (p @ weights), rtol=1e-5)
    with pytest.raises(QueryError, match="names class 'dog', which is none of the model's"):
        rs.run(ask(model=model, acquire={"score": "entropy", "class_weights": {"dog": 5}}))


def test_names_in_another_order_than_the_models_are_refused(ask: MakeQuery, pool: dict[str, np.ndarray]) -> None:
    """model.classes may rename classes, but not shuffle the model's own names."""
    y = np.array(["ant", "bee", "cat"])[pool["z"].argmax(1)]
    model = fitted("m", LogisticRegression(), pool["x"], y)
    with pytest.raises(ModelError, match=r"gives 'cat' as class 0, but to the model it is class 2 of ant, bee, cat; leave"):
        rs.run(ask(model=model | {"classes": ["cat", "ant", "bee"]}))
    renamed = rs.run(ask(model=model | {"classes": ["A", "B", "C"]}))
    assert by_id(renamed, "prediction_name").tolist() == [
        name[0].upper() for name in LogisticRegression().fit(pool["x"], y).predict(pool["x"])
    ]


@pytest.mark.parametrize(
    ("names", "written"),
    [
        ([3, 7, 20], lambda y: pa.array(y, pa.int16())),
        ([3, 7, 20], lambda y: pa.array([str(label) for label in y])),
        ([1, 2, 3], lambda y: pa.array(y)),
        ([0.0, 1.0, 2.0], lambda y: pa.array(y.astype(np.int64))),
        (["cat", "ant", "bee"], lambda y: pa.array(y.tolist())),
    ],
    ids=["gaps", "text", "from one", "floats", "names"],
)
def test_calibration_matches_labels_by_the_models_classes(
    ask: MakeQuery, pool: dict[str, np.ndarray], names: list[Any], written: Any
) -> None:
    """The temperature is the best one for the classes that the labels name, by a grid; labels that are none are refused by their row."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((400, 4)).astype(np.float32)
    z = x.astype(np.float64) @ np.linalg.lstsq(pool["x"].astype(np.float64), pool["z"], rcond=None)[0]
    places = (softmax(z).cumsum(1) > rng.random((400, 1))).argmax(1)
    ordered = np.array(sorted(names))
    model = LogisticRegression(C=1e4).fit(x[:60], ordered[places[:60]])
    skops_io.dump(model, "m.skops")
    labels = ordered[places[100:]]
    pq.write_table(pa.table({"x": vectors(x[100:]), "y": written(labels)}), "labels.parquet")
    query = ask(
        pool={"uri": "rows", "id": "id", "inputs": ["x"], "label": "y"},
        model={"kind": "sklearn", "source": "m.skops", "temperature": "labels.parquet"},
    )
    found = calibrate(query).calibration
    logs = model.predict_log_proba(x[100:])
    which = np.searchsorted(ordered, labels)

    def loss(t: float) -> float:
        return float(-np.log(softmax(logs / t))[np.arange(300), which].mean())

    grid = np.geomspace(0.2, 50, 3000)
    best = grid[int(np.argmin([loss(t) for t in grid]))]
    assert found.temperature == pytest.approx(best, rel=0.01)
    assert found.nll_before == pytest.approx(loss(1.0), rel=1e-5)
    wrong = pa.array(["dog"] * 300) if isinstance(names[0], str) else pa.array([4] * 300)
    pq.write_table(pa.table({"x": vectors(x[100:]), "y": wrong}), "labels.parquet")
    with pytest.raises(
        LabelsError, match=r"is ('dog'|4) in 300 rows, first row 0 of .*labels.parquet; expected one of the model's classes"
    ):
        calibrate(query)


def test_single_numbers_are_one_of_two_classes(ask: MakeQuery, pool: dict[str, np.ndarray]) -> None:
    """A scalar column of logits or probabilities, beside an embedding of lists or alone."""
    z = pool["z"][:, 0]
    add_columns(z=z, p=1 / (1 + np.exp(-z)))
    two = softmax(np.stack([np.zeros_like(z), z], 1))
    for model in ({"logits": "z"}, {"probabilities": "p"}):
        result = rs.run(ask(pool={"uri": "rows", "id": "id"}, model={"kind": "columns", **model}))
        np.testing.assert_allclose(by_id(result, "score"), entropy(two), atol=1e-6)
        assert by_id(result, "prediction").tolist() == (z > 0).astype(int).tolist()
        model = {"kind": "columns", "embedding": "x", "classes": ["no", "yes"], **model}
        chosen = rs.run(ask(pool={"uri": "rows", "id": "id"}, model=model, select={"budget": 6})).selection
        assert chosen.column("prediction_name").to_pylist() == ["yes" if z[row] > 0 else "no" for row in chosen.column("id").to_pylist()]


def test_labels_of_forests_and_columns(ask: MakeQuery, pool: dict[str, np.ndarray]) -> None:
    """task multi_label of a multi-output forest, members and all, and of a column of probabilities: entropies of each label."""
    x, y = pool["x"], (pool["z"] > 0).astype(int)
    forest = RandomForestClassifier(10, max_depth=3, random_state=0)
    model = fitted("forest", forest, x, y, task="multi_label")
    p = np.stack([one[:, 1] for one in forest.predict_proba(x)], 1)
    add_columns(p=p)
    expected = entropy(np.stack([p, 1 - p], 2)).mean(1)
    result = rs.run(ask(model=model, acquire={"score": "entropy", "also": ["bald"]}))
    np.testing.assert_allclose(by_id(result, "score"), expected, atol=1e-6)
    each = np.stack([np.stack([one[:, 1] for one in tree.predict_proba(x)], 1) for tree in forest.estimators_], 1)
    bald = expected - entropy(np.stack([each, 1 - each], 3)).mean(1).mean(1)
    np.testing.assert_allclose(by_id(result, "bald"), bald, atol=1e-6)
    stored = rs.run(ask(pool={"uri": "rows", "id": "id"}, model={"kind": "columns", "probabilities": "p", "task": "multi_label"}))
    np.testing.assert_allclose(by_id(stored, "score"), expected, atol=1e-6)
    with pytest.raises(ModelError, match=r"column p \(model.probabilities\) gives probabilities .* set model.task to multi_label"):
        rs.run(ask(pool={"uri": "rows", "id": "id"}, model={"kind": "columns", "probabilities": "p"}))


NETS = """
import torch
from torch import nn
import torch.nn.functional as F

class Net(nn.Module):
    def __init__(self, random=False):
        super().__init__()
        self.head, self.random = nn.Linear(4, 3), random
    def forward(self, x):
        z = self.head(x)
        return F.dropout(z, 0.3) if self.random else z
"""


def test_the_result_says_what_is_to_be_known_of_the_model(ask: MakeQuery, workplace: Path) -> None:
    """A prefix that was left out, and a network that nobody trained: as warnings, also of a query that scores nothing."""
    Path("promised_nets.py").write_text(NETS)
    random = rs.run(ask(model={"source": "promised_nets:Net"}))
    assert random.manifest.warnings == [
        "model.weights is not given, and its parameters are drawn at random by model.source promised_nets:Net: its scores are those of a "
        "random network; give its weights"
    ]
    torch.save({f"module.{name}": torch.ones(shape) for name, shape in (("head.weight", (3, 4)), ("head.bias", (3,)))}, "w.pt")
    for strategy in ("top_k", "random"):
        model = {"source": "promised_nets:Net", "weights": "w.pt"}
        result = rs.run(ask(model=model, acquire={"score": "energy"}, select={"strategy": strategy, "budget": 5}))
        assert result.manifest.warnings == ["model.weights w.pt: 'module.' was left out of the names of its 2 tensors"]
    assert result.manifest.units_scored == 0
    assert "'module.'" in score(ask(model=model, acquire={"score": "energy"})).warnings[-1]


@pytest.mark.parametrize("address", ["in_process", pytest.param("auto", marks=pytest.mark.slow)])
def test_a_random_model_is_refused_before_a_unit_is_scored(ask: MakeQuery, address: str) -> None:
    """On Ray as in process: exit 3, the module's name, and nothing in the store."""
    Path("promised_nets.py").write_text(NETS)
    model = {"source": "promised_nets:Net", "args": {"random": True}}
    with pytest.raises(ModelError, match=r"rows/0.parquet#rg0: model.source promised_nets:Net is random .*: its forward calls dropout"):
        rs.run(ask(model=model, cluster={"address": address, "workers": 2}))
    assert not list(Path("runs").rglob("scores-*.receipt.json"))


def test_doctor_runs_the_model(ask: MakeQuery, cli: Callable[..., tuple[int, str, str]]) -> None:
    """`raystream doctor --model` probes it with the pool's first rows: a random one fails, an untrained one is a warning."""
    Path("promised_nets.py").write_text(NETS)

    def finding(model: dict[str, Any], uri: str = "rows") -> tuple[int, str, str]:
        spec = {"pool": {"uri": uri, "id": "id", "inputs": ["x"]}, "model": model, "select": {"strategy": "top_k", "budget": 3}}
        Path("query.yaml").write_text(yaml.safe_dump(spec))
        code, out, _ = cli("doctor", "query.yaml", "--model", "--json")
        [found] = [one for one in json.loads(out)["findings"] if one["name"] == "model"]
        return code, found["verdict"], found["found"]

    code, verdict, found = finding({"source": "promised_nets:Net", "args": {"random": True}})
    assert (code, verdict) == (3, "fail")
    assert "is random in evaluation mode" in found
    code, verdict, found = finding({"source": "promised_nets:Net"})
    assert (code, verdict) == (0, "warn")
    assert "gives the same outputs for the same 16 rows twice; model.weights is not given" in found
    torch.save({"head.weight": torch.ones(3, 4), "head.bias": torch.ones(3)}, "w.pt")
    assert finding({"source": "promised_nets:Net", "weights": "w.pt"})[:2] == (0, "ok")
    code, verdict, found = finding({"source": "promised_nets:Net", "weights": "w.pt"}, "gone")
    assert (code, verdict) == (3, "warn")
    assert "not run, since the pool can't be read" in found

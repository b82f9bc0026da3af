"""A temperature that is fitted on labelled rows, through whole queries."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pools import DIMENSION, pool_table, vectors
from safetensors.torch import save_file
from test_run import whole_pool

import raystream as rs
from raystream import cli
from raystream.errors import LabelsError, ModelError, PoolError, QueryError
from raystream.store.calibration import Calibration

MakeQuery = Callable[..., rs.Query]
TRUE = 2.5
NAMES = ["ant", "bee", "cat", "dog"]

LOUD = """
import torch
from torch import nn

class Loud(nn.Module):
    '''Logits are so many times too large.'''
    def __init__(self, scale=2.5):
        super().__init__()
        self.head = nn.Linear(8, 4)
        weight = torch.sin(torch.arange(32.0)).view(4, 8)
        self.head.load_state_dict({"weight": weight, "bias": torch.zeros(4)})
        self.scale = scale
    def forward(self, x):
        return self.scale * self.head(x)

class Quiet(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 4)
    def forward(self, x):
        return self.head(x)

class Dropping(Loud):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)
    def forward(self, x):
        return self.scale * self.head(self.drop(x))

"""


def logits_of(x: np.ndarray) -> np.ndarray:
    """What labels are drawn from: the loud net's logits over its scale, in float64."""
    return x.astype(np.float64) @ np.sin(np.arange(32.0)).reshape(4, 8).T


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def labelled_rows(rows: int, seed: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, and labels drawn from softmax(logits / scale): the loud net's true temperature is its scale."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, DIMENSION)).astype(np.float32)
    p = softmax(logits_of(x))
    return x, (p.cumsum(1) > rng.random((rows, 1))).argmax(1)


def loss(p: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(p[np.arange(len(labels)), labels]).mean())


def ece(p: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """By the definition, a bin at a time."""
    confidence, right = p.max(1), p.argmax(1) == labels
    total = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


@pytest.fixture
def labels(workplace: Path) -> Path:
    """A calibration set of 3,000 rows in two files, and nets that are over-confident."""
    (workplace / "loud.py").write_text(LOUD)
    x, y = labelled_rows(3000)
    (workplace / "labels").mkdir()
    for part in range(2):
        rows = slice(1500 * part, 1500 * (part + 1))
        table = pa.table({"x": vectors(x[rows]), "y": y[rows].astype(np.int32), "name": [NAMES[i] for i in y[rows]]})
        pq.write_table(table, workplace / "labels" / f"part{part}.parquet", row_group_size=400)
    return workplace / "labels"


@pytest.fixture
def ask(make_query: MakeQuery, labels: Path) -> Callable[..., rs.Query]:
    """A query over the loud net whose temperature is fitted on the calibration set."""

    def make(**changes: Any) -> rs.Query:
        given = {"model__source": "loud:Loud", "model__temperature": "labels", "pool__label": "y", "select__strategy": "top_k"}
        return make_query(**{key: value for key, value in (given | changes).items() if value is not None})

    return make


def fitted(result: rs.Result) -> Calibration:
    assert result.manifest.calibration is not None
    return result.manifest.calibration


def test_it_finds_the_temperature_that_drew_the_labels(ask: MakeQuery) -> None:
    """Of a net whose logits are 2.5 times too large it is 2.5, within three standard errors; losses and errors are by their definitions."""
    found = fitted(rs.run(ask()))
    assert found.rows == 3000
    assert found.relative_error is not None
    assert 0.01 < found.relative_error < 0.05
    assert abs(np.log(found.temperature / TRUE)) < 3 * found.relative_error
    x, y = labelled_rows(3000)
    before, after = softmax(TRUE * logits_of(x)), softmax(TRUE * logits_of(x) / found.temperature)
    assert found.nll_before == pytest.approx(loss(before, y), rel=1e-5)
    assert found.nll_after == pytest.approx(loss(after, y), rel=1e-5)
    assert found.ece_before == pytest.approx(ece(before, y), abs=2e-3)
    assert found.ece_after == pytest.approx(ece(after, y), abs=2e-3)
    assert found.ece_after < 0.03 < 0.1 < found.ece_before
    grid = [loss(softmax(TRUE * logits_of(x) / t), y) for t in np.geomspace(1, 6, 400)]
    assert found.nll_after <= min(grid) + 1e-6
    for bins in (found.before, found.after):
        assert sum(bins.count) == 3000
        assert [count > 0 for count in bins.count] == [value is not None for value in bins.accuracy]


def test_names_that_are_numerals_are_matched_with_numbers(ask: MakeQuery, workplace: Path) -> None:
    """Of classes named 1 to 4, in any order, the number 1 is the class of that name, and the fit is that of the classes' places."""
    x, y = labelled_rows(3000)
    names = ["4", "1", "2", "3"]
    for name, type_ in (("whole", pa.int64()), ("doubles", pa.float64())):
        table = pa.table({"x": vectors(x), "y": pa.array([int(names[i]) for i in y], type_)})
        pq.write_table(table, workplace / f"{name}.parquet")
        found = fitted(rs.run(ask(model__temperature=f"{name}.parquet", model__classes=names, select__budget=3)))
        assert found.temperature == fitted(rs.run(ask())).temperature


def test_confidence_is_of_the_fitted_temperature(ask: MakeQuery, workplace: Path) -> None:
    """What the selection reports is softmax(z / T), and the manifest holds T where the query had the path."""
    result = rs.run(ask())
    temperature = fitted(result).temperature
    assert result.manifest.resolved["model"]["temperature"] == temperature
    table = whole_pool(workplace)
    x = {rid: x for rid, x in zip(table.column("rid").to_pylist(), table.column("x").to_pylist(), strict=True)}
    chosen = np.array([x[rid] for rid in result.selection.column("rid").to_pylist()], np.float32)
    expected = softmax(TRUE * logits_of(chosen) / temperature).max(1)
    np.testing.assert_allclose(result.selection.column("confidence").to_numpy(), expected, atol=1e-5)


def test_the_number_written_out_shares_every_unit(ask: MakeQuery, make_query: MakeQuery) -> None:
    """Units depend on the number alone; the query's name also on the calibration set."""
    first = rs.run(ask())
    again = rs.run(make_query(model__source="loud:Loud", model__temperature=fitted(first).temperature, select__strategy="top_k"))
    assert again.manifest.units_scored == 0
    assert again.query != first.query
    assert again.manifest.calibration is None
    assert again.selection.equals(first.selection)


def test_it_is_fitted_once(ask: MakeQuery, labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second query, and the same one again, run no model for it; other labels or another model are fitted anew."""
    first = rs.run(ask())
    loaded: list[str] = []
    from raystream.scoring import worker

    load = worker.load
    monkeypatch.setattr(worker, "load", lambda *args, **kwargs: loaded.append("once") or load(*args, **kwargs))
    assert not rs.run(ask()).new
    second = rs.run(ask(select__strategy="random"))
    assert not loaded
    assert fitted(second) == fitted(first)
    assert fitted(rs.run(ask(model__args={"scale": 5.0}))).temperature == pytest.approx(2 * fitted(first).temperature, rel=1e-3)
    assert len(loaded) == 2  # for the fit and for the pool
    x, y = labelled_rows(3000, seed=3)
    pq.write_table(pa.table({"x": vectors(x), "y": y.astype(np.int32), "name": [NAMES[i] for i in y]}), labels / "part2.parquet")
    more = rs.run(ask())
    assert fitted(more).rows == 6000
    assert more.query != first.query


def test_select_needs_a_fit_and_then_scores_nothing(ask: MakeQuery) -> None:
    """`raystream select` may not run the model; after `score` it finds the fit and the units."""
    with pytest.raises(QueryError, match=r"model\.temperature is not fitted yet"):
        rs.run(ask(), may_score=False)
    from raystream.run import score

    assert score(ask()).units_scored > 0
    assert rs.run(ask(), may_score=False).manifest.units_scored == 0


def test_the_query_as_asked_is_kept_and_runs_again(ask: MakeQuery) -> None:
    """`query.yaml` names the calibration set, so that it is the same query."""
    first = rs.run(ask())
    again = rs.Query.load(first.folder / "query.yaml", ["store.uri=runs"])
    assert again.model.temperature == "labels"
    result = rs.run(again)
    assert not result.new
    assert result.manifest.calibration == first.manifest.calibration


def test_names_are_looked_up_in_the_classes(ask: MakeQuery) -> None:
    """Names give the temperature that indices give."""
    by_index = fitted(rs.run(ask()))
    by_name = fitted(rs.run(ask(pool__label="name", model__classes=NAMES)))
    assert by_name.temperature == by_index.temperature
    assert by_name.key != by_index.key


def test_a_committee_is_fitted_by_its_mean(ask: MakeQuery, workplace: Path) -> None:
    """The temperature is the best for mean_k softmax(z_k / T), which no single member's is; by a grid over an independent formula."""
    rng = np.random.default_rng(4)
    weights, paths = [], []
    for member in range(3):
        weights.append((TRUE * np.sin(np.arange(32.0)).reshape(4, 8) + 1.5 * rng.standard_normal((4, 8))).astype(np.float32))
        paths.append(f"member{member}.safetensors")
        save_file({"head.weight": torch.from_numpy(weights[-1]), "head.bias": torch.zeros(4)}, workplace / paths[-1])
    found = fitted(rs.run(ask(model__source="loud:Quiet", model__weights=paths)))
    x, y = labelled_rows(3000)
    z = np.stack([x.astype(np.float64) @ w.T for w in weights], 1)
    grid = np.geomspace(1, 4, 300)
    losses = [loss(softmax(z / t).mean(1), y) for t in grid]
    best = grid[int(np.argmin(losses))]
    assert found.temperature == pytest.approx(best, rel=5e-3)
    assert found.nll_before == pytest.approx(loss(softmax(z).mean(1), y), rel=1e-5)
    assert found.nll_after == pytest.approx(min(losses), abs=1e-6)
    apart = grid[int(np.argmin([np.mean([loss(softmax(z[:, k] / t), y) for k in range(3)]) for t in grid]))]
    assert abs(apart / best - 1) > 0.02


def test_mc_dropout_is_fitted_by_what_confidence_reports(ask: MakeQuery) -> None:
    """Confidence is that of the net without dropout, and so is the temperature, whatever the samples and the seed."""
    plain = fitted(rs.run(ask()))
    acquire = {"score": "bald", "mc_samples": 4}
    found = fitted(rs.run(ask(model__source="loud:Dropping", acquire=acquire)))
    assert found.temperature == plain.temperature
    other = rs.run(ask(model__source="loud:Dropping", acquire=acquire | {"mc_samples": 6}, seed=5))
    assert fitted(other).key == found.key


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_columns_bring_their_own_outputs(make_query: MakeQuery, workplace: Path, kind: str) -> None:
    """A pool that carries logits or probabilities is calibrated by labelled rows that carry them; an embedding isn't needed there."""
    x, y = labelled_rows(2000)
    pool_x = np.stack(pool_table(300).column("x").to_pylist())
    for name, rows, more in (("carrying", pool_x, {"rid": list(range(300)), "h": vectors(pool_x)}), ("known", x, {"y": y})):
        z = TRUE * logits_of(rows)
        pq.write_table(pa.table({"out": vectors(z if kind == "logits" else softmax(z)), **more}), workplace / f"{name}.parquet")
    result = rs.run(
        make_query(
            pool={"uri": "carrying.parquet", "id": "rid", "label": "y"},
            model={"kind": "columns", kind: "out", "embedding": "h", "temperature": ["known.parquet"]},
        )
    )
    found = fitted(result)
    grid = np.geomspace(2, 3.2, 200)
    best = grid[int(np.argmin([loss(softmax(TRUE * logits_of(x) / t), y) for t in grid]))]
    assert found.temperature == pytest.approx(best, rel=3e-3)


def test_masked_classes_and_halves_of_a_bound(make_query: MakeQuery, workplace: Path) -> None:
    """-inf masks a class and is fine; where every row is right the temperature is at its bound, and a warning says not to trust it."""
    z = np.tile(np.array([[2.0, 1.0, -np.inf]]), (40, 1))
    pq.write_table(pa.table({"rid": list(range(40)), "z": vectors(z), "y": [0] * 40, "wrong": [2] * 40}), workplace / "p.parquet")
    changes: dict[str, Any] = {"model": {"kind": "columns", "logits": "z", "temperature": "p.parquet"}, "select__strategy": "top_k"}
    result = rs.run(make_query(pool={"uri": "p.parquet", "id": "rid", "label": "y"}, **changes))
    assert fitted(result).at_bound
    assert fitted(result).relative_error is None
    assert any("at its bound" in warning for warning in result.manifest.warnings)
    with pytest.raises(LabelsError, match=r"label 2 a probability of exactly 0 in 40 rows, first row 0 of .*p\.parquet"):
        rs.run(make_query(pool={"uri": "p.parquet", "id": "rid", "label": "wrong"}, **changes))


def test_few_rows_are_doubted(ask: MakeQuery, workplace: Path) -> None:
    """The standard error is that of many such fits, and above a tenth a warning says so."""
    x, y = labelled_rows(60)
    pq.write_table(pa.table({"x": vectors(x), "y": y}), workplace / "few.parquet")
    result = rs.run(ask(model__temperature="few.parquet"))
    error = fitted(result).relative_error
    assert error is not None
    from raystream.acquisition import fit_temperature

    fits = []
    for seed in range(200):
        x, y = labelled_rows(60, seed=100 + seed)
        fits.append(fit_temperature(torch.from_numpy(TRUE * logits_of(x)), torch.from_numpy(y)).temperature)
    assert error == pytest.approx(np.std(np.log(fits)), rel=0.35)
    assert any("one standard error" in warning for warning in result.manifest.warnings)


def write_bad(folder: Path) -> None:
    """Calibration sets with one thing wrong each."""
    x, y = labelled_rows(30)
    good: dict[str, Any] = {"x": vectors(x), "y": y, "name": [NAMES[i] for i in y]}
    tables = {
        "few": {name: values[:19] for name, values in good.items()},
        "unknown": good | {"y": [*y[:29], 4], "name": [*good["name"][:28], "eel", "fox"]},
        "negative": good | {"y": [-1, *y[1:]]},
        "null": good | {"y": [*y[:7].tolist(), None, *y[8:].tolist()]},
        "floats": good | {"y": y.astype(np.float32)},
        "flat": good | {"x": x[:, 0]},
        "whole": good | {"x": pa.FixedSizeListArray.from_arrays(pa.array(np.ones(240, np.uint8)), 8)},
        "no_inputs": {"y": y},
        "good": good,
    }
    for name, table in tables.items():
        pq.write_table(pa.table(table), folder / f"{name}.parquet")


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"model__temperature": "few.parquet"}, LabelsError, r"few.parquet holds 19 rows .* expected at least 20"),
        ({"model__temperature": "unknown.parquet"}, LabelsError, r"pool.label\) is 4 in row 29 of .*unknown.parquet; .* 0 .. 3"),
        ({"model__temperature": "negative.parquet"}, LabelsError, r"is -1 in row 0 of .*negative.parquet"),
        (
            {"model__temperature": "unknown.parquet", "pool__label": "name", "model__classes": NAMES},
            LabelsError, r"is 'eel' in 2 rows, first row 28 of .*unknown.parquet; expected one of model.classes",
        ),
        (
            {"model__temperature": "good.parquet", "model__classes": ["1", "2", "3", "4"]},
            LabelsError, r"is 0 in .*good.parquet; expected one of model.classes",
        ),
        ({"model__temperature": "good.parquet", "pool__label": "name"}, LabelsError, r"holds names, but model.classes gives none"),
        ({"model__temperature": "null.parquet"}, LabelsError, r"is null in row 7 of .*null.parquet"),
        ({"model__temperature": "floats.parquet"}, LabelsError, r"floats.parquet \(pool.label\) is float, expected the numbers of classes"),
        ({"model__temperature": "no_inputs.parquet"}, LabelsError, r"model.temperature: .*x.* is missing"),
        ({"model__temperature": "good.parquet", "pool__label": "z"}, LabelsError, r"model.temperature: .*z.* is missing"),
        ({"model__temperature": "whole.parquet", "model__source": "loud:Loud"}, (LabelsError, ModelError), r"whole.parquet"),
        ({"model__temperature": "nowhere.parquet"}, LabelsError, r"model.temperature /.*nowhere.parquet does not exist"),
        ({"model__temperature": "good.parquet", "model__classes": NAMES[:3]}, ModelError, r"names 3 classes, but the model has 4"),
        ({"pool__label": "x"}, QueryError, r"pool.label x is among pool.inputs: the model would see what it is to tell"),
        ({"pool__label": None}, QueryError, r"pool.label is missing; name the column of labels \(model.temperature\)"),
        ({"model__temperature": -1.0, "pool__label": None}, QueryError, r"model.temperature is -1.0, expected a number above 0"),
        ({"model__temperature": [], "pool__label": None}, QueryError, r"model.temperature is \[\]"),
        (
            {"model": {"kind": "columns", "embedding": "x", "temperature": "good.parquet"}, "pool": {"uri": "pool", "label": "y"},
             "select__strategy": "core_set", "select__candidates": "all"},
            QueryError, r"model.temperature is to be fitted, but the model gives an embedding alone",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(ask: MakeQuery, workplace: Path, changes: dict[str, Any], error: type, says: str) -> None:
    """What, where, got and expected; nothing of the pool is scored before it."""
    write_bad(workplace)
    with pytest.raises(error, match=says):
        rs.run(ask(**changes))


def test_inputs_of_another_dtype_are_refused(ask: MakeQuery, workplace: Path) -> None:
    """Integers where the pool has floats would show the model something else; here it takes both."""
    write_bad(workplace)
    (workplace / "loud_and_lenient.py").write_text(LOUD.replace("self.head(x)", "self.head(x.float())"))
    with pytest.raises(LabelsError, match=r"whole.parquet give the model \['uint8'\].*expected what the pool's give it, \['float32'\]"):
        rs.run(ask(model__temperature="whole.parquet", model__source="loud_and_lenient:Loud"))


def test_a_fit_that_is_damaged_is_made_again(ask: MakeQuery, workplace: Path) -> None:
    """A file cut short by a crash is no fit, and its units are there still."""
    first = fitted(rs.run(ask()))
    path = workplace / "runs" / "calibrations" / first.key / "fit.json"
    path.write_bytes(path.read_bytes()[:100])
    second = fitted(rs.run(ask(select__strategy="random")))
    assert {**asdict(second), "seconds": 0} == {**asdict(first), "seconds": 0}


def test_names_without_a_fit_are_what_they_were(make_query: MakeQuery) -> None:
    """The key that came with calibration is in no identity that doesn't use it."""
    result = rs.run(make_query())
    assert "pool.label" not in result.manifest.identity
    assert "the calibration rows" not in result.manifest.identity
    assert result.manifest.calibration is None


def test_a_model_that_drifts_is_refused(ask: MakeQuery) -> None:
    """A temperature of one model is not used for another one's logits, where a factory makes a new one every time."""
    with pytest.raises(ModelError, match=r"isn't the one that model\.temperature was fitted with"):
        rs.run(ask(model__source="user_nets:drifting"))


def test_bad_rows_are_left_out_only_if_asked(ask: MakeQuery, workplace: Path) -> None:
    """A row with NaN is an error; under `on_error: skip` the rest is fitted on, a warning says so, and `fail` doesn't take that fit."""
    x, y = labelled_rows(200)
    broken = x.copy()
    broken[7, 3] = np.nan
    pq.write_table(pa.table({"x": vectors(broken), "y": y}), workplace / "broken.parquet")
    rest = np.arange(200) != 7
    pq.write_table(pa.table({"x": vectors(x[rest]), "y": y[rest]}), workplace / "rest.parquet")
    result = rs.run(ask(model__temperature="broken.parquet", on_error="skip"))
    assert fitted(result).rows == 199
    assert fitted(result).temperature == fitted(rs.run(ask(model__temperature="rest.parquet"))).temperature
    assert any("1 rows were quarantined" in warning for warning in result.manifest.warnings)
    with pytest.raises(PoolError, match=r"broken\.parquet#rg0"):
        rs.run(ask(model__temperature="broken.parquet"))


def test_rows_as_text(make_query: MakeQuery, workplace: Path) -> None:
    """Lists in JSON Lines, and plain numbers in CSV, give the temperature that the same rows in Parquet give; class names may be `NA`."""
    (workplace / "loud.py").write_text(LOUD)
    x, y = labelled_rows(60)
    wide = {f"x{i}": x[:, i].astype(np.float64) for i in range(DIMENSION)}
    pool = np.stack(pool_table(40).column("x").to_pylist())
    pq.write_table(pa.table({f"x{i}": pool[:, i] for i in range(DIMENSION)} | {"rid": range(40)}), "wide.parquet")
    named = ["NA", "null", "7", "dog"]
    pq.write_table(pa.table(wide | {"y": [named[i] for i in y]}), "fit.parquet")
    rows = [",".join([*map(repr, map(float, row)), named[i]]) for row, i in zip(x, y, strict=True)]
    Path("fit.csv").write_text("\n".join([",".join([*wide, "y"]), *rows]) + "\n")
    Path("fit.jsonl").write_text("\n".join(json.dumps({k: v[i] for k, v in wide.items()} | {"y": named[y[i]]}) for i in range(60)))
    found = [
        fitted(
            rs.run(
                make_query(
                    pool={"uri": "wide.parquet", "id": "rid", "inputs": list(wide), "label": "y"},
                    model={"source": "loud:Loud", "classes": named, "temperature": f"fit.{suffix}"},
                    select={"strategy": "top_k", "budget": 3},
                )
            )
        )
        for suffix in ("parquet", "csv", "jsonl")
    ]
    assert found[0].temperature == found[1].temperature == found[2].temperature
    assert {fit.rows for fit in found} == {60}


def test_only_labelled_rows_are_fitted_on(ask: MakeQuery, workplace: Path) -> None:
    """Rows that a column `state` calls skipped, rejected, drafts or deleted don't count, labelled or not: the fit is that of the rest."""
    x, y = labelled_rows(300)
    states = np.array(["labelled", "skipped", "rejected", "draft", "deleted", None], dtype=object)[np.arange(300) % 6]
    shown = pa.array(np.where(np.isin(states, ["draft"]), None, y), pa.int32(), from_pandas=True)
    kept = np.isin(np.arange(300) % 6, [0, 5])
    pq.write_table(pa.table({"x": vectors(x), "y": shown, "state": pa.array(states)}), "stated.parquet", row_group_size=70)
    pq.write_table(pa.table({"x": vectors(x[kept]), "y": y[kept].astype(np.int32)}), "rest.parquet")
    stated, rest = (fitted(rs.run(ask(model__temperature=name))) for name in ("stated.parquet", "rest.parquet"))
    assert (stated.rows, rest.rows) == (100, 100)
    assert stated.temperature == rest.temperature
    assert stated.nll_before == pytest.approx(rest.nll_before)


def test_plan_says_that_it_is_not_fitted(ask: MakeQuery) -> None:
    """Planning runs no fit; afterwards it finds one."""
    from raystream.run import calibrate
    from raystream.scoring.estimate import estimate

    before = estimate(ask())
    assert before.units_scored == 0
    assert "not fitted yet" in before.warnings[0]
    assert calibrate(ask()).new
    result = rs.run(ask())
    after = estimate(ask())
    assert after.committed
    assert after.query == result.query
    assert after.units_scored == after.units


def write_spec(query: rs.Query, path: Path) -> str:
    path.write_text(query.to_yaml())
    return str(path)


def exit_code(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    return int(ended.value.code or 0)


def test_the_command_fits_prints_and_draws(ask: MakeQuery, workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`raystream calibrate` fits once, and a query afterwards finds the fit; JSON holds the figures, text says them."""
    spec = write_spec(ask(), workplace / "q.yaml")
    assert exit_code(["calibrate", spec, "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert shown["new"] is True
    assert Path(shown["diagram"]).read_text().startswith("<svg")
    assert shown["rows"] == 3000
    assert shown["nll_after"] < shown["nll_before"]
    assert exit_code(["calibrate", spec]) == 0
    text = capfd.readouterr().out
    assert f"temperature {shown['temperature']:g}" in text
    assert "fitted before" in text
    assert str(shown["diagram"]) in text
    assert fitted(rs.run(ask())).key == shown["key"]
    assert exit_code(["calibrate", spec, "--set", "model.temperature=1.5", "--set", "pool.label=null"]) == 2
    assert "expected labelled Parquet" in capfd.readouterr().err


def test_the_result_and_the_report_say_it(ask: MakeQuery) -> None:
    """The fitted temperature is in the text, the JSON summary and on the page, with its diagram."""
    from raystream.report.page import write_report
    from raystream.report.text import describe_result

    result = rs.run(ask())
    found = fitted(result)
    assert f"temperature {found.temperature:g}" in describe_result(result, None)
    assert result.summary()["calibration"]["temperature"] == found.temperature
    page = Path(write_report(result)).read_text(encoding="utf-8")
    assert "<h2>How far to trust" in page
    assert f"{found.temperature:g}" in page
    plain = rs.run(ask(model__temperature=1.0, pool__label=None))
    assert "How far to trust" not in Path(write_report(plain)).read_text(encoding="utf-8")

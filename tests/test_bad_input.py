"""Bad input: one sentence that names the place, the right exit code, and nothing lost."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pools import pool_table, vectors
from safetensors.torch import save_file

from raystream.cli import main
from raystream.model.source import build_network

Ask = Callable[..., tuple[int, str]]


@pytest.fixture
def ask(workplace: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run `raystream COMMAND` on a query with some keys replaced; exit code and the error."""

    def run(command: str = "query", /, *options: str, **changes: Any) -> tuple[int, str]:
        spec: dict[str, Any] = {
            "pool": {"uri": "pool", "id": "rid", "inputs": ["x"]},
            "model": {"source": "user_nets:net", "batch_size": 32},
            "select": {"budget": 12},
            "cluster": {"address": "in_process"},
        }
        for key, value in changes.items():
            section, _, name = key.partition("__")
            spec.setdefault(section, {})
            if name:
                spec[section][name] = value
            else:
                spec[section] = value
        Path("query.yaml").write_text(yaml.safe_dump(spec))
        with pytest.raises(SystemExit) as ended:
            main([command, "query.yaml", "--json", "--no-report", *options])
        output = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        if code:
            assert output.out == ""
            errors = [line for line in output.err.splitlines() if line.startswith("raystream:")]
            assert len(errors) == 1
            assert "Traceback" not in output.err
            assert "defect" not in output.err
            return code, errors[0]
        return code, output.out

    return run


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"select__budgte": 3}, "select.budgte is not a key of the query; did you mean 'budget'?"),
        ({"pol": {}}, "pol is not a key of the query; did you mean 'pool'?"),
        ({"select__strategy": "kmeans"}, "'kmeans', which is no strategy; did you mean 'k_means'?"),
        ({"acquire": {"score": "entrpy"}}, "did you mean 'entropy'?"),
        ({"select__budget": 0}, "select.budget is 0, expected a number above 0"),
        ({"select__budget": -3}, "select.budget is -3, expected a number above 0"),
        ({"select__weight": 1.0}, "select.weight is not used by strategy k_means (only by core_set); remove it"),
        ({"select__args": {"restarts": 3}}, "select.args.restarts is not a parameter of k_means"),
        ({"model": {"kind": "columns", "logits": "z"}}, "pool.inputs is not used by model.kind columns"),
        ({"model": {"kind": "onnxx", "source": "m.onnx"}}, "did you mean 'onnx'?"),
        ({"model": {"kind": "onnx", "source": "m.onnx", "weights": "w.pt"}}, "model.weights is not used by kind: onnx"),
        ({"model__trust": "all"}, "model.trust is 'all'"),
        ({"pool__keep": ["score"]}, "score, a name that raystream's own results use"),
        ({"pool__id": "reason"}, "reason, a name that raystream's own results use"),
        ({"pool__filters": [["country", "==", 3]]}, "pool.filters"),
        ({"pool__filters": [["x", "==", 3]]}, "columns of that type can't be filtered on, so filter by another column"),
        ({"pool__filters": [["country", "==", "DE"], [["country", "==", "FR"]]]}, "filters.0 is ['country', '==', 'DE']; expected"),
        ({"pool__filters": [[["country", "==", "DE"]], ["country", "==", "FR"]]}, "filters.1 is ['country', '==', 'FR']; expected"),
        ({"pool__filters": ["country", "==", "DE"]}, "pool.filters.0 is 'country'; expected terms [column, op, value] of which all hold"),
        ({"pool__filters": "country == 'DE'"}, "all hold, or lists of such terms of which any holds, and not both"),
        ({"pool__filters": [["country", "=="]]}, "pool.filters.0 is ['country', '==']; expected three parts, [column, op, value]"),
        ({"pool__filters": [[]]}, "pool.filters.0 is empty, so that every row would pass; remove it, or put terms"),
        ({"pool__filters": [[], [["country", "==", "DE"]]]}, "pool.filters.0 is empty"),
        ({"pool__filters": [[["country", "==", "DE"]], []]}, "pool.filters.1 is empty"),
        ({"store": {"query": "a/b"}}, "store.query is 'a/b'"),
        ({"store": {"uri": "ftp://lake/runs"}}, "store.uri ftp://lake/runs: ftp:// is not a storage"),
        ({"store": {"uri": "runs", "storage": {"region": "x"}}}, "store.storage is for object storage, but store.uri runs is a folder"),
        ({"select__budget": True}, "select.budget is true"),
        ({"select__candidates": 5}, "select.candidates is 5, below select.budget 12"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_wrong_query_exits_2(ask: Ask, changes: dict[str, Any], says: str) -> None:
    """What the query says wrong is named by its key."""
    code, error = ask(**changes)
    assert code == 2
    assert says in error


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pool__uri": "nowhere"}, "nowhere"),
        ({"pool__uri": "pool/*.csv"}, "pool/*.csv"),
        ({"pool__inputs": ["xx"]}, "xx"),
        ({"pool__id": "ridd"}, "did you mean 'rid'?"),
        ({"pool__keep": ["ulr"]}, "did you mean 'url'?"),
        ({"pool__filters": [["country", "==", "NL"]]}, "filters"),
        ({"pool__filters": [["contry", "==", "DE"]]}, "did you mean 'country'?"),
        ({"pool__filters": [["year", ">", 2030]]}, "filters"),
        ({"pool__labelled": "nothing.parquet"}, "nothing.parquet"),
        ({"model__source": "no_such_module:net"}, "no_such_module"),
        ({"model__source": "user_nets:nett"}, "did you mean 'net'?"),
        ({"model__args": {"hiden": 3}}, "hiden"),
        ({"model__weights": "gone.safetensors"}, "gone.safetensors"),
        ({"model__embedding": "9.conv"}, "9.conv"),
        ({"model__args": {"d": 9}}, "9"),
        ({"model__device": "cuda:7"}, "cuda:7"),
        ({"model__source": "user_nets:Nan"}, "name a module in model.embedding, such as head"),
        ({"model__source": "user_nets:flat"}, "for 2 rows, expected logits of shape (2, classes)"),
        ({"model__classes": ["a", "b"]}, "2"),
        ({"model": {"kind": "onnx", "source": "gone.onnx"}}, "model.source gone.onnx is not there"),
        ({"model": {"kind": "export", "source": "user_nets.py"}}, "user_nets.py is something else, expected a torch.export archive"),
        ({"model": {"kind": "transformers", "source": "pool"}}, "column x is fixed_size_list"),
        ({"pool__inputs": ["country"]}, "expected numbers, booleans, or lists of them"),
    ],
    ids=lambda value: "-".join(next(iter(value.items()))[0:1]) if isinstance(value, dict) else "",
)
def test_a_wrong_pool_or_model_exits_3(ask: Ask, workplace: Path, changes: dict[str, Any], says: str) -> None:
    """What the query points at is named: file, column, module, class or weights."""
    with (workplace / "user_nets.py").open("a") as source:
        source.write("\n\ndef flat():\n    return nn.Flatten(0)\n")
    code, error = ask(**changes)
    assert code == 3
    assert says in error


def test_weights_that_do_not_fit_name_the_tensors(ask: Ask) -> None:
    """Missing, unexpected and wrongly shaped tensors are listed."""
    state = build_network("user_nets:net", {"hidden": 5}).state_dict()
    save_file({"0.weight": state["0.weight"], "extra": state["0.bias"]}, "w.safetensors")
    code, error = ask(model__weights="w.safetensors")
    assert code == 3
    assert all(name in error for name in ("0.weight", "extra", "3.bias"))


def test_model_output_with_nan_names_the_rows(ask: Ask, workplace: Path) -> None:
    """The unit and the rows whose output is NaN; under `skip` they are quarantined, counted, and the rest is chosen from."""
    code, error = ask(model__source="user_nets:Nan", model__embedding="head")
    assert code == 3
    files = sorted(workplace.glob("pool/*/*.parquet"))
    bad = [np.flatnonzero(np.stack(pq.read_table(p, partitioning=None).column("x").to_pylist())[:, 0] > 2.5) for p in files]
    # Of two units that are scored at the same time, either may end the run; its first batch with such rows is told.
    told = [rf"{re.escape(str(file))}#rg0-4: (\d+ rows, first|row) {rows[0]}\b" for file, rows in zip(files, bad, strict=True) if len(rows)]
    assert any(re.search(unit, error) for unit in told)
    code, output = ask(model__source="user_nets:Nan", model__embedding="head", on_error="skip")
    assert code == 0
    assert json.loads(output)["counts"]["quarantined"] == sum(map(len, bad))
    assert f"{sum(map(len, bad))} rows were quarantined" in json.loads(output)["warnings"][0]


def write_pool(table: pa.Table) -> None:
    pq.write_table(table, "bad.parquet", row_group_size=100)


def with_x(values: list[Any], kind: pa.DataType) -> pa.Table:
    return pool_table(len(values)).set_column(1, "x", pa.array(values, kind))


@pytest.mark.parametrize(
    ("value", "kind", "says"),
    [
        ([1.0] * 7, pa.list_(pa.float32()), "7"),
        (None, pa.list_(pa.float32(), 8), "null"),
        ([1.0] * 7 + [None], pa.list_(pa.float32(), 8), "null"),
        ([1.0] * 7 + [float("nan")], pa.list_(pa.float32(), 8), "NaN"),
        ([1.0] * 7 + [float("inf")], pa.list_(pa.float32(), 8), "infinite"),
    ],
    ids=["ragged", "null", "null-item", "nan", "inf"],
)
def test_bad_inputs_name_file_row_group_and_row(ask: Ask, value: Any, kind: pa.DataType, says: str) -> None:
    """Row 123 in row group 1 is bad: named, or quarantined under `skip`."""
    values = [[float(i % 7)] * 7 + [float(i)] for i in range(300)]
    write_pool(with_x([*values[:123], value, *values[124:]], kind))
    code, error = ask(pool__uri="bad.parquet")
    assert code == 3
    assert "bad.parquet#rg1 row 123: column x" in error
    assert says in error
    code, output = ask(pool__uri="bad.parquet", on_error="skip")
    assert code == 0
    assert json.loads(output)["counts"]["scored"] == 299


def test_rows_quarantined_before_are_no_secret_later(ask: Ask) -> None:
    """A query that must not skip rows refuses units that were scored with rows left out."""
    values: list[Any] = [[float(i)] * 8 for i in range(300)]
    write_pool(with_x([*values[:5], None, *values[6:]], pa.list_(pa.float32(), 8)))
    assert ask(pool__uri="bad.parquet", on_error="skip")[0] == 0
    code, error = ask(pool__uri="bad.parquet")
    assert code == 3
    assert "row 5" in error


def test_duplicate_and_null_ids_are_counted(ask: Ask) -> None:
    """How many, and the first three."""
    ids = [f"r{i // 2}" for i in range(300)]
    write_pool(pool_table(300).set_column(0, "rid", pa.array(ids)))
    code, error = ask(pool__uri="bad.parquet")
    assert code == 3
    assert "150 ids of column rid are not unique, first: r0, r1, r2" in error
    write_pool(pool_table(300).set_column(0, "rid", pa.array([None if i % 100 == 3 else f"r{i}" for i in range(300)])))
    code, error = ask(pool__uri="bad.parquet")
    assert code == 3
    assert "3 ids of column rid are null, first: " in error
    assert "bad.parquet#rg0-2 row 3, " in error


def test_an_empty_pool_exits_3(ask: Ask) -> None:
    """A pool without a single row is named."""
    write_pool(pool_table(10).slice(0, 0))
    code, error = ask(pool__uri="bad.parquet")
    assert code == 3
    assert "bad.parquet" in error


def test_a_column_that_changes_type_names_both_files(ask: Ask, workplace: Path) -> None:
    """Both files and both types."""
    odd = pool_table(10, 1200).set_column(1, "x", pa.array([["a"]] * 10))
    (workplace / "pool" / "year=2024").mkdir()
    pq.write_table(odd, workplace / "pool" / "year=2024" / "odd.parquet")
    code, error = ask()
    assert code == 3
    assert "year=2024/odd.parquet" in error
    assert "year=2020/part.parquet" in error


def test_a_truncated_file_is_named(ask: Ask, workplace: Path) -> None:
    """Half a file is no Parquet file."""
    path = workplace / "pool" / "year=2021" / "part.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    code, error = ask()
    assert code == 3
    assert "year=2021/part.parquet" in error


def test_damaged_pages_are_named_and_the_rest_is_chosen_from_under_skip(ask: Ask, workplace: Path) -> None:
    """Bytes overwritten inside a file: exit 3 with the unit, or the unit left out and said."""
    path = workplace / "pool" / "year=2021" / "part.parquet"
    data = bytearray(path.read_bytes())
    data[100:9000] = b"\xff" * 8900
    path.write_bytes(data)
    code, error = ask()
    assert code == 3
    assert "year=2021/part.parquet#rg" in error
    code, error = ask(on_error="skip")
    assert code == 4
    assert "1 of 4 units can't be scored, 25.00% of them, and max_quarantined allows 1.00%" in error
    code, output = ask(on_error="skip", max_quarantined=0.25)
    assert code == 0
    assert json.loads(output)["counts"]["scored"] == 900
    assert "1 unit was left out" in " ".join(json.loads(output)["warnings"])


def test_a_budget_above_the_pool_is_a_warning(ask: Ask) -> None:
    """Everything eligible comes back, and the result says so."""
    code, output = ask(select__budget=99999)
    assert code == 0
    assert json.loads(output)["rows"] == 1200
    assert "for a budget of 99999" in json.loads(output)["warnings"][0]


def test_a_store_that_cannot_be_written_exits_3(ask: Ask, workplace: Path) -> None:
    """A file where the store's folder should be."""
    (workplace / "occupied").write_text("I am a file")
    code, error = ask("query", "--store", "occupied")
    assert code == 3
    assert "occupied" in error


def test_a_store_of_a_newer_version_exits_2(ask: Ask, workplace: Path) -> None:
    """A newer store is refused, not guessed at."""
    (workplace / "runs").mkdir()
    (workplace / "runs" / "format.json").write_text('{"version": 99}')
    code, error = ask()
    assert code == 2
    assert "version 99" in error


def test_negative_scores_cannot_weigh(ask: Ask) -> None:
    """`energy` may be negative: k_means weighted by it is refused by name."""
    code, error = ask(acquire={"score": "energy"})
    assert code == 2
    assert "energy" in error


def test_labelled_ids_of_another_kind(ask: Ask) -> None:
    """Strings against integers can't be matched; both types are named."""
    pq.write_table(pa.table({"rid": [1, 2, 3]}), "labelled.parquet")
    code, error = ask(pool__labelled="labelled.parquet")
    assert code == 3
    assert "labelled.parquet" in error


def test_a_factory_that_drifts_is_found_out(ask: Ask) -> None:
    """A model that is another one each time it is made is refused by the hash of its state: here the units of 2020 are there already."""
    year = {"uri": "pool/year=2020", "id": "rid", "inputs": ["x"]}
    assert ask(model__source="user_nets:drifting", pool=year)[0] == 0
    code, error = ask(model__source="user_nets:drifting")
    assert code == 3
    assert "differs between units" in error


def test_weights_that_run_code_are_refused(ask: Ask, workplace: Path) -> None:
    """A pickle with code in it is not loaded."""
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (workplace / "pwned",))

    (workplace / "evil.pt").write_bytes(pickle.dumps({"0.weight": Evil()}))
    code, error = ask(model__weights="evil.pt")
    assert code == 3, error
    assert "evil.pt" in error, error
    assert not (workplace / "pwned").exists()


def test_scored_units_survive_an_error(ask: Ask, workplace: Path) -> None:
    """What was scored before a bad row came up is reused once it is mended."""
    path = workplace / "pool" / "year=2023" / "part.parquet"
    good = pq.read_table(path, partitioning=None)
    x = np.stack(good.column("x").to_pylist())
    x[7, 3] = np.nan
    pq.write_table(good.set_column(1, "x", vectors(x)), path, row_group_size=64)
    assert ask()[0] == 3
    pq.write_table(good, path, row_group_size=64)
    code, output = ask()
    assert code == 0
    assert json.loads(output)["units_reused"] in (2, 3)  # one may have been on the way


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["query"], "Missing argument"),
        (["qery", "query.yaml"], "No such command"),
        (["query", "gone.yaml"], "gone.yaml can't be read"),
        (["query", "user_nets.py"], "user_nets.py"),
        (["show", "nothing"], "runs is no store of raystream's"),
        (["query", "query.yaml", "--set", "select.budget"], "section.key=value"),
        (["query", "query.yaml", "--set", "select.budget=[1"], "isn't YAML"),
    ],
)
def test_wrong_arguments_exit_2(workplace: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    """A command line that can't be understood says why in one line."""
    (workplace / "query.yaml").write_text("pool: {uri: pool}\n")
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    output = capsys.readouterr()
    assert ended.value.code == 2
    assert output.err.startswith("raystream: ")
    assert says in output.err
    assert len(output.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"output": "pool"}, 2, "output pool lies in pool.uri pool"),
        ({"output": "pool/year=2020/part.parquet"}, 2, "output pool/year=2020/part.parquet lies in pool.uri pool"),
        ({"store": {"uri": "pool/runs"}}, 2, "store.uri pool/runs lies in pool.uri pool"),
        ({"output": "mine.parquet"}, 3, "mine.parquet is there already and was not written by raystream"),
        ({"output": "labels.parquet", "pool__labelled": "labels.parquet"}, 2, "output labels.parquet lies in pool.labelled"),
        ({"output": "labels", "pool__labelled": ["labels.parquet", "labels"]}, 2, "output labels lies in pool.labelled labels,"),
        ({"store": {"uri": "labels"}, "pool__labelled": "labels"}, 2, "store.uri labels lies in pool.labelled"),
    ],
)
def test_results_replace_and_join_no_files_of_others(ask: Ask, workplace: Path, changes: dict[str, Any], code: int, says: str) -> None:
    """Not those of the pool, which would lose rows or read results as rows, and no file that isn't raystream's; nothing is written."""
    pq.write_table(pool_table(3), workplace / "mine.parquet")
    (workplace / "labels").mkdir()
    for name in ("labels.parquet", "labels/1.parquet"):
        pq.write_table(pool_table(3), workplace / name)
    before = {path: path.read_bytes() for path in workplace.rglob("*.parquet")}
    found, error = ask(**changes)
    assert (found, says in error) == (code, True), error
    assert {path: path.read_bytes() for path in workplace.rglob("*.parquet")} == before


def test_probabilities_are_no_logits(ask: Ask, workplace: Path) -> None:
    """Named as logits, they would be taken for nearly equal chances: an error that says where they belong; named rightly they are fine."""
    table = pool_table(100)
    p = np.random.default_rng(0).dirichlet([1, 1, 1], 100).astype(np.float32)
    pq.write_table(table.append_column("p", pa.FixedSizeListArray.from_arrays(p.ravel(), 3)), workplace / "p.parquet")
    pool = {"uri": "p.parquet", "id": "rid"}
    code, error = ask(pool=pool, model={"kind": "columns", "logits": "p"}, select__strategy="top_k")
    assert (code, "name it in model.probabilities" in error) == (3, True), error
    assert ask(pool=pool, model={"kind": "columns", "probabilities": "p"}, select__strategy="top_k")[0] == 0


def test_keys_are_removed_by_null(ask: Ask) -> None:
    """`--set key=null` and `--set key=` take a key out of the query, so that another kind of model can stand in its place."""
    assert ask("query", "--set", "model.version=null", "--set", "model.trust=", model__version="7", model__trust="sure")[0] == 0
    code, error = ask("query", "--set", "pool.inputs=x", pool__inputs=None)
    assert code == 0, error
    code, error = ask(pool__uri=None)
    assert (code, "pool.uri is null, expected" in error) == (2, True), error


def test_texts_for_a_network_of_tensors(ask: Ask, workplace: Path) -> None:
    """A function that makes texts for a torch module is told so, once; the pool is not tried three times."""
    (workplace / "texts.py").write_text("def made(batch):\n    return ['a'] * batch.num_rows\n")
    code, error = ask(model__preprocess="texts:made")
    assert code == 3
    assert "was given texts, but a torch module takes tensors" in error


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model__weights": ["a.pt"]}, 'model.weights is ["a.pt"], expected text or at least 2 of them'),
        ({"store": {"query": "a b"}}, "store.query is 'a b', expected letters, digits, dots, hyphens and underscores"),
    ],
)
def test_what_pydantic_expects_is_said_in_words(ask: Ask, changes: dict[str, Any], says: str) -> None:
    """No name of a library's checks shows through."""
    code, error = ask(**changes)
    assert code == 2
    assert says in error

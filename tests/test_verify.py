"""`raystream verify`: a committed selection is derived again, and every change to what it came from is found."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from pools import pool_table

import raystream as rs

MakeQuery = Callable[..., rs.Query]
Cli = Callable[..., tuple[int, str, str]]

QUERIES = {
    "k_means": {},
    "core set with labels": {"pool__labelled": "labels.parquet", "select__strategy": "core_set", "select__candidates": "all"},
    "filters": {
        "pool__labelled": ["labels.parquet", "own.parquet"],
        "pool__filters": [["country", "!=", "US"]],
        "select__strategy": "diverse",
    },
    "quotas and cost": {
        "select": {"budget": 12, "strategy": "top_k", "quotas": [{"by": "country", "max": 5}], "cost": {"column": "minutes", "budget": 30}}
    },
    "badge": {"select__strategy": "badge", "pool__keep": ["url"], "model__classes": ["a", "b", "c", "d"]},
    "chance": {"select": {"budget": 12, "random_share": 0.5, "exclude": ["r000001"], "must_include": ["r000002"]}, "pool__id": "rid"},
    "no score": {"select__strategy": "random", "pool__id": None},
    "auto": {"select": {"budget": 12, "strategy": "auto"}, "pool__labelled": "labels.parquet"},
    "labels alone": {"select__strategy": "top_k", "pool__labelled": "labels.parquet"},
}  # fmt: skip


@pytest.fixture
def labels(workplace: Path) -> None:
    pq.write_table(pa.table({"rid": [f"r{i:06d}" for i in range(0, 60, 2)]}), workplace / "labels.parquet")
    pq.write_table(pool_table(20, 7000), workplace / "own.parquet")


@pytest.mark.parametrize("changes", QUERIES.values(), ids=QUERIES)
@pytest.mark.usefixtures("labels")
def test_what_was_committed_is_derived_again(make_query: MakeQuery, workplace: Path, cli: Cli, changes: dict) -> None:
    """Exit 0 and what was compared, with nothing of the store changed; unless its columns are needed, the pool may be gone."""
    result = rs.run(make_query(**changes))
    if "select" not in changes or "quotas" not in changes["select"]:
        (workplace / "pool").rename(workplace / "moved")
    before = {p: p.stat().st_mtime_ns for p in (workplace / "runs").rglob("*")}
    code, out, err = cli("verify", result.query, "--json")
    assert code == 0, err
    assert {p: p.stat().st_mtime_ns for p in (workplace / "runs").rglob("*")} == before
    verified = json.loads(out)
    assert (verified["rows"], verified["query"], verified["scored"]) == (
        result.selection.num_rows, result.query, result.manifest.counts.scored,
    )  # fmt: skip
    everything = {*verified["same"], *verified["close"], *verified["not_compared"], "rank"} - {"certificate"}
    assert everything == set(result.selection.column_names)
    assert "chosen again from" in cli("verify", result.query)[1]


def _commit(workplace: Path, selection: pa.Table) -> None:
    """Put a selection in the place of the committed one, with a manifest that fits it."""
    folder = workplace / "runs" / "queries" / "q"
    manifest = json.loads((folder / "manifest.json").read_text())
    pq.write_table(selection, folder / "selection.parquet")
    data = (folder / "selection.parquet").read_bytes()
    (workplace / "runs" / manifest["selection"]["name"]).write_bytes(data)
    manifest["selection"] |= {"size": len(data), "xxh3": xxhash.xxh3_128_hexdigest(data)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_the_first_difference_is_named(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """A swapped pair of rows, a changed gain and a missing row: exit 3, the rank, the column, both values."""
    result = rs.run(make_query(store__query="q", select__strategy="core_set"))
    table = result.selection
    swapped = table.take(pa.array([0, 1, 2, 4, 3, *range(5, 12)])).set_column(0, "rank", table.column("rank"))
    ids = table.column("rid").to_pylist()
    gains = table.column("gain").to_pylist()
    wrong = [*gains[:7], gains[7] * 1.001, *gains[8:]]
    near = [*gains[:7], gains[7] * (1 + 1e-8), *gains[8:]]
    at = table.column_names.index("gain")
    for changed, says in (
        (swapped, f"at rank 3, rid is {ids[4]!r} in the selection and {ids[3]!r} now"),
        (table.set_column(at, "gain", pa.array(wrong)), f"at rank 7, gain is {wrong[7]!r} in the selection and {gains[7]!r} now"),
        (table.slice(0, 9), "9 rows are in the selection, 12 are chosen now"),
        (table.drop_columns(["why"]), "its selection has no column why"),
    ):
        _commit(workplace, changed)
        code, out, err = cli("verify", "q")
        assert (code, out) == (3, "")
        assert says in err
    older = table.drop_columns(["turn", "probability"])
    for same in (table.set_column(at, "gain", pa.array(near)), older):
        _commit(workplace, same)
        assert cli("verify", "q")[0] == 0
    # what reads a selection of before, which lacks the later columns: show, diff, a batch for people
    assert cli("show", "q", "--report")[0] == 0
    rs.run(make_query(store__query="now", select__strategy="core_set", seed=1))
    assert cli("diff", "q", "now", "--out", "diff.parquet")[0] == 0
    compared = pq.read_table("diff.parquet")
    assert [compared.schema.field(f"{name}_a").type for name in ("turn", "probability")] == [pa.int32(), pa.float64()]
    assert cli("export", "q", "--to", "csv", "--out", "batch.csv")[0] == 0


def test_damage_is_found(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """One flipped bit in the embeddings, in the scores or in the selection is exit 3, and the file is named."""
    rs.run(make_query(store__query="q"))
    for pattern in ("units/*/*/embeddings-*.arrow", "units/*/*/scores-*.parquet", "queries/q/selection-*"):
        [path, *_] = (workplace / "runs").glob(pattern)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        whole = path.read_bytes()
        path.write_bytes(data)
        code, _, err = cli("verify", "q")
        assert code == 3
        assert f"{path} is damaged" in err
        path.write_bytes(whole)
    assert cli("verify", "q")[0] == 0


@pytest.mark.usefixtures("labels")
def test_what_it_came_from_has_changed(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """Other labels, an edited query.yaml and a unit that is gone: exit 3, each with its own sentence."""
    result = rs.run(make_query(store__query="q", **QUERIES["filters"]))
    assert result.manifest.labelled_units
    edited = result.folder / "query.yaml"
    given = edited.read_text()
    edited.write_text(given.replace("budget: 12", "budget: 13"))
    code, _, err = cli("verify", "q")
    assert code == 3
    assert "select.budget (12 then, 13 now)" in err
    edited.write_text(given)
    key = result.manifest.labelled_units[0]
    [receipt] = (workplace / "runs" / "units" / key[:2] / key).glob("scores-*.receipt.json")
    receipt.rename(workplace / "kept.json")
    code, _, err = cli("verify", "q")
    assert code == 3
    assert "units over labelled rows of query q are gone" in err
    (workplace / "kept.json").rename(receipt)
    assert cli("verify", "q")[0] == 0
    pq.write_table(pa.table({"rid": ["r000001"]}), workplace / "labels.parquet")
    code, _, err = cli("verify", "q")
    assert code == 3
    assert "holds other ids now (21 of them)" in err


def test_a_pool_that_changed_matters_only_where_its_columns_are_needed(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """Quotas by country read the pool: a touched file is named. Another query over the same pool is derived without it."""
    rs.run(make_query(store__query="quotas", **QUERIES["quotas and cost"]))
    rs.run(make_query(store__query="plain"))
    changed = workplace / "pool" / "year=2022" / "part.parquet"
    os.utime(changed, ns=(1, 1))
    code, _, err = cli("verify", "quotas")
    assert code == 3
    assert "goes by country, minutes, which only the pool holds, and 1 of its files" in err
    assert str(changed) in err
    assert cli("verify", "plain")[0] == 0


@pytest.mark.parametrize("command", ["verify", "show", "query"])
def test_a_selection_that_was_changed_is_neither_taken_nor_replaced(
    make_query: MakeQuery, workplace: Path, cli: Cli, command: str
) -> None:
    """Somebody annotated it in place, or dropped a row: exit 3 with what to do, and it stays as it is; moved away, it comes again."""
    query = make_query(store__query="q")
    rs.run(query)
    (workplace / "query.yaml").write_text(query.to_yaml())
    file = workplace / "runs/queries/q/selection.parquet"
    whole = file.read_bytes()
    pq.write_table(pq.read_table(file).slice(1), file)
    changed = file.read_bytes()
    code, _, err = cli(command, "query.yaml" if command == "query" else "q")
    assert code == 3
    assert f"{file} is damaged or was changed" in err
    assert file.read_bytes() == changed
    file.unlink()
    assert cli(command, "query.yaml" if command == "query" else "q")[0] == 0
    assert file.read_bytes() == whole


def test_there_is_no_such_query(workplace: Path, cli: Cli) -> None:
    """Exit 2."""
    assert cli("verify", "q")[0] == 2


@pytest.mark.parametrize("name", ["manifest.json", "selection.parquet", "scores"])
def test_damage_is_named_by_every_command(make_query: MakeQuery, workplace: Path, cli: Cli, name: str) -> None:
    """A file of the store that holds something else now: exit 3 with its path, from whichever command reads it; never a defect."""
    query = make_query(store__query="q", select__strategy="top_k")
    rs.run(query)
    (file, *_) = sorted(workplace.glob("runs/units/*/*/scores*" if name == "scores" else f"runs/queries/q/{name}"))
    file.write_bytes(b"x" * file.stat().st_size)
    (workplace / "query.yaml").write_text(query.to_yaml())
    other = ["--set", "store.query=other", "--set", "select.budget=5"]
    commands: list[list[str]] = [["show", "q"], ["scores", "q", "--out", "o.parquet"], ["gc"], ["select", "query.yaml", *other]]
    found = {command[0]: cli(*command) for command in commands}
    assert {code for code, _, _ in found.values()} <= {0, 3}
    touched = {"manifest.json": {"show", "scores", "gc"}, "selection.parquet": {"show"}, "scores": {"scores", "select"}}[name]
    for command in touched:
        assert found[command][0] == 3, command
        assert file.name in found[command][2]
        assert "is damaged" in found[command][2]

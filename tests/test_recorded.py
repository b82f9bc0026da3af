"""A query run again from its manifest, here and elsewhere: the same rows, and what differs is said or refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pools import pool_table

import raystream as rs
from raystream.store.recorded import as_given

MakeQuery = Callable[..., rs.Query]
Cli = Callable[..., tuple[int, str, str]]

QUERIES = {
    "k_means": {},
    "quotas": {
        "select": {"budget": 12, "strategy": "top_k", "quotas": [{"by": "country", "max": 5}], "cost": {"column": "minutes", "budget": 30}}
    },
    "core set": {"select": {"budget": 12, "strategy": "core_set", "candidates": "all", "weight": 0.5}, "pool__labelled": "labels.parquet"},
    "members": {
        "model": {
            "members": [{"source": "user_nets:net"}, {"source": "user_nets:net", "args": {"hidden": 8}}],
            "batch_size": 32, "embedding": "inputs",
        },
        "acquire": {"score": "bald"},
    },
    "auto": {"select": {"budget": 12, "strategy": "auto", "random_share": 0.25}, "pool__filters": [["country", "!=", "US"]]},
    "dropout": {"acquire": {"score": "bald", "mc_samples": 4}, "select__strategy": "power", "seed": 7, "pool__id": None},
}  # fmt: skip


@pytest.fixture
def labels(workplace: Path) -> None:
    pq.write_table(pa.table({"rid": [f"r{i:06d}" for i in range(0, 60, 2)]}), workplace / "labels.parquet")


@pytest.mark.parametrize("changes", QUERIES.values(), ids=QUERIES)
@pytest.mark.usefixtures("labels")
def test_the_manifest_alone_is_the_query(make_query: MakeQuery, workplace: Path, cli: Cli, changes: dict) -> None:
    """Moved out of its store, it chooses the same rows into another one, under the same name; in its own, it finds them committed."""
    first = rs.run(make_query(**changes))
    shutil.copy(first.place("manifest.json"), workplace / "sent.json")
    code, out, err = cli("query", "sent.json", "--store", "elsewhere", "--json", "--no-report")
    assert code == 0, err
    again = json.loads(out)
    assert (again["query"], again["new"], again["warnings"]) == (first.query, True, first.manifest.warnings)
    assert pq.read_table(again["selection"]).equals(first.selection)
    assert rs.run(first.place("manifest.json")).new is False
    assert rs.run(first.folder).new is False
    assert rs.Query(**as_given(first.manifest.resolved)).model_dump() == make_query(**changes).model_dump()


def test_keys_are_replaced_and_other_commands_take_it(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """`--set` and `--store` mean what they mean with a query file; `plan` and `select` take a manifest, too."""
    first = rs.run(make_query())
    code, out, err = cli("query", first.folder, "--set", "select.budget=5", "--json")
    assert code == 0, err
    assert json.loads(out)["rows"] == 5
    assert json.loads(cli("plan", first.folder, "--json")[1])["units_scored"] == first.manifest.units_scored
    code, out, _ = cli("select", first.place("manifest.json"), "--set", "select.strategy=top_k", "--json")
    assert (code, json.loads(out)["units_scored"]) == (0, 0)
    assert cli("query", first.folder, "--set", "select.strategy=top_k", "--set", "select.weight=1")[0] == 2


def test_what_differs_is_refused_with_a_sentence_for_each(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """Other labels, files that are gone, added, of another size, another model: exit 3, nothing is scored; replaced by name, warnings."""
    pq.write_table(pa.table({"rid": ["r000001", "r000002"]}), workplace / "labels.parquet")
    first = rs.run(make_query(pool__labelled="labels.parquet"))
    record = first.place("manifest.json")
    pq.write_table(pa.table({"rid": ["r000001"]}), workplace / "labels.parquet")
    code, out, err = cli("query", record, "--store", "elsewhere", "--json")
    assert (code, out) == (3, "")
    assert "pool.labelled holds other ids (1 id, 2 labelled rows then)" in err
    (workplace / "pool/year=2023/part.parquet").unlink()
    pq.write_table(pool_table(10, 9000), workplace / "pool/year=2021/more.parquet")
    pq.write_table(pool_table(200, 600), workplace / "pool/year=2022/part.parquet")
    nets = workplace / "user_nets.py"
    before = nets.read_text()
    nets.write_text(before + "\n# changed\n")
    code, _, err = cli("query", record, "--store", "elsewhere", "--json")
    assert code == 3
    assert "the model's weights, arguments or source are others (fingerprint " in err
    assert "the pool's files differ: 1 file missing ('" in err
    assert "1 file added" in err
    assert "1 file of another size" in err
    assert "pool.labelled holds other ids" in err
    assert not (workplace / "elsewhere/units").exists()
    nets.write_text(before)
    replaced = ["model.args={hidden: 12}", "pool.uri=pool", "pool.labelled=labels.parquet"]
    code, out, err = cli("query", record, "--store", "elsewhere", "--json", *(part for one in replaced for part in ("--set", one)))
    assert code == 0, err
    warnings = json.loads(out)["warnings"]
    assert sum("differ" in one or "others" in one or "other ids" in one for one in warnings) == 3


def test_a_pool_that_was_copied_is_taken_and_said(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """Files of the same names and sizes elsewhere, or with another time: a warning, and the same rows."""
    first = rs.run(make_query())
    shutil.copytree("pool", "copy/of/it", copy_function=shutil.copy2)
    record = first.place("manifest.json")
    code, out, err = cli("query", record, "--store", "moved", "--set", "pool.uri=copy/of/it", "--json")
    assert code == 0, err
    moved = json.loads(out)
    assert moved["warnings"] == [
        f"the pool's 4 files lie under {workplace}/copy/of/it/, {workplace}/pool/ then; their content was not compared"
    ]
    assert pq.read_table(moved["selection"]).column("rid").equals(first.selection.column("rid"))
    os.utime("pool/year=2020/part.parquet", ns=(1, 1))
    code, out, err = cli("query", record, "--store", "touched", "--json")
    assert code == 0, err
    assert json.loads(out)["warnings"] == [
        "1 of the pool's 4 files have the names and sizes of then, but other versions; their content was not compared"
    ]


def test_other_versions_are_said(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """One sentence with all of them."""
    first = rs.run(make_query())
    manifest = json.loads(Path(first.place("manifest.json")).read_text())
    manifest["versions"] |= {"torch": "1.0", "bfloat16 units": "perhaps"}
    (workplace / "sent.json").write_text(json.dumps(manifest))
    code, out, err = cli("query", "sent.json", "--store", "elsewhere", "--json")
    assert code == 0, err
    [said] = json.loads(out)["warnings"]
    assert f"other versions than {workplace}/sent.json records" in said
    assert "(1.0 then)" in said
    assert "(perhaps then)" in said


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("{", 3, "is no manifest of a committed query, or is damaged"),
        ('{"query": "q"}', 3, "is no manifest of a committed query, or is damaged"),
        (None, 2, "manifest.json can't be read"),
    ],
)
def test_what_is_no_manifest(workplace: Path, cli: Cli, text: str | None, code: int, says: str) -> None:
    """One sentence that names the file."""
    if text is not None:
        (workplace / "manifest.json").write_text(text)
    found, _, err = cli("query", "manifest.json")
    assert found == code
    assert says in err
    assert f"{workplace}/manifest.json" in err

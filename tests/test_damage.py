"""Files of a store that hold something else now: exit 3 with the file's name from every command that reads them, never a defect."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pools import pool_table

import raystream as rs
from raystream.errors import StoreError
from raystream.report.stored import pool_scores, stored_pool
from raystream.store import integrity, unit_columns
from raystream.store.protocol import StoredFile

MakeQuery = Callable[..., rs.Query]
Cli = Callable[..., tuple[int, str, str]]

EPIG = {"acquire": {"score": "epig", "mc_samples": 3}}


def flip(path: Path, at: float) -> Path:
    """Change one byte, so far into the file."""
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 255
    path.write_bytes(data)
    return path


def stored(pattern: str) -> Path:
    return sorted(Path("runs").absolute().glob(pattern))[0]


@pytest.mark.parametrize("at", [0.05, 0.5, 0.99], ids=["first page", "middle", "footer"])
def test_scores_with_one_byte_changed(make_query: MakeQuery, workplace: Path, cli: Cli, at: float) -> None:
    """Another query over them, its scores as a file, and its report: the file is damaged, and the place to write isn't blamed."""
    query = make_query(store__query="q", select__strategy="top_k")
    result = rs.run(query)
    (workplace / "query.yaml").write_text(query.to_yaml())
    file = flip(stored("units/*/*/scores-*.parquet"), at)
    other = ["--set", "store.query=other", "--set", "select.budget=5"]
    for command in (["select", "query.yaml", *other], ["scores", "q", "--out", "out/s.parquet"], ["verify", "q"]):
        code, out, err = cli(*command)
        assert (code, out) == (3, ""), command
        assert f"{file} is damaged: its content is not what was written" in err
        assert "can't be written" not in err
    assert not (workplace / "out" / "s.parquet").exists()
    if at == 0.99:
        with pytest.raises(StoreError, match="is damaged"):
            pool_scores(stored_pool(result), "margin")


@pytest.mark.parametrize(
    ("pattern", "changes"),
    [
        ("embeddings-*.arrow", {}),
        ("embeddings-*.arrow", {"select__strategy": "core_set", "select__candidates": "all"}),
        ("probabilities-*.arrow", {"select__strategy": "badge"}),
        ("samples-*.arrow", {"select__strategy": "batch_bald", "acquire": {"score": "bald", "mc_samples": 3}}),
        ("samples-*.arrow", EPIG),
    ],
    ids=["k_means", "core_set", "badge", "batch_bald", "epig"],
)
def test_vectors_with_one_byte_changed(make_query: MakeQuery, workplace: Path, pattern: str, changes: dict) -> None:
    """A query that looks at them chooses nothing by numbers that nobody wrote."""
    rs.run(make_query(store__query="q", **changes))
    file = flip(stored(f"units/*/*/{pattern}"), 0.5)
    with pytest.raises(StoreError, match=f"{file.name} is damaged: its content is not what was written; remove its folder"):
        rs.run(make_query(**changes, select__budget=5))


def test_embeddings_are_not_written_out_damaged(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """`scores --embeddings` reads them all: exit 3, the file, and none is written. Without the option they are no concern."""
    rs.run(make_query(store__query="q"))
    file = flip(stored("units/*/*/embeddings-*.arrow"), 0.5)
    code, _, err = cli("scores", "q", "--out", "s.parquet", "--embeddings")
    assert code == 3
    assert f"{file} is damaged" in err
    assert not (workplace / "s.parquet").exists()
    assert cli("scores", "q", "--out", "s.parquet")[0] == 0
    assert rs.run(make_query(select__strategy="top_k")).manifest.units_scored == 0


def test_epig_with_one_byte_changed(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """The stored EPIG of a unit is a file of its own, and is named when it is damaged."""
    rs.run(make_query(store__query="q", **EPIG))
    file = flip(stored("units/*/*/epig-*.parquet"), 0.2)
    code, _, err = cli("scores", "q", "--out", "s.parquet")
    assert code == 3
    assert f"{file} is damaged" in err


def test_labelled_rows_outside_the_pool(make_query: MakeQuery, workplace: Path) -> None:
    """Their embeddings are looked at, too."""
    pq.write_table(pool_table(20, 7000), "own.parquet")
    changes = {"pool__labelled": "own.parquet", "select__strategy": "core_set"}
    [key] = rs.run(make_query(**changes)).manifest.labelled_units
    file = flip(stored(f"units/*/{key}/embeddings-*.arrow"), 0.5)
    with pytest.raises(StoreError, match=f"{file.name} is damaged"):
        rs.run(make_query(seed=1, **changes))


def test_files_are_hashed_once_for_as_long_as_they_stay(make_query: MakeQuery, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those scored by this run not at all, reused ones by the first query that looks at them, and again when they were written to."""
    hashed: list[str] = []
    hexdigest = integrity.xxhash.xxh3_128_hexdigest

    class Counting:
        @staticmethod
        def xxh3_128_hexdigest(data: pa.Buffer) -> str:
            hashed.append("a file")
            return hexdigest(data)

    monkeypatch.setattr(integrity, "xxhash", Counting)
    rs.run(make_query())
    assert not hashed
    integrity._known.clear()  # what another process would know
    rs.run(make_query(seed=1))
    assert len(hashed) == 4 + 4
    rs.run(make_query(seed=2))
    assert len(hashed) == 4 + 4
    for file in (stored("units/*/*/embeddings-*.arrow"), stored("units/*/*/scores-*.parquet")):
        file.write_bytes(file.read_bytes())
    rs.run(make_query(seed=3))
    assert len(hashed) == 4 + 4 + 2


def test_a_selection_with_one_byte_changed(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """`show` prints no rows that weren't chosen, although it still is a Parquet file; its copy brings it back, if that is whole."""
    rs.run(make_query(store__query="q"))
    file = workplace / "runs/queries/q/selection.parquet"
    table = pq.read_table(file)
    whole = file.read_bytes()
    [at] = [i for i in range(len(whole) - 7) if whole[i : i + 7] == table.column("rid")[0].as_py().encode()][:1]
    file.write_bytes(whole[:at] + b"R" + whole[at + 1 :])
    code, out, err = cli("show", "q")
    assert (code, out) == (3, "")
    assert f"{file} is damaged or was changed: its content is not what was committed; move it away, and it is copied again" in err
    file.unlink()
    assert cli("show", "q")[0] == 0
    file.unlink()
    copy = flip(stored("queries/q/selection-*"), 0.5)
    code, _, err = cli("show", "q")
    assert code == 3
    assert f"{copy} is damaged" in err
    assert "raystream gc --drop q" in err


MANIFESTS: dict[str, Callable[[dict], object]] = {
    "cut short": lambda fields: None,
    "a list": lambda fields: [],
    "no resolved query": lambda fields: fields | {"resolved": {}},
    "no pool": lambda fields: fields | {"resolved": fields["resolved"] | {"pool": None}},
    "no URI": lambda fields: fields | {"resolved": fields["resolved"] | {"pool": {"uri": 5}}},
    "no counts": lambda fields: {name: value for name, value in fields.items() if name != "counts"},
    "counts of text": lambda fields: fields | {"counts": fields["counts"] | {"scored": "many"}},
    "files of numbers": lambda fields: fields | {"files": [[1, 2, 3]]},
    "an unknown field": lambda fields: fields | {"more": 1},
    "another query's": lambda fields: fields | {"query": "p"},
}


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS)
def test_manifests(make_query: MakeQuery, workplace: Path, cli: Cli, change: Callable[[dict], object]) -> None:
    """Missing or mistyped parts: every command that needs the query says that it is damaged, and how to be rid of it; none changes it."""
    query = make_query(store__query="damaged", select__strategy="top_k")
    rs.run(query)
    (workplace / "query.yaml").write_text(query.to_yaml())
    file = workplace / "runs/queries/damaged/manifest.json"
    changed = change(json.loads(file.read_text()))
    file.write_text("{" if changed is None else json.dumps(changed))
    commands = (["query", "query.yaml"], ["plan", "query.yaml"], ["show", "damaged"], ["verify", "damaged"], ["gc"])
    for command in (*commands, ["scores", "damaged", "--out", "s.parquet"]):
        code, out, err = cli(*command)
        assert (code, out) == (3, ""), command
        assert f"{file} is damaged (" in err
        assert "raystream gc --drop damaged" in err
    code, out, err = cli("gc", "--drop", "damaged")
    assert (code, err) == (0, "")
    assert "to forget   1 query: damaged" in out
    assert cli("gc", "--drop", "damaged", "--delete")[0] == 0
    assert not file.parent.exists()
    assert cli("query", "query.yaml")[0] == 0


PLANS = {
    "no Parquet": None,
    "no keys": pa.table({"a": [1]}),
    "keys of numbers": pa.table({"unit": ["p#rg0"], "key": [1], "first_row": [0]}),
    "keys of nothing": pa.table({"unit": ["p#rg0"], "key": pa.nulls(1, pa.string()), "first_row": [0]}),
    "no outputs": pa.table({"unit": ["p#rg0"], "key": ["k"], "first_row": [0]}),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_plans(make_query: MakeQuery, workplace: Path, cli: Cli, plan: pa.Table | None) -> None:
    """Something else in its place: what reads the plan says that it is damaged."""
    rs.run(make_query(store__query="q", select__strategy="top_k"))
    file = workplace / "runs/queries/q/plan.parquet"
    if plan is None:
        flip(file, 0.9)
    else:
        pq.write_table(plan, file)
    for command in (["verify", "q"], ["scores", "q", "--out", "s.parquet"], ["gc"]):
        code, out, err = cli(*command)
        assert (code, out) == (3, ""), command
        assert f"{file} is damaged, so the units of query q are unknown" in err
        assert "raystream gc --drop q" in err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pool: [", "it holds no keys and values"),
        ("[1]", "it holds no keys and values"),
        ("", "it holds no keys and values"),
        ("a: 1", "a is not a key of the query"),
        ("pool: {uri: p}", "model is missing from the query"),
        ("\x00", "it holds no keys and values"),
    ],
)
def test_queries(make_query: MakeQuery, workplace: Path, cli: Cli, text: str, says: str) -> None:
    """A query.yaml that is no query any more: exit 3 with its place, not the message of a query that somebody just wrote."""
    rs.run(make_query(store__query="q", select__strategy="top_k"))
    file = workplace / "runs/queries/q/query.yaml"
    file.write_text(text)
    code, out, err = cli("verify", "q")
    assert (code, out) == (3, "")
    assert f"{file} is damaged ({says}" in err
    assert "raystream gc --drop q" in err


def test_files_that_vanish_while_they_are_read(make_query: MakeQuery, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removed by somebody else after the plan: exit 3 and the file, no defect."""
    rs.run(make_query())
    check = unit_columns.check_file

    def gone(path: Path, file: StoredFile) -> None:
        path.unlink()
        check(path, file)

    monkeypatch.setattr(unit_columns, "check_file", gone)
    with pytest.raises(StoreError, match=r"scores-.* can't be read: No such file or directory"):
        rs.run(make_query(seed=1))

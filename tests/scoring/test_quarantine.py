"""Rows that are left out: all of them are named in a file beside the manifest, and the first ten where people look."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from pools import pool_table, vectors

import raystream as rs
from raystream.errors import PoolError, StoreError

MakeQuery = Callable[..., rs.Query]
Cli = Callable[..., tuple[int, str, str]]
SKIP: dict[str, Any] = {"model__source": "user_nets:Nan", "select__strategy": "top_k", "on_error": "skip"}


def spoil(path: Path, every: int, ids: pa.Array | None = None) -> pa.Table:
    """Put NaN into every so many rows of a file's inputs; the model gives NaN where the first number is above 2.5."""
    table = pq.read_table(path, partitioning=None)
    x = np.stack(table.column("x").to_pylist()).astype(np.float32)
    x[::every, 5] = np.nan
    table = table.set_column(1, "x", vectors(x))
    if ids is not None:
        table = table.set_column(0, "rid", ids)
    pq.write_table(table, path, row_group_size=64)
    return table


def expected(tables: dict[Path, pa.Table]) -> list[dict[str, Any]]:
    """By hand: NaN in the input comes before NaN in the output."""
    rows = []
    for path, table in tables.items():
        x = np.stack(table.column("x").to_pylist())
        for row, (id_, values) in enumerate(zip(table.column("rid").to_pylist(), x, strict=True)):
            if np.isnan(values).any():
                rows.append({"rid": id_, "path": str(path), "row": row, "reason": "column x holds NaN"})
            elif values[0] > 2.5:
                rows.append({"rid": id_, "path": str(path), "row": row, "reason": "the logits hold NaN"})
    return rows


def test_all_of_them_are_in_one_file(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """Of several units, by input and by output, more than are named: by row, with id and reason; the manifest knows size and hash."""
    pool = {path: spoil(path, every) for every, path in zip((7, 300, 11, 2), sorted(workplace.absolute().glob("pool/*/*")), strict=True)}
    (workplace / "query.yaml").write_text(make_query(**SKIP, store__query="q").to_yaml())
    code, out, err = cli("query", "query.yaml", "--json", "--no-report")
    assert code == 0, err
    said = json.loads(out)
    wanted = expected(pool)
    found = pq.read_table(said["quarantined"])
    assert found.schema.names == ["rid", "path", "row", "reason"]
    assert [row | {"reason": ""} for row in found.to_pylist()] == [row | {"reason": ""} for row in wanted]
    assert [("column x" in a["reason"], "NaN" in a["reason"]) for a in found.to_pylist()] == [
        ("column x" in b["reason"], True) for b in wanted
    ]
    assert len(wanted) > 200
    assert said["counts"]["quarantined"] == len(wanted)
    assert f"{len(wanted)} rows were quarantined" in said["warnings"][0]
    stored = json.loads((workplace / "runs/queries/q/manifest.json").read_text())["quarantined"]
    content = (workplace / "runs/queries/q/quarantined.parquet").read_bytes()
    assert (stored["size"], stored["xxh3"]) == (len(content), xxhash.xxh3_128_hexdigest(content))
    assert not set(found.column("rid").to_pylist()) & set(pq.read_table(said["selection"]).column("rid").to_pylist())
    lines = err.splitlines()
    [at] = [number for number, line in enumerate(lines) if "quarantined" in line]
    assert lines[at] == f"raystream: warning: {len(wanted)} rows were quarantined, the first 10:"
    assert [line.strip().split(",")[0] for line in lines[at + 1 :]] == [row["rid"] for row in wanted[:10]]
    assert all(f"{row['path']} row {row['row']}: " in line for row, line in zip(wanted[:10], lines[at + 1 :], strict=True))


def test_they_are_named_once_and_shown_by_their_file(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """Scoring names them, the query that chooses does, the same again doesn't; `show` says where they are; without any, nothing is said."""
    spoil(sorted(workplace.glob("pool/*/*"))[0], 100)
    (workplace / "query.yaml").write_text(make_query(on_error="skip", store__query="q", select__strategy="top_k").to_yaml())
    says = "3 rows were quarantined:"
    for command, times in (("score", 1), ("query", 1), ("query", 0), ("select", 0)):
        code, out, err = cli(command, "query.yaml", "--json", *([] if command == "score" else ["--no-report"]))
        assert code == 0
        assert err.count(says) == times, command
        assert err.count(" row 100: column x") == times
    assert json.loads(out)["quarantined"] == str(workplace / "runs/queries/q/quarantined.parquet")
    code, out, _ = cli("show", "q")
    assert f"3 rows, all of them named in {workplace}/runs/queries/q/quarantined.parquet" in out
    result = rs.run(make_query(pool__filters=[["year", ">", 2020]], on_error="skip"))
    assert result.quarantined is None
    assert not (result.folder / "quarantined.parquet").exists()
    assert result.summary()["quarantined"] is None


IDS = {
    "integers": pa.array(np.arange(300) * 7),
    "bytes": pa.array([bytes([i % 256, i // 256]) for i in range(300)], pa.binary(2)),
    "with a null": pa.array([None, *range(1, 300)]),
}


@pytest.mark.parametrize("kind", [*IDS, "derived"])
def test_ids_keep_their_type(make_query: MakeQuery, workplace: Path, kind: str) -> None:
    """Integers, bytes, ids made of the place; a row left out may have no id at all."""
    ids = IDS.get(kind)
    path = next(workplace.absolute().glob("pool/year=2020/*"))
    table = spoil(path, 100, ids)
    query = make_query(pool__uri=str(path), pool__id="rid" if ids is not None else None, select__strategy="top_k", on_error="skip")
    found = rs.run(query).quarantined
    assert found is not None
    if ids is None:
        assert found.column("id").to_pylist() == [f"{path}#{row}" for row in (0, 100, 200)]
    else:
        assert found.column("rid").combine_chunks() == table.column("rid").take([0, 100, 200]).combine_chunks()


def test_of_a_unit_in_one_batch_or_many(make_query: MakeQuery, workplace: Path) -> None:
    """More rows than a chunk of the reader holds, left out by both, by row whatever found them."""
    table = pool_table(20_000)
    x = np.stack(table.column("x").to_pylist()).astype(np.float32)
    x[5::3, 2] = np.inf
    x[4::3, 0] = 3.0
    pq.write_table(table.set_column(1, "x", vectors(x)), "large.parquet")
    result = rs.run(make_query(**SKIP, pool__uri="large.parquet", model__batch_size=64))
    assert result.quarantined is not None
    rows = result.quarantined.column("row").to_numpy()
    np.testing.assert_array_equal(rows, np.flatnonzero(~np.isfinite(x).all(axis=1) | (x[:, 0] > 2.5)))
    assert result.quarantined.column("rid").to_pylist() == [f"r{row:06d}" for row in rows]


def test_a_run_that_ended_before_its_copy(make_query: MakeQuery, workplace: Path) -> None:
    """The copy comes back from the committed file; a changed one is an error, and never read."""
    spoil(sorted(workplace.glob("pool/*/*"))[0], 100)
    query = make_query(on_error="skip", select__strategy="top_k")
    first = rs.run(query)
    file = first.folder / "quarantined.parquet"
    whole = file.read_bytes()
    file.unlink()
    assert rs.run(query).quarantined == first.quarantined
    assert file.read_bytes() == whole
    file.write_bytes(whole[:-9] + b"x" + whole[-8:])
    with pytest.raises(StoreError, match=r"quarantined\.parquet is damaged or was changed"):
        rs.run(query)


def test_verify_holds_them_against_the_units(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """Derived again with the selection; other rows in the committed file, or a damaged file of a unit, are found."""
    spoil(sorted(workplace.glob("pool/*/*"))[0], 100)
    result = rs.run(make_query(on_error="skip", select__strategy="top_k"))
    assert cli("verify", result.query)[0] == 0
    assert result.manifest.quarantined is not None
    file, manifest = result.store.root / result.manifest.quarantined.name, result.folder / "manifest.json"
    whole, fields = file.read_bytes(), json.loads(manifest.read_text())
    pq.write_table(pq.read_table(file).slice(1), file)
    code, _, err = cli("verify", result.query)
    assert code == 3
    assert f"{file} is damaged" in err
    fields["quarantined"] |= {"size": file.stat().st_size, "xxh3": xxhash.xxh3_128_hexdigest(file.read_bytes())}
    manifest.write_text(json.dumps(fields))
    code, _, err = cli("verify", result.query)
    assert code == 3
    assert "names 2 rows, but its units left out 3" in err
    file.write_bytes(whole)
    [of_unit] = (workplace / "runs/units").glob("*/*/*.quarantined.parquet")
    of_unit.write_bytes(of_unit.read_bytes()[:-1] + b"?")
    code, _, err = cli("verify", result.query)
    assert code == 3
    assert f"{of_unit} is damaged" in err


def test_gc_keeps_what_is_named_and_removes_the_rest(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """The files of quarantined rows of units and queries stay, those of attempts that lost go, and with the query all of them."""
    spoil(sorted(workplace.glob("pool/*/*"))[0], 100)
    result = rs.run(make_query(on_error="skip", select__strategy="top_k", store__query="q"))
    [of_unit] = (workplace / "runs/units").glob("*/*/*.quarantined.parquet")
    kept = {path for path in (workplace / "runs").rglob("*") if path.is_file()}
    other = re.sub("-[0-9a-f]{12}.quarantined", "-0123456789ab.quarantined", of_unit.name)
    lost = [of_unit.with_name(other), result.folder / "quarantined-0123456789ab.parquet"]
    for path in lost:
        path.write_bytes(b"")
    for path in (workplace / "runs").rglob("*"):
        os.utime(path, (1e9, 1e9))
    assert cli("gc", "--delete")[0] == 0
    assert {path for path in (workplace / "runs").rglob("*") if path.is_file()} == kept
    assert cli("gc", "--delete", "--drop", "q", "--older-than", "0s")[0] == 0
    assert not list((workplace / "runs").rglob("quarantined*"))


def test_units_that_kept_no_file_of_them_are_scored_again(make_query: MakeQuery, workplace: Path) -> None:
    """A receipt whose file of the rows that were left out is gone is none."""
    spoil(sorted(workplace.glob("pool/*/*"))[0], 100)
    result = rs.run(make_query(on_error="skip", select__strategy="top_k"))
    [of_unit] = (workplace / "runs/units").glob("*/*/*.quarantined.parquet")
    of_unit.unlink()
    again = rs.run(make_query(on_error="skip", select__strategy="top_k", seed=1))
    assert (again.manifest.units_scored, again.manifest.units_reused) == (1, 3)
    assert again.quarantined == result.quarantined


def test_labelled_rows_outside_the_pool(make_query: MakeQuery, workplace: Path) -> None:
    """Those that can't be scored are named, too; a query that must not leave out rows doesn't take the units that did."""
    pq.write_table(pool_table(20, 7000), "own.parquet")
    spoil(Path("own.parquet"), 10)
    changes = {"pool__labelled": "own.parquet", "select__strategy": "core_set"}
    result = rs.run(make_query(**changes, on_error="skip"))
    assert result.quarantined is not None
    assert result.quarantined.column("rid").to_pylist() == ["r007000", "r007010"]
    assert result.manifest.counts.quarantined == 0
    with pytest.raises(PoolError, match=r"own\.parquet#rg0: 2 rows were quarantined when it was scored"):
        rs.run(make_query(**changes))

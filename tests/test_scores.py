"""`raystream scores`: every scored row of a query as one Parquet file or table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pools import logits_and_embeddings, pool_table

import raystream as rs
from raystream.choosing import scores_table as scores_module
from raystream.choosing.scores_table import write_scores
from raystream.errors import StoreError
from raystream.query import LOGIT_SCORES
from raystream.store.local import LocalStore

MakeQuery = Callable[..., rs.Query]
Cli = Callable[..., tuple[int, str, str]]


def whole_pool(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(p, partitioning=None) for p in sorted(folder.glob("pool/*/*.parquet"))])


@pytest.mark.parametrize("group_bytes", [None, 5000], ids=["one row group", "many"])
def test_scores_are_those_of_the_model_in_row_order(
    make_query: MakeQuery, workplace: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, group_bytes: int | None
) -> None:
    """Against plain torch over the whole pool: ids, entropy, prediction, confidence and embeddings, whatever the row groups."""
    if group_bytes:
        monkeypatch.setattr(scores_module, "_GROUP_BYTES", group_bytes)
    result = rs.run(make_query(pool__labelled=str(_labels(workplace))))
    code, out, _ = cli("scores", result.query[:5], "--out", "deep/scores.parquet", "--embeddings", "--json")
    assert code == 0
    summary = json.loads(out)
    assert (summary["rows"], summary["query"]) == (1200, result.query)
    assert summary["bytes"] == Path(summary["uri"]).stat().st_size
    assert [path.name for path in (workplace / "deep").iterdir()] == ["scores.parquet"]
    written = pq.read_table("deep/scores.parquet")
    assert written.column_names == ["rid", *LOGIT_SCORES, "prediction", "confidence", "path", "row", "embedding"]
    assert summary["columns"] == written.column_names
    table = whole_pool(workplace)
    logits, embedding = logits_and_embeddings(table)
    assert written.column("rid").equals(table.column("rid"))
    assert written.column("row").to_pylist() == [*range(300)] * 4
    assert [path[-22:-13] for path in written.column("path").to_pylist()] == [f"year={2020 + i // 300}" for i in range(1200)]
    p = torch.softmax(logits.double(), 1)
    np.testing.assert_allclose(written.column("entropy").to_numpy(), torch.special.entr(p).sum(1), atol=1e-5)
    assert written.column("prediction").to_pylist() == logits.argmax(1).tolist()
    np.testing.assert_allclose(written.column("confidence").to_numpy(), p.max(1).values, atol=1e-5)
    assert written.schema.field("embedding").type.value_type == pa.float16()
    assert np.array_equal(np.stack(written.column("embedding").to_pylist()), embedding.half().numpy())
    groups = pq.ParquetFile("deep/scores.parquet").metadata
    sizes = [groups.row_group(i).num_rows for i in range(groups.num_row_groups)]
    assert sizes == [1200] if not group_bytes else (len(sizes) > 10 and len({*sizes[:-1]}) == 1)


def _labels(workplace: Path) -> Path:
    pq.write_table(pa.table({"rid": ["r000003", "r000700"]}), workplace / "labels.parquet")
    return workplace / "labels.parquet"


def test_the_file_says_where_it_comes_from(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """Version, query, model fingerprint and snapshot stand in the schema; another pool has another snapshot, not another model."""
    first = rs.run(make_query())
    assert cli("scores", first.query, "--out", "a.parquet")[0] == 0
    pq.write_table(pool_table(9, 5000), workplace / "pool" / "more.parquet")
    (workplace / "pool" / "more.parquet").rename(workplace / "pool" / "year=2020" / "more.parquet")
    second = rs.run(make_query())
    assert cli("scores", second.query, "--out", "b.parquet")[0] == 0
    one, two = pq.read_schema("a.parquet").metadata, pq.read_schema("b.parquet").metadata
    assert one[b"raystream.version"].decode() == first.manifest.versions["raystream"]
    assert (one[b"raystream.query"].decode(), two[b"raystream.query"].decode()) == (first.query, second.query)
    assert one[b"raystream.model"] == two[b"raystream.model"] == first.manifest.fingerprint.encode()
    assert one[b"raystream.snapshot"] != two[b"raystream.snapshot"]
    assert pq.read_table("b.parquet").num_rows == 1209


def test_a_folder_gets_a_file_of_the_querys_name(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """Writing again replaces it; the text names the place."""
    result = rs.run(make_query(store__query="round-1", select__strategy="top_k"))
    for _ in range(2):
        code, out, _ = cli("scores", "round-1", "--out", "exported")
        assert code == 0
    assert [path.name for path in (workplace / "exported").iterdir()] == ["scores-round-1.parquet"]
    assert str(workplace / "exported" / "scores-round-1.parquet") in out
    chosen = result.selection.select(["rid", "score"]).to_pylist()
    held = {row["rid"]: row["margin"] for row in pq.read_table("exported/scores-round-1.parquet").to_pylist()}
    assert [held[row["rid"]] for row in chosen] == [row["score"] for row in chosen]


def test_a_table_gets_the_rows_of_each_query_once(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """Into a Delta table, twice: the rows are there once, with the query's name beside them."""
    deltalake = pytest.importorskip("deltalake")
    result = rs.run(make_query())
    for _ in range(2):
        code, _, err = cli("scores", result.query, "--out", f"delta+{workplace}/scores")
        assert (code, err) == (0, "")
    table = deltalake.DeltaTable(str(workplace / "scores"))
    rows = table.to_pyarrow_table()
    assert rows.num_rows == 1200
    last = table.history(1)[0]
    assert (last["raystream.query"], last["raystream.model"]) == (result.query, result.manifest.fingerprint)
    assert {"raystream.version", "raystream.snapshot"} <= set(last)
    assert set(rows.column("query_id").to_pylist()) == {result.query}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nothing", "--out", "x.parquet"], 2, "has no query nothing"),
        (["q", "--out", ""], 2, "--out is empty"),
        (["q", "--out", "x.parquet", "--embeddings"], 2, "query q has no embeddings"),
        (["q", "--out", "user_nets.py/x.parquet"], 3, "--out"),
        (["q", "--out", "delta+"], 2, "--out delta+ names no folder"),
    ],
)
def test_what_cannot_be_written(make_query: MakeQuery, workplace: Path, cli: Cli, arguments: list[str], code: int, says: str) -> None:
    """A sentence that names the argument, and no file."""
    rs.run(make_query(store__query="q", select__strategy="top_k"))
    before = sorted(workplace.iterdir())
    found, out, err = cli("scores", *arguments)
    assert (found, out) == (code, "")
    assert says in err
    assert sorted(workplace.iterdir()) == before


def test_units_that_are_gone_are_an_error(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """Exit 3 before anything is written, with how many; scoring again brings them back."""
    query = make_query(store__query="q")
    rs.run(query)
    [unit, *_] = (workplace / "runs" / "units").glob("*/*")
    next(unit.glob("scores-*.receipt.json")).unlink()
    code, _, err = cli("scores", "q", "--out", "x.parquet")
    assert code == 3
    assert "1 of the 4 units of query q are gone" in err
    assert "900 of its 1,200 scored rows are left" in err
    assert not (workplace / "x.parquet").exists()
    rs.run(make_query(select__budget=3))
    assert cli("scores", "q", "--out", "x.parquet")[0] == 0


def test_a_file_that_fails_leaves_the_old_one(make_query: MakeQuery, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk in the middle: the file that was there before stays whole, and no half is beside it."""
    rs.run(make_query(store__query="q"))
    store = LocalStore("runs")
    write_scores(store, "q", "x.parquet")
    before = (workplace / "x.parquet").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scores_module.os, "fsync", full)
    with pytest.raises(StoreError, match=r"x\.parquet can't be written: No space left on device"):
        write_scores(store, "q", "x.parquet")
    assert (workplace / "x.parquet").read_bytes() == before
    assert [path.name for path in workplace.iterdir() if "x.parquet" in path.name] == ["x.parquet"]


def test_skipped_units_are_left_out(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """Under `on_error: skip`, a file that could not be read is no gap: the others' rows are all there."""
    broken = workplace / "pool" / "year=2021" / "part.parquet"
    broken.write_bytes(b"PAR1 not a footer PAR1")
    rs.run(make_query(store__query="q", on_error="skip"))
    assert cli("scores", "q", "--out", "x.parquet")[0] == 0
    assert pq.read_table("x.parquet").num_rows == 900


@pytest.mark.parametrize(("out", "code"), [("pool", 2), ("pool/year=2021/part.parquet", 2), ("mine.parquet", 3)])
def test_files_of_others_are_not_replaced(make_query: MakeQuery, workplace: Path, cli: Cli, out: str, code: int) -> None:
    """Neither the pool that the query scored, nor what raystream didn't write; its own scores are written anew."""
    rs.run(make_query(store__query="q"))
    pq.write_table(pool_table(3), "mine.parquet")
    before = {path: path.read_bytes() for path in workplace.rglob("*.parquet")}
    found, _, error = cli("scores", "q", "--out", out)
    assert found == code
    assert out in error
    assert {path: path.read_bytes() for path in workplace.rglob("*.parquet")} == before
    assert [cli("scores", "q", "--out", "x.parquet")[0] for _ in range(2)] == [0, 0]


@pytest.mark.parametrize(
    "out", ["runs", "runs/queries/q", "runs/x.parquet", "delta+runs/table", "link/x.parquet", "pool/../runs/_own/x.parquet"]
)
def test_a_store_takes_no_other_files(make_query: MakeQuery, workplace: Path, cli: Cli, out: str) -> None:
    """What isn't part of it is refused, however the place is written: exit 2, and nothing is there. A neighbour of its name is fine."""
    rs.run(make_query(store__query="q"))
    (workplace / "link").symlink_to(workplace / "runs")
    before = sorted(workplace.rglob("*"))
    code, _, err = cli("scores", "q", "--out", out)
    assert code == 2
    assert f"--out {out} lies in the store {workplace / 'runs'}" in err
    assert sorted(workplace.rglob("*")) == before
    assert cli("scores", "q", "--out", "runs-of-mine/x.parquet")[0] == 0

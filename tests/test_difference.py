"""`raystream diff`: what differs between two queries, in what they asked and in what they chose."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pools import pool_table

import raystream as rs

MakeQuery = Callable[..., rs.Query]
Cli = Callable[..., tuple[int, str, str]]


def _scores(cli: Cli, workplace: Path, query: str) -> dict[str, float]:
    """What a query scored every row with, by id."""
    assert cli("scores", query, "--out", workplace / f"{query}.parquet")[0] == 0
    table = pq.read_table(workplace / f"{query}.parquet")
    return dict(zip(table.column("rid").to_pylist(), table.column("margin").to_pylist(), strict=True))


def _ranks(result: Any) -> dict[Any, int]:
    return {value: rank for rank, value in enumerate(result.selection.column("rid").to_pylist())}


def test_every_row_that_either_chose_is_there(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """Settings, model, labels and files that differ; each row with both ranks and both scores, also of rows that one didn't choose."""
    a = rs.run(make_query(store__query="a", select__strategy="top_k"))
    pq.write_table(pa.table({"rid": a.selection.column("rid").slice(0, 3)}), workplace / "labels.parquet")
    (workplace / "pool/year=2020/part.parquet").unlink()
    pq.write_table(pool_table(200, 9000), workplace / "pool/year=2021/more.parquet")
    pq.write_table(pool_table(300, 600, seed=1), workplace / "pool/year=2022/part.parquet", row_group_size=64)
    changes = {"pool__labelled": "labels.parquet", "model__args": {"hidden": 12}, "seed": 3}
    b = rs.run(make_query(store__query="b", select={"budget": 20, "strategy": "top_k"}, **changes))
    code, out, err = cli("diff", "a", "b", "--out", "diff.parquet", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["settings"] == {
        "pool.labelled": {"a": [], "b": ["labels.parquet"]},
        "model.args": {"a": {}, "b": {"hidden": 12}},
        "select.budget": {"a": 12, "b": 20},
        "seed": {"a": 0, "b": 3},
    }
    pool = found["pool"]
    assert (pool["same"], pool["added"], pool["removed"], pool["rewritten"]) == (2, 1, 1, 1)
    assert pool["first"]["added"] == [str(workplace / "pool/year=2021/more.parquet")]
    assert (found["model"]["same"], found["labelled"]["same"], found["same_rows"]) == (False, False, False)
    ranks_a, ranks_b = _ranks(a), _ranks(b)
    scores_a, scores_b = _scores(cli, workplace, "a"), _scores(cli, workplace, "b")
    gone = {f"r{i:06d}" for i in range(300)}
    rewritten = {f"r{i:06d}" for i in range(600, 900)}  # the same ids in the same places, so that their scores can be looked up
    rows = found["rows"]
    only_a, only_b = ranks_a.keys() - ranks_b.keys(), ranks_b.keys() - ranks_a.keys()
    assert (rows["both"], rows["only_a"], rows["only_b"]) == (len(ranks_a.keys() & ranks_b.keys()), len(only_a), len(only_b))
    assert rows["same_rank"] == sum(ranks_b.get(value) == rank for value, rank in ranks_a.items())
    assert rows["absent_in_b"] == len(only_a & gone)
    assert rows["absent_in_a"] == len([value for value in only_b if value >= "r009000"])
    assert (rows["labelled_in_a"], rows["labelled_in_b"]) == (0, 3)
    table = pq.read_table(workplace / "diff.parquet").to_pylist()
    assert [row["rid"] for row in table] == [*ranks_a, *(value for value in ranks_b if value not in ranks_a)]
    for row in table:
        value = row["rid"]
        assert (row["rank_a"], row["rank_b"]) == (ranks_a.get(value), ranks_b.get(value))
        assert row["chosen_by"] == ("both" if value in ranks_a and value in ranks_b else "a" if value in ranks_a else "b")
        assert (row["score_a"], row["score_b"]) == (scores_a.get(value), scores_b.get(value))
    assert rewritten
    text = cli("diff", "a", "b")[1]
    assert "select.budget: 12 | 20" in text
    assert "2 files the same, 1 added" in text
    assert f"{len(only_a)} by a alone" in text
    assert "3 labelled in b" in text


def test_a_query_and_itself_elsewhere(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """Run again from its manifest in another store: named by its folder, nothing differs, and --out holds every row."""
    first = rs.run(make_query(store__query="q"))
    assert cli("query", first.place("manifest.json"), "--store", "elsewhere")[0] == 0
    code, out, err = cli("diff", "q", "elsewhere/queries/q", "--json", "--out", "diff.parquet")
    assert code == 0, err
    found = json.loads(out)
    assert (found["same_rows"], found["settings"], found["sources"], found["versions"]) == (True, {}, [], {})
    assert (found["a"]["store"], found["b"]["store"]) == (str(workplace / "runs"), str(workplace / "elsewhere"))
    assert found["out"] == str(workplace / "diff.parquet")
    table = pq.read_table(workplace / "diff.parquet")
    assert table.column("rank_a").equals(table.column("rank_b"))
    assert "12 rows, the same in the same order" in cli("diff", "q", "elsewhere/queries/q/manifest.json")[1]


def test_scores_are_found_where_they_are(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """Two batches of one pool scored once, over ids by place: the score of a row that one alone chose is that of the other's units."""
    a = rs.run(make_query(store__query="a", pool__id=None, select__strategy="top_k"))
    b = rs.run(make_query(store__query="b", pool__id=None, select__strategy="random"))
    code, _, err = cli("diff", "a", "b", "--out", "diff.parquet")
    assert code == 0, err
    rows = pq.read_table(workplace / "diff.parquet").to_pylist()
    assert len(rows) == len({*a.selection.column("id").to_pylist(), *b.selection.column("id").to_pylist()})
    for row in rows:
        assert row["score_a"] == row["score_b"] is not None


def test_what_cannot_be_compared(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """Ids of another kind, a query that isn't there, a path that is none of a query, a place within the store: exit 2; damage: 3."""
    rs.run(make_query(store__query="a"))
    table = pool_table(100)
    pq.write_table(table.set_column(0, "rid", pa.array(range(100))), workplace / "numbers.parquet")
    b = rs.run(make_query(store__query="b", pool__uri="numbers.parquet"))
    for arguments, says in (
        (["a", "b"], "the ids of query a are string and those of query b int64"),
        (["a", "c"], "has no query c"),
        (["a", "pool/year=2020"], "names no query of a store"),
        (["a", "a", "--out", "runs/diff.parquet"], "lies in the store"),
    ):
        code, out, err = cli("diff", *arguments)
        assert (code, out) == (2, ""), err
        assert says in err
    (workplace / "runs" / b.manifest.selection.name).write_bytes(b"x")
    assert cli("diff", "b", "b")[0] == 3


@pytest.mark.parametrize("labels", ["changed", "gone"])
def test_labels_that_are_others_now(make_query: MakeQuery, workplace: Path, cli: Cli, labels: str) -> None:
    """Whether a row had a label then isn't known any more, which is said."""
    a = rs.run(make_query(store__query="a", select__strategy="top_k"))
    file = workplace / "labels.parquet"
    pq.write_table(pa.table({"rid": a.selection.column("rid").slice(0, 3)}), file)
    rs.run(make_query(store__query="b", select__strategy="top_k", pool__labelled="labels.parquet"))
    if labels == "gone":
        file.unlink()
    else:
        pq.write_table(pa.table({"rid": ["r000001"]}), file)
    found = json.loads(cli("diff", "a", "b", "--json")[1])["rows"]
    assert (found["labelled_in_a"], found["labelled_in_b"]) == (0, None)
    assert "whether labelled in b isn't known" in cli("diff", "a", "b")[1]

"""Labelled ids in a whole query: however they are written, they are never chosen again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pools import logits_and_embeddings, pool_table, vectors

import raystream as rs
from raystream.errors import LabelsError
from raystream.pool import files as settled

MakeQuery = Callable[..., rs.Query]
Cli = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("strategy", ["top_k", "core_set"])
def test_ids_of_other_widths_in_files_and_folders(make_query: MakeQuery, workplace: Path, strategy: str) -> None:
    """Those that can be rows are never chosen; those that the pool's int16 can't hold are counted in a warning, and are no error."""
    pq.write_table(pool_table(600).set_column(0, "rid", pa.array(range(600), pa.int16())), workplace / "pool.parquet")
    (workplace / "labels" / "old").mkdir(parents=True)
    pq.write_table(pa.table({"rid": pa.array(range(0, 100), pa.uint8())}), workplace / "labels" / "1.parquet")
    pq.write_table(pa.table({"rid": pa.array([*range(90, 200), 70_000, -40_000])}), workplace / "labels" / "old" / "2.parquet")
    pq.write_table(pa.table({"rid": pa.array([2**64 - 1, 300], pa.uint64()).dictionary_encode()}), workplace / "3.parquet")
    labels = ["labels", "3.parquet"]
    result = rs.run(make_query(pool__uri="pool.parquet", pool__labelled=labels, select={"strategy": strategy, "budget": 390}))
    assert result.manifest.counts.labelled == 201
    assert result.manifest.counts.eligible == 399
    assert not {*range(200), 300} & set(result.selection.column("rid").to_pylist())
    assert [warning for warning in result.manifest.warnings if "3 labelled ids are beyond int16" in warning]


def test_many_more_labels_than_rows(make_query: MakeQuery, workplace: Path) -> None:
    """Two million ids, most of them not in the pool: exactly the pool's own are left out, and the rest are counted."""
    pq.write_table(pool_table(600).set_column(0, "rid", pa.array(np.arange(600) * 3)), workplace / "pool.parquet")
    ids = np.random.default_rng(0).permutation(2_000_000) * 2
    pq.write_table(pa.table({"rid": ids}), workplace / "labels.parquet")
    result = rs.run(make_query(pool__uri="pool.parquet", pool__labelled="labels.parquet", select={"strategy": "top_k", "budget": 600}))
    assert sorted(result.selection.column("rid").to_pylist()) == [3 * i for i in range(600) if i % 2]
    assert result.manifest.warnings[0] == "1999700 of 2000000 labelled ids are not in the pool"


@pytest.mark.parametrize("strategy", ["core_set", "top_k"])
def test_labelled_rows_that_were_quarantined_are_not_called_absent(make_query: MakeQuery, workplace: Path, strategy: str) -> None:
    """Rows with NaN are in the pool, labelled or not: the warning says that they may have been quarantined."""
    table = pool_table(100)
    x = np.stack(table.column("x").to_pylist()).astype(np.float32)
    x[[3, 5]] = np.nan
    pq.write_table(table.set_column(1, "x", vectors(x)), "bad.parquet")
    pq.write_table(table.slice(0, 10).select(["rid"]), "labels.parquet")
    query = make_query(pool__uri="bad.parquet", pool__labelled="labels.parquet", on_error="skip", select__strategy=strategy)
    warnings = [warning for warning in rs.run(query).manifest.warnings if "labelled ids" in warning]
    assert len(warnings) == 1
    assert warnings[0].startswith("2 of 10 labelled ids are not")
    assert "or quarantined" in warnings[0]


def write_labels(path: str, ids: list[Any], states: list[str | None] | None = None) -> None:
    """Labels in the format that the name says; ids as other tools have them."""
    columns: dict[str, list[Any]] = {"rid": ids} | ({"state": states} if states else {})
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if path.endswith(".parquet"):
        pq.write_table(pa.table(columns), path)
    elif path.endswith(".csv"):
        rows = [",".join(str("" if value is None else value) for value in row) for row in zip(*columns.values(), strict=True)]
        Path(path).write_text("\n".join([",".join(columns), *rows]) + "\n")
    else:
        rows = [json.dumps(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
        Path(path).write_text("\n".join(rows) + "\n")


FORMATS = ["labels.parquet", "labels.csv", "labels.jsonl"]


@pytest.mark.parametrize("place", FORMATS)
@pytest.mark.parametrize("strategy", ["top_k", "core_set"])
def test_states_decide_who_is_chosen_and_who_covers(make_query: MakeQuery, workplace: Path, place: str, strategy: str) -> None:
    """The batch is that of the labelled ids alone with the skipped and rejected ones excluded by name; drafts and deleted don't count."""
    ids = [f"r{i:06d}" for i in range(0, 1200, 40)]
    states = ["labelled", "skipped", "rejected", "draft", "deleted", None]
    of = {state: [id_ for id_, found in zip(ids, states * 5, strict=True) if found == state] for state in states}
    write_labels(place, ids, states * 5)
    result = rs.run(make_query(pool__labelled=place, select__strategy=strategy, select__budget=100))
    write_labels("plain.parquet", of["labelled"] + of[None])
    excluded = {"strategy": strategy, "budget": 100, "exclude": of["skipped"] + of["rejected"]}
    alone = rs.run(make_query(pool__labelled="plain.parquet", select=excluded))
    assert result.selection.equals(alone.selection)
    assert result.manifest.counts == alone.manifest.counts
    assert result.manifest.counts.labelled == 10
    assert result.manifest.counts.eligible == 1200 - 20
    assert result.manifest.certificate == alone.manifest.certificate


@pytest.mark.parametrize("place", ["labels/a.csv", "labels/deep/b.jsonl"])
@pytest.mark.parametrize("kind", ["string", "int64", "binary"])
def test_texts_give_the_batch_that_parquet_gives(make_query: MakeQuery, workplace: Path, cli: Cli, place: str, kind: str) -> None:
    """As a file and by its folder, for ids of every type, with an id that looks like a number and isn't; `verify` reads them again."""
    spelt = {"string": "{:03d}".format, "int64": int, "binary": lambda i: bytes([i // 256, i % 256])}[kind]
    ids = [spelt(i) for i in range(600)]
    pq.write_table(pool_table(600).set_column(0, "rid", pa.array(ids, kind)), "typed.parquet")
    pq.write_table(pa.table({"rid": pa.array(ids[:500:3], kind)}), "labels.parquet")
    changes = {"pool__uri": "typed.parquet", "select__strategy": "core_set", "select__candidates": "all"}
    wanted = rs.run(make_query(pool__labelled="labels.parquet", **changes))
    write_labels(place, [id_.hex() if isinstance(id_, bytes) else id_ for id_ in ids[:500:3]])
    for labelled in (place, "labels"):
        found = rs.run(make_query(pool__labelled=labelled, **changes))
        assert found.selection.equals(wanted.selection)
        assert found.manifest.counts.labelled == 167
        assert found.manifest.warnings == []
    assert cli("verify", found.query)[0] == 0


def test_lists_in_json_lines_are_embeddings_and_inputs(make_query: MakeQuery, workplace: Path) -> None:
    """Labelled rows of a JSON file that the pool lacks are scored from it, or cover by the embedding alone, as those in Parquet do."""
    rows = pool_table(30, 5000, seed=3).select(["rid", "x"])
    pq.write_table(rows, "own.parquet")
    Path("own.jsonl").write_text("".join(json.dumps(row | {"label": "a"}) + "\n" for row in rows.to_pylist()))
    changes = {"select__strategy": "core_set", "select__candidates": "all"}
    found = [rs.run(make_query(pool__labelled=f"own.{suffix}", **changes)) for suffix in ("parquet", "jsonl")]
    assert found[0].selection.equals(found[1].selection)
    assert [(result.manifest.counts.labelled, result.manifest.warnings) for result in found] == [(30, [])] * 2
    table = pool_table(300)
    logits, embedding = logits_and_embeddings(table)
    carrying = table.append_column("z", vectors(logits.numpy())).append_column("h", vectors(embedding.numpy()))
    pq.write_table(carrying.slice(0, 250), "carrying.parquet")
    Path("apart.jsonl").write_text("".join(json.dumps(row) + "\n" for row in carrying.slice(250).select(["rid", "h"]).to_pylist()))
    pq.write_table(carrying.slice(250).select(["rid", "h"]), "apart.parquet")
    apart = [
        rs.run(
            make_query(
                pool={"uri": "carrying.parquet", "id": "rid", "labelled": f"apart.{suffix}"},
                model={"kind": "columns", "logits": "z", "embedding": "h"},
                select={"strategy": "core_set", "budget": 3, "candidates": "all"},
            )
        )
        for suffix in ("parquet", "jsonl")
    ]
    assert apart[0].selection.equals(apart[1].selection)
    assert apart[1].manifest.counts.labelled == 50


@pytest.mark.parametrize("strategy", ["top_k", "core_set"])
@pytest.mark.parametrize("filtered", [False, True])
def test_labels_of_which_none_is_in_the_pool(make_query: MakeQuery, workplace: Path, cli: Cli, strategy: str, filtered: bool) -> None:
    """Exit 3, with ids of both sides: they are written otherwise, and every row would be chosen as if it had no label."""
    write_labels("labels.csv", [f"{i:06d}" for i in range(50)])
    write_labels("more.jsonl", ["x"], ["skipped"])
    filters = [["country", "==", "DE"]] if filtered else []
    query = make_query(pool__labelled=["labels.csv", "more.jsonl"], pool__filters=filters, select__strategy=strategy)
    Path("query.yaml").write_text(query.to_yaml())
    code, out, err = cli("query", "query.yaml", "--json")
    assert (code, out) == (3, "")
    assert "none of the 51 ids ('000000', '000001', '000002', ..) in pool.labelled labels.csv, more.jsonl is in the pool" in err
    assert "whose ids are 'r0000" in err
    assert cli("score", "query.yaml")[0] == 3


def test_labels_beyond_the_pools_type_are_foreign(make_query: MakeQuery, workplace: Path) -> None:
    """If all of them are, none is in the pool; if one is, that is enough."""
    pq.write_table(pool_table(600).set_column(0, "rid", pa.array(range(600), pa.int16())), "small.parquet")
    query = {"pool__uri": "small.parquet", "pool__labelled": "labels.csv", "select__strategy": "top_k"}
    write_labels("labels.csv", [70_000, 80_000])
    with pytest.raises(LabelsError, match=r"none of the 2 ids in pool\.labelled labels\.csv is in the pool, whose ids are 0, 1, 2"):
        rs.run(make_query(**query))
    write_labels("labels.csv", [70_000, 80_000, 5])
    assert rs.run(make_query(**query)).manifest.counts.labelled == 1


def foreign(workplace: Path, kind: str) -> dict[str, Any]:
    """What keeps labels of which no scored row is one from being refused."""
    if kind == "the filters leave them out":
        write_labels("labels.csv", ["r000000"])
        return {"pool__filters": [["year", ">", 2020]]}
    if kind == "the filters leave those skipped out":
        write_labels("labels.csv", ["r000000", "x"], ["skipped", None])
        return {"pool__filters": [["year", ">", 2020]]}
    if kind == "they were quarantined":
        table = pool_table(100)
        x = np.stack(table.column("x").to_pylist()).astype(np.float32)
        x[3] = np.nan
        pq.write_table(table.set_column(1, "x", vectors(x)), "bad.parquet")
        write_labels("labels.csv", ["r000003"])
        return {"pool__uri": "bad.parquet", "on_error": "skip"}
    if kind == "a file can't be read":
        (workplace / "pool" / "year=2020" / "part.parquet").write_bytes(b"PAR1")
        write_labels("labels.csv", ["r000003"])
        return {"on_error": "skip"}
    if kind == "they carry the inputs":
        pq.write_table(pool_table(5, 9000), "labels.parquet")
        return {"pool__labelled": "labels.parquet"}
    if kind == "those in the pool were skipped":
        write_labels("labels.csv", ["r000003", "x"], ["rejected", "labelled"])
        return {}
    write_labels("labels.csv", ["x", "y"], ["draft", "deleted"])
    return {}


@pytest.mark.parametrize("strategy", ["top_k", "core_set"])
@pytest.mark.parametrize(
    "kind",
    [
        "the filters leave them out", "the filters leave those skipped out", "they were quarantined", "a file can't be read",
        "they carry the inputs", "those in the pool were skipped", "none is left",
    ],
)  # fmt: skip
def test_labels_that_only_look_foreign(make_query: MakeQuery, workplace: Path, kind: str, strategy: str) -> None:
    """Rows behind the filters, left out or unread, with inputs of their own, skipped, or none at all are no reason to refuse labels."""
    changes = {"pool__labelled": "labels.csv"} | foreign(workplace, kind)
    result = rs.run(make_query(**changes, select__strategy=strategy))
    assert result.selection.num_rows == 12


def test_a_labelled_file_written_just_now_is_waited_for(make_query: MakeQuery, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows may be scored, so that a rewrite must show; the files of a calibration set and of targets are waited for as well."""
    waited: list[set[str]] = []
    monkeypatch.setattr(settled, "unsettled", lambda files, now: waited.append({Path(file.path).name for file in files}) or 0)
    pq.write_table(pool_table(5, 9000), "own.parquet")
    x = pool_table(200)
    pq.write_table(x.select(["x"]).append_column("y", pa.array(np.arange(200) % 4)), "fit.parquet")
    rs.run(make_query(pool__labelled="own.parquet", select__strategy="core_set", model__temperature="fit.parquet", pool__label="y"))
    assert waited == [{"fit.parquet"}, {"part.parquet"}, {"own.parquet"}]


@pytest.mark.parametrize("strategy", ["top_k", "core_set"])
def test_labelled_ids_that_are_nowhere_are_counted_behind_filters_too(make_query: MakeQuery, workplace: Path, strategy: str) -> None:
    """Looked up in the whole pool: a row that the filters exclude is in it, an id that isn't is counted in a warning."""
    write_labels("labels.csv", ["r000000", "r000001", "r000700", "x", "y", "z"])
    filters = [["year", ">", 2020], ["country", "!=", "US"]]
    result = rs.run(make_query(pool__labelled="labels.csv", pool__filters=filters, select__strategy=strategy))
    [warning] = result.manifest.warnings
    assert warning.startswith("3 of 6 labelled ids are n")


def test_doctor_reads_labels_of_every_kind(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """A CSV is no damaged Parquet to it either, and its columns are looked at."""
    write_labels("labels.csv", ["r000000"])
    Path("other.jsonl").write_text('{"id": 1}\n')
    Path("query.yaml").write_text(make_query(pool__labelled=["labels.csv"]).to_yaml())
    found = {line["name"]: line for line in json.loads(cli("doctor", "query.yaml", "--json")[1])["findings"]}
    assert "has 1 rows and all columns read" in found["labels"]["found"]
    Path("query.yaml").write_text(make_query(pool__labelled=["other.jsonl"]).to_yaml())
    found = {line["name"]: line for line in json.loads(cli("doctor", "query.yaml", "--json")[1])["findings"]}
    assert (found["labels"]["verdict"], "column rid is missing in" in found["labels"]["found"]) == ("fail", True)

"""A whole query, in process: what is chosen, what is kept, what is reused."""

from __future__ import annotations

import importlib
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from pools import logits_and_embeddings, pool_table, vectors

import raystream as rs
from raystream.errors import QueryError
from raystream.query import LOGIT_SCORES
from raystream.run import score

MakeQuery = Callable[..., rs.Query]


def whole_pool(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(p, partitioning=None) for p in sorted(folder.glob("pool/*/*.parquet"))])


def test_selection_has_the_columns_of_the_contract(make_query: MakeQuery) -> None:
    """Rank, id under its own name, score, gain, and so on; kept columns, path, row."""
    result = rs.run(make_query(pool__keep=["url", "year"], model__classes=["a", "b", "c", "d"], acquire={"also": ["entropy"]}))
    assert result.selection.column_names == [
        "rank", "rid", "score", "gain", "distance", "represents", "why", "turn", "probability", "prediction",
        "prediction_name", "confidence", "entropy", "url", "year", "path", "row",
    ]  # fmt: skip
    assert result.selection.column("rank").to_pylist() == list(range(12))
    assert result.selection.schema.field("rank").type == pa.int32()
    assert result.selection.schema.field("prediction").type == pa.int32()
    assert result.selection.schema.field("turn").type == pa.int32()
    assert result.selection.schema.field("probability").type == pa.float64()
    assert result.selection.column("turn").to_pylist() == list(range(12))
    assert result.selection.column("probability").null_count == 12
    assert len(set(result.selection.column("rid").to_pylist())) == 12


def test_rows_carry_their_own_values(make_query: MakeQuery, workplace: Path) -> None:
    """Each chosen row's id, kept column, partition, path and position belong together, and its score is the formula's."""
    result = rs.run(make_query(pool__keep=["url", "year"]))
    table = whole_pool(workplace)
    logits, _ = logits_and_embeddings(table)
    p = torch.softmax(logits.double(), 1).sort(dim=1, descending=True).values
    margin = (1 - (p[:, 0] - p[:, 1])).numpy()
    order = {rid: i for i, rid in enumerate(table.column("rid").to_pylist())}
    for row in result.selection.to_pylist():
        index = order[row["rid"]]
        assert row["url"] == f"https://example.org/{index}"
        assert row["year"] == 2020 + index // 300
        assert row["path"].endswith(f"year={2020 + index // 300}/part.parquet")
        assert row["row"] == index % 300
        assert row["score"] == pytest.approx(margin[index], abs=1e-6)
        assert row["prediction"] == int(logits[index].argmax())
        assert row["confidence"] == pytest.approx(float(p[index, 0]), abs=1e-6)


def test_top_k_is_the_plain_ranking(make_query: MakeQuery, workplace: Path) -> None:
    """`top_k` by entropy equals sorting the whole pool by it."""
    result = rs.run(make_query(select__strategy="top_k", acquire={"score": "entropy"}))
    logits, _ = logits_and_embeddings(whole_pool(workplace))
    entropy = torch.distributions.Categorical(logits=logits.double()).entropy().numpy()
    expected = [f"r{i:06d}" for i in np.argsort(-entropy, kind="stable")[:12]]
    assert result.selection.column("rid").to_pylist() == expected
    assert result.manifest.certificate is None


def test_core_set_is_greedy_over_stored_embeddings(make_query: MakeQuery, workplace: Path) -> None:
    """Farthest-first over the whole pool, by float64 brute force on the float16 embeddings."""
    result = rs.run(make_query(select__strategy="core_set", select__candidates="all"))
    _, embedding = logits_and_embeddings(whole_pool(workplace))
    x = embedding.half().double().numpy()
    chosen: list[int] = []
    distance = ((x - x.mean(0)) ** 2).sum(1)
    for _ in range(12):
        chosen.append(int(distance.argmax()))
        to_last = ((x - x[chosen[-1]]) ** 2).sum(1)
        distance = to_last if len(chosen) == 1 else np.minimum(distance, to_last)
    assert result.selection.column("rid").to_pylist() == [f"r{i:06d}" for i in chosen]
    certificate = result.manifest.certificate
    assert certificate is not None
    assert certificate.radius == pytest.approx(np.sqrt(distance.max()), rel=1e-6)
    assert certificate.lower_bound == pytest.approx(certificate.radius / 2)
    assert certificate.over == "pool"


def test_the_same_query_again_changes_nothing(make_query: MakeQuery, workplace: Path) -> None:
    """The committed result comes back, file for file."""
    first = rs.run(make_query())
    before = {p: p.stat().st_mtime_ns for p in (workplace / "runs").rglob("*") if p.is_file()}
    again = rs.run(make_query())
    after = {p: p.stat().st_mtime_ns for p in (workplace / "runs").rglob("*") if p.is_file()}
    assert first.new
    assert not again.new
    assert again.selection.equals(first.selection)
    assert before == after


def test_another_selection_scores_nothing(make_query: MakeQuery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another strategy, budget, score and seed over the same pool reuses every unit, and reads nothing of the pool but footers."""
    first = rs.run(make_query())
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", None)
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", None)
    second = rs.run(make_query(select__budget=5, select__strategy="core_set", acquire={"score": "entropy"}, seed=7))
    assert first.manifest.units_scored == first.manifest.units_reused + 4
    assert second.manifest.units_scored == 0
    assert second.manifest.units_reused == 4
    assert second.manifest.bytes_read == 0


def test_scores_with_embeddings_serve_a_query_without(make_query: MakeQuery) -> None:
    """`top_k` after `k_means` scores nothing, and its columns don't depend on what the store happens to hold."""
    rs.run(make_query())
    reused = rs.run(make_query(select__strategy="top_k"))
    fresh = rs.run(make_query(select__strategy="top_k", store__uri="elsewhere"))
    assert reused.manifest.units_scored == 0
    assert fresh.manifest.units_scored == 4
    assert reused.selection.equals(fresh.selection)
    assert fresh.selection.column("distance").null_count == 12


def test_only_added_files_are_scored(make_query: MakeQuery, workplace: Path) -> None:
    """A file that joins the pool is a unit more; a file rewritten is scored again."""
    rs.run(make_query())
    pq.write_table(pool_table(50, 1200), _folder(workplace / "pool" / "year=2024") / "part.parquet")
    added = rs.run(make_query())
    assert (added.manifest.units_scored, added.manifest.units_reused) == (1, 4)
    pq.write_table(pool_table(50, 1200, seed=1), workplace / "pool" / "year=2024" / "part.parquet")
    rewritten = rs.run(make_query())
    assert (rewritten.manifest.units_scored, rewritten.manifest.units_reused) == (1, 4)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_other_weights_are_other_scores(make_query: MakeQuery, workplace: Path) -> None:
    """A model with other arguments or source shares no unit with the first."""
    rs.run(make_query())
    assert rs.run(make_query(model__args={"hidden": 17})).manifest.units_scored == 4
    source = workplace / "user_nets.py"
    source.write_text(source.read_text() + "\n# changed\n")
    sys.modules.pop("user_nets")
    assert rs.run(make_query()).manifest.units_scored == 4


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_number_of_workers_changes_nothing(make_query: MakeQuery, workers: int) -> None:
    """The same rows in the same order from any number of workers."""
    one = rs.run(make_query(store__uri="one"))
    many = rs.run(make_query(store__uri=f"many-{workers}", cluster__workers=workers))
    assert many.selection.equals(one.selection)
    assert many.query == one.query


def test_labelled_rows_are_never_chosen_and_count_as_covered(make_query: MakeQuery, workplace: Path) -> None:
    """The first core-set pick with labels is the row farthest from them, and no labelled row comes back."""
    labelled = [f"r{i:06d}" for i in range(0, 1200, 7)]
    pq.write_table(pa.table({"rid": labelled, "label": [0] * len(labelled)}), workplace / "labelled.parquet")
    result = rs.run(make_query(pool__labelled="labelled.parquet", select__strategy="core_set", select__candidates="all"))
    assert not set(result.selection.column("rid").to_pylist()) & set(labelled)
    _, embedding = logits_and_embeddings(whole_pool(workplace))
    x = embedding.half().double().numpy()
    to_labelled = ((x[:, None] - x[::7][None]) ** 2).sum(2).min(1)
    to_labelled[::7] = -1
    first = result.selection.to_pylist()[0]
    assert first["rid"] == f"r{int(to_labelled.argmax()):06d}"
    assert first["distance"] == pytest.approx(np.sqrt(to_labelled.max()), rel=1e-6)
    assert result.manifest.counts.labelled == len(labelled)


def test_labelled_rows_outside_the_filters_still_cover(make_query: MakeQuery, workplace: Path) -> None:
    """A row that the filters exclude is found, scored by itself, and covers."""
    table = whole_pool(workplace)
    outside = table.filter(pc.equal(table.column("country"), "US")).column("rid").to_pylist()[:40]
    pq.write_table(pa.table({"rid": outside}), workplace / "labelled.parquet")
    changes = {"pool__filters": [["country", "in", ["DE", "FR"]]], "select__strategy": "core_set", "select__candidates": "all"}
    result = rs.run(make_query(pool__labelled="labelled.parquet", **changes))
    _, embedding = logits_and_embeddings(table)
    x = embedding.half().double().numpy()
    index = {rid: i for i, rid in enumerate(table.column("rid").to_pylist())}
    centres = x[[index[rid] for rid in outside]]
    inside = [i for i, country in enumerate(table.column("country").to_pylist()) if country != "US"]
    to_labelled = ((x[inside][:, None] - centres[None]) ** 2).sum(2).min(1)
    assert result.selection.to_pylist()[0]["rid"] == f"r{inside[int(to_labelled.argmax())]:06d}"
    assert result.manifest.warnings == []
    assert result.manifest.counts.scored == len(inside)


def test_labelled_rows_in_files_of_their_own_cover(make_query: MakeQuery, workplace: Path) -> None:
    """Labelled rows that the pool lacks are scored from their own files if these hold the inputs, else counted in a warning."""
    pq.write_table(pool_table(30, 5000, seed=3), workplace / "with_inputs.parquet")
    pq.write_table(pa.table({"rid": ["unknown-1", "unknown-2"]}), workplace / "without.parquet")
    changes = {"select__strategy": "core_set", "select__candidates": "all"}
    result = rs.run(make_query(pool__labelled=["with_inputs.parquet", "without.parquet"], **changes))
    assert result.manifest.units_scored == 5
    assert len(result.manifest.warnings) == 1
    assert "2 of 32 labelled ids" in result.manifest.warnings[0]
    _, embedding = logits_and_embeddings(whole_pool(workplace))
    _, centres = logits_and_embeddings(pool_table(30, 5000, seed=3))
    x, c = embedding.half().double().numpy(), centres.half().double().numpy()
    to_labelled = ((x[:, None] - c[None]) ** 2).sum(2).min(1)
    assert result.selection.to_pylist()[0]["rid"] == f"r{int(to_labelled.argmax()):06d}"


def test_budget_above_the_eligible_returns_everything_with_a_warning(make_query: MakeQuery) -> None:
    """Never more rows than there are, and never silently fewer than asked for."""
    result = rs.run(make_query(select__budget=5000))
    assert result.selection.num_rows == 1200
    assert len(set(result.selection.column("rid").to_pylist())) == 1200
    assert any("1200 rows were chosen for a budget of 5000" in warning for warning in result.manifest.warnings)


def test_derived_ids_name_file_and_row(make_query: MakeQuery, workplace: Path) -> None:
    """Without an id column, rows are called `path#row`, and can be labelled by that name."""
    result = rs.run(make_query(pool__id=None))
    first = result.selection.to_pylist()[0]
    assert first["id"] == f"{first['path']}#{first['row']}"
    pq.write_table(result.selection.select(["id"]), workplace / "labelled.parquet")
    second = rs.run(make_query(pool__id=None, pool__labelled="labelled.parquet"))
    assert not set(second.selection.column("id").to_pylist()) & set(result.selection.column("id").to_pylist())


@pytest.mark.parametrize(
    "ids",
    [pa.array(range(600), pa.uint64()), pa.array([f"k{i}".encode() for i in range(600)], pa.binary()), pa.array(range(600), pa.int16())],
    ids=["uint64", "binary", "int16"],
)
def test_ids_keep_the_pools_type(make_query: MakeQuery, workplace: Path, ids: pa.Array) -> None:
    """Integers, strings and binary ids come back in their own type, and labelled ones are matched."""
    pq.write_table(pool_table(600).set_column(0, "rid", ids), workplace / "typed.parquet", row_group_size=100)
    pq.write_table(pa.table({"rid": ids[:300]}), workplace / "labelled.parquet")
    result = rs.run(make_query(pool__uri="typed.parquet", pool__labelled="labelled.parquet"))
    assert result.selection.schema.field("rid").type == ids.type
    assert not set(result.selection.column("rid").to_pylist()) & set(ids[:300].to_pylist())


def test_columns_model_gives_the_same_batch(make_query: MakeQuery, workplace: Path) -> None:
    """A pool that already carries logits and embeddings goes through the same pass and ends in the same batch."""
    table = whole_pool(workplace)
    logits, embedding = logits_and_embeddings(table)
    carrying = table.append_column("z", vectors(logits.numpy())).append_column("h", vectors(embedding.numpy()))
    pq.write_table(carrying, workplace / "carrying.parquet", row_group_size=200)
    model = {"kind": "columns", "logits": "z", "embedding": "h"}
    columns = rs.run(make_query(pool={"uri": "carrying.parquet", "id": "rid"}, model=model))
    run = rs.run(make_query())
    assert columns.selection.column("rid").to_pylist() == run.selection.column("rid").to_pylist()


def test_embeddings_alone_are_enough_for_core_set(make_query: MakeQuery, workplace: Path) -> None:
    """No logits, no score: the score columns are null, the choice is the same as with a model."""
    table = whole_pool(workplace)
    _, embedding = logits_and_embeddings(table)
    pq.write_table(table.append_column("h", vectors(embedding.numpy())), workplace / "carrying.parquet")
    model = {"kind": "columns", "embedding": "h"}
    select = {"strategy": "core_set", "budget": 12, "candidates": "all"}
    result = rs.run(make_query(pool={"uri": "carrying.parquet", "id": "rid"}, model=model, select=select))
    run = rs.run(make_query(select=select))
    assert result.selection.column("rid").to_pylist() == run.selection.column("rid").to_pylist()
    assert result.selection.column("score").null_count == 12
    assert result.selection.column("prediction").null_count == 12


def test_select_refuses_to_score(make_query: MakeQuery) -> None:
    """With scoring forbidden, units that are missing are an error of the arguments; once scored, it chooses."""
    query = make_query()
    with pytest.raises(QueryError, match="4 of 4 units are not scored yet"):
        rs.run(query, may_score=False)
    scores = score(query)
    assert (scores.rows, scores.units_scored) == (1200, 4)
    assert rs.run(query, may_score=False).manifest.units_scored == 0


def test_a_name_belongs_to_one_query(make_query: MakeQuery) -> None:
    """Another query under a committed name is refused, and the message says what differs."""
    rs.run(make_query(store__query="round-3"))
    assert not rs.run(make_query(store__query="round-3")).new
    with pytest.raises(QueryError, match=r"round-3 is taken by another query; it differs in select.budget \(12 then, 13 now\)"):
        rs.run(make_query(store__query="round-3", select__budget=13))


def test_the_manifest_says_how_it_came_about(make_query: MakeQuery, workplace: Path) -> None:
    """Resolved query, pool snapshot, fingerprint, versions, seed, counts, seconds and certificate are on disk."""
    result = rs.run(make_query(seed=5))
    manifest = json.loads((result.folder / "manifest.json").read_text())
    assert manifest["resolved"]["select"]["strategy"] == "k_means"
    assert len(manifest["files"]) == 4
    assert manifest["seed"] == 5
    assert set(manifest["versions"]) >= {"raystream", "torch", "faiss-cpu"}
    assert manifest["counts"] == {
        "pool": 1200, "scored": 1200, "labelled": 0, "eligible": 1200, "candidates": 120, "chosen": 12, "quarantined": 0,
    }  # fmt: skip
    assert rs.Query.load(result.folder / "query.yaml") == make_query(seed=5)


def test_stored_scores_hold_every_score_from_logits(make_query: MakeQuery, workplace: Path) -> None:
    """Scores: the id column, one float32 column per score, prediction, confidence, row."""
    rs.run(make_query())
    [first, *_] = sorted((workplace / "runs").rglob("scores-*.parquet"))
    schema = pq.read_schema(first)
    assert schema.names == ["rid", *LOGIT_SCORES, "prediction", "confidence", "row"]
    assert all(schema.field(name).type == pa.float32() for name in LOGIT_SCORES)


def test_temperature_changes_confidence_but_not_prediction(make_query: MakeQuery) -> None:
    """p = softmax(z / T): a high temperature flattens, and shares no unit with T = 1."""
    plain = rs.run(make_query(select__strategy="top_k", select__budget=1200))
    flat = rs.run(make_query(select__strategy="top_k", select__budget=1200, model__temperature=10.0))
    a = {row["rid"]: row for row in plain.selection.to_pylist()}
    b = {row["rid"]: row for row in flat.selection.to_pylist()}
    assert all(a[rid]["prediction"] == b[rid]["prediction"] for rid in a)
    assert max(row["confidence"] for row in b.values()) < max(row["confidence"] for row in a.values())
    assert flat.manifest.units_scored == 4


def test_near_duplicates_yield_one_row(make_query: MakeQuery, workplace: Path) -> None:
    """Of four copies of each row, `top_k` takes one when near-duplicates are barred, and several when they aren't."""
    table = pool_table(200)
    copies = pa.concat_tables([table] * 4).set_column(0, "rid", pa.array([f"c{i:04d}" for i in range(800)]))
    pq.write_table(copies, workplace / "copies.parquet")
    pool = {"uri": "copies.parquet", "id": "rid", "inputs": ["x"]}
    barred = rs.run(make_query(pool=pool, select={"strategy": "top_k", "budget": 20, "near_duplicates": 0.9999}))
    free = rs.run(make_query(pool=pool, select={"strategy": "top_k", "budget": 20}))
    assert len({int(rid[1:]) % 200 for rid in barred.selection.column("rid").to_pylist()}) == 20
    assert len({int(rid[1:]) % 200 for rid in free.selection.column("rid").to_pylist()}) == 5


def test_scores_do_not_depend_on_how_a_unit_is_read(make_query: MakeQuery, workplace: Path) -> None:
    """Logits of a model that returns its input are kept for longer than the buffer that they lie in: every score must be right."""
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((60_000, 3)).astype(np.float32)
    pq.write_table(pa.table({"rid": np.arange(60_000), "z": vectors(logits)}), workplace / "long.parquet")
    query = make_query(
        pool={"uri": "long.parquet", "id": "rid"},
        model={"kind": "columns", "logits": "z", "batch_size": 512},
        select={"strategy": "top_k", "budget": 60_000},
    )
    result = rs.run(query)
    p = np.sort(torch.softmax(torch.from_numpy(logits).double(), 1).numpy(), axis=1)
    margin = 1 - (p[:, 2] - p[:, 1])
    order = np.argsort(result.selection.column("rid").to_numpy())
    np.testing.assert_allclose(result.selection.column("score").to_numpy()[order], margin, atol=1e-6)


def test_files_added_after_a_richer_query_are_no_contradiction(make_query: MakeQuery, workplace: Path) -> None:
    """`k_means`, then a file more, then `top_k`: some units carry embeddings, one doesn't, and that is fine."""
    rs.run(make_query())
    pq.write_table(pool_table(50, 1200), _folder(workplace / "pool" / "year=2024") / "part.parquet")
    result = rs.run(make_query(select__strategy="top_k"))
    assert (result.manifest.units_scored, result.manifest.units_reused) == (1, 4)


def test_everything_labelled_is_an_empty_selection(make_query: MakeQuery, workplace: Path) -> None:
    """Nothing is left to label: no row, a warning, the columns as ever."""
    pq.write_table(whole_pool(workplace).select(["rid"]), workplace / "labelled.parquet")
    for strategy in ("k_means", "core_set", "top_k", "random"):
        result = rs.run(make_query(pool__labelled="labelled.parquet", select__strategy=strategy))
        assert result.selection.num_rows == 0
        assert result.selection.column_names[:3] == ["rank", "rid", "score"]
        assert "0 rows were chosen for a budget of 12: no more than 0 are eligible, since 1,200 of 1,200 are" in result.manifest.warnings[0]


def test_rewritten_labelled_rows_are_another_query(make_query: MakeQuery, workplace: Path) -> None:
    """Labelled rows of their own file are read from it: with other inputs under the same ids, the choice is made anew."""
    changes = {"pool__labelled": "mine.parquet", "select__strategy": "core_set", "select__candidates": "all"}
    pq.write_table(pool_table(30, 5000, seed=3), workplace / "mine.parquet")
    first = rs.run(make_query(**changes))
    pq.write_table(pool_table(30, 5000, seed=4), workplace / "mine.parquet")
    second = rs.run(make_query(**changes))
    assert second.new
    assert second.query != first.query


def test_names_of_classes_belong_to_the_query(make_query: MakeQuery, workplace: Path) -> None:
    """Another content of the file of class names is another query."""
    (workplace / "names.txt").write_text("a\nb\nc\nd\n")
    first = rs.run(make_query(model__classes="names.txt"))
    (workplace / "names.txt").write_text("e\nf\ng\nh\n")
    second = rs.run(make_query(model__classes="names.txt"))
    assert set(first.selection.column("prediction_name").to_pylist()) <= set("abcd")
    assert set(second.selection.column("prediction_name").to_pylist()) <= set("efgh")


def test_the_loser_of_a_race_destroys_nothing(make_query: MakeQuery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two queries under one name: the one that commits second is refused, and the first one's files are as they were."""
    from raystream import steps as module

    commit = module.commit

    def commit_second(*args: object, **options: object) -> object:
        monkeypatch.setattr(module, "commit", commit)
        rs.run(make_query(store__query="mine", select__budget=3))
        return commit(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "commit", commit_second)
    with pytest.raises(QueryError, match="mine is taken by another query"):
        rs.run(make_query(store__query="mine", select__budget=7))
    winner = rs.run(make_query(store__query="mine", select__budget=3))
    assert not winner.new
    assert winner.selection.num_rows == 3
    assert pq.read_table(winner.path).num_rows == 3
    assert rs.Query.load(winner.folder / "query.yaml").select.budget == 3
    assert len(list(winner.folder.glob("selection-*.parquet"))) == 1


def test_score_covers_labelled_rows_too(make_query: MakeQuery, workplace: Path) -> None:
    """After `score`, `select` needs nothing more, even where labelled rows lie in files of their own."""
    pq.write_table(pool_table(30, 5000, seed=3), workplace / "mine.parquet")
    query = make_query(pool__labelled="mine.parquet", select__strategy="core_set", select__candidates="all")
    assert score(query).units_scored == 5
    assert rs.run(query, may_score=False).manifest.counts.labelled == 30


def test_weights_that_change_under_way_are_refused(make_query: MakeQuery, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a unit is stored under is what it was scored with: a model replaced between plan and load is refused."""
    from raystream.scoring import worker

    monkeypatch.setattr(worker, "fingerprint", lambda spec: "another")
    with pytest.raises(rs.errors.ModelError, match="changed while the query was being started"):
        rs.run(make_query())


@pytest.mark.parametrize("where", ["factory", "forward"])
def test_user_code_that_exits_hangs_nobody(make_query: MakeQuery, workplace: Path, where: str) -> None:
    """SystemExit in the user's code is an error of the model."""
    with (workplace / "user_nets.py").open("a") as source:
        source.write(
            "\n\ndef factory():\n    raise SystemExit(3)\n\n\n"
            "class Forward(nn.Sequential):\n    def forward(self, x):\n        raise SystemExit(3)\n\n\n"
            "def forward():\n    return Forward(*net())\n"
        )
    with pytest.raises(rs.errors.ModelError):
        rs.run(make_query(model__source=f"user_nets:{where}"))


def test_a_query_that_is_there_says_so(make_query: MakeQuery, workplace: Path, cli: Any) -> None:
    """Run again, it scored nothing now, however many units it took then; `show` says what was asked and when; all are listed."""
    assert cli("show")[0] == 2
    query = make_query(store__query="first", pool__filters=[["minutes", "<", 5]], output=str(workplace / "out"))
    Path("query.yaml").write_text(query.to_yaml())
    code, out, _ = cli("query", "query.yaml", "--no-report")
    assert code == 0
    assert "asked       12 rows by k_means, score margin, of pool with user_nets:net" in out
    assert "after filters" in out
    assert "4 units now" in out
    assert f"output     {workplace}/out" in out
    again = json.loads(cli("query", "query.yaml", "--json", "--no-report")[1])
    assert (again["new"], again["units_scored"], again["units_reused"], again["output"]) == (False, 0, 4, f"{workplace}/out")
    assert "nothing was changed" in cli("query", "query.yaml", "--no-report")[1]
    shown = cli("show", "fir")[1]
    assert f"query first, committed {again['committed']}\n" in shown
    assert "4 units then" in shown
    rs.run(make_query(select__strategy="random", select__budget=3))
    listed = json.loads(cli("show", "--json")[1])["queries"]
    assert [(entry["query"] == "first", entry["rows"], entry["strategy"]) for entry in sorted(listed, key=lambda e: e["rows"])] == [
        (False, 3, "random"), (True, 12, "k_means")
    ]  # fmt: skip
    (workplace / "runs/queries/first/manifest.json").write_text("{")
    text = cli("show")[1]
    assert "first" in text
    assert "its manifest is damaged" in text
    assert "3 rows by random" in text
    assert cli("--version")[:2] == (0, f"{rs.__version__}\n")


@pytest.mark.parametrize("name", ["batch.csv", "out/batch.JSON", "batch.pq"])
def test_only_parquet_is_written(make_query: MakeQuery, workplace: Path, cli: Any, name: str) -> None:
    """A name that ends like another kind of file is refused before any work, rather than made a folder."""
    Path("query.yaml").write_text(make_query(output=name).to_yaml())
    code, _, err = cli("query", "query.yaml")
    assert (code, "but only Parquet is written" in err) == (2, True)
    assert not (workplace / "runs").exists()
    rs.run(make_query(store__query="q"))
    assert cli("scores", "q", "--out", name)[0] == 2
    assert not (workplace / name).exists()


def test_scores_that_rank_nothing_are_warned_of(make_query: MakeQuery, workplace: Path) -> None:
    """All rows alike to the model: the batch goes by position or distance alone, and the result says so."""
    with (workplace / "user_nets.py").open("a") as source:
        source.write("\n\ndef flat():\n    made = net()\n    [nn.init.zeros_(p) for p in made[-1].parameters()]\n    return made\n")
    result = rs.run(make_query(model__source="user_nets:flat"))
    assert any("all 1,200 rows have the same margin, 1, so it ranks nothing" in warning for warning in result.manifest.warnings)
    assert not any("ranks nothing" in warning for warning in rs.run(make_query()).manifest.warnings)


SLOW = """
import torch
SECONDS, CLOCK, SIZES = {seconds}, [0.0], []
class Net:
    def predict(self, inputs):
        CLOCK[0] += SECONDS * len(inputs[0])
        SIZES.append(len(inputs[0]))
        return {{"logits": inputs[0][:, :3], "embedding": inputs[0]}}
"""


@pytest.mark.parametrize(("seconds", "size", "most"), [(0.1, 64, 300), (0.0001, 256, 1400)])
def test_an_estimate_waits_for_no_long_batch(
    make_query: MakeQuery, workplace: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, size: int, most: int
) -> None:
    """Of a model that takes a minute for one of its batches, small ones are timed, and not many; one that doesn't runs its own."""
    from raystream.scoring.estimate import estimate

    (workplace / "slow_nets.py").write_text(SLOW.format(seconds=seconds))
    monkeypatch.delitem(sys.modules, "slow_nets", raising=False)
    query = make_query(model={"kind": "python", "source": "slow_nets:Net", "batch_size": 256})
    slow = importlib.import_module("slow_nets")
    clock = types.SimpleNamespace(perf_counter=lambda: slow.CLOCK[0], process_time=lambda: slow.CLOCK[0])
    monkeypatch.setattr("raystream.scoring.estimate.time", clock)
    found = estimate(query)
    assert found.seconds == pytest.approx(1200 * seconds)
    assert max(slow.SIZES[-3:]) == size
    assert sum(slow.SIZES) <= most


def test_an_estimate_goes_by_the_largest_share() -> None:
    """Units of 3 and 2 rows take two workers as long as 3 rows one; of many units each has its even part."""
    from raystream.scoring.estimate import _largest_share

    assert _largest_share(np.array([3, 2]), 2) == 0.6
    assert _largest_share(np.array([5, 1, 1, 1]), 2) == 5 / 8
    assert _largest_share(np.full(5000, 7), 4) == 0.25
    assert _largest_share(np.array([], np.int64), 2) == 0


def test_plan_leaves_no_store(make_query: MakeQuery, workplace: Path) -> None:
    """It looks, and writes nothing."""
    from raystream.scoring.estimate import estimate

    estimate(make_query())
    assert not (workplace / "runs").exists()


def test_plan_tells_what_would_be_done(make_query: MakeQuery) -> None:
    """Rows, units and bytes before and after; an estimate where the model can run, none where no row passes."""
    from raystream.scoring.estimate import estimate

    before = estimate(make_query())
    assert (before.rows, before.units, before.units_scored, before.files) == (1200, 4, 0, 4)
    assert before.bytes_to_write > 1200 * 16 * 2
    assert before.seconds is not None
    rs.run(make_query())
    after = estimate(make_query())
    assert (after.units_scored, after.bytes_to_read, after.bytes_to_write, after.seconds, after.committed) == (4, 0, 0, 0.0, True)
    assert estimate(make_query(pool__filters=[["url", "==", "https://example.org/5000"]])).seconds is None


def test_code_edited_in_a_living_process_is_refused(make_query: MakeQuery, workplace: Path) -> None:
    """A notebook that edits its model without reloading it must not store old scores under the new fingerprint; a reload is fine."""
    import importlib

    rs.run(make_query())
    source = workplace / "user_nets.py"
    source.write_text(source.read_text().replace("nn.ReLU()", "nn.Tanh()"))
    with pytest.raises(rs.errors.ModelError, match="was edited after this process imported it"):
        rs.run(make_query())
    importlib.reload(importlib.import_module("user_nets"))
    assert rs.run(make_query()).manifest.units_scored == 4


def test_labelled_files_with_embeddings_alone_cover(make_query: MakeQuery, workplace: Path) -> None:
    """For a pool that carries logits and embeddings, labelled files need hold no more than the embedding."""
    table = whole_pool(workplace)
    logits, embedding = logits_and_embeddings(table)
    carrying = table.append_column("z", vectors(logits.numpy())).append_column("h", vectors(embedding.numpy()))
    pq.write_table(carrying.slice(0, 600), workplace / "carrying.parquet", row_group_size=200)
    pq.write_table(carrying.slice(600).select(["rid", "h"]), workplace / "labelled.parquet")
    query = make_query(
        pool={"uri": "carrying.parquet", "id": "rid", "labelled": "labelled.parquet"},
        model={"kind": "columns", "logits": "z", "embedding": "h"},
        select={"strategy": "core_set", "budget": 3, "candidates": "all"},
    )
    result = rs.run(query)
    assert result.manifest.warnings == []
    assert result.manifest.counts.labelled == 600
    x, c = embedding[:600].half().double().numpy(), embedding[600:].half().double().numpy()
    to_labelled = ((x[:, None] - c[None]) ** 2).sum(2).min(1)
    assert result.selection.to_pylist()[0]["rid"] == f"r{int(to_labelled.argmax()):06d}"


def test_rows_with_wrong_probabilities_are_quarantined(make_query: MakeQuery, workplace: Path) -> None:
    """One row that doesn't sum to 1 is named by its file and row, or left out alone."""
    p = np.full((200, 4), 0.25, np.float32)
    p[17] = [0.9, 0.0, 0.0, 0.0]
    pq.write_table(pa.table({"rid": np.arange(200), "p": vectors(p)}), workplace / "p.parquet")
    changes = {"pool": {"uri": "p.parquet", "id": "rid"}, "model": {"kind": "columns", "probabilities": "p"},
               "select": {"strategy": "top_k", "budget": 200}}  # fmt: skip
    with pytest.raises(rs.errors.ModelError, match=r"p.parquet#rg0: row 17: the probabilities are negative or don't sum to 1"):
        rs.run(make_query(**changes))
    assert rs.run(make_query(**changes, on_error="skip")).selection.num_rows == 199

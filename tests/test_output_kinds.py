"""Outputs by kind: a query runs the model for the kinds that it lacks, leaves the others alone, and chooses what it would alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pools import logits_and_embeddings, vectors
from scored import planned, stored_outputs

import raystream as rs
from raystream.choosing.scores_table import write_scores
from raystream.errors import StoreError
from raystream.run import score, verify
from raystream.store.gc import collect
from raystream.store.opening import FORMAT, open_store

MakeQuery = Callable[..., rs.Query]
DROPOUT = {"mc_samples": 4}
PLAIN: dict[str, Any] = {"select__strategy": "top_k"}
COVER: dict[str, Any] = {"select__strategy": "core_set", "select__candidates": "all"}


def kept(store: str = "runs") -> dict[str, tuple[bytes, int]]:
    """What each file of units holds, and when it was written."""
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in Path(store, "units").rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("first", "second", "new"),
    [
        (PLAIN, COVER, {"embeddings"}),
        (COVER, PLAIN, set()),
        (PLAIN, PLAIN | {"acquire": {"score": "egl"}}, {"gradients"}),
        (COVER, COVER | {"model__temperature": 2.0}, {"scores"}),
        (COVER, COVER | {"model__embedding_dtype": "float32"}, {"embeddings"}),
        (COVER, {"select__strategy": "badge"}, {"probabilities"}),
        (PLAIN, PLAIN | {"acquire": {"score": "bald", "mc_samples": 4}}, {"scores"}),
        (PLAIN | {"acquire": DROPOUT}, {"select__strategy": "batch_bald", "acquire": DROPOUT}, {"samples"}),
        (PLAIN, PLAIN | {"seed": 3, "select__budget": 5}, set()),
    ],
)
def test_what_is_there_is_left_alone(make_query: MakeQuery, first: dict[str, Any], second: dict[str, Any], new: set[str]) -> None:
    """The kinds that the second query lacks are computed beside the first one's, whose files stay; its batch is that of a fresh store."""
    alone = rs.run(make_query(**second, store__uri="alone"))
    rs.run(make_query(**first))
    before = kept()
    result = rs.run(make_query(**second))
    after = kept()
    assert {name: after[name] for name in before} == before
    assert {Path(name).name.partition("-")[0] for name in after.keys() - before.keys()} == new
    assert result.manifest.units_scored == (4 if new else 0)
    assert result.selection.equals(alone.selection)
    assert verify(open_store("runs"), result.query).rows == result.selection.num_rows


@pytest.fixture
def overflowing(workplace: Path) -> None:
    """Two rows whose embeddings can't be stored in float16, though they have scores, and one without either."""
    path = workplace / "pool" / "year=2021" / "part.parquet"
    table = pq.read_table(path, partitioning=None)
    x = np.stack(table.column("x").to_pylist())
    x[[17, 250]] *= 1e7
    x[40] = np.nan
    pq.write_table(table.set_column(1, "x", vectors(x)), path, row_group_size=64)


@pytest.mark.usefixtures("overflowing")
@pytest.mark.parametrize("order", [(PLAIN, COVER), (COVER, PLAIN)])
def test_a_batch_does_not_depend_on_what_was_scored_before(make_query: MakeQuery, order: tuple[dict[str, Any], ...]) -> None:
    """Rows that only the embedding leaves out: whoever reads scores alone has them, whoever reads embeddings doesn't, in either order."""
    found = {}
    for changes in order:
        alone = rs.run(make_query(**changes, on_error="skip", store__uri=f"alone-{changes['select__strategy']}"))
        result = rs.run(make_query(**changes, on_error="skip"))
        assert result.selection.equals(alone.selection)
        assert result.manifest.counts == alone.manifest.counts
        assert result.quarantined is not None
        assert result.quarantined.equals(alone.quarantined)
        assert verify(open_store("runs"), result.query).rows == 12
        found[changes["select__strategy"]] = result
    scored = {strategy: (result.manifest.counts.scored, result.manifest.counts.quarantined) for strategy, result in found.items()}
    assert scored == {"top_k": (1199, 1), "core_set": (1197, 3)}
    assert found["core_set"].quarantined.column("row").to_pylist() == [17, 40, 250]
    cover = make_query(**COVER, on_error="skip")
    units = stored_outputs(cover)
    assert [unit.rows for unit in units] == [300, 297, 300, 300]
    written = write_scores(open_store("runs"), found["core_set"].query, "scores.parquet", embeddings=True)
    table = pq.read_table("scores.parquet")
    assert written.rows == table.num_rows == 1197
    there = pq.read_table("pool/year=2021/part.parquet", partitioning=None).column("rid").to_pylist()
    assert not {there[row] for row in (17, 40, 250)} & set(table.column("rid").to_pylist())
    position = there.index(table.column("rid")[300 + 18].as_py())
    assert position == 19  # 17 is left out
    _, embedding = logits_and_embeddings(pq.read_table("pool/year=2021/part.parquet", partitioning=None).slice(19, 1))
    np.testing.assert_allclose(table.column("embedding")[300 + 18].as_py(), embedding[0].numpy(), rtol=2e-3, atol=1e-6)


def test_gc_takes_the_kinds_that_nobody_reads(make_query: MakeQuery) -> None:
    """Of units that a kept query reads, the outputs of a forgotten one go; the others stay, and can be verified."""
    plain = rs.run(make_query(**PLAIN, store__query="plain"))
    before = kept()
    rs.run(make_query(**COVER, store__query="cover"))
    for path in Path("runs").rglob("*"):
        os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - int(2 * 86400e9)))
    dry = collect(plain.store, drop=["cover"])
    assert (dry.units.count, dry.units_kept.count, dry.outputs.count, dry.leftovers.count) == (0, 4, 4, 0)
    done = collect(plain.store, drop=["cover"], delete=True)
    assert (done.outputs, done.bytes) == (dry.outputs, dry.bytes)
    assert {name: data for name, (data, _) in kept().items()} == {name: data for name, (data, _) in before.items()}
    assert verify(plain.store, "plain").rows == 12
    assert rs.run(make_query(**COVER)).manifest.units_scored == 4


def test_a_unit_has_one_key(make_query: MakeQuery) -> None:
    """Whatever is asked of it; the plan says which outputs, and a query that needs several of a kind's parameters has them side by side."""
    queries = [make_query(**PLAIN, **changes) for changes in ({}, {"model__temperature": 2.0}, {"acquire": {"score": "egl"}})]
    queries.append(make_query(**COVER))
    assert len({tuple(planned(query)[1].keys) for query in queries}) == 1
    for query in queries:
        score(query)
    folders = list(Path("runs/units").glob("*/*"))
    assert len(folders) == 4
    for folder in folders:
        kinds = sorted(path.name.partition("-")[0] for path in folder.glob("*.receipt.json"))
        assert kinds == ["embeddings", "gradients", "scores", "scores"]


def test_a_store_of_an_older_layout_is_refused(make_query: MakeQuery, cli: Callable[..., tuple[int, str, str]]) -> None:
    """Exit 3, with its version and what to do; nothing in it is changed."""
    Path("runs").mkdir()
    Path("runs/format.json").write_text(json.dumps({"version": FORMAT - 1}))
    with pytest.raises(StoreError, match=rf"has version {FORMAT - 1}, an older layout .* set another store\.uri") as refused:
        rs.run(make_query())
    assert refused.value.exit_code == 3
    code, out, err = cli("gc")
    assert (code, out) == (3, "")
    assert "set another store.uri" in err
    assert [path.name for path in Path("runs").iterdir()] == ["format.json"]

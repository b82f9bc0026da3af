"""Labelled ids in a whole query: however they are written, they are never chosen again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pools import pool_table, vectors

import raystream as rs

MakeQuery = Callable[..., rs.Query]


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

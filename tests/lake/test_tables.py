"""Results written to tables and files."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from raystream.errors import QueryError, StoreError
from raystream.lake.table_writer import TableRows, check_output, write_table


def every_type() -> pa.Table:
    """Rows in types that ids, scores and embeddings come in, some of which tables don't have."""
    return pa.table(
        {
            "u8": pa.array([1, 255], pa.uint8()),
            "u32": pa.array([1, 2**32 - 1], pa.uint32()),
            "i16": pa.array([-1, 2**15 - 1], pa.int16()),
            "half": pa.array(np.array([0.5, 2.0], np.float16)),
            "vector": pa.array([[0.5, 1.0], [2.0, 3.0]], pa.list_(pa.field("item", pa.float16(), nullable=False), 2)),
            "code": pa.array([b"ab", b"cd"], pa.binary(2)),
            "word": pa.array(["a", None], pa.large_string()),
            "name": pa.array(["x", "x"]).dictionary_encode(),
            "nothing": pa.nulls(2),
            "time": pa.array([1000, 2000], pa.timestamp("ns", "Europe/Berlin")),
        }
    )


@pytest.mark.parametrize("kind", ["iceberg", "delta"])
def test_every_value_arrives(kind: str, catalog: Any, tmp_path: Path) -> None:
    """Types that tables don't have become wider ones; no value changes."""
    rows = every_type()
    uri = "iceberg://lake/ns.t" if kind == "iceberg" else f"delta+{tmp_path}/t"
    assert write_table(rows, uri, "q")
    held = catalog.load_table("ns.t").scan().to_arrow() if kind == "iceberg" else DeltaTable(tmp_path / "t").to_pyarrow_table()
    expected = rows.set_column(rows.num_columns - 1, "time", rows.column("time").cast(pa.timestamp("us", "UTC"))).to_pylist()
    assert held.drop(["query_id"]).to_pylist() == expected
    with pytest.raises(StoreError, match="can't be written"):
        write_table(pa.table({"id": pa.array([2**63], pa.uint64())}), f"{uri}2", "q")


@pytest.mark.parametrize("kind", ["iceberg", "delta"])
def test_names_with_quotes_replace_their_own_rows(kind: str, catalog: Any, tmp_path: Path) -> None:
    """A query's name is data, also in the predicate of the replacement; rows without ranks are replaced at each writing."""
    uri = "iceberg://lake/ns.t" if kind == "iceberg" else f"delta+{tmp_path}/t"
    for name, ids in [("it's", [1, 2]), ("' or 1=1 --", [3]), ("it's", [4]), ("it's", [5])]:
        assert write_table(pa.table({"id": ids}), uri, name)
    held = catalog.load_table("ns.t").scan().to_arrow() if kind == "iceberg" else DeltaTable(tmp_path / "t").to_pyarrow_table()
    assert sorted(zip(held.column("query_id").to_pylist(), held.column("id").to_pylist(), strict=True)) == [("' or 1=1 --", 3), ("it's", 5)]


def test_a_partitioned_table_gets_many_rows_in_one_commit(catalog: Any) -> None:
    """Some at a time, so that no more than a few row groups are in memory; readers see all of them or none, and each once."""
    from pyiceberg.transforms import IdentityTransform

    catalog.create_namespace_if_not_exists("ns")
    table = catalog.create_table("ns.t", schema=pa.schema([("id", pa.int64()), ("query_id", pa.string())]))
    with table.update_spec() as spec:
        spec.add_field("query_id", IdentityTransform(), "query_id")
    batches = [pa.record_batch({"id": range(start, start + 10)}) for start in range(0, 300, 10)]
    rows = TableRows(batches[0].schema, 300, lambda: iter(batches), group_rows=25)
    assert [piece.num_rows for piece in rows.pieces()] == [100, 100, 100]
    for name in ("q", "other", "q"):
        before = len(catalog.load_table("ns.t").metadata.metadata_log)
        assert write_table(rows, "iceberg://lake/ns.t", name)
        assert len(catalog.load_table("ns.t").metadata.metadata_log) == before + 1
    held = catalog.load_table("ns.t").scan().to_arrow()
    for name in ("q", "other"):
        assert sorted(held.filter(pc.field("query_id") == name).column("id").to_pylist()) == list(range(300))
    assert write_table(pa.table({"id": pa.array([], pa.int64())}), "iceberg://lake/ns.t", "q")
    assert set(catalog.load_table("ns.t").scan().to_arrow().column("query_id").to_pylist()) == {"other"}


def test_parquet_keeps_metadata_and_is_put_in_place_whole(tmp_path: Path) -> None:
    """A folder gets a file named after the rows and the query; nothing else is left beside it."""
    rows = pa.table({"id": [1]}).replace_schema_metadata({"raystream": "1"})
    write_table(rows, f"file://{tmp_path}/out", "q", name="scores")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["scores-q.parquet"]
    assert pq.read_schema(tmp_path / "out" / "scores-q.parquet").metadata[b"raystream"] == b"1"
    with pytest.raises(StoreError, match="rename it in the pool"):
        write_table(pa.table({"query_id": [1]}), str(tmp_path), "q")


def test_a_missing_package_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the extra that installs it."""
    monkeypatch.setitem(__import__("sys").modules, "deltalake", None)
    with pytest.raises(StoreError, match=r"--out delta\+/x needs deltalake, which is not installed; pip install 'raystream\[delta\]'"):
        check_output("delta+/x", "--out")
    with pytest.raises(QueryError, match="output iceberg:/a is not a table"):
        check_output("iceberg:/a")


@pytest.mark.parametrize("kind", ["iceberg", "delta"])
def test_writers_at_the_same_time_leave_the_rows_once(kind: str, catalog: Any, tmp_path: Path) -> None:
    """Two runs of one query may write together, also while the table is being made, and others write beside them."""
    uri = "iceberg://lake/ns.t" if kind == "iceberg" else f"delta+{tmp_path}/t"
    rows = pa.table({"rank": pa.array([0, 1], pa.int32()), "id": ["a", "b"], "cost": [float("nan"), 1.0]})
    with ThreadPoolExecutor(4) as threads:
        done = [threads.submit(write_table, rows, uri, name) for name in ("q", "q", "r", "q")]
    failed = [error for future in done if (error := future.exception()) is not None]
    assert all(isinstance(error, StoreError) for error in failed)
    for name in ("q", "r"):
        write_table(rows, uri, name)
    held = catalog.load_table("ns.t").scan().to_arrow() if kind == "iceberg" else DeltaTable(tmp_path / "t").to_pyarrow_table()
    expected = [("q", "a"), ("q", "b"), ("r", "a"), ("r", "b")]
    assert sorted(zip(held.column("query_id").to_pylist(), held.column("id").to_pylist(), strict=True)) == expected

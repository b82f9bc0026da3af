"""Whole queries over pools whose files hold a column in several types, against the same rows in files of one type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from pools import pool_table

import raystream as rs
from raystream.errors import PoolError
from raystream.store.result import Result

X = pool_table(1).schema.field("x").type


def retyped(table: pa.Table, **types: pa.DataType) -> pa.Table:
    """The table with some columns in other types."""
    for name, type_ in types.items():
        table = table.set_column(table.schema.get_field_index(name), name, table.column(name).cast(type_))
    return table


def numbered(start: int, rows: int = 100) -> pa.Table:
    """Rows of the tests' pool with numbers for ids, and numbers to keep and to filter by."""
    numbers = pa.array(range(start, start + rows), pa.int32())
    return pool_table(rows, start).append_column("number", numbers).append_column("part", pa.compute.divide(numbers, 10))


def same_choice(one: Result, other: Result) -> None:
    """The same rows with the same values, wherever they came from."""
    left, right = (result.selection.drop_columns(["path", "row"]) for result in (one, other))
    assert left.drop_columns(["score"]).to_pydict() == right.drop_columns(["score"]).to_pydict()
    np.testing.assert_allclose(left.column("score").to_numpy(), right.column("score").to_numpy(), atol=1e-6)


LISTS = [X, pa.list_(pa.float32()), pa.large_list(pa.float64())]
TEXTS = [pa.string(), pa.large_string(), pa.string_view()]
NUMBERS = [pa.int32(), pa.int64(), pa.int16()]


@pytest.mark.parametrize("id_", ["rid", "number"])
@pytest.mark.parametrize("turn", [0, 1, 2])
def test_files_of_several_types_are_the_pool_in_one(workplace: Path, make_query: Any, id_: str, turn: int) -> None:
    """Ids, labels, filters, kept columns, quotas and scores, whichever type comes first."""
    for folder in ("mixed", "one", "labels"):
        (workplace / folder).mkdir()
    for file in range(3):
        table = numbered(100 * file)
        types = [kinds[(file + turn) % 3] for kinds in (LISTS, TEXTS, NUMBERS, TEXTS, NUMBERS)]
        mixed = retyped(table, **dict(zip(("x", "rid", "number", "url", "part"), types, strict=True)))
        pq.write_table(mixed, workplace / f"mixed/{file}.parquet", row_group_size=30)
        whole = retyped(table, number=pa.int64(), part=pa.int64())
        pq.write_table(whole, workplace / f"one/{file}.parquet", row_group_size=30)
        pq.write_table(mixed.slice(0, 20).select([id_]), workplace / f"labels/{file}.parquet")
    asked = {
        "pool__id": id_,
        "pool__filters": [["part", ">=", 3], ["url", "!=", "https://example.org/250"], ["number", "not in", [77, 2**40]]],
        "pool__labelled": [str(workplace / "labels")],
        "pool__keep": ["url", "part"],
        "select__quotas": [{"by": "part", "max": 2}],
    }
    one, other = (rs.run(make_query(pool__uri=folder, **asked)) for folder in ("mixed", "one"))
    same_choice(one, other)
    assert one.selection.schema == other.selection.schema
    assert one.manifest.counts == other.manifest.counts
    assert one.selection.num_rows == 12


def test_a_wider_file_leaves_scored_units_scored(workplace: Path, make_query: Any) -> None:
    """Of kept and filter columns and lists; a wider id leaves narrower files scored anew, once, as their ids are stored with them."""
    (workplace / "grown").mkdir()
    pq.write_table(numbered(0), "grown/0.parquet")
    asked = {"pool__uri": "grown", "pool__keep": ["part"], "pool__filters": [["part", ">", 1]]}
    first = rs.run(make_query(**asked))
    pq.write_table(retyped(numbered(100), x=LISTS[2], part=pa.int64(), number=pa.int64(), rid=pa.large_string()), "grown/1.parquet")
    second = rs.run(make_query(**asked))
    assert (first.manifest.units_scored, second.manifest.units_scored, second.manifest.units_reused) == (1, 1, 1)
    ids = rs.run(make_query(**asked, pool__id="number"))
    assert ids.selection.schema.field("number").type == pa.int64()
    pq.write_table(numbered(200), "grown/2.parquet")
    last = rs.run(make_query(**asked, pool__id="number"))
    assert (last.manifest.units_scored, last.manifest.units_reused) == (1, 2)


def test_a_delta_table_may_hold_its_lists_in_two_ways(workplace: Path, make_query: Any) -> None:
    """deltalake writes lists of one width as such in the first file, and as lists when it appends."""
    (workplace / "plain").mkdir()
    for file in range(2):
        write_deltalake("delta", numbered(100 * file), mode="append")
        pq.write_table(numbered(100 * file), f"plain/{file}.parquet")
    stored = [pq.read_schema(path).field("x").type for path in DeltaTable("delta").file_uris()]
    assert len({pa.types.is_fixed_size_list(type_) for type_ in stored}) == 2
    asked = {"pool__keep": ["number"], "pool__filters": [["part", ">", 1]], "select__strategy": "top_k"}
    same_choice(*(rs.run(make_query(pool__uri=uri, **asked)) for uri in ("delta+delta", "plain")))


FILTERS = [
    [], [["part", ">", 3]], [["part", "==", 15]], [["part", "in", [3, 2**40]]], [["number", "<", 2**35]], [["minutes", ">", 2.5]],
]  # fmt: skip


@pytest.mark.parametrize("filters", FILTERS)
def test_an_iceberg_table_may_promote_its_columns(workplace: Path, make_query: Any, catalog: Any, filters: list) -> None:
    """int to long, float to double: files written before and after are one pool."""
    from pyiceberg.types import DoubleType, LongType

    lists = {"x": pa.list_(pa.float32())}
    table = catalog.create_table("ns.grown", schema=retyped(numbered(0), **lists).schema)
    table.append(retyped(numbered(0), **lists))
    with table.update_schema() as update:
        for name, wider in (("number", LongType()), ("part", LongType()), ("minutes", DoubleType())):
            update.update_column(name, wider)
    wide = {"number": pa.int64(), "part": pa.int64(), "minutes": pa.float64()}
    table.append(retyped(numbered(100), **lists, **wide))
    (workplace / "plain").mkdir()
    for file in range(2):
        pq.write_table(retyped(numbered(100 * file), **wide), f"plain/{file}.parquet")
    asked = {"pool__id": "number", "pool__keep": ["part", "minutes"], "pool__filters": filters, "select__strategy": "top_k"}
    one, other = (rs.run(make_query(pool__uri=uri, **asked)) for uri in ("iceberg://lake/ns.grown", "plain"))
    same_choice(one, other)
    assert filters or one.selection.schema == other.selection.schema


def test_quotas_by_a_list_are_refused(make_query: Any) -> None:
    """The values of a list make no groups; the message names the key, the column and its type."""
    with pytest.raises(PoolError, match=r"select.quotas go by x, which is fixed_size_list<.*>\[8\]; expected text, numbers or dates"):
        rs.run(make_query(select__quotas=[{"by": "x", "max": 2}]))


def test_labelled_rows_beside_a_pool_whose_ids_become_wider(workplace: Path, make_query: Any) -> None:
    """Rows that stand in labelled files alone count as covered as before, though their own ids are narrow."""
    (workplace / "grown").mkdir()
    pq.write_table(numbered(0), "grown/0.parquet")
    pq.write_table(numbered(500, 10), "labels.parquet")
    asked = {"pool__uri": "grown", "pool__id": "number", "pool__labelled": ["labels.parquet"], "select__strategy": "core_set"}
    before = rs.run(make_query(**asked))
    assert None not in before.selection.column("distance").to_pylist()
    pq.write_table(retyped(numbered(100), number=pa.int64()), "grown/1.parquet")
    after = rs.run(make_query(**asked))
    assert None not in after.selection.column("distance").to_pylist()
    (workplace / "plain").mkdir()
    for file in range(2):
        pq.write_table(retyped(numbered(100 * file), number=pa.int64()), f"plain/{file}.parquet")
    same_choice(after, rs.run(make_query(**asked | {"pool__uri": "plain"})))


def test_a_column_of_nulls_and_times_of_every_age_through_a_whole_query(make_query: Any, workplace: Path, cli: Any) -> None:
    """Quotas and kept columns where one file holds nulls alone; a time after Python's last is kept, shown, and a quota's group."""
    (workplace / "aged").mkdir()
    forever = pa.scalar(253402300800000000, pa.timestamp("us"))  # 10000-01-01
    table = numbered(0, 50).append_column("t", pa.array([0] * 50, pa.timestamp("us")))
    pq.write_table(table.append_column("c", pa.nulls(50)), workplace / "aged/a.parquet")
    table = numbered(50, 50).append_column("t", pa.array([forever] * 50)).append_column("c", pa.array(["u", "v"] * 25))
    pq.write_table(table, workplace / "aged/b.parquet")
    quotas = [{"by": "c", "max": 3}, {"by": "t", "value": "10000-01-01 00:00:00.000000", "max": 4}]
    spec = workplace / "aged.yaml"
    spec.write_text(
        make_query(pool__uri="aged", pool__keep=["c", "t"], select__strategy="top_k", select__budget=7, select__quotas=quotas).to_yaml()
    )
    code, _, told = cli("query", spec)
    assert (code, "could not be written" in told) == (0, False), told
    result = rs.run(rs.Query.load(spec))
    groups = result.selection.column("c").to_pylist()
    assert len(groups) == 7
    assert groups.count(None) == 3
    assert max(groups.count("u"), groups.count("v")) <= 3
    code, shown, _ = cli("show", result.manifest.query)
    assert code == 0
    assert "10000-01-01 00:00:00.000000" in shown

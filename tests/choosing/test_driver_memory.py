"""What the driver keeps of every row: ids as they lie in Arrow, and numbers; whatever it looks at, some rows at a time."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import raystream as rs
from raystream.choosing import candidates
from raystream.choosing import candidates as row_hashes
from raystream.choosing.candidates import find_named
from raystream.choosing.verify import verify
from raystream.cluster.growing import Processes
from raystream.errors import PoolError, QueryError
from raystream.pool import ids as id_hashes
from raystream.pool import ids as unique_ids
from raystream.scoring import scored_pool
from raystream.scoring.progress import Silent
from raystream.scoring.scored_pool import ScoredPool
from raystream.selection import row_hash
from raystream.store import unit_columns
from raystream.store.local import LocalStore

MakeQuery = Callable[..., rs.Query]


def pool_of(ids: pa.ChunkedArray) -> ScoredPool:
    """A scored pool of these ids and nothing else."""
    return ScoredPool(LocalStore("nowhere"), (), (), np.zeros(0, np.int64), np.zeros(0, np.int64), ids, None)


KINDS = {
    "int16": lambda n: pa.array(np.arange(n) - 50, pa.int16()),
    "uint64": lambda n: pa.array(np.arange(n, dtype=np.uint64) + np.uint64(2**63)),
    "string": lambda n: pa.array([f"é{i}" * (i % 3) + str(i) for i in range(n)]),
    "large_string": lambda n: pa.array([str(i) for i in range(n)], pa.large_string()),
    "binary": lambda n: pa.array([bytes([i % 256]) * (i % 4) + str(i).encode() for i in range(n)]),
    "binary(2)": lambda n: pa.array([bytes([i % 256, i // 256]) for i in range(n)], pa.binary(2)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_hashes_are_those_of_the_ids(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """For every type of id, all rows or some in any order, over several chunks and blocks: the values that batches have always gone by."""
    monkeypatch.setattr(id_hashes, "BLOCK_ROWS", 16)
    monkeypatch.setattr(row_hashes, "BLOCK_ROWS", 16)
    array = KINDS[kind](200)
    pool = pool_of(pa.chunked_array([array[:7], array[7:7], array[7:90], array[90:]]))
    values = array.to_pylist()
    known = row_hash(5, np.array(values) if pa.types.is_integer(array.type) else values)
    np.testing.assert_array_equal(row_hashes.hashes_of(pool, 5, None), known)
    rows = np.random.default_rng(0).permutation(200)[:77]
    np.testing.assert_array_equal(row_hashes.hashes_of(pool, 5, rows), known[rows])
    assert pool.ids_at(rows).to_pylist() == [values[row] for row in rows]


@given(
    score=st.lists(st.integers(0, 5), min_size=1, max_size=60),
    free=st.lists(st.booleans(), min_size=60, max_size=60),
    count=st.integers(1, 20),
    at_once=st.integers(1, 25),
)
def test_candidates_are_the_best_whatever_is_looked_at_together(score: list[int], free: list[bool], count: int, at_once: int) -> None:
    """Ties go to the lower row, as in one sort over all free rows."""
    values, mask = np.array(score, np.float32), np.array(free[: len(score)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "_AT_ONCE", at_once)
        found = candidates._best(values, mask, count)
    order = sorted(np.flatnonzero(mask).tolist(), key=lambda row: (-score[row], row))
    assert found.tolist() == order[:count]


def test_named_rows_are_found_in_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of strings and integers, first and last, in the order of the query, repeats and strangers included."""
    monkeypatch.setattr(id_hashes, "BLOCK_ROWS", 10)
    for ids in (pa.chunked_array([pa.array([f"r{i}" for i in range(95)])]), pa.chunked_array([pa.array(range(95), pa.int32())])):
        spelt: Callable[[int], Any] = (lambda i: i) if pa.types.is_integer(ids.type) else "r{}".format
        select = SimpleNamespace(
            must_include=[spelt(94), spelt(0), spelt(94), spelt(51)], exclude=[spelt(9), spelt(950), spelt(10)], similar_to=[spelt(50)]
        )
        named = find_named(select, pool_of(ids).ids, np.zeros(95, bool))  # type: ignore[arg-type]
        assert [rows.tolist() for rows in (named.must_include, named.exclude, named.similar_to)] == [[94, 0, 51], [9, 10], [50]]
        assert "1 of 3 ids of select.exclude are not in the pool" in named.warnings[0]
        select.must_include = ["unknown"]
        with pytest.raises(QueryError, match=r"1 of 1 ids of select\.must_include are not in the pool"):
            find_named(select, pool_of(ids).ids, np.zeros(95, bool))  # type: ignore[arg-type]


def test_units_are_read_ahead_but_not_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a store where each request takes its time, no more tables are in memory than are asked for at once."""
    read: list[int] = []
    monkeypatch.setattr(unit_columns, "_read", lambda store, unit, columns: read.append(unit) or unit)
    store = SimpleNamespace(remote=True)
    tables = unit_columns.read_columns(store, list(range(100)), ["a"])  # type: ignore[arg-type]
    for number in range(100):
        assert next(tables) == number
        assert len(read) <= number + 1 + unit_columns.REQUESTS
    assert sorted(read) == list(range(100))


READ_AGAIN: dict[str, dict[str, Any]] = {
    "by score": {"select__strategy": "top_k"},
    "by chance": {"select__strategy": "power", "select__random_share": 0.5},
    "named and labelled": {
        "pool__labelled": "labels.parquet", "select__must_include": ["r000907", "r000003"], "select__exclude": ["r000500"],
        "select__strategy": "core_set", "select__candidates": "all",
    },
    "integers": {"pool__id": "number", "pool__labelled": "numbers.parquet", "select__quotas": [{"by": "country", "max": 5}]},
    "derived": {"pool__id": None, "select__strategy": "random"},
}  # fmt: skip


@pytest.mark.parametrize("kind", READ_AGAIN)
def test_ids_that_are_read_again_choose_the_same(
    make_query: MakeQuery, workplace: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Beyond some rows, no ids are held: the same rows, and the same words where two are alike."""
    for number, path in enumerate(sorted(workplace.glob("pool/*/*"))):
        table = pq.read_table(path, partitioning=None)
        pq.write_table(table.append_column("number", pa.array((np.arange(300) * 7919 + number) % 100_003)), path, row_group_size=64)
    pq.write_table(pa.table({"rid": [f"r{i:06d}" for i in range(100, 400)]}), "labels.parquet")
    pq.write_table(pa.table({"number": [0, 7919, 1]}), "numbers.parquet")
    changes = READ_AGAIN[kind]
    held = rs.run(make_query(**changes))
    monkeypatch.setattr(scored_pool, "HELD_ROWS", 1199)
    monkeypatch.setattr(unique_ids, "HELD_NUMBERS", 100)
    again = rs.run(make_query(**changes, store__query="again"))
    assert again.selection.equals(held.selection)
    assert again.manifest.counts == held.manifest.counts
    assert again.manifest.units_scored == 0
    assert verify(again.store, again.query, lambda query: Processes(query.cluster, Silent())).rows == again.selection.num_rows
    table = pq.read_table("pool/year=2022/part.parquet", partitioning=None)
    for name in ("number", "rid"):
        table = table.set_column(table.column_names.index(name), name, table.column(name).take(pa.array([*range(299), 4])))
    pq.write_table(table, "pool/year=2022/part.parquet", row_group_size=64)
    if "pool__id" not in changes or changes["pool__id"]:
        with pytest.raises(PoolError, match=r"1 ids of column (rid|number) are not unique, .*part\.parquet#rg0-4 row 299"):
            rs.run(make_query(**changes, select__budget=9))


def test_no_python_object_a_row_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing strings makes 8 bytes a row, and what a block takes: not a string and an entry of a list for each row at once."""
    monkeypatch.setattr(id_hashes, "BLOCK_ROWS", 1000)
    n = 50_000
    pool = pool_of(pa.chunked_array([pa.array([f"{i:060d}" for i in range(n)])]))
    tracemalloc.start()
    try:
        row_hashes.hashes_of(pool, 0, None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * n + 400_000


@pytest.mark.slow
def test_bytes_a_row() -> None:
    """Whole queries in fresh processes, by the difference of two sizes: far below what a Python object a row takes."""
    script = Path(__file__).parents[2] / "benchmarks" / "driver_memory.py"
    command = [sys.executable, str(script), "--rows", "200000", "1000000", "--ids", "strings"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {result["strategy"]: result["beyond"] for result in json.loads(done.stdout.splitlines()[-1])["results"]}
    assert max(found.values()) < 90, found  # a str of 60 characters takes 109

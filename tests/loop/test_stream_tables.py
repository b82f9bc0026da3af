"""A stream over a table: its snapshots are the order of arrival, and rows that are written anew are not decided on again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from pools import pool_table
from streams import NOW, arrive, decisions, make_stream, run

from raystream.errors import PoolError
from raystream.pool import list_pool
from raystream.pool.tables import Added, added_files

pytestmark = pytest.mark.usefixtures("workplace")


def listed(rows: int, start: int) -> pa.Table:
    """Rows of the tests' pool, with vectors as lists, which tables turn them into anyway."""
    table = pool_table(rows, start)
    index = table.schema.get_field_index("x")
    return table.set_column(index, "x", table.column("x").cast(pa.list_(pa.field("element", pa.float32()))))


def decided() -> list[str]:
    return decisions().column("rid").to_pylist()


def names(*ranges: tuple[int, int]) -> list[str]:
    return [f"r{i:06d}" for low, high in ranges for i in range(low, high)]


def test_iceberg(catalog: Any) -> None:
    """Files in the order of their snapshots, whatever their names; an empty table is no error."""
    table = catalog.create_table("ns.pool", schema=listed(1, 0).schema)
    stream = make_stream(pool__uri="iceberg://lake/ns.pool")
    assert run(stream).new_rows == 0
    for start in (0, 20, 40):
        table.append(listed(20, start))
    assert run(stream).new_rows == 60
    assert decided() == names((0, 60))
    table.append(listed(5, 60))
    table.append(listed(5, 65))
    assert run(stream).new_rows == 10
    assert decided() == names((0, 70))
    paths = [task.file.file_path.removeprefix("file://") for task in table.scan().plan_files()]
    found = added_files("iceberg://lake/ns.pool", paths)
    assert sorted(added.sequence for added in found.values()) == [1, 2, 3, 4, 5]
    assert not any(added.rewritten for added in found.values())


def test_iceberg_rewritten(catalog: Any) -> None:
    """A snapshot that wrote files anew without some rows, and one that put all rows in the place of others: only new ids are decided on."""
    table = catalog.create_table("ns.pool", schema=listed(1, 0).schema)
    table.append(listed(20, 0))
    stream = make_stream(pool__uri="iceberg://lake/ns.pool")
    run(stream)
    table.delete("rid < 'r000005'")
    assert run(stream).new_rows == 0
    table.overwrite(listed(15, 10))
    result = run(stream)
    assert result.new_rows == 5
    assert decided() == names((0, 20), (20, 25))
    assert decisions().column("seen").to_pylist()[-1] == 25


def test_delta() -> None:
    """The same by versions; compacted files hold rows that were decided on and some that weren't."""
    for start in (0, 20, 40):
        write_deltalake("lake", listed(20, start), mode="append")
    stream = make_stream(pool__uri="delta+lake")
    assert run(stream).new_rows == 60
    assert decided() == names((0, 60))
    write_deltalake("lake", listed(10, 60), mode="append")
    DeltaTable("lake").optimize.compact()
    result = run(stream)
    assert result.new_rows == 10
    assert sorted(decided()) == names((0, 70))
    files = [file.path for file in list_pool(["delta+lake"])[0]]
    assert added_files("delta+lake", files) == {files[0]: Added(5, True)}
    log = sorted(Path("lake/_delta_log").glob("*.json"))
    log[-1].unlink()
    assert added_files("delta+lake", ["elsewhere"]) == {"elsewhere": Added(0, True)}


def test_rewritten_rows_without_ids_are_refused() -> None:
    """They can't be told from those that were decided on; nothing is decided."""
    write_deltalake("lake", listed(20, 0), mode="append")
    write_deltalake("lake", listed(20, 20), mode="append")
    stream = make_stream(pool={"uri": "delta+lake", "inputs": ["x"]})
    assert run(stream).new_rows == 40
    DeltaTable("lake").optimize.compact()
    with pytest.raises(PoolError, match=r"may hold their rows again, and without pool.id rows can't be told"):
        run(stream)


def test_a_table_beside_a_folder() -> None:
    """Both are looked at; a table's versions come before any time."""
    arrive("a.parquet", pool_table(10), NOW - 60)
    write_deltalake("table", listed(10, 10), mode="append")
    stream = make_stream(pool__uri=["lake", "delta+table"])
    assert run(stream).new_rows == 20
    assert decided() == names((10, 20), (0, 10))
    assert run(stream).new_rows == 0

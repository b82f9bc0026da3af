"""Deleted rows of a file, against sets of positions."""

from __future__ import annotations

import pickle
import tempfile
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from raystream.pool import ReadSpec, cut_units, list_files, read_footers, read_unit
from raystream.pool.files import Deletes, File

positions = st.lists(st.integers(0, 60), max_size=40)


@given(positions, positions, st.integers(0, 60), st.integers(0, 30))
def test_deletes_are_the_set_of_their_positions(one: list[int], other: list[int], first: int, rows: int) -> None:
    """However they were given; a part knows what lies in it, and is equal to the whole."""
    found = Deletes.of([one, np.array(other, np.int64)])
    if not one and not other:
        assert found is None
        return
    assert found is not None
    gone = set(one) | set(other)
    assert found.positions.tolist() == sorted(gone)
    part = found.within(first, first + rows)
    assert part.positions.tolist() == sorted(gone & set(range(first, first + rows)))
    assert found.count(first, first + rows) == len(part.positions)
    assert found.kept(first, rows).tolist() == [i for i in range(rows) if first + i not in gone]
    assert part == found == pickle.loads(pickle.dumps(part))
    assert hash(part) == hash(found)
    assert (Deletes.of([sorted(gone | {99})]) == found) is False


def test_identity_is_the_files_own_unless_rows_are_deleted() -> None:
    """So that keys of files without deletes stay what they were before there were any."""
    plain = File("/x", 3, "v")
    assert plain.identity == ("/x", 3, "v")
    one, other = (File("/x", 3, "v", deletes=Deletes.of([[row]])) for row in (1, 2))
    assert len({plain.identity, one.identity, other.identity}) == 3
    assert one.part(5, 9).identity == one.identity


@settings(max_examples=40, deadline=None)
@given(positions, st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_units_yield_the_rows_that_are_left(gone: list[int], group: int, batch: int, filtered: bool) -> None:
    """With positions in the file, whatever the row groups, the batches and the filters."""
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(pa.table({"k": pa.array(range(61), pa.int64())}), f"{folder}/x.parquet", row_group_size=group)
        (file,) = list_files([folder])
        (footer,) = read_footers([replace(file, deletes=Deletes.of([gone]))], ["k"], ["k"])
        units = cut_units(footer, ((("k", ">", 20),),) if filtered else (), target_bytes=64)
        rows = [rows for unit in units for rows in read_unit(unit, ReadSpec("k", pa.int64(), ()), batch)]
    expected = [k for k in range(61) if k not in set(gone) and not (filtered and k <= 20)]
    assert [k for part in rows for k in part.ids.to_pylist()] == expected
    assert [k for part in rows for k in part.rows.tolist()] == expected
    assert footer.rows == 61 - len(set(gone))
    assert all(unit.rows for unit in units)
    if not filtered:
        assert sum(unit.rows for unit in units) == len(expected)

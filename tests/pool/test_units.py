from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from raystream.pool import File, Footer, cut_units, units_at
from raystream.pool.filters import freeze
from raystream.pool.footers import RowGroup, Statistics
from raystream.pool.units import WORK_ROWS

FILE = File("/pool/a.parquet", 100, "1")
SCHEMA = pa.schema({"i": pa.int64()})


def footer(groups: list[tuple[int, int, int]]) -> Footer:
    """Row groups of (rows, bytes, value of i in all rows)."""
    return Footer(FILE, SCHEMA, tuple(RowGroup(rows, size, (("i", Statistics(8, i, i, 0)),)) for rows, size, i in groups))


GROUPS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 100), st.integers(0, 2)), max_size=30)


@given(groups=GROUPS, target=st.integers(1, 300), filtered=st.booleans())
def test_every_surviving_row_is_covered_once_and_in_order(groups: list, target: int, filtered: bool) -> None:
    """Units are runs of row groups, in order, that hold exactly the row groups that aren't empty or ruled out."""
    filters = freeze([[("i", "!=", 1)]]) if filtered else ()
    units = cut_units(footer(groups), filters, target)
    covered = [group for unit in units for group in unit.row_groups]
    assert covered == [i for i, (rows, _, value) in enumerate(groups) if rows and not (filtered and value == 1)]
    for unit in units:
        assert unit.row_groups == tuple(range(unit.row_groups[0], unit.row_groups[-1] + 1))
        assert unit.first_row == sum(rows for rows, _, _ in groups[: unit.row_groups[0]])
        assert unit.rows == sum(groups[i][0] for i in unit.row_groups)
        assert unit.filters == filters
        size = [groups[i][1] + 8 * filtered for i in unit.row_groups]
        assert unit.bytes == sum(size)
        assert unit.bytes <= 1.5 * target + 2 * max(bytes_ + 8 * filtered for _, bytes_, _ in groups)


@given(groups=GROUPS, work_rows=st.sampled_from([None, 1, 3]), data=st.data())
def test_positions_are_covered_once(groups: list, work_rows: int | None, data: st.DataObject) -> None:
    """Units at positions hold each of them once, in order, no more than asked for, and open only row groups that have some."""
    total = sum(rows for rows, _, _ in groups)
    positions = sorted(data.draw(st.sets(st.integers(0, total - 1)))) if total else []
    units = units_at(footer(groups), positions, target_bytes=100, work_rows=work_rows)
    assert [p for unit in units for p in unit.positions or ()] == positions
    starts = [sum(rows for rows, _, _ in groups[:i]) for i in range(len(groups) + 1)]
    for unit in units:
        assert unit.rows == len(unit.positions or ())
        assert work_rows is None or unit.rows < 1.5 * work_rows + 1
        assert unit.first_row == starts[unit.row_groups[0]]
        for group in unit.row_groups:
            assert any(starts[group] <= p < starts[group + 1] for p in unit.positions or ())


def test_equal_row_groups_make_equal_units() -> None:
    """Eight equal row groups of half the target become four units of two."""
    units = cut_units(footer([(10, 50, 0)] * 8), (), 100)
    assert [unit.name for unit in units] == [f"/pool/a.parquet#rg{i}-{i + 1}" for i in (0, 2, 4, 6)]
    assert cut_units(footer([(10, 500, 0)]), (), 100)[0].name == "/pool/a.parquet#rg0"


def test_a_row_group_that_is_ruled_out_splits_the_run() -> None:
    """A unit never reads over a gap."""
    units = cut_units(footer([(1, 1, 0), (1, 1, 1), (1, 1, 0)]), freeze([[("i", "==", 0)]]))
    assert [unit.row_groups for unit in units] == [(0,), (2,)]


@given(groups=GROUPS, target=st.integers(1, 300), work_rows=st.integers(1, 5))
def test_where_rows_are_work_no_unit_holds_many_more(groups: list, target: int, work_rows: int) -> None:
    """Each row is in one unit, in order, and a large row group comes in parts of about equally many rows."""
    units = cut_units(footer(groups), (), target, work_rows=work_rows)
    starts = [sum(rows for rows, _, _ in groups[:i]) for i in range(len(groups) + 1)]
    covered = [row for unit in units for row in range(*(unit.span or (unit.first_row, unit.first_row + unit.rows)))]
    assert covered == list(range(starts[-1]))
    for unit in units:
        if unit.span is not None:
            [group] = unit.row_groups
            assert starts[group] <= unit.span[0] == unit.first_row < unit.span[1] <= starts[group + 1]
            assert unit.rows == unit.span[1] - unit.span[0]
        if len(unit.row_groups) == 1:
            assert unit.rows < 1.5 * work_rows + 1


def test_one_row_group_of_texts_is_many_units() -> None:
    """As `write_table` writes 33,798 texts: eight units, named by their rows; a group whose bytes are dear to read comes in fewer."""
    units = cut_units(footer([(33_798, 3 << 20, 0)]), work_rows=WORK_ROWS)
    assert [unit.name for unit in units][::7] == ["/pool/a.parquet#rg0[0:4224]", "/pool/a.parquet#rg0[29573:33798]"]
    assert sum(unit.bytes for unit in units) in range((3 << 20) - 8, (3 << 20) + 1)
    assert [len(cut_units(footer([(33_798, size << 20, 0)]), work_rows=WORK_ROWS)) for size in (256, 1024, 4096)] == [8, 2, 1]
    assert len(cut_units(footer([(33_798, 3 << 20, 0)]))) == 1

from __future__ import annotations

import datetime as dt
import math
import operator
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raystream.errors import PoolError, QueryError
from raystream.pool import list_files, plan_pool, read_footers, read_unit
from raystream.pool.files import File
from raystream.pool.filters import check_filters, filter_columns, freeze, matching_rows, partition_types, residual, row_group_may_match
from raystream.query import Pool

OPERATORS = ["==", "!=", "<", "<=", ">", ">="]
SCHEMA = pa.schema({"i": pa.int32(), "f": pa.float32(), "s": pa.string(), "b": pa.bool_()})
VALUES = {
    "i": st.integers(-3, 3),
    "f": st.sampled_from([-1.0, 0.0, 0.5, 2.0, float("nan")]),
    "s": st.sampled_from(["a", "b", "é", ""]),
    "b": st.booleans(),
}
WANTED = VALUES | {"f": st.sampled_from([-1.0, 0.0, 0.1, 2.0])}
TERM = st.sampled_from(sorted(VALUES)).flatmap(
    lambda name: st.one_of(
        st.tuples(st.just(name), st.sampled_from(OPERATORS), WANTED[name]),
        st.tuples(st.just(name), st.sampled_from(["in", "not in"]), st.lists(WANTED[name], min_size=1, max_size=3)),
    )
)
DISJUNCTION = st.lists(st.lists(TERM, min_size=1, max_size=3), min_size=1, max_size=3)
ROW = st.fixed_dictionaries({name: st.none() | values for name, values in VALUES.items()})


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=12), disjunction=DISJUNCTION)
@example(rows=[dict(i=None, f=f, s=None, b=None) for f in (0.0, float("nan"))], disjunction=[[("f", "!=", 0.0)]])
@example(rows=[dict(i=None, f=f, s=None, b=None) for f in (0.0, float("nan"))], disjunction=[[("f", "not in", [0.0])]])
def test_pruning_and_masking_agree_with_pyarrow(rows: list[dict], disjunction: list) -> None:
    """pyarrow's own filter of the table is the oracle: the same rows pass, and no row group of theirs is pruned.

    A dataset's filter would be none: it prunes a row group of 0 and NaN under != 0, as statistics leave NaN out.
    """
    table = pa.Table.from_pylist(rows, schema=SCHEMA).append_column("row", pa.array(range(len(rows))))
    filters = freeze(disjunction)
    types = dict(zip(SCHEMA.names, SCHEMA.types, strict=True))
    check_filters(filters, types)
    with TemporaryDirectory() as folder:
        pq.write_table(table, f"{folder}/a.parquet", row_group_size=3)
        (footer,) = read_footers(list_files([folder]), ["row"], filter_columns(filters))
    expected = table.filter(pq.filters_to_expression(disjunction))["row"].to_pylist()
    (batch,) = table.to_batches()
    assert matching_rows(filters, batch).tolist() == expected
    alive = {i for i, group in enumerate(footer.row_groups) if row_group_may_match(filters, dict(group.statistics), group.rows, types)}
    assert {row // 3 for row in expected} <= alive


def test_statistics_prune() -> None:
    """Pruning does happen, at the edges of each operator."""
    with TemporaryDirectory() as folder:
        pq.write_table(pa.table({"i": [5, 6, 7], "n": pa.array([None] * 3, pa.int64()), "c": ["x"] * 3}), f"{folder}/a.parquet")
        (footer,) = read_footers(list_files([folder]), ["i"], ["i", "n", "c"])
    types = {"i": pa.int64(), "n": pa.int64(), "c": pa.string()}
    (group,) = footer.row_groups

    def alive(*term: object) -> bool:
        return row_group_may_match(freeze([[term]]), dict(group.statistics), group.rows, types)  # type: ignore[list-item]

    assert [alive("i", "<", 5), alive("i", "<=", 4), alive("i", ">", 7), alive("i", ">=", 8), alive("i", "==", 8)] == [False] * 5
    assert [alive("i", "<", 6), alive("i", "<=", 5), alive("i", ">", 6), alive("i", ">=", 7), alive("i", "==", 6)] == [True] * 5
    assert [alive("i", "in", [1, 9]), alive("n", "==", 1), alive("c", "!=", "x"), alive("c", "not in", ["x", "y"])] == [False] * 4
    assert [alive("i", "in", [1, 6]), alive("n", "not in", [1]), alive("c", "!=", "y"), alive("c", "not in", ["y"])] == [True] * 4


def test_hive_folders_decide_their_terms() -> None:
    """Decided terms are dropped, a file that can't pass gives None, one that always passes gives ()."""
    files = [File("/a", 1, "0", (("year", year), ("split", split))) for year, split in [("2023", "x"), ("2024", "y"), (None, None)]]
    types = partition_types(files)
    assert types == {"year": pa.int64(), "split": pa.string()}

    def left(*disjunction: list) -> list:
        return [residual(freeze(disjunction), file, types) for file in files]

    assert left([("year", ">=", 2024)]) == [None, (), None]
    assert left([("year", "=", 2023), ("i", "<", 3)]) == [((("i", "<", 3),),), None, None]
    assert left([("split", "==", "x"), ("i", "<", 3)], [("split", "!=", "x")]) == [((("i", "<", 3),),), (), None]
    assert left([("split", "not in", ["x"])]) == [None, (), ()]
    assert left() == [(), (), ()]


def test_hive_keys_are_numbers_only_if_all_are() -> None:
    """One value that isn't a whole number makes the key a string; so do nothing but nulls."""
    files = [File("/a", 1, "0", (("k", k), ("n", None), ("m", m))) for k, m in [("1", "01"), ("b", "-2")]]
    assert partition_types(files) == {"k": pa.string(), "n": pa.string(), "m": pa.int64()}


@pytest.mark.parametrize(
    ("type_", "op", "value"),
    [
        (pa.int64(), "==", "5"), (pa.string(), "<", 5), (pa.bool_(), "==", 1), (pa.int64(), "==", True), (pa.date32(), ">", "soon"),
        (pa.list_(pa.int64()), "==", 1), (pa.string(), "in", [1]), (pa.int64(), "in", 1), (pa.int64(), "==", [1]),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_compared_is_refused(type_: pa.DataType, op: str, value: object) -> None:
    """The message names the key, the column, its type and the value."""
    with pytest.raises(QueryError, match=r"pool.filters compares column c \(") as caught:
        check_filters(freeze([[("c", op, value)]]), {"c": type_})
    assert str(type_) in str(caught.value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("type_", "op", "value", "says"),
    [
        (pa.timestamp("us", "UTC"), ">", "2024-01-02", "expected a time with its zone, such as 2024-01-02T00:00:00Z"),
        (pa.timestamp("us", "Europe/Berlin"), "in", ["2024-01-02T03:00:00"], "with its zone, such as 2024-01-02T00:00:00Z"),
        (pa.timestamp("us"), "==", "2024-01-02T00:00:00Z", "expected a time without a zone, such as 2024-01-02T00:00:00, no finer than us"),
        (pa.timestamp("ms"), "==", "2024-01-02T00:00:00.000001", "no finer than ms"),
        (pa.date32(), "==", "2024-01-02T00:00:00", "expected a date, such as 2024-01-02"),
        (pa.int64(), "in", 1, "expected a list"),
        (pa.int64(), "==", [1], "expected one value, or the operator in"),
        (pa.int64(), "==", "1", "expected a value of that type"),
        *((type_, "==", "x", "columns of that type can't be filtered on, so filter by another column") for type_ in (
            pa.binary(4), pa.duration("s"), pa.list_(pa.int8()), pa.struct({"a": pa.int8()}), pa.time64("us"), pa.null(),
            pa.map_(pa.string(), pa.string()),
        )),
    ],
)  # fmt: skip
def test_what_should_have_been_written_is_said(type_: pa.DataType, op: str, value: object, says: str) -> None:
    """With an example where the form isn't plain, and that there is none for columns that nothing is compared with."""
    with pytest.raises(QueryError, match=r"^pool.filters compares column c \(") as caught:
        check_filters(freeze([[("c", op, value)]]), {"c": type_})
    assert says in str(caught.value)


def test_a_batch_of_another_type_than_was_checked_is_named() -> None:
    """As that of a table whose file holds text where the table declares numbers."""
    with pytest.raises(PoolError, match=r"^a.parquet#rg0: pool.filters can't be applied: string is not comparable with 1; change"):
        matching_rows(freeze([[("c", "==", 1)]]), pa.record_batch({"c": ["1"]}), "a.parquet#rg0")


def test_an_unknown_column_is_refused() -> None:
    """The message names what was probably meant."""
    with pytest.raises(PoolError, match=r"column splt, .* did you mean 'split'"):
        check_filters(freeze([[("splt", "==", "x")]]), {"split": pa.string()})


@pytest.mark.parametrize(
    ("array", "op", "value", "expected"),
    [
        (pa.array([dt.date(2024, 1, 1), dt.date(2025, 1, 1)]), ">=", "2024-06-01", [1]),
        (pa.array([dt.datetime(2024, 1, 1), dt.datetime(2025, 1, 1)]), "in", ["2025-01-01"], [1]),
        (pa.array(["a", "b", None], pa.string_view()), "!=", "b", [0]),
        (pa.array(["a", "b", None], pa.string_view()), "in", ["b"], [1]),
        (pa.array(["a", "b", None]).dictionary_encode(), "==", "b", [1]),
        (pa.array(["a", "b", None]).dictionary_encode(), "in", ["b"], [1]),
        (pa.array([1, 2**64 - 1], pa.uint64()), "<", 5, [0]),
        (pa.array([1, 2**64 - 1], pa.uint64()), "in", [2**64 - 1], [1]),
        (pa.array([1, 3], pa.decimal128(5, 2)), "<", 2.5, [0]),
        (pa.array([1, 3, None], pa.decimal128(10, 2)), "in", [0.001, 3], [1]),
        (pa.array([Decimal("4.99"), None], pa.decimal128(10, 2)), "in", [0.001], []),
        (pa.array([Decimal("4.99"), None], pa.decimal128(10, 2)), "not in", [0.001], [0, 1]),
        (pa.array([1, 3, None], pa.decimal128(10, 2)), "not in", [0.001, 1e30], [0, 1, 2]),
        (pa.array([1, 3, None], pa.decimal128(38, 30)), "<=", 10**60, [0, 1]),
        (pa.array([1, 3, None], pa.decimal256(76, 2)), ">", 1e-300, [0, 1]),
        (pa.array([b"a", b"b"]), "==", "b", [1]),
        (pa.array([1, 2], pa.int8()), "<", 500, [0, 1]),
        (pa.array([16777216.0], pa.float32()), "==", 16777217, []),
        (pa.array([1, 2]), "in", [], []),
    ],
)
def test_types_beyond_numbers(array: pa.Array, op: str, value: object, expected: list[int]) -> None:
    """Dates compare with ISO text, views and dictionaries as their values, unsigned integers without overflow."""
    filters = freeze([[("c", op, value)]])
    check_filters(filters, {"c": array.type})
    assert matching_rows(filters, pa.record_batch({"c": array})).tolist() == expected


def test_statistics_of_dates_and_wide_unsigned_columns_prune_nothing(tmp_path: Path) -> None:
    """Where Python may order values otherwise than Arrow, the row group stays."""
    big = np.array([2**63 + 1, 2**63 + 2], dtype=np.uint64)
    pq.write_table(pa.table({"u": big, "d": [dt.date(2024, 1, 1)] * 2}), tmp_path / "a.parquet")
    (footer,) = read_footers(list_files([str(tmp_path)]), ["u"], ["u", "d"])
    types = {"u": pa.uint64(), "d": pa.date32()}
    found = dict(footer.row_groups[0].statistics)
    assert row_group_may_match(freeze([[("u", ">", 2**63)]]), found, 2, types)
    assert row_group_may_match(freeze([[("d", "==", "2024-01-01")]]), found, 2, types)


COMPARE = dict(zip(OPERATORS, [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge], strict=True))
INTEGERS = [pa.int8(), pa.uint8(), pa.int32(), pa.int64(), pa.uint64()]
ANY_NUMBER = st.one_of(
    st.integers(-3, 8),
    st.sampled_from([-129, 127, 128, 255, 256, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63) - 1]),
    st.sampled_from([0.5, 5.5, 6.0, -0.5, 1e30, -1e30, 2.0**53, 127.5, float("inf")]),
)


@settings(max_examples=150, deadline=None)
@given(type_=st.sampled_from(INTEGERS), op=st.sampled_from([*OPERATORS, "in", "not in"]), data=st.data())
@example(type_=pa.int64(), op="in", data=None)
@example(type_=pa.int64(), op="not in", data=None)
def test_integers_compare_exactly_with_any_number(type_: pa.DataType, op: str, data: st.DataObject | None) -> None:
    """Python's exact comparison is the oracle: fractions and numbers that the type can't hold are equal to none of its values."""
    limits = np.iinfo(type_.to_pandas_dtype())
    pool = [v for v in (0, 5, 6, -1, limits.min, limits.max, 2**53, 2**53 + 1) if limits.min <= v <= limits.max]
    rows = [None, *pool] if data is None else data.draw(st.lists(st.none() | st.sampled_from(pool), min_size=1, max_size=6))
    is_list = op in ("in", "not in")
    value: object = [6.0, 5.5] if data is None else data.draw(st.lists(ANY_NUMBER, max_size=3) if is_list else ANY_NUMBER)
    if is_list:
        expected = [i for i, v in enumerate(rows) if (v in value) == (op == "in")]
    else:
        expected = [i for i, v in enumerate(rows) if v is not None and COMPARE[op](v, value)]
    filters = freeze([[("i", op, value)]])  # type: ignore[list-item]
    types = {"i": type_}
    check_filters(filters, types)
    array = pa.array(rows, type_)
    assert matching_rows(filters, pa.record_batch({"i": array})).tolist() == expected
    with TemporaryDirectory() as folder:
        pq.write_table(pa.table({"i": array}), f"{folder}/a.parquet", row_group_size=2)
        (footer,) = read_footers(list_files([folder]), ["i"], ["i"])
    alive = {i for i, group in enumerate(footer.row_groups) if row_group_may_match(filters, dict(group.statistics), group.rows, types)}
    assert {row // 2 for row in expected} <= alive


def test_whole_hive_keys_compare_exactly_with_any_number() -> None:
    """The folders of a key of whole numbers are decided by the same rule."""
    files = [File("/a", 1, "0", (("k", k),)) for k in ("0", "5", "6", None)]
    types = partition_types(files)

    def left(op: str, value: object) -> list:
        return [residual(freeze([[("k", op, value)]]), file, types) == () for file in files]  # type: ignore[list-item]

    assert left("in", [0.5]) == left("==", 0.5) == left("==", 2**70) == left("in", [2**70]) == [False] * 4
    assert left("not in", [6.0, 5.5]) == [True, True, False, True]
    assert left("not in", []) == left("not in", [0.5]) == [True] * 4
    assert left("!=", 0.5) == left("<", 2**70) == [True, True, True, False]
    assert left(">", 5.5) == [False, False, True, False]


MIDNIGHT = dt.datetime(2024, 1, 1)
TYPES: dict[str, tuple[pa.DataType, list[Any]]] = {
    "int": (pa.int32(), [-2, 0, 1, 7]),
    "float": (pa.float64(), [-0.0, 0.0, 0.1, -2.5, math.nan, math.inf]),
    "string": (pa.string(), ["", "a", "b", "Ä"]),
    "bool": (pa.bool_(), [True, False]),
    "date": (pa.date32(), [dt.date(2024, 1, day) for day in (1, 2, 9)]),
    "naive": (pa.timestamp("us"), [MIDNIGHT + dt.timedelta(hours=hours) for hours in (0, 1, 30)]),
    "utc": (pa.timestamp("ms", "UTC"), [MIDNIGHT.replace(tzinfo=dt.UTC) + dt.timedelta(hours=hours) for hours in (0, 1, 30)]),
    "decimal": (pa.decimal128(10, 2), [Decimal(cents) / 100 for cents in (-499, 0, 10, 150)]),
}
BEYOND: dict[str, list[Any]] = {"int": [2**20], "float": [1e300], "string": ["zz"], "decimal": [Decimal("0.001"), Decimal(10) ** 9]}
"""Values that no row has, among them some that the type can't hold."""


def written(value: Any) -> Any:
    """A value as a query has it: ISO text for dates, numbers for decimals."""
    if isinstance(value, dt.date):
        return value.isoformat()
    return float(value) if isinstance(value, Decimal) else value


@settings(max_examples=200, deadline=None)
@given(kind=st.sampled_from(sorted(TYPES)), op=st.sampled_from([*OPERATORS, "in", "not in"]), data=st.data())
def test_every_operator_on_every_type_is_pyarrows(kind: str, op: str, data: st.DataObject) -> None:
    """Files are planned and read through; pyarrow's filter of the same files' rows is the oracle, nulls and NaN included.

    Where pyarrow can't compare a list with a decimal, which then isn't among the column's values, the list is without it.
    """
    type_, values = TYPES[kind]
    rows = data.draw(st.lists(st.none() | st.sampled_from(values), min_size=1, max_size=8))
    wanted = st.sampled_from([value for value in [*values, *BEYOND.get(kind, [])] if value == value and value != math.inf])
    value: Any = data.draw(st.lists(wanted, min_size=1, max_size=3) if op in ("in", "not in") else wanted)
    if isinstance(value, list):
        ours = [written(one) for one in value]
        theirs: Any = pa.array([one for one in value if one not in BEYOND.get(kind, [])], type_)
    else:
        ours, theirs = written(value), pa.scalar(value) if kind == "decimal" else pa.scalar(value, pa.int64() if kind == "int" else type_)
    with TemporaryDirectory() as folder:
        pq.write_table(pa.table({"c": pa.array(rows, type_), "x": range(len(rows))}), f"{folder}/a.parquet", row_group_size=2)
        term = COMPARE[op](pc.field("c"), theirs) if op in COMPARE else pc.field("c").isin(theirs)
        term = ~term if op == "not in" else term
        # pyarrow's reader prunes by statistics that leave NaN out
        kept = pq.read_table(folder).filter(term) if kind == "float" else pq.read_table(folder, filters=term)
        assert passing(Pool(uri=folder, inputs=["x"], filters=[("c", op, ours)])) == kept["x"].to_pylist()


def passing(pool: Pool) -> list[int]:
    """The rows of a pool of one file that its filters let pass."""
    try:
        plan = plan_pool(pool)
    except PoolError as error:
        if "is left after filters" not in str(error):
            raise
        return []
    return [int(row) for unit in plan.units for rows in read_unit(unit, plan.read, 4) for row in rows.rows]


@pytest.mark.parametrize("form", ["[[day, '>=', {}]]", "[[day, in, [{}]]]", "[[[day, '==', {}]], [[day, '<', {}], [i, '==', 1]]]"])
@pytest.mark.parametrize("value", ["2024-01-05", "2024-01-05T01:02:03"])
def test_dates_that_yaml_reads_are_the_text(form: str, value: str) -> None:
    """A query with dates unquoted is the query with quoted ones, and comes back from YAML as it was."""
    loose, quoted = (Pool(uri="x", filters=yaml.safe_load(form.replace("{}", text))) for text in (value, f"'{value}'"))
    assert loose == quoted
    dumped = loose.model_dump(mode="json")
    assert Pool(**yaml.safe_load(yaml.safe_dump(dumped))) == loose
    zoned = Pool(uri="x", filters=[("day", ">", dt.datetime(2024, 1, 5, tzinfo=dt.UTC))])
    assert zoned.filters == [("day", ">", "2024-01-05T00:00:00+00:00")]


HALVES = [-2.5, 0.0, 0.1, 1.0, 65504.0, math.inf, math.nan, None]


@pytest.mark.parametrize("op", [*OPERATORS, "in", "not in"])
@pytest.mark.parametrize("value", [0.1, 1, -2.5, 65504, 1e6, 0])
def test_halves_are_compared_as_the_numbers_they_are(tmp_path: Path, op: str, value: float) -> None:
    """One number as it is, so that 0.1 is none of them; those of a list rounded to halves, as to any column's type."""
    stored = np.array([math.nan if half is None else half for half in HALVES], np.float16)
    column = pa.array(stored, pa.float16(), mask=np.array([half is None for half in HALVES]))
    pq.write_table(pa.table({"c": column, "x": range(len(HALVES))}), tmp_path / "a.parquet", row_group_size=3)
    known = [None if half is None else float(number) for half, number in zip(HALVES, stored, strict=True)]
    if op in OPERATORS:
        expected = [i for i, half in enumerate(known) if half is not None and COMPARE[op](half, value)]
    else:
        with np.errstate(over="ignore"):
            expected = [i for i, half in enumerate(known) if (half == float(np.float16(value))) == (op == "in")]
    assert passing(Pool(uri=str(tmp_path), inputs=["x"], filters=[("c", op, [value] if "in" in op else value)])) == expected


@pytest.mark.parametrize("names", [("", "x"), ("0", ""), ("a.b", "1"), (".a", "2")])
def test_a_column_may_have_any_name(tmp_path: Path, names: tuple[str, str]) -> None:
    """None at all, a number, one with a dot."""
    one, other = names
    pq.write_table(pa.table({one: [1, 2, 3, 4], other: [4, 3, 2, 1], "in": [0.5] * 4}), tmp_path / "a.parquet", row_group_size=3)
    assert passing(Pool(uri=str(tmp_path), inputs=["in"], filters=[(one, ">", 1), (other, ">", 1)])) == [1, 2]
    assert passing(Pool(uri=str(tmp_path), id=one, inputs=["in"], filters=[[(one, "==", 1)], [(other, "in", [1])]])) == [0, 3]

"""The one table of labels: merged in any order and however often, it is the same; what it says of conflicts and states is so."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from itertools import permutations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystream.errors import LabelsError, QueryError
from raystream.labels.annotation import STATES, IdColumn, id_of, label_of, text_or_none, time_of
from raystream.labels.consolidate import consolidate
from raystream.labels.label_table import LabelRow, LabelTable, empty, read_table, update_table, written
from raystream.pool import read_labelled

IDS = IdColumn("rid", pa.int32())
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def row(id_: int, label: str | None = "cat", **more: Any) -> LabelRow:
    first = LabelRow(id_, label, "labelled", "anna", NOON, "prodigy", "", "q", 1)
    return replace(first, **more)


ROWS = st.builds(
    row,
    st.integers(0, 2),
    st.sampled_from(["cat", "dog", None]),
    state=st.sampled_from(STATES),
    annotator=st.sampled_from(["anna", "ben", None]),
    labelled_at=st.sampled_from([None, NOON, NOON.replace(hour=13)]),
    tool_id=st.sampled_from(["", "1", "2"]),
    query=st.sampled_from(["q", None]),
)


@given(st.lists(ROWS, max_size=12), st.randoms(use_true_random=False), st.integers(0, 12))
def test_merging_is_a_union(rows: list[LabelRow], random: Any, cut: int) -> None:
    """Whatever the order, however the rows are split into overlapping exports, and however often they are read: one table."""
    start = empty(IDS, "classes")
    once = start.merged(rows)
    shuffled = random.sample(rows, len(rows))
    assert start.merged(shuffled).rows == once.rows
    assert start.merged(shuffled[:cut]).merged(shuffled).merged(rows[cut:]).rows == once.rows


def test_the_newest_answer_of_an_annotation_stays() -> None:
    """An edited annotation replaces itself; without a time it is the oldest; two annotators are two annotations."""
    old, new = row(1, "cat", tool_id="7"), row(1, "dog", tool_id="7", labelled_at=NOON.replace(hour=13))
    undated = row(1, "mouse", tool_id="7", labelled_at=None)
    other = row(1, "cat", tool_id="8", annotator="ben")
    table = empty(IDS, "classes").merged([new, undated, old, other])
    assert [(each.label, each.annotator) for each in table.rows] == [("dog", "anna"), ("cat", "ben")]
    assert table.conflicts() == []  # the newest answer of row 1 is one


def test_a_draft_replaces_no_answer() -> None:
    """Of an answer, a newer draft of it, and a still newer answer the answers are left, in any order."""
    answer, draft = row(1, tool_id="1", labelled_at=None), row(1, tool_id="1", state="draft")
    newer = row(1, "dog", labelled_at=NOON.replace(hour=13))
    tables = [empty(IDS, "classes").merged(order[:2]).merged(order[2:]) for order in permutations([answer, draft, newer])]
    assert all(table.rows == tables[0].rows for table in tables)
    assert {each.label for each in tables[0].rows} == {"cat", "dog"}


def test_answers_of_one_time_that_differ_are_a_conflict() -> None:
    """Both stay and are counted, also where a file was edited by hand; drafts don't count, and a newer answer settles it."""
    table = empty(IDS, "classes").merged([row(1, "cat"), row(1, "dog"), row(2), row(2, "dog", state="draft", annotator="ben")])
    assert table.counts()["rows"] == 4
    assert table.conflicts() == [1]
    assert table.merged([row(1, "dog", labelled_at=NOON.replace(hour=13))]).conflicts() == []


def test_a_draft_ends_when_its_author_says_more() -> None:
    """Tools forget drafts that were submitted; of somebody else's the row is still a draft."""
    table = empty(IDS, "classes").merged([row(1, state="draft", tool_id="draft 3"), row(1, "dog", tool_id="9")])
    assert [each.state for each in table.rows] == ["labelled"]
    other = table.merged([row(1, state="draft", tool_id="draft 4", annotator="ben")])
    assert sorted(each.state for each in other.rows) == ["draft", "labelled"]


@pytest.mark.parametrize("method", ["none", "majority"])
def test_the_file_reads_back_and_serves_as_labelled(tmp_path: Path, method: Any) -> None:
    """The columns are the contract's; `pool.labelled` takes the file; read again, all annotations are there, consolidated or not."""
    rows = [
        row(3),
        row(3, "dog", annotator="ben"),
        row(3, "dog", annotator="eva"),
        row(1, None, state="skipped"),
        row(2, None, state="draft"),
    ]
    table = empty(IDS, "classes").merged(rows)
    path = tmp_path / "labels.parquet"
    update_table(str(path), IDS, "classes", lambda _: consolidate(table, method))
    file = pq.read_table(path)
    assert file.column_names[:9] == ["rid", "label", "state", "annotator", "labelled_at", "tool", "tool_id", "query", "rank"]
    assert file.schema.field("rid").type == pa.int32()
    assert read_table(path, IDS, "classes").rows == table.rows
    known = read_labelled([str(path)], "rid", pa.int32())
    assert (known.ids.to_pylist(), known.excluded.to_pylist()) == ([3], [1])
    update_table(str(path), IDS, "classes", lambda there: consolidate(there.merged(rows), method))
    assert pq.read_table(path).equals(file)
    if method == "majority":
        assert file.column("label").to_pylist() == [None, None, "dog"]
        assert file.column("disagreement").to_pylist() == pytest.approx([0, 0, 1 / 3])


def test_classes_without_names_are_numbers(tmp_path: Path) -> None:
    """As `model.temperature` takes them; a label that is none keeps the column text, for nothing is lost."""
    for labels, type_ in ((["0", "11"], pa.int64()), (["0", "eleven"], pa.string()), (["00"], pa.string())):
        table = empty(IDS, "classes").merged([row(i, label) for i, label in enumerate(labels)])
        (tmp_path / "labels.parquet").write_bytes(written(table))
        assert pq.read_schema(tmp_path / "labels.parquet").field("label").type == type_
        assert read_table(tmp_path / "labels.parquet", IDS, "classes").rows == table.rows


def test_only_tables_of_labels_are_merged_into(tmp_path: Path) -> None:
    """Another file, ids of another type and a damaged file are refused and left as they are."""
    path = tmp_path / "labels.parquet"
    pq.write_table(pa.table({"rid": [1]}), path)
    with pytest.raises(QueryError, match="isn't a table of labels"):
        read_table(path, IDS, "classes")
    path.write_bytes(written(empty(IDS, "classes").merged([row(1)])))
    with pytest.raises(QueryError, match=r"holds labels for ids of int32 .* not for ids of int64"):
        read_table(path, IdColumn("rid", pa.int64()), "classes")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(LabelsError, match="is no Parquet file"):
        read_table(path, IDS, "classes")
    with pytest.raises(QueryError, match=r"pool\.id label is what a column"):
        empty(IdColumn("label", pa.int64()), "classes")


@pytest.mark.parametrize(
    ("raw", "task", "label"),
    [
        ("cat", "classes", "cat"), (["cat"], "classes", "cat"), (7, "classes", "7"), (7.0, "classes", "7"), (True, "classes", "true"),
        ([], "classes", None), (["a", "b"], "classes", '["a", "b"]'), ("", "classes", None), ([], "multi_label", ()),
        (["b", "a", "b"], "multi_label", ("b", "a")), ('["a", "b"]', "multi_label", ("a", "b")), ("[a", "multi_label", ("[a",)),
        ("2.5", "regression", 2.5), ([3], "regression", 3.0), ("x", "regression", None), ("nan", "regression", None),
        ([{"b": 1, "a": 2}], "tokens", '[{"a": 2, "b": 1}]'), (float("nan"), "classes", None), (b"cat", "classes", "cat"),
        (Decimal("1.0"), "classes", "1"), (date(2026, 3, 1), "classes", "2026-03-01"), (True, "regression", None),
        ("1_000", "regression", None), ("1,5", "regression", None), (["a", date(2026, 3, 1)], "classes", '["a", "2026-03-01"]'),
    ],
)  # fmt: skip
def test_labels_take_the_form_of_their_task(raw: Any, task: str, label: Any) -> None:
    """A class as text, several as a tuple, a number, or the tool's own structure as JSON; what is none is None."""
    assert label_of(raw, task) == label


@pytest.mark.parametrize(
    "value",
    [
        "2026-03-01T12:00:00Z",
        "2026-03-01 13:00:00+01:00",
        "2026-03-01T12:00:00",
        1772366400,
        1772366400000,
        "1772366400",
        1772366400 * 10**9,
        {"$date": 1772366400000},
        {"$date": {"$numberLong": "1772366400000"}},
        datetime(2026, 3, 1, 13, tzinfo=timezone(timedelta(hours=1))),
    ],
)
def test_times_are_utc_however_they_are_written(value: Any) -> None:
    """ISO 8601 with any offset, seconds, milliseconds."""
    assert time_of(value) == NOON
    assert [time_of(nothing) for nothing in (None, "", " ", float("nan"))] == [None] * 4


@pytest.mark.parametrize(
    "value",
    ["yesterday", True, float("inf"), 1e300, -1.0, 46082.5, "2026", "01.03.2026", "1_772_366_400", [1], {}, "9999-12-31T23:59-05"],
)
def test_no_time_is_made_up(value: Any) -> None:
    """Which answer is the newest hangs on it: words, days as spreadsheets count them, and dates in an order that differs by country."""
    with pytest.raises(ValueError, match=r"is no time; expected one such as 2026-01-31T12:00:00Z"):
        time_of(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [(7, "7"), (7.0, "7"), (Decimal("7.00"), "7"), (7.5, "7.5"), (2.0**60, "1.152921504606847e+18"), (b"\n", "0a"), ("07", "07"), ("", "")],
)
def test_ids_are_written_alike_whatever_holds_them(value: Any, text: str) -> None:
    """A whole number beside gaps is a float in many programs; one that a float can't hold whole is left as it came."""
    assert id_of(value) == text
    assert id_of(None) is id_of(float("nan")) is text_or_none(float("nan")) is None


def test_an_empty_table_has_its_columns() -> None:
    """No labels yet are a table all the same."""
    for task in ("classes", "multi_label", "regression", "tokens"):
        assert LabelTable(IDS, task).to_arrow().num_rows == 0

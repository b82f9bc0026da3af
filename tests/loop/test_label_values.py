"""What a label may be, and labels as numbers."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raystream.errors import LabelsError
from raystream.loop.labels import LabelValues, newest, read_answers

NAMED = LabelValues("classes", ("cat", "dog"))
SEVERAL = LabelValues("multi_label", ("a", "b", "c"))
FREE = LabelValues("multi_label")
NUMBERS = LabelValues("regression")
STARS = LabelValues("classes", ("1", "2", "3", "4", "5"))
HALVES = LabelValues("classes", ("-0.5", "0", "0.5", "01"))
TRUTHS = LabelValues("classes", ("True", "False"))


@pytest.mark.parametrize(
    ("values", "raw", "label"),
    [
        (LabelValues(), "cat", "cat"), (LabelValues(), 3, 3), (LabelValues(), 3.0, 3), (LabelValues(), 3.5, None),
        (LabelValues(), None, None), (LabelValues(), "", None), (LabelValues(), True, True), (LabelValues(), [1], None),
        (LabelValues(), float("nan"), None), (NAMED, "dog", "dog"), (NAMED, 1, "dog"), (NAMED, 2, None), (NAMED, -1, None),
        (NAMED, "cow", None), (LabelValues(numbered=True), "7", 7), (LabelValues(numbered=True), "cat", None),
        (LabelValues(numbered=True), -1, None), (SEVERAL, ["c", "a", "c"], ("a", "c")), (SEVERAL, [], ()), (SEVERAL, [1, 0, 1], ("a", "c")),
        (SEVERAL, [False, True, False], ("b",)), (SEVERAL, ["x"], None), (SEVERAL, "a", None), (SEVERAL, [2], ("c",)),
        (FREE, ["z", "b"], ("b", "z")), (FREE, [4, 2], (2, 4)), (NUMBERS, 2, (2.0,)), (NUMBERS, [1, 2.5], (1.0, 2.5)),
        (NUMBERS, float("inf"), None), (NUMBERS, "2", None), (NUMBERS, [], None),
        (STARS, 1, "1"), (STARS, 5, "5"), (STARS, 0, None), (STARS, 5.0, "5"), (STARS, "3", "3"), (STARS, 2.5, None),
        (STARS, Decimal(4), "4"),
        (HALVES, -0.5, "-0.5"), (HALVES, 0.0, "0"), (HALVES, 1, "01"), (HALVES, 2, None), (LabelValues("classes", ("01", "1")), 1, "1"),
        (LabelValues("classes", ("01", "1.0")), 1, None), (LabelValues("classes", ("cat", "1")), 0, None), (NAMED, True, "dog"),
        (TRUTHS, True, "True"), (TRUTHS, False, "False"), (TRUTHS, 1, "False"), (LabelValues("classes", ("0", "1")), True, "1"),
        (LabelValues("multi_label", ("1", "2", "3")), [3, 1], ("1", "3")), (LabelValues("multi_label", ("1", "2")), [0, 1], ("2",)),
    ],
)  # fmt: skip
def test_labels_as_people_write_them(values: LabelValues, raw: Any, label: Any) -> None:
    """A class, several, or numbers, in one form; what is none of the task's is None."""
    found = values.label_of(raw)
    assert found == label
    assert type(found) is type(label)


@pytest.mark.parametrize("written", ["a.csv", "a.jsonl", "texts.jsonl", "a.parquet", "nulls.parquet"])
def test_ratings_in_files_are_names(tmp_path: Path, written: str) -> None:
    """Of classes 1 to 5, whatever a file makes of the ratings, each is the class of that name; the sixth row is none."""
    path, stars = tmp_path / written, [5, 1, 3, 2, 4, 6]
    if written.endswith("csv"):
        path.write_text("rid,y\n" + "".join(f"{i},{star}\n" for i, star in enumerate(stars)))
    elif written.endswith("jsonl"):
        as_text = written.startswith("texts")
        path.write_text("".join(json.dumps({"rid": i, "y": str(star) if as_text else star}) + "\n" for i, star in enumerate(stars)))
    else:
        type_ = pa.int32() if written.startswith("a") else pa.float64()  # as other tools write integers with nulls
        pq.write_table(pa.table({"rid": range(6), "y": pa.array(stars, type_)}), path)
    found = read_answers([str(path)], "rid", pa.int64(), "y", STARS)
    assert {id_: answer.label for id_, answer in found.by_id.items()} == {0: "5", 1: "1", 2: "3", 3: "2", 4: "4"}
    assert [id_ for id_, _ in found.unknown] == [5]


def test_labels_as_numbers() -> None:
    """Places among the classes that are met, or given, in their order."""
    free = LabelValues()
    assert free.known(["b", "a", "b"]) == ("a", "b")
    assert free.as_numbers(["b", "a"], ("a", "b")).tolist() == [1, 0]
    assert LabelValues(numbered=True).known([4, 1]) == (0, 1, 2, 3, 4)
    assert SEVERAL.as_numbers([("a", "c"), ()], SEVERAL.known([])).tolist() == [[1, 0, 1], [0, 0, 0]]
    assert FREE.known([(2, 4), (1,)]) == (1, 2, 4)
    numbers = NUMBERS.as_numbers([(1.0,), (2.0,)], None)
    assert (numbers.dtype, numbers.tolist()) == (np.float32, [[1.0], [2.0]])
    with pytest.raises(LabelsError, match="rows are labelled by 1 and 2 numbers"):
        NUMBERS.as_numbers([(1.0,), (1.0, 2.0)], None)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([1, "1", 2], "1 and '1' are two classes"), (["cat", "cat ", "dog"], "'cat' and 'cat ' are two classes"), ([1, 2, "a", "A"], None),
        ([1.0, 1, 2], None),
    ],
)  # fmt: skip
def test_classes_that_differ_in_how_they_are_written_are_said(labels: list[Any], said: str | None) -> None:
    """Nothing names them, so that each is a class of its own; with names, it is one of these or unknown."""
    rows = [(number, -math.inf, "labelled", label) for number, label in enumerate(labels)]
    warnings = newest(rows, LabelValues()).warnings
    assert [warning.partition(";")[0] for warning in warnings] == ([] if said is None else [said])
    assert newest(rows, LabelValues(classes=("1", "2"))).alike is None

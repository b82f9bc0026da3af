"""What a label may be, and labels as numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from raystream.errors import LabelsError
from raystream.loop.label_values import LabelValues

NAMED = LabelValues("classes", ("cat", "dog"))
SEVERAL = LabelValues("multi_label", ("a", "b", "c"))
FREE = LabelValues("multi_label")
NUMBERS = LabelValues("regression")


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
    ],
)  # fmt: skip
def test_labels_as_people_write_them(values: LabelValues, raw: Any, label: Any) -> None:
    """A class, several, or numbers, in one form; what is none of the task's is None."""
    found = values.label_of(raw)
    assert found == label
    assert type(found) is type(label)


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

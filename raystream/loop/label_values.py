"""What a label may be: a class, several, or a number; and labels as the numbers that trainers take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from raystream.errors import LabelsError
from raystream.loop.trainers.training import ClassLabel
from raystream.model.label_names import LabelNames

Array = npt.NDArray[Any]
_SHOWN = 5


@dataclass(frozen=True)
class LabelValues:
    """How labels of one loop are written.

    Attributes:
        task: `model.task`.
        classes: the names of the classes, where the query gives them: labels are these, or numbers as `LabelNames` reads them. Without,
            whatever is met.
        numbered: whether classes without names must be numbers from 0, since the network's outputs have no other names.
    """

    task: str = "classes"
    classes: tuple[str, ...] | None = None
    numbered: bool = False

    @cached_property
    def _names(self) -> LabelNames | None:
        return None if self.classes is None else LabelNames(self.classes)

    @property
    def expected(self) -> str:
        """What a label must be, in words."""
        if self.task == "regression":
            return "a number, or a list of numbers"
        named = f"one of {', '.join(self.classes[:_SHOWN])}{', ..' if len(self.classes) > _SHOWN else ''}" if self.classes else ""
        one = named or (
            "the number of a class from 0, or name the classes in model.classes" if self.numbered else "a text or a whole number"
        )
        return f"a list, each {one}" if self.task == "multi_label" else one

    def label_of(self, raw: Any) -> Any:
        """Return a label as it is kept: a class, a tuple of classes in order, or a tuple of numbers; None where it is no label."""
        if self.task == "regression":
            return self._numbers(raw)
        if self.task == "multi_label":
            return self._several(raw)
        return self._class(raw)

    def known(self, labels: Sequence[Any]) -> tuple[ClassLabel, ...]:
        """Return the classes that rows are labelled with, in the order of their numbers."""
        if self.classes is not None:
            return self.classes
        met = {each for label in labels for each in label} if self.task == "multi_label" else set(labels)
        if self.numbered:
            return tuple(range(max(met, default=-1) + 1))
        return tuple(sorted(met, key=lambda value: (isinstance(value, str), value)))

    def as_numbers(self, labels: Sequence[Any], classes: Sequence[ClassLabel] | None) -> Array:
        """Return labels as `TrainingRows.labels` has them.

        Raises:
            LabelsError: rows are labelled by different counts of numbers.
        """
        if self.task == "regression":
            widths = {len(label) for label in labels}
            if len(widths) > 1:
                raise LabelsError(f"rows are labelled by {' and '.join(map(str, sorted(widths)))} numbers, expected as many for every row")
            return np.array(labels, dtype=np.float32).reshape(len(labels), -1)
        assert classes is not None
        place = {name: number for number, name in enumerate(classes)}
        if self.task == "classes":
            return np.array([place[label] for label in labels], dtype=np.int64)
        matrix = np.zeros((len(labels), len(classes)), dtype=np.uint8)
        for row, label in enumerate(labels):
            matrix[row, [place[each] for each in label]] = 1
        return matrix

    def _class(self, raw: Any) -> ClassLabel | None:
        if self.classes is not None and self._names is not None:
            place = self._names.place(raw)
            return None if place is None else self.classes[place]
        if isinstance(raw, float):
            if not raw.is_integer():
                return None
            raw = int(raw)  # a column of integers with nulls, as other tools write it
        if not isinstance(raw, str | int) or raw == "":
            return None
        if self.numbered:
            number = int(raw) if isinstance(raw, int) or raw.isdecimal() else None
            return number if number is not None and number >= 0 else None
        return raw

    def _several(self, raw: Any) -> tuple[ClassLabel, ...] | None:
        """Return a list of classes, or one 0 or 1 (or false or true) for each, where all classes are known by their number."""
        if not isinstance(raw, list | tuple):
            return None
        if raw and self.classes is not None and len(raw) == len(self.classes) and all(_is_flag(value) for value in raw):
            return tuple(name for name, yes in zip(self.classes, raw, strict=True) if yes)
        found = [self._class(value) for value in raw]
        if any(value is None for value in found):
            return None
        order = {name: place for place, name in enumerate(self.classes or ())}
        distinct = {value for value in found if value is not None}
        return tuple(sorted(distinct, key=lambda value: (order.get(str(value), 0), isinstance(value, str), value)))

    def _numbers(self, raw: Any) -> tuple[float, ...] | None:
        values = raw if isinstance(raw, list | tuple) else [raw]
        if not values or not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
            return None
        return tuple(float(value) for value in values)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool) or (isinstance(value, int | float) and value in (0, 1))

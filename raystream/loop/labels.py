"""Labels: what people said of rows, and the values that a label may have.

What people said of rows: labels and states out of files, the newest of each row.

A file may say `state` (labelled, skipped, rejected, draft, deleted), `labelled_at` and more. Drafts count as absent. Of several
answers for a row the one with the newest `labelled_at` wins, those without any being the oldest; different answers of one time are a
conflict, which is kept apart until a newer answer settles it.

What a label may be: a class, several, or a number; and labels as the numbers that trainers take.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raystream.errors import LabelsError, PoolError, did_you_mean
from raystream.figures import number_of
from raystream.labels.annotation import TIMES, time_of
from raystream.lake import LOCAL, Storage
from raystream.loop.trainers.training import ClassLabel
from raystream.model.huggingface import LabelNames
from raystream.pool.columns import plain
from raystream.pool.files import File, NothingThereError, open_parquet, schema_of
from raystream.pool.ids import comparable
from raystream.pool.labelled_ids import LABELLED, STATE, states_of, within
from raystream.pool.scan import check_text, scan
from raystream.pool.tables import list_pool
from raystream.pool.text_files import TextIds, text_format

Array = npt.NDArray[Any]
_NAMED = 5


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
        named = f"one of {', '.join(self.classes[:_NAMED])}{', ..' if len(self.classes) > _NAMED else ''}" if self.classes else ""
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


LABELLED_AT = "labelled_at"
DRAFT, DELETED = "draft", "deleted"
Id = int | str | bytes
_BATCH = 1 << 16
_SHOWN = 3


@dataclass(frozen=True)
class Answer:
    """What is said of a row: its state, and where it is labelled its label, as `LabelValues` gives it."""

    state: str
    label: Any = None


@dataclass(frozen=True, eq=False)
class Answers:
    """What is said of rows, each row's newest answer.

    Attributes:
        by_id: by the pool's ids; conflicts and labels of unknown classes are left out.
        conflicts: ids of which two newest answers differ.
        repeated: answers that say again what another one of the same row says.
        unknown: ids whose label is none that the model can learn, with the label.
        expected: what a label must be, in words.
        outside: answers whose ids are beyond the type of the pool's, and so of no row of it.
        told: further sentences, on what a labelling tool holds.
        alike: two labels that nothing names and that are told apart by their type, spaces or form of Unicode alone.
    """

    by_id: Mapping[Id, Answer] = field(default_factory=dict)
    conflicts: tuple[Id, ...] = ()
    repeated: int = 0
    unknown: tuple[tuple[Id, str], ...] = ()
    expected: str = ""
    outside: int = 0
    told: tuple[str, ...] = ()
    alike: tuple[Any, Any] | None = None

    @property
    def counts(self) -> dict[str, int]:
        """How many rows, and answers, are of no use."""
        return {"conflicts": len(self.conflicts), "repeated": self.repeated, "unknown_labels": len(self.unknown), "outside": self.outside}

    @property
    def warnings(self) -> list[str]:
        """Sentences for the user."""
        found = [*self.told]
        if self.conflicts:
            count, first = len(self.conflicts), ", ".join(map(str, self.conflicts[:_SHOWN]))
            rows = "1 row has" if count == 1 else f"{count:,} rows have"
            found.append(f"{rows} conflicting labels of one time and count as unlabelled until a newer one settles it, first: {first}")
        if self.outside:
            found.append(f"{number_of(self.outside, 'answer')} left alone whose ids are beyond the type of the pool's")
        if self.alike is not None:
            one, other = self.alike
            found.append(f"{one!r} and {other!r} are two classes; where one is meant, write it alike, or name the classes in model.classes")
        if self.unknown:
            count, (id_, label) = len(self.unknown), self.unknown[0]
            rows = "1 row is" if count == 1 else f"{count:,} rows are"
            found.append(
                f"{rows} labelled as what is no label and count as unlabelled, first: {label} of {id_!r}; expected {self.expected}"
            )
        return found


def read_answers(
    uris: Sequence[str],
    id_name: str,
    id_type: pa.DataType,
    label: str,
    values: LabelValues,
    storage: Storage = LOCAL,
    key: str = "loop.oracle",
    table: pa.Table | None = None,
) -> Answers:
    """Read what people said; paths under which nothing lies yet say nothing.

    Args:
        uris: files, folders, globs or tables.
        id_name: the column of ids.
        id_type: of the pool's ids.
        label: the column of labels.
        values: what a label may be.
        storage: how to reach what isn't on this machine.
        key: of the query in which the paths stand, for messages.
        table: what they said by a labelling tool, with the id column, `label`, `state` and `labelled_at`.

    Raises:
        LabelsError: a file can't be read, lacks a column, or holds what is no id, state or time.
    """
    found: list[tuple[Any, float, str, Any]] = []
    try:
        for uri in uris:
            try:
                files, _ = list_pool([uri], key, storage=storage, texts=True)
            except NothingThereError:
                continue
            for file in files:
                found += _rows(file, id_name, id_type, label, key)
    except LabelsError:
        raise
    except PoolError as error:
        raise LabelsError(str(error)) from None
    found += [] if table is None else _of_tool(table, id_name)
    inside = [row for row in found if row[0] is not None]
    return replace(newest(inside, values), outside=len(found) - len(inside))


def newest(found: Sequence[tuple[Id, float, str, Any]], values: LabelValues) -> Answers:
    """Find the newest answer of each row, of rows (id, time, state, label) in any order."""
    times: dict[Id, float] = {}
    answers: dict[Id, list[Answer]] = {}
    repeated, bad = 0, {}
    for id_, time, state, raw in found:
        if state == DRAFT:
            continue
        if time < times.get(id_, -math.inf):
            continue
        if time > times.get(id_, -math.inf):
            answers[id_] = []
        times[id_] = time
        label = values.label_of(raw) if state == LABELLED else None
        answer = Answer(state, label)
        same = answers.setdefault(id_, [])
        if answer in same:
            repeated += 1
            continue
        same.append(answer)
        if state == LABELLED and label is None:
            bad[id_] = "nothing" if raw is None else repr(raw)
        else:
            bad.pop(id_, None)
    conflicts = tuple(sorted(id_ for id_, same in answers.items() if len(same) > 1))
    unknown = tuple((id_, bad[id_]) for id_ in sorted(id_ for id_ in bad if len(answers[id_]) == 1))
    left_out = {*conflicts, *bad}
    by_id = {id_: answers[id_][0] for id_ in sorted(answers.keys() - left_out)}
    alike = None if values.task == "regression" or values.classes else _alike(answer.label for answer in by_id.values())
    return Answers(by_id, conflicts, repeated, unknown, values.expected, alike=alike)


def _alike(labels: Iterable[Any]) -> tuple[Any, Any] | None:
    """Return the first two labels that programs may have written otherwise: 1 and `1`, `cat` and `cat ` with a space."""
    said = {each for label in labels if label is not None for each in (label if isinstance(label, tuple) else (label,))}
    seen: dict[str, Any] = {}
    for each in sorted(said, key=lambda each: (isinstance(each, str), str(each))):
        same = seen.setdefault(unicodedata.normalize("NFKC", str(each)).strip(), each)
        if same is not each:
            return same, each
    return None


def _rows(file: File, id_name: str, id_type: pa.DataType, label: str, key: str) -> list[tuple[Any, float, str, Any]]:
    if text_format(file.path):
        file = File(file.path, file.size, file.version, file.partitions, storage=file.storage, ids=TextIds(id_name, id_type))
    rows: list[tuple[Any, float, str, Any]] = []
    with open_parquet(file) as parquet:
        names = schema_of(file, parquet).names
        for name in (id_name, *([] if label in names or STATE in names else [label])):
            if name not in names:
                raise LabelsError(f"{key}: column {name} is missing in {file.path}{did_you_mean(name, names)}")
        columns = [name for name in dict.fromkeys((id_name, label, STATE, LABELLED_AT)) if name in names]
        for start, batch in scan(file, parquet, columns, _BATCH, what=f"{file.path}"):
            ids = _ids(batch.column(id_name), file, id_name, id_type)
            states = states_of(file, batch, start)
            times = _times(batch.column(LABELLED_AT), file) if LABELLED_AT in columns else [-math.inf] * batch.num_rows
            labels = plain(batch.column(label)).to_pylist() if label in columns else [None] * batch.num_rows
            named = [LABELLED] * batch.num_rows if states is None else states.to_pylist()
            kept = range(batch.num_rows)
            if file.deletes is not None:
                kept = file.deletes.kept(start, batch.num_rows).tolist()
            rows += [(ids[i], times[i], named[i], labels[i]) for i in kept]
    return rows


def _of_tool(table: pa.Table, id_name: str) -> list[tuple[Id, float, str, Any]]:
    """Return rows of a table of labels as `newest` takes them."""
    columns = (table.column(name).to_pylist() for name in (id_name, LABELLED_AT, STATE, "label"))
    return [(id_, -math.inf if time is None else time.timestamp(), state, label) for id_, time, state, label in zip(*columns, strict=True)]


def _ids(column: pa.Array, file: File, name: str, id_type: pa.DataType) -> list[Any]:
    """Return the ids as Python has them; None where the pool's type can't hold them."""
    ids = comparable(column)
    check_text(ids, f"id column {name} of {file.path}")
    if ids.null_count:
        raise LabelsError(f"id column {name} of {file.path} holds nulls; expected an id in every row")
    wanted = comparable(pa.array([], id_type)).type
    if pa.types.is_integer(ids.type) != pa.types.is_integer(wanted) or (not pa.types.is_integer(wanted) and ids.type != wanted):
        raise LabelsError(f"id column {name} of {file.path} is {column.type}, but the pool's is {id_type}; write it as {id_type}")
    return list(within(ids, id_type).to_pylist())


def _times(column: pa.Array, file: File) -> list[float]:
    """Return seconds since the epoch; nothing is older than all."""
    values = plain(column)
    if pa.types.is_timestamp(values.type) and values.type.unit == "ns":
        values = values.cast(pa.timestamp("us", values.type.tz), safe=False)  # Python's times hold no billionths of a second
    return [_time(value, file) for value in values.to_pylist()]


def _time(value: object, file: File) -> float:
    try:
        time = time_of(value)
    except ValueError:
        raise LabelsError(f"column {LABELLED_AT} of {file.path} holds {value!r}, which is no time; expected {TIMES}") from None
    return -math.inf if time is None else time.timestamp()

"""The names of classes, by the query or by the model itself, and labels of a calibration set as their numbers.

A class has its place among the model's outputs, which is what a prediction is; a name, if `model.classes` gives any; and of a model of
scikit-learn a label, the value that it was fitted on. Names that nobody gives are the labels as text.

A query may give classes weights: scores are multiplied by the weight that the model expects of the row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raystream.acquisition.logits import weighted
from raystream.errors import LabelsError, ModelError, QueryError, did_you_mean
from raystream.figures import quoted, several
from raystream.model.huggingface import LabelNames
from raystream.pool import Places
from raystream.query import LOGIT_SCORES, Query
from raystream.query.catalogue import SCORES
from raystream.store.receipts import UnitOutputs
from raystream.store.unit_columns import of_models

ClassLabel = str | int | float | bool
"""What a model itself calls a class."""


def number_of_class(value: ClassLabel, labels: Sequence[ClassLabel], names: Sequence[str] | None = None) -> int | None:
    """Find the place of a class among the model's outputs, by its label, its name, or its label as text; None if it is none.

    Args:
        value: as somebody wrote it.
        labels: the model's own, in the order of its outputs.
        names: those that the query gives instead.
    """
    for known in (labels, names or (), [str(label) for label in labels]):
        # True is 1 to Python; a class that is one of the two is told from a text by its type alone
        found = [place for place, label in enumerate(known) if isinstance(label, str) == isinstance(value, str) and label == value]
        if found:
            return found[0]
    return number_of_class(str(value), labels, names) if not isinstance(value, str) else None


def named_classes(names: list[str] | None, units: Iterable[UnitOutputs]) -> list[str] | None:
    """Return the names of the classes: those that the query gives, else what the model that scored the units calls them.

    Raises:
        ModelError: the query's names are the model's own in another order.
    """
    labels = next((receipt.class_labels for receipt in of_models([units]) if receipt.class_labels is not None), None)
    if labels is None or names is None:
        return names if labels is None else [str(label) for label in labels]
    own = [str(label) for label in labels]
    moved = [name for place, name in enumerate(names) if name in own and own.index(name) != place]
    if moved:
        raise ModelError(
            f"model.classes gives {moved[0]!r} as class {names.index(moved[0])}, but to the model it is class {own.index(moved[0])} of "
            f"{', '.join(own[:5])}{', ..' if len(own) > 5 else ''}; leave model.classes out, or list its names in that order"
        )
    return names


def check_label_type(who: str, type_: pa.DataType, named: bool, own: bool = False) -> None:
    """Refuse a column that holds neither numbers nor names of classes, or names that nothing gives numbers to.

    Args:
        who: the column, for messages.
        type_: its type.
        named: whether the query names the classes.
        own: whether the model itself may have labels for its classes.

    Raises:
        LabelsError: it is of such a type.
    """
    if pa.types.is_integer(type_) or pa.types.is_null(type_):
        return
    if (own or named) and (pa.types.is_boolean(type_) or pa.types.is_floating(type_)):
        return
    if own and (pa.types.is_string(type_) or pa.types.is_large_string(type_)):
        return
    if not (pa.types.is_string(type_) or pa.types.is_large_string(type_)):
        raise LabelsError(f"{who} is {type_}, expected the numbers of classes, 0 .. c-1, or their names")
    if not named:
        raise LabelsError(f"{who} holds names, but model.classes gives none; list them in the order of the model's outputs")


def class_numbers(
    who: str,
    places: Places,
    column: pa.ChunkedArray,
    classes: Sequence[str] | None,
    count: int,
    labels: Sequence[ClassLabel] | None = None,
) -> Tensor:
    """Find int64 (n_rows,), the class of each row.

    Args:
        who: the column, for messages.
        places: (n_rows,) where the rows are, for messages.
        column: (n_rows,) labels as `LabelNames` reads them, without names the indices of classes; or where the model has labels of its
            own, these.
        classes: the names, by index.
        count: of the model's classes.
        labels: what the model itself calls its classes, if it does.

    Raises:
        LabelsError: a label is null or no class.
    """
    missing = np.flatnonzero(column.is_null().to_numpy())
    if len(missing):
        raise LabelsError(f"{who} is null in {_counted(missing, places)}; expected a class in every row, so label it or leave it out")
    if labels is not None:
        numbers = _by_value(column, lambda value: number_of_class(value, labels, classes))
        expected = f"one of the model's classes, {several(labels, 5)}"
    elif classes is not None:
        names = LabelNames(classes)
        numbers = _by_value(column, names.place)
        by_place = pa.types.is_integer(column.type) and not names.numerals
        expected = f"the number of a class, 0 .. {count - 1}" if by_place else "one of model.classes"
    else:
        numbers = column.to_numpy()
        expected = f"the number of a class, 0 .. {count - 1}"
    bad = np.flatnonzero((numbers < 0) | (numbers >= count))
    if len(bad):
        value = column[int(bad[0])].as_py()
        raise LabelsError(f"{who} is {quoted(value)} in {_counted(bad, places)}; expected {expected}")
    return torch.from_numpy(numbers.astype(np.int64))


def _by_value(column: pa.ChunkedArray, place: Callable[[Any], int | None]) -> np.ndarray:
    """Find (n_rows,) the places of labels among the classes, -1 where there is none."""
    encoded = column.combine_chunks().dictionary_encode()
    found = [place(value) for value in encoded.dictionary.to_pylist()]
    numbers = np.array([-1 if number is None else number for number in found], dtype=np.int64)
    places: np.ndarray = encoded.indices.to_numpy(zero_copy_only=False)
    return numbers[places] if len(numbers) else np.full(len(column), -1, dtype=np.int64)


def check_possible(places: Places, samples: Tensor, labels: Tensor) -> None:
    """Refuse labels that the model says can't be: no temperature makes them possible, and their loss is infinite.

    Args:
        places: (n_rows,) where the rows are, for messages.
        samples: (n_rows, n_members, n_classes) logits or log-probabilities.
        labels: int64 (n_rows,).

    Raises:
        LabelsError: every member gives some row's label a probability of 0.
    """
    of_label = samples.gather(2, labels.view(-1, 1, 1).expand(-1, samples.shape[1], 1)).squeeze(2)
    bad = torch.nonzero(of_label.amax(dim=1) == -torch.inf).flatten().numpy()
    if len(bad):
        raise LabelsError(
            f"the model gives the label {int(labels[int(bad[0])])} a probability of exactly 0 in {_counted(bad, places)}, which no "
            "temperature mends; correct the label, or the model's masked classes, or give a number in model.temperature"
        )


def _counted(rows: np.ndarray, places: Places) -> str:
    file, row = places[int(rows[0])]
    first = f"row {row} of {file.path}"
    return first if len(rows) == 1 else f"{len(rows)} rows, first {first}"


Weights = tuple[float, ...] | tuple[tuple[int | str, float], ...]
"""A weight for each class, or pairs of class and weight, the others being 1; a class is an index, or where only the model knows the
names of its classes, one of these."""


def class_weights_of(query: Query, classes: Sequence[str] | None) -> Weights | None:
    """Resolve the class weights that a query asks for, the names of its classes looked up; None if no score is weighted.

    Raises:
        QueryError: a class is unknown, or the number of weights isn't that of the classes.
    """
    given, named_later = query.acquire.class_weights, query.names_classes
    if given is None:
        return None
    if isinstance(given, list):
        if classes is not None and len(given) != len(classes):
            raise QueryError(f"acquire.class_weights holds {len(given)} weights, but model.classes names {len(classes)} classes")
        return tuple(given)
    if classes is None and named_later:
        return tuple(sorted((str(key), weight) for key, weight in given.items()))
    weights: dict[int, float] = {}
    for key, weight in given.items():
        index = _index(key, classes)
        if index in weights:
            raise QueryError(f"acquire.class_weights names class {index} twice, once by its name; give it one weight")
        weights[index] = weight
    return tuple(sorted(weights.items()))


def _index(key: int | str, classes: Sequence[str] | None) -> int:
    names = LabelNames(classes or ())
    place = names.place(key)
    if place is not None:
        return place
    if names.numerals or (isinstance(key, str) and not key.isdigit()):
        near = did_you_mean(str(key), classes or ())
        raise QueryError(f"acquire.class_weights names class {key!r}, which is not one of model.classes{near}")
    index = int(key)
    if index < 0 or (classes is not None and index >= len(classes)):
        most = f"0 to {len(classes) - 1}" if classes is not None else "0 or more"
        raise QueryError(f"acquire.class_weights names class {index}, expected {most}, or a name in model.classes")
    return index


def weigh(
    columns: dict[str, Tensor],
    weights: Weights,
    logits: Tensor,
    together: Tensor | None,
    temperature: float,
    labels: Sequence[ClassLabel] | None,
) -> dict[str, Tensor]:
    """Multiply the scores of these columns by the weight that the model expects of the row's class.

    Args:
        columns: each (n,).
        weights: of the query.
        logits: (n, c), before temperature.
        together: (n, c) log-probabilities, but for a constant, of what several members say together, by which their scores are weighted.
        temperature: of the softmax.
        labels: what the model itself calls its classes, if it does.

    Raises:
        QueryError: weights that don't fit the model's classes, or a score that can't be weighted.
    """
    of_class = weights_by_class(weights, logits.shape[1], labels)
    found = {}
    for name, scores in columns.items():
        if name in ("prediction", "confidence") or (name in SCORES and SCORES[name].signed):  # which isn't asked for
            found[name] = scores
            continue
        by_members = together is not None and name not in LOGIT_SCORES
        by, divisor = (together, 1.0) if together is not None and by_members else (logits, temperature)
        try:
            result = weighted(scores, by.to(scores.device), of_class.to(scores.device), divisor)
        except QueryError as error:
            raise QueryError(f"acquire.class_weights can't weight {name}: {error}") from None
        found[name] = result.to(scores.dtype)
    return found


def weights_by_class(given: Weights, classes: int, labels: Sequence[ClassLabel] | None = None) -> Tensor:
    """Return (classes,) float64, the weight of each class.

    Raises:
        QueryError: weights that don't fit the model's classes.
    """
    pairs = [pair for pair in given if isinstance(pair, tuple)]
    if not pairs:
        if len(given) != classes:
            raise QueryError(f"acquire.class_weights holds {len(given)} weights, but the model has {classes} classes; give one for each")
        return torch.tensor(given, dtype=torch.float64)
    weights = torch.ones(classes, dtype=torch.float64)
    for key, weight in pairs:
        index = key if isinstance(key, int) else number_of_class(key, labels or range(classes))
        if index is None:
            known = [str(label) for label in labels or range(classes)]
            raise QueryError(f"acquire.class_weights names class {key!r}, which is none of the model's{did_you_mean(str(key), known)}")
        if index >= classes:
            raise QueryError(f"acquire.class_weights names class {index}, but the model has {classes}, 0 to {classes - 1}")
        weights[index] = weight
    return weights

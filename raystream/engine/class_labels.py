"""Labels of a calibration set as numbers of classes; what is none of the model's classes is refused by file and row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from raystream.errors import LabelsError
from raystream.pool import Places


def check_label_type(who: str, type_: pa.DataType, named: bool) -> None:
    """Refuse a column that holds neither numbers nor names of classes, or names that nothing gives numbers to.

    Args:
        who: the column, for messages.
        type_: its type.
        named: whether the query names the classes.

    Raises:
        LabelsError: it is of such a type.
    """
    if pa.types.is_integer(type_) or pa.types.is_null(type_):
        return
    if not (pa.types.is_string(type_) or pa.types.is_large_string(type_)):
        raise LabelsError(f"{who} is {type_}, expected the numbers of classes, 0 .. c-1, or their names")
    if not named:
        raise LabelsError(f"{who} holds names, but model.classes gives none; list them in the order of the model's outputs")


def class_numbers(who: str, places: Places, column: pa.ChunkedArray, classes: Sequence[str] | None, count: int) -> Tensor:
    """int64 (n_rows,), the class of each row.

    Args:
        who: the column, for messages.
        places: (n_rows,) where the rows are, for messages.
        column: (n_rows,) integers, which are indices, or strings, which are names.
        classes: the names, by index.
        count: of the model's classes.

    Raises:
        LabelsError: a label is null or no class.
    """
    missing = np.flatnonzero(column.is_null().to_numpy())
    if len(missing):
        raise LabelsError(f"{who} is null in {_counted(missing, places)}; expected a class in every row, so label it or leave it out")
    if pa.types.is_integer(column.type):
        numbers = column.to_numpy()
        expected = f"the number of a class, 0 .. {count - 1}"
    else:
        numbers = pc.fill_null(pc.index_in(column, value_set=pa.array(classes, column.type)), -1).to_numpy()
        expected = "one of model.classes"
    bad = np.flatnonzero((numbers < 0) | (numbers >= count))
    if len(bad):
        value = column[int(bad[0])].as_py()
        raise LabelsError(f"{who} is {value!r} in {_counted(bad, places)}; expected {expected}")
    return torch.from_numpy(numbers.astype(np.int64))


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

"""What a model's outputs on labelled rows are worth, by the metrics of the catalogue.

The figures are scikit-learn's of the same names (`map` is `average_precision_score`, `nll` its `log_loss`), which needs not be installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from raystream.acquisition.calibration import expected_calibration_error
from raystream.errors import DataError, QueryError, did_you_mean
from raystream.loop.pool_rows import Share
from raystream.query.catalogue.scores import METRICS

Array = npt.NDArray[Any]
_LEAST = float(np.finfo(np.float64).eps)
"""The probability that one of 0 counts as: a class that the model has never seen makes `nll` large, not infinite."""
_YES = 0.5


def measure(metrics: Sequence[str], task: str, truth: Array, output: Array, classes: Sequence[Any] | None = None) -> dict[str, float]:
    """Compute the metrics of a model's outputs, by the columns of a history: `recall` gives one a class, `recall_<class>`.

    Args:
        metrics: their names.
        task: `classes`, `multi_label` or `regression`.
        truth: of `classes` (n,) labels; of `multi_label` (n, labels) 0 or 1; of `regression` (n,) or (n, outputs) numbers.
        output: of `classes` (n, c) probabilities; of `multi_label` (n, labels) probabilities; of `regression` numbers as in `truth`.
        classes: (c,) what the columns of `output` stand for; left out, 0 .. c-1. A row of another class is a row that the model has wrong.

    Raises:
        DataError: there are no rows, shapes don't fit, or outputs are not finite.
        QueryError: a metric that isn't one of the task's.
    """
    judged = _judged(task, truth, output, classes)
    found: dict[str, float] = {}
    for name in metrics:
        check_metric(name, task)
        value = _FUNCTIONS[task][name](*judged[:2])
        if METRICS[name].of_each_class:
            found |= {f"{name}_{judged[2][number]}": share.value for number, share in value.items()}
        else:
            found[name] = value.value if isinstance(value, Share) else float(value)
    return found


def shares(metrics: Sequence[str], task: str, truth: Array, output: Array, classes: Sequence[Any] | None = None) -> dict[str, Share]:
    """Return those of `measure` that are so many rows of so many, as such, by the same names."""
    judged = _judged(task, truth, output, classes)
    found: dict[str, Share] = {}
    for name in metrics:
        check_metric(name, task)
        if METRICS[name].share:
            value = _FUNCTIONS[task][name](*judged[:2])
            each = value.items() if METRICS[name].of_each_class else [(None, value)]
            found |= {name if number is None else f"{name}_{judged[2][number]}": share for number, share in each}
    return found


def check_metric(name: str, task: str) -> None:
    """Raise QueryError where the metric isn't one of the task's."""
    known = [metric for metric, entry in METRICS.items() if task in entry.tasks]
    if name not in known:
        raise QueryError(f"metric {name!r} is none of model.task {task}{did_you_mean(name, known)}")


def _judged(task: str, truth: Array, output: Array, classes: Sequence[Any] | None) -> tuple[Array, Array, list[Any]]:
    """Return truth and output as numbers, with what numbers of classes stand for."""
    truth, output = np.asarray(truth), np.asarray(output, dtype=np.float64)
    if not len(truth) or len(truth) != len(output):
        raise DataError(f"there are {len(truth)} labels for {len(output)} outputs, expected as many, and at least one")
    if not np.isfinite(output).all():
        bad = int(np.flatnonzero(~np.isfinite(output.reshape(len(output), -1)).all(axis=1))[0])
        raise DataError(f"the model gives {output[bad].tolist()} for row {bad}, expected finite numbers")
    if task != "classes":
        if truth.shape != output.shape:
            raise DataError(f"labels have shape {truth.shape}, but the model's outputs {output.shape}, expected one shape")
        return truth.astype(np.float64), output, []
    named = list(range(output.shape[1])) if classes is None else list(classes)
    if output.ndim != 2 or truth.ndim != 1 or output.shape[1] != len(named):
        raise DataError(f"labels have shape {truth.shape}, outputs {output.shape}, expected (n,) and (n, {len(named)}), a column a class")
    number = {label: i for i, label in enumerate(named)}
    for label in truth.tolist():
        if label not in number:
            number[label] = len(number)
    wide = np.concatenate([output, np.zeros((len(output), len(number) - len(named)))], axis=1)
    return np.array([number[label] for label in truth.tolist()], dtype=np.int64), wide, list(number)


def accuracy(truth: Array, probabilities: Array) -> Share:
    """Count how many rows have their own class as the likeliest; ties to the lower one."""
    return Share(int((probabilities.argmax(axis=1) == truth).sum()), len(truth))


def recall(truth: Array, probabilities: Array) -> dict[int, Share]:
    """Count of each class that rows have how many of its rows are found."""
    right = probabilities.argmax(axis=1) == truth
    return {int(number): Share(int(right[truth == number].sum()), int((truth == number).sum())) for number in np.unique(truth)}


def nll(truth: Array, probabilities: Array) -> float:
    """Compute the mean of -log p of the true class."""
    return float(-np.log(np.clip(probabilities[np.arange(len(truth)), truth], _LEAST, 1)).mean())


def ece(truth: Array, probabilities: Array) -> float:
    """See `raystream.acquisition.expected_calibration_error`."""
    return expected_calibration_error(probabilities, truth)


def macro_f1(truth: Array, probabilities: Array) -> float:
    """Compute the mean F1 of the classes that are a row's label or prediction."""
    predicted = probabilities.argmax(axis=1)
    return float(np.mean([_f1(truth == number, predicted == number) for number in np.union1d(truth, predicted)]))


def macro_f1_of_labels(truth: Array, probabilities: Array) -> float:
    """Compute the mean F1 of the labels, each said to be there from 0.5 on; 0 of one that is never there nor said to be."""
    return float(np.mean([_f1(truth[:, label] > 0, probabilities[:, label] >= _YES) for label in range(truth.shape[1])]))


def micro_f1(truth: Array, probabilities: Array) -> float:
    """Compute F1 of all labels of all rows together."""
    return _f1(truth > 0, probabilities >= _YES)


def mean_average_precision(truth: Array, probabilities: Array) -> float:
    """Compute the mean over labels that any row has of the mean precision at each of their rows, in descending order of probability."""
    found = [_average_precision(truth[:, label] > 0, probabilities[:, label]) for label in range(truth.shape[1]) if truth[:, label].any()]
    return float(np.mean(found)) if found else 0.0


def rmse(truth: Array, output: Array) -> float:
    """Compute the root of the mean squared error, over rows and outputs."""
    return float(np.sqrt(np.square(truth - output).mean()))


def mae(truth: Array, output: Array) -> float:
    """Compute the mean absolute error, over rows and outputs."""
    return float(np.abs(truth - output).mean())


def r2(truth: Array, output: Array) -> float:
    """Compute 1 - squared error / variance, mean over outputs; of an output that never varies 1 if there is no error, else 0."""
    error = np.square(truth - output).reshape(len(truth), -1).sum(axis=0)
    spread = np.square(truth - truth.mean(axis=0)).reshape(len(truth), -1).sum(axis=0)
    return float(np.where(spread > 0, 1 - error / np.where(spread > 0, spread, 1), np.where(error > 0, 0.0, 1.0)).mean())


def _f1(there: Array, said: Array) -> float:
    """Compute 2 TP / (2 TP + FP + FN); 0 where nothing is there nor said to be."""
    total = int(there.sum()) + int(said.sum())
    return 2 * int((there & said).sum()) / total if total else 0.0


def _average_precision(there: Array, score: Array) -> float:
    """Compute the average precision of one label; rows of one score count as one step."""
    order = np.argsort(-score, kind="stable")
    hits, ends = np.cumsum(there[order]), np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    found = hits[ends]
    return float((np.diff(found, prepend=0) * found / (ends + 1)).sum() / found[-1])


_FUNCTIONS: Mapping[str, Mapping[str, Callable[[Array, Array], Any]]] = {
    "classes": {"accuracy": accuracy, "ece": ece, "macro_f1": macro_f1, "nll": nll, "recall": recall},
    "multi_label": {"macro_f1": macro_f1_of_labels, "map": mean_average_precision, "micro_f1": micro_f1},
    "regression": {"mae": mae, "r2": r2, "rmse": rmse},
}

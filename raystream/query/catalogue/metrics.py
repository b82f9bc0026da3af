"""What a model is judged by on labelled rows that it was not trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_CLASSES, _LABELS, _NUMBERS = frozenset({"classes"}), frozenset({"multi_label"}), frozenset({"regression"})


@dataclass(frozen=True)
class MetricEntry:
    """One metric; its code is the function of its name in `raystream.loop.metrics`.

    Attributes:
        does: what it measures, in a line.
        tasks: what `model.task` may be.
        lower_is_better: whether a better model has less of it.
        share: whether it is so many rows of so many, for which there is a binomial interval.
        of_each_class: whether it is one number a class, `<metric>_<class>`.
        percent: whether it lies between 0 and 1, the more the better, so that people read it in percent.
    """

    does: str
    tasks: frozenset[str]
    lower_is_better: bool = False
    share: bool = False
    of_each_class: bool = False
    percent: bool = False


METRICS: Mapping[str, MetricEntry] = {
    "accuracy": MetricEntry("the share of rows whose likeliest class is theirs", _CLASSES, share=True, percent=True),
    "ece": MetricEntry("how far confidence is from accuracy, mean over rows, in 15 bins", _CLASSES, lower_is_better=True),
    "macro_f1": MetricEntry("F1 of each class or label, their mean", _CLASSES | _LABELS, percent=True),
    "mae": MetricEntry("the mean absolute error", _NUMBERS, lower_is_better=True),
    "map": MetricEntry("the average precision of each label, their mean", _LABELS, percent=True),
    "micro_f1": MetricEntry("F1 over all labels of all rows", _LABELS, percent=True),
    "nll": MetricEntry("the mean negative logarithm of the true class's probability", _CLASSES, lower_is_better=True),
    "r2": MetricEntry("the share of the variance that is explained", _NUMBERS),
    "recall": MetricEntry("of each class, the share of its rows that are found", _CLASSES, share=True, of_each_class=True, percent=True),
    "rmse": MetricEntry("the root of the mean squared error", _NUMBERS, lower_is_better=True),
}
"""What `loop.metrics` may name."""

DEFAULT_METRICS: Mapping[str, str] = {"classes": "accuracy", "multi_label": "micro_f1", "regression": "rmse"}
"""The one metric of a task where none is named; tasks without one can't be judged yet."""


def metric_of(column: str) -> MetricEntry:
    """Return the entry of a metric's column: `accuracy`, or `recall_cat`, which is one of `recall`."""
    if column in METRICS:
        return METRICS[column]
    name = next(name for name, entry in METRICS.items() if entry.of_each_class and column.startswith(f"{name}_"))
    return METRICS[name]

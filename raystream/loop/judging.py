"""What a round's model is worth, and what the stopping rules make of the rounds so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raystream.loop.control import Share
from raystream.loop.evaluation import EvaluationRows
from raystream.loop.journal import Asked, Judged, Trained
from raystream.loop.label_values import LabelValues
from raystream.loop.metrics import measure, shares
from raystream.loop.stopping import Round, StoppingRule, make_rule
from raystream.loop.trainers.training import Array, Fitted
from raystream.query.catalogue.rules import RULES
from raystream.query.loop import Loop


def judge(fitted: Fitted, rows: EvaluationRows, values: LabelValues, metrics: Sequence[str]) -> tuple[dict[str, float], dict[str, Share]]:
    """Compute the metrics of a model on labelled rows, and those that are shares of them."""
    output = fitted.predict(rows.inputs).values
    truth, output, classes = _aligned(values, rows.labels, output, fitted)
    return (
        measure(metrics, values.task, truth, output, classes),
        shares(metrics, values.task, truth, output, classes),
    )


def right(fitted: Fitted, inputs: tuple[Array, ...], labels: Sequence[Any]) -> Share:
    """Count how many rows a model gives their own class."""
    predicted = classes_of(fitted, inputs)
    return Share(sum(a == b for a, b in zip(predicted, labels, strict=True)), len(labels))


def classes_of(fitted: Fitted, inputs: tuple[Array, ...]) -> list[Any]:
    """Find the likeliest class of each row, by what it is called."""
    values = fitted.predict(inputs).values
    assert fitted.classes is not None
    return [fitted.classes[number] for number in values.argmax(axis=1)]


def uncertainty(values: Array) -> float:
    """Compute the mean entropy of rows over the logarithm of the number of classes."""
    logs = np.log(np.clip(values, np.finfo(float).tiny, 1))
    return float(-(values * logs).sum(axis=1).mean() / math.log(values.shape[1]))


def _aligned(values: LabelValues, labels: Sequence[Any], output: Array, fitted: Fitted) -> tuple[Array, Array, list[Any] | None]:
    """Return truth and output in one order of classes."""
    if values.task == "classes":
        truth = np.empty(len(labels), dtype=object)
        truth[:] = labels
        return truth, output, list(fitted.classes or range(output.shape[1]))
    if values.task == "regression":
        return values.as_numbers(labels, None), output, None
    names = list(fitted.classes) if fitted.classes is not None else list(range(output.shape[1]))
    names = names[: output.shape[1]] + list(range(len(names), output.shape[1]))
    more = sorted({each for label in labels for each in label} - set(names), key=str)
    wide = np.concatenate([output, np.zeros((len(output), len(more)))], axis=1)
    return values.as_numbers(labels, [*names, *more]), wide, None


def rules_of(loop: Loop) -> tuple[dict[str, StoppingRule], set[str]]:
    """Return every rule that can be looked at, with its parameters, and the names of those that were asked for."""
    asked = loop.loop.stop.named if loop.loop.stop is not None else {}
    limits: dict[str, dict[str, Any]] = {}
    if loop.loop.budget is not None:
        limits["budget"] = {"labels": loop.loop.budget}
    if loop.loop.rounds is not None:
        limits["rounds"] = {"rounds": loop.loop.rounds}
    rules: dict[str, StoppingRule] = {}
    for name, entry in RULES.items():
        if entry.tasks and loop.task not in entry.tasks:
            continue
        args = {**limits.get(name, {}), **asked.get(name, {})}
        needed = [key for key, arg in entry.args.items() if arg.default is None and key not in args and key != "metric"]
        if needed and name not in asked:
            continue  # nobody said by what number
        if name == "plateau" and name not in asked and loop.metrics[0] == "recall":
            continue  # one number a class
        rules[name] = make_rule(name, args, loop.metrics)
    return rules, set(asked)


def as_round(trained: Trained, judged: Judged) -> Round:
    """Return what rules look at, out of a round's records."""
    return Round(
        labels=judged.labels,
        left=judged.left,
        predictions=None if trained.predictions is None else _objects(trained.predictions),
        uncertainty=trained.uncertainty,
        metrics=judged.metrics,
        shares={name: Share(*pair) for name, pair in judged.shares.items()},
        control=None if judged.control is None else Share(*judged.control),
        prequential=None if judged.prequential is None else Share(*judged.prequential),
    )


def history_row(asked: Asked | None, trained: Trained, judged: Judged, metrics: Sequence[str], held: Mapping[str, bool]) -> dict[str, Any]:
    """Return a round as a row of `history.parquet`."""
    control = None if judged.control is None or not judged.control[1] else Share(*judged.control)
    low, high = (None, None) if control is None else control.interval()
    measured = {name: judged.metrics.get(name) for name in metrics if name != "recall"} | judged.metrics
    return {
        "round": judged.round,
        "labels": judged.labels,
        "strategy": "given" if asked is None else asked.strategy,
        "query": "" if asked is None else asked.query,
        **measured,
        "cost": judged.cost,
        "control_accuracy": None if control is None else control.value,
        "control_low": low,
        "control_high": high,
        "seconds_query": 0.0 if asked is None else asked.seconds,
        "seconds_train": trained.seconds,
        **{f"would_stop_{name}": holds for name, holds in held.items()},
    }


def _objects(values: Sequence[Any]) -> Array:
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found if any(isinstance(value, str) for value in values) and not all(isinstance(v, str) for v in values) else np.array(values)

"""A round judged, and a loop told: metrics, stopping rules, the facts of the report.

What a round's model is worth, and what the stopping rules make of the rounds so far.

The facts of a loop's report, out of its records.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from raystream.loop.evaluation import EvaluationRows
from raystream.loop.journal import Asked, Judged, Trained
from raystream.loop.labels import LabelValues
from raystream.loop.ledger import Ledger
from raystream.loop.metrics import measure, shares
from raystream.loop.pool_rows import Share
from raystream.loop.stopping import Round, StoppingRule, kappa, make_rule
from raystream.loop.trainers.training import Array, Fitted
from raystream.query.catalogue.rules import RULES
from raystream.query.loop import Loop
from raystream.report.loop_page import LoopFacts, RoundFacts, write_loop_report


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


def write_report(
    ledger: Ledger,
    rounds: Sequence[tuple[Asked | None, Trained, Judged]],
    summary: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    rules: Mapping[str, Any],
    asked_rules: Collection[str],
    beside: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
    """Write the report of a loop; its path or URI.

    Args:
        ledger: what the loop knows.
        rounds: the records of the rounds that are judged.
        summary: what `raystream loop --json` prints.
        history: rows of `history.parquet`.
        rules: those that are looked at.
        asked_rules: the names of those that may stop it.
        beside: histories of other loops by their names.
    """
    found: list[RoundFacts] = []
    before: list[Any] | None = None
    for asked, trained, judged in rounds:
        found.append(_facts(ledger, asked, trained, judged, before))
        before = trained.predictions or before
    last = ledger.last_asked()
    waiting = ledger.journal.asked(last) if last else None
    if waiting is not None and all(facts.round != last for facts in found):
        found.append(RoundFacts(last, waiting.query, waiting.why, ledger.batch(waiting), waiting.controls))
    return write_loop_report(
        LoopFacts(
            store=ledger.journal.store,
            folder=ledger.journal.folder,
            summary=summary,
            history=history,
            rounds=found,
            metrics=metrics_of(history, ledger.loop.metrics),
            rules={name: name in asked_rules for name in rules},
            spec=ledger.loop.to_yaml(),
            judged_by="the control rows" if ledger.loop.loop.evaluate is None else "the rows of loop.evaluate",
            beside=beside,
        )
    )


def metrics_of(history: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> list[str]:
    """Return the columns of a history that hold these metrics, `recall_<class>` for each class."""
    columns = dict.fromkeys(name for row in history for name in row)
    return [name for name in columns if any(name == metric or (metric == "recall" and name.startswith("recall_")) for metric in metrics)]


def _facts(ledger: Ledger, asked: Asked | None, trained: Trained, judged: Judged, before: list[Any] | None) -> RoundFacts:
    now = trained.predictions
    return RoundFacts(
        round=judged.round,
        query="" if asked is None else asked.query,
        why="" if asked is None else asked.why,
        batch=None if asked is None else ledger.batch(asked),
        controls=0 if asked is None else asked.controls,
        classes=judged.classes,
        predicted=Counter(map(str, now or ())),
        kappa=None if now is None or before is None else kappa(np.array(before), np.array(now)),
    )

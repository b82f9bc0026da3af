"""When a loop may stop: rules on successive models, on what they are judged by, and on what has been spent.

Each rule is a pure function of the history, so that what it would have done is known of rounds that are long over. The rules and their
parameters are declared in `raystream.query.catalogue.rules`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from operator import add
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from raystream.errors import QueryError, did_you_mean
from raystream.loop.pool_rows import Share
from raystream.query.catalogue.rules import RULES
from raystream.query.catalogue.scores import METRICS, metric_of

TARGET_Z = 3.02
"""With 1.96, 4.5% to 7.4% of loops that are exactly at the target would stop within 20 looks."""
_PREQUENTIAL_ROUNDS = 3
_CONTROL_METRIC = "accuracy"


@dataclass(frozen=True, eq=False)
class Round:
    """What rules look at of one closed round.

    Attributes:
        labels: how many there are in all, control rows included.
        left: rows that could still be asked for.
        predictions: (n,) the classes that this round's model gives the rows of one sample of the pool, the same in every round; None
            where there is no model, or none with classes.
        uncertainty: the mean entropy of these rows over the logarithm of the number of classes; None as above.
        metrics: of the round's model on the evaluation set, by column.
        shares: those of them that are so many rows of so many.
        control: what the round's model gets right of all control rows labelled so far; None without any.
        prequential: what the *previous* round's model got right of the control rows that this round labelled; None without any.
    """

    labels: int
    left: int
    predictions: npt.NDArray[Any] | None = None
    uncertainty: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    shares: Mapping[str, Share] = field(default_factory=dict)
    control: Share | None = None
    prequential: Share | None = None

    def metric(self, column: str) -> float | None:
        """Read the metric on the evaluation set, else on the control rows, which tell accuracy alone."""
        if column in self.metrics:
            return self.metrics[column]
        return self.control.value if column == _CONTROL_METRIC and self.control is not None and self.control.of else None


class StoppingRule(Protocol):
    """One rule."""

    def holds(self, history: Sequence[Round]) -> bool:
        """Tell whether it would stop after the last of these rounds."""


@dataclass(frozen=True)
class Kappa:
    """Stabilising predictions (Bloodgood and Vijay-Shanker, 2009): the mean of the last `window` kappas of successive models is high."""

    threshold: float = 0.99
    window: int = 3

    def holds(self, history: Sequence[Round]) -> bool:
        """See `StoppingRule`; the 4th model is the first after which the default may stop."""
        models = _models(history)[-self.window - 1 :]
        if len(models) <= self.window:
            return False
        return float(np.mean([kappa(a, b) for a, b in pairwise(models)])) >= self.threshold


@dataclass(frozen=True)
class ClassificationChange:
    """The share of the sample whose prediction changed from the previous model to this one is at most `threshold`."""

    threshold: float = 0.0

    def holds(self, history: Sequence[Round]) -> bool:
        """See `StoppingRule`."""
        models = _models(history)[-2:]
        return len(models) == 2 and float(np.mean(models[0] != models[1])) <= self.threshold


@dataclass(frozen=True)
class OverallUncertainty:
    """The sample's mean entropy, as a share of the largest possible, is below `threshold`."""

    threshold: float = 0.05

    def holds(self, history: Sequence[Round]) -> bool:
        """See `StoppingRule`."""
        now = history[-1].uncertainty if history else None
        return now is not None and now < self.threshold


@dataclass(frozen=True)
class Plateau:
    """The metric gained less than `least` over the last `patience` rounds; a fall is no gain."""

    metric: str
    patience: int = 3
    least: float = 0.002

    def holds(self, history: Sequence[Round]) -> bool:
        """See `StoppingRule`."""
        if len(history) <= self.patience:
            return False
        before, now = history[-1 - self.patience].metric(self.metric), history[-1].metric(self.metric)
        if before is None or now is None:
            return False
        return (before - now if metric_of(self.metric).lower_is_better else now - before) < self.least


@dataclass(frozen=True)
class Target:
    """The lower end of Wilson's interval of the metric, with z = 3.02, is at least `value`.

    Its rows are those of the evaluation set; without one all control rows so far under the latest model; without these, the control
    rows of the last three rounds, each under the model before.
    """

    metric: str
    value: float

    def holds(self, history: Sequence[Round]) -> bool:
        """See `StoppingRule`."""
        share = self.share(history)
        return share is not None and share.of > 0 and share.interval(TARGET_Z)[0] >= self.value

    def share(self, history: Sequence[Round]) -> Share | None:
        """Return what is compared with the target; None where there is nothing to go by."""
        if not history:
            return None
        now = history[-1]
        if self.metric in now.shares or self.metric != _CONTROL_METRIC:
            return now.shares.get(self.metric)
        if now.control is not None:
            return now.control
        found = [each.prequential for each in history[-_PREQUENTIAL_ROUNDS:] if each.prequential is not None]
        return reduce(add, found) if found else None


@dataclass(frozen=True)
class Budget:
    """`labels` rows are labelled in all."""

    labels: int

    def holds(self, history: Sequence[Round]) -> bool:
        """See `StoppingRule`."""
        return bool(history) and history[-1].labels >= self.labels


@dataclass(frozen=True)
class Rounds:
    """`rounds` rounds are closed."""

    rounds: int

    def holds(self, history: Sequence[Round]) -> bool:
        """See `StoppingRule`."""
        return len(history) >= self.rounds


@dataclass(frozen=True)
class Exhausted:
    """Nothing eligible is left."""

    def holds(self, history: Sequence[Round]) -> bool:
        """See `StoppingRule`."""
        return bool(history) and history[-1].left == 0


def make_rule(name: str, args: Mapping[str, Any], metrics: Sequence[str]) -> StoppingRule:
    """Make a rule by its name.

    Args:
        name: of the catalogue.
        args: its parameters; those left out have their defaults.
        metrics: the loop's, of which the first is looked at unless the parameters name another.

    Raises:
        QueryError: an unknown rule or parameter, a value that it doesn't take, or a metric that is no share where one is needed.
    """
    if name not in RULES:
        raise QueryError(f"loop.stop.rules: {name!r} is no rule{did_you_mean(name, RULES)}")
    entry = RULES[name]
    for key, value in args.items():
        if key not in entry.args:
            raise QueryError(f"loop.stop.rules: {name} has no parameter {key}{did_you_mean(key, entry.args)}")
        if not entry.args[key].accepts(value):
            raise QueryError(f"loop.stop.rules: {name} has {key} {value!r}, expected {entry.args[key].expected}")
    given = dict(args)
    if "metric" in entry.args:
        given.setdefault("metric", metrics[0])
        _check_metric(name, given["metric"], metrics)
    missing = [key for key, arg in entry.args.items() if key not in given and arg.default is None]
    if missing:
        raise QueryError(f"loop.stop.rules: {name} needs {missing[0]}, {entry.args[missing[0]].expected}")
    rule: StoppingRule = entry.make(**given)
    if isinstance(rule, Target) and not metric_of(rule.metric).share:
        known = ", ".join(f"{metric}_<class>" if of.of_each_class else metric for metric, of in METRICS.items() if of.share)
        raise QueryError(f"loop.stop.rules: target looks at {rule.metric}, which is no share of rows and has no interval; expected {known}")
    return rule


def _check_metric(name: str, metric: str, metrics: Sequence[str]) -> None:
    """See that the loop measures the metric as one number."""
    of_each = [known for known in metrics if METRICS[known].of_each_class]
    if metric in of_each:
        raise QueryError(f"loop.stop.rules: {name} looks at {metric}, which is one number a class; expected {metric}_<class>")
    if metric not in metrics and not any(metric.startswith(f"{known}_") for known in of_each):
        raise QueryError(f"loop.stop.rules: {name} looks at {metric!r}, which isn't measured{did_you_mean(metric, metrics)}")


def first_stop(rule: StoppingRule, history: Sequence[Round]) -> int | None:
    """Return the round, counted from 1, after which the rule would have stopped; None if it hasn't yet."""
    return next((closed for closed in range(1, len(history) + 1) if rule.holds(history[:closed])), None)


def stops(rules: Mapping[str, StoppingRule], history: Sequence[Round], when: Literal["any", "all"]) -> list[str]:
    """Name the rules that stop the loop after the last round: those that hold, if any does, or all if all must; else none."""
    held = [name for name, rule in rules.items() if rule.holds(history)]
    return held if held and (when == "any" or len(held) == len(rules)) else []


def kappa(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """Compute Cohen's kappa of two models' predictions for the same rows: 1 if and only if they are equal, 0 of chance.

    Args:
        first: (n,) classes, of any type.
        second: (n,), of the same.
    """
    if np.array_equal(first, second):
        return 1.0
    _, numbers = np.unique(np.concatenate([first, second]), return_inverse=True)
    a, b = numbers[: len(first)], numbers[len(first) :]
    share = np.bincount(a, minlength=numbers.max() + 1) / len(a), np.bincount(b, minlength=numbers.max() + 1) / len(b)
    expected = float(share[0] @ share[1])
    return (float(np.mean(a == b)) - expected) / (1 - expected)


def _models(history: Sequence[Round]) -> list[npt.NDArray[Any]]:
    """Return the predictions of successive models, none where the last round has no model."""
    if not history or history[-1].predictions is None:
        return []
    return [each.predictions for each in history if each.predictions is not None]

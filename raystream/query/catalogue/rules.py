"""When a loop may stop: the rules, with their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raystream.query.catalogue.arguments import Arg, count, fraction, load, positive, share, text


@dataclass(frozen=True)
class RuleEntry:
    """One rule.

    Attributes:
        does: when it stops, in a line.
        needs: what it looks at beyond labels and rounds, in words; empty where there is nothing.
        code: the import path of its class, whose instances are asked `holds(history)`.
        tasks: what `model.task` may be; empty for all.
        args: its parameters.
    """

    does: str
    code: str
    needs: str = ""
    tasks: frozenset[str] = frozenset()
    args: Mapping[str, Arg] = field(default_factory=dict)

    @property
    def make(self) -> Any:
        """The class, loaded."""
        return load(self.code)


_CLASSES = frozenset({"classes"})
_METRIC = text("the metric that it looks at", "the first of `metrics`")

RULES: Mapping[str, RuleEntry] = {
    "budget": RuleEntry(
        "so many rows are labelled in all", "raystream.loop.stopping:Budget", args={"labels": count(None, "in all", "`loop.budget`")}
    ),
    "classification_change": RuleEntry(
        "no more than a share of the sample changed its prediction",
        "raystream.loop.stopping:ClassificationChange",
        "a sample of the pool",
        _CLASSES,
        {"threshold": share(0.0, "at most this share")},
    ),
    "exhausted": RuleEntry("nothing eligible is left", "raystream.loop.stopping:Exhausted"),
    "kappa": RuleEntry(
        "successive models agree, by Cohen's kappa of their predictions",
        "raystream.loop.stopping:Kappa",
        "a sample of the pool",
        _CLASSES,
        {"threshold": share(0.99, "the mean kappa is at least this"), "window": count(3, "so many of the last kappas")},
    ),
    "overall_uncertainty": RuleEntry(
        "the mean entropy of the sample is low, as a share of the largest possible",
        "raystream.loop.stopping:OverallUncertainty",
        "a sample of the pool",
        _CLASSES,
        {"threshold": fraction(0.05, "below this share")},
    ),
    "plateau": RuleEntry(
        "the metric has hardly gained",
        "raystream.loop.stopping:Plateau",
        "`evaluate` or `control`",
        args={
            "metric": _METRIC,
            "patience": count(3, "over so many rounds"),
            "least": positive(0.002, "a gain below this is none"),
        },
    ),
    "rounds": RuleEntry(
        "so many rounds are closed", "raystream.loop.stopping:Rounds", args={"rounds": count(None, "in all", "`loop.rounds`")}
    ),
    "target": RuleEntry(
        "the metric's lower bound has reached the target, by Wilson's interval with z = 3.02",
        "raystream.loop.stopping:Target",
        "`evaluate` or `control`",
        _CLASSES,
        {"metric": _METRIC, "value": fraction(None, "the target", "**needed**")},
    ),
}
"""What `loop.stop.rules` may name."""

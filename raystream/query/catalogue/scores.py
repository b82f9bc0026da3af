"""Scores, metrics and trainers, each declared once.

The acquisition scores.

What a model is judged by on labelled rows that it was not trained on.

What trains the models of a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any, Literal

from raystream.query.catalogue.kinds import Arg, count, flag, load

Source = Literal["logits", "members", "last_layer", "parameters", "targets"]

_CLASSES = frozenset({"classes"})
_ELEMENTS = _CLASSES | {"segmentation", "tokens"}
_LABELS = _ELEMENTS | {"multi_label"}

_BIAS = flag(None, "the last layer has a bias", "the layer is looked at")


@dataclass(frozen=True)
class ScoreEntry:
    """One score.

    Attributes:
        does: what it measures, in a line.
        source: what it is computed from: the `logits` of one opinion of a row; the log-probabilities of several `members` or dropout
            samples; the gradient of the `last_layer`; the gradients of all `parameters`; the members' opinions of a row and of `targets`.
        code: the import path of its function. From logits and members it takes a block's parts (`raystream.acquisition.logits.Parts`,
            `raystream.acquisition.members.MemberParts`), from the last layer logits, the lengths of its inputs, bias and temperature,
            and is all that the pass over the pool needs. The function for arrays is called by the score's name and stands in
            `raystream.acquisition`.
        tasks: what `model.task` may be.
        of_label: the import path of its function for one label, from the absolute logit; for scores from logits with multi_label.
        of_numbers: the import path of its function from the numbers of members; for scores with regression.
        parts: which parts of a block of members it needs beyond those that all have.
        signed: it may be negative, so that it can't be weighted by class.
        doubt: one less it is the model's confidence, which a stream's managers compare with thresholds.
        keys: the keys of `acquire` that it uses beyond those of all scores.
        args: its own parameters, in `acquire.args`.
    """

    does: str
    source: Source
    code: str
    tasks: frozenset[str] = _CLASSES
    of_label: str = ""
    of_numbers: str = ""
    parts: tuple[str, ...] = ()
    signed: bool = False
    doubt: bool = False
    keys: frozenset[str] = frozenset()
    args: Mapping[str, Arg] = field(default_factory=dict)

    @property
    def needs(self) -> str:
        """The condition that a query must meet for it, in words."""
        return _NEEDS[self.source]


_NEEDS: Mapping[Source, str] = {
    "logits": "logits or probabilities",
    "members": "several opinions of a row: a committee or mc_samples",
    "last_layer": "logits, and the input of the last Linear as embedding",
    "parameters": "a network of kind torch",
    "targets": "several opinions of a row, and target rows",
}

SCORES: Mapping[str, ScoreEntry] = {
    "entropy": ScoreEntry(
        "-sum p log p, in nats: how spread the probabilities are over all classes",
        "logits",
        "raystream.acquisition.logits:entropy_of",
        _LABELS,
        of_label="raystream.acquisition.logits:entropy_of_label",
    ),
    "least_confidence": ScoreEntry(
        "1 - p1: how far the likeliest class is from certain",
        "logits",
        "raystream.acquisition.logits:least_confidence_of",
        _LABELS,
        of_label="raystream.acquisition.logits:least_confidence_of_label",
        doubt=True,
    ),
    "margin": ScoreEntry(
        "1 - (p1 - p2): how near the two likeliest classes are; the default",
        "logits",
        "raystream.acquisition.logits:margin_of",
        _LABELS,
        of_label="raystream.acquisition.logits:margin_of_label",
    ),
    "ratio": ScoreEntry("p2 / p1, of the two likeliest classes", "logits", "raystream.acquisition.logits:ratio_of", _ELEMENTS),
    "energy": ScoreEntry(
        "-T logsumexp(z / T): high far from what the model was trained on; may be negative",
        "logits",
        "raystream.acquisition.logits:energy_of",
        _ELEMENTS,
        signed=True,
    ),
    "bald": ScoreEntry(
        "H(mean p) - mean H(p): how much the members disagree, however unsure each of them is",
        "members",
        "raystream.acquisition.members:bald_of",
        _LABELS,
        parts=("within",),
    ),
    "consensus_entropy": ScoreEntry(
        "the entropy of the members' mean", "members", "raystream.acquisition.members:consensus_entropy_of", _LABELS
    ),
    "vote_entropy": ScoreEntry("the entropy of the members' votes", "members", "raystream.acquisition.members:vote_entropy_of", _LABELS),
    "variation_ratio": ScoreEntry(
        "the part of the members that is outvoted", "members", "raystream.acquisition.members:variation_ratio_of", _LABELS
    ),
    "mean_std": ScoreEntry(
        "the standard deviation of a class's probability over members, mean over classes",
        "members",
        "raystream.acquisition.members:mean_std_of",
        _LABELS,
        parts=("variances",),
    ),
    "variance": ScoreEntry(
        "the variance over members, summed over classes; of regression over outputs",
        "members",
        "raystream.acquisition.members:variance_of",
        _LABELS | {"regression"},
        of_numbers="raystream.acquisition.members:regression_variance",
        parts=("variances",),
    ),
    "egl": ScoreEntry(
        "the expected length of the last layer's gradient: how far a step on the row would move it",
        "last_layer",
        "raystream.acquisition.gradients:expected_length",
        args={"bias": _BIAS},
    ),
    "badge_norm": ScoreEntry(
        "the length of the last layer's gradient if the likeliest class is right",
        "last_layer",
        "raystream.acquisition.gradients:top_length",
        args={"bias": _BIAS},
    ),
    "egl_parameters": ScoreEntry(
        "the expected length of the gradient of all parameters; a backward pass a class",
        "parameters",
        "raystream.acquisition.gradients:egl_parameters",
        args={"egl_classes": count(10, "how many of the likeliest classes count")},
    ),
    "epig": ScoreEntry(
        "what a row's label would tell about the labels of target rows",
        "targets",
        "raystream.acquisition.epig:epig",
        keys=frozenset({"targets"}),
        args={"targets": count(1000, "target rows, at most")},
    ),
}
"""What `acquire.score` may be, but for functions that users write. Those of one source come in the order of the stored columns."""


def _of(source: Source) -> tuple[str, ...]:
    return tuple(name for name, entry in SCORES.items() if entry.source == source)


LOGIT_SCORES = _of("logits")
"""The scores that need nothing but logits; every scored unit holds all of them."""

MEMBER_SCORES = _of("members")
"""The scores that need several opinions of a row: MC dropout samples or the members of a committee; stored whenever there are any."""

GRADIENT_SCORES = _of("last_layer")
"""The scores that need the input of the layer that gives the logits; all are stored where a query asks for one."""

PARAMETER_SCORES = _of("parameters")
"""The scores that need the gradients of a network's parameters."""

SAMPLE_SCORES = (*MEMBER_SCORES, *_of("targets"))
"""The scores that compare several opinions of a row."""


def scores_of_task(task: str, source: Source) -> tuple[str, ...]:
    """List the scores of one source that a task has."""
    return tuple(name for name, entry in SCORES.items() if entry.source == source and task in entry.tasks)


@cache
def formulas(source: Source) -> Mapping[str, Callable[..., Any]]:
    """Load the functions of the scores of one source, by name."""
    return MappingProxyType({name: load(SCORES[name].code) for name in _of(source)})


@cache
def label_formulas() -> Mapping[str, Callable[..., Any]]:
    """Load the functions for one label, by name."""
    return MappingProxyType({name: load(entry.of_label) for name, entry in SCORES.items() if entry.of_label})


@cache
def number_formulas() -> Mapping[str, Callable[..., Any]]:
    """Load the functions for numbers of members, by name."""
    return MappingProxyType({name: load(entry.of_numbers) for name, entry in SCORES.items() if entry.of_numbers})


_OF_CLASSES, _OF_LABELS, _OF_NUMBERS = frozenset({"classes"}), frozenset({"multi_label"}), frozenset({"regression"})


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
    "accuracy": MetricEntry("the share of rows whose likeliest class is theirs", _OF_CLASSES, share=True, percent=True),
    "ece": MetricEntry("how far confidence is from accuracy, mean over rows, in 15 bins", _OF_CLASSES, lower_is_better=True),
    "macro_f1": MetricEntry("F1 of each class or label, their mean", _OF_CLASSES | _OF_LABELS, percent=True),
    "mae": MetricEntry("the mean absolute error", _OF_NUMBERS, lower_is_better=True),
    "map": MetricEntry("the average precision of each label, their mean", _OF_LABELS, percent=True),
    "micro_f1": MetricEntry("F1 over all labels of all rows", _OF_LABELS, percent=True),
    "nll": MetricEntry("the mean negative logarithm of the true class's probability", _OF_CLASSES, lower_is_better=True),
    "r2": MetricEntry("the share of the variance that is explained", _OF_NUMBERS),
    "recall": MetricEntry("of each class, the share of its rows that are found", _OF_CLASSES, share=True, of_each_class=True, percent=True),
    "rmse": MetricEntry("the root of the mean squared error", _OF_NUMBERS, lower_is_better=True),
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


REGRESSOR = "raystream.loop.trainers.sklearn_trainer:SklearnRegressor"
"""What loads a regressor of scikit-learn, which has one opinion of a row, whatever it is made of."""
REGRESSORS_KEYS = ("embedding", "trust")
"""Keys of `model` that are its arguments, since models of its kind don't have them."""


@dataclass(frozen=True)
class TrainerEntry:
    """One trainer.

    Attributes:
        does: what it trains, in a line.
        code: the import path of what makes it of `loop.train` and the query's section `model`.
        made: where it makes the model itself, the keys of `model` that load it, by `model.task`; else the query names a network.
        numbered: whether classes without names are the numbers of the network's outputs.
    """

    does: str
    code: str
    made: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    numbered: bool = False

    @property
    def make(self) -> Any:
        """The code, loaded."""
        return load(self.code)


_CLASSIFIER = {"kind": "sklearn", "source": "trained.skops"}
TRAINERS: Mapping[str, TrainerEntry] = {
    "torch": TrainerEntry("the network of `model.source`", "raystream.loop.trainers.torch_trainer:torch_trainer", numbered=True),
    "sklearn": TrainerEntry(
        "an estimator of scikit-learn, or a pipeline",
        "raystream.loop.trainers.sklearn_trainer:sklearn_trainer",
        made={"classes": _CLASSIFIER, "multi_label": _CLASSIFIER, "regression": {"kind": "python", "source": REGRESSOR}},
    ),
}
"""What `loop.trainer` may name, beside functions of the user's own."""

USERS_TRAINER = TrainerEntry("what a function of the user's own does", "", made=TRAINERS["sklearn"].made)
"""A function by its import path; it makes an estimator of scikit-learn where the query names no model."""


def trainer_entry(name: str) -> TrainerEntry:
    """Return the trainer of that name, or what holds for a function."""
    return TRAINERS.get(name, USERS_TRAINER)

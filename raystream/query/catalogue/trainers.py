"""What trains the models of a loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raystream.query.catalogue.arguments import load

REGRESSOR = "raystream.loop.trainers.regressor:SklearnRegressor"
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

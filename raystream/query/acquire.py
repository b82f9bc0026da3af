"""The `acquire` section: what rows are scored by, and which models give the scores that are lengths of gradients."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from raystream.errors import did_you_mean
from raystream.query.catalogue import GRADIENT_SCORES, PARAMETER_SCORES, SCORES, kind_of, meant_score
from raystream.query.model import Model
from raystream.query.part import NoTruth, Number, Part, Positive

if TYPE_CHECKING:
    Score = str
else:
    Score = Literal[tuple(SCORES)]

DEFAULT_REDUCE, DEFAULT_TOP = "mean", 0.1
"""How scores of a row's many outputs become one unless the query says otherwise, and the share that `top_mean` takes."""

_ARGS = {name: arg for entry in SCORES.values() for name, arg in entry.args.items()}
"""The parameters in `acquire.args`; scores that share one mean the same by it."""

SELECTION_COLUMNS = (
    "rank", "score", "gain", "distance", "represents", "why", "turn", "probability", "prediction", "prediction_name", "confidence", "path",
    "row",
)  # fmt: skip
"""The columns of a selection under names of our own: all but the id, further scores and kept columns."""
HIDDEN_COLUMNS = frozenset({"turn", "probability", "path", "row"})
"""Those that are for programs: pages and texts don't show them."""
_TAKEN = frozenset({"id", *SELECTION_COLUMNS})


def _is_path(value: str) -> str:
    module, separator, attribute = value.partition(":")
    if not (separator and all(part.isidentifier() for part in (*module.split("."), *attribute.split(".")))):
        raise PydanticCustomError("import_path", "an import path module:function")
    return value


ImportPath = Annotated[str, AfterValidator(_is_path)]
"""An acquisition function of the user's own."""


class Acquire(Part):
    """The `acquire` section: how rows are scored; higher always means: label sooner."""

    section = ("acquire",)

    score: Score | ImportPath = "margin"
    """What ranks: a score by name, or the import path of a function of your own."""
    also: list[Score | ImportPath] = []
    """Further scores as columns of the selection, from the same pass."""
    mc_samples: Positive | None = None
    """MC dropout: so many fixed sub-networks, at least 2. A committee needs none."""
    reduce: str | None = None
    """How a row's pixels, tokens or labels become one score: `mean`, `max`, `sum`, or `top_mean` of pixels and tokens. Left out,
    `mean`."""
    top: Annotated[float, Field(gt=0, le=1), NoTruth] | None = None
    """The share of elements that `top_mean` takes. Left out, 0.1."""
    class_weights: dict[int | str, Number] | list[Number] | None = None
    """Each score times the weight that the model expects of the row's class: by name or index, the others 1, or a list."""
    targets: list[str] = []
    """For `epig`: rows that the model should become good at. Left out, a sample of the pool."""
    args: dict[str, Any] = {}
    """The scores' own parameters."""

    @field_validator("score", "also", mode="before")
    @classmethod
    def _are_known(cls, value: object, info: ValidationInfo) -> object:
        for name in value if isinstance(value, list | tuple) else [value]:
            if isinstance(name, str) and ":" not in name and name not in SCORES:
                raise ValueError(f"acquire.{info.field_name} is {name!r}, which is no score{meant_score(name)}")
        return [value] if info.field_name == "also" and isinstance(value, str) else value

    @field_validator("targets", mode="before")
    @classmethod
    def _one_path_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _scores_use_their_keys(self) -> Acquire:
        asked = self.asked
        for name, value in self.args.items():
            if name not in _ARGS:
                raise ValueError(f"acquire.args.{name} is not a parameter of any score{did_you_mean(name, _ARGS)}")
            if not _ARGS[name].accepts(value):
                raise ValueError(f"acquire.args.{name} is {value!r}, expected {_ARGS[name].expected}")
            users = [score for score, entry in SCORES.items() if name in entry.args]
            if not set(users) & set(asked):
                raise ValueError(f"acquire.args.{name} is used by {' and '.join(users)} only, which isn't asked for; remove it")
        users = [score for score, entry in SCORES.items() if "targets" in entry.keys]
        if self.targets and not set(users) & set(asked):
            raise ValueError(f"acquire.targets are used by score {' and '.join(users)} only, which isn't asked for; remove them")
        self._check_names()
        self._check_weights()
        return self

    def _check_names(self) -> None:
        """See that users' functions differ by their own names, which their columns have."""
        paths = {path for path in self.asked if ":" in path}
        known = {*SCORES, *_TAKEN}
        seen: dict[str, str] = {}
        for path in sorted(paths):
            name = column_of(path)
            if name in known:
                raise ValueError(f"acquire asks for {path}, but {name} is the name of a column of raystream's; rename the function")
            if name in seen:
                raise ValueError(f"acquire asks for {seen[name]} and {path}, which would both be the column {name}; rename one of them")
            seen[name] = path

    def _check_weights(self) -> None:
        weights = self.class_weights
        if weights is None:
            return
        values = list(weights.values()) if isinstance(weights, dict) else weights
        if not values or not all(math.isfinite(value) and value >= 0 for value in values):
            raise ValueError(f"acquire.class_weights is {weights}, expected finite numbers >= 0, at least one")
        signed = next((score for score in self.asked if score in SCORES and SCORES[score].signed), None)
        if signed is not None:
            raise ValueError(f"acquire.class_weights can't weight {signed}, which may be negative; take another score or remove them")

    def arg(self, name: str) -> Any:
        """Return a score's parameter: as given, else its default."""
        return self.args.get(name, _ARGS[name].default)

    @property
    def asked(self) -> tuple[str, ...]:
        """Every score that the query names, each once."""
        return tuple(dict.fromkeys((self.score, *self.also)))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of those scores."""
        return tuple(map(column_of, self.asked))

    @property
    def column(self) -> str:
        """The column of the score that ranks."""
        return column_of(self.score)


def column_of(score: str) -> str:
    """Name the column that a score is stored under: of a user's function, the function's own name."""
    return score.rpartition(":")[2].rpartition(".")[2]


def knows_last_layer(model: Model) -> bool:
    """Tell whether the input of the layer that gives the logits is known: the last Linear's, or the column that the user says it is."""
    if model.members is not None or isinstance(model.weights, list):
        return False
    kind = kind_of(model.kind)
    return model.embedding is None if kind.last_layer else kind.carried and model.embedding is not None


def check_gradients(acquire: Acquire, model: Model) -> None:
    """Refuse scores from gradients where the model has none that can be taken.

    Raises:
        ValueError: with the reason, and what to use.
    """
    committee, kind = model.members is not None or isinstance(model.weights, list), kind_of(model.kind)
    for score in acquire.asked:
        if score in GRADIENT_SCORES and not knows_last_layer(model):
            if committee:
                reason = "but a committee has several last layers; take bald or consensus_entropy"
            elif kind.last_layer:
                reason = f"but model.embedding names {model.embedding}; leave it out, so that the embedding is that input"
            elif kind.carried:
                reason = "but no column holds it; name the one that does in model.embedding"
            else:
                reason = f"which is not known of kind {model.kind}; use kind torch, or columns that hold the logits and that input"
            raise ValueError(f"acquire asks for {score}, which needs the input of the last Linear layer, {reason}")
        if score in PARAMETER_SCORES and (committee or not kind.parameters):
            if committee:
                reason = "but a committee has several networks; give one of them, or take bald"
            elif kind.carried:
                reason = "but kind columns has no network; name the input of the last layer in model.embedding and take egl"
            else:
                reason = f"which kind {model.kind} doesn't give; use kind torch"
            raise ValueError(f"acquire asks for {score}, which needs the gradients of a network's parameters, {reason}")

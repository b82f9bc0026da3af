"""What a query chooses by: the score, the strategy, the constraints.

The `select` section: how the batch is chosen among the scored rows.

The `acquire` section: what rows are scored by, and which models give the scores that are lengths of gradients.
"""

from __future__ import annotations

import math
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from raystream.errors import did_you_mean
from raystream.query.catalogue import (
    AUTO,
    GRADIENT_SCORES,
    OPTIONAL_KEYS,
    PARAMETER_SCORES,
    SCORES,
    TERMS,
    TRAITS,
    Traits,
    kind_of,
    meant_score,
    meant_strategy,
    traits,
)
from raystream.query.model import Model
from raystream.query.part import Id, NoTruth, Number, Part, Positive, Share


class Quota(Part):
    """A cap, a floor or both for the rows of each group of a column, or of one group."""

    section = ("select", "quotas")

    by: str
    """A column of the pool, or `prediction`."""
    value: bool | int | float | str | None = None
    """The one group that it is about; left out, each group."""
    max: Annotated[int, Field(ge=0, strict=True)] | None = None
    """Rows at most."""
    min: Positive | None = None
    """Rows at least."""

    @field_validator("value", mode="before")
    @classmethod
    def _a_date_is_text(cls, value: object) -> object:
        return str(value) if isinstance(value, date) else value

    @model_validator(mode="after")
    def _says_something(self) -> Quota:
        if self.max is None and self.min is None:
            raise ValueError(f"select.quotas: the one by {self.by} has neither max nor min; give one")
        if self.max is not None and self.min is not None and self.min > self.max:
            raise ValueError(f"select.quotas: the one by {self.by} has min {self.min} above max {self.max}; lower min")
        return self


class Cost(Part):
    """The cost of each row, and what the batch may cost in all."""

    section = ("select", "cost")

    column: str
    """The pool's column that holds them."""
    budget: Annotated[float, Field(gt=0), NoTruth]
    """What all chosen rows may cost together."""


class Select(Part):
    """The `select` section: how the batch is chosen among the scored rows."""

    section = ("select",)

    strategy: str = "k_means"
    """A strategy by name, or the import path of a function of your own; `auto`: by a written rule, which the result states."""
    budget: Positive
    """How many rows to choose."""
    candidates: Positive | Literal["all"] | None = None
    """How many rows, the best by score, are chosen among, or `all`. Left out, 10 x budget or all, as the strategy has it."""
    metric: Literal["euclidean", "cosine"] = "euclidean"
    """Of distances between embeddings."""
    weight: Annotated[float, Field(ge=0), NoTruth] = 0.0
    """`core_set` maximises score^weight x distance."""
    mix: Share = 0.5
    """`diverse` maximises (1 - mix) x score + mix x distance, each divided by its largest value at the start."""
    terms: dict[str, Annotated[float, Field(ge=0), NoTruth]] = {}
    """The objectives that `combine` multiplies, each to the power of its strength: `score`, `distance`, `typicality`, `similarity`.
    Left out, score and distance, and similarity where `similar_to` is given."""
    similar_to: list[Id] = []
    """Ids of rows that the batch should be like."""
    near_duplicates: Annotated[float, Field(gt=0, le=1), NoTruth] | Literal[False] | None = None
    """Of rows with this cosine or more only one is chosen. Left out, rows of equal embeddings alone are passed over; `false`: neither."""
    quotas: list[Quota] = []
    """Caps and floors for the rows of each group."""
    must_include: list[Id] = []
    """Ids that are in the batch whatever their score."""
    exclude: list[Id] = []
    """Ids that are never in it."""
    cost: Cost | None = None
    """What each row costs, and what the batch may cost in all."""
    random_share: Share = 0.0
    """This part of the batch is drawn at random and marked, first and from all rows that may be labelled, so that you can measure what
    selection buys you."""
    memory: Positive | Literal["auto"] = "auto"
    """Bytes of embeddings that one process may hold while choosing; `auto`: 2 GiB."""
    args: dict[str, Any] = {}
    """The strategy's own parameters."""

    @field_validator("strategy")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if ":" not in value and value not in (*TRAITS, AUTO):
            raise ValueError(f"select.strategy is {value!r}, which is no strategy{meant_strategy(value)}")
        return value

    @field_validator("near_duplicates", mode="before")
    @classmethod
    def _is_a_cosine_or_false(cls, value: object) -> object:
        if value is True or (value == 0 and value is not False):
            raise ValueError(f"select.near_duplicates is {value!r}, expected a cosine above 0, at most 1, or false")
        return value

    @field_validator("terms")
    @classmethod
    def _are_known(cls, value: dict[str, float]) -> dict[str, float]:
        for name in value:
            if name not in TERMS:
                raise ValueError(f"select.terms.{name} is unknown{did_you_mean(name, TERMS)}")
        return value

    @model_validator(mode="after")
    def _strategy_uses_its_keys(self) -> Select:
        own = self.traits
        for key in sorted(self.model_fields_set & OPTIONAL_KEYS - own.keys):
            users = ", ".join(name for name, of in TRAITS.items() if key in of.keys)
            raise ValueError(f"select.{key} is not used by strategy {self.strategy} (only by {users}); remove it")
        if ":" not in self.strategy:
            for name, value in self.args.items():
                if name not in own.args:
                    raise ValueError(f"select.args.{name} is not a parameter of {self.strategy}{did_you_mean(name, own.args)}")
                if not own.args[name].accepts(value):
                    raise ValueError(f"select.args.{name} is {value!r}; expected {own.args[name].expected}")
        if self.strategy == AUTO and self.candidates is not None:
            raise ValueError("select.candidates is not used by strategy auto, which leaves it to what it picks; remove it")
        if isinstance(self.candidates, int) and self.candidates < self.budget:
            raise ValueError(f"select.candidates is {self.candidates}, below select.budget {self.budget}; raise it or leave it out")
        if len(self.must_include) > self.budget:
            raise ValueError(
                f"select.must_include names {len(self.must_include)} rows, above select.budget {self.budget}; raise the budget"
            )
        both = [row for row in self.must_include if row in set(self.exclude)]
        if both:
            raise ValueError(f"select.must_include and select.exclude both name {both[0]!r}; remove it from one of them")
        return self

    @property
    def traits(self) -> Traits:
        """The traits of the strategy: what it needs and takes."""
        return traits(self.strategy)

    @property
    def needs_score(self) -> bool:
        """True if rows can't be chosen without an acquisition score."""
        return self.traits.needs_score(self.terms) or self.weight > 0 or self.candidate_limit is not None

    @property
    def candidate_limit(self) -> int | None:
        """The number of rows that survive the pre-filter by score; None means all."""
        if self.candidates is None:
            return 10 * self.budget if self.traits.tenfold else None
        return None if self.candidates == "all" else self.candidates

    @property
    def needs_embedding(self) -> bool:
        """True if the choice can't be made without embeddings."""
        return self.traits.embedding or bool(self.near_duplicates)

    @property
    def passes_over_repeats(self) -> bool:
        """True if rows with the same embedding as a labelled or chosen one are passed over."""
        return self.needs_embedding and self.near_duplicates is not False


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

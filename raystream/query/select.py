"""The `select` section: how the batch is chosen among the scored rows."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from raystream.errors import did_you_mean
from raystream.query.catalogue import AUTO, OPTIONAL_KEYS, TERMS, TRAITS, Traits, meant_strategy, traits
from raystream.query.part import Id, NoTruth, Part, Positive, Share


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

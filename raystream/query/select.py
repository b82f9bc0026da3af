"""How the batch is chosen among the scored rows."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from raystream.errors import did_you_mean
from raystream.query.part import Id, Part, Positive
from raystream.strategies import OPTIONAL_KEYS, TERMS, TRAITS, Traits, traits


class Quota(Part):
    """A cap, a floor or both for the rows of each group of a column, or of one group."""

    section = ("select", "quotas")

    by: str
    value: bool | int | float | str | None = None
    max: Annotated[int, Field(ge=0, strict=True)] | None = None
    min: Positive | None = None

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
    """What each row costs, and what the batch may cost in all."""

    section = ("select", "cost")

    column: str
    budget: Annotated[float, Field(gt=0)]


class Select(Part):
    """How the batch is chosen among the scored rows."""

    section = ("select",)

    strategy: str = "k_means"
    budget: Positive
    candidates: Positive | Literal["all"] | None = None
    metric: Literal["euclidean", "cosine"] = "euclidean"
    weight: Annotated[float, Field(ge=0)] = 0.0
    mix: Annotated[float, Field(ge=0, le=1)] = 0.5
    terms: dict[str, Annotated[float, Field(ge=0)]] = {}
    similar_to: list[Id] = []
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | Literal[False] | None = None
    quotas: list[Quota] = []
    must_include: list[Id] = []
    exclude: list[Id] = []
    cost: Cost | None = None
    random_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    memory: Positive | Literal["auto"] = "auto"
    args: dict[str, Any] = {}

    @field_validator("strategy")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if ":" not in value and value not in TRAITS:
            raise ValueError(
                f"select.strategy is {value!r}, expected {', '.join(sorted(TRAITS))} or an import path module:function"
                f"{did_you_mean(value, TRAITS)}"
            )
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
        """What the strategy needs and takes."""
        return traits(self.strategy)

    @property
    def needs_score(self) -> bool:
        """Whether rows can't be chosen without an acquisition score."""
        by_terms = self.strategy == "combine" and (not self.terms or self.terms.get("score", 0) > 0)
        return self.traits.score or self.weight > 0 or self.candidate_limit is not None or by_terms

    @property
    def candidate_limit(self) -> int | None:
        """How many rows survive the pre-filter by score; None means all."""
        if self.candidates is None:
            return 10 * self.budget if self.traits.tenfold else None
        return None if self.candidates == "all" else self.candidates

    @property
    def needs_embedding(self) -> bool:
        """Whether the choice can't be made without embeddings."""
        return self.traits.embedding or bool(self.near_duplicates)

    @property
    def passes_over_repeats(self) -> bool:
        """Whether rows with the same embedding as a labelled or chosen one are passed over."""
        return self.needs_embedding and self.near_duplicates is not False

"""A query as data: what to read, what to score it with, how to choose, where to keep the results.

Written in YAML or Python, validated strictly, and never touching the disk beyond the YAML file itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from raystream.errors import QueryError, did_you_mean
from raystream.kinds import KINDS, kind_of
from raystream.kinds import OPTIONAL_KEYS as MODEL_KEYS
from raystream.spec import read_spec
from raystream.strategies import OPTIONAL_KEYS, TERMS, TRAITS, Traits, traits

LOGIT_SCORES = ("entropy", "least_confidence", "margin", "ratio", "energy")
"""The scores that need nothing but logits; every scored unit holds all of them."""

Score = Literal["entropy", "least_confidence", "margin", "ratio", "energy"]
Positive = Annotated[int, Field(gt=0, strict=True)]
FilterValue = bool | int | float | str | list[bool | int | float | str]
FilterTerm = tuple[str, Literal["==", "=", "!=", "<", "<=", ">", ">=", "in", "not in"], FilterValue]

Id = int | str


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise QueryError(_explain(error, type(self))) from None


class Pool(_Part):
    """The unlabelled rows."""

    uri: str | list[str]
    id: str | None = None
    inputs: list[str] = []
    filters: list[FilterTerm] | list[list[FilterTerm]] = []
    labelled: list[str] = []
    keep: list[str] = []

    @property
    def uris(self) -> list[str]:
        """The paths as a list, however they were written."""
        return [self.uri] if isinstance(self.uri, str) else self.uri

    @field_validator("labelled", mode="before")
    @classmethod
    def _one_path_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @property
    def disjunction(self) -> list[list[FilterTerm]]:
        """The filters as a list of conjunctions (pyarrow's DNF); empty when there are none."""
        terms = self.filters
        if not terms:
            return []
        if isinstance(terms[0], tuple):
            return [[t for t in terms if isinstance(t, tuple)]]
        return [t for t in terms if isinstance(t, list)]


class Model(_Part):
    """What turns rows into logits and embeddings."""

    kind: str = "torch"
    source: str | None = None
    args: dict[str, Any] = {}
    weights: str | Annotated[list[str], Field(min_length=2)] | None = None
    members: Annotated[list[Model], Field(min_length=2)] | None = None
    embedding: str | None = None
    embedding_dtype: Literal["float16", "float32"] = "float16"
    logits: str | None = None
    probabilities: str | None = None
    classes: list[str] | str | None = None
    batch_size: Positive = 1024
    device: str = "auto"
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    version: str | None = None
    trust: Literal["safe", "pickle"] = "safe"

    @model_validator(mode="after")
    def _kind_has_its_keys(self) -> Model:
        if self.members is not None:
            self._members_fit_together(self.members)
            return self
        kind = kind_of(self.kind)
        if "source" in kind.keys and self.kind in KINDS and not self.source:
            raise ValueError(f"model.source is missing; give {kind.source}")
        for key in sorted(self.model_fields_set & MODEL_KEYS - kind.keys):
            if key in ("logits", "probabilities"):
                raise ValueError(f"model.{key} is used by kind: columns only; remove it or set model.kind to columns")
            users = ", ".join(name for name, of in KINDS.items() if key in of.keys)
            raise ValueError(f"model.{key} is not used by kind: {self.kind} (only by {users}); remove it")
        if self.kind == "columns":
            if self.logits and self.probabilities:
                raise ValueError("model.logits and model.probabilities are both given; name one of them")
            if not (self.logits or self.probabilities or self.embedding):
                raise ValueError("kind: columns names no column; give model.logits, model.probabilities or model.embedding")
        return self

    def _members_fit_together(self, members: list[Model]) -> None:
        own = self.model_fields_set & {"kind", "source", "args", "weights", "version", "logits", "probabilities"}
        if own:
            raise ValueError(f"model.{min(own)} and model.members are both given; move it into the members")
        shared = {"batch_size", "classes", "device", "embedding", "embedding_dtype", "precision", "temperature"}
        for position, member in enumerate(members):
            if member.kind == "columns":
                raise ValueError(f"model.members.{position} is of kind columns, which runs on no rows; remove it")
            if member.members is not None or isinstance(member.weights, list):
                raise ValueError(f"model.members.{position} is a committee itself; list its members")
            wrong = member.model_fields_set & shared
            if wrong:
                raise ValueError(f"model.members.{position}.{min(wrong)} is the same for all members; move it to model.{min(wrong)}")


class Acquire(_Part):
    """How rows are scored; higher always means: label sooner."""

    score: Score = "margin"
    also: list[Score] = []
    mc_samples: Positive | None = None


class Quota(_Part):
    """A cap, a floor or both for the rows of each group of a column, or of one group."""

    by: str
    value: bool | int | str | None = None
    max: Annotated[int, Field(ge=0, strict=True)] | None = None
    min: Positive | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Quota:
        if self.max is None and self.min is None:
            raise ValueError(f"select.quotas: the one by {self.by} has neither max nor min; give one")
        if self.max is not None and self.min is not None and self.min > self.max:
            raise ValueError(f"select.quotas: the one by {self.by} has min {self.min} above max {self.max}; lower min")
        return self


class Cost(_Part):
    """What each row costs, and what the batch may cost in all."""

    column: str
    budget: Annotated[float, Field(gt=0)]


class Select(_Part):
    """How the batch is chosen among the scored rows."""

    strategy: str = "k_means"
    budget: Positive
    candidates: Positive | Literal["all"] | None = None
    metric: Literal["euclidean", "cosine"] = "euclidean"
    weight: Annotated[float, Field(ge=0)] = 0.0
    mix: Annotated[float, Field(ge=0, le=1)] = 0.5
    terms: dict[str, Annotated[float, Field(ge=0)]] = {}
    similar_to: list[Id] = []
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = None
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
        return self.traits.embedding or self.near_duplicates is not None


class Cluster(_Part):
    """Where the workers run; has no influence on what is chosen."""

    address: str = "auto"
    workers: Positive | Literal["auto"] = "auto"
    cpus_per_worker: Positive = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"


class Store(_Part):
    """Where scored units and queries are kept."""

    uri: str = "runs"
    query: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")] | None = None


class Query(_Part):
    """One question: which rows of this pool should be labelled next?"""

    pool: Pool
    model: Model
    acquire: Acquire = Acquire()
    select: Select
    cluster: Cluster = Cluster()
    store: Store = Store()
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0
    on_error: Literal["fail", "skip"] = "fail"

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Query:
        if self.model.kind != "columns" and not self.pool.inputs:
            raise ValueError("pool.inputs is missing; name the columns that the model sees")
        if self.model.kind == "columns" and self.pool.inputs:
            raise ValueError("pool.inputs is not used by model.kind columns; name columns in model.logits, probabilities, embedding")
        if self.needs_score and not self.gives_scores:
            raise ValueError(
                f"select.strategy {self.select.strategy} with candidates {self.select.candidate_limit or 'all'} needs a score, "
                "but the model gives an embedding alone; give model.logits or model.probabilities, or set select.candidates to all "
                "with core_set or random"
            )
        if not self.gives_scores and self.model_fields_set & {"acquire"}:
            raise ValueError("acquire asks for scores, but the model gives an embedding alone; remove it or give model.logits")
        if self.model.classes is not None and not self.gives_scores:
            raise ValueError("model.classes names predictions, but the model gives an embedding alone; remove it or give model.logits")
        if any(quota.by == "prediction" for quota in self.select.quotas) and not self.gives_scores:
            raise ValueError("select.quotas go by prediction, but the model gives an embedding alone; give model.logits or another column")
        if self.select.traits.probabilities and not self.gives_scores:
            raise ValueError(f"select.strategy {self.select.strategy} needs class probabilities, but the model gives an embedding alone")
        if self.needs_embedding and self.model.kind == "columns" and not self.model.embedding:
            raise ValueError(f"select.strategy {self.select.strategy} needs an embedding; name its column in model.embedding")
        return self

    @property
    def gives_scores(self) -> bool:
        """Whether the model yields logits or probabilities at all."""
        model = self.model
        return bool(model.logits or model.probabilities) if model.kind == "columns" else kind_of(model.kind).scores

    @property
    def needs_score(self) -> bool:
        """Whether rows can't be chosen without an acquisition score."""
        return self.select.needs_score

    @property
    def needs_embedding(self) -> bool:
        """Whether the pass over the pool yields embeddings: chosen by them, asked for by name, or all that the model gives."""
        return self.select.needs_embedding or self.model.embedding is not None or not self.gives_scores

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Query:
        """Read a query from a YAML file.

        Args:
            path: the file.
            overrides: `section.key=value` strings that replace what the file says; values are YAML.

        Raises:
            QueryError: the file is missing or isn't YAML, a key is unknown, or a value is wrong.
        """
        data = read_spec(path, overrides)
        return cls(**{str(key): value for key, value in data.items()})

    def to_yaml(self) -> str:
        """The query as YAML, as far as it was given; `load` reads it back."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True)


def _explain(error: ValidationError, part: type[BaseModel]) -> str:
    """The first thing that pydantic found, as one sentence that names the key."""
    details = error.errors()
    section = _SECTIONS.get(part.__name__, (part.__name__.lower(),))
    unknown = next((d for d in details if d["type"] == "extra_forbidden" and len(d["loc"]) == 1), None)
    if unknown:
        key = str(unknown["loc"][0])
        return f"{'.'.join((*section, key))} is not a key of the query{did_you_mean(key, part.model_fields)}"
    return _wrong_value(details, section)


def _wrong_value(details: Sequence[ErrorDetails], section: tuple[str, ...]) -> str:
    detail = details[0]
    names = [str(part) for part in detail["loc"] if str(part) in _KEYS or isinstance(part, int)]
    where = ".".join((*section, *names))
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    if detail["type"] == "missing":
        return f"{'.'.join((*section, *(str(p) for p in detail['loc'])))} is missing from the query"
    got = detail["input"]
    same_place = [d for d in details if [str(p) for p in d["loc"] if str(p) in _KEYS or isinstance(p, int)] == names]
    expected = " or ".join(dict.fromkeys(_expected(d) for d in same_place))
    hint = ""
    if isinstance(got, str):
        listed = [d["ctx"]["expected"] for d in same_place if d["type"] == "literal_error"]
        options = [option for text in listed for option in text.replace("' or '", "', '").strip("'").split("', '")]
        near = did_you_mean(got, options)
        hint = near if near.startswith("; did") else ""
    return f"{where} is {got!r}, expected {expected}{hint}"


def _expected(detail: ErrorDetails) -> str:
    message = detail["msg"].removeprefix("Input should be ")
    return message.removeprefix("a valid ").removeprefix("Input should ")


_SECTIONS = {"Query": (), "Quota": ("select", "quotas"), "Cost": ("select", "cost")}
_KEYS = frozenset(key for part in (Query, Pool, Model, Acquire, Select, Quota, Cost, Cluster, Store) for key in part.model_fields)

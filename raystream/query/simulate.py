"""The sections of a spec beside `loop`: `simulate` and `stream`.

A simulation as data: a query over a labelled pool, how rounds of it go, and which strategies are compared.

A simulation's file is a loop's file with a section `simulate`; the loop's oracle is the pool's own column `pool.label`.

A stream as data: a pool to which rows are added, and which share of them may be labelled.

A stream's file is a query file with a section `stream`; of its `select`, which may be left out, only `near_duplicates` is used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from raystream.errors import QueryError, did_you_mean
from raystream.query import LOOP_SECTIONS, Acquire, Cluster, Model, Pool, Query, Select, Store
from raystream.query.catalogue import SCORES, TRAITS
from raystream.query.catalogue.scores import METRICS
from raystream.query.catalogue.strategies import AUTO, CONTROL
from raystream.query.loop import Loop, LoopSettings, checked_name, name_of_file
from raystream.query.part import Part, Positive, Share
from raystream.spec import read_spec

_SHARED = frozenset({"budget", "cost", "near_duplicates"})
"""Keys of `select` that every strategy takes over; the others only the strategy that `select` names."""
_OF_ALL = ("budget", "cost")
"""Those that no strategy may have for itself."""
_LEFT_OUT = ("quotas", "must_include", "exclude", "similar_to", "random_share")
"""Keys of `select` that rounds in memory don't know."""
_LEFT_OUT_OF_SCORES = ("args", "class_weights", "mc_samples", "reduce", "targets", "top")
"""Those of `acquire`."""
_LEFT_ALONE = frozenset({"stop", "wait", "complete", "control", "calibrate"})
"""What a loop says of people's labels, of stopping and of control rows."""
_SETTING = frozenset({"pool", "model", "loop", "seed", "on_error", "max_quarantined"})
"""Sections that all runs have in common; strategies' own are part of what each run is named after."""


class Contestant(Part):
    """A strategy with keys of its own."""

    section = ("simulate", "strategies")

    name: str
    """What it is called in tables and curves."""
    select: dict[str, Any] = {}
    """Keys of `select`; `strategy` left out, the name."""
    score: str | None = None
    """What ranks; left out, `acquire.score`."""


class Simulate(Part):
    """The section `simulate`."""

    section = ("simulate",)

    name: str | None = None
    """What the simulation is called in the store; of a file, left out, the file's name without its ending."""
    strategies: Annotated[list[str | Contestant], Field(min_length=1)]
    """Strategies by name, `auto` among them, or `{name: …, select: {…}}`; `random` is always compared with."""
    seeds: Positive = 10
    """How often each is tried: each seed draws its own start, and its own split where `loop.evaluate` is a share."""

    @field_validator("strategies", mode="before")
    @classmethod
    def _mappings_are_contestants(cls, value: object) -> object:
        if not isinstance(value, list):
            return value
        return [Contestant(**item) if isinstance(item, dict) else item for item in value]

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        return None if value is None else checked_name(value, "simulate")

    @model_validator(mode="after")
    def _names_are_told_apart(self) -> Simulate:
        names = [item if isinstance(item, str) else item.name for item in self.strategies]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"simulate.strategies names {twice} twice; give one of them another name")
        return self


class Simulation(Loop):
    """Rounds on a pool of which every label is known, by several strategies and seeds."""

    simulate: Simulate
    """Which strategies, how often."""

    @model_validator(mode="before")
    @classmethod
    def _the_pool_answers(cls, values: Any) -> Any:
        """Take the pool's label column as the oracle, whatever the loop of the same file asks."""
        if not isinstance(values, dict):
            return values
        loop, pool, simulate = values.get("loop"), values.get("pool"), values.get("simulate")
        label = pool.label if isinstance(pool, Pool) else pool.get("label") if isinstance(pool, dict) else None
        if label is None and isinstance(loop, dict) and isinstance(loop.get("oracle"), dict):
            label = loop["oracle"].get("column")
        if label is None:
            raise ValueError("pool.label is missing; name the pool's column that holds the labels, which a simulation needs")
        name = simulate.name if isinstance(simulate, Simulate) else simulate.get("name") if isinstance(simulate, dict) else None
        if isinstance(loop, LoopSettings):
            loop = loop.model_dump(exclude_unset=True)
        if isinstance(loop, dict):
            kept = {key: value for key, value in loop.items() if key not in _LEFT_ALONE}
            values = {**values, "loop": {**kept, "oracle": {"column": label}, "name": name or loop.get("name") or "simulation"}}
        model = values.get("model")
        if isinstance(model, dict) and model.get("task") == "regression" and "acquire" not in values:
            values = {**values, "acquire": {"score": "variance"}}  # the one score of numbers; without a committee none is asked for
        return values

    @model_validator(mode="after")
    def _can_be_simulated(self) -> Simulation:
        if self.simulate.name is None:
            raise ValueError("simulate.name is missing; a simulation that is not read from a file needs one")
        if self.loop.evaluate is None:
            raise ValueError(
                "loop.evaluate is missing; give labelled rows to judge by, or the share of the pool that is kept for it, as in 0.3"
            )
        if METRICS[self.metrics[0]].of_each_class:
            raise ValueError(f"loop.metrics begins with {self.metrics[0]}, which is one number a class; begin with one to compare by")
        given = [f"select.{key}" for key in _LEFT_OUT if key in self.select.model_fields_set]
        given += [f"acquire.{key}" for key in _LEFT_OUT_OF_SCORES if key in self.acquire.model_fields_set]
        given += ["model.temperature"] if "temperature" in self.model else []
        if given:
            raise ValueError(f"{given[0]} is given, but rounds of a simulation don't know it; remove it")
        self.contestants  # noqa: B018 - each is checked as it is made
        return self

    def _check_opinions(self) -> None:
        """Leave each contestant to what plays it, which knows what rounds in memory can score."""

    @property
    def start_options(self) -> dict[str, Any]:
        """What of `select` holds for the first batch, too, which all strategies share."""
        given = self.select.model_dump(include=set(_SHARED - set(_OF_ALL)), exclude_unset=True)
        return {key: value for key, value in given.items() if value is not None}

    @cached_property
    def contestants(self) -> dict[str, tuple[Select, str]]:
        """The `select` section and the score of each, by name, chance first."""
        asked = [Contestant(name=item) if isinstance(item, str) else item for item in self.simulate.strategies]
        if all(item.name != CONTROL for item in asked):
            asked.insert(0, Contestant(name=CONTROL))
        return {item.name: self._contestant(item) for item in asked}

    def _contestant(self, asked: Contestant) -> tuple[Select, str]:
        where = f"simulate.strategies, {asked.name}"
        strategy = str(asked.select.get("strategy", asked.name))
        if asked.name in (CONTROL, AUTO) and strategy != asked.name:
            raise ValueError(f"{where}: its strategy is {strategy}; only {asked.name} may have that name")
        score = asked.score or self.acquire.score
        if score not in SCORES:
            raise ValueError(f"{where}: score is {score!r}, which is not simulated{did_you_mean(score, SCORES)}")
        if strategy == AUTO:
            if set(asked.select) - {"strategy"}:
                raise ValueError(
                    f"{where}: auto takes the defaults of what it picks; remove select.{min(set(asked.select) - {'strategy'})}"
                )
            kept = {key: value for key, value in self.select.model_dump(exclude_unset=True).items() if key in _SHARED}
            return Select(**{**kept, "strategy": AUTO}), score
        if strategy not in TRAITS:
            known = [*TRAITS, AUTO]
            hint = f"; give {{name: {asked.name}, select: {{strategy: …}}}}" if "strategy" not in asked.select else ""
            raise ValueError(f"{where}: {strategy!r} is no strategy that can be simulated{did_you_mean(strategy, known)}{hint}")
        for key in _OF_ALL:
            if key in asked.select:
                raise ValueError(f"{where}: select.{key} is the same for all strategies; give it in select")
        for key in _LEFT_OUT:
            if key in asked.select:
                raise ValueError(f"{where}: select.{key} is given, but rounds of a simulation don't know it; remove it")
        own = self.select.model_dump(exclude_unset=True)
        inherited = own if self.select.strategy == strategy else {key: value for key, value in own.items() if key in _SHARED}
        try:
            return Select(**{**inherited, "strategy": strategy, **asked.select}), score
        except QueryError as error:
            raise ValueError(f"{where}: {error}") from None

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Simulation:
        """Read a simulation from a YAML file; see `Query.load`.

        Raises:
            QueryError: the file is missing or isn't YAML, lacks the sections, a key is unknown, or a value is wrong.
        """
        data = {str(key): value for key, value in read_spec(path, overrides).items()}
        for section, needed in (("simulate", "strategies"), ("loop", "trainer, evaluate and rounds")):
            if not isinstance(data.get(section), dict):
                raise QueryError(f"query file {path} has no section {section}; add it, with {needed}")
        if "name" not in data["simulate"]:
            data["simulate"] = {"name": name_of_file(path, "simulate"), **data["simulate"]}
        for section in LOOP_SECTIONS - {"loop", "simulate"}:
            data.pop(section, None)
        if data.pop("output", None) is not None:
            raise QueryError("output is given, but a simulation chooses no batch to be labelled; remove it")
        return cls(**data)

    @property
    def name(self) -> str:
        """The simulation's."""
        assert self.simulate.name is not None
        return self.simulate.name

    @cached_property
    def identity(self) -> dict[str, str]:
        """What may not change between runs that are joined, by key; further strategies and seeds may come."""
        own = {"loop.oracle", "loop.name", *(f"loop.{key}" for key in _LEFT_ALONE)}
        found = {key: value for key, value in super().identity.items() if key not in own and key.partition(".")[0] in _SETTING}
        found["select.budget"] = str(self.select.budget)
        if self.select.cost is not None:
            found["select.cost"] = str(self.select.cost)
        found |= {f"select.{key} of the first batch": str(value) for key, value in self.start_options.items()}
        for key in ("rounds", "budget"):
            found[f"loop.{key}"] = str(getattr(self.loop, key))
        return found


Manager = Literal["quantile", "density", "fixed", "variable", "random_variable", "split", "random"]
BY_UNCERTAINTY = frozenset({"fixed", "variable", "random_variable", "split"})
"""Managers that compare 1 - score with a threshold, so that the score must be `least_confidence`."""
COLUMNS = ("score", "threshold", "chosen", "seen", "epoch")
"""Of the decisions, after the id."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class StreamSettings(Part):
    """The section `stream`."""

    section = ("stream",)

    budget: Annotated[float, Field(gt=0, le=1)]
    """The share of arriving rows that may be labelled."""
    manager: Manager = "quantile"
    """The rule that decides row by row."""
    strict: bool = True
    """Keep to the budget at any time: of n rows at most budget x n are labelled, rounded up."""
    follow: Annotated[float, Field(ge=0)] = 0.0
    """Seconds between looks for new rows, until interrupted; 0: what is there, then end."""
    name: Annotated[str, Field(pattern=_NAME.pattern)] | None = None
    """What the stream is called in the store; of a file, left out, the file's name without its ending."""

    @field_validator("budget", mode="before")
    @classmethod
    def _is_a_number(cls, value: object) -> object:
        if isinstance(value, bool):
            raise ValueError(f"stream.budget is {value!r}, expected the share of rows that may be labelled, above 0 and at most 1")
        return value


class Stream(Part):
    """Which of the rows that arrive should be labelled?"""

    pool: Pool
    """Where rows arrive: a folder, a prefix or a table."""
    model: Model
    """What turns rows into logits and embeddings; weights that changed begin a new epoch."""
    acquire: Acquire = Acquire()
    """How rows are scored."""
    select: dict[str, Any] = {}
    """The query's section, of which `near_duplicates` alone is used; may be left out."""
    cluster: Cluster = Cluster()
    """Where the workers run; has no influence on what is chosen."""
    store: Store = Store()
    """Where scored units and decisions are kept."""
    stream: StreamSettings
    """The budget, and who keeps to it."""
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0
    """Of every draw."""
    on_error: Literal["fail", "skip"] = "fail"
    """`skip`: leave out bad rows and unreadable units, decide on the rest, and say so."""
    max_quarantined: Share = 1.0
    """See `Query`; a stream goes on, however much of what arrives can't be read."""

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Stream:
        manager, score = self.stream.manager, self.acquire.score
        if manager in BY_UNCERTAINTY and not (score in SCORES and SCORES[score].doubt):
            raise ValueError(
                f"stream.manager {manager} compares least_confidence, which lies between 0 and 1, but acquire.score is {score}; set "
                "acquire.score to least_confidence, or use quantile, which takes any score"
            )
        if manager in BY_UNCERTAINTY and self.acquire.class_weights is not None:
            raise ValueError(
                f"stream.manager {manager} compares least_confidence, which acquire.class_weights would change; remove them or use quantile"
            )
        compared = [name for name in self.acquire.asked if name in SCORES and "targets" in SCORES[name].keys]
        if compared:
            raise ValueError(f"acquire asks for {compared[0]}, which compares rows with the whole pool; of a stream it isn't there yet")
        if self.pool.id in COLUMNS:
            raise ValueError(f"pool.id names column {self.pool.id}, a name that decisions use; rename the column in the pool")
        _ = self.query
        return self

    @property
    def name(self) -> str:
        """The stream's name in the store."""
        return self.stream.name or "stream"

    @property
    def near_duplicates(self) -> float | Literal[False] | None:
        """See `Select`."""
        return Select(**{"budget": 1, **self.select}).near_duplicates

    @property
    def query(self) -> Query:
        """How the rows are read and scored, as a query that is never asked to choose."""
        near = self.near_duplicates
        embeds = self.stream.manager == "density" or bool(near)
        select = Select(strategy="k_means" if embeds else "top_k", budget=1, near_duplicates=near)
        pool = self.pool if self.model.calibration_files else self.pool.derived(label=None)
        given: dict[str, Any] = {"acquire": self.acquire} if "acquire" in self.model_fields_set else {}
        store = self.store.derived(query=None)
        given |= {"seed": self.seed, "on_error": self.on_error, "max_quarantined": self.max_quarantined}
        return Query(pool=pool, model=self.model, select=select, cluster=self.cluster, store=store, **given)

    @property
    def identity(self) -> dict[str, Any]:
        """What may not change in the middle of a stream, by key: the model may, and where and how often the command runs."""
        acquire = self.acquire.model_dump(mode="json")
        settings = self.stream.model_dump(mode="json", exclude={"follow", "name"})
        return {
            "pool.uri": self.pool.uris,
            "pool.id": self.pool.id,
            "pool.filters": self.pool.model_dump(mode="json")["filters"],
            **{f"acquire.{key}": value for key, value in acquire.items() if key != "also"},
            **{f"stream.{key}": value for key, value in settings.items()},
            "select.near_duplicates": self.near_duplicates,
            "seed": self.seed,
        }

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Stream:
        """Read a stream from a YAML file; see `Query.load`.

        Raises:
            QueryError: the file is missing or isn't YAML, it has no section `stream`, a key is unknown, or a value is wrong.
        """
        data = {str(key): value for key, value in read_spec(path, overrides).items()}
        if "stream" not in data:
            hint = did_you_mean("stream", [key for key in data if key not in cls.model_fields])
            hint = hint if hint.startswith("; did") else ""
            raise QueryError(f"query file {path} has no section stream; add it, with a budget such as 0.05, or run raystream query{hint}")
        if isinstance(data["stream"], dict) and "name" not in data["stream"]:
            data["stream"] = {"name": _stem(path), **data["stream"]}
        for section in LOOP_SECTIONS - {"stream"}:
            data.pop(section, None)
        if data.pop("output", None) is not None:
            raise QueryError("output is given, but a stream's decisions lie in the store; remove it")
        return cls(**data)

    def to_yaml(self) -> str:
        """Write the stream as YAML, as far as it was given."""
        return self._as_yaml()


def _stem(path: str | Path) -> str:
    """Return a file's name as the name of its stream."""
    stem = Path(path).stem
    if not _NAME.fullmatch(stem):
        raise QueryError(f"stream.name is missing, and the file's name {Path(path).name} can't stand for it; give it in the section stream")
    return stem

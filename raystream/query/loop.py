"""A loop as data: a query, and how rounds of it ask for labels, train, judge and stop.

A loop's file is a query file with a section `loop`; `raystream query` reads the same file and leaves that section alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from raystream.errors import QueryError, did_you_mean
from raystream.query import LOOP_SECTIONS, Acquire, Cluster, Model, Pool, Query, Select, Store
from raystream.query.catalogue import TRAITS, kind_of
from raystream.query.catalogue.rules import RULES
from raystream.query.catalogue.scores import DEFAULT_METRICS, METRICS, REGRESSOR, REGRESSORS_KEYS, TRAINERS, trainer_entry
from raystream.query.catalogue.strategies import AUTO
from raystream.query.part import MAX_QUARANTINED, Part, Positive, Share
from raystream.spec import read_spec

CHANGEABLE = frozenset({"loop.rounds", "loop.budget", "loop.stop", "loop.wait"})
"""What may be changed in the middle of a loop, beside where it runs."""
_WEIGHTED = frozenset({"k_means", "u_herding"})
"""Strategies that a score weights, but that do without: where all scores are equal."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class Start(Part):
    """The first batch, while nothing is labelled."""

    section = ("loop", "start")

    strategy: str = AUTO
    """A strategy that needs no score; `auto`: `typiclust` where there is an embedding that needs no training, else `random`."""
    budget: Positive | None = None
    """Rows of the first batch; left out, `select.budget`."""

    @field_validator("strategy")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value != AUTO and ":" not in value and value not in TRAITS:
            raise ValueError(f"loop.start.strategy is {value!r}, expected auto or a strategy{did_you_mean(value, TRAITS)}")
        traits = TRAITS.get(value)
        if traits and (traits.probabilities or traits.samples or (traits.score and value not in _WEIGHTED)):
            raise ValueError(
                f"loop.start.strategy is {value}, which needs a trained model's scores, and nothing is labelled yet; use auto, typiclust, "
                "k_means, prob_cover, core_set or random"
            )
        return value


class Stop(Part):
    """The rules by which a loop stops before its rounds or its budget are used up."""

    section = ("loop", "stop")

    rules: Annotated[list[str | dict[str, dict[str, Any]]], Field(min_length=1)]
    """Rules by name, or a name with its parameters: `[kappa, {target: {value: 0.95}}]`."""
    when: Literal["any", "all"] = "any"
    """Whether one of them is enough."""
    advise: bool = False
    """Only say what they would do."""

    @field_validator("rules")
    @classmethod
    def _are_known(cls, value: list[str | dict[str, dict[str, Any]]]) -> list[str | dict[str, dict[str, Any]]]:
        for rule in value:
            if isinstance(rule, dict) and len(rule) != 1:
                raise ValueError(f"loop.stop.rules holds {rule!r}, expected a rule's name, or one name with its parameters")
            name = rule if isinstance(rule, str) else next(iter(rule))
            if name not in RULES:
                raise ValueError(f"loop.stop.rules names {name!r}, which is no rule{did_you_mean(name, RULES)}")
        names = [rule if isinstance(rule, str) else next(iter(rule)) for rule in value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"loop.stop.rules names {twice} twice; name each rule once")
        return value

    @property
    def named(self) -> dict[str, dict[str, Any]]:
        """The rules with their parameters."""
        return {name: args for rule in self.rules for name, args in ([(rule, {})] if isinstance(rule, str) else rule.items())}


class LabellingTool(Part):
    """A labelling tool by whose server people are asked, in place of files of labels."""

    section = ("loop", "oracle")

    tool: Literal["label_studio", "cvat"]
    """Which tool."""
    url: str
    """Its server's address. The token of its user comes from the environment, `LABEL_STUDIO_API_KEY` or `CVAT_ACCESS_TOKEN`."""
    project: Positive | None = None
    """Of Label Studio, needed: the number of the project in which all rounds are labelled. CVAT gets a task a round."""
    show: str | None = None
    """The column that people see, of the pool. Left out, the first of `pool.inputs` that holds texts or pictures, else of `pool.keep`."""

    @model_validator(mode="after")
    def _can_be_reached(self) -> LabellingTool:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"loop.oracle.url is {parts.scheme}:… or no URL, expected the server's, such as http://localhost:8080")
        if parts.username or parts.password or parts.query:
            raise ValueError("loop.oracle.url holds credentials or options; give the token in the environment alone")
        if self.tool == "label_studio" and self.project is None:
            raise ValueError("loop.oracle.project is missing; make a project in Label Studio, and give the number in its page's URL")
        if self.tool == "cvat" and self.project is not None:
            raise ValueError("loop.oracle.project is given, but each round gets a task of its own in CVAT; remove it")
        return self


class LoopSettings(Part):
    """The section `loop`."""

    section = ("loop",)

    name: str | None = None
    """What the loop is called in the store; of a file, left out, the file's name without its ending."""
    start: Start = Start()
    """The first batch, while nothing is labelled."""
    oracle: str | list[str] | LabellingTool | dict[str, str]
    """Where people's labels appear: Parquet, CSV or JSON Lines in files, folders, buckets or tables. Or `{tool: label_studio, url: …,
    project: 7}`: by a labelling tool. Or `{column: label}`: the pool's own column, to simulate."""
    complete: Annotated[float, Field(gt=0, le=1)] = 1.0
    """A round closes when this share of its batch is labelled, skipped, rejected or deleted; drafts don't count."""
    committee: Positive = 1
    """Models to train each round by bootstrap; their disagreement can be a score."""
    calibrate: bool = False
    """Fit the temperature on a fifth of the labelled rows, which is held back from training."""
    trainer: str
    """`torch`, `sklearn`, or the import path of a function `(labelled table, previous model or None, seed, args)` that returns a module,
    an estimator or the path of a model's file."""
    train: dict[str, Any] = {}
    """The trainer's arguments."""
    warm_start: bool = False
    """Go on training the last round's model, rather than a new one."""
    evaluate: Annotated[float, Field(gt=0, lt=1)] | str | list[str] | None = None
    """Labelled rows that are never trained on or chosen; or in a simulation a share of the pool."""
    metrics: Annotated[list[str], Field(min_length=1)] | None = None
    """What models are judged by. Left out, `accuracy`, of regression `rmse`, of multi-label `micro_f1`."""
    rounds: Positive | None = None
    """How many rounds; this or `budget` is needed."""
    budget: Positive | None = None
    """How many labels in all."""
    stop: Stop | None = None
    """Rules by which it stops before."""
    control: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """This share of each batch are control rows: drawn by hash before round 1, labelled, never trained on."""
    wait: Annotated[float, Field(ge=0)] = 0.0
    """Seconds to wait for labels; then the command ends, and goes on when it is run again."""

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        return None if value is None else checked_name(value, "loop")

    @field_validator("oracle", mode="before")
    @classmethod
    def _oracle_is_one_of_three(cls, value: object) -> object:
        if isinstance(value, dict) and "tool" in value:
            return LabellingTool(**value)
        if isinstance(value, dict) and (set(value) != {"column"} or not isinstance(value["column"], str)):
            raise ValueError(
                f"loop.oracle is {value!r}, expected a path of labels, several, {{tool: label_studio, url: …, project: 7}}, or {{column: "
                "name}} of the pool's own labels"
            )
        if value in ("", []):
            raise ValueError("loop.oracle is empty; give the path at which labels appear")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> LoopSettings:
        if self.rounds is None and self.budget is None:
            raise ValueError("loop.rounds is missing from the query; give it, or loop.budget, the labels in all")
        if isinstance(self.evaluate, float) and self.column is None:
            raise ValueError(
                f"loop.evaluate is {self.evaluate:g}, a share of the pool, whose labels only a simulation knows (oracle {{column: …}}); "
                "give labelled rows"
            )
        if self.trainer not in TRAINERS and ":" not in self.trainer:
            near = did_you_mean(self.trainer, TRAINERS)
            raise ValueError(f"loop.trainer is {self.trainer!r}, expected torch, sklearn, or the import path of a function{near}")
        return self

    @property
    def column(self) -> str | None:
        """The pool's column of labels, in a simulation."""
        return self.oracle["column"] if isinstance(self.oracle, dict) else None

    @property
    def tool(self) -> LabellingTool | None:
        """The labelling tool by which people are asked, if it is one."""
        return self.oracle if isinstance(self.oracle, LabellingTool) else None

    @property
    def oracle_uris(self) -> list[str]:
        """Where people's labels appear; none in a simulation, nor where a tool has them."""
        return [self.oracle] if isinstance(self.oracle, str) else list(self.oracle) if isinstance(self.oracle, list) else []

    @property
    def evaluate_uris(self) -> list[str]:
        """The files of the rows to judge by."""
        return [self.evaluate] if isinstance(self.evaluate, str) else list(self.evaluate) if isinstance(self.evaluate, list) else []


class Loop(Part):
    """A campaign: rounds of one query, from no labels to a stop."""

    pool: Pool
    """See `Query`; `label` names the column of labels wherever these are read."""
    model: dict[str, Any] = {}
    """The model's section, of which the trainer may make `source` and `weights`."""
    acquire: Acquire = Acquire()
    """See `Query`."""
    select: Select
    """See `Query`; `budget` is that of each round."""
    cluster: Cluster = Cluster()
    """See `Query`."""
    store: Store = Store()
    """See `Query`; queries are named after the loop."""
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0
    """Of every draw and every training."""
    on_error: Literal["fail", "skip"] = "fail"
    """See `Query`."""
    max_quarantined: Share = MAX_QUARANTINED
    """See `Query`."""
    loop: LoopSettings
    """How rounds go."""

    @field_validator("model", mode="before")
    @classmethod
    def _a_model_is_its_keys(cls, value: object) -> object:
        return value.model_dump(mode="json", exclude_unset=True) if isinstance(value, Model) else value

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Loop:
        settings = self.loop
        if settings.name is None:
            raise ValueError("loop.name is missing; a loop that is not read from a file needs one")
        if self.store.query is not None:
            raise ValueError("store.query is given, but a loop names its queries itself, <name>-r<round>; remove it")
        if self.pool.label is None and settings.column is None:
            raise ValueError("pool.label is missing; name the column that holds the labels")
        if settings.column is not None and self.pool.label not in (None, settings.column):
            raise ValueError(f"loop.oracle reads column {settings.column}, but pool.label is {self.pool.label}; name one column")
        if self.select.must_include:
            raise ValueError("select.must_include is given, but a loop asks for no row twice; remove it")
        if self.task not in DEFAULT_METRICS:
            raise ValueError(f"model.task is {self.task}, but a loop judges {', '.join(sorted(DEFAULT_METRICS))} alone")
        for metric in self.metrics:
            known = [name for name, entry in METRICS.items() if self.task in entry.tasks]
            if metric not in known:
                raise ValueError(f"loop.metrics names {metric!r}, which is none of model.task {self.task}{did_you_mean(metric, known)}")
        for name in settings.stop.named if settings.stop else ():
            if RULES[name].tasks and self.task not in RULES[name].tasks:
                raise ValueError(f"loop.stop.rules names {name}, which needs classes, but model.task is {self.task}; remove it")
            looked = settings.stop.named[name].get("metric", self.metrics[0]) if settings.stop else ""
            if RULES[name].needs == RULES["plateau"].needs and settings.evaluate is None and not settings.control:
                raise ValueError(
                    f"loop.stop.rules names {name}, which looks at {looked}, but nothing tells that: give labelled rows in loop.evaluate, "
                    "or control rows in loop.control"
                )
        if settings.calibrate and self.task != "classes":
            raise ValueError(f"loop.calibrate fits a temperature, which needs one class a row, but model.task is {self.task}; remove it")
        if self.label in self.pool.input_columns:
            raise ValueError(f"pool.label {self.label} is among pool.inputs: the model would see what it is to tell; remove it there")
        self._check_opinions()
        self.query_with(self.trained_model())
        return self

    def _check_opinions(self) -> None:
        """Refuse what goes by scores where the models of the rounds can't give any.

        Raises:
            ValueError: with what to do.
        """
        select, strategy, asked = self.select, self.select.strategy, "acquire" in self.model_fields_set
        ranked = strategy != AUTO and select.traits.needs_score(select.terms)
        if self.scores_rows or not (asked or ranked or select.weight > 0 or isinstance(select.candidates, int)):
            return
        dropout = "," if self.trained_model().get("source") == REGRESSOR else ", or acquire.mc_samples for MC dropout,"
        given = "acquire is given" if asked else f"select goes by scores, with strategy {strategy}"
        raise ValueError(
            f"{given}, but model.task regression scores rows by the variance of several opinions, and a round trains one model; set "
            f"loop.committee to 2 or more{dropout} or choose without a score: by lcmd or core_set, with neither acquire, select.weight nor "
            "a number of select.candidates"
        )

    @property
    def scores_rows(self) -> bool:
        """Whether the models of the rounds may score rows: numbers are scored by several opinions alone."""
        if self.task != "regression" or self.loop.committee > 1:
            return True
        model = self.trained_model()
        return model.get("source") != REGRESSOR and (self.acquire.mc_samples is not None or kind_of(model.get("kind", "torch")).opinions)

    @property
    def name(self) -> str:
        """The loop's."""
        assert self.loop.name is not None
        return self.loop.name

    @property
    def task(self) -> str:
        """`model.task`."""
        return str(self.model.get("task", "classes"))

    @property
    def label(self) -> str:
        """The column of labels."""
        return self.loop.column or str(self.pool.label)

    @property
    def metrics(self) -> list[str]:
        """What models are judged by."""
        return self.loop.metrics or [DEFAULT_METRICS[self.task]]

    @property
    def start_budget(self) -> int:
        """Rows of the first batch."""
        return self.loop.start.budget or self.select.budget

    @property
    def planned_batches(self) -> list[int]:
        """Rows of each batch, as far as the spec says; skipped rows and rows labelled by others aside."""
        sizes: list[int] = []
        left = self.loop.budget
        while (self.loop.rounds is None or len(sizes) < self.loop.rounds) and (left is None or left > 0):
            size = self.select.budget if sizes else self.start_budget
            sizes.append(size if left is None else min(size, left))
            left = None if left is None else left - sizes[-1]
        return sizes

    def trained_model(self) -> dict[str, Any]:
        """Return the model's section as it will be once something is trained, with stand-ins for the files."""
        given, settings = dict(self.model), self.loop
        kind = given.get("kind")
        if kind is not None and kind_of(kind).carried:
            raise QueryError(f"model.kind is {kind}, so that no model runs, but a loop trains one; give another kind, and pool.inputs")
        made: dict[str, Any] = dict(trainer_entry(settings.trainer).made.get(self.task, {}))
        if made and (settings.trainer in TRAINERS or not {"source", "kind"} & set(given)):
            for key in ("source", "weights", "kind"):
                if key in given and given[key] != made.get(key):
                    raise QueryError(f"model.{key} is given, but trainer {settings.trainer} makes the model itself; remove it")
            given.pop("kind", None)
            if made["source"] == REGRESSOR:
                made["args"] = {key: given.pop(key) for key in REGRESSORS_KEYS if key in given}
            return given | ({"members": [made] * settings.committee} if settings.committee > 1 else made)
        if isinstance(given.get("weights"), list) or "members" in given:
            raise QueryError("model.weights is a committee, but a loop trains its own; give one file to start from, and loop.committee")
        if settings.committee > 1:
            return given | {"weights": [f"member-{place}.safetensors" for place in range(settings.committee)]}
        return given

    def query_with(self, model: Mapping[str, Any], **changes: Any) -> Query:
        """Make a round's query, with the model as given; `changes` replace sections, or with None leave one out."""
        sections = {
            "pool": self.pool.derived(label=None, labelled=[]),
            "model": Model(**model),
            # a section that asks for scores is refused where the model gives none, a default isn't
            "acquire": self.acquire if "acquire" in self.model_fields_set else None,
            "select": self.select if self.scores_rows else self.select.derived(**self.without_candidates(self.select.strategy)),
            "cluster": self.cluster,
            "store": self.store,
            "seed": self.seed,
            "on_error": self.on_error,
            "max_quarantined": self.max_quarantined,
            **changes,
        }
        return Query(**{name: section for name, section in sections.items() if section is not None})

    @staticmethod
    def without_candidates(strategy: str) -> dict[str, str]:
        """Return what `select` says where rows have no score that candidates could be taken by: all are."""
        return {"candidates": "all"} if strategy in TRAITS and TRAITS[strategy].tenfold else {}

    @cached_property
    def identity(self) -> dict[str, str]:
        """What may not change in the middle, by key."""
        left_out: Any = {"cluster": True, "store": True, "pool": {"storage"}, "loop": {"name": True}}
        if self.loop.tool is not None:  # a server may move, and what people see is theirs to judge
            left_out["loop"]["oracle"] = {"url", "show"}
        dumped = self.model_dump(mode="json", exclude=left_out)
        flat = {f"{part}.{key}": value for part, of in dumped.items() if isinstance(of, dict) for key, value in of.items()}
        flat |= {key: value for key, value in dumped.items() if not isinstance(value, dict)}
        return {key: str(value) for key, value in flat.items() if key not in CHANGEABLE and value is not None}

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Loop:
        """Read a loop from a YAML file; see `Query.load`.

        Raises:
            QueryError: the file is missing or isn't YAML, it has no section `loop`, a key is unknown, or a value is wrong.
        """
        data = {str(key): value for key, value in read_spec(path, overrides).items()}
        if "loop" not in data:
            raise QueryError(f"query file {path} has no section loop; add it, with oracle, trainer and rounds, or run raystream query")
        if isinstance(data["loop"], dict) and "name" not in data["loop"]:
            data["loop"] = {"name": name_of_file(path, "loop"), **data["loop"]}
        for section in LOOP_SECTIONS - {"loop"}:
            data.pop(section, None)
        if data.pop("output", None) is not None:
            raise QueryError("output is given, but each round of a loop chooses anew; remove it, batches lie in the store")
        return cls(**data)

    def to_yaml(self) -> str:
        """Write the loop as YAML, as far as it was given."""
        return self._as_yaml()


def checked_name(value: str, section: str) -> str:
    """Return the name of a loop, a simulation or a stream, if it can be one.

    Raises:
        ValueError: it can't.
    """
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"{section}.name is {value!r}, expected lower-case letters, digits, dots, hyphens and underscores, a letter or digit first, "
            "64 at most"
        )
    return value


def name_of_file(path: str | Path, section: str) -> str:
    """Return a file's name without its ending, as the name of what its section describes."""
    stem = Path(path).stem.lower()
    if not _NAME.fullmatch(stem):
        raise QueryError(
            f"{section}.name is missing, and the file's name {Path(path).name} can't stand for it; give it in the section {section}"
        )
    return stem

"""A stream as data: a pool to which rows are added, and which share of them may be labelled.

A stream's file is a query file with a section `stream`; of its `select`, which may be left out, only `near_duplicates` is used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from raystream.errors import QueryError, did_you_mean
from raystream.query import LOOP_SECTIONS, Acquire, Cluster, Model, Pool, Query, Select, Store
from raystream.query.catalogue import SCORES
from raystream.query.part import Part, Share
from raystream.spec import read_spec

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

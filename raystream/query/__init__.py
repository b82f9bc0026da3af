"""A query as data: what to read, what to score it with, how to choose, where to keep the results.

Written in YAML or Python, validated strictly, and never touching the disk beyond the YAML file itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from raystream.lake.uri import Storage, is_remote, parse
from raystream.query.catalogue import AUTO, GRADIENT_SCORES, LOGIT_SCORES, MEMBER_SCORES, SAMPLE_SCORES, SCORES, kind_of
from raystream.query.model import Model, Preprocess
from raystream.query.part import MAX_QUARANTINED, Id, Part, Share
from raystream.query.pool import FilterTerm, Pool
from raystream.query.select import DEFAULT_REDUCE, DEFAULT_TOP, Acquire, Cost, Quota, Select, check_gradients
from raystream.query.task import TASKS, Cluster, Store, Task, check_task
from raystream.spec import read_spec

LOOP_SECTIONS = frozenset({"loop", "simulate", "stream"})
"""Sections of the same file for other commands; a query leaves them alone."""

__all__ = [
    "DEFAULT_REDUCE", "DEFAULT_TOP", "GRADIENT_SCORES", "LOGIT_SCORES", "LOOP_SECTIONS", "MEMBER_SCORES", "TASKS", "Acquire", "Cluster",
    "Cost", "FilterTerm", "Id", "Model", "Pool", "Preprocess", "Query", "Quota", "Select", "Store", "Task",
]  # fmt: skip


class Query(Part):
    """One question: which rows of this pool should be labelled next?"""

    pool: Pool
    """The unlabelled rows."""
    model: Model
    """What turns rows into logits and embeddings."""
    acquire: Acquire = Acquire()
    """How rows are scored; may be left out for strategies that need no score."""
    select: Select
    """How the batch is chosen."""
    cluster: Cluster = Cluster()
    """Where the workers run; has no influence on what is chosen."""
    store: Store = Store()
    """Where scored units and queries are kept."""
    output: str | None = None
    """A table or a Parquet file that gets the selection as well."""
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0
    """Of every draw."""
    on_error: Literal["fail", "skip"] = "fail"
    """`skip`: leave out bad rows and unreadable units, choose from the rest, and say so."""
    max_quarantined: Share = MAX_QUARANTINED
    """Under `skip`, the share of units that may be left out; beyond it the query ends with exit code 4. Bad rows don't count."""

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Query:
        if not self.model.carried and not self.pool.inputs:
            raise ValueError("pool.inputs is missing; name the columns that the model sees")
        if self.model.carried and self.pool.inputs:
            raise ValueError(
                f"pool.inputs is not used by model.kind {self.model.kind}; name columns in model.logits, probabilities, embedding"
            )
        if self.model.task == "regression" and self.gives_scores and "score" not in self.acquire.model_fields_set:
            self.__dict__["acquire"] = self.acquire.derived(score="variance")  # margin, the default, is of classes; numbers have this alone
        check_task(self)
        if self.model.task == "regression" and not self.gives_scores and (self.needs_score or self.model_fields_set & {"acquire"}):
            raise ValueError(
                "model.task regression scores rows by the variance of several opinions, but the model has one; set acquire.mc_samples "
                "for MC dropout, give a committee in model.weights or model.members, or choose by lcmd, or by core_set with candidates "
                "all, without acquire"
            )
        if self.pool.input_names:
            self._model_takes_names()
        if self.needs_score and not self.gives_scores:
            scores = "give model.logits or model.probabilities, or " if self.model.carried else ""
            ways = "set select.candidates to all"
            if self.select.traits.score:
                ways = "choose by typiclust, or by core_set with select.candidates all"
            raise ValueError(
                f"select.strategy {self.select.strategy} with candidates {self.select.candidate_limit or 'all'} needs a score, "
                f"but the model gives an embedding alone; {scores}{ways}"
            )
        if not self.gives_scores and self.model_fields_set & {"acquire"}:
            raise ValueError("acquire asks for scores, but the model gives an embedding alone; remove it or give model.logits")
        if self.model.classes is not None and not self.gives_scores:
            raise ValueError("model.classes names predictions, but the model gives an embedding alone; remove it or give model.logits")
        if any(quota.by == "prediction" for quota in self.select.quotas) and not self.gives_scores:
            raise ValueError("select.quotas go by prediction, but the model gives an embedding alone; give model.logits or another column")
        self._temperature_can_be_fitted()
        asked = [score for score in self.acquire.asked if score in SAMPLE_SCORES]
        if asked and not self.gives_samples:
            raise ValueError(
                f"acquire asks for {asked[0]}, which compares several opinions of a row, but the model has one; "
                "set acquire.mc_samples for MC dropout, or give a committee in model.weights or model.members"
            )
        if self.select.traits.samples and not self.gives_samples:
            raise ValueError(
                f"select.strategy {self.select.strategy} needs several opinions of a row, but the model has one; "
                "set acquire.mc_samples for MC dropout, or give a committee in model.weights or model.members"
            )
        if self.acquire.mc_samples == 1:
            raise ValueError("acquire.mc_samples is 1, but one sample can't disagree with itself; expected at least 2")
        if self.select.traits.probabilities and not self.gives_scores:
            raise ValueError(f"select.strategy {self.select.strategy} needs class probabilities, but the model gives an embedding alone")
        if self.needs_embedding and self.model.carried and not self.model.embedding:
            raise ValueError(f"select.strategy {self.select.strategy} needs an embedding; name its column in model.embedding")
        check_gradients(self.acquire, self.model)
        weights = self.acquire.class_weights
        named = self.model.classes is not None or self.names_classes
        if isinstance(weights, dict) and not named and not all(_is_index(key) for key in weights):
            name = next(key for key in weights if not _is_index(key))
            raise ValueError(f"acquire.class_weights names class {name!r}, but model.classes gives no names; give them, or indices from 0")
        taken = [name for name in (*self.pool.keep, self.pool.id) if name in self.acquire.columns]
        if taken:
            raise ValueError(f"acquire asks for a score {taken[0]}, which is also a column of the pool that the selection holds; rename it")
        return self

    def _temperature_can_be_fitted(self) -> None:
        wanted = self.model.calibration_files
        if wanted and self.pool.label is None:
            raise ValueError(f"pool.label is missing; name the column of {wanted[0]} (model.temperature) that holds the labels")
        if wanted and not self.gives_scores:
            raise ValueError("model.temperature is to be fitted, but the model gives an embedding alone; remove it or give model.logits")
        if self.pool.label is not None and self.pool.label in self.pool.input_columns:
            raise ValueError(f"pool.label {self.pool.label} is among pool.inputs: the model would see what it is to tell; remove it there")

    def _model_takes_names(self) -> None:
        for model in self.model.members or [self.model]:
            if not kind_of(model.kind).named:
                raise ValueError(
                    f"pool.inputs gives names, which kind: {model.kind} doesn't know; give a list of columns in the model's order"
                )

    @property
    def store_options(self) -> Storage:
        """The settings for reaching the store: `store.storage`, or without any, in object storage of the pool's kind, `pool.storage`."""
        if self.store.storage or not is_remote(self.store.uri):
            return self.store.options
        plain = (uri.removeprefix("delta+") for uri in self.pool.uris if not uri.startswith("iceberg:"))
        kinds = {parse(uri).scheme for uri in plain if is_remote(uri)}
        return self.pool.options if parse(self.store.uri, "store.uri").scheme in kinds else self.store.options

    @property
    def row_uris(self) -> dict[str, list[str]]:
        """All that rows are read from, by the keys that name it."""
        return {
            "pool.uri": self.pool.uris,
            "pool.labelled": self.pool.labelled,
            "model.temperature": self.model.calibration_files,
            "acquire.targets": self.acquire.targets,
        }

    @property
    def gives_scores(self) -> bool:
        """True if the model yields logits or probabilities at all."""
        model = self.model
        if model.task == "regression":
            return self.gives_samples
        return bool(model.logits or model.probabilities or model.samples) if model.carried else kind_of(model.kind).scores

    @property
    def names_classes(self) -> bool:
        """True if the model itself may say what its classes are called, once it is loaded."""
        return any(kind_of(member.kind).names_classes for member in self.model.members or [self.model])

    @property
    def gives_samples(self) -> bool:
        """True if the model may have several opinions of a row; of kinds whose files decide, only loading them tells."""
        model = self.model
        committee = isinstance(model.weights, list) or model.members is not None or model.samples is not None
        return bool(self.acquire.mc_samples) or committee or kind_of(model.kind).opinions

    @property
    def needs_samples(self) -> bool:
        """True if the choice looks at every member's opinion of a row, so that they must be stored."""
        return self.select.traits.samples or any(score in SCORES and "targets" in SCORES[score].keys for score in self.acquire.asked)

    @property
    def needs_gradients(self) -> bool:
        """True if a score needs the input of the layer that gives the logits."""
        return any(score in GRADIENT_SCORES for score in self.acquire.asked)

    @property
    def gives_predictions(self) -> bool:
        """True if rows get a predicted class and a confidence."""
        return self.gives_scores and TASKS[self.model.task].predicts

    @property
    def needs_score(self) -> bool:
        """Whether rows can't be chosen without an acquisition score; `auto` goes by one where the model gives it."""
        return self.select.needs_score and (self.gives_scores or self.select.strategy != AUTO)

    @property
    def asked_scores(self) -> tuple[str, ...]:
        """The scores that must be there: those that `acquire` asks for, or if it is left out the one that the strategy goes by."""
        goes_by = self.needs_score and self.select.strategy != AUTO
        return self.acquire.asked if goes_by or "acquire" in self.model_fields_set else ()

    @property
    def needs_embedding(self) -> bool:
        """True if the pass over the pool yields embeddings: chosen by them, asked for by name, or all that the model gives."""
        return self._chooses_by_embedding or self.model.embedding is not None or not self.gives_scores

    @property
    def _chooses_by_embedding(self) -> bool:
        """Whether the choice looks at embeddings; `auto` does where the model gives them: of columns, those that it names."""
        absent = self.select.strategy == AUTO and self.model.carried and not self.model.embedding and not self.select.near_duplicates
        return self.select.needs_embedding and not absent

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Query:
        """Read a query from a YAML file; sections for other commands (`loop`, `simulate`, `stream`) are left out.

        Args:
            path: the file.
            overrides: `section.key=value` strings that replace what the file says; values are YAML.

        Raises:
            QueryError: the file is missing or isn't YAML, a key is unknown, or a value is wrong.
        """
        data = read_spec(path, overrides)
        return cls(**{str(key): value for key, value in data.items() if key not in LOOP_SECTIONS})

    def to_yaml(self) -> str:
        """Write the query as YAML, as far as it was given; `load` reads it back."""
        return self._as_yaml()


def _is_index(key: int | str) -> bool:
    return isinstance(key, int) or key.isdigit()

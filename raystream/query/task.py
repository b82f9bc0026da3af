"""Where a query's processes run, and what its model's outputs are.

A model's output, as data: what it means for a row, which scores there are, how those of many outputs become one, what can't be asked.

Where a query runs and where its results are kept; neither has an influence on what is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from raystream.errors import did_you_mean
from raystream.lake.uri import Storage, storage_from
from raystream.query.catalogue import kind_of, scores_of_task
from raystream.query.part import NoTruth, Part, Positive

if TYPE_CHECKING:
    from raystream.query import Query

TaskName = Literal["classes", "segmentation", "tokens", "multi_label", "regression"]


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        output: the shape of the model's output for a batch, for messages.
        scores: those that one opinion of a row gives.
        member_scores: those that need several.
        reductions: how the scores of a row's many outputs may become one; empty where a row has one output.
        dense: whether a row has many outputs that exclude each other, of which a mask says which count.
        predicts: whether there is a predicted class and a confidence.
    """

    output: str
    scores: tuple[str, ...]
    member_scores: tuple[str, ...]
    reductions: tuple[str, ...] = ()
    dense: bool = False
    predicts: bool = True


_OVER_ELEMENTS = ("mean", "max", "sum", "top_mean")


def _task(name: TaskName, output: str, reductions: tuple[str, ...] = (), *, dense: bool = False, predicts: bool = True) -> Task:
    return Task(output, scores_of_task(name, "logits"), scores_of_task(name, "members"), reductions, dense, predicts)


TASKS: Mapping[str, Task] = {
    "classes": _task("classes", "(rows, classes)"),
    "segmentation": _task("segmentation", "(rows, classes, height, width)", _OVER_ELEMENTS, dense=True),
    "tokens": _task("tokens", "(rows, tokens, classes)", _OVER_ELEMENTS, dense=True),
    "multi_label": _task("multi_label", "(rows, labels)", ("mean", "max", "sum")),
    "regression": _task("regression", "(rows, outputs) or (rows,)", predicts=False),
}
"""What `model.task` may be."""


def check_task(query: Query) -> None:
    """Check that the query asks for what the model's task gives.

    Raises:
        ValueError: it doesn't; what, and what to do.
    """
    name = query.model.task
    task = TASKS[name]
    for member in query.model.members or [query.model]:
        tasks = kind_of(member.kind).tasks
        if name not in tasks:
            raise ValueError(f"model.task is {name}, but kind: {member.kind} gives {' or '.join(sorted(tasks))} alone; use another kind")
    if query.model.carried:
        _check_columns(query)
    _check_reduce(query, task)
    traits = query.select.traits
    if name != "classes" and (traits.probabilities or traits.samples):
        raise ValueError(
            f"select.strategy {query.select.strategy} needs one distribution over classes for each row, but model.task is {name}; "
            "use k_means, cluster_margin or another strategy that takes scores and embeddings"
        )
    if name == "regression":
        for given, key in ((query.model.temperature != 1.0, "model.temperature"), (query.model.classes is not None, "model.classes")):
            if given:
                raise ValueError(f"{key} is not used by model.task regression, which has no classes; remove it")
        if any(quota.by == "prediction" for quota in query.select.quotas):
            raise ValueError("select.quotas go by prediction, which model.task regression does not give; name another column")
    if not query.gives_scores:
        return
    if name == "classes":
        return
    if query.acquire.class_weights is not None:
        raise ValueError(f"acquire.class_weights is not used by model.task {name}, whose rows have no one class; remove it")
    if query.model.calibration_files:
        raise ValueError(f"model.temperature is to be fitted, which needs one class a row, but model.task is {name}; give a number")
    known = (*task.scores, *(task.member_scores if query.gives_samples else ()))
    for key, score in [("acquire.score", query.acquire.score), *(("acquire.also", score) for score in query.acquire.also)]:
        if score not in (*task.scores, *task.member_scores):
            raise ValueError(f"{key} is {score}, but model.task {name} gives {', '.join(known)}; choose one of them")


def _check_reduce(query: Query, task: Task) -> None:
    acquire, name = query.acquire, query.model.task
    if acquire.reduce is not None and not task.reductions:
        users = ", ".join(other for other, of in TASKS.items() if of.reductions)
        raise ValueError(f"acquire.reduce is not used by model.task {name} (only by {users}); remove it, or set model.task")
    if acquire.reduce is not None and acquire.reduce not in task.reductions:
        near = did_you_mean(acquire.reduce, task.reductions)
        raise ValueError(f"acquire.reduce is {acquire.reduce!r}, expected {' or '.join(task.reductions)} for model.task {name}{near}")
    if acquire.top is not None and acquire.reduce != "top_mean":
        raise ValueError("acquire.top is the share of elements that acquire.reduce top_mean takes; set acquire.reduce to it, or remove top")


def _check_columns(query: Query) -> None:
    model, name = query.model, query.model.task
    if name == "regression" and (model.logits or model.probabilities or not model.samples):
        raise ValueError("model.task regression with kind: columns takes the members' numbers alone; name their column in model.samples")
    if name not in ("classes", "regression") and model.samples:
        raise ValueError(f"model.samples is not used by model.task {name} with kind: columns; give model.logits or probabilities")


class Cluster(Part):
    """Where the workers run; has no influence on what is chosen."""

    section = ("cluster",)

    address: str = "auto"
    """`auto`: the cluster of `RAY_ADDRESS` or of the job it runs in, else this machine, with a Ray of its own where one pays. `local`:
    such a Ray in any case. `in_process`: no Ray. Or an address."""
    workers: Positive | Literal["auto"] = "auto"
    """How many score at once; `auto`: as many as the cluster has room for."""
    cpus_per_worker: Positive = 1
    """Processors, and threads, of a worker."""
    gpus_per_worker: Annotated[float, Field(ge=0), NoTruth] | Literal["auto"] = "auto"
    """GPUs, or a share of one; `auto`: one where the model's device and the cluster have it."""


class Store(Part):
    """Where scored units and queries are kept."""

    section = ("store",)

    uri: str = "runs"
    """A folder, or `s3://`, `gs://`, `abfs://` and a prefix."""
    storage: dict[str, bool | int | str] = {}
    """How to reach it; left out, `pool.storage`, if the pool is of the same kind of storage."""
    query: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")] | None = None
    """The query's name in the store; left out, a digest of what it asks."""

    @property
    def options(self) -> Storage:
        """The settings for reaching the object storage of `uri`."""
        return storage_from(self.storage, "store.storage")

    @field_validator("storage", mode="before")
    @classmethod
    def _options_without_secrets(cls, value: object) -> object:
        if isinstance(value, dict):
            storage_from({str(name): option for name, option in value.items()}, "store.storage")
        return value

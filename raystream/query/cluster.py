"""Where a query runs and where its results are kept; neither has an influence on what is chosen."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from raystream.lake.storage import Storage, storage_from
from raystream.query.part import NoTruth, Part, Positive


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

"""Where a query runs and where its results are kept; neither has an influence on what is chosen."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from raystream.lake.storage import Storage, storage_from
from raystream.query.part import Part, Positive


class Cluster(Part):
    """Where the workers run; has no influence on what is chosen."""

    section = ("cluster",)

    address: str = "auto"
    workers: Positive | Literal["auto"] = "auto"
    cpus_per_worker: Positive = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"


class Store(Part):
    """Where scored units and queries are kept."""

    section = ("store",)

    uri: str = "runs"
    storage: dict[str, bool | int | str] = {}
    query: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")] | None = None

    @property
    def options(self) -> Storage:
        """How to reach the object storage of `uri`."""
        return storage_from(self.storage, "store.storage")

    @field_validator("storage", mode="before")
    @classmethod
    def _options_without_secrets(cls, value: object) -> object:
        if isinstance(value, dict):
            storage_from({str(name): option for name, option in value.items()}, "store.storage")
        return value

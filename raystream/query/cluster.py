"""Where a query runs and where its results are kept; neither has an influence on what is chosen."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

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
    query: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")] | None = None

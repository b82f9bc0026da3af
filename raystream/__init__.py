"""raystream: which rows of this lake should be labelled next?

import raystream as rs
result = rs.run("query.yaml")
result.selection      # a pyarrow.Table, best row first
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from raystream.query import Acquire, Cluster, Model, Pool, Query, Select, Store
from raystream.query.loop import Loop, LoopSettings
from raystream.query.simulate import Simulate, Simulation
from raystream.run import run

if TYPE_CHECKING:
    from raystream.loop.campaign import ActiveLearningLoop
    from raystream.loop.simulation.run import simulate
    from raystream.loop.streams.managers import StreamSampler
    from raystream.loop.streams.run import run_stream
    from raystream.query.simulate import Stream
    from raystream.service.client import Client
    from raystream.store.result import Result

__version__ = "0.1.0"

__all__ = [
    "Acquire",
    "ActiveLearningLoop",
    "Client",
    "Cluster",
    "Loop",
    "LoopSettings",
    "Model",
    "Pool",
    "Query",
    "Result",
    "Select",
    "Simulate",
    "Simulation",
    "Store",
    "Stream",
    "StreamSampler",
    "run",
    "run_stream",
    "simulate",
]

_LATER = {
    "ActiveLearningLoop": "raystream.loop.campaign",
    "Client": "raystream.service.client",
    "Result": "raystream.store.result",
    "Stream": "raystream.query.simulate",
    "StreamSampler": "raystream.loop.streams.managers",
    "run_stream": "raystream.loop.streams.run",
    "simulate": "raystream.loop.simulation.run",
}
"""Names that are imported when they are first used: pyarrow and torch come with them, not with the description of a query."""


def __dir__() -> list[str]:
    # The rooms are attributes, too, once they are imported; whoever wants one imports it.
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'raystream' has no attribute {name!r}")

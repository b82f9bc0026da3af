"""raystream: which rows of this lake should be labelled next?

import raystream as rs
result = rs.run(rs.Query.load("query.yaml"))
result.selection      # a pyarrow.Table, best row first
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raystream.query import Acquire, Cluster, Model, Pool, Query, Select, Store
from raystream.query.loop import Loop, LoopSettings
from raystream.query.simulate import Simulate, Simulation
from raystream.run import run

if TYPE_CHECKING:
    from raystream.loop.campaign import ActiveLearningLoop
    from raystream.loop.simulation import simulate
    from raystream.store.result import Result

__version__ = "0.1.0"

__all__ = [
    "Acquire",
    "ActiveLearningLoop",
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
    "run",
    "simulate",
]


def __getattr__(name: str) -> Any:
    # A result holds a table, and a loop trains; pyarrow and torch are imported with them, not with the description of a query.
    if name == "Result":
        from raystream.store.result import Result

        return Result
    if name == "ActiveLearningLoop":
        from raystream.loop.campaign import ActiveLearningLoop

        return ActiveLearningLoop
    if name == "simulate":
        from raystream.loop.simulation import simulate

        return simulate
    raise AttributeError(f"module 'raystream' has no attribute {name!r}")

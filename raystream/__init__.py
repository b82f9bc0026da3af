"""raystream: which rows of this lake should be labelled next?

import raystream as rs
result = rs.run("query.yaml")
result.selection      # a pyarrow.Table, best row first
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raystream.query import Acquire, Cluster, Model, Pool, Query, Select, Store
from raystream.run import run

if TYPE_CHECKING:
    from raystream.store.result import Result

__version__ = "0.1.0"

__all__ = ["Acquire", "Cluster", "Model", "Pool", "Query", "Result", "Select", "Store", "run"]


def __dir__() -> list[str]:
    # The rooms are attributes, too, once they are imported; whoever wants one imports it.
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    # A result holds a table; pyarrow is imported with it, not with the description of a query.
    if name == "Result":
        from raystream.store.result import Result

        return Result
    raise AttributeError(f"module 'raystream' has no attribute {name!r}")

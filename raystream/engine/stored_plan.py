"""The units of a query, as `write_plan` left them in its folder: by their keys, `raystream gc` knows what the query needs."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq

from raystream.engine.manifest import query_folder
from raystream.engine.stores import Store
from raystream.errors import StoreError

_TYPES = {"unit": pa.string(), "key": pa.string(), "first_row": pa.int64()}


def read_plan(store: Store, name: str) -> pa.Table:
    """The units of a query's pool in row order.

    Raises:
        StoreError: the plan isn't there, or isn't one.
    """
    file = f"{query_folder(name)}/plan.parquet"
    data = store.read_if_there(file)
    plan = None if data is None else parsed_plan(data)
    if plan is None:
        state = "is missing" if data is None else "is damaged"
        raise StoreError(
            f"store: {store.place(file)} {state}, so the units of query {name} are unknown; restore it, or forget the query by "
            f"raystream gc --drop {name}"
        )
    return plan


def plan_keys(store: Store, name: str) -> list[str]:
    """The keys of a query's units over its pool, in row order, then those of their EPIG, if there is any.

    Raises:
        StoreError: the plan isn't there, or isn't one.
    """
    plan = read_plan(store, name)
    keys: list[str] = plan.column("key").to_pylist()
    return keys + [key for key in further_keys(plan) if key is not None]


def further_keys(plan: pa.Table) -> list[str | None]:
    """The keys of the units' EPIG, one for each unit, None for units without rows; empty if the query asked for none."""
    keys: list[str | None] = plan.column("epig_key").to_pylist() if "epig_key" in plan.column_names else []
    return keys


def parsed_plan(data: bytes) -> pa.Table | None:
    """The table that a file holds, unless it is none, or one of something else."""
    try:
        plan = pq.ParquetFile(io.BytesIO(data)).read()
    except (pa.ArrowException, OSError):
        return None
    known = {field.name: field.type for field in plan.schema}
    if any(known.get(name) != type_ or plan.column(name).null_count for name, type_ in _TYPES.items()):
        return None
    return plan if known.get("epig_key", pa.string()) == pa.string() else None

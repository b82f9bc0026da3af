"""The units behind a committed query, found again by its plan: no pool, model or label file is read."""

from __future__ import annotations

from dataclasses import dataclass

from raystream.engine.manifest import Manifest
from raystream.engine.receipt import Receipt, read_receipts
from raystream.engine.stored_plan import further_keys, read_plan
from raystream.engine.stores import Store
from raystream.errors import StoreError


@dataclass(frozen=True)
class StoredUnit:
    """A scored unit, the file of the pool that its rows stand in, and its EPIG, if the query asked for that."""

    name: str
    path: str
    first_row: int
    receipt: Receipt
    further: Receipt | None = None


def stored_units(store: Store, manifest: Manifest) -> list[StoredUnit]:
    """The units of a query's pool, in row order; those that it left out under `on_error: skip` are left out.

    Raises:
        StoreError: some are gone.
    """
    plan = read_plan(store, manifest.query)
    receipts = read_receipts(store, plan.column("key").to_pylist())
    after = further_keys(plan) or [None] * plan.num_rows
    known = dict(zip(after, read_receipts(store, [key or "" for key in after]), strict=True)) if any(after) else {}
    names, first_rows = plan.column("unit").to_pylist(), plan.column("first_row").to_pylist()
    units = [
        StoredUnit(name, name.rpartition("#rg")[0], first_row, receipt, known.get(key))
        for name, first_row, receipt, key in zip(names, first_rows, receipts, after, strict=True)
        if receipt is not None
    ]
    rows = sum(unit.receipt.rows for unit in units)
    if rows != manifest.counts.scored:
        raise StoreError(
            f"{len(names) - len(units)} of the {len(names)} units of query {manifest.query} are gone from store {store.uri}: "
            f"{rows:,} of its {manifest.counts.scored:,} scored rows are left; run raystream score with its query.yaml to have them again"
        )
    return units


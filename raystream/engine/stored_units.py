"""The units behind a committed query, found again by its plan: no pool, model or label file is read."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from raystream.engine.manifest import Manifest
from raystream.engine.receipt import Receipt, read_receipt
from raystream.engine.store import LocalStore
from raystream.engine.sweep import read_plan
from raystream.errors import StoreError

_LOOKUP_THREADS = 16


@dataclass(frozen=True)
class StoredUnit:
    """A scored unit, and the file of the pool that its rows stand in."""

    name: str
    path: str
    first_row: int
    receipt: Receipt


def stored_units(store: LocalStore, manifest: Manifest) -> list[StoredUnit]:
    """The units of a query's pool, in row order; those that it left out under `on_error: skip` are left out.

    Raises:
        StoreError: some are gone.
    """
    plan = read_plan(store, manifest.query)
    receipts = receipts_of(store, plan.column("key").to_pylist())
    names, first_rows = plan.column("unit").to_pylist(), plan.column("first_row").to_pylist()
    units = [
        StoredUnit(name, name.rpartition("#rg")[0], first_row, receipt)
        for name, first_row, receipt in zip(names, first_rows, receipts, strict=True)
        if receipt is not None
    ]
    rows = sum(unit.receipt.rows for unit in units)
    if rows != manifest.counts.scored:
        raise StoreError(
            f"{len(names) - len(units)} of the {len(names)} units of query {manifest.query} are gone from store {store.root}: "
            f"{rows:,} of its {manifest.counts.scored:,} scored rows are left; run raystream score with its query.yaml to have them again"
        )
    return units


def receipts_of(store: LocalStore, keys: Sequence[str]) -> list[Receipt | None]:
    """The receipts of units, None for those that aren't in the store whole."""
    with ThreadPoolExecutor(_LOOKUP_THREADS) as threads:
        return list(threads.map(lambda key: read_receipt(store, key), keys))

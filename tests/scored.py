"""Queries that are planned, and what the store holds of their units."""

from __future__ import annotations

from pathlib import Path

from raystream import Query
from raystream.scoring.plan import ResolvedQuery, ScoringPlan, resolve
from raystream.store.receipts import Receipt, UnitOutputs
from raystream.store.unit_columns import read_outputs


def planned(query: Query) -> tuple[ResolvedQuery, ScoringPlan]:
    """The query and its units."""
    asked = resolve(query)
    return asked, asked.plan(asked.pool.units)


def stored_outputs(query: Query) -> list[UnitOutputs]:
    """What is kept of each of its units; it must have been run."""
    asked, plan = planned(query)
    return list(read_outputs(asked.store, plan.keys, [output.name for output in plan.outputs]))


def receipt_of(unit: UnitOutputs, kind: str) -> Receipt:
    """That of a kind, which must be there."""
    receipt = unit.of(kind)
    assert receipt is not None
    return receipt


def file_of(query: Query, unit: UnitOutputs, kind: str) -> Path:
    """Where a kind's file lies, of a store in a folder."""
    stored = receipt_of(unit, kind).file
    assert stored is not None
    return Path(query.store.uri).absolute() / stored.name

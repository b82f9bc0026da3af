"""The labelled rows' embeddings: in the pool, outside its filters, or in the labelled files themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raystream.engine.embeddings import VectorFiles
from raystream.engine.merge import ScoredPool, check_same_model
from raystream.engine.prepare import Prepared, find_scored
from raystream.engine.receipt import Receipt
from raystream.engine.session import Session
from raystream.errors import QueryError
from raystream.pool import Labelled, Unit, has_columns, labelled_units, locate_labelled
from raystream.query import Query


@dataclass(frozen=True)
class Covered:
    """What is known of the labelled rows.

    `mask` marks those of the scored pool; `known` counts these and those whose embedding was found elsewhere.
    `embeddings` (m, d) holds a row for each labelled row whose embedding is known, or None when the choice doesn't
    look at embeddings; `probabilities` (m, c) the same rows' class probabilities, None unless all of them have some.
    `units` are the keys of the units elsewhere.
    """

    mask: np.ndarray
    known: int
    embeddings: np.ndarray | None
    warnings: tuple[str, ...]
    probabilities: np.ndarray | None = None
    units: tuple[str, ...] = ()


def cover(prepared: Prepared, pool: ScoredPool, session: Session | None) -> Covered:
    """Find the labelled rows and, where the choice needs them, their embeddings.

    Args:
        prepared: the query.
        pool: its scored rows.
        session: scores labelled rows that the pool's filters exclude or that lie in files of their own; None when
            nothing may be scored.
    """
    labelled = prepared.labelled
    if labelled is None:
        return Covered(np.zeros(len(pool), bool), 0, None, ())
    elsewhere: list[Receipt] = []
    if prepared.query.needs_embedding:
        for units in _elsewhere(prepared, labelled, pool):
            elsewhere += _scored(prepared, units, session)
    return covered_by(prepared.query, labelled, pool, elsewhere)


def covered_by(query: Query, labelled: Labelled, pool: ScoredPool, elsewhere: Sequence[Receipt]) -> Covered:
    """What the scored pool, and units over labelled rows outside it, say of the labelled rows.

    Args:
        query: says whether the choice looks at embeddings.
        labelled: the labelled ids.
        pool: the scored rows.
        elsewhere: the receipts of the units outside the pool.
    """
    mask = labelled.find(pool.ids)
    found = int(mask.sum())
    if not query.needs_embedding:
        absent = len(labelled) - found
        where = "not in the pool or quarantined" if any(receipt.quarantined for receipt in pool.receipts) else "not in the pool"
        warning = f"{absent} of {len(labelled)} labelled ids are {where}" if absent and not query.pool.filters else ""
        return Covered(mask, found, None, (*labelled.warnings, *([warning] if warning else [])))
    check_same_model([*pool.receipts, *elsewhere])
    pieces = [pool.embeddings_of(np.flatnonzero(mask))]
    beside = [pool.probabilities_of(np.flatnonzero(mask))] if query.select.traits.probabilities else []
    vectors, others = VectorFiles(pool.store), VectorFiles(pool.store)
    for receipt in elsewhere:
        if receipt.embeddings is not None:
            pieces += [part.array for part in vectors.parts(receipt.embeddings, receipt.rows)]
            found += receipt.rows
        if receipt.probabilities is not None:
            beside += [part.array for part in others.parts(receipt.probabilities, receipt.rows)]
    lost = len(labelled) - found
    bad = sum(receipt.quarantined for receipt in [*pool.receipts, *elsewhere])
    warning = _uncovered(lost, len(labelled), bad)
    filled = [piece for piece in pieces if len(piece)]
    every = [piece for piece in beside if len(piece)]
    whole = sum(map(len, every)) == sum(map(len, filled))
    embeddings, probabilities = (np.concatenate(some) if some else None for some in (filled, every))
    warnings = (*labelled.warnings, *([warning] if lost else []))
    return Covered(mask, found, embeddings, warnings, probabilities if whole else None, tuple(receipt.key for receipt in elsewhere))


def _uncovered(lost: int, labelled: int, quarantined: int) -> str:
    """What is known of labelled rows without an embedding; ids of quarantined rows are nowhere in the store."""
    where = "neither in the pool nor in labelled files that hold the input columns"
    if quarantined:
        were = "row was" if quarantined == 1 else "rows were"
        where = f"not among the scored rows: they are {where}, or quarantined, as {quarantined} {were}"
    return f"{lost} of {labelled} labelled ids are {where}; they are excluded, but don't count as covered"


def _elsewhere(prepared: Prepared, labelled: Labelled, pool: ScoredPool) -> list[list[Unit]]:
    """Units over the labelled rows that aren't among the scored ones: those that filters exclude, and those in files of their own."""
    model = prepared.query.model
    enough = [model.embedding] if model.kind == "columns" and model.embedding else None
    filtered = bool(prepared.query.pool.filters)
    if not filtered and not any(has_columns(labelled.files, prepared.pool.read.only(enough).columns)):
        return []  # nowhere else to look: millions of labelled ids needn't be compared with the pool's
    absent = labelled.missing_from(pool.ids)
    excluded: list[Unit] = []
    if len(absent) and filtered:
        excluded, absent = locate_labelled(prepared.pool, absent)
    apart = labelled_units(absent, prepared.pool.read, enough)[0] if len(absent) else []
    return [units for units in (excluded, apart) if units]


def _scored(prepared: Prepared, units: Sequence[Unit], session: Session | None) -> list[Receipt]:
    tasks, receipts = find_scored(prepared.query, prepared.store, units, prepared.pool.read, prepared.fingerprint, prepared.asked)
    prepared.needs(tasks)
    missing = [task for task, receipt in zip(tasks, receipts, strict=True) if receipt is None]
    if missing and session is None:
        raise QueryError(f"{len(missing)} units of labelled rows are not scored yet; run raystream query or raystream score first")
    scored = session.score(missing) if session is not None else []
    return [receipt for receipt in [*receipts, *scored] if receipt is not None]

"""The labelled rows' embeddings: in the pool, outside its filters, or in the labelled files themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from raystream.choosing.scored_pool import ScoredPool
from raystream.errors import LabelsError, QueryError
from raystream.pool import Labelled, Unit, has_columns, labelled_units, locate_labelled
from raystream.query import Query
from raystream.scoring.plan import Prepared, find_scored
from raystream.scoring.session import Session, refuse_quarantined
from raystream.store.quarantined import quarantined_rows
from raystream.store.receipts import Receipt, check_same_model
from raystream.store.vectors import VectorFiles

_SHOWN = 3


@dataclass(frozen=True)
class LabelledRows:
    """What is known of the labelled rows.

    `mask` marks the rows of the scored pool that are never chosen: those that are labelled, skipped or rejected. `known` counts the
    labelled ones, and those whose embedding was found elsewhere.
    `embeddings` (m, d) holds a row for each labelled row whose embedding is known, or None when the choice doesn't
    look at embeddings; `probabilities` (m, c) the same rows' class probabilities, None unless all of them have some.
    `elsewhere` are the receipts of the units over those that are not in the scored pool.
    """

    mask: np.ndarray
    known: int
    embeddings: np.ndarray | None
    warnings: tuple[str, ...]
    probabilities: np.ndarray | None = None
    elsewhere: tuple[Receipt, ...] = ()


def find_labelled_rows(prepared: Prepared, pool: ScoredPool, session: Session | None) -> LabelledRows:
    """Find the labelled rows and, where the choice needs them, their embeddings.

    Args:
        prepared: the query.
        pool: its scored rows.
        session: scores labelled rows that the pool's filters exclude or that lie in files of their own; None when
            nothing may be scored.

    Raises:
        LabelsError: none of the labelled rows is in the pool, and none can be scored from its own file.
    """
    labelled = prepared.labelled
    if labelled is None:
        return LabelledRows(np.zeros(len(pool), bool), 0, None, ())
    found = _Found.of(labelled, pool)
    filtered, apart = _elsewhere(prepared, labelled, pool, found)
    if not found.any and not filtered and not apart:
        _refuse_foreign(prepared, labelled, pool)
    if not prepared.query.needs_embedding:
        return _covered(prepared.query, labelled, pool, found, (), sum(unit.rows for unit in filtered))
    elsewhere = [receipt for units in (filtered, apart) if units for receipt in _scored(prepared, units, session)]
    return _covered(prepared.query, labelled, pool, found, elsewhere)


def labelled_rows_of(query: Query, labelled: Labelled, pool: ScoredPool, elsewhere: Sequence[Receipt]) -> LabelledRows:
    """What the scored pool, and units over labelled rows outside it, say of the labelled rows.

    Args:
        query: says whether the choice looks at embeddings.
        labelled: the labelled ids.
        pool: the scored rows.
        elsewhere: the receipts of the units outside the pool.
    """
    return _covered(query, labelled, pool, _Found.of(labelled, pool), elsewhere)


@dataclass(frozen=True)
class _Found:
    """(n,) which of the scored rows are labelled, and which were skipped or rejected."""

    labelled: np.ndarray
    excluded: np.ndarray

    @classmethod
    def of(cls, labelled: Labelled, pool: ScoredPool) -> _Found:
        return cls(labelled.find(pool.ids), labelled.find_excluded(pool.ids))

    @property
    def any(self) -> bool:
        """Whether there is any row of either kind."""
        return bool(self.labelled.any() or self.excluded.any())


def _covered(
    query: Query, labelled: Labelled, pool: ScoredPool, here: _Found, elsewhere: Sequence[Receipt], filtered: int = 0
) -> LabelledRows:
    """See `labelled_rows_of`; `filtered` counts labelled rows that the filters exclude, where these aren't scored."""
    found, mask = int(here.labelled.sum()), here.labelled | here.excluded
    if not query.needs_embedding:
        absent = len(labelled) - found - filtered
        where = "not in the pool or quarantined" if any(receipt.quarantined for receipt in pool.receipts) else "not in the pool"
        told = [f"{absent} of {len(labelled)} labelled ids are {where}"] if absent else []
        return LabelledRows(mask, found, None, (*labelled.warnings, *told))
    check_same_model([*pool.receipts, *elsewhere])
    rows = np.flatnonzero(here.labelled)
    pieces = [pool.embeddings_of(rows)]
    beside = [pool.probabilities_of(rows)] if query.select.traits.probabilities else []
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
    return LabelledRows(mask, found, embeddings, warnings, probabilities if whole else None, tuple(elsewhere))


def _uncovered(lost: int, labelled: int, quarantined: int) -> str:
    """What is known of labelled rows without an embedding; ids of quarantined rows are nowhere in the store."""
    where = "neither in the pool nor in labelled files that hold the input columns"
    if quarantined:
        were = "row was" if quarantined == 1 else "rows were"
        where = f"not among the scored rows: they are {where}, or quarantined, as {quarantined} {were}"
    return f"{lost} of {labelled} labelled ids are {where}; they are excluded, but don't count as covered"


def _elsewhere(prepared: Prepared, labelled: Labelled, pool: ScoredPool, found: _Found) -> tuple[list[Unit], list[Unit]]:
    """Units over the labelled rows that aren't among the scored ones: those that filters exclude, and those in files of their own."""
    filtered = bool(prepared.query.pool.filters)
    in_files = prepared.query.needs_embedding and _carry_inputs(prepared, labelled)
    if not filtered and not in_files:
        return [], []  # nowhere else to look: millions of labelled ids needn't be compared with the pool's
    absent = labelled.missing_from(pool.ids) if found.labelled.any() else labelled
    excluded: list[Unit] = []
    if len(absent) and filtered:
        excluded, absent = locate_labelled(prepared.pool, absent)
    return excluded, labelled_units(absent, prepared.pool.read, _enough(prepared))[0] if len(absent) and in_files else []


def _enough(prepared: Prepared) -> list[str] | None:
    """The input columns that suffice in labelled files; None for all of them."""
    model = prepared.query.model
    return [model.embedding] if model.kind == "columns" and model.embedding else None


def _carry_inputs(prepared: Prepared, labelled: Labelled) -> bool:
    """Whether rows of any labelled file can be scored by what stands in the file."""
    return any(has_columns(labelled.files, prepared.pool.read.only(_enough(prepared)).columns))


def _refuse_foreign(prepared: Prepared, labelled: Labelled, pool: ScoredPool) -> None:
    """Refuse labels of which none is a row of the pool, unless some of its rows are unknown: their ids may be written otherwise."""
    every = labelled.every
    if not (len(every) or labelled.outside) or _carry_inputs(prepared, labelled):
        return
    if len(pool.receipts) < len(prepared.tasks) or prepared.pool.unreadable:
        return
    if any(every.find(table.column(0)).any() for table in quarantined_rows(pool.store, pool.receipts)):
        return
    if locate_labelled(prepared.pool, replace(labelled, ids=labelled.excluded))[0]:
        return
    ids, own = (", ".join(map(repr, some.slice(0, _SHOWN).to_pylist())) for some in (every.ids, pool.ids))
    first = f" ({ids}{', ..' if len(every) > _SHOWN else ''})" if ids else ""
    raise LabelsError(
        f"none of the {len(every) + labelled.outside} ids{first} in pool.labelled {', '.join(prepared.query.pool.labelled)} is in the "
        f"pool, whose ids are {own}.., and no labelled file holds the input columns; check pool.id and how the ids are written, or "
        "remove pool.labelled"
    )


def _scored(prepared: Prepared, units: Sequence[Unit], session: Session | None) -> list[Receipt]:
    tasks, receipts = find_scored(prepared.query, prepared.store, units, prepared.pool.read, prepared.fingerprint, prepared.asked)
    prepared.needs(tasks)
    missing = [task for task, receipt in zip(tasks, receipts, strict=True) if receipt is None]
    if missing and session is None:
        raise QueryError(f"{len(missing)} units of labelled rows are not scored yet; run raystream query or raystream score first")
    scored = session.score(missing) if session is not None else []
    found = [receipt for receipt in [*receipts, *scored] if receipt is not None]
    refuse_quarantined(prepared.query, found)
    return found

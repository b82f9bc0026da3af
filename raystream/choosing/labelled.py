"""The labelled rows' embeddings: in the pool, outside its filters, or in the labelled files themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from raystream.errors import LabelsError, QueryError
from raystream.figures import several
from raystream.pool import Labelled, LabelledMarks, Unit, has_columns, labelled_units, locate_labelled
from raystream.query import Query
from raystream.scoring.plan import ResolvedQuery
from raystream.scoring.scored_pool import ScoredPool, unit_vectors
from raystream.scoring.session import Session, refuse_quarantined
from raystream.store.receipts import EMBEDDINGS, PROBABILITIES, UnitOutputs
from raystream.store.unit_columns import check_same_model, quarantined_rows, with_losses

_SHOWN = 3


@dataclass(frozen=True)
class LabelledRows:
    """The labelled rows, and all that is known of them.

    `mask` marks the rows of the scored pool that are never chosen: those that are labelled, skipped or rejected. `known` counts the
    labelled ones, and those whose embedding was found elsewhere.
    `embeddings` (m, d) holds a row for each labelled row whose embedding is known, or None when the choice doesn't
    look at embeddings; `probabilities` (m, c) the same rows' class probabilities, None unless all of them have some.
    `elsewhere` are the units over those that are not in the scored pool.
    """

    mask: np.ndarray
    known: int
    embeddings: np.ndarray | None
    warnings: tuple[str, ...]
    probabilities: np.ndarray | None = None
    elsewhere: tuple[UnitOutputs, ...] = ()


def find_labelled_rows(asked: ResolvedQuery, pool: ScoredPool, session: Session) -> LabelledRows:
    """Find the labelled rows and, where the choice needs them, their embeddings.

    Args:
        asked: the query.
        pool: its scored rows.
        session: scores labelled rows that the pool's filters exclude or that lie in files of their own, if it may.

    Raises:
        LabelsError: none of the labelled rows is in the pool, and none can be scored from its own file.
    """
    labelled = asked.labelled
    if labelled is None:
        return LabelledRows(np.zeros(len(pool), bool), 0, None, ())
    found = pool.labelled or LabelledMarks.of(labelled, pool.ids)
    filtered, apart = _elsewhere(asked, labelled, pool, found)
    if not (found.labelled.any() or found.excluded.any()) and not filtered and not apart:
        _refuse_foreign(asked, labelled, pool)
    if not asked.query.needs_embedding:
        return _covered(asked.query, labelled, pool, found, (), sum(unit.rows for unit in filtered))
    elsewhere = [unit for units in (filtered, apart) if units for unit in _scored(asked, units, session)]
    return _covered(asked.query, labelled, pool, found, elsewhere)


def labelled_rows_of(query: Query, labelled: Labelled, pool: ScoredPool, elsewhere: Sequence[UnitOutputs]) -> LabelledRows:
    """Gather what the scored pool, and units over labelled rows outside it, say of the labelled rows.

    Args:
        query: says whether the choice looks at embeddings.
        labelled: the labelled ids.
        pool: the scored rows.
        elsewhere: the units outside the pool.
    """
    return _covered(query, labelled, pool, pool.labelled or LabelledMarks.of(labelled, pool.ids), elsewhere)


def _covered(
    query: Query, labelled: Labelled, pool: ScoredPool, here: LabelledMarks, elsewhere: Sequence[UnitOutputs], filtered: int = 0
) -> LabelledRows:
    """See `labelled_rows_of`; `filtered` counts labelled rows that the filters exclude, where these aren't scored."""
    found, mask = int(here.labelled.sum()), here.labelled | here.excluded
    if not query.needs_embedding:
        absent = len(labelled) - found - filtered
        where = "not in the pool or quarantined" if any(pool.units.quarantined) else "not in the pool"
        told = [f"{absent} of {len(labelled)} labelled ids are {where}"] if absent else []
        return LabelledRows(mask, found, None, (*labelled.warnings, *told))
    check_same_model(pool.units, elsewhere)
    rows = np.flatnonzero(here.labelled)
    pieces = [pool.embeddings_of(rows), *unit_vectors(pool.store, elsewhere, EMBEDDINGS)]
    beside = []
    if query.select.traits.probabilities:
        beside = [pool.probabilities_of(rows), *unit_vectors(pool.store, elsewhere, PROBABILITIES)]
    found += sum(map(len, pieces[1:]))
    lost = len(labelled) - found
    bad = sum(unit.quarantined for unit in with_losses([pool.units, elsewhere]))
    warning = _uncovered(lost, len(labelled), bad)
    filled = [piece for piece in pieces if len(piece)]
    every = [piece for piece in beside if len(piece)]
    whole = sum(map(len, every)) == sum(map(len, filled))
    embeddings, probabilities = (np.concatenate(some) if some else None for some in (filled, every))
    warnings = (*labelled.warnings, *([warning] if lost else []))
    return LabelledRows(mask, found, embeddings, warnings, probabilities if whole else None, tuple(elsewhere))


def _uncovered(lost: int, labelled: int, quarantined: int) -> str:
    """Word the warning about labelled rows without an embedding; ids of quarantined rows are nowhere in the store."""
    where = "neither in the pool nor in labelled files that hold the input columns"
    if quarantined:
        were = "row was" if quarantined == 1 else "rows were"
        where = f"not among the scored rows: they are {where}, or quarantined, as {quarantined} {were}"
    return f"{lost} of {labelled} labelled ids are {where}; they are excluded, but don't count as covered"


def _elsewhere(asked: ResolvedQuery, labelled: Labelled, pool: ScoredPool, found: LabelledMarks) -> tuple[list[Unit], list[Unit]]:
    """List units over the labelled rows that aren't among the scored ones: those that filters exclude, and those in files of their own."""
    filtered = bool(asked.query.pool.filters)
    in_files = asked.query.needs_embedding and carry_inputs(asked, labelled)
    if not filtered and not in_files:
        return [], []  # nowhere else to look: millions of labelled ids needn't be compared with the pool's
    absent = labelled.only(found.missing)
    excluded: list[Unit] = []
    if len(absent) and filtered:
        excluded, absent = locate_labelled(asked.pool, absent)
    return excluded, labelled_units(absent, asked.pool.read, _enough(asked))[0] if len(absent) and in_files else []


def _enough(asked: ResolvedQuery) -> list[str] | None:
    """Name the input columns that suffice in labelled files; None for all of them."""
    model = asked.query.model
    return [model.embedding] if model.carried and model.embedding else None


def carry_inputs(asked: ResolvedQuery, labelled: Labelled) -> bool:
    """Tell whether rows of any labelled file can be scored by what stands in the file."""
    return any(has_columns(labelled.files, asked.pool.read.only(_enough(asked)).columns))


def _refuse_foreign(asked: ResolvedQuery, labelled: Labelled, pool: ScoredPool) -> None:
    """Refuse labels of which none is a row of the pool, unless some of its rows are unknown: their ids may be written otherwise."""
    every = labelled.every
    if not (len(every) or labelled.outside) or carry_inputs(asked, labelled):
        return
    if len(pool.units) < len(asked.pool.units) or asked.pool.unreadable:
        return
    if any(every.find(table.column(0)).any() for table in quarantined_rows(pool.store, pool.units)):
        return
    if locate_labelled(asked.pool, replace(labelled, ids=labelled.excluded))[0]:
        return
    raise none_in_the_pool(asked, labelled, pool.ids_at(np.arange(min(_SHOWN, len(pool)))))


def none_in_the_pool(asked: ResolvedQuery, labelled: Labelled, few: pa.Array) -> LabelsError:
    """Say what is wrong with labels of which none is a row of the pool, whose first ids are these few."""
    every = labelled.every
    ids, own = (several(some.slice(0, _SHOWN + 1).to_pylist(), _SHOWN) for some in (every.ids, few))
    first = f" ({ids})" if ids else ""
    return LabelsError(
        f"none of the {len(every) + labelled.outside} ids{first} in pool.labelled {', '.join(asked.query.pool.labelled)} is in the "
        f"pool, whose ids are {own}.., and no labelled file holds the input columns; check pool.id and how the ids are written, or "
        "remove pool.labelled"
    )


def _scored(asked: ResolvedQuery, units: Sequence[Unit], session: Session) -> list[UnitOutputs]:
    plan = asked.plan(units)
    session.needs(plan)
    if plan.missing and not session.may_score:
        raise QueryError(f"{len(plan.missing)} units of labelled rows are not scored yet; run raystream query or raystream score first")
    found = list(session.score(plan))
    refuse_quarantined(asked.query, found)
    return found

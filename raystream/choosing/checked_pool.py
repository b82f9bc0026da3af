"""Reads a query's scored pool, and refuses one that can't be chosen from."""

from __future__ import annotations

from collections.abc import Sequence

from raystream.errors import ModelError, PoolError
from raystream.model import check_classes
from raystream.pool import check_unique
from raystream.query import Query
from raystream.query.catalogue import SAMPLE_SCORES
from raystream.scoring.class_labels import named_classes
from raystream.scoring.output_kinds import EPIG
from raystream.scoring.plan import ResolvedQuery, ScoringPlan
from raystream.scoring.scored_pool import ScoredPool, merge
from raystream.scoring.session import refuse_quarantined
from raystream.store.receipts import EMBEDDINGS, UnitOutputs


def read_pool(asked: ResolvedQuery, plan: ScoringPlan, scored: Sequence[UnitOutputs | None], warnings: Sequence[str] = ()) -> ScoredPool:
    """The merged pool, once it is known to be sound: rows to choose from, unique ids, outputs of one shape.

    Args:
        asked: the query.
        plan: its units.
        scored: the outputs of each, None for those that are left out.
        warnings: why they are.

    Raises:
        DataError: it can't be chosen from.
    """
    query = asked.query
    found = [(unit, of.file) for unit, of in zip(scored, plan.units, strict=True) if unit is not None]
    units = [unit for unit, _ in found]
    refuse_quarantined(query, units)
    if not units:
        reason = f": {warnings[0]}" if warnings else ""
        raise PoolError(f"no unit of {', '.join(query.pool.uris)} could be scored{reason}")
    lacking = next((unit.unit for unit in units if unit.rows and unit.members is None), None)
    compared = [score for score in query.acquire.asked if score in SAMPLE_SCORES]
    if lacking and (compared or query.select.traits.samples):
        raise ModelError(
            f"{compared[0] if compared else query.select.strategy} compares several opinions of a row, but the model gave one in unit "
            f"{lacking}; use a committee, such as a forest, or MC dropout"
        )
    pool = merge(asked.store, units, [file for _, file in found], query.pool.id or "id", ranking_column(query))
    _check(asked, pool)
    return pool


def ranking_column(query: Query) -> str | None:
    """The column that rows are ranked by, if they are and it is there once they are scored."""
    return query.acquire.column if query.needs_score and query.acquire.score != EPIG else None


def flat_scores(query: Query, pool: ScoredPool) -> list[str]:
    """A warning where the score ranks nothing."""
    if not query.needs_score or pool.score is None or len(pool) < 2:
        return []
    least, most = float(pool.score.min()), float(pool.score.max())
    if least < most:
        return []
    return [f"all {len(pool):,} rows have the same {query.acquire.score}, {least:.4g}, so it ranks nothing; look at the model's outputs"]


def _check(asked: ResolvedQuery, pool: ScoredPool) -> None:
    query = asked.query
    if not len(pool):
        reasons = [reason for unit in pool.units for reason in unit.reasons]
        first = f"; the first of the rows left out: {reasons[0]}" if reasons else ""
        raise PoolError(f"no row of {', '.join(query.pool.uris)} is left to choose from after pool.filters and on_error{first}")
    check_unique(pool.ids, query.pool.id or "id", pool.place, pool.ids_at)
    named_classes(asked.classes, pool.units)
    classes = next((unit.classes for unit in pool.units if unit.classes is not None), None)
    if asked.classes is not None and classes is not None:
        check_classes(asked.classes, classes)
    if query.needs_embedding and not pool.holds(EMBEDDINGS):
        raise ModelError("the model gave no embedding; name the module in model.embedding")
    calibration = asked.calibration
    if calibration is not None and any(unit.receipts[0].state_hash != calibration.state_hash for unit in pool.units):
        raise ModelError(
            "the model that scored the pool isn't the one that model.temperature was fitted with: the factory does not build the same "
            "model every time; make it deterministic or give model.weights"
        )

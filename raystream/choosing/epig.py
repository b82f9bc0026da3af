"""EPIG of a scored pool: it compares each row with target rows, so it comes after all of them are scored.

No row is read and no model runs again: every unit's stored samples are compared with the targets', by the workers, each result kept as
one more output of its unit. So this, too, is resumed after a crash and shared between queries, and the driver holds the targets alone.
"""

from __future__ import annotations

import hashlib
import io

import numpy as np

from raystream.choosing.candidates import hashes_of
from raystream.errors import PoolError, QueryError
from raystream.pool import UnitNames
from raystream.scoring.output_kinds import EPIG, Output
from raystream.scoring.plan import ResolvedQuery, ScoringPlan, plan_scoring, pool_plan
from raystream.scoring.scored_pool import ScoredPool, merge
from raystream.scoring.session import Session
from raystream.selection import draw, random_order
from raystream.store.receipts import SAMPLES
from raystream.store.unit_columns import check_same_model


def with_epig(asked: ResolvedQuery, plan: ScoringPlan, pool: ScoredPool, session: Session) -> tuple[ScoredPool, list[Output], list[str]]:
    """Return the pool with its EPIG, if the query asks for that; what its units hold beside the outputs of the plan; warnings.

    Args:
        asked: the query.
        plan: its units.
        pool: their scored rows, with samples.
        session: computes what isn't stored yet, if it may.

    Raises:
        QueryError: something must be scored first, but nothing may be.
        PoolError: the targets can't be read as the pool's rows are.
    """
    if EPIG not in asked.query.acquire.asked:
        return pool, [], []
    targets, warnings = _targets(asked, pool, session)
    data = io.BytesIO()
    np.save(data, targets)
    digest = hashlib.sha256(data.getvalue()).hexdigest()
    name = f"{asked.folder}/targets-{digest[:12]}.npy"
    asked.store.put(name, data.getvalue())
    output = asked.kinds.of(EPIG, targets=digest)
    filled = pool.units.places[pool.units.rows > 0]
    compared = plan_scoring(asked.store, asked.keys, plan.units.take(filled), (output,))
    session.needs(compared)
    samples = asked.kinds.of(SAMPLES).name
    if len(compared.to_compute) and not session.may_score:
        raise QueryError(f"epig is not computed yet for {len(compared.to_compute)} units; run raystream query or raystream score first")
    session.compute(compared, lambda task: task._replace(samples=samples, targets=name))
    [table] = compared.found
    _check_all(compared, table.there)
    ranks = asked.query.needs_score and asked.query.acquire.score == EPIG
    return pool.with_output(table.spread(filled, plan.keys, UnitNames(plan.units)), EPIG if ranks else None), [output], warnings


def _targets(asked: ResolvedQuery, pool: ScoredPool, session: Session) -> tuple[np.ndarray, list[str]]:
    """Read (m, k, c) float32 log-probabilities of the targets: at most as many as asked for, the first by the hash of their ids."""
    acquire = asked.query.acquire
    most = int(acquire.arg("targets"))
    warnings = []
    if acquire.targets:
        pool = _scored_targets(asked, pool, session)
        if len(pool) > most:
            warnings.append(f"{most} of the {len(pool)} rows of acquire.targets are used, drawn at random; raise acquire.args.targets")
    keys = draw(hashes_of(pool, asked.query.seed, None), "epig_targets")
    return pool.samples(SAMPLES, np.sort(random_order(keys, min(most, len(pool))))), warnings


def _scored_targets(asked: ResolvedQuery, pool: ScoredPool, session: Session) -> ScoredPool:
    """Read the rows of `acquire.targets` as the pool's are, and score them."""
    query = asked.query
    where = f"acquire.targets {', '.join(query.acquire.targets)}"
    of_targets = query.pool.derived(uri=query.acquire.targets, filters=[], labelled=[], keep=[])
    try:
        read = pool_plan(query, of_targets)
    except (PoolError, QueryError) as error:
        raise type(error)(f"{where}: {str(error).removeprefix('pool.uri ')}") from None
    ours = asked.pool.read
    if read.read != ours:
        differ = next((a.name for a, b in zip(read.read.columns, ours.columns, strict=False) if a != b), "the id column")
        raise PoolError(f"{where}: {differ} is of another type or shape than in the pool; targets are read as the pool's rows are")
    plan = asked.plan(read.units)
    session.needs(plan)
    if len(plan.to_compute) and not session.may_score:
        raise QueryError(f"epig is not computed yet for {len(plan.to_compute)} units; run raystream query or raystream score first")
    scored = session.score(plan)
    _check_all(plan, np.isin(np.arange(len(plan.units)), scored.places))
    check_same_model(pool.units, scored)
    targets = merge(asked.store, scored, plan.units.files, plan.units.file_of, query.pool.id or "id", None)
    if not len(targets):
        raise PoolError(f"{where} holds no row that can be scored")
    return targets


def _check_all(plan: ScoringPlan, there: np.ndarray) -> None:
    """See that all units have outputs; (n,) which of them do.

    Raises:
        PoolError: one has none.
    """
    if not there.all():
        lost = plan.units[int(np.argmin(there))].name
        raise PoolError(f"{lost} could not be scored, and epig needs it; see the events of the query, and run it again")

"""EPIG of a scored pool: it compares each row with target rows, so it comes after all of them are scored.

No row is read and no model runs again: every unit's stored samples are compared with the targets', by the workers, each result kept as
one more output of its unit. So this, too, is resumed after a crash and shared between queries, and the driver holds the targets alone.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace

import numpy as np

from raystream.choosing.candidates import hashes
from raystream.errors import PoolError, QueryError
from raystream.scoring.output_kinds import EPIG, Output
from raystream.scoring.plan import ResolvedQuery, ScoringPlan, plan_scoring, pool_plan
from raystream.scoring.scored_pool import ScoredPool, merge
from raystream.scoring.session import Session
from raystream.selection import draw, random_order
from raystream.store.receipts import SAMPLES, UnitOutputs, check_same_model


def with_epig(asked: ResolvedQuery, plan: ScoringPlan, pool: ScoredPool, session: Session) -> tuple[ScoredPool, list[Output], list[str]]:
    """The pool with its EPIG, if the query asks for that; what its units hold beside the outputs of the plan; warnings.

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
    filled = {unit.key for unit in pool.units if unit.rows}
    units = [unit for unit, key in zip(plan.units, plan.keys, strict=True) if key in filled]
    compared = plan_scoring(asked.store, asked.keys, units, (output,))
    session.needs(compared)
    samples = asked.kinds.of(SAMPLES).name
    tasks = [replace(task, samples=samples, targets=name) for task in compared.missing]
    if tasks and not session.may_score:
        raise QueryError(f"epig is not computed yet for {len(tasks)} units; run raystream query or raystream score first")
    found = iter(_all(compared, compared.complete(session.compute(tasks))))
    every = [unit.and_also(next(found).receipts) if unit.rows else unit for unit in pool.units]
    ranks = asked.query.needs_score and asked.query.acquire.score == EPIG
    return pool.with_outputs(every, EPIG if ranks else None), [output], warnings


def _targets(asked: ResolvedQuery, pool: ScoredPool, session: Session) -> tuple[np.ndarray, list[str]]:
    """(m, k, c) float32 log-probabilities of the targets: at most as many as asked for, the first by the hash of their ids."""
    acquire = asked.query.acquire
    most = int(acquire.arg("targets"))
    warnings = []
    if acquire.targets:
        pool = _scored_targets(asked, pool, session)
        if len(pool) > most:
            warnings.append(f"{most} of the {len(pool)} rows of acquire.targets are used, drawn at random; raise acquire.args.targets")
    keys = draw(hashes(pool, asked.query.seed, None), "epig_targets")
    return pool.samples(SAMPLES, np.sort(random_order(keys, min(most, len(pool))))), warnings


def _scored_targets(asked: ResolvedQuery, pool: ScoredPool, session: Session) -> ScoredPool:
    """The rows of `acquire.targets`, read as the pool's are, and scored."""
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
    if plan.missing and not session.may_score:
        raise QueryError(f"epig is not computed yet for {len(plan.missing)} units; run raystream query or raystream score first")
    scored = _all(plan, session.score(plan))
    check_same_model([*pool.units, *scored])
    targets = merge(asked.store, scored, [unit.file for unit in plan.units], query.pool.id or "id", None)
    if not len(targets):
        raise PoolError(f"{where} holds no row that can be scored")
    return targets


def _all(plan: ScoringPlan, units: list[UnitOutputs | None]) -> list[UnitOutputs]:
    """The outputs of all units.

    Raises:
        PoolError: one has none.
    """
    lost = next((unit for unit, outputs in zip(plan.units, units, strict=True) if outputs is None), None)
    if lost is not None:
        raise PoolError(f"{lost.name} could not be scored, and epig needs it; see the events of the query, and run it again")
    return [unit for unit in units if unit is not None]

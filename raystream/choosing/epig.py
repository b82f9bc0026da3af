"""EPIG of a scored pool: it compares each row with target rows, so it comes after all of them are scored.

No row is read and no model runs again: every unit's stored samples are compared with the targets', by the workers, each result
under a key of its own. So this, too, is resumed after a crash and shared between queries, and the driver holds the targets alone.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from raystream.choosing.candidates import hashes
from raystream.choosing.scored_pool import ScoredPool, merge
from raystream.errors import PoolError, QueryError
from raystream.scoring.job import EpigTask, Task
from raystream.scoring.keys import epig_key
from raystream.scoring.plan import Prepared, find_scored, pool_plan
from raystream.scoring.session import Session
from raystream.selection import draw, random_order
from raystream.store.queries import query_folder
from raystream.store.receipts import Receipt, check_same_model, read_receipts

_TARGETS = 1000
"""Target rows, unless the query says otherwise: the time grows with them, the mean over them hardly changes."""


def with_epig(prepared: Prepared, pool: ScoredPool, session: Session | None) -> tuple[ScoredPool, list[str]]:
    """The pool with its EPIG, if the query asks for that, and warnings.

    Args:
        prepared: the query.
        pool: its scored rows, with samples.
        session: computes what isn't stored yet; None when nothing may be scored.

    Raises:
        QueryError: something must be scored first, but nothing may be.
        PoolError: the targets can't be read as the pool's rows are.
    """
    if "epig" not in prepared.query.acquire.asked:
        return pool, []
    targets, warnings = _targets(prepared, pool, session)
    data = io.BytesIO()
    np.save(data, targets)
    digest = hashlib.sha256(data.getvalue()).hexdigest()
    name = f"{query_folder(prepared.name)}/targets-{digest[:12]}.npy"
    prepared.store.put(name, data.getvalue())
    units = {task.key: task.unit for task in prepared.tasks}
    tasks = [Task(units[r.key], epig_key(r.key, digest), EpigTask(r.key, name)) for r in pool.receipts if r.rows]
    prepared.needs(tasks)
    found = iter(_receipts(prepared, tasks, session))
    further = tuple(next(found) if receipt.rows else None for receipt in pool.receipts)
    pool = replace(pool, further=further)
    if prepared.query.needs_score and prepared.query.acquire.score == "epig":
        pool = replace(pool, score=pool.further_column("epig"))
    return pool, warnings


def _targets(prepared: Prepared, pool: ScoredPool, session: Session | None) -> tuple[np.ndarray, list[str]]:
    """(m, k, c) float32 log-probabilities of the targets: at most as many as asked for, the first by the hash of their ids."""
    acquire = prepared.query.acquire
    most = int(acquire.args.get("targets", _TARGETS))
    warnings = []
    if acquire.targets:
        pool = _scored_targets(prepared, pool, session)
        if len(pool) > most:
            warnings.append(f"{most} of the {len(pool)} rows of acquire.targets are used, drawn at random; raise acquire.args.targets")
    keys = draw(hashes(pool, prepared.query.seed, None), "epig_targets")
    return pool.samples(np.sort(random_order(keys, min(most, len(pool))))), warnings


def _scored_targets(prepared: Prepared, pool: ScoredPool, session: Session | None) -> ScoredPool:
    """The rows of `acquire.targets`, read as the pool's are, and scored."""
    query = prepared.query
    where = f"acquire.targets {', '.join(query.acquire.targets)}"
    of_targets = query.pool.model_copy(update={"uri": query.acquire.targets, "filters": [], "labelled": [], "keep": []})
    try:
        plan = pool_plan(query, of_targets)
    except (PoolError, QueryError) as error:
        raise type(error)(f"{where}: {str(error).removeprefix('pool.uri ')}") from None
    ours = prepared.pool.read
    if plan.read != ours:
        differ = next((a.name for a, b in zip(plan.read.columns, ours.columns, strict=False) if a != b), "the id column")
        raise PoolError(f"{where}: {differ} is of another type or shape than in the pool; targets are read as the pool's rows are")
    tasks, receipts = find_scored(query, prepared.store, plan.units, plan.read, prepared.fingerprint, prepared.asked)
    prepared.needs(tasks)
    missing = iter(_receipts(prepared, [task for task, receipt in zip(tasks, receipts, strict=True) if receipt is None], session))
    scored = [next(missing) if receipt is None else receipt for receipt in receipts]
    check_same_model([*pool.receipts, *scored])
    targets = merge(prepared.store, scored, query.pool.id or "id", None)
    if not len(targets):
        raise PoolError(f"{where} holds no row that can be scored")
    return targets


def _receipts(prepared: Prepared, tasks: Sequence[Task], session: Session | None) -> list[Receipt]:
    """Of all tasks, stored before or scored now."""
    receipts = read_receipts(prepared.store, [task.key for task in tasks])
    missing = [task for task, receipt in zip(tasks, receipts, strict=True) if receipt is None]
    if missing and session is None:
        raise QueryError(f"epig is not computed yet for {len(missing)} units; run raystream query or raystream score first")
    new = iter(session.score(missing) if session is not None else [])
    complete = [next(new) if receipt is None else receipt for receipt in receipts]
    lost = next((task for task, receipt in zip(tasks, complete, strict=True) if receipt is None), None)
    if lost is not None:
        raise PoolError(f"{lost.unit.name} could not be scored, and epig needs it; see the events of the query, and run it again")
    return [receipt for receipt in complete if receipt is not None]

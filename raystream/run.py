"""Runs a query: plan, score, select, commit. The one path that every front end takes.

The engine is imported when a query runs: describing one must not wait for torch and pyarrow.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from raystream.errors import QueryError
from raystream.query import Query

if TYPE_CHECKING:
    from raystream.engine.progress import Reporter
    from raystream.engine.result import Result, Scores


def run(query: Query, *, reporter: Reporter | None = None, may_score: bool = True) -> Result:
    """Choose the query's batch and commit it. The same query again returns what is committed and changes nothing.

    Args:
        query: what to read, score and choose.
        reporter: told how far it is; silent if left out.
        may_score: whether units that aren't in the store may be scored; False is `raystream select`.

    Raises:
        RaystreamError: see `raystream.errors` for the kinds.
    """
    from raystream.engine.choosing import choose_batch
    from raystream.engine.covered import cover
    from raystream.engine.manifest import Seconds
    from raystream.engine.prepare import prepare, write_plan
    from raystream.engine.progress import Silent
    from raystream.engine.result import read_result
    from raystream.engine.session import Session
    from raystream.engine.stages import all_receipts, commit, score_warnings, scored_pool

    reporter = reporter or Silent()
    began = time.perf_counter()
    reporter.stage("Reading the pool's footers")
    prepared = prepare(query)
    committed = prepared.committed
    if committed is not None:
        return read_result(prepared.store, committed)
    if not may_score and prepared.missing:
        raise QueryError(
            f"{len(prepared.missing)} of {len(prepared.tasks)} units are not scored yet; run raystream query or raystream score first"
        )
    write_plan(prepared)
    planned = time.perf_counter()
    with Session(prepared, reporter) as session:
        receipts = all_receipts(prepared, session)
        scored = time.perf_counter()
        reporter.stage("Merging the scores")
        pool = scored_pool(prepared, receipts, session)
        covered = cover(prepared, pool, session if may_score else None)
        session.end_workers()
        reporter.stage(f"Choosing {query.select.budget} rows by {query.select.strategy}")
        batch = choose_batch(prepared, pool, covered, session)
    seconds = Seconds(
        start=session.start_seconds,
        plan=planned - began,
        score=scored - planned - session.start_seconds,
        select=time.perf_counter() - scored,
    )
    warnings = [*score_warnings(prepared, receipts, session), *covered.warnings, *batch.warnings]
    return commit(prepared, pool, batch, session, seconds, warnings, covered)


def score(query: Query, *, reporter: Reporter | None = None) -> Scores:
    """Score the query's pool, and labelled rows outside it, and choose nothing; a query over it later scores nothing.

    Raises:
        RaystreamError: see `raystream.errors` for the kinds.
    """
    from raystream.engine.covered import cover
    from raystream.engine.manifest import Seconds, read_manifest
    from raystream.engine.prepare import prepare, write_plan
    from raystream.engine.progress import Silent
    from raystream.engine.result import Scores
    from raystream.engine.session import Session
    from raystream.engine.stages import all_receipts, score_warnings, scored_pool

    reporter = reporter or Silent()
    began = time.perf_counter()
    reporter.stage("Reading the pool's footers")
    prepared = prepare(query)
    if read_manifest(prepared.store, prepared.name) is None:
        write_plan(prepared)  # `raystream gc` knows by it which units are in use
    planned = time.perf_counter()
    with Session(prepared, reporter) as session:
        receipts = all_receipts(prepared, session)
        pool = scored_pool(prepared, receipts, session)
        covered = cover(prepared, pool, session)
    seconds = Seconds(session.start_seconds, planned - began, time.perf_counter() - planned - session.start_seconds)
    return Scores(
        query=prepared.name,
        rows=len(pool),
        units_scored=session.units_scored,
        units_reused=len(prepared.tasks) - len(prepared.missing),
        warnings=(*score_warnings(prepared, receipts, session), *covered.warnings),
        seconds=seconds,
    )

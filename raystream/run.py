"""Runs a query: plan, score, select, commit. The one path that every front end takes.

The rooms behind it are imported when a query runs: describing one must not wait for torch and pyarrow.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from raystream.errors import QueryError, StoreError
from raystream.query import Query

if TYPE_CHECKING:
    from raystream.choosing.verify import Verified
    from raystream.cluster.processes import Processes
    from raystream.scoring.calibrate import Fitted
    from raystream.scoring.progress import Reporter
    from raystream.store.protocol import Store
    from raystream.store.result import Result, Scores


def run(query: Query, *, reporter: Reporter | None = None, may_score: bool = True) -> Result:
    """Choose the query's batch and commit it. The same query again returns what is committed and changes nothing.

    `query.output` is written after the commit, and by the same query again if it isn't there then.

    Args:
        query: what to read, score and choose.
        reporter: told how far it is; silent if left out.
        may_score: whether units that aren't in the store may be scored; False is `raystream select`.

    Raises:
        RaystreamError: see `raystream.errors` for the kinds.
    """
    from raystream.cluster.processes import Processes
    from raystream.scoring.calibrate import fitted_temperature
    from raystream.scoring.progress import Silent

    reporter = reporter or Silent()
    began = time.perf_counter()
    with Processes(query.cluster, reporter) as processes:
        fitted = fitted_temperature(query, reporter, processes, may_score=may_score)
        return _run(query, fitted, reporter, processes, may_score, time.perf_counter() - began)


def _run(query: Query, fitted: Fitted | None, reporter: Reporter, processes: Processes, may_score: bool, fitting: float) -> Result:
    from raystream.choosing.batch import choose_batch
    from raystream.choosing.commit import commit
    from raystream.choosing.epig import with_epig
    from raystream.choosing.labelled import find_labelled_rows
    from raystream.choosing.scored_pool import flat_scores, scored_pool
    from raystream.exchange.tables import check_output
    from raystream.pool import refuse_among
    from raystream.scoring.plan import prepare, write_plan
    from raystream.scoring.session import Session, all_receipts, model_notes, score_warnings, with_class_names
    from raystream.store.life import SignOfLife
    from raystream.store.manifest import Seconds
    from raystream.store.opening import refuse_in_store
    from raystream.store.result import read_result

    began = time.perf_counter()
    if query.output is not None:
        refuse_among(query.output, query.row_uris, "output", f"selection-{query.store.query or '0' * 12}.parquet")
        refuse_in_store(query.output, query.store.uri, "output")
        check_output(query.output, storage=query.pool.options)
    with SignOfLife() as life:
        reporter.stage("Reading the pool's footers")
        prepared = prepare(query, fitted.calibration if fitted else None, life=life)
        committed = prepared.committed
        if committed is not None:
            return _with_output(query, read_result(prepared.store, committed))
        if not may_score and prepared.missing:
            raise QueryError(
                f"{len(prepared.missing)} of {len(prepared.tasks)} units are not scored yet; run raystream query or raystream score first"
            )
        write_plan(prepared)
        planned = time.perf_counter()
        with Session(prepared, reporter, processes, life=life) as session:
            receipts = all_receipts(prepared, session)
            prepared = with_class_names(prepared, receipts)
            scored = time.perf_counter()
            reporter.stage("Merging the scores")
            pool, notes = with_epig(prepared, scored_pool(prepared, receipts, session), session if may_score else None)
            covered = find_labelled_rows(prepared, pool, session if may_score else None)
            session.end_workers()
            reporter.stage(f"Choosing {query.select.budget} rows by {query.select.strategy}")
            batch = choose_batch(prepared, pool, covered, processes)
        seconds = Seconds(
            start=session.start_seconds,
            plan=planned - began,
            score=scored - planned - session.start_seconds,
            select=time.perf_counter() - scored,
            calibrate=fitting,
        )
        warnings = [*score_warnings(prepared, receipts, session), *flat_scores(prepared, pool), *notes, *covered.warnings, *batch.warnings]
        warnings += model_notes(receipts)
        result = commit(prepared, pool, batch, session, seconds, warnings, covered)
    return _with_output(query, result)


def _with_output(query: Query, result: Result) -> Result:
    """The result, once the table that the query names holds it, too."""
    if query.output is None:
        return result
    from raystream.exchange.tables import write_table

    try:
        rows = result.selection.replace_schema_metadata(result.manifest.about)
        write_table(rows, query.output, result.query, storage=query.pool.options)
    except StoreError as error:
        raise StoreError(f"{error}; query {result.query} is committed, run it again to write this table") from error
    return replace(result, output=query.output)


def score(query: Query, *, reporter: Reporter | None = None) -> Scores:
    """Score the query's pool, and labelled rows outside it, and choose nothing; a query over it later scores nothing.

    Raises:
        RaystreamError: see `raystream.errors` for the kinds.
    """
    from raystream.cluster.processes import Processes
    from raystream.scoring.calibrate import fitted_temperature
    from raystream.scoring.progress import Silent

    reporter = reporter or Silent()
    began = time.perf_counter()
    with Processes(query.cluster, reporter) as processes:
        fitted = fitted_temperature(query, reporter, processes)
        return _score(query, fitted, reporter, processes, time.perf_counter() - began)


def _score(query: Query, fitted: Fitted | None, reporter: Reporter, processes: Processes, fitting: float) -> Scores:
    from raystream.choosing.epig import with_epig
    from raystream.choosing.labelled import find_labelled_rows
    from raystream.choosing.scored_pool import scored_pool
    from raystream.scoring.plan import prepare, write_plan
    from raystream.scoring.session import Session, all_receipts, model_notes, score_warnings, with_class_names
    from raystream.store.life import SignOfLife
    from raystream.store.manifest import Seconds
    from raystream.store.quarantined import named, quarantined_rows
    from raystream.store.queries import read_manifest
    from raystream.store.result import Scores

    began = time.perf_counter()
    with SignOfLife() as life:
        reporter.stage("Reading the pool's footers")
        prepared = prepare(query, fitted.calibration if fitted else None, life=life)
        if read_manifest(prepared.store, prepared.name) is None:
            write_plan(prepared)  # `raystream gc` knows by it which units are in use
        planned = time.perf_counter()
        with Session(prepared, reporter, processes, life=life) as session:
            receipts = all_receipts(prepared, session)
            prepared = with_class_names(prepared, receipts)
            pool, notes = with_epig(prepared, scored_pool(prepared, receipts, session), session)
            covered = find_labelled_rows(prepared, pool, session)
    scoring = time.perf_counter() - planned - session.start_seconds
    seconds = Seconds(start=session.start_seconds, plan=planned - began, score=scoring, calibrate=fitting)
    every = [*receipts, *covered.elsewhere]
    return Scores(
        query=prepared.name,
        rows=len(pool),
        units_scored=session.units_scored,
        units_reused=len(prepared.tasks) - len(prepared.missing),
        warnings=(*score_warnings(prepared, receipts, session), *notes, *covered.warnings, *model_notes(receipts)),
        seconds=seconds,
        quarantined=tuple(named(quarantined_rows(prepared.store, every), sum(receipt.quarantined for receipt in every))),
    )


def calibrate(query: Query, *, reporter: Reporter | None = None) -> Fitted:
    """Fit the query's temperature on its labelled rows and keep it; a query that asks for the same one scores none of them again.

    Raises:
        QueryError: the query gives the temperature as a number.
        RaystreamError: see `raystream.errors` for the kinds.
    """
    from raystream.cluster.processes import Processes
    from raystream.scoring.calibrate import fitted_temperature
    from raystream.scoring.progress import Silent

    reporter = reporter or Silent()
    with Processes(query.cluster, reporter) as processes:
        fitted = fitted_temperature(query, reporter, processes)
    if fitted is None:
        raise QueryError(
            f"model.temperature is {query.model.temperature}, expected labelled Parquet, CSV or JSON Lines to fit it on; "
            "give its path there, and the column of its labels in pool.label"
        )
    return fitted


def verify(store: Store, name: str, reporter: Reporter | None = None) -> Verified:
    """Derive a committed selection again from the store and compare it; see `raystream.choosing.verify`."""
    from raystream.choosing.verify import verify as derive_again
    from raystream.cluster.processes import Processes
    from raystream.scoring.progress import Silent

    reporter = reporter or Silent()
    return derive_again(store, name, lambda query: Processes(query.cluster, reporter), reporter)

"""The steps of a run: plan, score, merge, choose, commit. What `raystream.run` does, with all that it takes imported."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from raystream.choosing.batch import ScoringFacts, choose_batch, commit
from raystream.choosing.candidates import flat_scores, read_pool
from raystream.choosing.constraints import PoolColumns
from raystream.choosing.epig import with_epig
from raystream.choosing.foresight import check_room, foresee
from raystream.choosing.labelled import find_labelled_rows
from raystream.choosing.verify import Verified, check_recorded
from raystream.choosing.verify import verify as derive_again
from raystream.cluster.address import own_ray_wanted
from raystream.cluster.growing import Processes
from raystream.errors import QueryError, StoreError
from raystream.lake.table_writer import check_output, write_table
from raystream.model import runs_on_gpu
from raystream.pool import refuse_among
from raystream.query import Query
from raystream.scoring.calibrate import QueryCalibration, fitted_temperature
from raystream.scoring.class_labels import named_classes
from raystream.scoring.estimate import Estimate, estimate
from raystream.scoring.plan import ResolvedQuery, resolve, write_plan
from raystream.scoring.progress import Reporter, RunLog
from raystream.scoring.session import Session, model_notes, score_warnings
from raystream.store.life import SignOfLife
from raystream.store.manifest import Seconds
from raystream.store.opening import refuse_in_store
from raystream.store.protocol import Store
from raystream.store.recorded import Recorded
from raystream.store.result import Result, Scores, read_result
from raystream.store.unit_columns import named, quarantined_rows, with_losses

_log = logging.getLogger("raystream")


def run(
    query: Query,
    reporter: Reporter,
    may_score: bool,
    record: Recorded | None = None,
    resolved: Callable[[ResolvedQuery], object] = lambda asked: None,
) -> Result:
    """See `raystream.run.run`.

    The query that a `record` holds is held against what that says; `resolved` is told what is asked before anything of it is scored, and
    may refuse it.
    """
    with Processes(query.cluster, reporter) as processes:
        began = time.perf_counter()
        fitted = fitted_temperature(query, reporter, processes, may_score=may_score)
        result = _run(query, record, fitted, reporter, processes, may_score, time.perf_counter() - began, resolved)
    return _with_output(query, result)


def _run(
    query: Query,
    record: Recorded | None,
    fitted: QueryCalibration | None,
    reporter: Reporter,
    processes: Processes,
    may_score: bool,
    fitting: float,
    resolved: Callable[[ResolvedQuery], object],
) -> Result:
    began = time.perf_counter()
    if query.output is not None:
        refuse_among(query.output, query.row_uris, "output", f"selection-{query.store.query or '0' * 12}.parquet")
        refuse_in_store(query.output, query.store.uri, "output")
        check_output(query.output, storage=query.pool.options)
    with SignOfLife() as life, RunLog(reporter) as log:
        reporter.stage("Reading the pool's footers")
        asked = resolve(query, fitted.calibration if fitted else None if record is None else record.calibration)
        resolved(asked)
        log.asked(asked)
        committed = asked.committed
        if committed is not None:
            return read_result(asked.store, committed)
        differ = [] if record is None else check_recorded(asked, record)
        _say(differ)
        life.begin(asked.store, asked.folder)
        log.begin(asked.store, asked.folder)
        plan = asked.plan(asked.pool.units)
        log.planned(plan)
        if len(plan.to_compute) and not may_score:
            raise QueryError(
                f"{len(plan.to_compute)} of {len(plan.units)} units are not scored yet; run raystream query or raystream score first"
            )
        _say(foresee(asked, plan))
        write_plan(asked, plan)
        planned = time.perf_counter()
        with Session(asked.job, asked.store, asked.folder, log, processes, life, may_score=may_score) as session:
            units = session.score(plan)
            scored = time.perf_counter()
            reporter.stage("Merging the scores")
            pool, also, notes = with_epig(asked, plan, read_pool(asked, plan, units, session.warnings), session)
            labelled = find_labelled_rows(asked, pool, session)
            session.end_workers()
            reporter.stage(f"Choosing {query.select.budget} rows by {query.select.strategy}")
            columns = PoolColumns(pool, asked.pool.keep_schema, named_classes(asked.classes, pool.units))
            batch = choose_batch(asked.query, columns, labelled, processes)
        seconds = Seconds(
            start=session.start_seconds,
            plan=planned - began,
            score=scored - planned - session.start_seconds,
            select=time.perf_counter() - scored,
            calibrate=fitting,
        )
        warnings = [*differ, *asked.warnings, *score_warnings(asked.query, pool.units, session), *flat_scores(asked.query, pool), *notes]
        warnings += [*labelled.warnings, *batch.warnings, *model_notes(pool.units)]
        scoring = ScoringFacts(plan, also, session.units_scored, session.bytes_read)
        result = commit(asked, scoring, pool, labelled, batch, seconds, warnings)
        log.end("committed", chosen=result.manifest.counts.chosen)
        return result


def _say(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        _log.warning("%s", sentence)


def _with_output(query: Query, result: Result) -> Result:
    """Return the result, once the table that the query names holds it, too."""
    if query.output is None:
        return result
    try:
        rows = result.selection.replace_schema_metadata(result.manifest.about)
        write_table(rows, query.output, result.query, storage=query.pool.options)
    except StoreError as error:
        raise StoreError(f"{error}; query {result.query} is committed, run it again to write this table") from error
    return replace(result, output=query.output)


def score(query: Query, reporter: Reporter) -> Scores:
    """See `raystream.run.score`."""
    with Processes(query.cluster, reporter) as processes, SignOfLife() as life, RunLog(reporter) as log:
        began = time.perf_counter()
        fitted = fitted_temperature(query, reporter, processes)
        fitting = time.perf_counter() - began
        reporter.stage("Reading the pool's footers")
        asked = resolve(query, fitted.calibration if fitted else None)
        log.asked(asked)
        committed = asked.is_committed
        if not committed:
            life.begin(asked.store, asked.folder)
            log.begin(asked.store, asked.folder)
        plan = asked.plan(asked.pool.units)
        log.planned(plan)
        _say(foresee(asked, plan, chooses=False))
        if not committed:
            write_plan(asked, plan)  # `raystream gc` knows by it which units are in use
        planned = time.perf_counter()
        with Session(asked.job, asked.store, asked.folder, log, processes, life) as session:
            pool, _, notes = with_epig(asked, plan, read_pool(asked, plan, session.score(plan), session.warnings), session)
            labelled = find_labelled_rows(asked, pool, session)
        log.end("scored")
    scoring = time.perf_counter() - planned - session.start_seconds
    every = [pool.units, labelled.elsewhere]
    told = [*asked.warnings, *score_warnings(asked.query, pool.units, session), *notes, *labelled.warnings, *model_notes(pool.units)]
    return Scores(
        query=asked.name,
        rows=len(pool),
        units_scored=session.units_scored,
        units_reused=len(plan.units) - len(plan.to_compute),
        warnings=tuple(told),
        seconds=Seconds(start=session.start_seconds, plan=planned - began - fitting, score=scoring, calibrate=fitting),
        quarantined=tuple(named(quarantined_rows(asked.store, *every), sum(unit.quarantined for unit in with_losses(every)))),
    )


def plan(query: Query) -> Estimate:
    """See `raystream.run.plan`."""
    own = own_ray_wanted(query.cluster.address)
    first = own and (query.cluster.address == "local" or runs_on_gpu(query.model))
    here = own or query.cluster.address == "in_process"
    return estimate(query, own_machine=here, ray_first=first, foresee=foresee, check_room=check_room)


def calibrate(query: Query, reporter: Reporter) -> QueryCalibration:
    """See `raystream.run.calibrate`."""
    with Processes(query.cluster, reporter) as processes:
        fitted = fitted_temperature(query, reporter, processes)
    if fitted is None:
        raise QueryError(
            f"model.temperature is {query.model.temperature}, expected labelled Parquet, CSV or JSON Lines to fit it on; "
            "give its path there, and the column of its labels in pool.label"
        )
    return fitted


def verify(store: Store, name: str, reporter: Reporter, rescored: int, seed: int) -> Verified:
    """See `raystream.choosing.verify`."""
    return derive_again(store, name, lambda query: Processes(query.cluster, reporter), reporter, rescored, seed)

"""Fits a query's temperature on labelled rows, once: they are scored as units, and the fit is kept in the store.

The rows run through the query's own workers, not through a model that the driver loads: on the device, in the precision and the
batches of the pool's rows, by a driver that may have no room for the model. Units are stored with log-probabilities at temperature
1; what is kept is found again by their keys, the labels' column and the names of the classes, without a model.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from raystream.acquisition import fit_mean_temperature, mean_log_probabilities, relative_error, reliability_bins
from raystream.errors import LabelsError, PoolError, QueryError
from raystream.model import check_classes, class_names, fingerprint, with_local_files
from raystream.pool import Places, PoolPlan, list_pool, read_columns_at, refuse_among
from raystream.pool.labelled_ids import labelled_rows
from raystream.query import Acquire, Pool, Query
from raystream.scoring.class_labels import check_label_type, check_possible, class_numbers, named_classes
from raystream.scoring.executor import WorkerSource
from raystream.scoring.job import ScoringJob
from raystream.scoring.output_kinds import LOGITS, QueryOutputs, UnitKeys
from raystream.scoring.plan import ScoringPlan, job_of, plan_scoring, pool_plan
from raystream.scoring.progress import Reporter
from raystream.scoring.scored_pool import ScoredPool, merge
from raystream.scoring.session import Session, refuse_quarantined, score_warnings
from raystream.store.calibration import Calibration, Reliability, calibration_folder, read_calibration, write_calibration
from raystream.store.life import SignOfLife
from raystream.store.opening import open_store, store_to_read
from raystream.store.protocol import Store
from raystream.store.receipts import SAMPLES, SCORES

_VERSION = 2
"""Of how a temperature is fitted; part of a fit's key."""
LEAST_ROWS = 20
"""Of a calibration set: with so few, the standard error is a third of the temperature where classes overlap, more where they don't."""
_DIGITS = 4
"""Of a fitted temperature: far below its standard error, so that it can be written out, and the last bits of logits don't decide."""
_UNSURE = 0.1
"""A relative standard error above which a warning says so."""


@dataclass(frozen=True)
class QueryCalibration:
    """A query's fit, and whether it was made just now."""

    calibration: Calibration
    new: bool


def fitted_temperature(query: Query, reporter: Reporter, processes: WorkerSource, *, may_score: bool = True) -> QueryCalibration | None:
    """Fit the temperature, if the query asks for that; return None if it gives a number.

    Args:
        query: as asked.
        reporter: told how far it is.
        processes: where workers run.
        may_score: whether the model may be run, if this set was not fitted on before.

    Raises:
        QueryError: it was not fitted before, and nothing may be scored.
        LabelsError: the labelled files, their labels or their number can't be used.
    """
    if not query.model.calibration_files:
        return None
    rows = _calibration_set(query)
    known = read_calibration(rows.store, rows.key)
    if known is not None:
        return QueryCalibration(known, new=False)
    if not may_score:
        raise QueryError("model.temperature is not fitted yet; run raystream calibrate, query or score first")
    began = time.perf_counter()
    folder = calibration_folder(rows.key)
    with SignOfLife() as life, Session(rows.job, rows.store, folder, reporter, processes, life) as session:
        life.begin(rows.store, folder)
        session.needs(rows.plan)
        pool = _scored(rows, session)
        session.end_workers()
        reporter.stage("Fitting the temperature")
        warnings = [*rows.read.warnings, *score_warnings(rows.query, pool.units, session)]
        return QueryCalibration(write_calibration(rows.store, _fit(rows, pool, warnings, began)), new=True)


def known_temperature(query: Query) -> Calibration | None:
    """Return the query's fit, if it was made before; None as well where nothing is to be fitted."""
    if not query.model.calibration_files:
        return None
    rows = _calibration_set(query, look_only=True)
    return read_calibration(rows.store, rows.key)


@dataclass(frozen=True)
class _CalibrationSet:
    """The labelled rows as a pool of their own, scored at temperature 1; `key` is the fit's, and `kind` says what it goes by."""

    key: str
    query: Query
    store: Store
    read: PoolPlan
    classes: list[str] | None
    label: str
    kind: str
    plan: ScoringPlan
    job: ScoringJob


def _calibration_set(query: Query, *, look_only: bool = False) -> _CalibrationSet:
    model = query.model.derived(temperature=1.0, embedding=None)
    refuse_among(query.store.uri, query.row_uris, "store.uri")
    store = (store_to_read if look_only else open_store)(query.store.uri, query.store_options)
    label, uris = query.pool.label or "", query.model.calibration_files
    pool = Pool(uri=uris, inputs=query.pool.inputs, storage=query.pool.storage)
    try:
        files, _ = list_pool(uris, "model.temperature", storage=pool.options, texts=True)
        read = pool_plan(query.derived(model=model), pool, [label], labels=True)
    except PoolError as error:
        told = str(error).removeprefix("pool.uri ")
        raise LabelsError(told if told.startswith("model.temperature") else f"model.temperature: {told}") from None
    type_, named = read.keep_schema.field(label).type, model.classes is not None
    check_label_type(f"column {label} of {files[0].path} (pool.label)", type_, named, query.names_classes)
    scored = query.derived(pool=pool, model=model, acquire=Acquire())
    local = with_local_files(model, pool.options)
    digest, classes = fingerprint(local), class_names(local.classes)
    committee = isinstance(model.weights, list) or model.members is not None or model.samples is not None
    # A committee's mean depends on the temperature, so its members are needed; any other confidence follows from the logits.
    kind = SAMPLES if committee else LOGITS
    kinds = QueryOutputs(scored, None)
    plan = plan_scoring(store, UnitKeys(scored, read.read, digest), read.units, (kinds.of(SCORES), kinds.of(kind)))
    parts = [_VERSION, plan.keys[:], [output.name for output in plan.outputs], label, classes, query.on_error]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return _CalibrationSet(key, scored, store, read, classes, label, kind, plan, job_of(scored, store, read, digest, plan.outputs))


def _scored(rows: _CalibrationSet, session: Session) -> ScoredPool:
    found, units = session.score(rows.plan), rows.plan.units
    refuse_quarantined(rows.query, found)
    return merge(rows.store, found, units.files, units.file_of[found.places], rows.query.pool.id or "id", None)


def _fit(rows: _CalibrationSet, pool: ScoredPool, warnings: Sequence[str], began: float) -> Calibration:
    places = pool.places(np.arange(len(pool)))
    kept = _labelled(places)
    places = Places(places.files, places.of[kept], places.rows[kept])
    if len(places) < LEAST_ROWS:
        raise LabelsError(
            f"model.temperature: {', '.join(rows.query.pool.uris)} holds {len(places)} rows to fit a temperature on, "
            f"expected at least {LEAST_ROWS}; label more, or give a number"
        )
    samples = torch.from_numpy(pool.samples(rows.kind, None)[kept])
    count = samples.shape[2]
    check_classes(rows.classes, count)
    column = read_columns_at(places, rows.read.keep_schema).column(rows.label)
    named_classes(rows.classes, pool.units)  # names in another order than the model's are refused
    own = next((receipt.class_labels for receipt in pool.units.of_models() if receipt.class_labels is not None), None)
    labels = class_numbers(f"column {rows.label} (pool.label)", places, column, rows.classes, count, own)
    check_possible(places, samples, labels)
    fit = fit_mean_temperature(samples, labels)
    temperature = float(f"{fit.temperature:.{_DIGITS}g}")
    before, after = (reliability_bins(mean_log_probabilities(samples, t).exp(), labels) for t in (1.0, temperature))
    error = None if fit.at_bound else relative_error(samples, labels, temperature)
    read = rows.read.read
    return Calibration(
        key=rows.key,
        temperature=temperature,
        relative_error=error,
        at_bound=fit.at_bound,
        rows=len(places),
        classes=count,
        nll_before=fit.nll_before,
        nll_after=fit.nll_after,
        ece_before=before.error,
        ece_after=after.error,
        before=Reliability(before.count.tolist(), _known(before.confidence), _known(before.accuracy)),
        after=Reliability(after.count.tolist(), _known(after.confidence), _known(after.accuracy)),
        label=rows.label,
        files=rows.read.snapshot,
        columns=list(read.inputs),
        shapes=[list(shape) for shape in read.shapes],
        dtypes=list(read.dtypes),
        state_hash=pool.units[0].receipts[0].state_hash,
        seconds=time.perf_counter() - began,
        warnings=[*warnings, *_doubts(temperature, fit.at_bound, error, len(places)), *_no_gain(before.error, after.error)],
    )


def _doubts(temperature: float, at_bound: bool, error: float | None, rows: int) -> list[str]:
    if at_bound:
        return [
            f"the fitted temperature {temperature:g} is at its bound: the best lies beyond it or nowhere, as where every row is predicted "
            f"right; don't trust it, fit on more than these {rows:,} rows, and on none that the model was trained on"
        ]
    if error is not None and error > _UNSURE:
        return [f"the fitted temperature {temperature:g} is known to {error:.0%} (one standard error) from {rows:,} rows; label more"]
    return []


def _no_gain(before: float, after: float) -> list[str]:
    """Warn if confidence is not nearer to what it says, though the labels are likelier."""
    if after <= before:
        return []
    return [
        f"the calibration error grew from {before:.4f} to {after:.4f}, although the labels became likelier: "
        "the model was about as sure as it should be"
    ]


def _labelled(places: Places) -> np.ndarray:
    """Tell (n,) bool which rows are labelled: not where a file says that a row was skipped or rejected, or is a draft or deleted."""
    mask = np.ones(len(places), dtype=bool)
    for number, file in enumerate(places.files):
        rows = labelled_rows(file)
        if rows is not None:
            mask &= (places.of != number) | np.isin(places.rows, rows)
    return mask


def _known(values: torch.Tensor) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]

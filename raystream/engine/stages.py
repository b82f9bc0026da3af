"""The steps of a run between the workers and the choice: all receipts, the checks over the whole pool, the commit."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from raystream.engine.class_labels import named_classes
from raystream.engine.manifest import Counts, Manifest, Seconds, query_folder, read_manifest, versions
from raystream.engine.merge import ScoredPool, merge
from raystream.engine.prepare import Prepared, write_plan
from raystream.engine.quarantine import refuse_quarantined, write_quarantined
from raystream.engine.receipt import Receipt
from raystream.engine.result import Result, read_result
from raystream.engine.session import Session
from raystream.engine.stores import unbroken
from raystream.errors import ModelError, PoolError
from raystream.model import check_classes
from raystream.pool import check_unique
from raystream.query import MEMBER_SCORES

if TYPE_CHECKING:
    from raystream.engine.choosing import Batch
    from raystream.engine.covered import Covered


def all_receipts(prepared: Prepared, session: Session) -> list[Receipt]:
    """Receipts of all units in row order, those scored before and those scored now."""
    new = iter(session.score(prepared.missing))
    receipts = [receipt if receipt is not None else next(new) for receipt in prepared.receipts]
    found = [receipt for receipt in receipts if receipt is not None]
    refuse_quarantined(prepared.query, found)
    return found


def scored_pool(prepared: Prepared, receipts: Sequence[Receipt], session: Session) -> ScoredPool:
    """The merged pool, once it is known to be sound: rows to choose from, unique ids, outputs of one shape."""
    query = prepared.query
    if not receipts:
        reason = f": {session.warnings[0]}" if session.warnings else ""
        raise PoolError(f"no unit of {', '.join(query.pool.uris)} could be scored{reason}")
    lacking = next((receipt.unit for receipt in receipts if receipt.rows and receipt.members is None), None)
    asked = [score for score in query.acquire.asked if score in (*MEMBER_SCORES, "epig")]
    if lacking and (asked or query.select.traits.samples):
        raise ModelError(
            f"{asked[0] if asked else query.select.strategy} compares several opinions of a row, but the model gave one in unit {lacking}; "
            "use a committee, such as a forest, or MC dropout"
        )
    stored = query.needs_score and query.acquire.score != "epig"
    pool = merge(prepared.store, receipts, query.pool.id or "id", query.acquire.column if stored else None)
    _check(prepared, pool)
    _check_calibrated(prepared, pool)
    return pool


def with_class_names(prepared: Prepared, receipts: Sequence[Receipt]) -> Prepared:
    """The query with the names of the model's classes, where it gives none and the model has some."""
    return replace(prepared, classes=named_classes(prepared.classes, receipts))


def score_warnings(prepared: Prepared, receipts: Sequence[Receipt], session: Session) -> list[str]:
    """What the scoring has to say to the user."""
    warnings = [*(prepared.calibration.warnings if prepared.calibration else ()), *prepared.pool.warnings, *session.warnings]
    quarantined = sum(receipt.quarantined for receipt in receipts)
    if quarantined:
        reasons = [reason for receipt in receipts for reason in receipt.quarantine_reasons]
        warnings.append(f"{quarantined} rows were quarantined, first: {reasons[0]}")
    new = {task.key for task in prepared.missing}
    repeated = sum(receipt.repeated_reads for receipt in receipts if receipt.key in new)
    if repeated:
        warnings.append(f"{repeated} requests to object storage broke and were made again")
    asked = prepared.query.model.batch_size
    smallest = min((receipt.batch_size for receipt in receipts), default=asked)
    if smallest < asked:
        warnings.append(f"the device ran out of memory and batches were cut from {asked} to {smallest} rows; scores agree to 1e-6")
    return warnings


def model_notes(receipts: Sequence[Receipt]) -> list[str]:
    """What the workers that scored the units have to say of the model."""
    return list(dict.fromkeys(note for receipt in receipts for note in receipt.notes))


def flat_scores(prepared: Prepared, pool: ScoredPool) -> list[str]:
    """A warning where the score ranks nothing."""
    query = prepared.query
    if not query.needs_score or pool.score is None or len(pool) < 2:
        return []
    least, most = float(pool.score.min()), float(pool.score.max())
    if least < most:
        return []
    return [f"all {len(pool):,} rows have the same {query.acquire.score}, {least:.4g}, so it ranks nothing; look at the model's outputs"]


def commit(
    prepared: Prepared, pool: ScoredPool, batch: Batch, session: Session, seconds: Seconds, warnings: list[str], covered: Covered
) -> Result:
    """Write the selection and the plan, then the manifest, last of all; a query without a manifest did not happen."""
    first = prepared.committed
    if first is not None:
        return read_result(prepared.store, first)
    query = prepared.query
    missing = {task.key for task in prepared.missing}
    folder = query_folder(prepared.name)
    name = f"{folder}/selection-{uuid.uuid4().hex[:12]}.parquet"

    def write() -> None:
        with prepared.store.writing(name) as file:
            pq.write_table(batch.selection, file)

    unbroken(prepared.store, write)
    stored = prepared.store.stored(name)
    left_out = name.replace("/selection-", "/quarantined-")
    quarantined = unbroken(prepared.store, lambda: write_quarantined(prepared.store, left_out, [*pool.receipts, *covered.elsewhere]))
    manifest = Manifest(
        query=prepared.name,
        identity=prepared.identity,
        resolved=query.model_dump(mode="json"),
        files=prepared.pool.snapshot,
        fingerprint=prepared.fingerprint,
        versions=versions(),
        seed=query.seed,
        counts=Counts(
            pool=prepared.pool.rows,
            scored=len(pool),
            labelled=covered.known,
            eligible=batch.eligible,
            candidates=batch.candidates,
            chosen=batch.selection.num_rows,
            quarantined=sum(receipt.quarantined for receipt in pool.receipts),
        ),
        units_scored=session.units_scored,
        units_reused=len(prepared.tasks) - len(missing),
        seconds=seconds,
        bytes_read=sum(receipt.bytes_read for receipt in pool.receipts if receipt.key in missing),
        passes=batch.passes,
        certificate=batch.certificate,
        warnings=warnings,
        selection=stored,
        facts=batch.facts,
        selection_rounds=batch.rounds,
        calibration=prepared.calibration,
        tables=list(prepared.pool.tables),
        labelled_units=[receipt.key for receipt in covered.elsewhere],
        labelled_digest=prepared.labelled.digest if prepared.labelled is not None else None,
        committed=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        quarantined=quarantined,
    )
    replaced = write_plan(prepared, {a.key: b.key for a, b in zip(pool.receipts, pool.further, strict=False) if b is not None})
    for file, copy in ((stored, "selection.parquet"), (quarantined, "quarantined.parquet")):
        if file is not None:
            prepared.store.put(f"{folder}/{copy}", prepared.store.read(file.name))
    if not prepared.store.put_if_absent(f"{folder}/manifest.json", manifest.to_json()):
        # Somebody else's query of this name was committed meanwhile: the same one, or `committed` says what differs.
        return _lost(prepared, manifest, replaced)
    return Result(prepared.store, batch.selection, manifest, new=True)


def _lost(prepared: Prepared, ours: Manifest, plan: bytes | None) -> Result:
    """What another run committed under this query's name; nothing of `ours` stays, and `plan` comes back, which ours replaced."""
    store = prepared.store
    winner = read_manifest(store, prepared.name)
    assert winner is not None
    folder = query_folder(prepared.name)
    if winner.selection.name != ours.selection.name:
        for file in filter(None, (ours.selection, ours.quarantined)):
            store.discard(file.name)
    if winner.identity != ours.identity:
        store.put(f"{folder}/selection.parquet", store.read(winner.selection.name))
        if winner.quarantined is not None:
            store.put(f"{folder}/quarantined.parquet", store.read(winner.quarantined.name))
        elif ours.quarantined is not None:
            store.discard(f"{folder}/quarantined.parquet")
        if plan is not None:
            store.put(f"{folder}/plan.parquet", plan)
    first = prepared.committed
    assert first is not None
    return read_result(store, first)


def _check(prepared: Prepared, pool: ScoredPool) -> None:
    if not len(pool):
        reasons = [reason for receipt in pool.receipts for reason in receipt.quarantine_reasons]
        first = f"; the first of the rows left out: {reasons[0]}" if reasons else ""
        raise PoolError(f"no row of {', '.join(prepared.query.pool.uris)} is left to choose from after pool.filters and on_error{first}")
    check_unique(pool.ids, prepared.query.pool.id or "id", pool.place)
    classes = next((receipt.classes for receipt in pool.receipts if receipt.classes is not None), None)
    if prepared.classes is not None and classes is not None:
        check_classes(prepared.classes, classes)
    if prepared.query.needs_embedding and not any(receipt.embeddings for receipt in pool.receipts):
        raise ModelError("the model gave no embedding; name the module in model.embedding")


def _check_calibrated(prepared: Prepared, pool: ScoredPool) -> None:
    """Refuse a temperature of another model than the one that scored the pool."""
    calibration = prepared.calibration
    if calibration is not None and any(receipt.state_hash != calibration.state_hash for receipt in pool.receipts):
        raise ModelError(
            "the model that scored the pool isn't the one that model.temperature was fitted with: the factory does not build the same "
            "model every time; make it deterministic or give model.weights"
        )

"""The steps of a run between the workers and the choice: all receipts, the checks over the whole pool, the commit."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from raystream.choosing.scored_pool import ScoredPool
from raystream.scoring.plan import Prepared, write_plan
from raystream.scoring.session import Session
from raystream.store.manifest import Counts, Manifest, Seconds, versions
from raystream.store.quarantined import write_quarantined
from raystream.store.queries import query_folder, read_manifest
from raystream.store.requests import unbroken
from raystream.store.result import Result, read_result

if TYPE_CHECKING:
    from raystream.choosing.batch import Batch
    from raystream.choosing.labelled import LabelledRows














def commit(
    prepared: Prepared, pool: ScoredPool, batch: Batch, session: Session, seconds: Seconds, warnings: list[str], covered: LabelledRows
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





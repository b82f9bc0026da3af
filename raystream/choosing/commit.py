"""The commit of a query: the selection and the plan, then the manifest."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow.parquet as pq

from raystream.choosing.batch import ChosenBatch
from raystream.choosing.labelled import LabelledRows
from raystream.scoring.output_kinds import Output
from raystream.scoring.plan import ResolvedQuery, ScoringPlan, write_plan
from raystream.scoring.scored_pool import ScoredPool
from raystream.selection.bounds import has_bfloat16_units
from raystream.store.manifest import Counts, Manifest, Seconds, versions
from raystream.store.packs import unbroken
from raystream.store.queries import read_manifest
from raystream.store.result import Result, read_result
from raystream.store.unit_columns import write_quarantined


@dataclass(frozen=True)
class ScoringFacts:
    """The scoring for a query: its plan, the outputs that came after the plan's, and how many units and bytes were read for it."""

    plan: ScoringPlan
    also: Sequence[Output]
    units_scored: int
    bytes_read: int


def commit(
    asked: ResolvedQuery,
    scoring: ScoringFacts,
    pool: ScoredPool,
    labelled: LabelledRows,
    batch: ChosenBatch,
    seconds: Seconds,
    warnings: list[str],
) -> Result:
    """Write the selection and the plan, then the manifest, last of all; a query without a manifest did not happen."""
    first = asked.committed
    if first is not None:
        return read_result(asked.store, first)
    query = asked.query
    name = f"{asked.folder}/selection-{uuid.uuid4().hex[:12]}.parquet"

    def write() -> None:
        with asked.store.writing(name) as file:
            pq.write_table(batch.selection, file)

    unbroken(asked.store, write)
    stored = asked.store.stored(name)
    left_out = name.replace("/selection-", "/quarantined-")
    quarantined = unbroken(asked.store, lambda: write_quarantined(asked.store, left_out, pool.units, labelled.elsewhere))
    manifest = Manifest(
        query=asked.name,
        identity=asked.identity,
        resolved=query.model_dump(mode="json"),
        files=asked.pool.snapshot,
        fingerprint=asked.fingerprint,
        versions=surroundings(),
        seed=query.seed,
        counts=Counts(
            pool=asked.pool.rows,
            scored=len(pool),
            labelled=labelled.known,
            eligible=batch.eligible,
            candidates=batch.candidates,
            chosen=batch.selection.num_rows,
            quarantined=int(pool.units.quarantined.sum()),
        ),
        units_scored=scoring.units_scored,
        units_reused=len(scoring.plan.units) - len(scoring.plan.to_compute),
        seconds=seconds,
        bytes_read=scoring.bytes_read,
        passes=batch.passes,
        certificate=batch.certificate,
        warnings=warnings,
        selection=stored,
        facts=batch.facts,
        selection_rounds=batch.rounds,
        calibration=asked.calibration,
        tables=list(asked.pool.tables),
        labelled_units=[unit.key for unit in labelled.elsewhere],
        labelled_digest=asked.labelled.digest if asked.labelled is not None else None,
        committed=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        quarantined=quarantined,
        scored=batch.selection.column("score").null_count < batch.selection.num_rows,
    )
    replaced = write_plan(asked, scoring.plan, scoring.also)
    for file, copy in ((stored, "selection.parquet"), (quarantined, "quarantined.parquet")):
        if file is not None:
            asked.store.put(f"{asked.folder}/{copy}", asked.store.read(file.name))
    if not asked.store.put_if_absent(f"{asked.folder}/manifest.json", manifest.to_json()):
        # Somebody else's query of this name was committed meanwhile: the same one, or `committed` says what differs.
        return _lost(asked, manifest, replaced)
    return Result(asked.store, batch.selection, manifest, new=True)


def _lost(asked: ResolvedQuery, ours: Manifest, plan: bytes | None) -> Result:
    """Return what another run committed under this query's name; nothing of `ours` stays, and `plan` comes back, which ours replaced."""
    store = asked.store
    winner = read_manifest(store, asked.name)
    assert winner is not None
    if winner.selection.name != ours.selection.name:
        for file in filter(None, (ours.selection, ours.quarantined)):
            store.discard(file.name)
    if winner.identity != ours.identity:
        store.put(f"{asked.folder}/selection.parquet", store.read(winner.selection.name))
        if winner.quarantined is not None:
            store.put(f"{asked.folder}/quarantined.parquet", store.read(winner.quarantined.name))
        elif ours.quarantined is not None:
            store.discard(f"{asked.folder}/quarantined.parquet")
        if plan is not None:
            store.put(f"{asked.folder}/plan.parquet", plan)
    first = asked.committed
    assert first is not None
    return read_result(store, first)


def surroundings() -> dict[str, str]:
    """Return what a choice may depend on beside the query: versions, and the processor's units, which BADGE and k-means++ draw by."""
    return versions() | {"bfloat16 units": "yes" if has_bfloat16_units() else "no"}

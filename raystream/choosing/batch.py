"""From a scored pool to a committed batch.

From a scored pool to the selection: candidates, the strategy, and the table with the reason for each row.

`select.strategy: auto`: which strategy the written rule picks for a scored pool, and what the result says of it.

The commit of a query: the selection and the plan, then the manifest.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raystream.choosing.candidates import CandidateRows, Named, find_candidates, find_named, hashes_of
from raystream.choosing.constraints import BatchLimits, PoolColumns, exceeded, how_met, in_query, read_limits, refuse_empty, words_of_query
from raystream.choosing.holding import Actors, held_embeddings, memory_of, results_over
from raystream.choosing.labelled import LabelledRows
from raystream.errors import QueryError
from raystream.imports import find
from raystream.query import Query
from raystream.query.catalogue.strategies import AUTO, pick
from raystream.query.select import column_of
from raystream.scoring.output_kinds import Output
from raystream.scoring.plan import ResolvedQuery, ScoringPlan, write_plan
from raystream.scoring.scored_pool import ScoredPool, holds_column
from raystream.selection import Candidates, Chosen, Rows, Shards, Strategy, choose
from raystream.selection.bounds import has_bfloat16_units
from raystream.selection.strategy import Kept
from raystream.store.manifest import Certificate, Counts, Manifest, Seconds, SelectionRounds, versions
from raystream.store.packs import unbroken
from raystream.store.queries import read_manifest
from raystream.store.receipts import SAMPLES
from raystream.store.result import Result, read_result
from raystream.store.unit_columns import write_quarantined

PICKED, WHY = "strategy", "strategy_why"
"""The manifest's facts of it."""


def with_strategy(query: Query, pool: ScoredPool, labelled: LabelledRows) -> tuple[Query, dict[str, str]]:
    """Return the query with the strategy that is picked in place of `auto`, and the facts of it; any other query as it is.

    Args:
        query: as asked.
        pool: the scored rows, which know how many classes the model has.
        labelled: the labelled rows.
    """
    if query.select.strategy != AUTO:
        return query, {}
    classes = next((unit.classes for unit in pool.units if unit.classes is not None), 1)
    found = pick(labelled.known, classes, task=query.model.task, embedding=query.needs_embedding, score=pool.score is not None)
    select = query.select.derived(strategy=found.strategy)
    return query.derived(select=select), {PICKED: found.strategy, WHY: found.why}


@dataclass(frozen=True)
class ChosenBatch:
    """A chosen batch and what its manifest says of it."""

    selection: pa.Table
    eligible: int
    candidates: int
    passes: int
    certificate: Certificate | None
    warnings: tuple[str, ...]
    facts: dict[str, float | int | str]
    rounds: SelectionRounds | None


def choose_batch(query: Query, columns: PoolColumns, labelled: LabelledRows, actors: Actors, *, anew: bool = False) -> ChosenBatch:
    """Choose the query's batch among the rows that aren't labelled; its embeddings may be held by selection actors.

    Args:
        query, columns, labelled: what is asked, the scored pool with its columns, and the labelled rows.
        actors: hold embeddings that are too many for this process.
        anew: compute clusters and neighbour graphs, too, which the store may keep.

    Raises:
        QueryError: the query's own numbers leave none of the candidates, or a minimum that can't be met.
    """
    pool = columns.pool
    query, picked_by_rule = with_strategy(query, pool, labelled)
    named = find_named(query.select, pool.ids, labelled.mask)
    with words_of_query():
        candidates = find_candidates(query, columns, labelled, named)
    rows = candidates.rows
    count = len(pool) if rows is None else len(rows)
    limits = read_limits(query.select, columns, rows)
    with held_embeddings(query, pool, rows, actors) as held, words_of_query():
        kept = None if anew or held.shards is None else results_over(pool, rows, query.select.metric)
        chosen = _choose(query, pool, labelled, named, candidates, limits, held.shards, kept)
    rounds = None if held.rounds is None else held.rounds.record
    if not len(chosen.rows):
        refuse_empty(query.select, limits, chosen, count, candidates.limited)
    picked = chosen.rows if rows is None else rows[chosen.rows]
    certificate = None
    if chosen.certificate is not None:
        over = "pool" if count == candidates.eligible else "candidates"
        certificate = Certificate(chosen.certificate["radius"] or 0.0, chosen.certificate["lower_bound"], over)
    warnings = [*named.warnings, *exceeded(limits, chosen)]
    if len(picked) < query.select.budget:
        so_many = f", since {int(labelled.mask.sum()):,} of {len(pool):,} are labelled" if not count else ""
        reason = in_query(chosen.note or "") or f"no more than {count} are eligible{so_many}"
        were = "row was" if len(picked) == 1 else "rows were"
        warnings.append(f"{len(picked)} {were} chosen for a budget of {query.select.budget}: {reason}")
    table = selection_table(query, columns, picked, chosen)
    facts = dict(chosen.facts) | picked_by_rule | how_met(query.select, limits, chosen, len(named.must_include))
    if candidates.repeats:
        facts["exact_repeats"] = int(facts.get("exact_repeats", 0)) + candidates.repeats
    return ChosenBatch(table, candidates.eligible, count, chosen.passes, certificate, tuple(warnings), facts, rounds)


def selection_table(query: Query, columns: PoolColumns, picked: np.ndarray, chosen: Chosen) -> pa.Table:
    """Make the ranked table of a selection; its columns are part of the public contract."""
    pool = columns.pool
    more, score = _stored_columns(query, pool, picked), query.acquire.column
    places = pool.places(picked)
    table: dict[str, pa.Array | pa.ChunkedArray] = {
        "rank": pa.array(np.arange(len(picked)), pa.int32()),
        query.pool.id or "id": pool.ids_at(picked),
        "score": more.column(score) if score in more.column_names else pa.nulls(len(picked), pa.float32()),
        "gain": _nullable(chosen.gain),
        "distance": pa.nulls(len(picked), pa.float64()) if chosen.distance is None else _nullable(chosen.distance),
        "represents": pa.nulls(len(picked), pa.int64()) if chosen.represents is None else pa.array(chosen.represents, pa.int64()),
        "why": pa.array(chosen.why, pa.string()),
        "turn": pa.array(chosen.turn, pa.int32()),
        "probability": _nullable(chosen.probability),
        "prediction": more.column("prediction") if query.gives_predictions else pa.nulls(len(picked), pa.int32()),
    }
    if columns.classes is not None:
        names = pa.array(columns.classes, pa.string())
        table["prediction_name"] = names.take(table["prediction"].combine_chunks())
    table["confidence"] = more.column("confidence") if query.gives_predictions else pa.nulls(len(picked), pa.float32())
    table |= {name: more.column(name) for name in map(column_of, query.acquire.also) if name in more.column_names}
    if query.pool.keep:
        kept = columns.read(picked, query.pool.keep)
        table |= {name: kept.column(name) for name in query.pool.keep}
    table["path"] = places.paths
    table["row"] = pa.array(places.rows, pa.int64())
    return pa.table(table)


def _choose(
    query: Query,
    pool: ScoredPool,
    labelled: LabelledRows,
    named: Named,
    candidates: CandidateRows,
    limits: BatchLimits,
    shards: Shards | None,
    kept: Kept | None,
) -> Chosen:
    rows, select = candidates.rows, query.select
    given = Candidates(
        score=pool.score if rows is None or pool.score is None else pool.score[rows],
        keys=hashes_of(pool, query.seed, rows) if select.traits.chance else None,
        shards=shards,
        labelled=labelled.embeddings,
        probabilities=Rows(*pool.probabilities(rows, memory_of(query))) if select.traits.probabilities else None,
        labelled_probabilities=labelled.probabilities,
        samples=pool.samples(SAMPLES, rows) if select.traits.samples else None,
        similar_to=pool.embeddings_of(named.similar_to) if select.similar_to else None,
        kept=kept,
    )
    return choose(
        given,
        strategy=users_strategy(select.strategy) if ":" in select.strategy else select.strategy,
        budget=select.budget,
        seed=query.seed,
        metric=select.metric,
        weight=select.weight,
        mix=select.mix,
        terms=select.terms,
        near_duplicates=select.near_duplicates,
        quotas=limits.quotas,
        cost=limits.cost,
        must_include=candidates.must_include,
        drawn=candidates.drawn,
        more=candidates.limited,
        eligible=candidates.eligible,
        others=candidates.others,
        memory=memory_of(query),
        args=select.args,
    )


def _stored_columns(query: Query, pool: ScoredPool, picked: np.ndarray) -> pa.Table:
    names = ["row"]
    if query.gives_scores:
        names += [name for name in query.acquire.columns if holds_column(pool.units, name)]
    if query.gives_predictions:
        names += ["prediction", "confidence"]
    return pool.columns_at(picked, names)


def _nullable(values: np.ndarray) -> pa.Array:
    """Return the values with null in place of NaN."""
    return pa.array(values, pa.float64(), from_pandas=True)


def users_strategy(source: str) -> Strategy:
    """Import the function `module:attribute` that `select.strategy` names.

    Raises:
        QueryError: it can't be imported, or isn't a function.
    """
    found = find(source, "select.strategy")
    if not callable(found):
        raise QueryError(f"select.strategy {source} is no function; expected one from (Candidates, Request) to Picked")
    strategy: Strategy = found
    return strategy


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

"""From a scored pool to the selection: candidates, the strategy, and the table with the reason for each row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raystream.engine.covered import Covered
from raystream.engine.holding import held_embeddings, memory_of
from raystream.engine.manifest import Certificate, SelectionRounds
from raystream.engine.merge import ScoredPool
from raystream.engine.prepare import Prepared
from raystream.engine.session import Session
from raystream.pool import read_columns_at
from raystream.query import Query
from raystream.selection import Candidates, Chosen, Shards, choose, row_hash, top_k


@dataclass(frozen=True)
class Batch:
    """A chosen batch and what its manifest says of it."""

    selection: pa.Table
    eligible: int
    candidates: int
    passes: int
    certificate: Certificate | None
    warnings: tuple[str, ...]
    rounds: SelectionRounds | None


def choose_batch(prepared: Prepared, pool: ScoredPool, covered: Covered, session: Session) -> Batch:
    """Choose the query's batch among the rows that aren't labelled; the session may have to connect to Ray for it."""
    query = prepared.query
    eligible = len(pool) - int(covered.mask.sum())
    rows = _candidate_rows(query, pool, covered.mask)
    count = len(pool) if rows is None else len(rows)
    with held_embeddings(query, pool, rows, session) as held:
        chosen = _choose(query, pool, covered, rows, held.shards)
    rounds = None if held.rounds is None else held.rounds.record
    picked = chosen.rows if rows is None else rows[chosen.rows]
    certificate = None
    if chosen.certificate is not None:
        over = "pool" if count == eligible else "candidates"
        certificate = Certificate(chosen.certificate["radius"] or 0.0, chosen.certificate["lower_bound"], over)
    warnings = []
    if len(picked) < query.select.budget:
        reason = chosen.note or f"no more than {count} are eligible"
        warnings.append(f"{len(picked)} rows were chosen for a budget of {query.select.budget}: {reason}")
    table = selection_table(prepared, pool, picked, chosen)
    return Batch(table, eligible, count, chosen.passes, certificate, tuple(warnings), rounds)


def selection_table(prepared: Prepared, pool: ScoredPool, picked: np.ndarray, chosen: Chosen) -> pa.Table:
    """The ranked table of a selection; its columns are part of the public contract."""
    query = prepared.query
    units = pool.unit_of(picked)
    unit_of_task = {task.unit.name: task.unit for task in prepared.tasks}
    chosen_units = [unit_of_task[pool.receipts[unit].unit] for unit in units]
    more = _stored_columns(query, pool, picked)
    file_rows = more.column("row").to_numpy()
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "rank": pa.array(np.arange(len(picked)), pa.int32()),
        query.pool.id or "id": pool.ids.take(pa.array(picked)),
        "score": more.column(query.acquire.score) if query.gives_scores else pa.nulls(len(picked), pa.float32()),
        "gain": _nullable(chosen.gain),
        "distance": pa.nulls(len(picked), pa.float64()) if chosen.distance is None else _nullable(chosen.distance),
        "represents": pa.nulls(len(picked), pa.int64()) if chosen.represents is None else pa.array(chosen.represents, pa.int64()),
        "why": pa.array(chosen.why, pa.string()),
        "prediction": more.column("prediction") if query.gives_scores else pa.nulls(len(picked), pa.int32()),
    }
    if prepared.classes is not None:
        names = pa.array(prepared.classes, pa.string())
        columns["prediction_name"] = names.take(columns["prediction"].combine_chunks())
    columns["confidence"] = more.column("confidence") if query.gives_scores else pa.nulls(len(picked), pa.float32())
    columns |= {name: more.column(name) for name in query.acquire.also if name in more.column_names}
    if query.pool.keep:
        places = [(unit.file, int(row)) for unit, row in zip(chosen_units, file_rows, strict=True)]
        kept = read_columns_at(places, prepared.pool.keep_schema)
        columns |= {name: kept.column(name) for name in query.pool.keep}
    columns["path"] = pa.array([unit.file.path for unit in chosen_units], pa.string())
    columns["row"] = pa.array(file_rows, pa.int64())
    return pa.table(columns)


def _candidate_rows(query: Query, pool: ScoredPool, labelled: np.ndarray) -> np.ndarray | None:
    """The pool's rows that enter the choice, ascending; None for all of them."""
    limit = query.select.candidate_limit
    free = np.flatnonzero(~labelled) if labelled.any() else None
    count = len(pool) if free is None else len(free)
    if limit is None or limit >= count:
        return free
    assert pool.score is not None
    best = top_k(pool.score if free is None else pool.score[free], limit)
    return np.sort(best if free is None else free[best])


def _choose(query: Query, pool: ScoredPool, covered: Covered, rows: np.ndarray | None, shards: Shards | None) -> Chosen:
    select = query.select
    score = pool.score if rows is None or pool.score is None else pool.score[rows]
    keys = None
    if select.traits.chance:
        ids = pool.ids if rows is None else pool.ids.take(pa.array(rows))
        keys = row_hash(query.seed, ids.to_numpy() if pa.types.is_integer(ids.type) else ids.to_pylist())
    candidates = Candidates(score=score, keys=keys, shards=shards, labelled=covered.embeddings)
    return choose(
        candidates,
        strategy=select.strategy,
        budget=select.budget,
        seed=query.seed,
        metric=select.metric,
        weight=select.weight,
        mix=select.mix,
        terms=select.terms,
        near_duplicates=select.near_duplicates,
        memory=memory_of(query),
        args=select.args,
    )


def _stored_columns(query: Query, pool: ScoredPool, picked: np.ndarray) -> pa.Table:
    names = ["row"]
    if query.gives_scores:
        names += list(dict.fromkeys([query.acquire.score, *query.acquire.also, "prediction", "confidence"]))
    return pool.columns_at(picked, names)


def _nullable(values: np.ndarray) -> pa.Array:
    """NaN stands for no value."""
    return pa.array(values, pa.float64(), from_pandas=True)
